//! Whether the bytes in the shared store are those that their names say: who has a result here would never find out.

use std::collections::BTreeMap;

use super::fetch::PIECE;
use super::{AT_ONCE, Listed, Remote, RemoteError, in_parallel, object_key};
use crate::engine::artifact::Digest;

impl Remote {
    /// Reads all that is there; returns the names of what is damaged, and what is wrong with each. `tell` hears of bytes that
    /// were read.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn verify(
        &self,
        listed: &Listed,
        tell: &(dyn Fn(u64) + Sync),
    ) -> Result<BTreeMap<String, String>, RemoteError> {
        let mut damaged = BTreeMap::new();
        for (name, summary) in self.summaries(listed)? {
            match summary {
                Err(what) => drop(damaged.insert(format!("records/{name}"), what)),
                Ok(summary) => {
                    for digest in summary.objects() {
                        if !listed.objects.contains_key(digest) {
                            let what = format!("{}: it is not there", object_key(digest));
                            damaged.insert(format!("records/{name}"), what);
                        }
                    }
                }
            }
        }
        let objects: Vec<(Digest, u64)> = (listed.objects.iter())
            .map(|(digest, entry)| (*digest, entry.size))
            .collect();
        let checked = in_parallel(&objects, AT_ONCE, |(digest, size)| {
            let checked = self.check(digest, *size);
            tell(*size);
            checked
        });
        for ((digest, _), checked) in objects.iter().zip(checked) {
            match checked {
                Ok(()) => {}
                Err(RemoteError::Damaged(what)) => {
                    damaged.insert(object_key(digest), what);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(damaged)
    }

    /// Takes away what is damaged, so that whoever has it may send it again.
    pub fn remove(&self, names: Vec<String>) -> Result<(), RemoteError> {
        Ok(self.bucket.remove(names)?)
    }

    /// Reads an object, and compares the digest of its bytes with its name; twice before it is called damaged.
    pub(super) fn check(&self, digest: &Digest, size: u64) -> Result<(), RemoteError> {
        self.twice(digest, || self.check_once(digest, size))
    }

    fn check_once(&self, digest: &Digest, size: u64) -> Result<(), RemoteError> {
        let _turn = (size > PIECE).then(|| self.large.take());
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        // One that is empty is read, too.
        loop {
            self.go_on()?;
            let end = size.min(at + PIECE);
            hasher.update(&self.piece(digest, at..end, size)?);
            at = end;
            if at == size {
                break;
            }
        }
        if Digest::from(hasher.finalize()) != *digest {
            return Err(self.damage(&object_key(digest), "its bytes have another digest"));
        }
        Ok(())
    }
}
