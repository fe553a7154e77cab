//! Garbage of the shared store: what no pipeline needs, and nobody has sent of late.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::bucket::Entry;
use super::list::fingerprint_of;
use super::{Listed, Remote, RemoteError, in_parallel, object_key};
use crate::engine::artifact::Digest;
use crate::engine::store::Record;

/// What a collection would take away.
#[derive(Debug, Default)]
pub struct RemoteGarbage {
    /// Results.
    pub results: Vec<Record>,
    /// Records that cannot be read, and what is wrong with them.
    pub damaged: Vec<String>,
    /// Objects that no other record names, with their bytes.
    pub objects: Vec<(Digest, u64)>,
    /// Bytes of all together.
    pub bytes: u64,
    /// Names of records.
    records: Vec<String>,
    /// Names of what was left by uploads and probes.
    leftovers: Vec<String>,
    /// Names of the records that were there.
    known: BTreeSet<String>,
}

impl RemoteGarbage {
    /// How many leftovers of uploads and probes there are.
    pub fn leftovers(&self) -> usize {
        self.leftovers.len()
    }
}

/// A record that was read, or what is wrong with it.
pub(in crate::engine) type Read = (String, Result<Record, String>);

impl Remote {
    /// Reads all records of a list.
    ///
    /// # Errors
    /// If one cannot be asked for. One that is damaged is no error, and one that is gone by now is left out.
    pub fn read_all(&self, listed: &Listed) -> Result<Vec<Read>, RemoteError> {
        let names: Vec<&String> = listed.records.keys().collect();
        let read = in_parallel(&names, |name| {
            let (fingerprint, class) = fingerprint_of(name)?;
            match self.record(&fingerprint, class) {
                Ok(record) => Some(Ok(((*name).clone(), Ok(record?)))),
                Err(RemoteError::Damaged(what)) => Some(Ok(((*name).clone(), Err(what)))),
                Err(error) => Some(Err(error)),
            }
        });
        read.into_iter().flatten().collect()
    }

    /// Finds what is older than a time, not among the fingerprints `kept`, and not part of a result that stays.
    pub fn garbage(
        listed: &Listed,
        read: Vec<Read>,
        kept: &BTreeSet<Digest>,
        before: SystemTime,
    ) -> RemoteGarbage {
        let is_old = |entry: &Entry| entry.modified < before;
        let mut garbage = RemoteGarbage {
            known: listed.records.keys().cloned().collect(),
            ..RemoteGarbage::default()
        };
        let mut needed = BTreeSet::new();
        for (name, record) in read {
            let is_old = listed.records.get(&name).is_some_and(is_old);
            match record {
                Ok(record) if is_old && !kept.contains(&record.fingerprint) => {
                    garbage.results.push(record);
                }
                Ok(record) => {
                    needed.extend(objects_of(&record));
                    continue;
                }
                Err(what) if is_old => garbage.damaged.push(what),
                Err(_) => continue,
            }
            garbage.records.push(format!("records/{name}"));
        }
        let objects = listed.objects.iter();
        let objects = objects.filter(|(digest, entry)| is_old(entry) && !needed.contains(digest));
        garbage.objects = objects
            .map(|(digest, entry)| (*digest, entry.size))
            .collect();
        garbage.bytes = garbage.objects.iter().map(|(_, size)| size).sum();
        let leftovers = listed.leftovers.iter().filter(|entry| is_old(entry));
        garbage.leftovers = leftovers.map(|entry| entry.key.clone()).collect();
        garbage
    }

    /// Takes garbage away: records first, so that none names what is gone; then objects, but those that a record names
    /// that came meanwhile; returns how many of them were spared.
    pub fn collect(&self, garbage: &RemoteGarbage) -> Result<usize, RemoteError> {
        self.bucket.remove(garbage.records.clone())?;
        let now = self.list()?;
        let fresh = Listed {
            records: (now.records.into_iter())
                .filter(|(name, _)| !garbage.known.contains(name))
                .collect(),
            ..Listed::default()
        };
        let mut needed = BTreeSet::new();
        for (_, record) in self.read_all(&fresh)? {
            needed.extend(record.iter().flat_map(objects_of));
        }
        let (spared, objects): (Vec<&(Digest, u64)>, Vec<_>) =
            (garbage.objects.iter()).partition(|(digest, _)| needed.contains(digest));
        let objects = objects.into_iter().map(|(digest, _)| object_key(digest));
        let gone = objects.chain(garbage.leftovers.iter().cloned()).collect();
        self.bucket.remove(gone)?;
        Ok(spared.len())
    }
}

fn objects_of(record: &Record) -> impl Iterator<Item = Digest> + '_ {
    let files = record.outputs.values().flat_map(|output| &output.files);
    files.map(|file| file.digest)
}
