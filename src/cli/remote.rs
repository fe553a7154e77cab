//! `flowgraph push`, `pull`, `remote`, and `gc --remote`: the shared store of a group.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use clap::builder::StringValueParser;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::json;

use super::output::{Output, bytes, counted};
use super::{Failure, PipelineOptions, exit_code, gc, interrupts, user_file};
use crate::engine::artifact::Digest;
use crate::engine::plan::{Decision, PlanOptions, Planner};
use crate::engine::stage::Registry;
use crate::engine::store::{
    Found, Record, Remote, RemoteError, RemoteSettings, Sent, Store, in_parallel, made_by,
};

/// Which shared store.
#[derive(Debug, Args)]
pub(super) struct RemoteOptions {
    /// Shared store of a group: s3://bucket/path, gs://bucket/path, az://container/path, file:///path, or none (default:
    /// `remote:` of ~/.config/flowgraph/config.yaml)
    #[arg(long, value_name = "ADDRESS", env = VARIABLE, value_parser = StringValueParser::new())]
    remote: Option<String>,
}

impl RemoteOptions {
    /// Opens the shared store, if there is one.
    pub(super) fn open(&self) -> Result<Option<Remote>, Failure> {
        open(self.remote.as_deref().unwrap_or_default())
    }

    fn needed(&self) -> Result<Remote, Failure> {
        needed(self.remote.as_deref().unwrap_or_default())
    }
}

#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// Pipeline files whose results are sent, with each of their profiles (default: all results)
    pipelines: Vec<PathBuf>,
    #[command(flatten)]
    remote: RemoteOptions,
    /// Say what would be sent, and send nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub(super) struct PullArgs {
    #[command(flatten)]
    options: PipelineOptions,
    #[command(flatten)]
    remote: RemoteOptions,
    /// Bring results of this kind of processor alone
    #[arg(long, value_parser = ["reuse", "exact"], default_value = "reuse")]
    numerics: String,
}

#[derive(Debug, Args)]
pub(super) struct RemoteArgs {
    #[command(subcommand)]
    command: RemoteCommand,
}

#[derive(Debug, Subcommand)]
enum RemoteCommand {
    /// Say what is there, what is here alone, and whether the first writer wins there
    Status {
        #[command(flatten)]
        remote: RemoteOptions,
    },
}

/// What `gc --remote` is asked.
pub(super) struct Collection<'a> {
    pub(super) address: &'a str,
    pub(super) pipelines: &'a [PathBuf],
    pub(super) days: u32,
    pub(super) remove: bool,
}

/// The user's file.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct UserConfig {
    remote: Option<Configured>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Configured {
    Address(String),
    Remote(ConfiguredRemote),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfiguredRemote {
    address: String,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    options: BTreeMap<String, Scalar>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Text(String),
    Truth(bool),
    Number(i64),
}

impl From<Configured> for RemoteSettings {
    fn from(configured: Configured) -> Self {
        match configured {
            Configured::Address(address) => Self {
                address,
                ..Self::default()
            },
            Configured::Remote(remote) => Self {
                address: remote.address,
                read_only: remote.read_only,
                options: (remote.options.into_iter())
                    .map(|(name, value)| {
                        let value = match value {
                            Scalar::Text(text) => text,
                            Scalar::Truth(truth) => truth.to_string(),
                            Scalar::Number(number) => number.to_string(),
                        };
                        (name, value)
                    })
                    .collect(),
            },
        }
    }
}

/// Returns what the user's file says.
fn configured() -> Result<Option<RemoteSettings>, Failure> {
    let Some(file) = user_file("config.yaml").filter(|file| file.exists()) else {
        return Ok(None);
    };
    let text = fs_err::read_to_string(&file)?;
    if text.trim().is_empty() {
        return Ok(None);
    }
    let config: UserConfig = serde_yaml::from_str(&text).map_err(|error| {
        // The message of the parser may repeat a value, which may be a credential.
        let place = error.location();
        let place = place.map_or_else(String::new, |at| format!(":{}:{}", at.line(), at.column()));
        Failure::Other {
            message: format!("{}{place}: expected settings of flowgraph", file.display()),
            hint: Some(
                "remote: s3://bucket/path, or remote: { address: s3://bucket/path, read_only: true, options: { region: eu-west-1 } }"
                    .to_owned(),
            ),
            code: exit_code::USAGE,
        }
    })?;
    Ok(config.remote.map(RemoteSettings::from))
}

/// Returns the address of the shared store that a run would ask, without asking it.
pub(super) fn address_of_run() -> Option<String> {
    let given = std::env::var(VARIABLE).unwrap_or_default();
    match given.as_str() {
        NONE => None,
        "" => Some(configured().ok()??.address),
        _ => Some(given),
    }
}

/// The variable that names it.
const VARIABLE: &str = "FLOWGRAPH_REMOTE";
/// What is given so that nothing is shared.
const NONE: &str = "none";

/// Opens the shared store of an address, or of the variable or the user's file, if there is one.
fn open(given: &str) -> Result<Option<Remote>, Failure> {
    let of_environment = || std::env::var(VARIABLE).unwrap_or_default();
    let given = match given {
        "" => of_environment(),
        given => given.to_owned(),
    };
    if given == NONE {
        return Ok(None);
    }
    let configured = configured()?;
    let settings = match (given.as_str(), configured) {
        ("", None) => return Ok(None),
        ("", Some(configured)) => configured,
        // Its options are for that place.
        (given, Some(configured)) if configured.address == given => configured,
        (given, _) => RemoteSettings {
            address: given.to_owned(),
            ..RemoteSettings::default()
        },
    };
    let opened = Remote::open(&settings).map_err(|error| match Failure::from(error) {
        Failure::Other { message, hint, .. } => Failure::Other {
            message,
            hint,
            code: exit_code::USAGE,
        },
        failure @ Failure::Load(_) => failure,
    });
    opened.map(Some)
}

fn needed(given: &str) -> Result<Remote, Failure> {
    open(given)?.ok_or_else(|| Failure::Other {
        message: "no shared store is named".to_owned(),
        hint: Some(
            "`--remote s3://bucket/path` or `--remote file:///path`, FLOWGRAPH_REMOTE, or `remote:` in ~/.config/flowgraph/config.yaml"
                .to_owned(),
        ),
        code: exit_code::USAGE,
    })
}

/// Asks, and fails if there is no answer.
fn asked<T>(remote: &Remote, answer: Result<T, RemoteError>) -> Result<T, Failure> {
    answer.map_err(|error| {
        if interrupts::is_interrupted() {
            return Failure::Other {
                message: "interrupted".to_owned(),
                hint: Some("the same command goes on from there".to_owned()),
                code: exit_code::INTERRUPTED,
            };
        }
        Failure::Other {
            message: format!("shared store {}: {}", remote.address(), remote.said(&error)),
            hint: Some(
                "credentials come from the environment, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; \
                 AWS_ENDPOINT_URL names a server of one's own"
                    .to_owned(),
            )
            .filter(|_| !remote.address().starts_with("file:")),
            code: exit_code::STAGE_FAILED,
        }
    })
}

/// A bar of bytes for many transfers at once.
struct Bar {
    bar: ProgressBar,
    done: AtomicU64,
}

impl Bar {
    fn new(output: &Output, total: u64) -> Self {
        let shown = std::io::stderr().is_terminal() && !output.quiet && !output.json;
        let bar = if shown {
            ProgressBar::new(total)
        } else {
            ProgressBar::hidden()
        };
        let template = "[{bar:30}] {bytes} of {total_bytes}  {bytes_per_sec}  eta {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self {
            bar,
            done: AtomicU64::new(0),
        }
    }

    /// Hears of bytes that one transfer has done; `before` is what it had done the last time.
    fn tell(&self, before: &mut u64, now: u64) {
        let more = now.saturating_sub(std::mem::replace(before, now));
        let done = self.done.fetch_add(more, Ordering::Relaxed) + more;
        self.bar.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn size_of(record: &Record) -> u64 {
    let files = record.outputs.values().flat_map(|output| &output.files);
    files.map(|file| file.size).sum()
}

/// Sends what is not there.
pub(super) fn push(
    args: &PushArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    let remote = args.remote.needed()?;
    if remote.is_read_only() {
        return Err(Failure::usage(format!(
            "{} is `read_only` in ~/.config/flowgraph/config.yaml: nothing is sent there",
            remote.address()
        )));
    }
    interrupts::count_interrupts()?;
    let (mut records, damaged) = store.read_records();
    for error in &damaged {
        output.warning(&error.to_string(), "`flowgraph verify --repair` removes it");
    }
    if !args.pipelines.is_empty() {
        let options = PlanOptions {
            records_alone: true,
            ..PlanOptions::default()
        };
        let kept = gc::reached(&args.pipelines, registry, store, &options)?;
        records.retain(|record| kept.contains(&record.fingerprint));
    }
    let listed = asked(&remote, remote.list())?;
    let all = records.len();
    records.retain(|record| !listed.has(record));
    let total: u64 = records.iter().map(size_of).sum();
    if args.dry_run {
        for record in &records {
            let (stage, size) = (&record.provenance.stage, bytes(size_of(record)));
            output.line(&format!(
                "{size:>10}  {stage} of {}",
                record.provenance.pipeline
            ));
        }
        output.line(&format!(
            "would send {} of {}",
            counted(records.len(), "result"),
            counted(all, "result")
        ));
        return Ok(exit_code::OK);
    }
    let bar = Bar::new(output, total);
    let sent = in_parallel(&records, |record| {
        let mut before = 0;
        let tell = &mut |done, _| bar.tell(&mut before, done);
        remote.send(store, record, Some(&listed), tell)
    });
    drop(bar);
    let (mut done, mut others, mut failed) = (0, Vec::new(), Vec::new());
    for (record, sent) in records.iter().zip(sent) {
        let stage = &record.provenance.stage;
        match sent {
            Ok(Sent::First | Sent::Same) => done += 1,
            Ok(Sent::Other(made)) => others.push(format!(
                "`{stage}` has other bytes there, {}, which stay: it is not reproducible",
                made_by(&made)
            )),
            Err(error @ RemoteError::Damaged(_)) => {
                failed.push(format!("`{stage}`: {}", remote.said(&error)));
            }
            // The others failed for the same reason.
            Err(error) => return asked(&remote, Err(error)),
        }
    }
    if remote.is_last_winning() {
        output.warning(
            &format!(
                "{} overwrites what is there though it is asked not to",
                remote.address()
            ),
            "of two results that are sent at once the last one stays",
        );
    }
    if output.json {
        output.json(&json!({
            "remote": remote.address(), "sent": done, "were_there": all - records.len(), "others": others,
            "failed": failed,
        }));
    } else {
        others.iter().for_each(|other| output.warning(other, ""));
        (failed.iter()).for_each(|failed| {
            output.error(
                failed,
                Some("`flowgraph verify --repair` drops it, and `run` makes it again"),
            );
        });
        output.line(&format!(
            "sent {} ({}) to {}; {} there",
            counted(done, "result"),
            bytes(total),
            remote.address(),
            match all - records.len() {
                1 => "1 was".to_owned(),
                count => format!("{count} were"),
            }
        ));
    }
    Ok(if failed.is_empty() {
        exit_code::OK
    } else {
        exit_code::STORE_DAMAGED
    })
}

/// Brings what is there: whatever can be asked for at a time at once, until that finds nothing more.
pub(super) fn pull(
    args: &PullArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    let pipeline = args.options.load(registry)?;
    let remote = args.remote.needed()?;
    interrupts::count_interrupts()?;
    let options = PlanOptions {
        exact_numerics: args.numerics == "exact",
        ..PlanOptions::default()
    };
    let mut tried: BTreeSet<Digest> = BTreeSet::new();
    let (mut fetched, mut damaged) = (0, Vec::new());
    let open = loop {
        let planner = Planner::new(&pipeline, store, options.clone());
        let plans = planner.plan()?;
        let wanted: Vec<_> = (plans.iter().enumerate())
            .filter(|(_, plan)| plan.decision == Decision::Run)
            .filter_map(|(stage, plan)| Some((plan.fingerprint?, planner.wanted(stage))))
            .filter(|(fingerprint, _)| tried.insert(*fingerprint))
            .collect();
        if wanted.is_empty() {
            let is_open = |decision: &Decision| *decision != Decision::Cached;
            break plans
                .iter()
                .map(|plan| plan.decision)
                .filter(is_open)
                .count();
        }
        let bar = Bar::new(output, 0);
        let found = in_parallel(&wanted, |(fingerprint, wanted)| {
            let mut before = None;
            remote.fetch(store, fingerprint, wanted, &mut |done, total| {
                let before = before.get_or_insert_with(|| {
                    bar.bar.inc_length(total);
                    0
                });
                bar.tell(before, done);
            })
        });
        drop(bar);
        for found in found {
            match found {
                Ok(Found::Nothing) => {}
                Ok(Found::Result(_)) => fetched += 1,
                Err(error @ RemoteError::Damaged(_)) => damaged.push(remote.said(&error)),
                Err(error) => return asked(&remote, Err(error)),
            }
        }
    };
    let stages = pipeline.stages.len();
    if output.json {
        output.json(&json!({
            "remote": remote.address(), "fetched": fetched, "stages": stages, "cached": stages - open,
            "damaged": damaged,
        }));
    } else {
        for damage in &damaged {
            output.error(damage, Some("a `run` makes it again, and heals it there"));
        }
        output.line(&format!(
            "brought {} from {}; {} of {} have theirs here{}",
            counted(fetched, "result"),
            remote.address(),
            stages - open,
            counted(stages, "stage"),
            if open > 0 {
                ", `flowgraph plan` says what would run"
            } else {
                ""
            }
        ));
    }
    Ok(if damaged.is_empty() {
        exit_code::OK
    } else {
        exit_code::STORE_DAMAGED
    })
}

pub(super) fn run(args: &RemoteArgs, store: &Store, output: &Output) -> Result<u8, Failure> {
    match &args.command {
        RemoteCommand::Status { remote } => status(&remote.needed()?, store, output),
    }
}

fn status(remote: &Remote, store: &Store, output: &Output) -> Result<u8, Failure> {
    let listed = asked(remote, remote.list())?;
    let first_wins = (!remote.is_read_only()).then(|| {
        let first_wins = remote.first_wins(store, true);
        first_wins.map_err(|error| remote.said(&error.into()))
    });
    let (records, _) = store.read_records();
    let here = records.iter().filter(|record| !listed.has(record)).count();
    let own: BTreeSet<Digest> = records.iter().map(|record| record.fingerprint).collect();
    let there = listed.fingerprints().difference(&own).count();
    let writes = match &first_wins {
        None => "read only".to_owned(),
        Some(Ok(true)) => "the first writer of a result wins".to_owned(),
        Some(Ok(false)) => {
            "it overwrites what is there though it is asked not to: the last writer of a result wins".to_owned()
        }
        Some(Err(why)) => format!("nothing can be written: {why}"),
    };
    if output.json {
        output.json(&json!({
            "remote": remote.address(), "results": listed.records.len(), "objects": listed.objects.len(),
            "bytes": listed.bytes(), "writes": writes, "first_writer_wins": first_wins.and_then(Result::ok),
            "only_here": here, "only_there": there,
        }));
        return Ok(exit_code::OK);
    }
    output.data(&format!(
        "{}: {}, {} ({})\n{writes}\n{} of {} here are not there{}\n{} there are not here",
        remote.address(),
        counted(listed.records.len(), "result"),
        counted(listed.objects.len(), "object"),
        bytes(listed.bytes()),
        here,
        counted(records.len(), "result"),
        if here > 0 {
            ": `flowgraph push` sends them"
        } else {
            ""
        },
        counted(there, "result"),
    ));
    Ok(exit_code::OK)
}

/// Says what nobody needs there, and takes it away if asked to.
pub(super) fn collect(
    asked_for: &Collection,
    registry: &Registry,
    output: &Output,
) -> Result<u8, Failure> {
    let remote = needed(asked_for.address)?;
    if remote.is_read_only() && asked_for.remove {
        return Err(Failure::usage(format!(
            "{} is `read_only` in ~/.config/flowgraph/config.yaml",
            remote.address()
        )));
    }
    if asked_for.pipelines.is_empty() {
        // Without this a slip would empty a group's store.
        return Err(Failure::Other {
            message: "nothing says what to keep".to_owned(),
            hint: Some("name the pipelines whose results stay".to_owned()),
            code: exit_code::USAGE,
        });
    }
    let listed = asked(&remote, remote.list())?;
    let read = asked(&remote, remote.read_all(&listed))?;
    // What the pipelines reach is found as if all that is there were here.
    let folder = tempfile::tempdir()?;
    let mirror = Store::new(folder.path());
    for record in read.iter().filter_map(|(_, record)| record.as_ref().ok()) {
        mirror.write_record(record)?;
    }
    let options = PlanOptions {
        records_alone: true,
        ..PlanOptions::default()
    };
    let kept = gc::reached(asked_for.pipelines, registry, &mirror, &options)?;
    let age = Duration::from_secs(u64::from(asked_for.days) * 24 * 60 * 60);
    let before = SystemTime::now().checked_sub(age);
    let before = before.unwrap_or(SystemTime::UNIX_EPOCH);
    let garbage = Remote::garbage(&listed, read, &kept, before);
    let spared = if asked_for.remove {
        asked(&remote, remote.collect(&garbage))?
    } else {
        0
    };
    if output.json {
        let results: Vec<_> = (garbage.results.iter())
            .map(|record| {
                json!({
                    "stage": record.provenance.stage, "pipeline": record.provenance.pipeline,
                    "fingerprint": record.fingerprint, "started": record.provenance.started,
                    "user": record.provenance.user, "host": record.provenance.host,
                })
            })
            .collect();
        output.json(&json!({
            "remote": remote.address(), "removed": asked_for.remove, "results": results, "damaged": garbage.damaged,
            "objects": garbage.objects.len(), "leftovers": garbage.leftovers(), "bytes": garbage.bytes,
            "spared": spared,
        }));
        return Ok(exit_code::OK);
    }
    if !output.quiet {
        for record in &garbage.results {
            let made = &record.provenance;
            output.line(&format!(
                "{} of {}, {}: in no pipeline given, and sent more than {} ago",
                made.stage,
                made.pipeline,
                made_by(made),
                counted(asked_for.days as usize, "day")
            ));
        }
        (garbage.damaged.iter()).for_each(|damage| output.line(damage));
    }
    output.line(&format!(
        "{}: {}, {}, {}, {}; {}",
        if asked_for.remove {
            "removed"
        } else {
            "would remove"
        },
        counted(garbage.results.len(), "result"),
        counted(garbage.damaged.len(), "damaged record"),
        counted(garbage.objects.len() - spared, "object"),
        counted(garbage.leftovers(), "leftover of an upload"),
        bytes(garbage.bytes),
    ));
    if !asked_for.remove && garbage.bytes > 0 {
        output
            .line("`--remove` takes it away; nobody else should be sending old results meanwhile");
    }
    Ok(exit_code::OK)
}
