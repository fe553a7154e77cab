//! Garbage: what no pipeline and no recent run needs. Records of what goes are kept aside, as evicted.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::PathBuf;

use super::Store;
use super::lease::Lease;
use super::lock::{Lock, LockState};
use super::publish::publish;
use super::record::Record;
use super::record_name;
use crate::engine::artifact::Digest;
use crate::engine::machine::unique_name;

/// Who has the store alone, and who has it with others; so their leases are named.
const ALONE: &str = "collection";
const SHARED: &str = "shared-";
const COLLECTION: &str = "a collection";
const OTHERS: &str = "a run, an audit or another command";

/// What a collection would take away.
#[derive(Debug, Default)]
pub struct Garbage {
    /// Results, with the bytes that go with each alone or with others of this list.
    pub results: Vec<(Record, u64)>,
    /// Objects that no record names, of stages that were killed.
    pub strays: Vec<Digest>,
    /// Scratch of unfinished stages, and states of finished trainings, that nothing needs.
    pub folders: Vec<PathBuf>,
    /// Bytes of everything together.
    pub bytes: u64,
    objects: BTreeSet<Digest>,
}

impl Garbage {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.results.is_empty() && self.strays.is_empty() && self.folders.is_empty()
    }
}

impl Store {
    /// Finds what is not among the fingerprints `kept` and not part of a result that is.
    ///
    /// A damaged record is no garbage: `verify --repair` is for that.
    pub fn garbage(&self, kept: &BTreeSet<Digest>) -> std::io::Result<Garbage> {
        let mut garbage = Garbage::default();
        let (records, damaged) = self.read_records();
        if let Some(denied) = damaged.iter().find(|error| error.is_denied()) {
            let message = format!("{denied}; nothing is taken away, for it may need anything");
            return Err(std::io::Error::new(
                std::io::ErrorKind::PermissionDenied,
                message,
            ));
        }
        let (live, dead): (Vec<Record>, Vec<Record>) = records
            .into_iter()
            .partition(|record| kept.contains(&record.fingerprint));
        let objects_of = |record: &Record| -> BTreeSet<Digest> {
            record.files().map(|file| file.digest).collect()
        };
        let needed: BTreeSet<Digest> = live.iter().flat_map(objects_of).collect();
        let mut named = needed.clone();
        for record in dead {
            let objects = objects_of(&record);
            let own: Vec<Digest> = objects.difference(&needed).copied().collect();
            let bytes = own.iter().map(|digest| self.object_size(digest)).sum();
            garbage.objects.extend(own);
            named.extend(objects);
            garbage.results.push((record, bytes));
        }
        // A record that cannot be read may name any object.
        if damaged.is_empty() {
            garbage.strays = self.objects()?;
            garbage.strays.retain(|digest| !named.contains(digest));
            garbage.objects.extend(&garbage.strays);
        }
        for parent in ["scratch", "states"] {
            let Ok(entries) = std::fs::read_dir(self.root().join(parent)) else {
                continue;
            };
            for entry in entries.flatten() {
                let fingerprint = entry
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse().ok());
                if fingerprint.is_none_or(|fingerprint: Digest| !kept.contains(&fingerprint)) {
                    garbage.folders.push(entry.path());
                }
            }
        }
        let sizes = garbage
            .objects
            .iter()
            .map(|digest| self.object_size(digest));
        garbage.bytes = sizes.sum::<u64>() + garbage.folders.iter().map(folder_size).sum::<u64>();
        Ok(garbage)
    }

    /// Takes garbage away; a record goes aside before its objects go, so that no record points to nothing.
    ///
    /// The caller holds [`Self::lock_alone`].
    pub fn collect(&self, garbage: &Garbage) -> std::io::Result<()> {
        for (record, _) in &garbage.results {
            let name = record_name(&record.fingerprint, record.class_beside());
            let from = self.root().join("records").join(&name);
            publish(
                &self.root().join("evicted").join(name),
                &fs_err::read(&from)?,
            )?;
            fs_err::remove_file(from)?;
        }
        for digest in &garbage.objects {
            match fs_err::remove_file(self.object_path(digest)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        for folder in &garbage.folders {
            fs_err::remove_dir_all(folder)?;
        }
        Ok(())
    }

    fn object_size(&self, digest: &Digest) -> u64 {
        std::fs::metadata(self.object_path(digest)).map_or(0, |metadata| metadata.len())
    }

    /// Whether there was a result that a collection took away.
    pub fn is_evicted(&self, fingerprint: &Digest) -> bool {
        let name = record_name(fingerprint, None);
        self.root().join("evicted").join(name).exists()
    }

    /// Whether somebody ever held the store.
    pub fn has_lock(&self) -> bool {
        self.root().join("locks").join("store").exists()
    }

    /// Keeps a collection from starting, unless one is under way.
    pub fn try_share(&self) -> std::io::Result<LockState> {
        let state = self.use_lock(File::try_lock_shared, COLLECTION, || {
            self.ask_lease(&format!("{SHARED}{}", unique_name()), OTHERS)
        })?;
        // Each makes its own lease before it looks for the other's: at least one of two sees that it is late.
        if self.takes_leases()
            && Lease::is_held(&self.root().join("locks").join(format!("{ALONE}.lease")))?
        {
            return Ok(LockState::Busy {
                holder: COLLECTION.to_owned(),
            });
        }
        Ok(state)
    }

    /// Asks for the store alone, with nobody at work on it.
    pub fn lock_alone(&self) -> std::io::Result<LockState> {
        let state = self.use_lock(File::try_lock, OTHERS, || self.ask_lease(ALONE, COLLECTION))?;
        if !self.takes_leases() {
            return Ok(state);
        }
        for entry in fs_err::read_dir(self.root().join("locks"))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with(SHARED) && name.ends_with(".lease") && Lease::is_held(&path)? {
                return Ok(LockState::Busy {
                    holder: OTHERS.to_owned(),
                });
            }
        }
        Ok(state)
    }

    /// Whether `lock` is one of [`Self::try_share`], and the store was not taken away since.
    pub(super) fn holds(&self, lock: &Lock) -> bool {
        lock.is_at(&self.root().join("locks").join("store"))
    }

    fn use_lock(
        &self,
        lock: impl FnOnce(&File) -> Result<(), TryLockError>,
        holder: &str,
        ask_lease: impl FnOnce() -> std::io::Result<Result<Option<Lease>, String>>,
    ) -> std::io::Result<LockState> {
        let file = self.use_file()?;
        match self.locked(|| lock(&file)) {
            Ok(()) => Ok(match ask_lease()? {
                Ok(lease) => LockState::Held(Lock::of(file, lease)),
                Err(holder) => LockState::Busy { holder },
            }),
            Err(TryLockError::WouldBlock) => Ok(LockState::Busy {
                holder: holder.to_owned(),
            }),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn use_file(&self) -> std::io::Result<File> {
        let folder = self.root().join("locks");
        let path = folder.join("store");
        // Reading is enough to lock, but for one that has it alone on a network file system: the file may be another user's.
        let mut options = File::options();
        if let Ok(file) = options.read(true).write(true).open(&path) {
            return Ok(file);
        }
        if let Ok(file) = File::open(&path) {
            return Ok(file);
        }
        fs_err::create_dir_all(&folder)?;
        let mut options = fs_err::OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false);
        Ok(file.open(path)?.into_parts().0)
    }
}

fn folder_size(folder: &PathBuf) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return std::fs::symlink_metadata(folder).map_or(0, |metadata| metadata.len());
    };
    let sizes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => folder_size(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    sizes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::artifact::{Artifact, ArtifactFile};
    use crate::engine::store::record::tests::record;

    /// A result with an object of its own and one that both have.
    fn stored(store: &Store, lr: f64) -> Record {
        let mut record = record(lr);
        let files = [format!("own {lr}"), "shared".to_owned()].map(|text| {
            let digest = Digest::of(text.as_bytes());
            publish(&store.object_path(&digest), text.as_bytes()).unwrap();
            let size = text.len() as u64;
            ArtifactFile {
                path: format!("f{}", digest.short()),
                size,
                digest,
                executable: false,
            }
        });
        let artifact = Artifact::new("k", files.to_vec());
        record.outputs.insert("out".to_owned(), artifact);
        store.write_record(&record).unwrap();
        record
    }

    #[test]
    fn only_what_nothing_needs_goes_and_its_record_stays_aside() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let (kept, dead) = (stored(&store, 0.1), stored(&store, 0.2));
        let stray = Digest::of(b"stray");
        publish(&store.object_path(&stray), b"stray").unwrap();
        fs_err::create_dir_all(store.scratch_path(&dead.fingerprint)).unwrap();
        fs_err::create_dir_all(store.scratch_path(&kept.fingerprint)).unwrap();

        let garbage = store.garbage(&[kept.fingerprint].into()).unwrap();
        assert_eq!(garbage.results.len(), 1);
        assert_eq!((garbage.results[0].1, garbage.bytes), (7, 12));
        assert_eq!(garbage.strays, [stray]);
        store.collect(&garbage).unwrap();
        assert!(store.is_evicted(&dead.fingerprint) && !store.is_evicted(&kept.fingerprint));
        let mut whole = store.read_record(&kept.fingerprint, None).unwrap().unwrap();
        store.check_record(&mut whole, true).unwrap();
        assert_eq!(store.read_record(&dead.fingerprint, None).unwrap(), None);
        assert_eq!(store.objects().unwrap().len(), 2);
        assert!(!store.scratch_path(&dead.fingerprint).exists());
        assert!(store.scratch_path(&kept.fingerprint).exists());
        assert!(
            store
                .garbage(&[kept.fingerprint].into())
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn a_collection_and_a_run_exclude_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let run = store.try_share().unwrap();
        let another = store.try_share().unwrap();
        assert!(matches!(
            store.lock_alone().unwrap(),
            LockState::Busy { .. }
        ));
        drop((run, another));
        let collection = store.lock_alone().unwrap();
        assert!(matches!(collection, LockState::Held(_)));
        assert!(matches!(store.try_share().unwrap(), LockState::Busy { .. }));
    }
}
