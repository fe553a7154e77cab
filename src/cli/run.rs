//! `flowgraph run`: execute what is not cached, then print the tables.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use clap::Args;
use clap::builder::StringValueParser;
use globset::Glob;
use owo_colors::Style;
use serde_json::{Value as Json, json};

use super::cluster::{self, Executor};
pub(super) use super::interrupts::count_interrupts;
use super::interrupts::count_interrupts_of_cluster;
use super::output::{Output, counted};
use super::remote::RemoteOptions;
use super::text::Text;
use super::tracking::{Track, Tracked, Tracker};
use super::{
    Failure, PipelineOptions, costs, diagnostics, exit_code, interrupts, progress, show,
    stages_named,
};
use crate::artifacts::table::TABLE;
use crate::engine::event::Outcome;
use crate::engine::executor::{self, Capacity, RunOptions, RunReport};
use crate::engine::launch::{Launcher, Local, Slurm, slurm};
use crate::engine::machine::{DeviceChoice, Machine, visible_gpus};
use crate::engine::plan::PlanOptions;
use crate::engine::spec::Pipeline;
use crate::engine::stage::{Registry, StageError};
use crate::engine::store::Store;
use crate::excerpt::excerpt;
use crate::files::last_bytes;

/// The kind whose tables are printed first.
pub(super) const CLAIMS: &str = "claims";

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    options: PipelineOptions,
    /// Run only stages whose name matches, and what they need
    #[arg(long, value_name = "GLOB")]
    only: Vec<String>,
    /// Run this stage and everything after it again, whatever the store holds
    #[arg(long, value_name = "STAGE")]
    from: Vec<String>,
    /// Run this stage again, whatever the store holds; if that is interrupted, the same command goes on from there
    #[arg(long, value_name = "STAGE")]
    rerun: Vec<String>,
    /// What runs the stages: this machine, or the Slurm cluster that `sbatch` submits to, which has to see the store's folder
    #[arg(long, value_enum, default_value = "local", env = "FLOWGRAPH_EXECUTOR")]
    executor: Executor,
    /// Run stages as steps of the allocation that this command is given in, as `salloc -N3 flowgraph run ...` does, instead
    /// of as jobs
    #[arg(long)]
    allocation: bool,
    /// Let a job of the cluster submit the others, and return at once; `status`, `logs`, `attach` and `cancel` are for it
    #[arg(long)]
    detach: bool,
    /// Stages at once (default: one for each core); however many, their threads take no more cores than there are. Of a
    /// cluster: jobs in its queue (default: 100)
    #[arg(long, short, value_name = "N")]
    jobs: Option<usize>,
    /// Where to compute: auto (on the GPUs that stages ask for, where there are any), cpu, or cuda or cuda:N (all that a GPU
    /// can compute there, or not at all)
    #[arg(long, default_value = "auto")]
    device: String,
    /// How many there are of a token that stages ask for (default: 1)
    #[arg(long, value_name = "NAME=N")]
    tokens: Vec<String>,
    /// Stop at the first failure
    #[arg(long)]
    fail_fast: bool,
    /// Look again at sources that no sha256 pins
    #[arg(long)]
    refresh: bool,
    /// Hash every object and source instead of trusting file times, which do not tell of bytes that a disk lost, nor of
    /// what another user's program writes through a memory map
    #[arg(long)]
    paranoid: bool,
    #[command(flatten)]
    remote: RemoteOptions,
    /// Treat results of another kind of processor as missing; what is computed in their place stands beside them
    #[arg(long, value_parser = ["reuse", "exact"], default_value = "reuse")]
    numerics: String,
    /// Write curves, step by step, and tables for another program, such as `tensorboard --logdir DIR`
    #[arg(long, value_name = "tensorboard:DIR", env = "FLOWGRAPH_TRACK", value_parser = StringValueParser::new())]
    track: Option<String>,
}

pub(super) fn run(
    args: &RunArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    let pipeline = args.options.load(registry)?;
    if !output.quiet && !output.json {
        diagnostics::report(&pipeline.document, &pipeline.warnings, output);
    }
    let wanted = wanted(args, &pipeline)?;
    let remote = args.remote.open()?;
    if args.detach {
        return detach(args, &pipeline, store, output);
    }
    let capacity = match args.executor {
        Executor::Local => capacity(args.jobs, &args.device)?,
        Executor::Slurm => cluster_capacity(&args.device)?,
    };
    let capacity = Capacity {
        tokens: tokens(&args.tokens)?,
        ..capacity
    };
    let machine = match args.executor {
        Executor::Local => Machine::new(capacity.device, capacity.gpus.clone()),
        Executor::Slurm => Machine::cluster(capacity.device),
    };
    let options = RunOptions {
        plan: PlanOptions {
            paranoid: args.paranoid,
            records_alone: false,
            rerun: forced(args, &pipeline)?,
            exact_numerics: args.numerics == "exact",
            refresh: args.refresh,
            machine: Arc::new(machine),
        },
        wanted: wanted.clone(),
        capacity,
        fail_fast: args.fail_fast,
        interrupts: match args.executor {
            Executor::Local => count_interrupts()?,
            Executor::Slurm => count_interrupts_of_cluster()?,
        },
        launcher: launcher(args, &pipeline, store)?,
        remote: remote.map(Arc::new),
    };
    // An empty variable asks for nothing.
    let track = args.track.as_ref().filter(|track| !track.is_empty());
    let track = track.map(|track| track.parse::<Track>());
    let track = track.transpose().map_err(Failure::usage)?;
    let tracker = track.as_ref().map(Tracker::new).transpose()?;
    let tracker = tracker.map(RefCell::new).map(Rc::new);
    let shown = progress::observer(output, &pipeline);
    let mut observer = match &tracker {
        Some(tracker) => Box::new(Tracked {
            shown,
            tracker: Rc::clone(tracker),
        }),
        None => shown,
    };
    let address = options.remote.as_ref();
    let address = address.map(|remote| remote.address().to_owned());
    let report = executor::run(&pipeline, store, options, observer.as_mut())?;
    drop(observer);
    interrupts::all_is_stored();
    if let Some(tracker) = tracker {
        tracker
            .borrow_mut()
            .finish(&pipeline, store, &report, output);
    }
    if output.json {
        output.json(&json!({ "event": "report", "run": report.run, "stages": stages_json(&pipeline, &report) }));
    } else {
        let asked = (!args.only.is_empty()).then_some(wanted.as_slice());
        print_tables(&pipeline, store, &report, asked, output)?;
        summarise_failures(&report, output);
    }
    if let (Some(address), 1..) = (address, report.unsent) {
        let message = format!(
            "{} of this run did not go to {address}",
            counted(report.unsent, "result")
        );
        output.warning(&message, "`flowgraph push` sends what is missing there");
    }
    if let Some(StageError::Failed { message, .. }) = &report.unrecorded {
        output.warning(
            &format!("this run is not recorded: {message}"),
            "all results were there; `gc` does not know that they were used",
        );
    }
    Ok(if report.interrupted {
        exit_code::INTERRUPTED
    } else if report.failures.is_empty() {
        exit_code::OK
    } else {
        exit_code::STAGE_FAILED
    })
}

/// Submits the same command as a job.
fn detach(
    args: &RunArgs,
    pipeline: &Pipeline,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    if args.executor != Executor::Slurm {
        return Err(Failure::usage(
            "`--detach` needs `--executor slurm`; of this machine, `nohup flowgraph run ... &` does it",
        ));
    }
    let words = std::env::args_os().skip(1);
    let words = words.map(|word| word.to_string_lossy().into_owned());
    let words: Vec<String> = words.filter(|word| word != "--detach").collect();
    let (job, printed) = slurm::detach(&cluster::settings(pipeline)?, store, &words)?;
    if output.json {
        output.json(&json!({ "event": "detached", "job": job, "output": printed }));
    } else {
        output.line(&format!(
            "job {job} runs it; `flowgraph status` says how it is, `attach` follows, `cancel` stops it, and {} has what it prints",
            printed.display()
        ));
    }
    Ok(exit_code::OK)
}

/// Returns what starts the workers.
fn launcher(
    args: &RunArgs,
    pipeline: &Pipeline,
    store: &Store,
) -> Result<Box<dyn Launcher>, Failure> {
    Ok(match args.executor {
        Executor::Local if args.allocation => {
            return Err(Failure::usage("`--allocation` needs `--executor slurm`"));
        }
        Executor::Local => Box::new(Local::new()?),
        Executor::Slurm => {
            let settings = cluster::settings(pipeline)?;
            if args.jobs == Some(0) {
                return Err(Failure::usage("`--jobs` must be at least 1"));
            }
            let cores = slurm::cores_of_allocation().filter(|_| args.allocation);
            match cores {
                None if args.allocation => {
                    return Err(Failure::usage(
                        "`--allocation`: there is none here; `salloc -N3 flowgraph run ...` makes one, or `sbatch` does",
                    ));
                }
                None => {
                    let jobs = args.jobs.unwrap_or(cluster::JOBS);
                    Box::new(Slurm::new(settings, jobs, store)?)
                }
                Some(cores) => {
                    let jobs = args.jobs.unwrap_or(cores);
                    Box::new(Slurm::in_allocation(settings, jobs, store)?)
                }
            }
        }
    })
}

fn wanted(args: &RunArgs, pipeline: &Pipeline) -> Result<Vec<bool>, Failure> {
    if args.only.is_empty() {
        return Ok(vec![true; pipeline.stages.len()]);
    }
    let mut wanted = vec![false; pipeline.stages.len()];
    for pattern in &args.only {
        // Brackets are part of instance names, not character classes.
        let escaped = pattern.replace('[', "\\[").replace(']', "\\]");
        let glob = Glob::new(&escaped)
            .map_err(|error| Failure::usage(format!("`--only {pattern}`: {error}")))?
            .compile_matcher();
        let mut any = false;
        for (stage, wanted) in pipeline.stages.iter().zip(&mut wanted) {
            if glob.is_match(&stage.name) || glob.is_match(&stage.template) {
                (*wanted, any) = (true, true);
            }
        }
        if !any && let Ok(named) = stages_named(pipeline, pattern) {
            any = true;
            named.into_iter().for_each(|stage| wanted[stage] = true);
        }
        if !any {
            return Err(Failure::usage(format!(
                "`--only {pattern}` matches no stage"
            )));
        }
    }
    Ok(wanted)
}

fn forced(args: &RunArgs, pipeline: &Pipeline) -> Result<Vec<bool>, Failure> {
    let mut forced = vec![false; pipeline.stages.len()];
    for name in &args.rerun {
        stages_named(pipeline, name)?
            .into_iter()
            .for_each(|stage| forced[stage] = true);
    }
    for name in &args.from {
        let after = pipeline.graph.downstream(stages_named(pipeline, name)?);
        forced
            .iter_mut()
            .zip(after)
            .for_each(|(forced, after)| *forced |= after);
    }
    Ok(forced)
}

/// Returns what this machine gives to a run.
pub(super) fn capacity(jobs: Option<usize>, device: &str) -> Result<Capacity, Failure> {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let jobs = jobs.unwrap_or(cpus);
    if jobs == 0 {
        return Err(Failure::usage("`--jobs` must be at least 1"));
    }
    let (device, gpus) = self::device(device)?;
    Ok(Capacity {
        jobs,
        cpus,
        memory: machine_memory(),
        device,
        gpus,
        tokens: BTreeMap::new(),
    })
}

/// Returns what a cluster gives to a run: its queue decides, and knows its own GPUs.
fn cluster_capacity(device: &str) -> Result<Capacity, Failure> {
    let device = match device {
        "cpu" => DeviceChoice::Cpu,
        "auto" => DeviceChoice::Auto,
        "cuda" => DeviceChoice::Cuda,
        other => {
            return Err(Failure::usage(format!(
                "`--device {other}`: with `--executor slurm` it is auto, cpu or cuda"
            )));
        }
    };
    Ok(Capacity {
        jobs: usize::MAX,
        cpus: usize::MAX,
        memory: u64::MAX,
        device,
        gpus: Vec::new(),
        tokens: BTreeMap::new(),
    })
}

fn tokens(given: &[String]) -> Result<BTreeMap<String, usize>, Failure> {
    let mut tokens = BTreeMap::new();
    for text in given {
        let parsed = text
            .split_once('=')
            .and_then(|(name, count)| Some((name, count.parse().ok()?)));
        let (name, count) = parsed.ok_or_else(|| {
            Failure::usage(format!(
                "`--tokens {text}`: expected NAME=N, such as `license=2`"
            ))
        })?;
        tokens.insert(name.to_owned(), count);
    }
    Ok(tokens)
}

/// Returns the bytes of memory that this machine, or the container that it runs in, has; 0 if that is unknown.
fn machine_memory() -> u64 {
    let total = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("MemTotal:"))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        })
        .map(|kilobytes| kilobytes * 1024);
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok());
    total.into_iter().chain(limit).min().unwrap_or(0)
}

/// Returns where to compute, and the ids of the GPUs that may be used.
fn device(asked: &str) -> Result<(DeviceChoice, Vec<String>), Failure> {
    match (asked, asked.strip_prefix("cuda:")) {
        ("cpu", _) => Ok((DeviceChoice::Cpu, Vec::new())),
        ("auto", _) => Ok((DeviceChoice::Auto, visible_gpus())),
        ("cuda", wanted) | (_, wanted @ Some(_)) if wanted != Some("") => {
            let mut gpus = visible_gpus();
            if gpus.is_empty() {
                return Err(Failure::usage(format!(
                    "`--device {asked}`: no GPU is visible"
                )));
            }
            if let Some(wanted) = wanted {
                if !gpus.iter().any(|id| id == wanted) {
                    return Err(Failure::usage(format!(
                        "`--device {asked}`: GPU {wanted} is not visible; visible: {}",
                        gpus.join(", ")
                    )));
                }
                gpus = vec![wanted.to_owned()];
            }
            Ok((DeviceChoice::Cuda, gpus))
        }
        _ => Err(Failure::usage(format!(
            "`--device {asked}`: expected auto, cpu, cuda or cuda:N"
        ))),
    }
}

fn stages_json(pipeline: &Pipeline, report: &RunReport) -> Vec<Json> {
    pipeline
        .stages
        .iter()
        .enumerate()
        .filter_map(|(at, stage)| {
            let outcome = report.outcomes[at]?;
            let outputs: serde_json::Map<String, Json> = report.known[at]
                .iter()
                .flatten()
                .map(|(name, artifact)| {
                    (
                        name.clone(),
                        json!({ "kind": artifact.kind, "digest": artifact.digest }),
                    )
                })
                .collect();
            Some(json!({ "name": stage.name, "outcome": outcome, "outputs": outputs }))
        })
        .collect()
}

/// Prints the tables that people want first, in file order, and names the others.
fn print_tables(
    pipeline: &Pipeline,
    store: &Store,
    report: &RunReport,
    asked: Option<&[bool]>,
    output: &Output,
) -> Result<(), Failure> {
    let has_claims = pipeline
        .stages
        .iter()
        .any(|stage| stage.kind.name == CLAIMS);
    let is_first = |at: usize| match asked {
        Some(asked) => asked[at],
        None if !pipeline.show.is_empty() => pipeline.show.contains(&pipeline.stages[at].template),
        None => !has_claims || pipeline.stages[at].kind.name == CLAIMS,
    };
    let mut others: Vec<&str> = Vec::new();
    for (at, stage) in pipeline.stages.iter().enumerate() {
        if !matches!(report.outcomes[at], Some(Outcome::Cached | Outcome::Done)) {
            continue;
        }
        // The default output; `show` prints the others.
        let default = stage.stage.outputs().into_iter().next();
        let outputs = report.known[at].as_ref();
        let artifact = default.and_then(|output| outputs?.get(&output.name));
        if let Some(artifact) = artifact.filter(|artifact| artifact.kind == TABLE) {
            if !is_first(at) {
                if !others.contains(&stage.template.as_str()) {
                    others.push(&stage.template);
                }
                continue;
            }
            let table = output.drawn(&show::read_table(store, artifact)?);
            let mut text = Text::default().and("\n");
            text.push_styled(&stage.name, Style::new().bold());
            output.text(&text.and(&format!("\n{table}")));
            let costs = costs::table(pipeline, store, at, |stage| report.fingerprints[stage]);
            if let Some(costs) = costs {
                output.data(&format!("\n{}", output.drawn(&costs)));
            }
        }
    }
    if !others.is_empty() && asked.is_none() {
        output.line(&format!(
            "further tables, for `flowgraph show {} STAGE`: {}",
            pipeline.document.file.display(),
            others.join(", ")
        ));
    }
    Ok(())
}

fn summarise_failures(report: &RunReport, output: &Output) {
    if report.failures.is_empty() {
        if report.interrupted && report.unfinished {
            output.line("interrupted; the same command continues where this run stopped");
        }
        return;
    }
    output.line("");
    for failure in &report.failures {
        output.error(
            &format!("stage `{}` failed: {}", failure.stage, failure.message),
            failure.hint.as_deref(),
        );
        let lines = last_lines(&failure.log, 10);
        if !lines.is_empty() {
            output.line(&format!("  the end of {}:", failure.log.display()));
            lines
                .iter()
                .for_each(|line| output.line(&format!("  | {line}")));
        }
    }
    output.line(&format!(
        "{} failed; mend the cause and give the same command again: what is done stays done",
        counted(report.failures.len(), "stage")
    ));
}

/// Returns the last lines of a log; of a line that a program wrote again and again, what stood there last.
fn last_lines(path: &Path, count: usize) -> Vec<String> {
    let (bytes, _) = last_bytes(path, END_OF_LOG).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<String> = text
        .rsplit('\n')
        .filter_map(|line| line.rsplit('\r').find(|line| !line.trim().is_empty()))
        .take(count)
        .map(|line| excerpt(line, LONGEST_LOG_LINE).into_owned())
        .collect();
    lines.reverse();
    lines
}

/// Bytes of a log that its last lines are looked for in: it can be larger than the memory.
const END_OF_LOG: u64 = 64 * 1024;
/// Bytes of a line of a log that are shown.
const LONGEST_LOG_LINE: usize = 1000;
