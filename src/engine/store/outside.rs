//! Digests of files outside the store, kept so that unchanged files are not read again.
//!
//! They are kept where a change would show: see [`Place`] and [`is_open_for_writing`].

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::object::ObjectStat;
use super::place::Place;
use super::publish::publish_unsynced;
use super::{Store, publish};
use crate::engine::artifact::Digest;
use crate::files::irregular;

#[derive(Serialize, Deserialize)]
struct Remembered {
    path: PathBuf,
    place: Place,
    stat: ObjectStat,
    digest: Digest,
}

impl Store {
    /// Digests a file or a folder outside the store.
    ///
    /// With `paranoid`, bytes are read even if nothing seems to have changed.
    pub fn digest_outside(&self, path: &Path, paranoid: bool) -> std::io::Result<Digest> {
        let metadata = fs_err::metadata(path)?;
        if metadata.is_dir() {
            let mut hasher = blake3::Hasher::new_derive_key("flowgraph outside folder v1");
            let mut names: Vec<_> = fs_err::read_dir(path)?
                .map(|entry| Ok(entry?.file_name()))
                .collect::<std::io::Result<_>>()?;
            names.sort_unstable();
            for name in names {
                let digest = self.digest_outside(&path.join(&name), paranoid)?;
                let name = name.as_encoded_bytes();
                hasher.update(&(name.len() as u64).to_le_bytes());
                hasher.update(name);
                hasher.update(digest.to_string().as_bytes());
            }
            return Ok(hasher.finalize().into());
        }
        if !metadata.is_file() {
            return Err(irregular(path, metadata.file_type()));
        }
        let stat = ObjectStat::of(&metadata);
        // The name of what is remembered, and never what is read: a link may lead to an open file, and that name of it
        // to another meanwhile.
        let name = fs_err::canonicalize(path)?;
        let key = Digest::of(name.as_os_str().as_encoded_bytes());
        let memory = self.root().join("stat").join(key.to_string());
        let place = Place::of(path)?;
        let remembered = std::fs::read(&memory)
            .ok()
            .filter(|_| !paranoid && place.is_some())
            .and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok())
            .filter(|found| found.path == name && Some(&found.place) == place.as_ref());
        if let Some(remembered) = remembered
            && remembered.stat.vouches_for(&stat)
        {
            return Ok(remembered.digest);
        }
        let file = fs_err::File::open(path)?.into_parts().0;
        // Whoever writes through a map begun earlier does so without another trace.
        let is_quiet = !is_open_for_writing(&file);
        self.announce(path, metadata.len());
        let digest = self.digest_open(&file)?;
        // A file that changed while it was read has no digest that could be remembered.
        if let Some(place) = place
            && is_quiet
            && self.root().is_dir()
            && ObjectStat::of(&fs_err::metadata(path)?).mtime_ns == stat.mtime_ns
        {
            let text = serde_json::to_vec(&Remembered {
                path: name,
                place,
                stat,
                digest,
            })?;
            let _ = publish_unsynced(&memory, &text);
        }
        Ok(digest)
    }
}

/// Whether somebody has the file open for writing, as far as that can be known: where a lease is refused for another
/// reason (another user's file, a network's), the answer is no.
///
/// A lease for reading is given only while nobody has the file open, or mapped, for writing. Once nobody has, a later
/// write through a map renews the file's times.
fn is_open_for_writing(file: &File) -> bool {
    const F_SETSIG: libc::c_int = 10;
    let descriptor = file.as_raw_fd();
    #[expect(
        unsafe_code,
        reason = "there is no safe call for leases; the calls take numbers and a descriptor that is open"
    )]
    unsafe {
        // Should somebody open it before the lease is given back: a signal that is ignored by default.
        libc::fcntl(descriptor, F_SETSIG, libc::SIGURG);
        if libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_RDLCK) == 0 {
            libc::fcntl(descriptor, libc::F_SETLEASE, libc::F_UNLCK);
            return false;
        }
    }
    std::io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
}

impl Store {
    fn fetched_path(&self, location: &str) -> PathBuf {
        let key = Digest::of(location.as_bytes());
        self.sources_path().join("fetched").join(key.to_string())
    }

    /// Returns the SHA-256 that an unpinned source had when it was fetched.
    pub fn fetched_source(&self, location: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.fetched_path(location)).ok()?;
        let (sha256, rest) = text.split_once(' ')?;
        (rest.trim_end() == location).then(|| sha256.to_owned())
    }

    /// Remembers the SHA-256 of an unpinned source.
    pub fn remember_fetched(&self, location: &str, sha256: &str) -> std::io::Result<()> {
        publish(
            &self.fetched_path(location),
            format!("{sha256} {location}\n").as_bytes(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        fs_err::create_dir_all(store.root()).unwrap();
        let file = folder.path().join("data");
        (folder, store, file)
    }

    #[test]
    fn a_changed_file_has_another_digest_whatever_its_times_say() {
        let (_folder, store, file) = store();
        fs_err::write(&file, "one").unwrap();
        let first = store.digest_outside(&file, false).unwrap();
        assert_eq!(store.digest_outside(&file, false).unwrap(), first);
        // Same length, written at once: only the racy-timestamp rule can see this.
        fs_err::write(&file, "two").unwrap();
        assert_ne!(store.digest_outside(&file, false).unwrap(), first);
    }

    /// Times of a file whose mapped page is dirty already do not move.
    #[test]
    fn a_file_that_is_open_for_writing_is_read_each_time() {
        let (_folder, store, file) = store();
        fs_err::write(&file, "one").unwrap();
        let writer = fs_err::OpenOptions::new().write(true).open(&file).unwrap();
        let pause = || std::thread::sleep(std::time::Duration::from_millis(30));
        pause();
        store.digest_outside(&file, false).unwrap();
        let remembered = || std::fs::read_dir(store.root().join("stat")).map_or(0, Iterator::count);
        assert_eq!(remembered(), 0);
        drop(writer);
        let digest = store.digest_outside(&file, false).unwrap();
        if Place::of(&file).unwrap().is_some() {
            assert_eq!(remembered(), 1);
        }
        // Open again: what was remembered of it holds until its times move.
        let _writer = fs_err::OpenOptions::new().write(true).open(&file).unwrap();
        assert_eq!(store.digest_outside(&file, false).unwrap(), digest);
    }
}
