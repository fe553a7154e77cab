//! Objects: immutable files named by the digest of their content.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::Store;
use crate::engine::artifact::Digest;

/// What the file system said of a file when its bytes were last hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectStat {
    /// Length in bytes.
    pub size: u64,
    /// Time of last modification.
    pub mtime_ns: i64,
    /// Time of last change of the inode.
    pub ctime_ns: i64,
    /// The inode.
    pub inode: u64,
    /// When this was looked at, just before the bytes were read.
    pub checked_ns: i64,
}

/// A change within one tick of the file system's clock would leave its times as they were. Linux takes file times
/// from its tick, of 10 ms at most.
const TICK: Duration = Duration::from_millis(12);
/// The tick of file systems that keep whole seconds; FAT even has two.
pub(super) const COARSE_TICK: Duration = Duration::from_secs(2);

/// What the file system said of objects, by digest.
pub type ObjectStats = IndexMap<Digest, ObjectStat>;

impl ObjectStat {
    /// Takes what matters from the file system's answer.
    pub fn of(metadata: &Metadata) -> Self {
        let nanoseconds =
            |seconds: i64, rest: i64| seconds.saturating_mul(1_000_000_000).saturating_add(rest);
        Self {
            size: metadata.len(),
            mtime_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
            inode: metadata.ino(),
            checked_ns: now_ns(),
        }
    }

    /// Whether a file that now looks like `current` still holds the bytes that were hashed.
    pub fn vouches_for(&self, current: &Self) -> bool {
        self.is_like(current)
            && self
                .mtime_ns
                .max(self.ctime_ns)
                .saturating_add(self.tick_ns())
                < self.checked_ns
    }

    /// Whether the file system said the same at another time.
    pub fn is_like(&self, other: &Self) -> bool {
        self.size == other.size
            && self.mtime_ns == other.mtime_ns
            && self.ctime_ns == other.ctime_ns
            && self.inode == other.inode
    }

    /// Takes a file that was hashed and then renamed, which renews its ctime but not its mtime.
    ///
    /// It is vouched for at once, without waiting for the next tick, if the mtime was more than a tick in the past in
    /// `hashed` (what it was when the hashing began) and is the same now: a write meanwhile would have renewed it, and
    /// whoever could still write has ended.
    pub(super) fn of_renamed(metadata: &Metadata, hashed: &Self) -> Self {
        let mut stat = Self::of(metadata);
        let unwritten = stat.mtime_ns == hashed.mtime_ns && stat.size == hashed.size;
        if unwritten && hashed.mtime_ns.saturating_add(hashed.tick_ns()) < hashed.checked_ns {
            let next_tick = stat.mtime_ns.max(stat.ctime_ns) + stat.tick_ns() + 1;
            stat.checked_ns = stat.checked_ns.max(next_tick);
        }
        stat
    }

    fn tick_ns(&self) -> i64 {
        if self.mtime_ns % 1_000_000_000 == 0 {
            nanoseconds(COARSE_TICK)
        } else {
            nanoseconds(TICK)
        }
    }
}

fn now_ns() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, nanoseconds)
}

fn nanoseconds(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)
}

/// An object that is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// There is no such file.
    #[error("object {} is missing", path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// The bytes have another digest.
    #[error("object {} is damaged: its bytes have another digest", path.display())]
    Altered {
        /// Where it is.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("object {} cannot be read: {message}", path.display())]
    Unreadable {
        /// Where it is.
        path: PathBuf,
        /// What the file system said.
        message: String,
        /// The same, for programs.
        kind: ErrorKind,
    },
}

impl Damage {
    /// Whether the object may be whole, and only this user may not read it.
    pub fn is_denied(&self) -> bool {
        matches!(
            self,
            Self::Unreadable {
                kind: ErrorKind::PermissionDenied,
                ..
            }
        )
    }

    fn unreadable(path: PathBuf, error: &std::io::Error) -> Self {
        Self::Unreadable {
            path,
            message: error.to_string(),
            kind: error.kind(),
        }
    }
}

/// Digests the bytes of a file.
pub(in crate::engine) fn digest_file(path: &Path) -> std::io::Result<Digest> {
    digest_open(fs_err::File::open(path)?.file(), || Ok(()))
}

/// Digests the bytes of a file that was just opened; an error of `go_on` ends that.
///
/// The file is read, not mapped: one that another program cuts short meanwhile must not end this process. One thread and
/// pieces that stay in its cache take half the CPU time of several threads, and no more wall time, since reading is what
/// takes it.
fn digest_open(
    mut file: &File,
    go_on: impl Fn() -> std::io::Result<()>,
) -> std::io::Result<Digest> {
    const PIECE: usize = 128 << 10;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let mut piece = vec![0; length.saturating_add(1).min(PIECE)];
    let mut hasher = blake3::Hasher::new();
    loop {
        go_on()?;
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finalize().into()),
            count => hasher.update(&piece[..count]),
        };
    }
}

impl Store {
    /// Digests the bytes of a file, unless it is told to stop.
    pub(super) fn digest_file(&self, path: &Path) -> std::io::Result<Digest> {
        self.digest_open(fs_err::File::open(path)?.file())
    }

    /// The same of a file that was just opened.
    pub(super) fn digest_open(&self, file: &File) -> std::io::Result<Digest> {
        digest_open(file, || self.go_on())
    }

    /// Reads an object's bytes and compares their digest with its name.
    pub fn check_object(&self, digest: &Digest) -> Result<ObjectStat, Damage> {
        let path = self.object_path(digest);
        let metadata = match std::fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(Damage::Missing { path });
            }
            Err(error) => return Err(Damage::unreadable(path, &error)),
        };
        // Taken before the bytes are read: a write meanwhile must not seem to have been there already.
        let stat = ObjectStat::of(&metadata);
        match self.digest_file(&path) {
            Ok(found) if found == *digest => Ok(stat),
            Ok(_) => Err(Damage::Altered { path }),
            Err(error) => Err(Damage::unreadable(path, &error)),
        }
    }

    /// Checks an object by what the file system says of it, and by its bytes only if that does not suffice.
    ///
    /// Returns a new stat if the bytes were read.
    pub fn glance_at_object(
        &self,
        digest: &Digest,
        known: Option<&ObjectStat>,
    ) -> Result<Option<ObjectStat>, Damage> {
        let path = self.object_path(digest);
        match std::fs::metadata(&path) {
            Ok(metadata)
                if known.is_some_and(|known| known.vouches_for(&ObjectStat::of(&metadata))) =>
            {
                Ok(None)
            }
            _ => self.check_object(digest).map(Some),
        }
    }

    /// Lists the objects by name, sorted.
    pub fn objects(&self) -> std::io::Result<Vec<Digest>> {
        let folder = self.root().join("objects");
        let mut digests = Vec::new();
        if !folder.is_dir() {
            return Ok(digests);
        }
        for prefix in fs_err::read_dir(&folder)? {
            let prefix = prefix?;
            if !prefix.file_type()?.is_dir() {
                continue;
            }
            for entry in fs_err::read_dir(prefix.path())? {
                let name = format!(
                    "{}{}",
                    prefix.file_name().to_string_lossy(),
                    entry?.file_name().to_string_lossy()
                );
                digests.extend(name.parse::<Digest>());
            }
        }
        digests.sort_unstable();
        Ok(digests)
    }
}
