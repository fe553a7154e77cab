//! The shared store in a run: what is not here is looked for there, and what was made here is sent there.
//!
//! Some threads ask and send, so that all stages that are ready are asked for at once and none waits for a transfer of
//! another; what they find is heard by the executor's loop like what workers say.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::state::{State, Step};
use super::{Execution, TURN};
use crate::engine::artifact::Digest;
use crate::engine::context::{Importance, Progress};
use crate::engine::event::RunEvent;
use crate::engine::plan::{Decision, StagePlan};
use crate::engine::store::{
    AT_ONCE, BucketError, Found, Provenance, Record, Remote, RemoteError, Sent, Store, Wanted,
    made_by,
};

/// What is heard of the shared store about a stage.
enum Shared {
    /// How far a transfer is.
    Progress(Progress),
    /// It was looked for.
    Asked(Result<Option<Box<Provenance>>, String>),
    /// Its result was sent.
    Sent(Result<Sent, String>),
}

enum Task {
    Find {
        stage: usize,
        fingerprint: Digest,
        wanted: Wanted,
    },
    Send {
        stage: usize,
        record: Box<Record>,
    },
}

/// The part of a run that has to do with a shared store.
pub(super) struct Sharing {
    remote: Arc<Remote>,
    tasks: Sender<Task>,
    answers: Receiver<(usize, Shared)>,
    /// For which fingerprint a stage was asked for: none is twice.
    asked: Vec<Option<Digest>>,
    /// Who made the results that came from there, as people read it.
    origins: Vec<Option<String>>,
    /// Stages that are being looked for, and results that are being sent.
    asking: usize,
    sending: usize,
    /// Results that were not sent though they should have been.
    unsent: usize,
    reach: Arc<Reach>,
    /// What was said once, and how many were left to send when that was said.
    told_of_reach: bool,
    told_of_order: bool,
    told_of_sending: usize,
}

/// Whether the shared store answers.
#[derive(Default)]
struct Reach {
    has_answered: AtomicBool,
    /// How often in a row it did not.
    failures: AtomicUsize,
    is_away: AtomicBool,
    /// Whether it takes nothing.
    refuses: AtomicBool,
}

/// After so many failures in a row no more is asked of it.
const PATIENCE: usize = 3;

impl Reach {
    fn note<T>(&self, answer: &Result<T, RemoteError>) {
        match answer {
            // It was not asked.
            Err(RemoteError::Bucket(BucketError::Here(_))) => {}
            Err(error) if error.is_about_reach() => {
                let failures = self.failures.fetch_add(1, Ordering::SeqCst) + 1;
                let patience = if self.has_answered.load(Ordering::SeqCst) {
                    PATIENCE
                } else {
                    1
                };
                if failures >= patience {
                    self.is_away.store(true, Ordering::SeqCst);
                }
            }
            _ => {
                self.has_answered.store(true, Ordering::SeqCst);
                self.failures.store(0, Ordering::SeqCst);
            }
        }
    }

    fn is_away(&self) -> bool {
        self.is_away.load(Ordering::SeqCst)
    }
}

const AWAY: &str = "the shared store does not answer";

impl Sharing {
    /// Starts the threads.
    pub(super) fn new(remote: Arc<Remote>, store: &Store, stages: usize) -> std::io::Result<Self> {
        let (tasks, open) = channel();
        let (sender, answers) = channel();
        let open = Arc::new(Mutex::new(open));
        let reach = Arc::<Reach>::default();
        for _ in 0..AT_ONCE {
            let hand = Hand {
                remote: Arc::clone(&remote),
                store: store.clone(),
                answers: sender.clone(),
                reach: Arc::clone(&reach),
            };
            let open = Arc::clone(&open);
            std::thread::Builder::new().spawn(move || hand.work(&open))?;
        }
        Ok(Self {
            remote,
            tasks,
            answers,
            asked: vec![None; stages],
            origins: vec![None; stages],
            asking: 0,
            sending: 0,
            unsent: 0,
            reach,
            told_of_reach: false,
            told_of_order: false,
            told_of_sending: 0,
        })
    }

    /// How many results were not sent.
    pub(super) fn unsent(&self) -> usize {
        self.unsent + self.sending
    }
}

/// One of the threads.
struct Hand {
    remote: Arc<Remote>,
    store: Store,
    answers: Sender<(usize, Shared)>,
    reach: Arc<Reach>,
}

/// The loop waits for an answer to each task: a bug is one, too.
fn unless_panicked<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err("BUG: its transfer panicked".to_owned()))
}

impl Hand {
    fn work(&self, open: &Mutex<Receiver<Task>>) {
        loop {
            let task = open.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(task) = task else {
                return;
            };
            let (stage, shared) = match task {
                Task::Find {
                    stage,
                    fingerprint,
                    wanted,
                } => {
                    let found = unless_panicked(|| self.find(stage, &fingerprint, &wanted));
                    (stage, Shared::Asked(found))
                }
                Task::Send { stage, record } => {
                    let sent = unless_panicked(|| self.send(stage, &record));
                    (stage, Shared::Sent(sent))
                }
            };
            // Who does not listen any more has ended.
            let _ = self.answers.send((stage, shared));
        }
    }

    fn find(
        &self,
        stage: usize,
        fingerprint: &Digest,
        wanted: &Wanted,
    ) -> Result<Option<Box<Provenance>>, String> {
        if self.reach.is_away() {
            return Err(AWAY.to_owned());
        }
        let tell = &mut |done, total| self.tell(stage, done, total);
        let found = self.remote.fetch(&self.store, fingerprint, wanted, tell);
        self.reach.note(&found);
        match found {
            Ok(Found::Nothing) => Ok(None),
            Ok(Found::Result(made)) => Ok(Some(made)),
            Err(error) => Err(self.remote.said(&error)),
        }
    }

    fn send(&self, stage: usize, record: &Record) -> Result<Sent, String> {
        if self.reach.is_away() || self.reach.refuses.load(Ordering::SeqCst) {
            return Err(AWAY.to_owned());
        }
        let tell = &mut |done, total| self.tell(stage, done, total);
        let sent = self.remote.send(&self.store, record, None, tell);
        match &sent {
            // It may be read all the same.
            Err(error) if error.is_refusal() => self.reach.refuses.store(true, Ordering::SeqCst),
            sent => self.reach.note(sent),
        }
        sent.map_err(|error| self.remote.said(&error))
    }

    fn tell(&self, stage: usize, done: u64, total: u64) {
        /// What takes no time needs no bar.
        const MANY: u64 = 32 << 20;
        if total < MANY {
            return;
        }
        let progress = Progress {
            step: done,
            total,
            unit: "bytes".to_owned(),
            ..Progress::default()
        };
        let _ = self.answers.send((stage, Shared::Progress(progress)));
    }
}

impl Execution<'_> {
    /// Looks for the result of a stage that would run in the shared store, if that may have it; says whether it does.
    pub(super) fn asks_for(&mut self, stage: usize, plan: &StagePlan) -> bool {
        let Some(sharing) = &mut self.sharing else {
            return false;
        };
        let Some(fingerprint) = plan.fingerprint else {
            return false;
        };
        if plan.decision != Decision::Run
            || self.planner.is_forced(stage)
            || sharing.asked[stage] == Some(fingerprint)
            || sharing.reach.is_away()
        {
            return false;
        }
        let task = Task::Find {
            stage,
            fingerprint,
            wanted: self.planner.wanted(stage),
        };
        if sharing.tasks.send(task).is_err() {
            return false;
        }
        sharing.asked[stage] = Some(fingerprint);
        sharing.asking += 1;
        true
    }

    /// Where the result of a stage came from, if that was the shared store.
    pub(super) fn origin(&mut self, stage: usize) -> Option<String> {
        self.sharing.as_mut()?.origins[stage].take()
    }

    /// Sends the result of a stage that ran here.
    pub(super) fn send_result(&mut self, stage: usize, record: &Record) {
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        if sharing.remote.is_read_only() {
            return;
        }
        let task = Task::Send {
            stage,
            record: Box::new(record.clone()),
        };
        match sharing.tasks.send(task) {
            Ok(()) => sharing.sending += 1,
            Err(_) => sharing.unsent += 1,
        }
    }

    /// Hears what is to be heard of the shared store; waits for it where no worker can say anything meanwhile.
    pub(super) fn hear_of_shared(&mut self) {
        let is_idle = self.workers.is_empty();
        let Some(sharing) = &self.sharing else {
            return;
        };
        let wait = |()| sharing.answers.recv_timeout(TURN).ok();
        let first = is_idle.then_some(()).and_then(wait);
        let all: Vec<(usize, Shared)> = first
            .into_iter()
            .chain(sharing.answers.try_iter())
            .collect();
        for (stage, shared) in all {
            self.shared(stage, shared);
        }
    }

    fn shared(&mut self, stage: usize, shared: Shared) {
        match shared {
            Shared::Progress(progress) => self.emit(RunEvent::StageProgress {
                stage: self.pipeline.stages[stage].name.clone(),
                progress,
            }),
            Shared::Asked(answer) => self.was_asked_for(stage, answer),
            Shared::Sent(sent) => self.was_sent(stage, sent),
        }
    }

    fn was_asked_for(&mut self, stage: usize, answer: Result<Option<Box<Provenance>>, String>) {
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        sharing.asking -= 1;
        let address = sharing.remote.address().to_owned();
        // It may have been given up meanwhile.
        if self.states[stage] != State::Asked {
            return;
        }
        match answer {
            Ok(None) => self.step(stage, Step::Queue),
            Ok(Some(made)) => {
                sharing.origins[stage] = Some(format!("from {address}: {}", made_by(&made)));
                self.step(stage, Step::Reconsider);
                self.decide_if_ready(stage);
            }
            Err(message) => {
                self.step(stage, Step::Queue);
                if !self.stopping {
                    self.tell_of_shared(stage, &message);
                }
            }
        }
    }

    fn was_sent(&mut self, stage: usize, sent: Result<Sent, String>) {
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        sharing.sending -= 1;
        let name = self.pipeline.stages[stage].name.clone();
        match sent {
            Ok(Sent::First | Sent::Same) => self.emit(RunEvent::StageSent { stage: name }),
            Ok(Sent::Other(made)) => {
                let text = format!(
                    "gave other bytes than the result in {}, {}, which stays there: it is not reproducible",
                    sharing.remote.address(),
                    made_by(&made)
                );
                self.warn(stage, text);
            }
            Err(message) => {
                sharing.unsent += 1;
                self.tell_of_shared(stage, &message);
            }
        }
        self.tell_of_order(stage);
    }

    /// Says what is wrong with the shared store; that it does not answer, once.
    fn tell_of_shared(&mut self, stage: usize, message: &str) {
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        let address = sharing.remote.address().to_owned();
        let refuses = sharing.reach.refuses.load(Ordering::SeqCst);
        let text = if sharing.reach.is_away() || refuses {
            if std::mem::replace(&mut sharing.told_of_reach, true) || message == AWAY {
                return;
            }
            let (how, what) = if refuses {
                ("takes nothing", "results stay here")
            } else {
                ("does not answer", "all is computed here")
            };
            format!(
                "warning: the shared store {address} {how}, and {what}; `flowgraph push` sends it later: {message}"
            )
        } else {
            format!("warning: shared store {address}: {message}")
        };
        self.warn(stage, text);
    }

    /// Says once that the shared store lets a later result overwrite an earlier one.
    fn tell_of_order(&mut self, stage: usize) {
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        if sharing.remote.is_last_winning() && !std::mem::replace(&mut sharing.told_of_order, true)
        {
            let text = format!(
                "warning: {} overwrites what is there though it is asked not to: of two results at once the last one stays",
                sharing.remote.address()
            );
            self.warn(stage, text);
        }
    }

    fn tell_of_sending(&mut self) {
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        let results = sharing.sending;
        if std::mem::replace(&mut sharing.told_of_sending, results) != results {
            let address = sharing.remote.address().to_owned();
            self.emit(RunEvent::Sending { results, address });
        }
    }

    fn warn(&mut self, stage: usize, text: String) {
        self.emit(RunEvent::StageNote {
            stage: self.pipeline.stages[stage].name.clone(),
            importance: Importance::Warning,
            text,
        });
    }

    /// Whether there is something to wait for that has to do with the shared store.
    pub(super) fn waits_for_shared(&mut self) -> bool {
        let Some(sharing) = &self.sharing else {
            return false;
        };
        let sending = sharing.sending;
        let is_interrupted = self.options.interrupts.load(Ordering::SeqCst) > 0;
        let waits = sharing.asking > 0 && !self.stopping || sending > 0 && !is_interrupted;
        if sending > 0 && waits && self.workers.is_empty() && self.queue.is_empty() {
            self.tell_of_sending();
        }
        waits
    }

    /// Leaves stages as they are that are being looked for: the run is to stop.
    pub(super) fn give_up_asking(&mut self) {
        for stage in 0..self.states.len() {
            if self.states[stage] == State::Asked {
                self.step(stage, Step::Reconsider);
            }
        }
    }
}
