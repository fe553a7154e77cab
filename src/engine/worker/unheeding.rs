//! Ends a stage that never looks whether it is asked to stop.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::events::Events;
use crate::engine::event::WorkerEvent;

/// How often it is looked whether the stage was asked to stop.
const EVERY: Duration = Duration::from_millis(200);
/// For how long after that it may still begin to heed it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Watches over a stage that runs, until it is dropped: one that keeps no checkpoints and reports no progress has nothing
/// to lose, so that its process ends soon after the signal. One that ever looked for signals is left to end by itself.
pub(super) struct Watch {
    is_over: Arc<(Mutex<bool>, Condvar)>,
}

impl Watch {
    /// Begins to watch. `asked` is set by signals, `heeds` by a stage that looks at it; what it made lies in `made`.
    pub(super) fn begin(
        asked: &Arc<AtomicBool>,
        heeds: &Arc<AtomicBool>,
        made: &Path,
        events: &Events,
    ) -> std::io::Result<Self> {
        let made = made.to_owned();
        let is_over = Arc::new((Mutex::new(false), Condvar::new()));
        let watched = Arc::clone(&is_over);
        let (asked, heeds, events) = (Arc::clone(asked), Arc::clone(heeds), events.clone());
        std::thread::Builder::new().spawn(move || {
            let (lock, ended) = &*watched;
            let mut since = None;
            let Ok(mut is_over) = lock.lock() else {
                return;
            };
            while !*is_over && !heeds.load(Ordering::Relaxed) {
                let Ok((next, _)) = ended.wait_timeout(is_over, EVERY) else {
                    return;
                };
                is_over = next;
                if *is_over || !asked.load(Ordering::Relaxed) {
                    continue;
                }
                let since = *since.get_or_insert_with(Instant::now);
                // The lock is held: what the stage made cannot be on its way into the store.
                if since.elapsed() >= PATIENCE && !heeds.load(Ordering::Relaxed) {
                    // Whatever is written meanwhile is swept with other leftovers.
                    let _ = std::fs::remove_dir_all(&made);
                    events.send(&WorkerEvent::Interrupted);
                    std::process::exit(130);
                }
            }
        })?;
        Ok(Self { is_over })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let (lock, ended) = &*self.is_over;
        if let Ok(mut is_over) = lock.lock() {
            *is_over = true;
        }
        ended.notify_all();
    }
}
