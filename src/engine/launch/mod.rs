//! Where the workers of stages run: processes of this machine, or jobs of a cluster.
//!
//! The executor's loop is one for all of them. It hands over an [`Order`], hears what the worker says as [`Message`]s, and
//! may ask it to stop or end it.

mod local;
pub mod slurm;

use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::sync::mpsc::Sender;

use serde::{Deserialize, Serialize};

pub use local::Local;
pub use slurm::{ClusterSettings, Slurm, run_agent};

use super::event::WorkerEvent;
use super::stage::{Resources, StageError};
use super::worker::Job;

/// A stage that is to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// What the worker is told.
    pub job: Job,
    /// The folder of its run.
    pub run: PathBuf,
    /// Where what it prints goes.
    pub log: PathBuf,
    /// The variables whose values appear in no log and no message.
    pub secrets: Vec<String>,
    /// What it needs.
    pub resources: Resources,
    /// How many GPUs it is to be given, as far as its kind can use them.
    pub gpus: usize,
    /// Seconds after which it is ended.
    pub timeout: Option<f64>,
    /// Seconds that it took the last time, or a stage like it.
    pub estimate: Option<f64>,
}

/// What is heard of a worker, by the number that its order was given.
pub type Sayings = Sender<(usize, Message)>;

/// What is heard of a worker.
#[derive(Debug)]
pub enum Message {
    /// It says something.
    Event(WorkerEvent),
    /// It says no more.
    Ended,
}

/// Starts workers.
pub trait Launcher {
    /// Starts the worker of an order; what it says comes with the number `tag`, and [`Message::Ended`] comes last.
    fn launch(
        &mut self,
        tag: usize,
        order: Order,
        sayings: &Sayings,
    ) -> Result<Box<dyn Worker>, StageError>;

    /// Is called after each round of the executor's loop, some twenty times a second.
    fn turn(&mut self) {}
}

/// A worker that was started.
pub trait Worker {
    /// Asks the stage to checkpoint and stop.
    fn ask_to_stop(&mut self);

    /// Ends the stage at once. May be called again: a worker that does not end by itself is killed.
    fn end(&mut self);

    /// Waits for the end of one that says no more.
    fn wait(&mut self) -> Ending;
}

/// How a worker's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// In words.
    pub said: String,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl From<std::io::Result<std::process::ExitStatus>> for Ending {
    fn from(status: std::io::Result<std::process::ExitStatus>) -> Self {
        match status {
            Ok(status) => Self {
                said: status.to_string(),
                signal: status.signal(),
            },
            Err(error) => Self {
                said: error.to_string(),
                signal: None,
            },
        }
    }
}
