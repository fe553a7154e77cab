//! A job, submitted or about to be.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::batch::{Ask, BatchFolder, Listener, Said};
use super::client::Fate;
use super::endings::{lost_as, words_for};
use super::queue::Queue;
use super::request::Request;
use super::stage::SharedStage;
use crate::engine::context::Importance;
use crate::engine::event::WorkerEvent;
use crate::engine::launch::Order;
use crate::files::last_bytes;

/// States in which a job is not begun yet, or will be once more.
const WAITING: [&str; 7] = [
    "PENDING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "SPECIAL_EXIT",
    "CONFIGURING",
    "RESV_DEL_HOLD",
];

/// How often a stage is submitted once more whose job the cluster lost.
const MOST_LOSSES: u32 = 5;

pub(super) struct Job {
    pub(super) folder: BatchFolder,
    listener: Listener,
    /// Its number, once that is known.
    pub(super) number: Option<String>,
    /// Whether the queue ever showed it, or took it.
    was_seen: bool,
    pub(super) orders: Vec<Order>,
    /// By their place in it; `None` where nobody here asked for the stage.
    pub(super) stages: Vec<Option<SharedStage>>,
    /// State and reason, as they were last told.
    shown: Option<(String, String)>,
    /// Whether its agent is at work, and where.
    pub(super) began: bool,
    host: String,
    pub(super) is_cancelled: bool,
    /// How often in a row the queue did not show it, and since when.
    missed: u32,
    missed_since: Instant,
    /// When submitting is tried, once more or for the first time.
    pub(super) submit_at: Option<Instant>,
    /// The version of the flowgraph on its node, if that is another.
    pub(super) other_version: Option<String>,
}

impl Job {
    pub(super) fn new(
        folder: BatchFolder,
        orders: Vec<Order>,
        stages: Vec<Option<SharedStage>>,
    ) -> Self {
        Self {
            listener: folder.listener(),
            folder,
            number: None,
            was_seen: false,
            orders,
            stages,
            shown: None,
            began: false,
            host: String::new(),
            is_cancelled: false,
            missed: 0,
            missed_since: Instant::now(),
            submit_at: None,
            other_version: None,
        }
    }

    /// The stages that are not over, with their places.
    pub(super) fn open(&self) -> impl Iterator<Item = (usize, &SharedStage)> {
        let stages = self.stages.iter().enumerate();
        let stages = stages.filter_map(|(at, stage)| Some((at, stage.as_ref()?)));
        stages.filter(|(_, stage)| !stage.borrow().is_over)
    }

    pub(super) fn is_over(&self) -> bool {
        self.open().next().is_none()
    }

    /// Whether all its stages are asked for here: others may want those that are not.
    pub(super) fn is_all_ours(&self) -> bool {
        self.stages.iter().all(Option::is_some)
    }

    /// Whether nobody waits for it any more, and it may go.
    pub(super) fn is_unwanted(&self) -> bool {
        self.is_all_ours() && self.open().all(|(_, stage)| stage.borrow().asked.is_some())
    }

    pub(super) fn request(&self) -> Request {
        let timeouts = self.orders.iter().map(|order| order.timeout);
        Request {
            resources: self.orders[0].resources.clone(),
            gpus: self.orders[0].gpus,
            limit: timeouts.sum(),
        }
    }

    /// Its name for people.
    pub(super) fn name(&self) -> String {
        let first = &self.orders[0].job.stage;
        match self.orders.len() {
            1 => format!("flowgraph:{first}"),
            several => format!("flowgraph:{first} and {} more", several - 1),
        }
    }

    /// The queue took it.
    pub(super) fn is_submitted(&mut self, number: String) {
        self.number = Some(number);
        self.was_seen = true;
        self.submit_at = None;
        self.missed = 0;
    }

    /// Nobody knows whether the queue took it: its comment tells, once there is an answer.
    pub(super) fn may_be_submitted(&mut self) {
        self.submit_at = None;
        self.missed = 0;
    }

    /// Ends its open stages, which were asked to stop or cannot begin.
    pub(super) fn end_unbegun(&self, said: &str) {
        for (_, stage) in self.open() {
            let interrupted = Some(WorkerEvent::Interrupted);
            stage.borrow_mut().end(interrupted, said);
        }
    }

    /// The queue would never begin it: one stage alone fails, several are tried each by itself.
    pub(super) fn cannot_begin(&mut self, why: &str) -> Vec<(Order, SharedStage)> {
        let mut again = Vec::new();
        for (place, stage) in self.open() {
            if self.stages.len() > 1 {
                stage.borrow_mut().is_alone = true;
                again.push((self.orders[place].clone(), Rc::clone(stage)));
            } else {
                stage.borrow_mut().fail(
                    why.to_owned(),
                    Some("`resources` and `timeout` of the stage and `cluster:` of the pipeline say what is asked for; `flowgraph check --executor slurm` what there is".to_owned()),
                );
            }
        }
        if !again.is_empty() {
            let _ = self.folder.ask(Ask::End, None);
            self.stages.fill(None);
        }
        self.submit_at = None;
        again
    }

    /// The cluster holds it for its own trouble, as after a failed prolog: its stages are tried once more elsewhere.
    pub(super) fn is_held(&mut self, reason: &str) -> Vec<(Order, SharedStage)> {
        let number = self.number.clone().unwrap_or_default();
        let mut again = Vec::new();
        for (place, shared) in self.open() {
            let mut stage = shared.borrow_mut();
            let text = format!("the cluster holds its job {number}: {reason}");
            if stage.losses >= MOST_LOSSES {
                stage.fail(text, Some("its operators may know why".to_owned()));
                continue;
            }
            stage.losses += 1;
            stage.begin_again();
            stage.note(
                Importance::Warning,
                format!("{text}; it is submitted again"),
            );
            again.push((self.orders[place].clone(), Rc::clone(shared)));
        }
        let _ = self.folder.ask(Ask::End, None);
        self.stages.fill(None);
        again
    }

    /// Hears from the beginning what was said, for a stage that is asked for only now.
    pub(super) fn hear_all(&mut self) {
        self.listener = self.folder.listener();
    }

    /// Takes in what the job says.
    pub(super) fn hear(&mut self) {
        let Ok(all) = self.listener.hear() else {
            return;
        };
        for said in all {
            let stage_at = |at: usize| {
                let stage = self.stages.get(at).and_then(Option::as_ref);
                stage.filter(|stage| !stage.borrow().is_over)
            };
            match said {
                Said::Began { host, flowgraph } => {
                    let own = env!("CARGO_PKG_VERSION");
                    self.other_version = Some(flowgraph).filter(|version| version != own);
                    self.began = true;
                    for (_, stage) in self.open() {
                        let mut stage = stage.borrow_mut();
                        // Begun once more: that it was interrupted was not the last word.
                        if stage.is_interrupted() {
                            stage.last = None;
                        }
                        stage.is_left = false;
                        stage.has_begun = false;
                    }
                    self.host = host;
                }
                Said::Event { at, event } => {
                    let Some(stage) = stage_at(at) else { continue };
                    let mut stage = stage.borrow_mut();
                    if !stage.has_begun {
                        stage.tell(WorkerEvent::Queued {
                            job: self.number.clone().unwrap_or_default(),
                            state: "RUNNING".to_owned(),
                            reason: self.host.clone(),
                        });
                    }
                    stage.hear(event);
                }
                Said::Ended { at, ending } => {
                    let Some(stage) = stage_at(at) else { continue };
                    let mut stage = stage.borrow_mut();
                    stage.ending = Some(ending);
                    // A job that the cluster stops may be begun once more.
                    if !stage.is_interrupted() || stage.asked.is_some() {
                        stage.end(None, "");
                    }
                }
                Said::Left { at } => {
                    let Some(stage) = stage_at(at) else { continue };
                    let mut stage = stage.borrow_mut();
                    if stage.asked.is_some() {
                        stage.end(Some(WorkerEvent::Interrupted), "not begun");
                    } else {
                        stage.is_left = true;
                    }
                }
            }
        }
    }

    /// The queue shows it; says whether it shows it elsewhere than before.
    pub(super) fn seen(&mut self, number: &str, state: &str, reason: &str) -> bool {
        self.missed = 0;
        self.was_seen = true;
        self.number = Some(number.to_owned());
        let shown = (state.to_owned(), reason.to_owned());
        if self.shown.as_ref() == Some(&shown) {
            return false;
        }
        if WAITING.contains(&state) {
            // Once more, if it was at work before.
            self.began = false;
            for (_, stage) in self.open() {
                stage.borrow().tell(WorkerEvent::Queued {
                    job: number.to_owned(),
                    state: state.to_owned(),
                    reason: reason.to_owned(),
                });
            }
        }
        self.shown = Some(shown);
        true
    }

    /// The queue does not show it: what it did not finish is over. Returns what begins again, and whether it is known to be
    /// gone.
    pub(super) fn missed(&mut self, queue: &mut dyn Queue) -> Vec<(Order, SharedStage)> {
        /// It may have said its last words just now.
        const TWICE: u32 = 2;
        /// Those of one that ended in peace may take as long as a network file system believes a file to be unchanged.
        const LAST_WORDS: Duration = Duration::from_mins(1);
        if self.missed == 0 {
            self.missed_since = Instant::now();
        }
        self.missed += 1;
        self.hear();
        if self.missed < TWICE || self.is_over() {
            return Vec::new();
        }
        let comment = self.folder.comment();
        let number = self.number.clone();
        let fate = number.as_ref().map(|job| queue.fate_of(job, &comment));
        let (state, code) = match fate.unwrap_or(Fate::Unknown) {
            Fate::Alive => return Vec::new(),
            Fate::Unknown => Default::default(),
            Fate::Ended(state, code) => (state, code),
        };
        let is_explained = |stage: &SharedStage| {
            let stage = stage.borrow();
            stage.last.is_some() || stage.is_left || stage.asked.is_some()
        };
        if state == "COMPLETED"
            && self.missed_since.elapsed() < LAST_WORDS
            && !self.open().all(|(_, stage)| is_explained(stage))
        {
            return Vec::new();
        }
        let number = number.map_or(String::new(), |job| format!(" {job}"));
        let output = last_bytes(&self.folder.output(), 2000).unwrap_or_default();
        let output = String::from_utf8_lossy(&output.0).into_owned();
        let others_begun = self.stages.iter().flatten();
        let others_begun = others_begun
            .filter(|stage| stage.borrow().has_begun)
            .count()
            > 0;
        let mut again = Vec::new();
        for (place, shared) in self.open() {
            let mut stage = shared.borrow_mut();
            let said = format!("its job{number} ended as {state}");
            let is_cancelled = state == "CANCELLED";
            if stage.asked.is_some() {
                let last = stage.last.take().unwrap_or(WorkerEvent::Interrupted);
                stage.end(Some(last), &said);
                continue;
            }
            if stage.last.is_some() && !stage.is_interrupted() {
                stage.end(None, &said);
                continue;
            }
            // Others of its job took all the time, or the cluster never had it.
            let is_unused = !stage.has_begun && (stage.is_left || others_begun) && !is_cancelled;
            let stopped_in_time = stage.is_interrupted() && matches!(&*state, "" | "COMPLETED");
            let lost = lost_as(&state).filter(|_| stage.losses < MOST_LOSSES && !stopped_in_time);
            if is_unused || !self.was_seen {
                stage.begin_again();
            } else if let Some(how) = lost {
                // Who is preempted has no fault, however often.
                stage.losses += u32::from(state != "PREEMPTED");
                stage.begin_again();
                let text = format!("its job{number} was lost ({how}) and is submitted again");
                stage.note(Importance::Warning, text);
            } else if stage.is_interrupted() && !is_cancelled {
                let why = match &*state {
                    // It stopped in time.
                    "" | "COMPLETED" => "its time was up, or its node was wanted for others",
                    state => state,
                };
                stage.fail(
                    format!("its job{number} was asked to stop by the cluster: {why}"),
                    Some("a higher `timeout` of the stage gives it more time; with `retries: N` it goes on from its checkpoint by itself".to_owned()),
                );
                continue;
            } else {
                let order = &self.orders[place];
                let (message, hint) = words_for(&number, &state, &code, &output, order);
                stage.fail(message, hint);
                continue;
            }
            again.push((self.orders[place].clone(), Rc::clone(shared)));
        }
        if !again.is_empty() {
            // What may still be at work there, or be submitted in the end, is wanted by nobody.
            let _ = self.folder.ask(Ask::End, None);
            if !state.is_empty() {
                self.folder.remove();
            }
            self.stages.fill(None);
        }
        again
    }
}
