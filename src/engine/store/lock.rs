//! Locks: one worker at a time for each fingerprint, on whatever machine shares the store.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use fs_err::OpenOptions;

use super::{AGAIN, CHECKPOINTS, Lease, Store, class_in_name};
use crate::engine::artifact::Digest;

/// A held lock; it ends with the value, or with the process however that ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
    /// Where a lock of the file is not enough.
    lease: Option<Lease>,
}

impl Lock {
    pub(super) fn of(file: File, lease: Option<Lease>) -> Self {
        Self { file, lease }
    }

    /// Whether nobody else has taken it over, believing this process to be gone.
    pub fn is_ours(&self) -> bool {
        self.lease.as_ref().is_none_or(Lease::is_ours)
    }

    /// Whether the file that is locked is the one at `path`, and not one that was there before.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        let (held, there) = (self.file.metadata(), std::fs::metadata(path));
        matches!((held, there), (Ok(held), Ok(there)) if (held.dev(), held.ino()) == (there.dev(), there.ino()))
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
        match self.locked(|| file.try_lock()) {
            Ok(()) => match self.ask_lease(&fingerprint.to_string(), holder)? {
                Ok(lease) => {
                    file.set_len(0)?;
                    file.write_all(holder.as_bytes())?;
                    Ok(LockState::Held(Lock::of(file, lease)))
                }
                Err(holder) => Ok(LockState::Busy { holder }),
            },
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.rewind()?;
                file.read_to_string(&mut holder)?;
                if holder.is_empty() {
                    // It is about to write who it is.
                    "another process".clone_into(&mut holder);
                }
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
        self.sweep_transfers();
        for folder in folders(&self.root().join("audit")) {
            // An audit holds its store from beginning to end; one that is just being made is made once more.
            if let Ok(LockState::Held(_lock)) = Self::new(&folder).lock_alone() {
                // Moved away first: nothing that is made anew under its name is taken away with it.
                let swept = folder.with_extension("swept");
                if fs_err::rename(&folder, &swept).is_ok() {
                    let _ = fs_err::remove_dir_all(swept);
                }
            }
        }
        for folder in folders(&self.root().join("scratch")) {
            let name = folder.file_name().and_then(|name| name.to_str());
            let Some(fingerprint) = name.and_then(|name| name.parse().ok()) else {
                continue;
            };
            if self.record_path(&fingerprint).exists()
                && let Ok(LockState::Held(_lock)) =
                    self.try_lock(&fingerprint, "a sweep of scratch")
            {
                self.sweep_scratch(&fingerprint, &folder);
            }
        }
    }

    /// Leaves the checkpoints of what is not done: a stage that was asked to run again, or for another numerics class.
    fn sweep_scratch(&self, fingerprint: &Digest, folder: &Path) {
        let of_first = self.read_record(fingerprint, None).ok().flatten();
        let done = |class: &str| {
            let first = of_first.as_ref();
            first.is_some_and(|record| class_in_name(&record.provenance.numerics) == class)
                || self.record_file(fingerprint, Some(class)).exists()
        };
        for path in folders(folder) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let open = match name.strip_prefix(CHECKPOINTS) {
                Some(class) => !done(class),
                None => name.starts_with(AGAIN),
            };
            if !open {
                let _ = fs_err::remove_dir_all(&path);
            }
        }
        let _ = std::fs::remove_dir(folder);
    }

    /// Makes the store of an audit within this one, empty and its own. It is swept away once its lock is given up.
    pub fn make_audit_store(&self) -> std::io::Result<(Self, Lock)> {
        let parent = self.root().join("audit");
        fs_err::create_dir_all(&parent)?;
        loop {
            let folder = tempfile::Builder::new()
                .prefix("audit-")
                .tempdir_in(&parent)?;
            let store = Self::new(folder.keep());
            // A sweep that came between making it and locking it has taken it away.
            if let Ok(LockState::Held(lock)) = store.try_share()
                && store.holds(&lock)
            {
                return Ok((store, lock));
            }
        }
    }
}

fn folders(parent: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_audits_store_is_swept_away_when_its_audit_has_ended_and_never_before() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        store.sweep_leftovers();
                    }
                });
            }
            for _ in 0..300 {
                let (audit, lock) = store.make_audit_store().unwrap();
                assert!(audit.root().join("locks/store").exists());
                let file = audit.root().join("file");
                fs_err::write(&file, "x").unwrap();
                assert!(file.exists());
                drop(lock);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        store.sweep_leftovers();
        assert_eq!(folders(&folder.path().join("audit")), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_sweep_leaves_the_checkpoints_of_what_is_not_done() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let mut record = super::super::record::tests::record(0.1);
        record.provenance.numerics = "cpu/1".to_owned();
        store.write_record(&record).unwrap();
        let at = |class: &str, again| {
            let path = store.checkpoints_path(&record.fingerprint, class, again);
            fs_err::create_dir_all(&path).unwrap();
            path
        };
        let done = at("cpu/1", false);
        let open = [at("cpu/1", true), at("cuda-sm90", false)];
        let dead = store.scratch_path(&record.fingerprint).join("try-1");
        fs_err::create_dir_all(&dead).unwrap();
        store.sweep_leftovers();
        assert!(!done.exists() && !dead.exists());
        assert!(open.iter().all(|path| path.exists()));
        record.provenance.numerics = "cuda-sm90".to_owned();
        record.beside = true;
        store.write_record(&record).unwrap();
        store.sweep_leftovers();
        assert_eq!(open.map(|path| path.exists()), [true, false]);
    }
}
