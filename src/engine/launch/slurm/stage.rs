//! A stage of a job, as its executor knows it.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use super::batch::Ask;
use super::cluster::Cluster;
use crate::engine::context::Importance;
use crate::engine::event::WorkerEvent;
use crate::engine::launch::{Ending, Message, Sayings, Worker};

pub(super) struct StageOfJob {
    tag: usize,
    sayings: Sayings,
    /// What was said last of how it went; told on once it is known to be the last word.
    pub(super) last: Option<WorkerEvent>,
    pub(super) ending: Option<Ending>,
    /// What it was asked from here, and when.
    pub(super) asked: Option<(Ask, Instant)>,
    /// How often the cluster lost its job.
    pub(super) losses: u32,
    /// Whether its worker said anything.
    pub(super) has_begun: bool,
    /// Whether its job ended before it came to it.
    pub(super) is_left: bool,
    /// Whether it is to have a job of its own.
    pub(super) is_alone: bool,
    pub(super) is_over: bool,
}

pub(super) type SharedStage = Rc<RefCell<StageOfJob>>;

impl StageOfJob {
    pub(super) fn new(tag: usize, sayings: &Sayings) -> Self {
        Self {
            tag,
            sayings: sayings.clone(),
            last: None,
            ending: None,
            asked: None,
            losses: 0,
            has_begun: false,
            is_left: false,
            is_alone: false,
            is_over: false,
        }
    }

    pub(super) fn tell(&self, event: WorkerEvent) {
        let _ = self.sayings.send((self.tag, Message::Event(event)));
    }

    pub(super) fn note(&self, importance: Importance, text: String) {
        self.tell(WorkerEvent::Note { importance, text });
    }

    /// What its worker says, through the agent of its job.
    pub(super) fn hear(&mut self, event: WorkerEvent) {
        self.has_begun = true;
        if event.is_last() {
            self.last = Some(event);
        } else {
            self.tell(event);
        }
    }

    /// Tells its executor that it is over, with its last word or that of its worker.
    pub(super) fn end(&mut self, last: Option<WorkerEvent>, said: &str) {
        if self.is_over {
            return;
        }
        self.is_over = true;
        self.ending.get_or_insert_with(|| Ending {
            said: said.to_owned(),
            signal: None,
        });
        if let Some(last) = last.or_else(|| self.last.take()) {
            self.tell(last);
        }
        let _ = self.sayings.send((self.tag, Message::Ended));
    }

    pub(super) fn fail(&mut self, message: String, hint: Option<String>) {
        self.end(Some(WorkerEvent::Failed { message, hint }), "failed");
    }

    pub(super) fn is_interrupted(&self) -> bool {
        matches!(self.last, Some(WorkerEvent::Interrupted))
    }

    /// Makes it ready for another job.
    pub(super) fn begin_again(&mut self) {
        self.last = None;
        self.has_begun = false;
        self.is_left = false;
    }
}

/// What the executor holds of a stage.
pub(super) struct Handle {
    pub(super) cluster: Rc<RefCell<Cluster>>,
    pub(super) stage: SharedStage,
}

impl Handle {
    fn ask(&self, ask: Ask) {
        let known = self.stage.borrow().asked.map(|(ask, _)| ask);
        if known == Some(ask) || known == Some(Ask::End) {
            return;
        }
        self.stage.borrow_mut().asked = Some((ask, Instant::now()));
        self.cluster.borrow_mut().ask(&self.stage, ask);
    }
}

impl Worker for Handle {
    fn ask_to_stop(&mut self) {
        self.ask(Ask::Stop);
    }

    fn end(&mut self) {
        self.ask(Ask::End);
    }

    fn wait(&mut self) -> Ending {
        let ending = self.stage.borrow().ending.clone();
        ending.unwrap_or(Ending {
            said: "its job ended".to_owned(),
            signal: None,
        })
    }
}
