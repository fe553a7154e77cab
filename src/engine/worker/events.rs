//! What the worker tells its executor, and how it ends with it.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use crate::engine::context::{Progress, Reporter};
use crate::engine::event::WorkerEvent;

/// Ends the process, and the command it runs, when the executor is gone.
pub(super) fn end_with_parent(command_group: Arc<AtomicI32>) {
    std::thread::spawn(move || {
        let mut rest = Vec::new();
        let _ = std::io::stdin().lock().read_to_end(&mut rest);
        kill_group(command_group.load(Ordering::SeqCst));
        // Nothing is half-written: results appear by rename only.
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)
            .ok();
    });
}

/// Kills a process group; 0 stands for none.
pub(in crate::engine) fn kill_group(group: i32) {
    if let Some(group) = rustix::process::Pid::from_raw(group).filter(|group| !group.is_init()) {
        rustix::process::kill_process_group(group, rustix::process::Signal::KILL).ok();
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
}
