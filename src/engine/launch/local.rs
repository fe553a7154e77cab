//! Workers as processes of this machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use fs_err::os::unix::fs::OpenOptionsExt;
use rustix::process::{Pid, Signal, kill_process};

use super::{Ending, Launcher, Message, Order, Sayings, Worker};
use crate::engine::context::Importance;
use crate::engine::event::WorkerEvent;
use crate::engine::limits;
use crate::engine::mask::{Mask, Masked};
use crate::engine::processes::{kill_at_home_in, kill_group};
use crate::engine::stage::StageError;
use crate::engine::worker::Task;
use crate::excerpt::{MESSAGE, excerpt};

/// Starts workers as processes of this machine.
#[derive(Debug, Clone)]
pub struct Local {
    /// The program that is started as `PROGRAM worker`.
    pub program: PathBuf,
    /// What it finds in its environment besides what this process has.
    pub environment: Vec<(&'static str, &'static str)>,
}

impl Local {
    /// Starts this program.
    ///
    /// # Errors
    /// If nobody knows where it lies.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            program: std::env::current_exe()?,
            environment: Vec::new(),
        })
    }
}

struct Process {
    child: Child,
    /// When it closes, or this process dies, the worker ends what it started, and then itself.
    stdin: Option<ChildStdin>,
    /// The folder below which its commands live.
    scratch: Option<PathBuf>,
    /// Closes when the log is whole, for a log that is written from here.
    log: Option<Receiver<()>>,
    /// Process group of the command that the stage runs; 0 for none.
    command_group: Arc<AtomicI32>,
    /// When it was ended from here.
    ended: Option<Instant>,
}

impl Launcher for Local {
    fn launch(
        &mut self,
        tag: usize,
        order: Order,
        sayings: &Sayings,
    ) -> Result<Box<dyn Worker>, StageError> {
        Ok(Box::new(start(self, tag, &order, sayings)?))
    }
}

/// Starts a worker; a thread passes on what it says, without the values of secrets.
fn start(
    local: &Local,
    tag: usize,
    order: &Order,
    sayings: &Sayings,
) -> Result<Process, StageError> {
    if let Some(folder) = order.log.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let log = fs_err::OpenOptions::new()
        .create(true)
        .append(true)
        // What a program prints may be for its user alone.
        .mode(0o600)
        .open(&order.log)?
        .into_parts()
        .0;
    let job = &order.job;
    let mask = Mask::of(&order.secrets);
    let threads = job.threads.to_string();
    let mut command = Command::new(&local.program);
    command
        .envs(local.environment.iter().copied())
        .arg("worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(if mask.is_empty() {
            Stdio::from(log.try_clone()?)
        } else {
            Stdio::piped()
        })
        .env("RAYON_NUM_THREADS", &threads)
        .env("POLARS_MAX_THREADS", &threads)
        // A pool beside rayon's, whose threads spin for a partner that another process holds up.
        .env("CANDLE_NUM_THREADS", "1")
        // Empty hides them all: a stage sees no GPU that it was not given.
        .env("CUDA_VISIBLE_DEVICES", job.gpus.join(","))
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
    let sayings = sayings.clone();
    let command_group = Arc::new(AtomicI32::new(0));
    let group_of_it = Arc::clone(&command_group);
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
                if let WorkerEvent::CommandGroup { group } = event {
                    group_of_it.store(group, Ordering::SeqCst);
                    continue;
                }
                let event = if mask.is_empty() {
                    event
                } else {
                    event.with_texts(|text| mask.text(text))
                };
                if sayings.send((tag, Message::Event(event))).is_err() {
                    return;
                }
            }
            let _ = sayings.send((tag, Message::Ended));
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
        Task::Run { fingerprint, .. } => Some(job.tries_folder(fingerprint)),
        Task::Fetch => None,
    };
    Ok(Process {
        child,
        stdin: Some(stdin),
        scratch,
        log,
        command_group,
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

impl Process {
    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, signal).ok();
        }
    }

    fn kill_command(&self) {
        kill_group(self.command_group.load(Ordering::SeqCst));
    }
}

impl Worker for Process {
    fn ask_to_stop(&mut self) {
        self.signal(Signal::TERM);
    }

    fn end(&mut self) {
        const PATIENCE: Duration = Duration::from_millis(500);
        let since = *self.ended.get_or_insert_with(Instant::now);
        self.stdin = None;
        if since.elapsed() > PATIENCE {
            self.kill_command();
            self.signal(Signal::KILL);
        }
    }

    /// Waits for the end and says how it was; what outlived the worker is ended.
    fn wait(&mut self) -> Ending {
        // A program that left the session and all of its environment may hold the log open for ever.
        const PATIENCE: Duration = Duration::from_secs(1);
        let status = self.child.wait();
        if !matches!(&status, Ok(status) if status.success()) {
            self.kill_command();
        }
        let ending = Ending::from(status);
        if let (Some(_), Some(scratch)) = (ending.signal, &self.scratch) {
            kill_at_home_in(scratch);
        }
        if let Some(log) = self.log.take() {
            let _ = log.recv_timeout(PATIENCE);
        }
        ending
    }
}
