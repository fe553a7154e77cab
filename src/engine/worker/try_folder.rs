//! Folders that stages write to while they run.

use std::path::{Path, PathBuf};

use crate::engine::processes::kill_at_home_in;
use crate::engine::stage::StageError;

/// The folder of one try; it goes with the value.
pub(super) struct TryFolder(PathBuf);

impl TryFolder {
    pub(super) fn make(scratch: &Path) -> std::io::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("try-")
            .tempdir_in(scratch)?;
        Ok(Self(folder.keep()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TryFolder {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next try.
        let _ = fs_err::remove_dir_all(&self.0);
        if let Some(scratch) = self.0.parent() {
            // Only if it is empty: a checkpoint stays.
            let _ = fs_err::remove_dir(scratch);
        }
    }
}

/// Removes what killed tries left; whoever calls holds the lock, so no try is alive.
pub(super) fn sweep_dead_tries(scratch: &Path) -> Result<(), StageError> {
    fs_err::create_dir_all(scratch)?;
    for entry in fs_err::read_dir(scratch)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("try-") {
            // What a command left in a session of its own outlives a killed worker.
            kill_at_home_in(&entry.path());
            // One that is dying still may write there; its folder then waits for the next sweep.
            let _ = fs_err::remove_dir_all(entry.path());
        }
    }
    Ok(())
}
