//! A bucket in memory that fails and lies as it is told to.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use crate::engine::artifact::Digest;
use crate::engine::store::Record;
use crate::engine::store::record::encode;
use crate::engine::store::remote::bucket::{Bucket, BucketError, Entry, Upload};
use crate::engine::store::remote::{Remote, RemoteSettings, record_key};

/// What a server does wrong, once.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Fault {
    /// It does what it is asked, and the answer is lost.
    AnswerLost,
    /// It refuses for another request that comes to nothing (409).
    Conflict,
    /// It does what it is asked, and then once more.
    Twice,
    /// It does not answer.
    Away,
    /// It answers with fewer bytes, with others, or that there are none.
    Cut,
    Altered,
    Gone,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) names: BTreeMap<String, (Vec<u8>, SystemTime)>,
    pub(super) faults: Vec<(&'static str, Fault)>,
    pub(super) overwrites: bool,
    pub(super) denies_removing: bool,
    pub(super) knows_no_creation: bool,
    pub(super) requests: Vec<String>,
    /// The name of which readers wait.
    pub(super) held: Option<String>,
    /// A record that comes back once something was removed.
    pub(super) back: Option<Record>,
}

/// A bucket in memory.
#[derive(Default, Clone)]
pub(in crate::engine) struct Memory(Arc<Mutex<State>>);

impl Memory {
    pub(super) fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        work(&mut self.0.lock().unwrap())
    }

    /// Notes a request, and takes the fault that is meant for it.
    fn asked(&self, what: &'static str, key: &str) -> Option<Fault> {
        self.with(|state| state.requests.push(format!("{what} {key}")));
        self.taken(what)
    }

    fn taken(&self, what: &'static str) -> Option<Fault> {
        self.with(|state| {
            let at = state.faults.iter().position(|(of, _)| *of == what)?;
            Some(state.faults.remove(at).1)
        })
    }

    pub(super) fn fault(&self, what: &'static str, fault: Fault) {
        self.with(|state| state.faults.push((what, fault)));
    }

    /// Lets whoever reads the record of a fingerprint wait, until that is taken back.
    pub(in crate::engine) fn hold(&self, fingerprint: Option<&Digest>) {
        let key = fingerprint.map(|fingerprint| record_key(fingerprint, None));
        self.with(|state| state.held = key);
    }

    pub(in crate::engine) fn requests(&self) -> Vec<String> {
        self.with(|state| std::mem::take(&mut state.requests))
    }

    pub(super) fn change(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        self.with(|state| change(&mut state.names.get_mut(key).unwrap().0));
    }

    pub(in crate::engine) fn remote(&self) -> Remote {
        let settings = RemoteSettings {
            address: "s3://bucket/lab".to_owned(),
            ..RemoteSettings::default()
        };
        Remote::of(Box::new(self.clone()), &settings, &Arc::default())
    }
}

fn away() -> BucketError {
    BucketError::Failed("no answer".to_owned())
}

impl Bucket for Memory {
    fn read(
        &self,
        key: &str,
        part: Option<Range<u64>>,
        limit: u64,
    ) -> Result<Vec<u8>, BucketError> {
        while self.with(|state| state.held.as_deref() == Some(key)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let is_object = key.starts_with("objects/");
        let of_object = is_object.then(|| self.taken("read objects")).flatten();
        let fault = of_object.or(self.asked("read", key));
        match fault {
            Some(Fault::Away) => return Err(away()),
            Some(Fault::Gone) => return Err(BucketError::Absent(key.to_owned())),
            _ => {}
        }
        let bytes = self.with(|state| state.names.get(key).map(|(bytes, _)| bytes.clone()));
        let mut bytes = bytes.ok_or_else(|| BucketError::Absent(key.to_owned()))?;
        if let Some(part) = part {
            let end = bytes.len().min(part.end as usize);
            bytes = bytes[end.min(part.start as usize)..end].to_vec();
        }
        match fault {
            Some(Fault::Cut) => bytes.truncate(bytes.len() / 2),
            Some(Fault::Altered) => bytes.iter_mut().take(1).for_each(|byte| *byte ^= 1),
            _ => {}
        }
        if bytes.len() as u64 > limit {
            return Err(BucketError::TooLong(key.to_owned()));
        }
        Ok(bytes)
    }

    fn size(&self, key: &str) -> Result<Option<u64>, BucketError> {
        if self.asked("size", key).is_some() {
            return Err(away());
        }
        Ok(self.with(|state| Some(state.names.get(key)?.0.len() as u64)))
    }

    fn write(&self, key: &str, bytes: Vec<u8>) -> Result<(), BucketError> {
        if self.asked("write", key).is_some() {
            return Err(away());
        }
        self.with(|state| {
            state
                .names
                .insert(key.to_owned(), (bytes, SystemTime::now()))
        });
        Ok(())
    }

    fn create(&self, key: &str, bytes: Vec<u8>) -> Result<bool, BucketError> {
        // A probe is no record.
        let is_probe = key.starts_with("probes/");
        let fault = self.asked(if is_probe { "probe" } else { "create" }, key);
        if self.with(|state| state.knows_no_creation) {
            return Err(BucketError::Unsupported("501".to_owned()));
        }
        match fault {
            Some(Fault::Away) => return Err(away()),
            Some(Fault::Conflict) => return Ok(false),
            _ => {}
        }
        let created = self.with(|state| {
            let is_there = state.names.contains_key(key);
            if !is_there || state.overwrites {
                state
                    .names
                    .insert(key.to_owned(), (bytes, SystemTime::now()));
            }
            !is_there || state.overwrites
        });
        match fault {
            Some(Fault::AnswerLost) => Err(away()),
            Some(Fault::Twice) => Ok(false),
            _ => Ok(created),
        }
    }

    fn upload(&self, key: &str, upload: &mut Upload) -> Result<(), BucketError> {
        (upload.tell)(upload.size)?;
        self.write(key, std::fs::read(upload.file)?)
    }

    fn list(
        &self,
        folder: &str,
        each: &mut dyn FnMut(Entry) -> Result<(), BucketError>,
    ) -> Result<(), BucketError> {
        self.asked("list", folder);
        let found: Vec<Entry> = self.with(|state| {
            let names = state.names.iter();
            let below = names.filter(|(key, _)| key.starts_with(&format!("{folder}/")));
            below
                .map(|(key, (bytes, modified))| Entry {
                    key: key.clone(),
                    size: bytes.len() as u64,
                    modified: *modified,
                })
                .collect()
        });
        found.into_iter().try_for_each(each)
    }

    fn remove(&self, keys: Vec<String>) -> Result<(), BucketError> {
        self.asked("remove", &keys.len().to_string());
        self.with(|state| {
            if state.denies_removing {
                return Err(BucketError::Denied("403".to_owned()));
            }
            keys.iter().for_each(|key| drop(state.names.remove(key)));
            if let Some(record) = state.back.take() {
                let text = encode(&serde_json::to_string(&record).unwrap());
                let name = record_key(&record.fingerprint, None);
                state
                    .names
                    .insert(name, (text.into_bytes(), SystemTime::now()));
            }
            Ok(())
        })
    }
}
