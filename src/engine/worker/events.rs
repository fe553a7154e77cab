//! What the worker tells its executor, and how it ends with it.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::Mode;
use rustix::process::{
    Signal, getpid, getppid, kill_process, set_parent_process_death_signal, setsid, umask,
};

use crate::engine::context::{Importance, Progress, Reporter};
use crate::engine::event::WorkerEvent;
use crate::engine::processes::{end_children, kill_descendants, kill_group};

/// Ends the process, and what it started, when the executor is gone or closes its end.
pub(super) fn end_with_parent(command_group: Arc<AtomicI32>) -> std::io::Result<()> {
    let thread = std::thread::Builder::new().spawn(move || {
        let mut rest = Vec::new();
        let _ = std::io::stdin().lock().read_to_end(&mut rest);
        kill_group(command_group.load(Ordering::SeqCst));
        kill_descendants();
        // Nothing is half-written: results appear by rename only.
        kill_process(getpid(), Signal::KILL).ok();
    });
    thread.map(|_| ())
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

    fn note(&mut self, importance: Importance, text: &str) {
        self.send(&WorkerEvent::Note {
            importance,
            text: text.to_owned(),
        });
    }

    fn command_started(&mut self, group: i32) {
        self.1.store(group, Ordering::SeqCst);
    }

    fn command_ended(&mut self) -> Vec<String> {
        // What a command leaves in the background ends with it: it could still write to the outputs.
        let left = end_children();
        kill_group(self.1.swap(0, Ordering::SeqCst));
        self.send(&WorkerEvent::CommandGroup { group: 0 });
        left
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
                // A group of its own, and no terminal that could stop it when it asks there for a password.
                setsid()?;
                // Dies with the worker even if nobody is left to kill its group.
                set_parent_process_death_signal(Some(Signal::KILL))?;
                if getppid() != Some(worker) {
                    return Err(std::io::ErrorKind::BrokenPipe.into());
                }
                umask(Mode::WGRP | Mode::WOTH);
                // What flowgraph itself was given open stays with it. Kernels before 5.11 refuse.
                const FIRST: u32 = 3;
                libc::syscall(
                    libc::SYS_close_range,
                    FIRST,
                    u32::MAX,
                    libc::CLOSE_RANGE_CLOEXEC,
                );
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
