//! Worker processes, seen from the executor.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::Sender;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::Message;
use super::resources::Grant;
use crate::engine::event::WorkerEvent;
use crate::engine::worker::{Job, kill_group};
use crate::excerpt::{MESSAGE, excerpt};

pub(super) struct WorkerProcess {
    child: Child,
    /// Closed when this is dropped, or when this process dies: either ends the worker.
    _stdin: ChildStdin,
    pub(super) grant: Grant,
    /// When it had its lock and began; `None` while it waits.
    pub(super) started: Option<Instant>,
    /// Process group of the command that the stage runs; 0 for none.
    pub(super) command_group: i32,
    /// What the worker said last of how it went.
    pub(super) last: Option<WorkerEvent>,
    /// The timeout that ended it.
    pub(super) timed_out: Option<f64>,
}

/// Starts a worker; a thread passes on what it says.
pub(super) fn start(
    stage: usize,
    job: &Job,
    grant: &Grant,
    program: &Path,
    log: PathBuf,
    sender: &Sender<(usize, Message)>,
) -> std::io::Result<WorkerProcess> {
    if let Some(folder) = log.parent() {
        fs_err::create_dir_all(folder)?;
    }
    let log = fs_err::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&log)?;
    let mut command = Command::new(program);
    command
        .arg("worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log.into_parts().0)
        .env("RAYON_NUM_THREADS", grant.cpus.to_string())
        .env("POLARS_MAX_THREADS", grant.cpus.to_string())
        // Empty hides them all: a stage sees no GPU that it was not given.
        .env("CUDA_VISIBLE_DEVICES", grant.gpus.join(","))
        // Its own group: a Ctrl-C on the terminal reaches the executor, which tells its workers.
        .process_group(0);
    let mut child = command.spawn()?;
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
    std::thread::spawn(move || {
        // Not `lines`: a library that prints something else than text must not end the conversation.
        for line in BufReader::new(stdout).split(b'\n') {
            let Ok(line) = line else { break };
            let event = serde_json::from_slice(&line).unwrap_or_else(|_| WorkerEvent::Note {
                text: excerpt(&String::from_utf8_lossy(&line), MESSAGE).into_owned(),
            });
            if sender.send((stage, Message::Event(event))).is_err() {
                return;
            }
        }
        let _ = sender.send((stage, Message::Ended));
    });
    Ok(WorkerProcess {
        child,
        _stdin: stdin,
        grant: grant.clone(),
        started: None,
        command_group: 0,
        last: None,
        timed_out: None,
    })
}

impl WorkerProcess {
    /// Asks the stage to checkpoint and stop.
    pub(super) fn ask_to_stop(&self) {
        self.signal(Signal::TERM);
    }

    /// Ends the stage at once.
    pub(super) fn kill(&self) {
        kill_group(self.command_group);
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, signal).ok();
        }
    }

    /// Waits for the end and says how it was; a command that outlived its worker is ended.
    pub(super) fn wait(&mut self) -> String {
        let status = self.child.wait();
        if !matches!(&status, Ok(status) if status.success()) {
            kill_group(self.command_group);
        }
        status.map_or_else(|error| error.to_string(), |status| status.to_string())
    }
}
