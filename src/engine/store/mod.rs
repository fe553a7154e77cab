//! The store: content-addressed objects, and records that say which stage made them.
//!
//! ```text
//! .flowgraph/
//!   objects/ab/cdef...            immutable files, named by the digest of their content
//!   records/<fingerprint>.json    manifest, outputs, provenance: the only thing that makes a result exist; beside
//!                                 it `<fingerprint>.<class>.json`, computed anew for another numerics class
//!   runs/<id>/                    event log and per-stage logs of one invocation
//!   scratch/<fingerprint>/        staging and checkpoints of an unfinished stage
//!   states/<key>/<steps>/         where finished trainings ended, for longer ones to continue from
//!   sources/                      downloads, and what unpinned sources turned out to be
//!   evicted/<fingerprint>.json    records of results that a collection took away
//!   locks/                        one file for each fingerprint that a worker is or was at, and leases beside them
//!   cluster/<job>/                what a job of a cluster is told and tells
//!   stat/                         digests of outside files, by size, times and inode
//!   remote/<address>/             transfers from and to a shared store that are not done
//! ```
//!
//! Everything is written elsewhere, synced, then renamed into place; a record comes last.

mod collect;
mod commit;
mod lease;
mod lock;
mod object;
mod outside;
mod place;
mod publish;
mod record;
mod remote;
mod states;

use std::fs::TryLockError;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use collect::Garbage;
pub(super) use commit::is_executable;
pub(super) use lease::Lease;
use lease::LeaseState;
pub use lock::{Lock, LockState};
pub(super) use object::digest_file;
pub use object::{Damage, ObjectStat, ObjectStats};
pub use place::is_of_this_machine;
pub use publish::publish;
pub use record::{Computed, GpuUsed, Provenance, Record, RecordError, RecordHead, Wanted};
pub(super) use remote::AT_ONCE;
#[cfg(test)]
pub(super) use remote::{BucketError, tests::Memory};
pub use remote::{
    Found, Listed, Remote, RemoteError, RemoteGarbage, RemoteSettings, Sent, by_class, in_parallel,
    made_by,
};

use super::artifact::Digest;

/// A folder that holds results.
#[derive(Clone)]
pub struct Store {
    root: PathBuf,
    stop: Arc<AtomicBool>,
    tell: Option<Arc<TellOfFile>>,
}

/// Is told of a large file, and of how many bytes it has, before it is read.
type TellOfFile = dyn Fn(&Path, u64) + Send + Sync;
/// From so many bytes on people wonder what takes so long.
const LARGE: u64 = 1 << 30;

impl std::fmt::Debug for Store {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Store").field(&self.root).finish()
    }
}

impl Store {
    /// Names a store; nothing is touched until something is read or written.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            stop: Arc::default(),
            tell: None,
        }
    }

    /// Has `tell` called with each file outside the store that is about to be read and takes its time.
    #[must_use]
    pub fn tells_of_large_files(self, tell: impl Fn(&Path, u64) + Send + Sync + 'static) -> Self {
        let tell: Option<Arc<TellOfFile>> = Some(Arc::new(tell));
        Self { tell, ..self }
    }

    fn announce(&self, path: &Path, bytes: u64) {
        if let (Some(tell), true) = (&self.tell, bytes >= LARGE) {
            tell(path, bytes);
        }
    }

    /// Ends long reading and copying with an error as soon as `stop` is set.
    #[must_use]
    pub fn stopped_by(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..self }
    }

    /// An error if this is the time to stop.
    pub(super) fn go_on(&self) -> std::io::Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(std::io::Error::other("stopped"));
        }
        Ok(())
    }

    /// Whether others may be at work on this store whose locks do not hold here: then leases are taken besides.
    fn takes_leases(&self) -> bool {
        match std::env::var(lease::LEASES).as_deref() {
            Ok("always" | "alone") => true,
            Ok("never") => false,
            // Who exports a disk to others sees it as one of its own.
            _ => !is_of_this_machine(self.root()) || self.leases_mark().exists(),
        }
    }

    fn leases_mark(&self) -> PathBuf {
        self.root().join("locks").join("leases")
    }

    /// How long to wait between two questions for what others hold: each costs a file server some work.
    pub(super) fn pause(&self) -> Duration {
        if self.takes_leases() {
            Duration::from_secs(1)
        } else {
            Duration::from_millis(50)
        }
    }

    /// Takes a lock of a file, where such are taken. That a file system has none is no error where leases are taken.
    fn locked(&self, lock: impl FnOnce() -> Result<(), TryLockError>) -> Result<(), TryLockError> {
        const NONE_HERE: [i32; 3] = [libc::ENOSYS, libc::ENOLCK, libc::EOPNOTSUPP];
        if std::env::var(lease::LEASES).as_deref() == Ok("alone") {
            return Ok(());
        }
        match lock() {
            Err(TryLockError::Error(error))
                if error
                    .raw_os_error()
                    .is_some_and(|code| NONE_HERE.contains(&code))
                    && self.takes_leases() =>
            {
                Ok(())
            }
            locked => locked,
        }
    }

    /// Asks for a lease of the name, where leases are taken.
    fn ask_lease(
        &self,
        name: &str,
        holder: &str,
    ) -> std::io::Result<Result<Option<Lease>, String>> {
        if !self.takes_leases() {
            return Ok(Ok(None));
        }
        let folder = self.root().join("locks");
        fs_err::create_dir_all(&folder)?;
        let mark = self.leases_mark();
        if !mark.exists() {
            fs_err::write(mark, "leases are taken besides locks\n")?;
        }
        let path = folder.join(format!("{name}.lease"));
        Ok(match Lease::ask(&path, holder, &self.stop)? {
            LeaseState::Held(lease) => Ok(Some(lease)),
            LeaseState::Busy(holder) => Err(holder),
        })
    }

    /// Shows others that a run goes on, where leases are taken: its folder has one as long as it does.
    pub(super) fn lease_of_run(&self, folder: &Path) -> Option<Lease> {
        if !self.takes_leases() {
            return None;
        }
        match Lease::ask(&folder.join(RUN_LEASE), "the run", &Arc::default()).ok()? {
            LeaseState::Held(lease) => Some(lease),
            LeaseState::Busy(_) => None,
        }
    }

    /// Whether the lease in the folder of a run is held; `None` if there is none.
    pub(super) fn lease_of(folder: &Path) -> Option<bool> {
        let path = folder.join(RUN_LEASE);
        // Who cannot tell had better believe that it goes on.
        path.exists().then(|| Lease::is_held(&path).unwrap_or(true))
    }

    /// Returns the store's folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns where the bytes with `digest` are, or would be.
    pub fn object_path(&self, digest: &Digest) -> PathBuf {
        let name = digest.to_string();
        self.root.join("objects").join(&name[..2]).join(&name[2..])
    }

    /// Returns where the first record of `fingerprint` is, or would be.
    pub fn record_path(&self, fingerprint: &Digest) -> PathBuf {
        self.record_file(fingerprint, None)
    }

    /// Returns where the first record of `fingerprint` is, or that of the numerics class `beside`.
    fn record_file(&self, fingerprint: &Digest, beside: Option<&str>) -> PathBuf {
        self.root
            .join("records")
            .join(record_name(fingerprint, beside))
    }

    /// Returns the folder for unfinished work on `fingerprint`.
    pub fn scratch_path(&self, fingerprint: &Digest) -> PathBuf {
        self.root.join("scratch").join(fingerprint.to_string())
    }

    /// Returns where an unfinished stage keeps its checkpoints: those of one numerics class are none for another, and
    /// those of a stage that was asked to run again none of the time before.
    pub fn checkpoints_path(&self, fingerprint: &Digest, class: &str, again: bool) -> PathBuf {
        let what = if again { AGAIN } else { CHECKPOINTS };
        let name = format!("{what}{}", class_in_name(class));
        self.scratch_path(fingerprint).join(name)
    }

    /// Returns the folder of runs.
    pub fn runs_path(&self) -> PathBuf {
        self.root.join("runs")
    }

    /// Returns the folder of downloads.
    pub fn sources_path(&self) -> PathBuf {
        self.root.join("sources")
    }
}

const RUN_LEASE: &str = "run.lease";
const CHECKPOINTS: &str = "checkpoints.";
const AGAIN: &str = "again.";

/// Writes a numerics class such that it can be part of a file's name.
fn class_in_name(class: &str) -> String {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    class
        .chars()
        .map(|c| if is_safe(c) { c } else { '-' })
        .collect()
}

fn record_name(fingerprint: &Digest, beside: Option<&str>) -> String {
    match beside {
        None => format!("{fingerprint}.json"),
        Some(class) => format!("{fingerprint}.{}.json", class_in_name(class)),
    }
}
