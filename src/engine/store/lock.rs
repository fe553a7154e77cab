//! Locks: one worker at a time for each fingerprint, on whatever machine shares the store.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};

use fs_err::OpenOptions;

use super::Store;
use crate::engine::artifact::Digest;

/// A held lock; it ends with the value, or with the process however that ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    pub(super) fn of(file: File) -> Self {
        Self { _file: file }
    }
}

/// The answer to asking for a lock.
#[derive(Debug)]
pub enum LockState {
    /// It is ours.
    Held(Lock),
    /// Somebody else has it.
    Busy {
        /// Who, as they described themselves.
        holder: String,
    },
}

impl Store {
    /// Asks for the lock of `fingerprint`; `holder` tells others who has it.
    pub fn try_lock(&self, fingerprint: &Digest, holder: &str) -> std::io::Result<LockState> {
        let folder = self.root().join("locks");
        fs_err::create_dir_all(&folder)?;
        // Rust opens files close-on-exec, so a command that a stage starts does not inherit the lock.
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(folder.join(fingerprint.to_string()))?
            .into_parts()
            .0;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                file.write_all(holder.as_bytes())?;
                Ok(LockState::Held(Lock { _file: file }))
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.rewind()?;
                file.read_to_string(&mut holder)?;
                Ok(LockState::Busy { holder })
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Removes what killed processes left: scratch of stages that were killed between their record and the end,
    /// and the stores of audits.
    ///
    /// Nothing depends on it, so whatever goes wrong is left for another time.
    pub fn sweep_leftovers(&self) {
        for entry in std::fs::read_dir(self.root().join("audit"))
            .into_iter()
            .flatten()
            .flatten()
        {
            // An audit holds its store from beginning to end.
            if let Ok(LockState::Held(_lock)) = Self::new(entry.path()).lock_alone() {
                let _ = fs_err::remove_dir_all(entry.path());
            }
        }
        let Ok(entries) = std::fs::read_dir(self.root().join("scratch")) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(fingerprint) = name.to_str().and_then(|name| name.parse::<Digest>().ok())
            else {
                continue;
            };
            if self.record_path(&fingerprint).exists()
                && let Ok(LockState::Held(_lock)) =
                    self.try_lock(&fingerprint, "a sweep of scratch")
            {
                let _ = fs_err::remove_dir_all(entry.path());
            }
        }
    }
}
