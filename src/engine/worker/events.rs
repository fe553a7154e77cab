//! What the worker tells its executor, and how it ends with it.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

use crate::engine::context::{Progress, Reporter};
use crate::engine::event::WorkerEvent;

/// Ends the process, and the command it runs, when the executor is gone.
pub(super) fn end_with_parent(command_group: Arc<AtomicI32>) {
    std::thread::spawn(move || {
        let mut rest = Vec::new();
        let _ = std::io::stdin().lock().read_to_end(&mut rest);
        kill_group(command_group.load(Ordering::SeqCst));
        // Nothing is half-written: results appear by rename only.
        rustix::process::kill_process(getpid(), Signal::KILL).ok();
    });
}

/// Kills a process group; 0 stands for none.
pub(in crate::engine) fn kill_group(group: i32) {
    if let Some(group) = rustix::process::Pid::from_raw(group).filter(|group| !group.is_init()) {
        rustix::process::kill_process_group(group, Signal::KILL).ok();
    }
}

#[derive(Clone)]
pub(super) struct Events(
    pub(super) Arc<Mutex<std::io::Stdout>>,
    pub(super) Arc<AtomicI32>,
);

impl Events {
    pub(super) fn send(&self, event: &WorkerEvent) {
        let Ok(mut line) = serde_json::to_string(event) else {
            return;
        };
        line.push('\n');
        if let Ok(mut stdout) = self.0.lock() {
            // If nobody listens any more, the end of standard input ends the process.
            let _ = stdout
                .write_all(line.as_bytes())
                .and_then(|()| stdout.flush());
        }
    }
}

impl Reporter for Events {
    fn progress(&mut self, progress: Progress) {
        self.send(&WorkerEvent::Progress { progress });
    }

    fn note(&mut self, text: &str) {
        self.send(&WorkerEvent::Note {
            text: text.to_owned(),
        });
    }

    fn command_group(&mut self, group: i32) {
        // What a command leaves in the background ends with it: it could still write to the outputs.
        kill_group(self.1.swap(group, Ordering::SeqCst));
        self.send(&WorkerEvent::CommandGroup { group });
    }

    fn before_command(&mut self, command: &mut Command) {
        let worker = getpid();
        let Ok(events) = std::io::stdout().as_fd().try_clone_to_owned() else {
            return;
        };
        #[expect(
            unsafe_code,
            reason = "the only hook between fork and exec; what is called there neither allocates nor locks"
        )]
        unsafe {
            command.pre_exec(move || {
                // Dies with the worker even if nobody is left to kill its group.
                set_parent_process_death_signal(Some(Signal::KILL))?;
                if getppid() != Some(worker) {
                    return Err(std::io::ErrorKind::BrokenPipe.into());
                }
                // The executor knows the group before there can be more in it, whenever the worker is killed.
                let mut line = [0; 80];
                let mut rest = &mut line[..];
                let group = getpid().as_raw_nonzero();
                writeln!(rest, "{{\"event\":\"command_group\",\"group\":{group}}}")?;
                let length = 80 - rest.len();
                rustix::io::write(&events, &line[..length])?;
                Ok(())
            });
        }
    }
}
