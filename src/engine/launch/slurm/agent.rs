//! What runs in a job: the workers of its stages, one after the other, as the executor of a machine would run them.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use super::batch::{Ask, BatchFolder, Said, Speaker};
use crate::engine::artifact::Digest;
use crate::engine::event::WorkerEvent;
use crate::engine::launch::{Ending, Launcher, Local, Message, Order};
use crate::engine::machine::{host_name, visible_gpus};
use crate::engine::stage::StageError;
use crate::engine::store::is_of_this_machine;
use crate::engine::worker::stop_signals;

/// How often an agent looks for what it is asked.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Runs the stages of a job; returns the process's exit code.
///
/// # Errors
/// A folder that is none of a job, or that cannot be written to.
pub fn run(folder: &Path) -> Result<u8, StageError> {
    let batch = BatchFolder::at(folder);
    let told = batch.told().map_err(|error| {
        StageError::new(format!("cannot read the job in {}: {error}", folder.display()))
            .hint("`flowgraph agent` is started by the jobs that `flowgraph run --executor slurm` submits")
    })?;
    let ended = batch.ended_stages();
    let mut agent = Agent {
        speaker: batch.speaker()?,
        batch,
        stop: Arc::default(),
        local: Local::new()?,
    };
    for signal in stop_signals() {
        signal_hook::flag::register(signal, Arc::clone(&agent.stop))?;
    }
    let own = env!("CARGO_PKG_VERSION");
    agent.speaker.say(&Said::Began {
        host: host_name(),
        flowgraph: own.to_owned(),
    })?;
    let mut code = 0;
    for (at, order) in told.orders.into_iter().enumerate() {
        if ended.contains(&at) {
            // Whoever waits may have missed it, should the job have been ended there.
            let ending = Ending {
                said: "ended before".to_owned(),
                signal: None,
            };
            agent.speaker.say(&Said::Ended { at, ending })?;
            continue;
        }
        if agent.is_to_stop(at) {
            agent.speaker.say(&Said::Left { at })?;
            continue;
        }
        let ending = if told.flowgraph == own {
            agent.work(at, order)?
        } else {
            let error = StageError::new(format!(
                "flowgraph is {own} on {}, and {} where the job was submitted",
                host_name(),
                told.flowgraph
            ));
            agent.fail(
                at,
                error.hint("`program` in `cluster:` says where it lies on the nodes"),
            )?
        };
        if ending.signal.is_some() {
            code = 1;
        }
        agent.speaker.say(&Said::Ended { at, ending })?;
    }
    Ok(code)
}

/// Returns the node's own disk for temporary files, where the store is further away.
fn near_disk(store: &Path) -> Option<PathBuf> {
    let named = ["SLURM_TMPDIR", "TMPDIR"].map(std::env::var_os);
    let named = named.into_iter().flatten().find(|name| !name.is_empty());
    let folder = named.map_or_else(std::env::temp_dir, PathBuf::from);
    if !is_of_this_machine(&folder) || is_of_this_machine(store) {
        return None;
    }
    let user = rustix::process::getuid().as_raw();
    let own = folder.join(format!("flowgraph-{user}"));
    let _ = std::fs::DirBuilder::new().mode(0o700).create(&own);
    let store = fs_err::canonicalize(store).ok()?;
    let of_store = Digest::of(store.as_os_str().as_bytes()).short();
    // Others may write beside it, and may have made it.
    let found = std::fs::symlink_metadata(&own).ok()?;
    let is_own = found.is_dir() && found.uid() == user && found.mode().trailing_zeros() >= 6;
    // Two stores may be at the same work, each with locks of its own.
    is_own.then(|| own.join(of_store))
}

struct Agent {
    batch: BatchFolder,
    speaker: Speaker,
    /// Set by a signal: the job's time is up, or its node is wanted for another.
    stop: Arc<AtomicBool>,
    local: Local,
}

impl Agent {
    fn is_to_stop(&self, at: usize) -> bool {
        self.stop.load(Ordering::Relaxed)
            || self.batch.is_asked(Ask::Stop, at)
            || self.batch.is_asked(Ask::End, at)
    }

    fn work(&mut self, at: usize, mut order: Order) -> Result<Ending, StageError> {
        // Those that the cluster gave the job, as far as the stage asks for them.
        let given = visible_gpus();
        order.job.staging = near_disk(&order.job.store);
        order.job.gpus = given.into_iter().take(order.gpus).collect();
        let timeout = order.timeout;
        let (sender, receiver) = channel();
        let mut worker = match self.local.launch(0, order, &sender) {
            Ok(worker) => worker,
            Err(error) => return self.fail(at, error),
        };
        let (mut asked, mut started) = (false, None);
        let mut looked = Instant::now();
        loop {
            match receiver.recv_timeout(LOOK_EVERY) {
                Ok((_, Message::Ended)) => return Ok(worker.wait()),
                Ok((_, Message::Event(event))) => {
                    if matches!(event, WorkerEvent::Started) {
                        started = Some(Instant::now());
                    }
                    self.speaker.say(&Said::Event { at, event })?;
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            // A worker that talks much must hear as well as others.
            if looked.elapsed() < LOOK_EVERY {
                continue;
            }
            looked = Instant::now();
            if self.is_to_stop(at) && !asked {
                worker.ask_to_stop();
                asked = true;
            }
            // Whoever submitted it ends it in time, if that still lives.
            const GRACE: f64 = 30.0;
            let is_over = timeout
                .zip(started)
                .is_some_and(|(timeout, started): (f64, Instant)| {
                    started.elapsed().as_secs_f64() > timeout + GRACE
                });
            if is_over || self.batch.is_asked(Ask::End, at) {
                worker.end();
            }
        }
    }

    fn fail(&mut self, at: usize, error: StageError) -> Result<Ending, StageError> {
        let event = match error {
            StageError::Failed { message, hint } => WorkerEvent::Failed { message, hint },
            StageError::Interrupted => WorkerEvent::Interrupted,
        };
        self.speaker.say(&Said::Event { at, event })?;
        Ok(Ending {
            said: "not started".to_owned(),
            signal: None,
        })
    }
}
