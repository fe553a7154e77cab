//! Taking a result from the shared store: every byte of it is checked before it counts.

use std::collections::BTreeSet;
use std::io::{Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::bucket::BucketError;
use super::{Remote, RemoteError, object_key, record_key};
use crate::engine::artifact::{Artifact, Digest, is_inside};
use crate::engine::machine::unique_name;
use crate::engine::store::object::{ObjectStat, ObjectStats};
use crate::engine::store::publish::make_folder;
use crate::engine::store::record::{Record, Wanted, decode, find_among};
use crate::engine::store::{Provenance, Store};

/// What the shared store had for a fingerprint.
#[derive(Debug, Clone, PartialEq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A result, which lies in the store now; and how it was made.
    Result(Box<Provenance>),
}

/// Bytes of a record at most. One of ten thousand files has a few million.
const LONGEST_RECORD: u64 = 256 << 20;
/// Folders of what is under way: objects that come, and notes of those that go.
const PARTIAL: &str = "partial";
pub(super) const UPLOADS: &str = "uploads";
/// Bytes that are asked for at once.
pub(super) const PIECE: u64 = 16 << 20;

impl Remote {
    /// Brings the result of a fingerprint into a store, if there is one that counts; `tell` hears of bytes that are there,
    /// of how many.
    ///
    /// # Errors
    /// If it cannot be asked, or what it has is damaged: then nothing of it counts.
    pub fn fetch(
        &self,
        store: &Store,
        fingerprint: &Digest,
        wanted: &Wanted,
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<Found, RemoteError> {
        let found = find_among(wanted, |beside| self.record(fingerprint, beside))?;
        let Some(mut record) = found else {
            return Ok(Found::Nothing);
        };
        self.fetch_objects(store, &mut record, tell)?;
        let made = record.provenance.clone();
        store.write_first_record(&record)?;
        Ok(Found::Result(Box::new(made)))
    }

    /// Reads a record, and believes none of it that cannot be checked.
    pub(super) fn record(
        &self,
        fingerprint: &Digest,
        beside: Option<&str>,
    ) -> Result<Option<Record>, RemoteError> {
        let key = record_key(fingerprint, beside);
        let bytes = match self.bucket.read(&key, None, LONGEST_RECORD) {
            Ok(bytes) => bytes,
            Err(BucketError::Absent(_)) => return Ok(None),
            Err(BucketError::TooLong(_)) => return Err(self.damage(&key, "it is too long")),
            Err(error) => return Err(error.into()),
        };
        let mut record =
            read_record(bytes, fingerprint).map_err(|what| self.damage(&key, &what))?;
        record.beside = beside.is_some();
        Ok(Some(record))
    }

    pub(super) fn damage(&self, key: &str, what: &str) -> RemoteError {
        self.note_damage(key);
        RemoteError::Damaged(format!("{}/{key} is damaged: {what}", self.address))
    }

    fn fetch_objects(
        &self,
        store: &Store,
        record: &mut Record,
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<(), RemoteError> {
        let files = record.outputs.values().flat_map(|output| &output.files);
        let mut seen = BTreeSet::new();
        let wanted: Vec<(Digest, u64)> = files
            .map(|file| (file.digest, file.size))
            .filter(|(digest, _)| seen.insert(*digest))
            .collect();
        let total = wanted
            .iter()
            .fold(0, |sum: u64, (_, size)| sum.saturating_add(*size));
        let mut done = 0;
        let mut stats = ObjectStats::new();
        for (digest, size) in wanted {
            let stat = match store.check_object(&digest) {
                Ok(stat) => stat,
                Err(_) => {
                    self.fetch_object(store, &digest, size, &mut |got| tell(done + got, total))?
                }
            };
            done += size;
            stats.insert(digest, stat);
        }
        record.stats = stats;
        Ok(())
    }

    /// Fetches an object, from where an earlier try ended.
    fn fetch_object(
        &self,
        store: &Store,
        digest: &Digest,
        size: u64,
        tell: &mut dyn FnMut(u64),
    ) -> Result<ObjectStat, RemoteError> {
        let key = object_key(digest);
        let mut partial = match Partial::open(store, &self.notes(store), digest)? {
            Begun::Here(partial) => partial,
            Begun::Come(stat) => return Ok(stat),
        };
        if partial.length > size {
            partial.restart()?;
        }
        has_room(store.root(), size - partial.length)?;
        while partial.length < size {
            store.go_on()?;
            let end = size.min(partial.length + PIECE);
            let all = partial.length == 0 && end == size;
            let part = (!all).then_some(partial.length..end);
            let bytes = self.bucket.read(&key, part, end - partial.length);
            let bytes = match bytes {
                Ok(bytes) if bytes.len() as u64 == end - partial.length => bytes,
                Ok(_) => {
                    partial.remove()?;
                    return Err(self.damage(&key, "it is shorter than its record says"));
                }
                Err(BucketError::Absent(_)) => {
                    return Err(self.damage(&key, "its record names it, and it is not there"));
                }
                Err(BucketError::TooLong(_)) => {
                    partial.remove()?;
                    return Err(self.damage(&key, "it is longer than its record says"));
                }
                Err(error) => return Err(error.into()),
            };
            partial.append(&bytes)?;
            tell(partial.length);
        }
        if Digest::from(partial.hasher.finalize()) != *digest {
            partial.remove()?;
            return Err(self.damage(&key, "its bytes have another digest"));
        }
        let (_, stat) = store.take_in(&partial.path)?;
        // One that was there already was kept.
        let _ = std::fs::remove_file(&partial.path);
        Ok(stat)
    }
}

/// Reads what claims to be the record of a fingerprint.
fn read_record(bytes: Vec<u8>, fingerprint: &Digest) -> Result<Record, String> {
    let text = String::from_utf8(bytes).map_err(|_| "it is not text")?;
    let mut record: Record = decode(&text)?;
    let of_manifest = record.manifest.fingerprint();
    if record.fingerprint != *fingerprint || of_manifest != Some(*fingerprint) {
        return Err(format!(
            "it belongs to fingerprint {}",
            of_manifest.unwrap_or(record.fingerprint).short()
        ));
    }
    for (name, output) in &record.outputs {
        if !is_inside(name) || name.contains('/') {
            return Err("the name of an output is a path".to_owned());
        }
        let paths: BTreeSet<&str> = output.files.iter().map(|file| file.path.as_str()).collect();
        if !paths.iter().all(|path| is_inside(path)) {
            return Err(format!("a file of `{name}` lies outside of it"));
        }
        let is_folder_of = |path: &&str| {
            let ends = path.match_indices('/').map(|(end, _)| end);
            ends.into_iter().any(|end| paths.contains(&path[..end]))
        };
        if paths.len() < output.files.len() || paths.iter().any(is_folder_of) {
            return Err(format!("two files of `{name}` have one path"));
        }
        if Artifact::new(&output.kind, output.files.clone()) != *output {
            return Err(format!("`{name}` has another digest than its files"));
        }
    }
    record.stats.clear();
    Ok(record)
}

/// An error where a disk has no room for so much.
fn has_room(folder: &Path, bytes: u64) -> std::io::Result<()> {
    let free = rustix::fs::statvfs(folder).map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    match free {
        Ok(free) if free < bytes => Err(std::io::Error::new(
            std::io::ErrorKind::StorageFull,
            format!("no space left on the disk of {}", folder.display()),
        )),
        _ => Ok(()),
    }
}

impl Store {
    /// Removes what transfers left that nobody has gone on with for long, or that came by another way meanwhile.
    pub(in crate::engine::store) fn sweep_transfers(&self) {
        const LONG: Duration = Duration::from_hours(7 * 24);
        let folders = std::fs::read_dir(self.root().join("remote"));
        let folders = folders.into_iter().flatten().flatten();
        let files = folders
            .flat_map(|folder| [PARTIAL, UPLOADS].map(|name| folder.path().join(name)))
            .filter_map(|folder| std::fs::read_dir(folder).ok())
            .flat_map(Iterator::flatten);
        for file in files {
            let is_old = file.metadata().and_then(|metadata| metadata.modified());
            let is_old = is_old.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LONG));
            let name = file.file_name().into_string().unwrap_or_default();
            let is_here = name
                .parse()
                .is_ok_and(|digest| self.object_path(&digest).exists());
            let is_partial = file
                .path()
                .parent()
                .is_some_and(|folder| folder.ends_with(PARTIAL));
            if (is_old || is_partial && is_here)
                && std::fs::File::open(file.path()).is_ok_and(|file| file.try_lock().is_ok())
            {
                let _ = std::fs::remove_file(file.path());
            }
        }
    }
}

/// An object of which the first bytes may be there.
struct Partial {
    path: PathBuf,
    file: fs_err::File,
    hasher: Box<blake3::Hasher>,
    length: u64,
}

/// The answer to beginning to fetch an object.
enum Begun {
    /// It is this one's to go on.
    Here(Partial),
    /// Another has fetched it.
    Come(ObjectStat),
}

impl Partial {
    /// Opens what an earlier try left. Where another is at it, this one waits as long as that gets on, and then begins a file
    /// of its own.
    fn open(store: &Store, folder: &Path, digest: &Digest) -> std::io::Result<Begun> {
        const LONG: Duration = Duration::from_mins(1);
        let folder = folder.join(PARTIAL);
        make_folder(&folder)?;
        let path = folder.join(digest.to_string());
        let length = || std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        let (mut seen, mut since) = (length(), Instant::now());
        while since.elapsed() < LONG {
            if let Some(partial) = Self::open_at(path.clone())? {
                // It may have come between the look for it and this.
                return Ok(match store.check_object(digest) {
                    Ok(stat) => {
                        partial.remove()?;
                        Begun::Come(stat)
                    }
                    Err(_) => Begun::Here(partial),
                });
            }
            store.go_on()?;
            std::thread::sleep(Duration::from_millis(20));
            if length() != seen {
                (seen, since) = (length(), Instant::now());
            }
        }
        let own = Self::open_at(folder.join(format!("{digest}.{}", unique_name())))?;
        own.map(Begun::Here)
            .ok_or_else(|| std::io::Error::other("a file of a new name is held by another"))
    }

    /// Opens a file, if nobody else has it.
    fn open_at(path: PathBuf) -> std::io::Result<Option<Self>> {
        let mut options = fs_err::OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut file = options.open(&path)?;
        if let Err(std::fs::TryLockError::WouldBlock) = file.file().try_lock() {
            return Ok(None);
        }
        // Who had it may have moved it away.
        let is_at = std::fs::metadata(&path).map(|there| there.ino());
        if is_at.ok() != Some(file.metadata()?.ino()) {
            return Ok(None);
        }
        let mut hasher = Box::new(blake3::Hasher::new());
        let length = hasher.update_reader(&mut file)?.count();
        Ok(Some(Self {
            path,
            file,
            hasher,
            length,
        }))
    }

    fn append(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        self.hasher.reset();
        self.length = 0;
        Ok(())
    }

    fn remove(&self) -> std::io::Result<()> {
        match fs_err::remove_file(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
