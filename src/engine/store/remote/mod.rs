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
pub(in crate::engine) mod tests;
mod verify;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bucket::Bucket;
pub(in crate::engine) use bucket::BucketError;
pub use collect::{RemoteGarbage, by_class};
pub use fetch::Found;
pub use list::Listed;
pub use send::Sent;
pub use settings::RemoteSettings;

use super::record::Provenance;
use super::{Store, record_name};
use crate::engine::artifact::Digest;
use crate::engine::machine::unique_name;
use crate::engine::mask::Mask;
use crate::engine::stage::StageError;
use crate::excerpt::{NAME, excerpt};

/// A shared store.
pub struct Remote {
    bucket: Box<dyn Bucket>,
    /// Its address, as it was given.
    address: String,
    /// Whether results are only taken from it.
    read_only: bool,
    mask: Mask,
    /// Ends all that goes on.
    stop: Arc<AtomicBool>,
    /// The name of its place, for what is noted of it.
    place: String,
    /// Whether the first writer wins there, once that is known.
    first_wins: Mutex<Option<bool>>,
    /// Large transfers that are under way.
    large: Turns,
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
    /// What it holds is not what it says, or what is here is not.
    #[error("{0}")]
    Damaged(String),
    /// A record would be longer than one may be.
    #[error("the result has too many files to be shared: an archive has one")]
    TooLarge,
}

impl RemoteError {
    /// Whether it did not answer, or not as it should: the next question may well go the same way.
    pub fn is_about_reach(&self) -> bool {
        matches!(
            self,
            Self::Bucket(BucketError::Failed(_) | BucketError::Unsupported(_))
        )
    }

    /// Whether this machine could not do its part, or was told to stop.
    pub fn is_of_this_machine(&self) -> bool {
        matches!(self, Self::Bucket(BucketError::Here(_)))
    }

    /// Whether it is about this one result, and says nothing of others.
    pub fn is_of_this_result(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::TooLarge)
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
    /// Opens a shared store; it is asked nothing before something is looked for or sent. With `stop`, all that is under way
    /// ends with an error.
    ///
    /// # Errors
    /// An address or options that mean nothing, or need a program built with the feature `remote`.
    pub fn open(settings: &RemoteSettings, stop: &Arc<AtomicBool>) -> Result<Self, StageError> {
        settings.check()?;
        let address = settings.address.clone();
        let bucket: Box<dyn Bucket> = if settings.is_folder() {
            let folder = folder::of_address(&address).map_err(StageError::new)?;
            Box::new(folder::Folder::new(folder))
        } else {
            in_cloud(settings, stop)?
        };
        Ok(Self::of(bucket, settings, stop))
    }

    fn of(bucket: Box<dyn Bucket>, settings: &RemoteSettings, stop: &Arc<AtomicBool>) -> Self {
        Self {
            bucket,
            address: settings.name().to_owned(),
            read_only: settings.read_only,
            mask: settings.mask(),
            place: settings.place(),
            stop: Arc::clone(stop),
            first_wins: Mutex::default(),
            large: Turns::new(LARGE_AT_ONCE),
            damaged: Mutex::default(),
            there: Mutex::default(),
        }
    }

    /// Returns its address.
    pub fn address(&self) -> &str {
        &self.address
    }

    fn go_on(&self) -> Result<(), BucketError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(BucketError::Here("stopped".to_owned()));
        }
        Ok(())
    }

    /// Whether results are only taken from it.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Says what went wrong, without the value of any credential.
    pub fn said(&self, error: &RemoteError) -> String {
        settings::shown(&self.mask.text(&error.to_string()))
    }

    /// Whether the first writer of a name wins there, or the last.
    ///
    /// It is tried once and noted in `store`, unless `anew`.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn first_wins(&self, store: &Store, anew: bool) -> Result<bool, BucketError> {
        const FIRST: &[u8] = b"the first writer wins\n";
        let mut known = self
            .first_wins
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let (Some(known), false) = (*known, anew) {
            return Ok(known);
        }
        let note = self.notes(store).join("first_wins");
        if !anew && std::fs::read(&note).is_ok_and(|noted| noted == FIRST) {
            return Ok(*known.insert(true));
        }
        let first_wins = self.probe()?;
        // Only saves asking again.
        if first_wins {
            let _ = super::publish::publish_unsynced(&note, FIRST);
        } else {
            let _ = std::fs::remove_file(&note);
        }
        Ok(*known.insert(first_wins))
    }

    /// Writes a name twice, and looks which of the two is there.
    fn probe(&self) -> Result<bool, BucketError> {
        let key = format!("probes/{}", unique_name());
        // What is answered to the first does not matter: a request that is repeated on the way meets its own effect.
        let first_wins = match self.bucket.create(&key, b"first".to_vec()) {
            Err(BucketError::Unsupported(_)) => return Ok(false),
            Err(error) => return Err(error),
            Ok(_) => match self.bucket.create(&key, b"second".to_vec()) {
                Err(BucketError::Unsupported(_)) => false,
                Err(error) => return Err(error),
                Ok(second) => match self.bucket.read(&key, None, 6) {
                    Ok(bytes) => !second && bytes == b"first",
                    Err(BucketError::TooLong(_)) => false,
                    Err(BucketError::Absent(_)) => {
                        let what = "it says of a name that it is there, and it is not";
                        return Err(BucketError::Failed(what.to_owned()));
                    }
                    Err(error) => return Err(error),
                },
            },
        };
        // Not everybody who may write may remove; `gc --remote` takes away what is left.
        let _ = self.bucket.remove(vec![key]);
        Ok(first_wins)
    }

    /// Whether it is known that the last writer wins there.
    pub fn is_last_winning(&self) -> bool {
        *self
            .first_wins
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            == Some(false)
    }

    /// The folder of what a store notes of this shared one.
    fn notes(&self, store: &Store) -> PathBuf {
        store.root().join("remote").join(&self.place)
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
fn in_cloud(
    settings: &RemoteSettings,
    stop: &Arc<AtomicBool>,
) -> Result<Box<dyn Bucket>, StageError> {
    Ok(Box::new(cloud::Cloud::open(settings, Arc::clone(stop))?))
}

#[cfg(not(feature = "remote"))]
fn in_cloud(settings: &RemoteSettings, _: &Arc<AtomicBool>) -> Result<Box<dyn Bucket>, StageError> {
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
    let text = format!(
        "made{by} on {} at {}Z",
        made.host,
        when.trim_end_matches('Z')
    );
    // One line, whatever somebody else's record says.
    excerpt(&text.replace(char::is_control, " "), NAME).into_owned()
}

/// How many requests are under way at once.
pub(in crate::engine) const AT_ONCE: usize = 16;
/// How many large transfers: each has some pieces in memory, and a slow line is to get each piece through in time.
const LARGE_AT_ONCE: usize = 3;

/// Does the same for each of many things, `at_once` of them; the answers are in the order of the things.
pub fn in_parallel<T: Sync, R: Send>(
    things: &[T],
    at_once: usize,
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(thing) = things.get(at) else {
                return done;
            };
            done.push((at, work(thing)));
        }
    };
    let mut done: Vec<(usize, R)> = std::thread::scope(|scope| {
        // As many as can be had: this thread works as well.
        let others: Vec<_> = (1..at_once.min(things.len()))
            .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, take).ok())
            .collect();
        let mut done = take();
        for other in others {
            let other = other.join();
            done.extend(other.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        done
    });
    done.sort_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, answer)| answer).collect()
}

/// Lets some at a time.
struct Turns {
    left: Mutex<usize>,
    given_back: Condvar,
}

/// One's turn, as long as it is held.
struct Turn<'a>(&'a Turns);

impl Turns {
    fn new(at_once: usize) -> Self {
        Self {
            left: Mutex::new(at_once),
            given_back: Condvar::new(),
        }
    }

    fn take(&self) -> Turn<'_> {
        let left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let left = self.given_back.wait_while(left, |left| *left == 0);
        *left.unwrap_or_else(PoisonError::into_inner) -= 1;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.0.left.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.0.given_back.notify_one();
    }
}
