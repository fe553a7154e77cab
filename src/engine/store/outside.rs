//! Digests of files outside the store, kept so that unchanged files are not read again.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::commit::publish_unsynced;
use super::object::{ObjectStat, digest_file};
use super::{Store, publish};
use crate::engine::artifact::Digest;
use crate::files::irregular;

#[derive(Serialize, Deserialize)]
struct Remembered {
    path: PathBuf,
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
        let path = fs_err::canonicalize(path)?;
        let key = Digest::of(path.as_os_str().as_encoded_bytes());
        let memory = self.root().join("stat").join(key.to_string());
        let remembered = std::fs::read(&memory)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Remembered>(&bytes).ok())
            .filter(|remembered| !paranoid && remembered.path == path);
        let stat = ObjectStat::of(&metadata);
        if let Some(remembered) = remembered
            && remembered.stat.vouches_for(&stat)
        {
            return Ok(remembered.digest);
        }
        let digest = digest_file(&path)?;
        // A file that changed while it was read has no digest that could be remembered.
        if self.root().is_dir()
            && ObjectStat::of(&fs_err::metadata(&path)?).mtime_ns == stat.mtime_ns
        {
            let text = serde_json::to_vec(&Remembered { path, stat, digest })?;
            let _ = publish_unsynced(&memory, &text);
        }
        Ok(digest)
    }
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

    #[test]
    fn a_changed_file_has_another_digest_whatever_its_times_say() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        fs_err::create_dir_all(store.root()).unwrap();
        let file = folder.path().join("data");
        fs_err::write(&file, "one").unwrap();
        let first = store.digest_outside(&file, false).unwrap();
        assert_eq!(store.digest_outside(&file, false).unwrap(), first);
        // Same length, written at once: only the racy-timestamp rule can see this.
        fs_err::write(&file, "two").unwrap();
        assert_ne!(store.digest_outside(&file, false).unwrap(), first);
    }
}
