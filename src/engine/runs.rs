//! Runs: what was asked, what happened, and which result each stage had. Each has a folder that is written once.
//!
//! ```text
//! runs/<id>/
//!   run.json         what was asked
//!   pipeline.yaml    the file as it was
//!   events.jsonl     what happened
//!   needs            fingerprints of stored results that it used, once something ran
//!   stages.jsonl     how each stage ended and its fingerprint; written last, so a killed run has none
//!   logs/            what stages wrote to standard output and error
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::TryLockError;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};

use super::artifact::Digest;
use super::event::{Outcome, RunEvent};
use super::launch::slurm::DETACHED;
use super::machine::host_name;
use super::spec::Pipeline;
use super::stage::StageError;
use super::store::{Lease, Lock, Store, publish};

/// The log of what happened.
const EVENTS: &str = "events.jsonl";
/// How the stages ended.
const STAGES: &str = "stages.jsonl";

/// What was asked of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunDescription {
    /// The run's id, which sorts by time.
    pub run: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Its file.
    pub file: PathBuf,
    /// The profiles that were applied.
    pub profiles: Vec<String>,
    /// The settings that were given.
    pub set: Vec<String>,
    /// The pipeline's params, profiles and settings applied.
    pub params: Json,
    /// Version of flowgraph.
    pub flowgraph: String,
    /// The machine's name.
    pub host: String,
    /// When it started, as RFC 3339 in UTC.
    pub started: String,
    /// How it was begun.
    #[serde(default)]
    pub began: Began,
}

/// How a run was begun, so that it can be gone on with, or stopped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Began {
    /// What was given on the command line.
    pub arguments: Vec<String>,
    /// What else it was told, by variables.
    #[serde(default)]
    pub variables: BTreeMap<String, String>,
    /// In which folder.
    pub folder: PathBuf,
    /// Id of its process on its machine.
    pub process_id: u32,
    /// The number of the Slurm job that it is, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
}

impl Began {
    fn now() -> Self {
        const VARIABLES: [&str; 4] = [
            "FLOWGRAPH_EXECUTOR",
            "FLOWGRAPH_REMOTE",
            "FLOWGRAPH_STORE",
            "FLOWGRAPH_TRACK",
        ];
        let arguments = std::env::args_os().skip(1);
        let variables = VARIABLES.into_iter().filter_map(|name| {
            let value = std::env::var(name).ok()?;
            Some((name.to_owned(), value))
        });
        let is_job = std::env::var_os(DETACHED).is_some();
        Self {
            arguments: arguments
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect(),
            variables: variables.collect(),
            folder: std::env::current_dir().unwrap_or_default(),
            process_id: std::process::id(),
            job: std::env::var("SLURM_JOB_ID").ok().filter(|_| is_job),
        }
    }
}

/// How a stage of a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunStage {
    /// The stage.
    pub stage: String,
    /// Its kind.
    pub kind: String,
    /// How it ended; `None` if the run did not come to it.
    pub outcome: Option<Outcome>,
    /// The fingerprint of its result, if it has one.
    pub fingerprint: Option<Digest>,
    /// The numerics class of its result, if that is not the first of its fingerprint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<String>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct RunEnd {
    /// Wall-clock seconds.
    pub seconds: f64,
    /// How many stages ended in which way.
    pub outcomes: Json,
}

/// The folder of a run that is under way.
#[derive(Debug)]
pub(super) struct RunFolder {
    pub(super) id: String,
    pub(super) path: PathBuf,
    /// The log, or why the run is not recorded. One for which nothing has to run needs nothing written.
    events: Result<BufWriter<fs_err::File>, StageError>,
    /// Results that were used, and of which no file tells yet.
    used: Vec<Digest>,
    /// Whether a stage was started. A run in which none is tells in the end what it used.
    is_at_work: bool,
    /// Nothing is collected while the run is under way.
    _in_use: Option<Lock>,
    _lease: Option<Lease>,
}

impl RunFolder {
    /// Makes the folder of a new run, which holds the store as long as it is under way.
    pub(super) fn create(
        store: &Store,
        pipeline: &Pipeline,
        in_use: Lock,
    ) -> Result<Self, StageError> {
        let (id, path) = new_folder(store)?;
        let description = RunDescription {
            run: id.clone(),
            pipeline: pipeline.name.clone(),
            file: pipeline.document.file.clone(),
            profiles: pipeline.overrides.profiles.clone(),
            set: pipeline.overrides.set.clone(),
            params: pipeline.params.clone(),
            flowgraph: env!("CARGO_PKG_VERSION").to_owned(),
            host: host_name(),
            started: jiff::Timestamp::now().to_string(),
            began: Began::now(),
        };
        let begin = || -> Result<_, StageError> {
            fs_err::write(path.join("pipeline.yaml"), &pipeline.document.text)?;
            let events = fs_err::File::create(path.join(EVENTS))?;
            hold(events.file());
            let lease = store.lease_of_run(&path);
            // From here on others know of the run.
            fs_err::write(path.join("run.json"), serde_json::to_string(&description)?)?;
            Ok((events, lease))
        };
        let (events, lease) = begin().inspect_err(|_| {
            // A run that never began is no run.
            let _ = fs_err::remove_dir_all(&path);
        })?;
        Ok(Self {
            id,
            path,
            events: Ok(BufWriter::new(events)),
            used: Vec::new(),
            is_at_work: false,
            _in_use: Some(in_use),
            _lease: lease,
        })
    }

    /// Stands for the folder of a run that cannot be recorded, and says why.
    pub(super) fn unrecorded(store: &Store, why: StageError) -> Self {
        Self {
            id: "unrecorded".to_owned(),
            path: store.runs_path().join("unrecorded"),
            events: Err(why),
            used: Vec::new(),
            is_at_work: false,
            _in_use: None,
            _lease: None,
        }
    }

    /// Why the run is not recorded, if it is not.
    pub(super) fn refusal(&self) -> Option<&StageError> {
        self.events.as_ref().err()
    }

    /// Notes that a stored result is used: should the run be killed, a collection still keeps it.
    pub(super) fn uses(&mut self, fingerprint: Option<Digest>) {
        self.used.extend(fingerprint);
        if self.is_at_work {
            self.begin_work();
        }
    }

    /// Writes down what was used so far. Called before a stage starts.
    pub(super) fn begin_work(&mut self) {
        self.is_at_work = true;
        if self.used.is_empty() {
            return;
        }
        let lines: String = (self.used.drain(..))
            .map(|fingerprint| format!("{fingerprint}\n"))
            .collect();
        let mut options = std::fs::OpenOptions::new();
        let file = options
            .append(true)
            .create(true)
            .open(self.path.join("needs"));
        let _ = file.and_then(|mut file| file.write_all(lines.as_bytes()));
    }

    /// Appends an event to the log. A full disk must not end the run for its sake.
    pub(super) fn log(&mut self, event: &RunEvent) {
        // A thousand cached stages are no news; `stages.jsonl` has them.
        if matches!(event, RunEvent::StageCached { .. }) {
            return;
        }
        if let (Ok(events), Ok(mut value)) = (&mut self.events, serde_json::to_value(event)) {
            value["time"] = json!(jiff::Timestamp::now().to_string());
            let _ = writeln!(events, "{value}");
            let _ = events.flush();
        }
    }

    /// Writes how the stages ended.
    pub(super) fn finish(&self, stages: impl Iterator<Item = RunStage>) {
        if self.events.is_err() {
            return;
        }
        let mut text = String::new();
        for stage in stages {
            if let Ok(line) = serde_json::to_string(&stage) {
                text.push_str(&line);
                text.push('\n');
            }
        }
        let _ = publish(&self.path.join(STAGES), text.as_bytes());
    }
}

/// Locks the log of a run until the process ends, however it ends: others see by it that the run goes on. Where there are
/// no locks they cannot.
fn hold(events: &std::fs::File) {
    /// Others look for a moment.
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        match events.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(1)),
            _ => return,
        }
    }
}

/// Reads a file that need not be there.
fn read_if_there(path: &Path) -> std::io::Result<Option<String>> {
    match fs_err::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        text => text.map(Some),
    }
}

fn stages_in(text: &str) -> Option<Vec<RunStage>> {
    let lines = text.lines();
    lines.map(|line| serde_json::from_str(line).ok()).collect()
}

fn started_in(text: &str) -> BTreeMap<Digest, String> {
    let started = text.lines().filter(|line| line.contains("stage_started"));
    started
        .filter_map(|line| {
            let event: Json = serde_json::from_str(line).ok()?;
            let fingerprint = event["fingerprint"].as_str()?.parse().ok()?;
            Some((fingerprint, event["stage"].as_str()?.to_owned()))
        })
        .collect()
}

fn new_folder(store: &Store) -> Result<(String, PathBuf), StageError> {
    let time = jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S").to_string();
    fs_err::create_dir_all(store.runs_path())?;
    for suffix in 0.. {
        let run = if suffix == 0 {
            time.clone()
        } else {
            format!("{time}-{suffix}")
        };
        let folder = store.runs_path().join(&run);
        match std::fs::create_dir(&folder) {
            Ok(()) => return Ok((run, folder)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                return Err(StageError::new(format!(
                    "cannot create run folder {}: {error}",
                    folder.display()
                ))
                .hint("give a writable store with `--store DIR`"));
            }
        }
    }
    unreachable!("there is a free suffix")
}

/// Returns where the run of a folder writes what a stage says.
pub(super) fn log_path(folder: &Path, stage: &str) -> PathBuf {
    folder
        .join("logs")
        .join(format!("{}.log", file_name(stage)))
}

/// Makes a file name of a stage's name, whose axis values may hold anything; a changed name gets a digest, so
/// that no two stages share a file.
fn file_name(stage: &str) -> String {
    const LONGEST: usize = 150;
    let safe: String = stage
        .chars()
        .map(|c| match c {
            '/' | '\\' | ':' => '_',
            c if c.is_control() => '_',
            c => c,
        })
        .collect();
    if safe == stage && safe.len() <= LONGEST {
        return safe;
    }
    let mut end = safe.len().min(LONGEST);
    while !safe.is_char_boundary(end) {
        end -= 1;
    }
    let digest = Digest::of(stage.as_bytes());
    format!("{}-{}", &safe[..end], digest.short())
}

fn is_under_way(folder: &Path) -> Option<bool> {
    let events = std::fs::File::open(folder.join(EVENTS)).ok()?;
    let lease = Store::lease_of(folder);
    match events.try_lock_shared() {
        Err(TryLockError::WouldBlock) => Some(true),
        _ if lease.is_some() => lease,
        Ok(()) => Some(false),
        Err(TryLockError::Error(_)) => None,
    }
}

/// Whether the process of a run may be there, by its folder.
pub(super) fn is_run_under_way(folder: &Path) -> bool {
    folder.exists() && is_under_way(folder) != Some(false)
}

/// A run of the past.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// What was asked.
    pub description: RunDescription,
    folder: PathBuf,
}

impl Run {
    /// Lists the runs of a store, oldest first; a folder that is no run, or that this user may not read, is passed over.
    ///
    /// # Errors
    /// If the runs cannot be listed.
    pub fn all(store: &Store) -> std::io::Result<Vec<Self>> {
        let runs = Self::folders(store)?.into_iter().map(Self::read);
        Ok(runs.filter_map(|run| run.ok().flatten()).collect())
    }

    /// Lists the runs of a store, oldest first, all of them.
    ///
    /// # Errors
    /// If there may be runs that cannot be read.
    pub fn every_one(store: &Store) -> std::io::Result<Vec<Self>> {
        let runs = Self::folders(store)?.into_iter().map(Self::read);
        runs.filter_map(std::io::Result::transpose).collect()
    }

    /// Reads the run of a folder, if one began there.
    fn read(folder: PathBuf) -> std::io::Result<Option<Self>> {
        let path = folder.join("run.json");
        let Some(text) = read_if_there(&path)? else {
            return Ok(None);
        };
        let description = serde_json::from_str(&text).map_err(|error| {
            std::io::Error::other(format!("{} is damaged: {error}", path.display()))
        })?;
        Ok(Some(Self {
            description,
            folder,
        }))
    }

    fn folders(store: &Store) -> std::io::Result<Vec<PathBuf>> {
        let entries = match fs_err::read_dir(store.runs_path()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?.collect::<std::io::Result<Vec<_>>>()?,
        };
        let mut folders: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
        // `-2` comes before `-10`: the id is a time, and a number for runs of the same second.
        folders.sort_by_cached_key(|folder| {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            let mut parts = name.splitn(3, '-').map(str::to_owned);
            let (day, time) = (parts.next(), parts.next());
            let suffix: u64 = parts.next().and_then(|text| text.parse().ok()).unwrap_or(0);
            (day, time, suffix)
        });
        folders.retain(|folder| folder.is_dir());
        Ok(folders)
    }

    /// Finds a run: `last`, `last-1` (the one before), an id, or the beginning of one.
    ///
    /// # Errors
    /// A message, if there is no such run or more than one.
    pub fn find(store: &Store, name: &str) -> Result<Self, String> {
        let mut runs = Self::all(store).map_err(|error| error.to_string())?;
        if runs.is_empty() {
            return Err(format!("{} has no runs", store.root().display()));
        }
        if let Some(rest) = name.strip_prefix("last") {
            let back = match rest {
                "" => Some(0),
                rest => rest.strip_prefix('-').and_then(|back| back.parse().ok()),
            };
            let at = back.and_then(|back: usize| runs.len().checked_sub(back + 1));
            return match at {
                Some(at) => Ok(runs.swap_remove(at)),
                None => Err(format!("no run `{name}`: there are {}", runs.len())),
            };
        }
        let exact = runs.iter().position(|run| run.description.run == name);
        let found: Vec<usize> = match exact {
            Some(at) => vec![at],
            None => (0..runs.len())
                .filter(|at| runs[*at].description.run.starts_with(name))
                .collect(),
        };
        match found.as_slice() {
            [at] => Ok(runs.swap_remove(*at)),
            [] => Err(format!("no run `{name}`; `flowgraph runs` lists them")),
            several => Err(format!("{} runs begin with `{name}`", several.len())),
        }
    }

    /// Returns the run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns how the stages ended, in file order; `None` if the run was killed.
    pub fn stages(&self) -> Option<Vec<RunStage>> {
        let text = std::fs::read_to_string(self.folder.join(STAGES)).ok()?;
        stages_in(&text)
    }

    /// Returns the fingerprints of all results that the run had, used or began to make, however it ended; `None` if it
    /// was killed before it could say so.
    ///
    /// # Errors
    /// If it said so, and this user may not read it.
    pub fn needs(&self) -> std::io::Result<Option<BTreeSet<Digest>>> {
        let read = |name| read_if_there(&self.folder.join(name));
        let stages = read(STAGES)?.and_then(|text| stages_in(&text));
        let used = read("needs")?.unwrap_or_default();
        let started = started_in(&read(EVENTS)?.unwrap_or_default());
        if stages.is_none() && used.is_empty() && started.is_empty() {
            return Ok(None);
        }
        let stages = stages.into_iter().flatten();
        let mut needs: BTreeSet<Digest> = stages.filter_map(|stage| stage.fingerprint).collect();
        needs.extend(used.lines().filter_map(|line| line.parse::<Digest>().ok()));
        needs.extend(started.into_keys());
        Ok(Some(needs))
    }

    /// Returns the stages that were started, by fingerprint.
    pub fn started(&self) -> BTreeMap<Digest, String> {
        let text = std::fs::read_to_string(self.folder.join(EVENTS)).unwrap_or_default();
        started_in(&text)
    }

    /// Returns the log of a stage of the run, which is there if the stage was started.
    pub fn log_path(&self, stage: &str) -> PathBuf {
        log_path(&self.folder, stage)
    }

    /// Returns why stages of the run failed, by name; of one that failed several times the last reason.
    pub fn failures(&self) -> BTreeMap<String, String> {
        let text = std::fs::read_to_string(self.folder.join(EVENTS)).unwrap_or_default();
        let failed = text.lines().filter(|line| line.contains("stage_failed"));
        let failed = failed.filter_map(|line| match serde_json::from_str(line).ok()? {
            RunEvent::StageFailed { stage, message, .. } => Some((stage, message)),
            _ => None,
        });
        failed.collect()
    }

    /// Opens the log of what happened.
    pub fn events(&self) -> std::io::Result<fs_err::File> {
        fs_err::File::open(self.folder.join(EVENTS))
    }

    /// Whether the process of the run is there; `None` if nobody can tell.
    pub fn is_under_way(&self) -> Option<bool> {
        is_under_way(&self.folder)
    }

    /// Says why a run has no end.
    pub fn why_no_end(&self) -> &'static str {
        match self.is_under_way() {
            Some(true) => "it goes on",
            Some(false) => "it was killed",
            None => "it was killed, or goes on",
        }
    }

    /// Returns how the run ended; `None` if it was killed, or is under way.
    pub fn end(&self) -> Option<RunEnd> {
        let text = std::fs::read_to_string(self.folder.join(EVENTS)).ok()?;
        let last: RunEvent = serde_json::from_str(text.lines().next_back()?).ok()?;
        match last {
            RunEvent::RunFinished { seconds, outcomes } => Some(RunEnd { seconds, outcomes }),
            _ => None,
        }
    }
}
