//! The process that runs one stage.
//!
//! It reads a [`Job`] from standard input and writes [`WorkerEvent`]s to standard output. Standard input
//! stays open as long as the executor lives: when it ends, so does the worker, and with it what it started.

mod events;
mod gpus;
mod hand_over;
mod held;
mod inputs;
mod job;
mod params;
mod try_folder;
mod unheeding;
mod words;

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use gpus::{explain_full_gpu, gpu_used, placed};
pub use hand_over::{ABOUT, About, about_gpu};
pub use job::{Job, JobInput, Task};

use super::artifact::Digest;
use super::context::{Code, Importance, RECEIVED, RunContext};
use super::event::WorkerEvent;
use super::fingerprint::Manifest;
use super::limits;
use super::machine::{
    DeviceChoice, Place, Work, host_name, may_stand_in, numerics_class, usage, user_name,
};
use super::mask::Mask;
use super::plan::find_local;
use super::processes::adopt_orphans;
use super::stage::{Continuation, GpuUse, Registry, Stage, StageError, find_kind};
use super::store::{Lock, LockState, Provenance, Record, Store};
use events::{Events, end_with_parent};
use inputs::{HeldSources, input_names, paths_of, source_names};
use try_folder::{TryFolder, sweep_dead_tries};
use unheeding::Watch;
use words::in_words;

/// Runs the job on standard input, or that in an open file of this number; returns the process's exit code.
pub fn main(registry: &Registry, told: Option<i32>) -> u8 {
    let command_group = Arc::new(AtomicI32::new(0));
    let line = match told {
        Some(number) => hand_over::read_told(number),
        None => {
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line).map(|_| line)
        }
    };
    let job = line
        .map_err(|error| error.to_string())
        .and_then(|line| serde_json::from_str::<Job>(&line).map_err(|error| error.to_string()));
    let events = Events(
        Arc::new(Mutex::new(std::io::stdout())),
        Arc::clone(&command_group),
    );
    let job = match job {
        Ok(job) => job,
        Err(error) => {
            events.send(&WorkerEvent::Failed {
                message: format!("cannot read the job: {error}"),
                hint: Some("`flowgraph worker` is started by `flowgraph run`".to_owned()),
            });
            return 2;
        }
    };
    if let Err(error) = end_with_parent(Arc::clone(&command_group)) {
        let StageError::Failed { message, hint } = limits::explain("cannot start a thread", &error)
        else {
            return 1;
        };
        events.send(&WorkerEvent::Failed { message, hint });
        return 1;
    }
    adopt_orphans();
    let (job, place) = match placed(registry, job, told.is_some(), &events) {
        Ok(placed) => placed,
        Err(StageError::Failed { message, hint }) => {
            events.send(&WorkerEvent::Failed { message, hint });
            return 1;
        }
        Err(StageError::Interrupted) => return 130,
    };
    let (cancelled, signalled) = (Arc::new(AtomicBool::new(false)), Arc::default());
    for signal in stop_signals() {
        let registered = signal_hook::flag::register(signal, Arc::clone(&signalled))
            .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&cancelled)));
        if let Err(error) = registered {
            events.send(&WorkerEvent::Note {
                importance: Importance::Usual,
                text: format!("cannot handle signal {signal}: {error}"),
            });
        }
    }
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        Worker {
            store: Store::new(&job.store).stopped_by(Arc::clone(&cancelled)),
            inputs_from: Store::new(job.inputs_from.as_ref().unwrap_or(&job.store))
                .stopped_by(Arc::clone(&cancelled)),
            job: &job,
            place: &place,
            events: &events,
            cancelled: Arc::clone(&cancelled),
            signalled: Arc::clone(&signalled),
        }
        .perform(registry)
    }));
    let (event, code) = match result {
        Ok(Ok(event)) => (event, 0),
        // Whatever was given up or ended by the signal has an error of its own to tell.
        Ok(Err(_)) if cancelled.load(Ordering::Relaxed) => (WorkerEvent::Interrupted, 130),
        Ok(Err(Failure::Stage(StageError::Failed { message, hint }))) => {
            (WorkerEvent::Failed { message, hint }, 1)
        }
        Ok(Err(Failure::Stage(StageError::Interrupted))) => (WorkerEvent::Interrupted, 130),
        Ok(Err(Failure::Damaged { artifact, message })) => {
            (WorkerEvent::Damaged { artifact, message }, 4)
        }
        Err(panic) => {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown panic");
            // Thread pools have no other way to say that they could not be had.
            let limited = text.contains("Resource temporarily unavailable");
            let error = if limited {
                limits::explain(
                    "cannot start a thread",
                    &std::io::Error::from_raw_os_error(libc::EAGAIN),
                )
            } else {
                StageError::new(format!("the stage panicked: {text}"))
                    .hint("this is a bug in the stage kind; its log has the place")
            };
            let StageError::Failed { message, hint } = error else {
                return 1;
            };
            (WorkerEvent::Failed { message, hint }, 1)
        }
    };
    events.send(&event);
    code
}

/// The signals that ask a stage to stop. A hangup that was ignored when the program was started (`nohup`) stays so.
pub fn stop_signals() -> Vec<i32> {
    let mut signals = vec![signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT];
    if !ignores(signal_hook::consts::SIGHUP) {
        signals.push(signal_hook::consts::SIGHUP);
    }
    signals
}

/// Whether this process ignores a signal.
fn ignores(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

enum Failure {
    Stage(StageError),
    Damaged { artifact: Digest, message: String },
}

impl<E: Into<StageError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Stage(error.into())
    }
}

struct Worker<'a> {
    store: Store,
    inputs_from: Store,
    job: &'a Job,
    place: &'a Place,
    events: &'a Events,
    /// Set by a signal, or where another has taken the stage over.
    cancelled: Arc<AtomicBool>,
    signalled: Arc<AtomicBool>,
}

impl Worker<'_> {
    fn perform(self, registry: &Registry) -> Result<WorkerEvent, Failure> {
        let kind = find_kind(registry, &self.job.kind)
            .ok_or_else(|| StageError::new(format!("unknown stage kind `{}`", self.job.kind)))?;
        let stage = params::read(kind, &self.job.params)?;
        match &self.job.task {
            Task::Fetch => {
                self.fetch_sources(stage.as_ref(), None, &HeldSources::new())?;
                Ok(WorkerEvent::Fetched)
            }
            Task::Run {
                manifest,
                fingerprint,
                rerun,
                exact,
            } => {
                params::check(kind, stage.as_ref(), manifest)?;
                self.check_inputs(manifest)?;
                self.run(stage.as_ref(), manifest, fingerprint, *rerun, *exact)
            }
        }
    }

    fn run(
        &self,
        stage: &dyn Stage,
        manifest: &Manifest,
        fingerprint: &Digest,
        rerun: bool,
        exact: bool,
    ) -> Result<WorkerEvent, Failure> {
        let _in_use = self.wait_for(|| self.store.try_share())?;
        loop {
            let lock = self.lock(fingerprint)?;
            let done = self.run_locked(stage, manifest, fingerprint, (rerun, exact), &lock);
            if done.is_ok() || lock.is_ours() {
                return done;
            }
            // Another took it over while this process was held up, which stopped it: the other's result counts.
            let is_to_stop = self.signalled.load(Ordering::Relaxed);
            self.cancelled.store(is_to_stop, Ordering::Relaxed);
        }
    }

    fn run_locked(
        &self,
        stage: &dyn Stage,
        manifest: &Manifest,
        fingerprint: &Digest,
        (rerun, exact): (bool, bool),
        lock: &Lock,
    ) -> Result<WorkerEvent, Failure> {
        let begun = Instant::now();
        let class = numerics_class(self.place);
        // Records count only after the lock: another process may have finished while we waited.
        let (own, others) = self.whole_records(fingerprint, &class);
        let exact = exact
            || (others.as_ref())
                .is_some_and(|other| !may_stand_in(&other.provenance.numerics, &class));
        // A result of another class stays, and that of this class will stand beside it.
        let beside = exact && others.is_some();
        let mut earlier = if exact { own } else { own.or(others) };
        if let Some(record) = earlier.take_if(|_| !rerun) {
            return Ok(WorkerEvent::Done {
                record: Box::new(record),
                elsewhere: true,
                other: false,
                seconds: begun.elapsed().as_secs_f64(),
                peak_memory_bytes: usage().peak_memory_bytes,
            });
        }
        self.events.send(&WorkerEvent::Started);
        self.tell_of_missing_gpus(stage);
        self.tell_of_little_memory(stage);
        let (started, clock) = (jiff::Timestamp::now(), Instant::now());
        let scratch = self.job.tries_folder(fingerprint);
        sweep_dead_tries(&scratch)?;
        // Removed however the try ends; checkpoints stay for the next one.
        let try_folder = TryFolder::make(&scratch)?;
        let (inputs, watched) = self.lay_out_inputs(try_folder.path())?;
        let held = self.hold_sources(stage, try_folder.path())?;
        let input_names = input_names(&inputs);
        let worded = |error, sources: &_| {
            let names = source_names(stage, &self.job.base_folder, sources);
            in_words(error, &names, &input_names, try_folder.path())
        };
        let sources = self
            .check_held(manifest, &held, "changed since the stage was planned")
            .and_then(|()| self.fetch_sources(stage, Some(manifest), &held))
            .map_err(|error| worded(error, &paths_of(&held)))?;
        let training = stage.continuation();
        let key = manifest.continuation_key(&class);
        let again = earlier.is_some();
        let checkpoints = self.store.checkpoints_path(fingerprint, &class, again);
        if let (false, Some(training), Some(key)) = (rerun, &training, &key) {
            self.lend_state(training, key, &checkpoints);
        }
        let received = self.received(fingerprint, &class);
        let mut ctx = RunContext {
            inputs,
            sources: sources.clone(),
            code: self.code(stage, manifest)?,
            checkpoints: checkpoints.clone(),
            continues: training.is_some(),
            keeps_end_state: false,
            source_cache: self.store.sources_path(),
            base_folder: self.job.base_folder.clone(),
            threads: self.job.threads,
            gpu: match self.place {
                Place::Gpu(gpu) => Some(gpu.clone()),
                Place::Processor | Place::Program => None,
            },
            computes_on_gpu: None,
            work: Work::default(),
            cancelled: Arc::clone(&self.cancelled),
            heeds: Arc::default(),
            reporter: Box::new(self.events.clone()),
            told: None,
            untold: Vec::new(),
            try_folder: try_folder.path().to_owned(),
            received,
        };
        let watch = Watch::begin(&self.cancelled, &ctx.heeds, try_folder.path(), self.events)
            .map_err(|error| limits::explain("cannot start a thread", &error))?;
        let outcome = stage.run(&mut ctx);
        drop(watch);
        if let Err(error) = outcome {
            // A program may have outlived the stage that started it.
            ctx.command_ended();
            let error = worded(error, &sources);
            let error = self.explain_full_disk(error);
            return Err(match self.place {
                Place::Gpu(_) => explain_full_gpu(error),
                Place::Processor | Place::Program => error,
            }
            .into());
        }
        self.check_inputs_unchanged(&watched)?;
        self.check_sources_unchanged(manifest, &held)?;
        self.look_for_secrets(stage, try_folder.path())?;
        let (outputs, stats) =
            self.store
                .commit_outputs(try_folder.path(), &stage.outputs(), &self.inputs_from)?;
        let (usage, seconds) = (usage(), clock.elapsed().as_secs_f64());
        let place = match self.place {
            // It had no tensors after all.
            Place::Gpu(_) if ctx.computes_on_gpu.is_none() => &Place::Processor,
            place => place,
        };
        let mut record = Record {
            beside,
            fingerprint: *fingerprint,
            manifest: manifest.clone(),
            outputs,
            provenance: Provenance {
                stage: self.job.stage.clone(),
                pipeline: self.job.pipeline.clone(),
                flowgraph: env!("CARGO_PKG_VERSION").to_owned(),
                host: host_name(),
                user: user_name(),
                device: place.device().to_owned(),
                gpu: gpu_used(place, ctx.computes_on_gpu, ctx.work.flops / seconds),
                work: Some(ctx.work).filter(|work| *work != Work::default()),
                numerics: numerics_class(place),
                threads: self.job.threads,
                started: started.to_string(),
                seconds,
                cpu_seconds: usage.cpu_seconds,
                peak_memory_bytes: usage.peak_memory_bytes,
            },
            stats,
        };
        let mut other = false;
        if let Some(earlier) = earlier {
            let made = std::mem::replace(&mut record, earlier).outputs;
            other = made != record.outputs;
        } else if !lock.is_ours() {
            return Err(StageError::new("another process took this stage over").into());
        } else if let Some(first) = self.store.write_first_record(&record)? {
            let made = std::mem::replace(&mut record, first).outputs;
            other = made != record.outputs;
        }
        drop(try_folder);
        // Only saves work later: whatever goes wrong is no failure of this stage.
        if ctx.keeps_end_state
            && let (Some(training), Some(key)) = (training, key)
        {
            let _ = self.store.keep_state(&key, training.steps, &checkpoints);
        }
        let _ = fs_err::remove_dir_all(&checkpoints);
        // Only if it is empty: another class may have checkpoints there.
        let _ = fs_err::remove_dir(self.store.scratch_path(fingerprint));
        Ok(WorkerEvent::Done {
            record: Box::new(record),
            elsewhere: false,
            other,
            seconds,
            peak_memory_bytes: usage.peak_memory_bytes,
        })
    }

    /// Finds what the result that is computed again was given from outside.
    fn received(&self, fingerprint: &Digest, class: &str) -> BTreeMap<String, PathBuf> {
        if self.job.inputs_from.is_none() {
            return BTreeMap::new();
        }
        let record = |beside| self.inputs_from.read_record(fingerprint, beside).ok()?;
        let record = record(None).or_else(|| record(Some(class)));
        let outputs = record.map(|record| record.outputs).unwrap_or_default();
        let received = outputs.iter().filter_map(|(name, artifact)| {
            let file = artifact.files.iter().find(|file| file.path == RECEIVED)?;
            self.inputs_from.check_object(&file.digest).ok()?;
            Some((name.clone(), self.inputs_from.object_path(&file.digest)))
        });
        received.collect()
    }

    /// Says so where a stage has fewer GPUs than it asks for.
    fn tell_of_missing_gpus(&self, stage: &dyn Stage) {
        let (kind, asked, given) = (&self.job.kind, self.job.gpus_asked_for, self.job.gpus.len());
        let why = match stage.gpu_use() {
            _ if given >= asked => return,
            GpuUse::None => format!("`{kind}` has nothing to compute there"),
            GpuUse::Tensors if given > 0 => format!("`{kind}` computes on one"),
            _ if self.job.device == DeviceChoice::Cpu => format!("`--device cpu` gives it {given}"),
            _ if self.job.gpu_memory > 0 => format!("this machine shows {given} of that memory"),
            _ => format!("this machine shows {given}"),
        };
        self.events.send(&WorkerEvent::Note {
            importance: Importance::Usual,
            text: format!(
                "asks for {asked} GPU{}; {why}",
                if asked == 1 { "" } else { "s" }
            ),
        });
    }

    /// Warns, before hours are lost, of memory that is declared and cannot hold so much as the weights that the stage
    /// is given.
    fn tell_of_little_memory(&self, stage: &dyn Stage) {
        if stage.gpu_use() != GpuUse::Tensors {
            return;
        }
        let files = (self.job.inputs.iter()).flat_map(|input| &input.artifact.files);
        let weights = files.filter(|file| file.path.ends_with(".safetensors"));
        // Of 32 bits in the file, half may be held.
        let least = weights.map(|file| file.size).sum::<u64>() / 2;
        let on_gpu = matches!(self.place, Place::Gpu(_));
        let (key, declared) = if on_gpu {
            ("gpu_memory", self.job.gpu_memory)
        } else {
            ("memory", self.job.memory)
        };
        if declared == 0 || declared >= least {
            return;
        }
        let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
        self.events.send(&WorkerEvent::Note {
            importance: Importance::Warning,
            text: format!(
                "warning: declares `resources.{key}` of {} MB, and the weights that it is given take {} MB at least",
                megabytes(declared),
                megabytes(least)
            ),
        });
    }

    /// Reads the records of a fingerprint whose objects are intact: that of a numerics class, and that of another.
    ///
    /// Every byte is read: a stage may run because a consumer found what file times do not show.
    fn whole_records(&self, fingerprint: &Digest, class: &str) -> (Option<Record>, Option<Record>) {
        let whole = |beside: Option<&str>| {
            let mut record = self.store.read_record(fingerprint, beside).ok()??;
            self.store.check_record(&mut record, true).ok()?;
            Some(record)
        };
        match whole(None) {
            Some(record) if record.provenance.numerics == class => (Some(record), None),
            others => (whole(Some(class)), others),
        }
    }

    /// Finds the code that the stage works on copies of.
    fn code(&self, stage: &dyn Stage, manifest: &Manifest) -> Result<Vec<Code>, StageError> {
        let paths = stage.code().into_iter();
        paths
            .map(|path| {
                Ok(Code {
                    found: find_local(Path::new(&path), &self.job.base_folder)?,
                    planned: manifest.sources.get(&path).cloned().flatten(),
                    path,
                })
            })
            .collect()
    }

    /// Warns of outputs that hold the value of a secret: they are stored and exported as they are.
    ///
    /// No more than a warning: the value may be an ordinary word, and the work of hours would be lost.
    fn look_for_secrets(&self, stage: &dyn Stage, try_folder: &Path) -> Result<(), StageError> {
        let mask = Mask::of(&stage.secrets());
        if mask.is_empty() {
            return Ok(());
        }
        let outputs = stage.outputs();
        for (output, written) in self.inputs_from.list_outputs(try_folder, &outputs)? {
            for file in written {
                let name = format!("{}/{}", output.name, file.path);
                let found = fs_err::File::open(try_folder.join(&name))
                    .and_then(|mut file| mask.find(&mut file, || self.store.go_on()));
                self.store.go_on()?;
                if let Ok(Some(secret)) = found {
                    self.events.send(&WorkerEvent::Note {
                        importance: Importance::Warning,
                        text: format!(
                            "warning: output `{name}` holds the value of `{secret}`, which is stored and exported with it"
                        ),
                    });
                }
            }
        }
        Ok(())
    }

    /// Gives a training without checkpoints of its own the end of a shorter one. If that fails it begins at the
    /// beginning.
    fn lend_state(&self, training: &Continuation, key: &Digest, checkpoints: &Path) {
        let own = std::fs::read_dir(checkpoints).is_ok_and(|mut found| found.next().is_some());
        if !own
            && let Some((_, state)) = self.store.find_state(key, training)
            && self.store.lend_state(&state, checkpoints).is_err()
        {
            let _ = fs_err::remove_dir_all(checkpoints);
        }
    }

    fn lock(&self, fingerprint: &Digest) -> Result<Lock, Failure> {
        let holder = format!(
            "stage `{}` of pipeline `{}`, process {} on {}",
            self.job.stage,
            self.job.pipeline,
            std::process::id(),
            host_name()
        );
        self.wait_for(|| self.store.try_lock(fingerprint, &holder))
    }

    /// Waits for a lock, and says for whom.
    fn wait_for(&self, ask: impl Fn() -> std::io::Result<LockState>) -> Result<Lock, Failure> {
        let mut told = String::new();
        loop {
            match ask()? {
                LockState::Held(lock) => return Ok(lock),
                LockState::Busy { holder } => {
                    if holder != told {
                        self.events.send(&WorkerEvent::Waiting {
                            holder: holder.clone(),
                        });
                        told = holder;
                    }
                }
            }
            if self.cancelled.load(Ordering::Relaxed) {
                return Err(StageError::Interrupted.into());
            }
            std::thread::sleep(self.store.pause());
        }
    }

    /// A program that met a full disk may have said so only in its log, which could not be written either.
    fn explain_full_disk(&self, error: StageError) -> StageError {
        const LITTLE: u64 = 64 << 10;
        let free = rustix::fs::statvfs(self.store.root()).map(|disk| disk.f_bavail * disk.f_frsize);
        match error {
            StageError::Failed { message, .. } if free.is_ok_and(|free| free < LITTLE) => {
                let root = self.store.root().display();
                StageError::new(format!("{message} (no space left on the disk of {root})"))
                    .hint("free some space, or choose a store on another disk with `--store DIR`")
            }
            other => other,
        }
    }
}
