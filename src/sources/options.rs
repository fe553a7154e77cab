//! How sources are fetched.

use std::path::PathBuf;

use super::{client::Patience, settings::Settings};

/// How far a download has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received, those of earlier tries with them.
    pub bytes: u64,
    /// Bytes of the whole file, where the server says so.
    pub total: Option<u64>,
}

/// How sources are fetched.
pub struct FetchOptions<'a> {
    /// The folder that keeps what was fetched; shared by processes.
    pub cache_dir: PathBuf,
    /// No file may be larger.
    pub maximum_bytes: u64,
    /// Look again for sources without a pinned digest.
    pub refresh: bool,
    /// Index, certificates and hub.
    pub settings: Settings,
    /// Retries and time limits.
    pub patience: Patience,
    /// Called while bytes arrive.
    pub progress: Option<&'a dyn Fn(Progress)>,
    /// Asked now and then whether to stop; a stopped download continues next time.
    pub cancelled: Option<&'a dyn Fn() -> bool>,
}

impl FetchOptions<'_> {
    /// Options with the settings of the environment and a limit of 64 GiB a file.
    pub fn new(cache_dir: impl Into<PathBuf>) -> Self {
        Self {
            cache_dir: cache_dir.into(),
            maximum_bytes: 64 << 30,
            refresh: false,
            settings: Settings::from_environment(),
            patience: Patience::default(),
            progress: None,
            cancelled: None,
        }
    }

    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled.is_some_and(|cancelled| cancelled())
    }

    pub(super) fn report(&self, progress: Progress) {
        if let Some(report) = self.progress {
            report(progress);
        }
    }
}
