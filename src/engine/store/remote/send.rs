//! Giving a result to the shared store: objects first, the record last, and of two records the first counts.

use std::collections::BTreeSet;
use std::time::Duration;

use super::bucket::{BucketError, Upload};
use super::fetch::{PIECE, UPLOADS};
use super::{Listed, Remote, RemoteError, object_key, record_key};
use crate::engine::artifact::Digest;
use crate::engine::store::object::ObjectStats;
use crate::engine::store::record::{Record, encode};
use crate::engine::store::{Provenance, Store};

/// How it went.
#[derive(Debug, Clone, PartialEq)]
pub enum Sent {
    /// It is there now.
    First,
    /// A result of the same bytes was there, which stays.
    Same,
    /// A result of other bytes was there, which stays; and how it was made.
    Other(Box<Provenance>),
}

/// How often it is asked again what became of a record.
const TRIES: u32 = 5;

impl Remote {
    /// Sends a result. What `listed` says is there is not asked for; `tell` hears of bytes that are there, of how many.
    ///
    /// # Errors
    /// If it is not known to be there whole.
    pub fn send(
        &self,
        store: &Store,
        record: &Record,
        listed: Option<&Listed>,
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<Sent, RemoteError> {
        let files = record.outputs.values().flat_map(|output| &output.files);
        let mut seen = BTreeSet::new();
        let objects: Vec<(Digest, u64)> = files
            .map(|file| (file.digest, file.size))
            .filter(|(digest, _)| seen.insert(*digest))
            .collect();
        let total = objects.iter().map(|(_, size)| size).sum();
        let mut done = 0;
        for (digest, size) in objects {
            let known = record.stats.get(&digest);
            store
                .glance_at_object(&digest, known)
                .map_err(|damage| RemoteError::Damaged(damage.to_string()))?;
            self.send_object(store, &digest, size, listed, &mut |sent| {
                tell(done + sent, total);
            })?;
            done += size;
        }
        self.send_record(store, record)
    }

    fn send_object(
        &self,
        store: &Store,
        digest: &Digest,
        size: u64,
        listed: Option<&Listed>,
        tell: &mut dyn FnMut(u64),
    ) -> Result<(), RemoteError> {
        let key = object_key(digest);
        if self.is_there(&key) {
            return Ok(());
        }
        let there = match listed {
            Some(listed) => listed.objects.get(digest).map(|entry| entry.size),
            None => self.bucket.size(&key)?,
        };
        if there == Some(size) && !self.is_damaged(&key) {
            self.note_there(&key);
            return Ok(());
        }
        let file = store.object_path(digest);
        if size <= PIECE {
            let bytes = fs_err::read(&file)?;
            if Digest::of(&bytes) != *digest {
                let what = format!("object {} is damaged", file.display());
                return Err(RemoteError::Damaged(what));
            }
            self.bucket.write(&key, bytes)?;
        } else {
            let folder = self.notes(store).join(UPLOADS);
            fs_err::create_dir_all(&folder)?;
            self.bucket.upload(
                &key,
                &mut Upload {
                    file: &file,
                    size,
                    notes: &folder.join(digest.to_string()),
                    tell: &mut |sent| {
                        tell(sent);
                        store.go_on()
                    },
                },
            )?;
        }
        self.note_there(&key);
        Ok(())
    }

    /// Writes a record where there is none.
    ///
    /// A server that is asked to create may have done it though it says otherwise, or says nothing in time; and may refuse
    /// it for another request that came to nothing. So what is there is read before anything is believed.
    fn send_record(&self, store: &Store, record: &Record) -> Result<Sent, RemoteError> {
        let key = record_key(&record.fingerprint, record.class_beside());
        let shared = Record {
            stats: ObjectStats::new(),
            ..record.clone()
        };
        let body = serde_json::to_string(&shared).map_err(std::io::Error::from)?;
        let bytes = encode(&body).into_bytes();
        if !self.first_wins(store, false)? {
            return self.send_record_last(record, &key, bytes);
        }
        let mut refused = None;
        for again in 0..TRIES {
            if again > 0 {
                store.go_on()?;
                std::thread::sleep(Duration::from_millis(50 << again));
            }
            match self.bucket.create(&key, bytes.clone()) {
                Ok(true) => return Ok(Sent::First),
                Ok(false) => {}
                Err(BucketError::Failed(why)) => refused = Some(why),
                Err(error) => return Err(error.into()),
            }
            if let Some(sent) = self.compared(record, &shared, &key, &bytes)? {
                return Ok(sent);
            }
        }
        let why = refused.unwrap_or_else(|| "it says that it is there, and it is not".to_owned());
        Err(BucketError::Failed(format!("`{key}`: {why}")).into())
    }

    /// Compares a record with the one that is there, if there is one; a damaged one, or one whose objects are, is replaced.
    fn compared(
        &self,
        record: &Record,
        shared: &Record,
        key: &str,
        bytes: &[u8],
    ) -> Result<Option<Sent>, RemoteError> {
        let there = match self.record(&record.fingerprint, record.class_beside()) {
            Ok(None) => return Ok(None),
            Ok(Some(there)) => there,
            Err(RemoteError::Damaged(_)) => {
                self.bucket.write(key, bytes.to_vec())?;
                return Ok(Some(Sent::First));
            }
            Err(error) => return Err(error),
        };
        if there.provenance == shared.provenance && there.outputs == shared.outputs {
            return Ok(Some(Sent::First));
        }
        if there.outputs == record.outputs {
            return Ok(Some(Sent::Same));
        }
        let mut files = there.outputs.values().flat_map(|output| &output.files);
        if files.any(|file| self.is_damaged(&object_key(&file.digest))) {
            self.bucket.write(key, bytes.to_vec())?;
            return Ok(Some(Sent::First));
        }
        Ok(Some(Sent::Other(Box::new(there.provenance))))
    }

    /// Where the last writer wins, somebody else's record is left, and one that came in between is found.
    fn send_record_last(
        &self,
        record: &Record,
        key: &str,
        bytes: Vec<u8>,
    ) -> Result<Sent, RemoteError> {
        let shared = Record {
            stats: ObjectStats::new(),
            ..record.clone()
        };
        if let Some(sent) = self.compared(record, &shared, key, &bytes)? {
            return Ok(sent);
        }
        self.bucket.write(key, bytes.clone())?;
        let sent = self.compared(record, &shared, key, &bytes)?;
        sent.ok_or_else(|| {
            BucketError::Failed(format!("`{key}` was written, and is not there")).into()
        })
    }
}
