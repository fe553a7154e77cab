//! The shared store in a run: what is not here is looked for there, and what was made here is sent there.
//!
//! Some threads ask and others send, so that all stages that are ready are asked for at once, and no question waits for what
//! is sent; what they find is heard by the executor's loop like what workers say.

mod reach;
#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::state::{State, Step};
use super::{Execution, TURN};
use crate::engine::artifact::Digest;
use crate::engine::context::{Importance, Progress};
use crate::engine::event::RunEvent;
use crate::engine::plan::{Decision, StagePlan};
use crate::engine::store::{
    AT_ONCE, Found, Provenance, Record, Remote, Sent, Store, Wanted, made_by,
};
use reach::{Reach, Trouble};

/// Results that are sent at once.
const SENDING_AT_ONCE: usize = 8;

/// What takes no longer needs no word.
const A_MOMENT: Duration = Duration::from_secs(1);

/// A stage whose result is looked for.
struct Question {
    stage: usize,
    fingerprint: Digest,
    wanted: Wanted,
}

/// A result that is to be sent.
struct Parcel {
    stage: usize,
    record: Box<Record>,
}

/// What is heard of the shared store about a stage.
enum Heard {
    /// How far a transfer is.
    Progress(Progress),
    /// The result of a fingerprint was looked for; how it was made, if it was there.
    Asked(Digest, Result<Option<Box<Provenance>>, Trouble>),
    /// A result was sent.
    Sent(Result<Sent, Trouble>),
}

/// The part of a run that has to do with a shared store.
pub(super) struct Sharing {
    remote: Arc<Remote>,
    questions: Sender<Question>,
    parcels: Sender<Parcel>,
    heard: Receiver<(usize, Heard)>,
    /// For which fingerprint a stage was asked for: none is twice.
    asked: Vec<Option<Digest>>,
    /// Who made the results that came from there, as people read it.
    origins: Vec<Option<String>>,
    /// Questions without an answer, and results that are on their way.
    asking: usize,
    sending: usize,
    /// Results that were not sent though they should have been.
    unsent: usize,
    reach: Arc<Reach>,
    /// Stages of whose transfers was told.
    shown: Vec<bool>,
    /// Whether it was said that the last writer wins, and how many were left to send when that was said.
    told_of_order: bool,
    told_of_sending: usize,
    /// Since when nothing else is left to do than to send results.
    sends_since: Option<Instant>,
    /// When something came, went or was answered last, or when it was said that nothing does.
    heard_at: Instant,
    pieces: Arc<AtomicUsize>,
    pieces_before: usize,
}

impl Sharing {
    /// Starts the threads.
    pub(super) fn new(remote: Arc<Remote>, store: &Store, stages: usize) -> std::io::Result<Self> {
        let (sender, heard) = channel();
        let hand = Hand {
            remote: Arc::clone(&remote),
            store: store.clone(),
            heard: sender,
            reach: Arc::default(),
            pieces: Arc::default(),
        };
        Ok(Self {
            questions: hand.begin(AT_ONCE, Hand::answer)?,
            parcels: hand.begin(SENDING_AT_ONCE, Hand::deliver)?,
            remote,
            heard,
            asked: vec![None; stages],
            origins: vec![None; stages],
            asking: 0,
            sending: 0,
            unsent: 0,
            reach: hand.reach,
            pieces: hand.pieces,
            pieces_before: 0,
            shown: vec![false; stages],
            told_of_order: false,
            told_of_sending: 0,
            heard_at: Instant::now(),
            sends_since: None,
        })
    }

    /// How many results were not sent.
    pub(super) fn unsent(&self) -> usize {
        self.unsent + self.sending
    }
}

/// What a thread works with.
#[derive(Clone)]
struct Hand {
    remote: Arc<Remote>,
    store: Store,
    heard: Sender<(usize, Heard)>,
    reach: Arc<Reach>,
    /// Counts what comes and goes, however little.
    pieces: Arc<AtomicUsize>,
}

impl Hand {
    /// Starts threads that do what comes through the channel, each at its own.
    fn begin<T: Send + 'static>(
        &self,
        threads: usize,
        work: fn(&Self, T) -> (usize, Heard),
    ) -> std::io::Result<Sender<T>> {
        let (tasks, open) = channel();
        let open: Arc<Mutex<Receiver<T>>> = Arc::new(Mutex::new(open));
        for _ in 0..threads {
            let (hand, open) = (self.clone(), Arc::clone(&open));
            std::thread::Builder::new().spawn(move || {
                loop {
                    let task = open.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(task) = task else {
                        return;
                    };
                    // Who does not listen any more has ended.
                    let _ = hand.heard.send(work(&hand, task));
                }
            })?;
        }
        Ok(tasks)
    }

    fn answer(&self, question: Question) -> (usize, Heard) {
        let Question {
            stage,
            fingerprint,
            wanted,
        } = question;
        let found = unless_panicked(|| {
            if self.reach.is_away() {
                return Err(Trouble::NotAsked);
            }
            let (began, tell) = (Instant::now(), self.teller(stage));
            let found = (self.remote).fetch(&self.store, &fingerprint, &wanted, &tell);
            match self.noted(began, false, found)? {
                Found::Nothing => Ok(None),
                Found::Result(made) => Ok(Some(made)),
            }
        });
        (stage, Heard::Asked(fingerprint, found))
    }

    fn deliver(&self, parcel: Parcel) -> (usize, Heard) {
        let Parcel { stage, record } = parcel;
        let sent = unless_panicked(|| {
            if !self.reach.may_send() {
                return Err(Trouble::NotAsked);
            }
            let (began, tell) = (Instant::now(), self.teller(stage));
            let sent = self.remote.send(&self.store, &record, None, &tell);
            self.noted(began, true, sent)
        });
        (stage, Heard::Sent(sent))
    }

    fn noted<T>(
        &self,
        began: Instant,
        is_sent: bool,
        answer: Result<T, crate::engine::store::RemoteError>,
    ) -> Result<T, Trouble> {
        if answer.is_err() && self.store.go_on().is_err() {
            return Err(Trouble::Stopped);
        }
        self.reach
            .noted(began, is_sent, answer, |error| self.remote.said(error))
    }

    /// Tells of the bytes of a transfer, if they are so many that people wonder.
    fn teller(&self, stage: usize) -> impl Fn(u64, u64) + Sync {
        const MANY: u64 = 32 << 20;
        let (heard, pieces) = (self.heard.clone(), Arc::clone(&self.pieces));
        move |done, total| {
            pieces.fetch_add(1, Ordering::Relaxed);
            if total >= MANY {
                let progress = Progress {
                    step: done,
                    total,
                    unit: "bytes".to_owned(),
                    ..Progress::default()
                };
                let _ = heard.send((stage, Heard::Progress(progress)));
            }
        }
    }
}

/// The loop waits for an answer to each task: a bug is one, too.
fn unless_panicked<T>(work: impl FnOnce() -> Result<T, Trouble>) -> Result<T, Trouble> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(Trouble::This("BUG: its transfer panicked".to_owned())))
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
        let question = Question {
            stage,
            fingerprint,
            wanted: self.planner.wanted(stage),
        };
        if sharing.questions.send(question).is_err() {
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
        if !sharing.reach.may_send() {
            sharing.unsent += 1;
            return;
        }
        let parcel = Parcel {
            stage,
            record: Box::new(record.clone()),
        };
        match sharing.parcels.send(parcel) {
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
        let wait = |()| sharing.heard.recv_timeout(TURN).ok();
        let first = is_idle.then_some(()).and_then(wait);
        let all: Vec<(usize, Heard)> = first.into_iter().chain(sharing.heard.try_iter()).collect();
        self.tell_of_silence(!all.is_empty());
        for (stage, heard) in all {
            match heard {
                Heard::Progress(progress) => self.transfers(stage, Some(progress)),
                Heard::Asked(fingerprint, answer) => {
                    self.transfers(stage, None);
                    self.was_asked_for(stage, fingerprint, answer);
                }
                Heard::Sent(sent) => {
                    self.transfers(stage, None);
                    self.was_sent(stage, sent);
                }
            }
        }
    }

    /// Tells how far a transfer is, or that one is over of which was told.
    fn transfers(&mut self, stage: usize, progress: Option<Progress>) {
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        let before = std::mem::replace(&mut sharing.shown[stage], progress.is_some());
        if before || progress.is_some() {
            let stage = self.pipeline.stages[stage].name.clone();
            self.emit(RunEvent::StageTransfer { stage, progress });
        }
    }

    fn was_asked_for(
        &mut self,
        stage: usize,
        fingerprint: Digest,
        answer: Result<Option<Box<Provenance>>, Trouble>,
    ) {
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        sharing.asking -= 1;
        // It may have been given up meanwhile, or be asked for with other inputs by now.
        if self.states[stage] != State::Asked || sharing.asked[stage] != Some(fingerprint) {
            return;
        }
        match answer {
            Ok(None) => self.step(stage, Step::Queue),
            Ok(Some(made)) => {
                let origin = format!("from {}: {}", sharing.remote.address(), made_by(&made));
                sharing.origins[stage] = Some(origin);
                self.step(stage, Step::Reconsider);
                self.decide_if_ready(stage);
            }
            Err(trouble) => {
                self.step(stage, Step::Queue);
                self.tell_of(stage, trouble);
            }
        }
    }

    fn was_sent(&mut self, stage: usize, sent: Result<Sent, Trouble>) {
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        sharing.sending -= 1;
        let address = sharing.remote.address().to_owned();
        match sent {
            Ok(Sent::First | Sent::Same) => {
                let stage = self.pipeline.stages[stage].name.clone();
                self.emit(RunEvent::StageSent { stage });
            }
            Ok(Sent::Other(made)) => {
                let text = format!(
                    "gave other bytes than the result in {address}, {}, which stays there: it is not reproducible",
                    made_by(&made)
                );
                self.warn(stage, text);
            }
            Ok(Sent::Instead(made)) => {
                let text = format!(
                    "warning: took the place of the result in {address}, {}, whose bytes are damaged there",
                    made_by(&made)
                );
                self.warn(stage, text);
            }
            Err(trouble) => {
                sharing.unsent += 1;
                self.tell_of(stage, trouble);
            }
        }
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        let is_new = !sharing.told_of_order && sharing.remote.is_last_winning();
        if is_new {
            sharing.told_of_order = true;
            let text = format!(
                "warning: {address} overwrites what is there though it is asked not to: of two results at once the last one stays"
            );
            self.warn(stage, text);
        }
    }

    /// Says what is wrong with the shared store.
    fn tell_of(&mut self, stage: usize, trouble: Trouble) {
        let Some(sharing) = &self.sharing else {
            return;
        };
        let address = sharing.remote.address();
        let text = match trouble {
            Trouble::NotAsked | Trouble::Stopped => return,
            Trouble::Away(why) => format!(
                "warning: the shared store {address} cannot be used now, and all is computed here for some minutes; \
                 `flowgraph push` sends it later: {why}"
            ),
            Trouble::TakesNothing(why) => format!(
                "warning: the shared store {address} takes nothing; `flowgraph push` sends it later: {why}"
            ),
            Trouble::This(why) => format!("warning: shared store {address}: {why}"),
        };
        self.warn(stage, text);
    }

    /// Says from time to time that an answer is waited for, where nothing else goes on.
    fn tell_of_silence(&mut self, is_heard: bool) {
        const LONG: Duration = Duration::from_secs(10);
        let is_idle = self.workers.is_empty();
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        let pieces = sharing.pieces.load(Ordering::Relaxed);
        let moves = std::mem::replace(&mut sharing.pieces_before, pieces) != pieces;
        if is_heard || moves || !is_idle || sharing.asking + sharing.sending == 0 {
            sharing.heard_at = Instant::now();
        } else if sharing.heard_at.elapsed() > LONG {
            sharing.heard_at = Instant::now();
            let holder = format!("an answer of {}", sharing.remote.address());
            self.emit(RunEvent::RunWaiting { holder });
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
        let is_interrupted = self.is_interrupted();
        let Some(sharing) = &mut self.sharing else {
            return false;
        };
        let sends = sharing.sending > 0 && !is_interrupted;
        let asks = self.states.contains(&State::Asked);
        let is_all = sends && !asks && self.workers.is_empty() && self.queue.is_empty();
        if !is_all {
            sharing.sends_since = None;
        } else if sharing
            .sends_since
            .get_or_insert_with(Instant::now)
            .elapsed()
            > A_MOMENT
        {
            self.tell_of_sending();
        }
        sends || asks
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
