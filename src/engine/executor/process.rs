//! Worker processes, seen from the executor.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::process::{Pid, Signal, kill_process};

use super::resources::Grant;
use super::{Message, RunOptions};
use crate::engine::context::Importance;
use crate::engine::event::WorkerEvent;
use crate::engine::limits;
use crate::engine::mask::{Mask, Masked};
use crate::engine::processes::{kill_at_home_in, kill_group};
use crate::engine::stage::StageError;
use crate::engine::store::Store;
use crate::engine::worker::{Job, Task};
use crate::excerpt::{MESSAGE, excerpt};

/// Why the executor ended a worker.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ended {
    /// It took longer than this many seconds.
    TimedOut(f64),
    /// The run was asked to end at once.
    AtOnce,
}

pub(super) struct WorkerProcess {
    child: Child,
    /// When it closes, or this process dies, the worker ends what it started, and then itself.
    stdin: Option<ChildStdin>,
    /// The folder below which its commands live.
    scratch: Option<PathBuf>,
    /// Closes when the log is whole, for a log that is written from here.
    log: Option<Receiver<()>>,
    pub(super) grant: Grant,
    /// When it had its lock and began; `None` while it waits.
    pub(super) started: Option<Instant>,
    /// Process group of the command that the stage runs; 0 for none.
    pub(super) command_group: i32,
    /// What the worker said last of how it went.
    pub(super) last: Option<WorkerEvent>,
    /// Why and when it was ended from here.
    ended: Option<(Ended, Instant)>,
}

/// Starts a worker; a thread passes on what it says, without the values of `secrets`.
pub(super) fn start(
    stage: usize,
    job: &Job,
    grant: &Grant,
    options: &RunOptions,
    log: PathBuf,
    secrets: &[String],
    sender: &Sender<(usize, Message)>,
) -> Result<WorkerProcess, StageError> {
    if let Some(folder) = log.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let log = fs_err::OpenOptions::new()
        .create(true)
        .append(true)
        // What a program prints may be for its user alone.
        .mode(0o600)
        .open(&log)?
        .into_parts()
        .0;
    let mask = Mask::of(secrets);
    let mut command = Command::new(&options.program);
    command
        .envs(options.environment.iter().copied())
        .arg("worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(if mask.is_empty() {
            Stdio::from(log.try_clone()?)
        } else {
            Stdio::piped()
        })
        .env("RAYON_NUM_THREADS", grant.cpus.to_string())
        .env("POLARS_MAX_THREADS", grant.cpus.to_string())
        // A pool beside rayon's, whose threads spin for a partner that another process holds up.
        .env("CANDLE_NUM_THREADS", "1")
        // Empty hides them all: a stage sees no GPU that it was not given.
        .env("CUDA_VISIBLE_DEVICES", grant.gpus.join(","))
        // Its own group: a Ctrl-C on the terminal reaches the executor, which tells its workers.
        .process_group(0);
    let mut child = command
        .spawn()
        .map_err(|error| limits::explain("cannot start its worker", &error))?;
    let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        unreachable!("both were asked for as pipes");
    };
    let line = serde_json::to_string(job)?;
    let told = stdin
        .write_all(line.as_bytes())
        .and_then(|()| stdin.write_all(b"\n"));
    if told.is_err() {
        // It would wait for the rest of its job for ever. Its end, or that it died before, shows in its output.
        let _ = child.kill();
    }
    let sender = sender.clone();
    let passed = child.stderr.take().map(|said| pass_on(said, log, &mask));
    let threads = passed.transpose().and_then(|log| {
        let thread = std::thread::Builder::new().spawn(move || {
            // Not `lines`: a library that prints something else than text must not end the conversation.
            for line in BufReader::new(stdout).split(b'\n') {
                let Ok(line) = line else { break };
                let event = serde_json::from_slice(&line).unwrap_or_else(|_| WorkerEvent::Note {
                    importance: Importance::Usual,
                    text: excerpt(&String::from_utf8_lossy(&line), MESSAGE).into_owned(),
                });
                let event = if mask.is_empty() {
                    event
                } else {
                    event.with_texts(|text| mask.text(text))
                };
                if sender.send((stage, Message::Event(event))).is_err() {
                    return;
                }
            }
            let _ = sender.send((stage, Message::Ended));
        });
        thread.map(|_| log)
    });
    let log = match threads {
        Ok(log) => log,
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            return Err(limits::explain(
                "cannot start a thread for its worker",
                &error,
            ));
        }
    };
    let scratch = match &job.task {
        Task::Run { fingerprint, .. } => Some(Store::new(&job.store).scratch_path(fingerprint)),
        Task::Fetch => None,
    };
    Ok(WorkerProcess {
        child,
        stdin: Some(stdin),
        scratch,
        log,
        grant: grant.clone(),
        started: None,
        command_group: 0,
        last: None,
        ended: None,
    })
}

/// Writes what a worker and its commands say to their log, without the values of a mask.
fn pass_on(
    mut said: ChildStderr,
    log: std::fs::File,
    mask: &Mask,
) -> std::io::Result<Receiver<()>> {
    let mask = mask.clone();
    let (whole, told) = channel::<()>();
    let thread = std::thread::Builder::new().spawn(move || {
        let _whole = whole;
        let mut log = Masked::new(&mask, log);
        let mut piece = [0; 8192];
        // To its end even where the log cannot be written: nobody must wait for a full pipe.
        while let Ok(count @ 1..) = said.read(&mut piece) {
            let _ = log.write_all(&piece[..count]);
        }
        let _ = log.end();
    });
    thread.map(|_| told)
}

impl WorkerProcess {
    /// Asks the stage to checkpoint and stop.
    pub(super) fn ask_to_stop(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends the stage at once. May be called again: a worker that does not do so by itself is killed.
    pub(super) fn end(&mut self, why: Ended) {
        const PATIENCE: Duration = Duration::from_millis(500);
        let (_, since) = *self.ended.get_or_insert_with(|| (why, Instant::now()));
        self.stdin = None;
        if since.elapsed() > PATIENCE {
            kill_group(self.command_group);
            self.signal(Signal::KILL);
        }
    }

    /// Why it was ended from here, if it was.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended.map(|(why, _)| why)
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, signal).ok();
        }
    }

    /// Waits for the end and says how it was; what outlived the worker is ended.
    pub(super) fn wait(&mut self) -> std::io::Result<ExitStatus> {
        // A program that left the session and all of its environment may hold the log open for ever.
        const PATIENCE: Duration = Duration::from_secs(1);
        let status = self.child.wait();
        if !matches!(&status, Ok(status) if status.success()) {
            kill_group(self.command_group);
        }
        if let (Ok(status), Some(scratch)) = (&status, &self.scratch)
            && status.signal().is_some()
        {
            kill_at_home_in(scratch);
        }
        if let Some(log) = self.log.take() {
            let _ = log.recv_timeout(PATIENCE);
        }
        status
    }
}
