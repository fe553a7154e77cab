//! A bar of bytes for many transfers at once.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

use super::super::output::Output;

pub(super) struct Bar {
    bar: ProgressBar,
    done: AtomicU64,
}

impl Bar {
    pub(super) fn new(output: &Output, total: u64) -> Self {
        let shown = std::io::stderr().is_terminal() && !output.quiet && !output.json;
        let bar = if shown {
            ProgressBar::new(total)
        } else {
            ProgressBar::hidden()
        };
        let template = "[{bar:30}] {bytes} of {total_bytes}  {bytes_per_sec}  eta {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        Self {
            bar,
            done: AtomicU64::new(0),
        }
    }

    /// Hears of further bytes that are to come.
    pub(super) fn expect(&self, bytes: u64) {
        self.bar.inc_length(bytes);
    }

    /// Hears of further bytes that have come.
    pub(super) fn more(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.bar.set_position(done);
    }

    /// Returns how many have come.
    pub(super) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// How far one of the transfers is, of which the bar shows all.
pub(super) struct Share<'a> {
    bar: &'a Bar,
    done: AtomicU64,
}

impl<'a> Share<'a> {
    pub(super) fn of(bar: &'a Bar) -> Self {
        Self {
            bar,
            done: AtomicU64::new(0),
        }
    }

    /// Hears how many bytes of it have come in all.
    pub(super) fn tell(&self, done: u64) {
        let before = self.done.fetch_max(done, Ordering::Relaxed);
        self.bar.more(done.saturating_sub(before));
    }
}
