//! Garbage of the shared store: what no pipeline needs, and nobody has sent of late.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::SystemTime;

use super::bucket::Entry;
use super::fetch::objects_of;
use super::list::fingerprint_of;
use super::{AT_ONCE, Listed, Remote, RemoteError, in_parallel, object_key};
use crate::engine::artifact::Digest;
use crate::engine::store::publish::publish_unsynced;
use crate::engine::store::record::encode;
use crate::engine::store::{Provenance, Record, Store};

/// What a collection would take away.
#[derive(Debug, Default)]
pub struct RemoteGarbage {
    /// Results: how they were made.
    pub results: Vec<Provenance>,
    /// Records that cannot be read, and what is wrong with them.
    pub damaged: Vec<String>,
    /// Objects that no other record names, with their bytes.
    pub objects: Vec<(Digest, u64)>,
    /// Records that cannot be read and stay: since they may need any object, none goes.
    pub unreadable: Vec<String>,
    /// Bytes of all together.
    pub bytes: u64,
    /// Names of records.
    records: Vec<String>,
    /// Names of what was left by uploads and probes.
    leftovers: Vec<String>,
    /// The records that stay, and when they were written.
    known: BTreeMap<String, SystemTime>,
}

impl RemoteGarbage {
    /// How many leftovers of uploads and probes there are.
    pub fn leftovers(&self) -> usize {
        self.leftovers.len()
    }
}

/// What matters of a record that was read.
#[derive(Debug)]
pub struct Summary {
    provenance: Provenance,
    objects: Vec<Digest>,
}

impl Summary {
    /// The objects that it names.
    pub(super) fn objects(&self) -> &[Digest] {
        &self.objects
    }
}

/// The records that are there, by name: what matters of each, or what is wrong with it.
pub(in crate::engine) type Summaries = BTreeMap<String, Result<Summary, String>>;

impl Remote {
    /// Reads all records of a list, and writes them into a store that has no objects.
    ///
    /// # Errors
    /// If one cannot be asked for, or written. One that is damaged is no error, and one that is gone by now is left out.
    pub fn mirror(&self, listed: &Listed, store: &Store) -> Result<Summaries, RemoteError> {
        self.read_all(&listed.records, |record| {
            let body = serde_json::to_string(record)?;
            let name = super::record_name(&record.fingerprint, record.class_beside());
            let path = store.root().join("records").join(name);
            publish_unsynced(&path, encode(&body).as_bytes())
        })
    }

    /// Reads all records of a list.
    pub(super) fn summaries(&self, listed: &Listed) -> Result<Summaries, RemoteError> {
        self.read_all(&listed.records, |_| Ok(()))
    }

    fn read_all(
        &self,
        records: &BTreeMap<String, Entry>,
        each: impl Fn(&Record) -> std::io::Result<()> + Sync,
    ) -> Result<Summaries, RemoteError> {
        let names: Vec<&String> = records.keys().collect();
        let read = in_parallel(&names, AT_ONCE, |name| {
            let Some((fingerprint, class)) = fingerprint_of(name) else {
                return Ok(None);
            };
            let summary = match self.record(&fingerprint, class) {
                Ok(None) => return Ok(None),
                Ok(Some(record)) => {
                    each(&record)?;
                    let objects = objects_of(&record).into_iter();
                    Ok(Summary {
                        objects: objects.map(|(digest, _)| digest).collect(),
                        provenance: record.provenance,
                    })
                }
                Err(RemoteError::Damaged(what)) => Err(what),
                Err(error) => return Err(error),
            };
            Ok(Some(((*name).clone(), summary)))
        });
        read.into_iter().filter_map(Result::transpose).collect()
    }

    /// Finds what is older than a time, not among the fingerprints `kept`, and not part of a result that stays.
    pub fn garbage(
        listed: &Listed,
        read: Summaries,
        kept: &BTreeSet<Digest>,
        before: SystemTime,
    ) -> RemoteGarbage {
        let is_old = |entry: &Entry| entry.modified < before;
        let mut garbage = RemoteGarbage::default();
        let mut needed = BTreeSet::new();
        for (name, summary) in read {
            let Some(entry) = listed.records.get(&name) else {
                continue;
            };
            let fingerprint = fingerprint_of(&name).map(|(fingerprint, _)| fingerprint);
            if !is_old(entry) || fingerprint.is_none_or(|known| kept.contains(&known)) {
                match summary {
                    Ok(summary) => needed.extend(summary.objects),
                    // It may be healed, and name any object.
                    Err(what) => garbage.unreadable.push(what),
                }
                garbage.known.insert(name, entry.modified);
                continue;
            }
            match summary {
                Ok(summary) => garbage.results.push(summary.provenance),
                Err(what) => garbage.damaged.push(what),
            }
            garbage.records.push(format!("records/{name}"));
        }
        if garbage.unreadable.is_empty() {
            let objects = listed.objects.iter();
            let objects =
                objects.filter(|(digest, entry)| is_old(entry) && !needed.contains(digest));
            let objects = objects.map(|(digest, entry)| (*digest, entry.size));
            garbage.objects = objects.collect();
        }
        garbage.bytes = garbage.objects.iter().map(|(_, size)| size).sum();
        let leftovers = listed.leftovers.iter().filter(|entry| is_old(entry));
        garbage.leftovers = leftovers.map(|entry| entry.key.clone()).collect();
        garbage
    }

    /// Takes garbage away: records first, so that none names what is gone; then objects, but those that a record names
    /// that came meanwhile, or came back; returns how many of them were spared.
    pub fn collect(&self, garbage: &RemoteGarbage) -> Result<usize, RemoteError> {
        self.bucket.remove(garbage.records.clone())?;
        let mut fresh = self.list()?.records;
        fresh.retain(|name, entry| garbage.known.get(name) != Some(&entry.modified));
        let mut needed = BTreeSet::new();
        for summary in self.read_all(&fresh, |_| Ok(()))?.into_values() {
            match summary {
                Ok(summary) => needed.extend(summary.objects),
                // It may need anything.
                Err(_) => return Ok(garbage.objects.len()),
            }
        }
        let objects = garbage.objects.iter().map(|(digest, _)| digest);
        let (spared, objects): (Vec<&Digest>, Vec<&Digest>) =
            objects.partition(|digest| needed.contains(*digest));
        let objects = objects.into_iter().map(object_key);
        let gone = objects.chain(garbage.leftovers.iter().cloned()).collect();
        self.bucket.remove(gone)?;
        Ok(spared.len())
    }
}

/// Makes stores in which the results of one numerics class each stand first: what a pipeline reaches may depend on which.
///
/// # Errors
/// If a file cannot be read or written.
pub fn by_class(mirror: &Store, folder: &Path) -> std::io::Result<Vec<Store>> {
    let (records, _) = mirror.read_records();
    let beside = records.iter().filter_map(Record::class_beside);
    let classes: BTreeSet<String> = beside.map(str::to_owned).collect();
    let mut stores = vec![mirror.clone()];
    for (at, class) in classes.iter().enumerate() {
        let store = Store::new(folder.join(at.to_string()));
        for record in &records {
            let is_of_class = record.provenance.numerics == *class;
            let from = mirror.record_file(&record.fingerprint, record.class_beside());
            let to = store.record_path(&record.fingerprint);
            if is_of_class || (!record.beside && !to.exists()) {
                publish_unsynced(&to, &fs_err::read(from)?)?;
            }
        }
        stores.push(store);
    }
    Ok(stores)
}
