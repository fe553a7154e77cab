//! Signals that ask the program to stop: the first in peace, the second at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::{Failure, exit_code};
use crate::engine::limits;
use crate::engine::worker::stop_signals;

static COUNT: OnceLock<Arc<AtomicUsize>> = OnceLock::new();
static STOP: OnceLock<Arc<AtomicBool>> = OnceLock::new();
static ALL_IS_STORED: AtomicBool = AtomicBool::new(false);

/// Counts Ctrl-C, SIGTERM and, unless it is ignored, SIGHUP. SIGQUIT keeps its meaning: at once, with a core dump.
///
/// The second ends the program whatever it is at: a writer to a full pipe would never look at the count.
pub(super) fn count_interrupts() -> Result<Arc<AtomicUsize>, Failure> {
    count(stop_signals())
}

/// Counts Ctrl-C alone, for a run whose stages are jobs of a cluster: they outlive a lost connection, and a notice of the
/// cluster that the time of the run itself is up.
pub(super) fn count_interrupts_of_cluster() -> Result<Arc<AtomicUsize>, Failure> {
    count(vec![signal_hook::consts::SIGINT])
}

fn count(signals: Vec<i32>) -> Result<Arc<AtomicUsize>, Failure> {
    /// Until then the program ends by itself, and says how it went.
    const PATIENCE: Duration = Duration::from_secs(1);
    if let Some(count) = COUNT.get() {
        return Ok(Arc::clone(count));
    }
    let interrupts = Arc::clone(COUNT.get_or_init(Arc::default));
    let counter = Arc::clone(&interrupts);
    let mut signals = signal_hook::iterator::Signals::new(signals)?;
    let thread = std::thread::Builder::new().spawn(move || {
        for _ in signals.forever() {
            let count = counter.fetch_add(1, Ordering::SeqCst) + 1;
            stop_flag().store(true, Ordering::SeqCst);
            if ALL_IS_STORED.load(Ordering::SeqCst) {
                end_now();
            }
            if count > 1 {
                std::thread::sleep(PATIENCE);
                end_now();
            }
        }
    });
    match thread {
        Ok(_) => Ok(interrupts),
        Err(error) => Err(limits::explain("cannot start a thread", &error).into()),
    }
}

/// Is set with the first signal.
pub(super) fn stop_flag() -> Arc<AtomicBool> {
    Arc::clone(STOP.get_or_init(Arc::default))
}

/// Whether there was a signal.
pub(super) fn is_interrupted() -> bool {
    let count = COUNT.get().map(|count| count.load(Ordering::SeqCst));
    count.is_some_and(|count| count > 0)
}

/// Says that only output is left to do, so that one signal ends the program.
pub(super) fn all_is_stored() {
    ALL_IS_STORED.store(true, Ordering::SeqCst);
}

/// Ends the program; workers see that it is gone, and end what they started.
#[expect(
    clippy::exit,
    reason = "the main thread may be in a call that does not return"
)]
pub(super) fn end_now() -> ! {
    std::process::exit(i32::from(exit_code::INTERRUPTED))
}
