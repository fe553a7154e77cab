//! The shared store: results in a bucket or a folder, for a group and all its machines.
//!
//! ```text
//! s3://bucket/lab/
//!   objects/ab/cdef...                  as in a store
//!   records/<fingerprint>[.<class>].json  as in a store, but for what a file system said of objects
//!   probes/<unique>                     for a moment, while it is asked whether the first writer wins
//! ```
//!
//! Objects are written before the record that names them, and of two records of one fingerprint the first counts. Nothing
//! that is read there is believed: a record tells its own digest, the fingerprint of its manifest and the digests of its
//! artifacts, and an object is named by that of its bytes. There are no leases: two machines that share nothing else may
//! compute a result at once, and one of them finds that the other was first.

mod bucket;
#[cfg(feature = "remote")]
mod cloud;
mod collect;
mod fetch;
mod folder;
mod list;
mod send;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use bucket::Bucket;
pub(in crate::engine) use bucket::BucketError;
pub use collect::RemoteGarbage;
pub use fetch::Found;
pub use list::Listed;
pub use send::Sent;
pub use settings::RemoteSettings;

use super::record::Provenance;
use super::{Store, record_name};
use crate::engine::artifact::Digest;
use crate::engine::mask::Mask;
use crate::engine::stage::StageError;

/// A shared store.
pub struct Remote {
    bucket: Box<dyn Bucket>,
    /// Its address, as it was given.
    address: String,
    /// Whether results are only taken from it.
    read_only: bool,
    mask: Mask,
    first_wins: OnceLock<bool>,
    /// Names whose bytes turned out to be others, so that they are written again.
    damaged: Mutex<BTreeSet<String>>,
    /// Names that are known to be there: results share many objects.
    there: Mutex<BTreeSet<String>>,
}

/// Why something did not come from the shared store, or did not go there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// It was asked in vain.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// What it holds is not what it says.
    #[error("{0}")]
    Damaged(String),
}

impl RemoteError {
    /// Whether it did not answer, or refused: the next question would go the same way.
    pub fn is_about_reach(&self) -> bool {
        matches!(self, Self::Bucket(BucketError::Failed(_))) || self.is_refusal()
    }

    /// Whether these credentials may not do what was asked.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Bucket(BucketError::Denied(_)))
    }
}

impl From<StageError> for RemoteError {
    fn from(error: StageError) -> Self {
        let said = match error {
            StageError::Failed { message, .. } => message,
            StageError::Interrupted => "interrupted".to_owned(),
        };
        Self::Bucket(BucketError::Here(said))
    }
}

impl From<std::io::Error> for RemoteError {
    fn from(error: std::io::Error) -> Self {
        Self::Bucket(error.into())
    }
}

impl Remote {
    /// Opens a shared store; it is asked nothing before something is looked for or sent.
    ///
    /// # Errors
    /// An address or options that mean nothing, or need a program built with the feature `remote`.
    pub fn open(settings: &RemoteSettings) -> Result<Self, StageError> {
        settings.check()?;
        let address = settings.address.clone();
        let bucket: Box<dyn Bucket> = if settings.is_folder() {
            let folder = folder::of_address(&address).map_err(StageError::new)?;
            Box::new(folder::Folder::new(folder))
        } else {
            in_cloud(settings)?
        };
        Ok(Self::of(bucket, settings))
    }

    fn of(bucket: Box<dyn Bucket>, settings: &RemoteSettings) -> Self {
        Self {
            bucket,
            address: settings.address.trim_end_matches('/').to_owned(),
            read_only: settings.read_only,
            mask: settings.mask(),
            first_wins: OnceLock::new(),
            damaged: Mutex::default(),
            there: Mutex::default(),
        }
    }

    /// Returns its address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether results are only taken from it.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Says what went wrong, without the value of any credential.
    pub fn said(&self, error: &RemoteError) -> String {
        settings::without_queries(&self.mask.text(&error.to_string()))
    }

    /// Whether the first writer of a name wins there, or the last.
    ///
    /// It is tried once and noted in `store`: what a server of one address does is not expected to change.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn first_wins(&self, store: &Store, anew: bool) -> Result<bool, BucketError> {
        const FIRST: &[u8] = b"the first writer wins\n";
        if let (Some(known), false) = (self.first_wins.get(), anew) {
            return Ok(*known);
        }
        let note = self.notes(store).join("first_wins");
        let noted = std::fs::read(&note).is_ok_and(|noted| noted == FIRST);
        let first_wins = if noted && !anew {
            true
        } else {
            let key = format!("probes/{}", crate::engine::machine::unique_name());
            let probe = |bytes: &[u8]| self.bucket.create(&key, bytes.to_vec());
            // A server may answer that it is there and have written all the same.
            let first_wins = probe(b"first")?
                && !probe(b"second")?
                && self.bucket.read(&key, None, 6)? == b"first";
            self.bucket.remove(vec![key])?;
            first_wins
        };
        if first_wins && !noted {
            // Only saves asking again.
            let _ = super::publish::publish_unsynced(&note, FIRST);
        }
        Ok(*self.first_wins.get_or_init(|| first_wins))
    }

    /// Whether it is known that the last writer wins there.
    pub fn is_last_winning(&self) -> bool {
        self.first_wins.get() == Some(&false)
    }

    /// The folder of what a store notes of this shared one.
    fn notes(&self, store: &Store) -> PathBuf {
        let name = Digest::of(self.address.as_bytes()).short();
        store.root().join("remote").join(name)
    }

    fn note_damage(&self, key: &str) {
        held(&self.damaged).insert(key.to_owned());
        held(&self.there).remove(key);
    }

    fn is_damaged(&self, key: &str) -> bool {
        held(&self.damaged).contains(key)
    }

    fn note_there(&self, key: &str) {
        held(&self.damaged).remove(key);
        held(&self.there).insert(key.to_owned());
    }

    fn is_there(&self, key: &str) -> bool {
        held(&self.there).contains(key)
    }
}

#[cfg(feature = "remote")]
fn in_cloud(settings: &RemoteSettings) -> Result<Box<dyn Bucket>, StageError> {
    Ok(Box::new(cloud::Cloud::open(settings)?))
}

#[cfg(not(feature = "remote"))]
fn in_cloud(settings: &RemoteSettings) -> Result<Box<dyn Bucket>, StageError> {
    Err(StageError::new(format!(
        "this program knows no buckets, and the shared store is `{}`",
        settings.address
    ))
    .hint(
        "build it with `cargo build --release --features remote`, or share a folder: file:///path",
    ))
}

fn held(names: &Mutex<BTreeSet<String>>) -> MutexGuard<'_, BTreeSet<String>> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

fn object_key(digest: &Digest) -> String {
    let name = digest.to_string();
    format!("objects/{}/{}", &name[..2], &name[2..])
}

fn record_key(fingerprint: &Digest, beside: Option<&str>) -> String {
    format!("records/{}", record_name(fingerprint, beside))
}

/// Says who made a result, where and when.
pub fn made_by(made: &Provenance) -> String {
    let by = match made.user.as_str() {
        "" => String::new(),
        user => format!(" by {user}"),
    };
    let when = made.started.split('.').next().unwrap_or_default();
    format!(
        "made{by} on {} at {}Z",
        made.host,
        when.trim_end_matches('Z')
    )
}

/// How many requests are under way at once.
pub(in crate::engine) const AT_ONCE: usize = 16;

/// Does the same for each of many things, several at once; the answers are in the order of the things.
pub fn in_parallel<T: Sync, R: Send>(things: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        while let Some((at, thing)) =
            Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|at| Some((at, things.get(at)?)))
        {
            done.push((at, work(thing)));
        }
        done
    };
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE.min(things.len()))
            .map(|_| scope.spawn(take))
            .collect();
        let done = threads.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        done.flatten().collect()
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, answer)| answer).collect()
}
