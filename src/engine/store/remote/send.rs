//! Giving a result to the shared store: objects first, the record last, and of two records the first counts.

use std::time::Duration;

use super::bucket::{BucketError, Upload};
use super::fetch::{LONGEST_RECORD, OBJECTS_AT_ONCE, PIECE, Told, UPLOADS, objects_of};
use super::{Listed, Remote, RemoteError, in_parallel, object_key, record_key};
use crate::engine::artifact::Digest;
use crate::engine::store::object::{Damage, ObjectStats};
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
    /// A result of other bytes was there whose objects are damaged, and whose place it took; and how that was made.
    Instead(Box<Provenance>),
}

/// What is in the place of a record.
enum There {
    /// Nothing, or what nobody can use.
    Nothing,
    /// A result whose objects are damaged; and how it was made.
    Damaged(Box<Provenance>),
    /// What is to be said of the record that is there.
    Is(Sent),
}

/// How often it is asked again what became of a record.
const TRIES: u32 = 5;

impl Remote {
    /// Sends a result. Objects that `listed` says are there are not asked for; `tell` hears of bytes that are there, of how
    /// many.
    ///
    /// # Errors
    /// If it is not known to be there whole.
    pub fn send(
        &self,
        store: &Store,
        record: &Record,
        listed: Option<&Listed>,
        tell: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<Sent, RemoteError> {
        let mut shared = Record {
            stats: ObjectStats::new(),
            ..record.clone()
        };
        let there = self.place(&mut shared)?;
        if let There::Is(sent @ Sent::Other(_)) = there {
            return Ok(sent);
        }
        self.send_objects(store, record, listed, tell)?;
        match there {
            There::Is(sent) => Ok(sent),
            There::Nothing => self.send_record(store, &mut shared),
            There::Damaged(made) => match self.send_record(store, &mut shared)? {
                Sent::First => Ok(Sent::Instead(made)),
                other => Ok(other),
            },
        }
    }

    /// Finds where a record belongs there, and what is in that place: it is the first of its fingerprint, or stands beside one of
    /// another class.
    fn place(&self, shared: &mut Record) -> Result<There, RemoteError> {
        let class = shared.provenance.numerics.clone();
        shared.beside = false;
        match self.record(&shared.fingerprint, None) {
            Ok(Some(first)) if first.provenance.numerics != class => shared.beside = true,
            Ok(Some(first)) => return self.compared(shared, &first),
            // One that is damaged will be replaced.
            Ok(None) | Err(RemoteError::Damaged(_)) => return Ok(There::Nothing),
            Err(error) => return Err(error),
        }
        match self.record(&shared.fingerprint, Some(&class)) {
            Ok(Some(own)) => self.compared(shared, &own),
            Ok(None) | Err(RemoteError::Damaged(_)) => Ok(There::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Compares a record with the one of its class that is there.
    fn compared(&self, shared: &Record, there: &Record) -> Result<There, RemoteError> {
        if there.outputs == shared.outputs {
            let is_own = there.provenance == shared.provenance;
            return Ok(There::Is(if is_own { Sent::First } else { Sent::Same }));
        }
        let key = record_key(&there.fingerprint, there.class_beside());
        let digests = |record: &Record| -> Vec<Digest> {
            record
                .outputs
                .values()
                .map(|output| output.digest)
                .collect()
        };
        if digests(there) == digests(shared) {
            // It says other sizes, of which the digest of an artifact does not tell.
            self.note_damage(&key);
            return Ok(There::Nothing);
        }
        for (digest, size) in objects_of(there) {
            if !self.is_damaged(&object_key(&digest)) {
                continue;
            }
            // Looked at once more: the place of somebody's result is taken for good.
            match self.check(&digest, size) {
                Ok(()) => self.note_there(&object_key(&digest)),
                Err(RemoteError::Damaged(_)) => {
                    self.note_damage(&key);
                    return Ok(There::Damaged(Box::new(there.provenance.clone())));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(There::Is(Sent::Other(Box::new(there.provenance.clone()))))
    }

    fn send_objects(
        &self,
        store: &Store,
        record: &Record,
        listed: Option<&Listed>,
        tell: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<(), RemoteError> {
        let objects = objects_of(record);
        let told = Told::new(&objects, tell);
        let sent = in_parallel(&objects, OBJECTS_AT_ONCE, |(digest, size)| {
            self.send_object(store, digest, *size, listed, &told)
        });
        sent.into_iter().collect()
    }

    fn send_object(
        &self,
        store: &Store,
        digest: &Digest,
        size: u64,
        listed: Option<&Listed>,
        told: &Told,
    ) -> Result<(), RemoteError> {
        let key = object_key(digest);
        if self.is_there(&key) {
            return Ok(());
        }
        store.go_on()?;
        self.go_on()?;
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
            let damaged = |damage: Damage| RemoteError::Damaged(damage.to_string());
            let path = file;
            let bytes = match std::fs::read(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Err(damaged(Damage::Missing { path }));
                }
                bytes => bytes?,
            };
            if Digest::of(&bytes) != *digest {
                return Err(damaged(Damage::Altered { path }));
            }
            self.bucket.write(&key, bytes)?;
            told.more(size);
        } else {
            let _turn = self.large.take();
            // Whatever its times say: nobody there would find out before it is used.
            let whole = store.check_object(digest);
            whole.map_err(|damage| RemoteError::Damaged(damage.to_string()))?;
            let folder = self.notes(store).join(UPLOADS);
            fs_err::create_dir_all(&folder)?;
            let mut before = 0;
            self.bucket.upload(
                &key,
                &mut Upload {
                    file: &file,
                    size,
                    notes: &folder.join(digest.to_string()),
                    tell: &mut |sent| {
                        told.more(sent - std::mem::replace(&mut before, sent));
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
    fn send_record(&self, store: &Store, shared: &mut Record) -> Result<Sent, RemoteError> {
        let first_wins = self.first_wins(store, false)?;
        let mut refused = None;
        for again in 0..TRIES {
            if again > 0 {
                store.go_on()?;
                std::thread::sleep(Duration::from_millis(50 << again));
            }
            let key = record_key(&shared.fingerprint, shared.class_beside());
            let body = serde_json::to_string(shared).map_err(std::io::Error::from)?;
            let bytes = encode(&body).into_bytes();
            if bytes.len() as u64 > LONGEST_RECORD {
                return Err(RemoteError::TooLarge);
            }
            let created = if first_wins && !self.is_damaged(&key) {
                self.bucket.create(&key, bytes)
            } else {
                self.bucket.write(&key, bytes).map(|()| false)
            };
            match created {
                Ok(true) => return Ok(Sent::First),
                Ok(false) => {}
                Err(BucketError::Failed(why)) => refused = Some(why),
                Err(error) => return Err(error.into()),
            }
            // Where the last writer wins, one that came in between is found so.
            if let There::Is(sent) = self.place(shared)? {
                return Ok(sent);
            }
        }
        let why = refused.unwrap_or_else(|| "it says that it is there, and it is not".to_owned());
        Err(BucketError::Failed(format!("a record: {why}")).into())
    }
}
