//! An observer on a thread of its own: a run waits for no terminal and no reader of a pipe.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use super::interrupts;
use crate::engine::event::{Observer, RunEvent};

/// Progress that nobody reads is dropped from here on.
const LONGEST_QUEUE: usize = 1000;
const LARGEST_BATCH: usize = 256;

/// Passes events on to another observer, and tells all of them before it goes.
pub(super) struct Detached {
    sender: Option<Sender<Vec<RunEvent>>>,
    /// Events that are passed on together: a thousand cached stages are worth no thousand wake-ups.
    batch: Vec<RunEvent>,
    /// Events that are not told yet.
    queue: Arc<AtomicUsize>,
    /// Closes when all are told.
    told: Receiver<()>,
}

impl Detached {
    /// Makes an observer on a thread of its own, where it stays.
    ///
    /// # Errors
    /// A thread that cannot be had.
    pub(super) fn new(
        make: impl FnOnce() -> Box<dyn Observer> + Send + 'static,
    ) -> std::io::Result<Self> {
        let (sender, events) = channel();
        let (whole, told) = channel::<()>();
        let queue = Arc::new(AtomicUsize::new(0));
        let length = Arc::clone(&queue);
        std::thread::Builder::new().spawn(move || {
            let _whole = whole;
            let mut observer = make();
            for event in events.into_iter().flatten() {
                observer.event(&event);
                length.fetch_sub(1, Ordering::Relaxed);
            }
        })?;
        Ok(Self {
            sender: Some(sender),
            batch: Vec::new(),
            queue,
            told,
        })
    }
}

impl Observer for Detached {
    fn event(&mut self, event: &RunEvent) {
        let waiting = self.queue.load(Ordering::Relaxed);
        if waiting > LONGEST_QUEUE && matches!(event, RunEvent::StageProgress { .. }) {
            return;
        }
        self.queue.fetch_add(1, Ordering::Relaxed);
        self.batch.push(event.clone());
        if self.batch.len() >= LARGEST_BATCH {
            self.pause();
        }
    }

    fn pause(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        if let Some(sender) = self.sender.as_ref().filter(|_| !batch.is_empty()) {
            let _ = sender.send(batch);
        }
    }
}

impl Drop for Detached {
    fn drop(&mut self) {
        /// Whoever asked to stop does not wait for a reader who does not read.
        const PATIENCE: Duration = Duration::from_secs(1);
        const PAUSE: Duration = Duration::from_millis(50);
        self.pause();
        self.sender = None;
        let mut patience = PATIENCE;
        while let Err(RecvTimeoutError::Timeout) = self.told.recv_timeout(PAUSE) {
            if interrupts::is_interrupted() {
                patience = patience.saturating_sub(PAUSE);
                if patience.is_zero() {
                    interrupts::end_now();
                }
            }
        }
    }
}
