//! Taking a result from the shared store: every byte of it is checked before it counts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::TryLockError;
use std::io::{Seek, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::bucket::BucketError;
use super::{Remote, RemoteError, held, in_parallel, object_key, record_key};
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

/// Bytes of a record at most: as many as one of a hundred thousand files has.
pub(super) const LONGEST_RECORD: u64 = 32 << 20;
/// Folders of what is under way: objects that come, and notes of those that go.
const PARTIAL: &str = "partial";
pub(super) const UPLOADS: &str = "uploads";
/// Bytes that are asked for at once; an object of more is large.
pub(super) const PIECE: u64 = 16 << 20;
/// Objects of one result that are on their way at once.
pub(super) const OBJECTS_AT_ONCE: usize = 4;

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
        tell: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Found, RemoteError> {
        let found = find_among(wanted, |beside| self.record(fingerprint, beside))?;
        let Some(mut record) = found else {
            return Ok(Found::Nothing);
        };
        if !wanted.is_made_of(&record.outputs) {
            let key = record_key(fingerprint, record.class_beside());
            return Err(self.damage(&key, "it has other outputs than its stage"));
        }
        self.fetch_objects(store, &mut record, tell)?;
        // Which one is first is another matter in each store.
        let first = store.read_record(fingerprint, None).ok().flatten();
        let class = &record.provenance.numerics;
        record.beside = first.is_some_and(|first| first.provenance.numerics != *class);
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
        let read = || match self.bucket.read(&key, None, LONGEST_RECORD) {
            Ok(bytes) => Ok(Some(read_record(bytes, fingerprint))),
            Err(BucketError::Absent(_)) => Ok(None),
            Err(BucketError::TooLong(_)) => Ok(Some(Err("it is too long".to_owned()))),
            Err(error) => Err(error),
        };
        let mut found = read()?;
        // A line may have altered it.
        if found.as_ref().is_some_and(Result::is_err) {
            found = read()?;
        }
        let Some(found) = found else {
            return Ok(None);
        };
        let mut record = found.map_err(|what| self.damage(&key, &what))?;
        held(&self.damaged).remove(&key);
        record.beside = beside.is_some();
        if let Some(class) = beside
            && record_key(fingerprint, record.class_beside())
                != record_key(fingerprint, Some(class))
        {
            return Err(self.damage(&key, "it is of another numerics class"));
        }
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
        tell: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<(), RemoteError> {
        let objects = objects_of(record);
        let told = Told::new(&objects, tell);
        let fetched = in_parallel(&objects, OBJECTS_AT_ONCE, |(digest, size)| {
            let stat = match store.check_object(digest) {
                Ok(stat) => stat,
                Err(_) => self.twice(digest, || self.fetch_object(store, digest, *size, &told))?,
            };
            if stat.size != *size {
                return Err(self.damage(&object_key(digest), "its record says another size"));
            }
            Ok((*digest, stat))
        });
        record.stats = fetched.into_iter().collect::<Result<ObjectStats, _>>()?;
        Ok(())
    }

    /// Reads an object, and once more if it seems damaged: a line may have altered it, or a disk what came before.
    pub(super) fn twice<T>(
        &self,
        digest: &Digest,
        read: impl Fn() -> Result<T, RemoteError>,
    ) -> Result<T, RemoteError> {
        match read() {
            Err(RemoteError::Damaged(_)) => {
                let again = read()?;
                self.note_there(&object_key(digest));
                Ok(again)
            }
            first => first,
        }
    }

    /// Fetches an object, from where an earlier try ended.
    fn fetch_object(
        &self,
        store: &Store,
        digest: &Digest,
        size: u64,
        told: &Told,
    ) -> Result<ObjectStat, RemoteError> {
        let _turn = (size > PIECE).then(|| self.large.take());
        if size > PIECE && self.bucket.size(&object_key(digest))? != Some(size) {
            let what = "its record says another size, or it is not there";
            return Err(self.damage(&object_key(digest), what));
        }
        let mut partial = match Partial::open(store, &self.notes(store), digest)? {
            Begun::Here(partial) => partial,
            Begun::Come(stat) => return Ok(stat),
        };
        if partial.length > size {
            partial.restart()?;
        }
        has_room(store.root(), size - partial.length)?;
        told.more(partial.length);
        while partial.length < size {
            store.go_on()?;
            self.go_on()?;
            let end = size.min(partial.length + PIECE);
            let bytes = match self.piece(digest, partial.length..end, size) {
                Err(error @ RemoteError::Damaged(_)) => {
                    partial.remove()?;
                    return Err(error);
                }
                bytes => bytes?,
            };
            partial.append(&bytes)?;
            told.more(bytes.len() as u64);
        }
        if Digest::from(partial.hasher.finalize()) != *digest {
            partial.remove()?;
            return Err(self.damage(&object_key(digest), "its bytes have another digest"));
        }
        let (taken, stat) = store.take_in(&partial.path)?;
        // One that was there already was kept.
        partial.remove()?;
        if taken != *digest {
            let what = format!("{} was changed by another program", partial.path.display());
            return Err(std::io::Error::other(what).into());
        }
        Ok(stat)
    }

    /// Reads a part of an object of a size, or all of it.
    pub(super) fn piece(
        &self,
        digest: &Digest,
        part: Range<u64>,
        size: u64,
    ) -> Result<Vec<u8>, RemoteError> {
        let key = object_key(digest);
        let length = part.end - part.start;
        let part = (length < size).then_some(part);
        match self.bucket.read(&key, part, length) {
            Ok(bytes) if bytes.len() as u64 == length => Ok(bytes),
            Ok(_) | Err(BucketError::TooShort(_)) => {
                Err(self.damage(&key, "it is shorter than its record says"))
            }
            Err(BucketError::Absent(_)) => {
                Err(self.damage(&key, "its record names it, and it is not there"))
            }
            Err(BucketError::TooLong(_)) => {
                Err(self.damage(&key, "it is longer than its record says"))
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// The objects of a result, each once, with their sizes.
pub(super) fn objects_of(record: &Record) -> Vec<(Digest, u64)> {
    let objects = record.files().map(|file| (file.digest, file.size));
    let objects: BTreeMap<Digest, u64> = objects.collect();
    objects.into_iter().collect()
}

/// Tells of the bytes of several transfers together.
pub(super) struct Told<'a> {
    done: AtomicU64,
    total: u64,
    tell: &'a (dyn Fn(u64, u64) + Sync),
}

impl<'a> Told<'a> {
    pub(super) fn new(objects: &[(Digest, u64)], tell: &'a (dyn Fn(u64, u64) + Sync)) -> Self {
        let sizes = objects.iter().map(|(_, size)| *size);
        Self {
            done: AtomicU64::new(0),
            total: sizes.fold(0, u64::saturating_add),
            tell,
        }
    }

    pub(super) fn more(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.tell)(done, self.total);
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
    let mut sizes = BTreeMap::new();
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
        if output.files.iter().any(|file| {
            sizes
                .insert(file.digest, file.size)
                .is_some_and(|size| size != file.size)
        }) {
            return Err(format!(
                "two files of `{name}` have one digest and two sizes"
            ));
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
            let is_done = is_partial && is_here;
            if !is_old && !is_done {
                continue;
            }
            // Held until it is gone: nobody begins to write to what is taken away.
            if let Ok(held) = std::fs::File::open(file.path())
                && held.try_lock().is_ok()
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
            let Ok(opened) = Self::locked(path.clone())? else {
                // Where a file system has no locks, each has a file of its own.
                break;
            };
            if let Some(partial) = opened {
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
        let path = folder.join(format!("{digest}.{}", unique_name()));
        let file = Self::file(&path)?;
        Self::of(path, file).map(Begun::Here)
    }

    /// Opens a file, if nobody else has it; an error within tells that there are no locks.
    fn locked(path: PathBuf) -> std::io::Result<Result<Option<Self>, std::io::Error>> {
        let file = Self::file(&path)?;
        match file.file().try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(Ok(None)),
            Err(TryLockError::Error(error)) => return Ok(Err(error)),
            Ok(()) => {}
        }
        // Who had it may have moved it away.
        let there = std::fs::metadata(&path).map(|there| there.ino());
        if there.ok() != Some(file.metadata()?.ino()) {
            return Ok(Ok(None));
        }
        Self::of(path, file).map(|partial| Ok(Some(partial)))
    }

    fn file(path: &Path) -> std::io::Result<fs_err::File> {
        let mut options = fs_err::OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        options.open(path)
    }

    /// Reads what is there already.
    fn of(path: PathBuf, mut file: fs_err::File) -> std::io::Result<Self> {
        let mut hasher = Box::new(blake3::Hasher::new());
        let length = hasher.update_reader(&mut file)?.count();
        Ok(Self {
            path,
            file,
            hasher,
            length,
        })
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
