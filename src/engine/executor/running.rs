//! A stage that is under way, as the loop sees it.

use std::time::Instant;

use super::resources::Grant;
use crate::engine::event::WorkerEvent;
use crate::engine::launch::{Ending, Worker};

/// Why a worker was ended from here.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ended {
    /// It took longer than this many seconds.
    TimedOut(f64),
    /// The run was asked to end at once.
    AtOnce,
}

pub(super) struct Running {
    worker: Box<dyn Worker>,
    pub(super) grant: Grant,
    /// When it had its lock and began; `None` while it waits.
    pub(super) started: Option<Instant>,
    /// What the worker said last of how it went.
    pub(super) last: Option<WorkerEvent>,
    ended: Option<Ended>,
}

impl Running {
    pub(super) fn new(worker: Box<dyn Worker>, grant: Grant) -> Self {
        Self {
            worker,
            grant,
            started: None,
            last: None,
            ended: None,
        }
    }

    pub(super) fn ask_to_stop(&mut self) {
        self.worker.ask_to_stop();
    }

    /// Ends the stage at once; the first reason counts.
    pub(super) fn end(&mut self, why: Ended) {
        self.ended.get_or_insert(why);
        self.worker.end();
    }

    /// Why it was ended from here, if it was.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended
    }

    pub(super) fn wait(&mut self) -> Ending {
        self.worker.wait()
    }
}
