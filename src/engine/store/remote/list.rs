//! What the shared store holds, by its list of names.

use std::collections::{BTreeMap, BTreeSet};

use super::bucket::Entry;
use super::{Remote, RemoteError, object_key, record_key};
use crate::engine::artifact::Digest;
use crate::engine::store::{Record, record_name};

/// What is there, as far as names and sizes tell.
#[derive(Debug, Default)]
pub struct Listed {
    /// Names of records, without their folder.
    pub records: BTreeMap<String, Entry>,
    /// Objects.
    pub objects: BTreeMap<Digest, Entry>,
    /// What was left of uploads that were killed, and of probes.
    pub leftovers: Vec<Entry>,
}

impl Listed {
    /// Whether a record and all its objects are there.
    pub fn has(&self, record: &Record) -> bool {
        let name = |beside| record_name(&record.fingerprint, beside);
        // Which one is first is another matter in each store.
        let class = record.provenance.numerics.as_str();
        [None, Some(class)]
            .into_iter()
            .any(|beside| self.records.contains_key(&name(beside)))
            && record.files().all(|file| {
                let there = self.objects.get(&file.digest);
                there.is_some_and(|entry| entry.size == file.size)
            })
    }

    /// Bytes of all objects.
    pub fn bytes(&self) -> u64 {
        self.objects.values().map(|entry| entry.size).sum()
    }

    /// Some programs keep an empty name for each folder.
    fn leftover(&mut self, entry: Entry) {
        if entry.key.contains('/') && !entry.key.ends_with('/') {
            self.leftovers.push(entry);
        }
    }

    /// The fingerprints of which there is a record.
    pub fn fingerprints(&self) -> BTreeSet<Digest> {
        let names = self.records.keys();
        names
            .filter_map(|name| Some(fingerprint_of(name)?.0))
            .collect()
    }
}

const RECORDS: &str = "records/";

/// Reads the name of a record: its fingerprint, and its class if it stands beside the first.
pub(super) fn fingerprint_of(name: &str) -> Option<(Digest, Option<&str>)> {
    let name = name.strip_suffix(".json")?;
    let (fingerprint, class) = match name.split_once('.') {
        Some((fingerprint, class)) => (fingerprint, Some(class)),
        None => (name, None),
    };
    Some((fingerprint.parse().ok()?, class))
}

impl Remote {
    /// Lists all that is there: a request for a thousand names.
    pub fn list(&self) -> Result<Listed, RemoteError> {
        let mut listed = Listed::default();
        self.bucket.list("records", &mut |entry| {
            let name = entry.key.strip_prefix(RECORDS).unwrap_or_default();
            let is_one = fingerprint_of(name)
                .is_some_and(|(fingerprint, class)| entry.key == record_key(&fingerprint, class));
            if is_one {
                listed.records.insert(name.to_owned(), entry);
            } else {
                listed.leftover(entry);
            }
            self.go_on()
        })?;
        self.bucket.list("objects", &mut |entry| {
            let name = entry.key.trim_start_matches("objects/").replace('/', "");
            match name.parse() {
                Ok(digest) if entry.key == object_key(&digest) => {
                    listed.objects.insert(digest, entry);
                }
                _ => listed.leftover(entry),
            }
            self.go_on()
        })?;
        self.bucket.list("probes", &mut |entry| {
            listed.leftover(entry);
            self.go_on()
        })?;
        Ok(listed)
    }
}
