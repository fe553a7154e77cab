//! Workers as jobs of a Slurm cluster.
//!
//! Approach: an order waits here until there is room in the queue, and becomes a job, several short ones together. The job's
//! agent writes what its workers say to a file on the shared disk, where it is heard; the queue is asked every few seconds,
//! and only for what it alone can know: where a job waits, and that it is gone. A job's number is never trusted: it is found
//! by its comment, and whoever works on a fingerprint holds its lock, wherever the cluster believes it to be.

mod agent;
mod batch;
mod client;
mod cluster;
mod endings;
mod job;
mod queue;
mod request;
mod settings;
mod stage;
mod submitter;

use std::cell::RefCell;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

pub use agent::run as run_agent;
pub use client::ClusterError;
pub use queue::cores_of_allocation;
pub use request::{Partition, Request, partitions};
pub use settings::ClusterSettings;
pub use submitter::{
    DETACHED, cancel_jobs, cancel_waiting, detach, interrupt, state_in_queue, waiting_runs,
};

use self::cluster::Cluster;
use self::queue::{Allocation, Queue, Sbatch};
use self::stage::{Handle, StageOfJob};
use super::{Launcher, Order, Sayings, Worker};
use crate::engine::processes::answer_of;
use crate::engine::stage::StageError;
use crate::engine::store::Store;
use crate::engine::worker::Task;

/// Starts workers as jobs of a Slurm cluster.
pub struct Slurm {
    cluster: Rc<RefCell<Cluster>>,
}

impl Slurm {
    /// Describes the cluster that `sbatch` submits to; at most `jobs` jobs are in its queue at a time.
    ///
    /// # Errors
    /// If there is no such cluster, or it does not answer.
    pub fn new(settings: ClusterSettings, jobs: usize, store: &Store) -> Result<Self, StageError> {
        let mut queue = Sbatch;
        settings.check()?;
        check_version(&settings)?;
        let listed = queue.list().map_err(|error| {
            let hint = match &error {
                ClusterError::Missing(..) => {
                    "`--executor slurm` is for a machine where `sbatch` and `squeue` work"
                }
                _ => "does `squeue --me` answer here?",
            };
            StageError::new(error.to_string()).hint(hint)
        })?;
        let mut cluster = Cluster::new(Box::new(queue), settings, jobs, store)?;
        cluster.find_living(&listed);
        Ok(Self::of(cluster))
    }

    /// Describes the allocation that this process has; at most `jobs` steps of it are started at a time.
    ///
    /// # Errors
    /// If nobody knows where this program lies.
    pub fn in_allocation(
        settings: ClusterSettings,
        jobs: usize,
        store: &Store,
    ) -> Result<Self, StageError> {
        let queue = Box::new(Allocation::default());
        Ok(Self::of(Cluster::new(queue, settings, jobs, store)?))
    }

    fn of(cluster: Cluster) -> Self {
        Self {
            cluster: Rc::new(RefCell::new(cluster)),
        }
    }
}

impl Launcher for Slurm {
    fn launch(
        &mut self,
        tag: usize,
        order: Order,
        sayings: &Sayings,
    ) -> Result<Box<dyn Worker>, StageError> {
        let mut cluster = self.cluster.borrow_mut();
        // What is fetched comes from outside, which nodes of clusters seldom reach.
        if matches!(order.job.task, Task::Fetch) {
            return cluster.local.launch(tag, order, sayings);
        }
        let stage = Rc::new(RefCell::new(StageOfJob::new(tag, sayings)));
        cluster.take(order, &stage);
        Ok(Box::new(Handle {
            cluster: Rc::clone(&self.cluster),
            stage,
        }))
    }

    fn turn(&mut self) {
        self.cluster.borrow_mut().turn();
    }
}

/// Where this program lies on the nodes.
fn program_of(settings: &ClusterSettings) -> std::io::Result<String> {
    match &settings.program {
        Some(program) => Ok(program.clone()),
        None => Ok(std::env::current_exe()?.display().to_string()),
    }
}

/// Refuses a program for the nodes that is another version, if it can be asked here: jobs of it would wait in the queue to
/// say so.
fn check_version(settings: &ClusterSettings) -> Result<(), StageError> {
    let Some(program) = &settings.program else {
        return Ok(());
    };
    let own = concat!("flowgraph ", env!("CARGO_PKG_VERSION"));
    match answer_of(Command::new(program).arg("--version")) {
        Ok(Some(answer))
            if answer.status.success() && answer.stdout.trim_ascii() != own.as_bytes() =>
        {
            let said = String::from_utf8_lossy(&answer.stdout).into_owned();
            let message = format!(
                "{program}, which `cluster:` names, is {}, and this is {own}",
                said.trim()
            );
            Err(StageError::new(message).hint("the nodes need the same version"))
        }
        // What is there on the nodes alone speaks for itself.
        _ => Ok(()),
    }
}

/// Writes the script of a job that runs a command.
fn job_script(settings: &ClusterSettings, output: &Path, words: &[String]) -> String {
    let output = quoted(&output.display().to_string());
    let mut script = format!("#!/bin/bash\nset -e\nexec >> {output} 2>&1\n");
    for line in &settings.before {
        script.push_str(line);
        script.push('\n');
    }
    let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    let through = settings.through.as_deref().unwrap_or_default();
    // In the place of the shell, to which the cluster sends its notice.
    script.push_str(&format!("exec {through} {}\n", words.join(" ")));
    script
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
