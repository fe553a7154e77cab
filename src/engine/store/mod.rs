//! The store: content-addressed objects, and records that say which stage made them.
//!
//! ```text
//! .flowgraph/
//!   objects/ab/cdef...            immutable files, named by the digest of their content
//!   records/<fingerprint>.json    manifest, outputs, provenance: the only thing that makes a result exist
//!   runs/<id>/                    event log and per-stage logs of one invocation
//!   scratch/<fingerprint>/        staging and checkpoints of an unfinished stage
//!   states/<key>/<steps>/         where finished trainings ended, for longer ones to continue from
//!   sources/                      downloads, and what unpinned sources turned out to be
//!   evicted/<fingerprint>.json    records of results that a collection took away
//!   locks/                        one file for each fingerprint that a worker is or was at
//!   stat/                         digests of outside files, by size, times and inode
//! ```
//!
//! Everything is written elsewhere, synced, then renamed into place; a record comes last.

mod collect;
mod commit;
mod lock;
mod object;
mod outside;
mod place;
mod record;
mod states;

use std::path::{Path, PathBuf};

pub use collect::Garbage;
pub use commit::publish;
pub use lock::{Lock, LockState};
pub use object::{Damage, ObjectStat};
pub use record::{ObjectStats, Provenance, Record, RecordError, RecordHead};

use super::artifact::Digest;

/// A folder that holds results.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// Names a store; nothing is touched until something is read or written.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
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

    /// Returns where the record of `fingerprint` is, or would be.
    pub fn record_path(&self, fingerprint: &Digest) -> PathBuf {
        self.root
            .join("records")
            .join(format!("{fingerprint}.json"))
    }

    /// Returns the folder for unfinished work on `fingerprint`.
    pub fn scratch_path(&self, fingerprint: &Digest) -> PathBuf {
        self.root.join("scratch").join(fingerprint.to_string())
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
