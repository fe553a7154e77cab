//! Running what is not cached: each stage in its own process, as many at once as fit.
//!
//! Approach: one thread owns all state. Stages become *ready* when everything they need is settled;
//! deciding about a ready stage (the planner's `decide`, now with every upstream digest known) gives either a
//! cached result, which settles it at once, or a job for the queue. Worker processes report through one
//! channel. The loop ends when nothing runs and nothing is queued.

mod decisions;
mod endings;
mod resources;
mod running;
mod sharing;
mod starts;
mod state;

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::json;

pub use resources::Capacity;

use super::artifact::Digest;
use super::event::{Observer, Outcome, RunEvent, WorkerEvent};
use super::launch::{Launcher, Message, Sayings};
use super::plan::{Known, PlanOptions, Planner, StagePlan};
use super::runs::{RunFolder, RunStage};
use super::spec::Pipeline;
use super::stage::StageError;
use super::store::{Lock, LockState, Record, Remote, Store};
use resources::Pool;
use running::{Ended, Running};
use sharing::Sharing;
use state::{State, Step};

/// How a run is to go.
pub struct RunOptions {
    /// See [`PlanOptions`].
    pub plan: PlanOptions,
    /// Which stages are wanted, by position; what they need is run as well.
    pub wanted: Vec<bool>,
    /// What the machine offers.
    pub capacity: Capacity,
    /// Whether the first failure ends the run.
    pub fail_fast: bool,
    /// Counts the signals that asked the run to stop: the first lets stages checkpoint, the second ends them.
    pub interrupts: Arc<AtomicUsize>,
    /// Starts the workers of stages.
    pub launcher: Box<dyn Launcher>,
    /// Where results are looked for that are not here, and where those that are made here are sent.
    pub remote: Option<Arc<Remote>>,
}

/// How a run went.
#[derive(Debug)]
pub struct RunReport {
    /// Id of the run.
    pub run: String,
    /// How each stage ended, by position; `None` for stages that were not wanted or not reached.
    pub outcomes: Vec<Option<Outcome>>,
    /// Outputs of the stages that are cached or done.
    pub known: Known,
    /// Fingerprints of the stages that are cached or done.
    pub fingerprints: Vec<Option<Digest>>,
    /// What failed: stage, message, hint, log file.
    pub failures: Vec<StageFailure>,
    /// Whether the run was asked to stop.
    pub interrupted: bool,
    /// Whether stages are left that the run did not come to, or that were interrupted.
    pub unfinished: bool,
    /// How many results were not sent to the shared store though they should have been.
    pub unsent: usize,
    /// Why the run is not recorded; then nothing had to run.
    pub unrecorded: Option<StageError>,
}

/// One failed stage.
#[derive(Debug, Clone)]
pub struct StageFailure {
    /// The stage.
    pub stage: String,
    /// What went wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// Where its output went.
    pub log: PathBuf,
}

/// Computes results anew from what their records say, each by itself; says how each stage went, and returns the new
/// records by position.
///
/// What is made goes to `store`; `known` are the recorded artifacts, which lie in the store `inputs_from`.
pub(super) fn recompute(
    pipeline: &Pipeline,
    store: &Store,
    inputs_from: &Store,
    recorded: &BTreeMap<usize, Record>,
    known: Known,
    options: RunOptions,
    observer: &mut dyn Observer,
) -> Result<(RunReport, BTreeMap<usize, Record>), StageError> {
    let mut execution = Execution::new(pipeline, store, options, observer)?;
    execution.recomputed = Some(Recomputed {
        inputs_from: inputs_from.root().to_owned(),
        records: BTreeMap::new(),
    });
    execution.known = known;
    for (&stage, record) in recorded {
        execution.plans[stage] = Some(StagePlan::to_recompute(record));
        execution.step(stage, Step::Queue);
    }
    execution.run()
}

/// Runs a pipeline.
pub fn run(
    pipeline: &Pipeline,
    store: &Store,
    options: RunOptions,
    observer: &mut dyn Observer,
) -> Result<RunReport, StageError> {
    let (report, _) = Execution::new(pipeline, store, options, observer)?.run()?;
    Ok(report)
}

/// How long the loop waits for something to happen.
const TURN: Duration = Duration::from_millis(50);

/// What an execution is about that computes anew what is recorded.
struct Recomputed {
    inputs_from: PathBuf,
    records: BTreeMap<usize, Record>,
}

/// A stage that failed and is tried again.
struct Retry {
    /// When, at the earliest.
    at: Instant,
    /// Why it failed the last time.
    error: StageError,
}

struct Execution<'a> {
    pipeline: &'a Pipeline,
    store: &'a Store,
    options: RunOptions,
    planner: Planner<'a>,
    observer: &'a mut dyn Observer,
    folder: RunFolder,
    states: Vec<State>,
    plans: Vec<Option<StagePlan>>,
    known: Known,
    queue: VecDeque<usize>,
    /// Stages that failed and wait to be tried again.
    retries: BTreeMap<usize, Retry>,
    tries: Vec<u32>,
    workers: BTreeMap<usize, Running>,
    pool: Pool,
    sender: Sayings,
    receiver: Receiver<(usize, Message)>,
    failures: Vec<StageFailure>,
    recomputed: Option<Recomputed>,
    sharing: Option<Sharing>,
    stopping: bool,
    /// Whether it was said that no GPU can be had.
    told_of_gpus: bool,
}

impl<'a> Execution<'a> {
    fn new(
        pipeline: &'a Pipeline,
        store: &'a Store,
        mut options: RunOptions,
        observer: &'a mut dyn Observer,
    ) -> Result<Self, StageError> {
        let count = pipeline.stages.len();
        let folder = wait_for_collection(store, &options.interrupts, observer)
            .and_then(|in_use| RunFolder::create(store, pipeline, in_use));
        let folder = match folder {
            Ok(folder) => folder,
            Err(StageError::Interrupted) => return Err(StageError::Interrupted),
            Err(error) => RunFolder::unrecorded(store, error),
        };
        store.sweep_leftovers();
        let (sender, receiver) = channel();
        let sharing = options.remote.take();
        let sharing = sharing.map(|remote| Sharing::new(remote, store, count));
        let needed = pipeline.graph.upstream(
            (0..count).filter(|stage| options.wanted.get(*stage).copied().unwrap_or(true)),
        );
        Ok(Self {
            planner: Planner::new(pipeline, store, options.plan.clone()),
            pool: Pool::new(&options.capacity),
            states: needed
                .iter()
                .map(|needed| {
                    if *needed {
                        State::Waiting
                    } else {
                        State::Unwanted
                    }
                })
                .collect(),
            plans: (0..count).map(|_| None).collect(),
            known: vec![None; count],
            queue: VecDeque::new(),
            retries: BTreeMap::new(),
            tries: vec![0; count],
            workers: BTreeMap::new(),
            failures: Vec::new(),
            recomputed: None,
            sharing: sharing.transpose()?,
            stopping: false,
            told_of_gpus: false,
            pipeline,
            store,
            options,
            observer,
            folder,
            sender,
            receiver,
        })
    }

    fn run(mut self) -> Result<(RunReport, BTreeMap<usize, Record>), StageError> {
        let clock = Instant::now();
        let wanted = self.states.iter();
        let wanted = wanted.filter(|state| **state != State::Unwanted).count();
        self.emit(RunEvent::RunStarted {
            run: self.folder.id.clone(),
            pipeline: self.pipeline.name.clone(),
            stages: wanted,
        });
        // In this order, everything that a stage needs is decided about before it.
        for &stage in &self.pipeline.order {
            self.decide_one(stage);
        }
        loop {
            self.heed_interrupts();
            if self.stopping {
                self.clear_queue();
                self.give_up_asking();
            }
            if let Some(refusal) = self.folder.refusal()
                && !self.queue.is_empty()
            {
                return Err(refusal.clone());
            }
            self.start_queued();
            self.options.launcher.turn();
            if self.workers.is_empty() && self.queue.is_empty() && !self.waits_for_shared() {
                break;
            }
            self.observer.pause();
            self.hear_of_shared();
            // With no worker, only the shared store can have something to say, and was waited for.
            if self.workers.is_empty() && self.sharing.is_some() {
                continue;
            }
            match self.receiver.recv_timeout(TURN) {
                Ok((stage, message)) => self.take(stage, message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the executor holds a sender"),
            }
            // After every message, too: a stage that talks much must not outrun its timeout.
            self.enforce_timeouts();
        }
        // Once more: what was still dying at the start is dead by now.
        self.store.sweep_leftovers();
        let outcomes: Vec<Option<Outcome>> = self
            .states
            .iter()
            .map(|state| match state {
                State::Settled(outcome) => Some(*outcome),
                _ => None,
            })
            .collect();
        let count = |outcome: Outcome| {
            outcomes
                .iter()
                .filter(|found| **found == Some(outcome))
                .count()
        };
        let summary = json!({
            "cached": count(Outcome::Cached), "done": count(Outcome::Done), "failed": count(Outcome::Failed),
            "skipped": count(Outcome::Skipped), "interrupted": count(Outcome::Interrupted),
        });
        self.emit(RunEvent::RunFinished {
            seconds: clock.elapsed().as_secs_f64(),
            outcomes: summary,
        });
        let fingerprints: Vec<Option<Digest>> = (self.plans.iter().zip(&self.states))
            .map(|(plan, state)| match state {
                State::Settled(Outcome::Cached | Outcome::Done) => plan.as_ref()?.fingerprint,
                _ => None,
            })
            .collect();
        let stages = self.pipeline.stages.iter().enumerate();
        self.folder.finish(stages.map(|(at, stage)| RunStage {
            stage: stage.name.clone(),
            kind: stage.kind.name.to_owned(),
            outcome: outcomes[at],
            fingerprint: fingerprints[at],
            beside: fingerprints[at].and_then(|_| self.plans[at].as_ref()?.beside.clone()),
        }));
        let interrupted = self.is_interrupted();
        let is_open = |state: &State| {
            !matches!(state, State::Unwanted | State::Settled(_))
                || *state == State::Settled(Outcome::Interrupted)
        };
        let unfinished = self.states.iter().any(is_open);
        let report = RunReport {
            unrecorded: self.folder.refusal().cloned(),
            run: self.folder.id,
            outcomes,
            known: self.known,
            fingerprints,
            failures: self.failures,
            unsent: self.sharing.as_ref().map_or(0, Sharing::unsent),
            interrupted,
            unfinished,
        };
        let recomputed = self.recomputed.map(|recomputed| recomputed.records);
        Ok((report, recomputed.unwrap_or_default()))
    }

    /// Changes the state of a stage; nothing else does.
    fn step(&mut self, stage: usize, step: Step) {
        let before = self.states[stage];
        let Some(after) = before.after(step) else {
            unreachable!("BUG: {step:?} of a stage that is {before:?}");
        };
        self.states[stage] = after;
        if after == State::Queued && before != State::Queued {
            self.queue.push_back(stage);
        }
    }

    fn take(&mut self, stage: usize, message: Message) {
        let name = self.pipeline.stages[stage].name.clone();
        match message {
            Message::Event(WorkerEvent::Progress { progress }) => {
                self.emit(RunEvent::StageProgress {
                    stage: name,
                    progress,
                });
            }
            Message::Event(WorkerEvent::Note { importance, text }) => {
                self.emit(RunEvent::StageNote {
                    stage: name,
                    importance,
                    text,
                });
            }
            Message::Event(WorkerEvent::Waiting { holder }) => {
                self.emit(RunEvent::StageWaiting {
                    stage: name,
                    holder,
                });
            }
            Message::Event(WorkerEvent::Queued { job, state, reason }) => {
                // Nor is waiting in a queue, once more perhaps.
                if let Some(worker) = self.workers.get_mut(&stage) {
                    worker.started = None;
                }
                self.emit(RunEvent::StageQueued {
                    stage: name,
                    job,
                    state,
                    reason,
                });
            }
            Message::Event(WorkerEvent::Started) => {
                // Waiting for another process is no part of the time that a stage may take.
                if let Some(worker) = self.workers.get_mut(&stage) {
                    worker.started = Some(Instant::now());
                }
            }
            Message::Event(last) => {
                if let Some(worker) = self.workers.get_mut(&stage) {
                    worker.last = Some(last);
                }
            }
            Message::Ended => self.worker_ended(stage, name),
        }
    }

    fn heed_interrupts(&mut self) {
        let interrupts = self.options.interrupts.load(Ordering::SeqCst);
        if interrupts > 0 && !self.stopping {
            self.stopping = true;
            self.ask_all_to_stop();
        }
        if interrupts > 1 {
            for worker in self.workers.values_mut() {
                worker.end(Ended::AtOnce);
            }
        }
    }

    fn is_interrupted(&self) -> bool {
        self.options.interrupts.load(Ordering::SeqCst) > 0
    }

    /// Starts nothing more. What waits for another try has failed, unless somebody stops the run who wants to go on.
    fn clear_queue(&mut self) {
        self.queue.clear();
        if self.is_interrupted() {
            return;
        }
        for (stage, retry) in std::mem::take(&mut self.retries) {
            if self.states[stage] == State::Queued {
                self.fail(stage, &retry.error);
            }
        }
    }

    fn ask_all_to_stop(&mut self) {
        for worker in self.workers.values_mut() {
            worker.ask_to_stop();
        }
    }

    fn enforce_timeouts(&mut self) {
        for (stage, worker) in &mut self.workers {
            if let Some(timeout) = self.pipeline.stages[*stage].timeout
                && let Some(started) = worker.started
                && started.elapsed().as_secs_f64() > timeout
            {
                worker.end(Ended::TimedOut(timeout));
            }
        }
    }

    fn emit(&mut self, event: RunEvent) {
        self.folder.log(&event);
        self.observer.event(&event);
    }
}

/// Keeps the store from being collected; waits while one is under way.
fn wait_for_collection(
    store: &Store,
    interrupts: &AtomicUsize,
    observer: &mut dyn Observer,
) -> Result<Lock, StageError> {
    let mut told = false;
    loop {
        match store.try_share()? {
            LockState::Held(lock) => return Ok(lock),
            LockState::Busy { holder } => {
                if !told {
                    observer.event(&RunEvent::RunWaiting { holder });
                    observer.pause();
                    told = true;
                }
            }
        }
        if interrupts.load(Ordering::SeqCst) > 0 {
            return Err(StageError::Interrupted);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
