//! The folder that keeps what was fetched.
//!
//! ```text
//! sha256/<digest>        files, each under the digest of its bytes
//! names/<key>.json       which digest an unpinned source had
//! partial/<key>.part     unfinished downloads, with <key>.json to continue them and <key>.lock
//! ```

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use fs_err as fs;
use serde::{Deserialize, Serialize};

use super::{SourceError, client::pause, fetched::Fetched, sha256::Sha256};

pub(super) struct Cache {
    root: PathBuf,
}

/// The digest that a source had when it was fetched.
#[derive(Serialize, Deserialize)]
struct Name {
    source: String,
    sha256: Sha256,
}

/// Held while a source is fetched; other processes wait for its end.
pub(super) struct FetchLock {
    _file: File,
}

impl Cache {
    pub(super) fn open(root: &Path) -> Result<Self, SourceError> {
        for folder in ["sha256", "names", "partial"] {
            fs::create_dir_all(root.join(folder))?;
        }
        Ok(Self {
            root: root.to_owned(),
        })
    }

    fn file(&self, sha256: Sha256) -> PathBuf {
        self.root.join("sha256").join(sha256.to_string())
    }

    fn name_file(&self, source: &str) -> PathBuf {
        self.root
            .join("names")
            .join(format!("{}.json", key(source)))
    }

    /// Where an unfinished download of `name` is kept.
    pub(super) fn partial(&self, name: &str) -> PathBuf {
        self.root
            .join("partial")
            .join(format!("{}.part", key(name)))
    }

    /// The kept file with this digest. Its bytes are read again: a damaged file is removed and missing.
    pub(super) fn find(
        &self,
        sha256: Sha256,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Fetched>, SourceError> {
        let path = self.file(sha256);
        if !path.is_file() {
            return Ok(None);
        }
        let (found, bytes) = Sha256::of_file(&path, cancelled)?;
        if found == sha256 {
            return Ok(Some(Fetched {
                path,
                sha256,
                bytes,
            }));
        }
        fs::remove_file(&path)?;
        Ok(None)
    }

    /// The digest that an unpinned source had, if it was fetched before.
    pub(super) fn named(&self, source: &str) -> Option<Sha256> {
        let text = fs::read_to_string(self.name_file(source)).ok()?;
        let name: Name = serde_json::from_str(&text).ok()?;
        (name.source == source).then_some(name.sha256)
    }

    /// Remembers the digest of a source.
    pub(super) fn name(&self, source: &str, sha256: Sha256) -> Result<(), SourceError> {
        let name = Name {
            source: source.to_owned(),
            sha256,
        };
        let text = serde_json::to_vec_pretty(&name).map_err(std::io::Error::from)?;
        let path = self.name_file(source);
        let mut file = tempfile::NamedTempFile::new_in(self.root.join("names"))?;
        file.write_all(&text)?;
        file.as_file().sync_all()?;
        file.persist(&path).map_err(|error| error.error)?;
        sync_folder(&path)
    }

    /// Takes a complete file in, under its digest.
    pub(super) fn keep(
        &self,
        complete: &Path,
        sha256: Sha256,
        bytes: u64,
    ) -> Result<Fetched, SourceError> {
        let path = self.file(sha256);
        fs::File::open(complete)?.sync_all()?;
        fs::rename(complete, &path)?;
        sync_folder(&path)?;
        Ok(Fetched {
            path,
            sha256,
            bytes,
        })
    }

    /// Waits for and takes the lock of `name`.
    pub(super) fn lock(
        &self,
        name: &str,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<FetchLock, SourceError> {
        let path = self.partial(name).with_extension("lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| named_error(&path, &error))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(FetchLock { _file: file }),
                Err(TryLockError::WouldBlock) => pause(Duration::from_millis(100), cancelled)?,
                Err(TryLockError::Error(error)) => return Err(named_error(&path, &error).into()),
            }
        }
    }
}

/// A file name for any text.
fn key(text: &str) -> String {
    blake3::hash(text.as_bytes()).to_hex()[..32].to_owned()
}

fn named_error(path: &Path, error: &std::io::Error) -> std::io::Error {
    std::io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Makes a rename into the folder of `path` outlive a power failure.
fn sync_folder(path: &Path) -> Result<(), SourceError> {
    if let Some(folder) = path.parent() {
        fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_missing() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let part = cache.partial("a");
        fs::write(&part, b"abc").unwrap();
        let kept = cache.keep(&part, Sha256::of(b"abc"), 3).unwrap();
        assert!(!part.exists());
        assert_eq!(
            cache.find(kept.sha256, &|| false).unwrap(),
            Some(kept.clone())
        );
        fs::write(&kept.path, b"abd").unwrap();
        assert_eq!(cache.find(kept.sha256, &|| false).unwrap(), None);
        assert!(!kept.path.exists());
    }

    #[test]
    fn names_are_kept_and_damaged_ones_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        assert_eq!(cache.named("https://a/b"), None);
        cache.name("https://a/b", Sha256::of(b"abc")).unwrap();
        assert_eq!(cache.named("https://a/b"), Some(Sha256::of(b"abc")));
        fs::write(cache.name_file("https://a/b"), b"{").unwrap();
        assert_eq!(cache.named("https://a/b"), None);
    }

    #[test]
    fn a_lock_keeps_others_waiting_until_they_give_up() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(directory.path()).unwrap();
        let held = cache.lock("a", &|| false).unwrap();
        assert!(matches!(
            cache.lock("a", &|| true),
            Err(SourceError::Cancelled)
        ));
        cache.lock("b", &|| true).unwrap();
        drop(held);
        cache.lock("a", &|| true).unwrap();
    }
}
