//! Records: which outputs a fingerprint gave, and how that went.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Serialize};

use super::Store;
use super::object::{Damage, ObjectStats};
use super::publish::{publish, publish_first};
use crate::engine::artifact::{ArtifactFile, Digest, Outputs};
use crate::engine::fingerprint::Manifest;
use crate::engine::machine::{Gpu, Work, may_stand_in};

/// The result of one stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record<M = Manifest, P = Provenance> {
    /// Whether it stands beside the first result of its fingerprint, as that of another numerics class.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub beside: bool,
    /// The fingerprint of `manifest`.
    pub fingerprint: Digest,
    /// What determined the bytes.
    pub manifest: M,
    /// The artifacts, by output name.
    pub outputs: Outputs,
    /// How it went.
    pub provenance: P,
    /// What the file system said of the objects.
    pub stats: ObjectStats,
}

impl<M, P> Record<M, P> {
    /// Returns the files of all outputs.
    pub fn files(&self) -> impl Iterator<Item = &ArtifactFile> {
        self.outputs.values().flat_map(|output| &output.files)
    }
}

impl<M, P: Computed> Record<M, P> {
    /// Returns its numerics class if it stands beside the first.
    pub fn class_beside(&self) -> Option<&str> {
        self.beside.then(|| self.provenance.numerics())
    }
}

/// A record read without its manifest, which whoever has its fingerprint knows, and without most of its history.
pub type RecordHead = Record<IgnoredAny, Numerics>;

/// What decides whether a result counts on this machine.
#[derive(Debug, Deserialize)]
pub struct Numerics {
    /// As in [`Provenance`].
    pub numerics: String,
}

/// What tells of a result which kernels computed it.
pub trait Computed {
    /// Returns the numerics class; see [`Provenance`].
    fn numerics(&self) -> &str;
}

impl Computed for Numerics {
    fn numerics(&self) -> &str {
        &self.numerics
    }
}

impl Computed for Provenance {
    fn numerics(&self) -> &str {
        &self.numerics
    }
}

/// How a stage was run. None of this is part of its fingerprint.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// Name of the stage.
    pub stage: String,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Version of flowgraph.
    pub flowgraph: String,
    /// The machine's name.
    pub host: String,
    /// The name of whoever ran it there.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `cpu`, or `cuda:0`, as the process saw it: for a command that it was given GPUs, else that tensors lay there.
    pub device: String,
    /// The GPU that tensors lay on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuUsed>,
    /// Which kernels computed it: records of one class with one fingerprint have equal bytes.
    pub numerics: String,
    /// Threads used.
    pub threads: usize,
    /// When it started, as RFC 3339 in UTC.
    pub started: String,
    /// Wall-clock seconds, tries that were resumed not counted.
    pub seconds: f64,
    /// CPU seconds of the worker and its commands.
    pub cpu_seconds: f64,
    /// Peak resident memory of the worker or its largest command.
    pub peak_memory_bytes: u64,
    /// What was computed in these seconds, where the stage counts it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub work: Option<Work>,
}

/// A GPU that a stage computed on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GpuUsed {
    /// What it is.
    #[serde(flatten)]
    pub gpu: Gpu,
    /// The most bytes that the tensors of the stage took at once, if the driver tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Model FLOPs utilization (Chowdhery et al. 2022, appendix B): the share of what the GPU can do at most that the
    /// operations of the model came to, over all seconds of the stage; for GPUs whose maker's figure is known here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub utilization: Option<f64>,
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system refused.
    #[error("cannot read record {}: {source}", path.display())]
    Read {
        /// The record's file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The bytes are not what was written.
    #[error("record {} is damaged: {what}", path.display())]
    Damaged {
        /// The record's file.
        path: PathBuf,
        /// How it shows.
        what: String,
    },
}

impl RecordError {
    /// Returns the record's file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Read { path, .. } | Self::Damaged { path, .. } => path,
        }
    }

    /// Whether the record may be whole, and only this user may not read it.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied)
    }
}

/// Which of the results of a fingerprint counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The numerics class of where it would be computed.
    pub class: String,
    /// Whether no other class will do.
    pub exact: bool,
    /// Name and kind of what its stage makes.
    pub outputs: Vec<(String, String)>,
}

impl Wanted {
    /// Whether these are the outputs of the stage.
    pub(super) fn is_made_of(&self, outputs: &Outputs) -> bool {
        let made = |name: &String, kind: &String| {
            outputs.get(name).is_some_and(|output| output.kind == *kind)
        };
        self.outputs.len() == outputs.len()
            && self.outputs.iter().all(|(name, kind)| made(name, kind))
    }
}

/// Finds the record that counts among the first of a fingerprint and those beside it: one of the class, or else the first
/// that there is, if it [may stand in](may_stand_in).
pub(super) fn find_among<M, P: Computed, E>(
    wanted: &Wanted,
    read: impl Fn(Option<&str>) -> Result<Option<Record<M, P>>, E>,
) -> Result<Option<Record<M, P>>, E> {
    let class = wanted.class.as_str();
    let first = read(None);
    match &first {
        Ok(Some(record)) if record.provenance.numerics() != class => {}
        Err(_) => {}
        _ => return first,
    }
    match read(Some(class)) {
        Ok(Some(own)) => Ok(Some(own)),
        _ => Ok(first?
            .filter(|first| !wanted.exact && may_stand_in(first.provenance.numerics(), class))),
    }
}

const HEAD: &str = "{\"digest\":\"";
const MIDDLE: &str = "\",\"record\":";
const TAIL: &str = "}\n";

/// Writes the body between its digest and the end, such that any changed byte shows.
pub(super) fn encode(body: &str) -> String {
    format!("{HEAD}{}{MIDDLE}{body}{TAIL}", Digest::of(body.as_bytes()))
}

pub(super) fn decode<M: DeserializeOwned, P: DeserializeOwned>(
    text: &str,
) -> Result<Record<M, P>, String> {
    let rest = text
        .strip_prefix(HEAD)
        .ok_or("its head is not a record's")?;
    let (digest, rest) = rest.split_at_checked(64).ok_or("it is cut short")?;
    let body = rest
        .strip_prefix(MIDDLE)
        .and_then(|rest| rest.strip_suffix(TAIL))
        .ok_or("it is cut short")?;
    if digest.parse() != Ok(Digest::of(body.as_bytes())) {
        return Err("its bytes have another digest".to_owned());
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}

/// Reads a file of a few kilobytes, without asking how long it is first.
fn read_small(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4096);
    // Not `read_to_end` of the file itself, which asks.
    std::fs::File::open(path)?
        .take(u64::MAX)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

impl Store {
    /// Reads the record of `fingerprint`, if there is one: the first, or that of the numerics class `beside`.
    pub fn read_record(
        &self,
        fingerprint: &Digest,
        beside: Option<&str>,
    ) -> Result<Option<Record>, RecordError> {
        self.read(fingerprint, beside)
    }

    /// Finds what counts as the record of `fingerprint` where `class` is computed in: one of that class, or else the
    /// first that there is, if it [may stand in](may_stand_in).
    pub fn find_record(
        &self,
        fingerprint: &Digest,
        class: &str,
    ) -> Result<Option<Record>, RecordError> {
        self.find(fingerprint, class)
    }

    /// Finds what a plan needs of the record of `fingerprint`; see [`Self::find_record`].
    pub fn find_record_head(
        &self,
        fingerprint: &Digest,
        class: &str,
    ) -> Result<Option<RecordHead>, RecordError> {
        self.find(fingerprint, class)
    }

    fn find<M: DeserializeOwned, P: DeserializeOwned + Computed>(
        &self,
        fingerprint: &Digest,
        class: &str,
    ) -> Result<Option<Record<M, P>>, RecordError> {
        let wanted = Wanted {
            class: class.to_owned(),
            exact: false,
            outputs: Vec::new(),
        };
        find_among(&wanted, |beside| self.read(fingerprint, beside))
    }

    fn read<M: DeserializeOwned, P: DeserializeOwned>(
        &self,
        fingerprint: &Digest,
        beside: Option<&str>,
    ) -> Result<Option<Record<M, P>>, RecordError> {
        let path = self.record_file(fingerprint, beside);
        let text = match read_small(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecordError::Read { path, source }),
        };
        let damaged = |what: String| RecordError::Damaged {
            path: path.clone(),
            what,
        };
        let text = String::from_utf8(text).map_err(|_| damaged("it is not text".to_owned()))?;
        let mut record: Record<M, P> = decode(&text).map_err(damaged)?;
        if record.fingerprint != *fingerprint {
            return Err(RecordError::Damaged {
                path,
                what: format!("it belongs to fingerprint {}", record.fingerprint.short()),
            });
        }
        record.beside = beside.is_some();
        Ok(Some(record))
    }

    /// Writes the record of a result, unless somebody else did meanwhile whose objects are intact: then that is returned,
    /// and counts.
    pub fn write_first_record(&self, record: &Record) -> std::io::Result<Option<Record>> {
        let body = serde_json::to_string(record)?;
        let path = self.record_file(&record.fingerprint, record.class_beside());
        if publish_first(&path, encode(&body).as_bytes())? {
            self.remove_twin(record);
            return Ok(None);
        }
        let there = self.read_record(&record.fingerprint, record.class_beside());
        if let Ok(Some(mut there)) = there
            && self.check_record(&mut there, true).is_ok()
        {
            return Ok(Some(there));
        }
        self.write_record(record).map(|()| None)
    }

    /// Writes a record; from then on the result exists.
    pub fn write_record(&self, record: &Record) -> std::io::Result<()> {
        let body = serde_json::to_string(record)?;
        let path = self.record_file(&record.fingerprint, record.class_beside());
        publish(&path, encode(&body).as_bytes())?;
        self.remove_twin(record);
        Ok(())
    }

    fn remove_twin(&self, record: &Record) {
        if !record.beside {
            // Nothing of its own class stands beside the first: a damaged one was replaced.
            let class = record.provenance.numerics();
            let _ = std::fs::remove_file(self.record_file(&record.fingerprint, Some(class)));
        }
    }

    /// Reads every record, and says which could not be read.
    pub fn read_records(&self) -> (Vec<Record>, Vec<RecordError>) {
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        let path = self.root().join("records");
        let listed =
            std::fs::read_dir(&path).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
        let entries = listed.unwrap_or_else(|source| {
            // Records that cannot be listed are there all the same.
            if source.kind() != std::io::ErrorKind::NotFound {
                errors.push(RecordError::Read { path, source });
            }
            Vec::new()
        });
        let mut names: Vec<(Digest, Option<String>)> = entries
            .into_iter()
            .filter_map(|entry| {
                let name = entry.file_name().into_string().ok()?;
                let name = name.strip_suffix(".json")?;
                let (fingerprint, class) = match name.split_once('.') {
                    Some((fingerprint, class)) => (fingerprint, Some(class.to_owned())),
                    None => (name, None),
                };
                Some((fingerprint.parse().ok()?, class))
            })
            .collect();
        names.sort_unstable();
        for (fingerprint, class) in names {
            match self.read_record(&fingerprint, class.as_deref()) {
                Ok(record) => records.extend(record),
                Err(error) => errors.push(error),
            }
        }
        (records, errors)
    }

    /// Checks that every object of a record is there and intact, by its bytes if `paranoid`, else by what the
    /// file system says where that suffices. Refreshes the record's stats.
    pub fn check_record<M, P: Computed>(
        &self,
        record: &mut Record<M, P>,
        paranoid: bool,
    ) -> Result<(), Damage> {
        let digests: Vec<Digest> = record.files().map(|file| file.digest).collect();
        let mut refreshed = false;
        for digest in digests {
            let known = record.stats.get(&digest).filter(|_| !paranoid);
            if let Some(stat) = self.glance_at_object(&digest, known)? {
                record.stats.insert(digest, stat);
                refreshed = true;
            }
        }
        if refreshed && !paranoid {
            // Only saves hashing next time: a store that cannot be written is still good to read.
            let whole = self.read_record(&record.fingerprint, record.class_beside());
            if let Ok(Some(whole)) = whole {
                let stats = record.stats.clone();
                let _ = self.write_record(&Record { stats, ..whole });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::fingerprint::MANIFEST_FORMAT;

    pub(in crate::engine::store) fn record(lr: f64) -> Record {
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            kind: "k".to_owned(),
            version: 1,
            params: serde_json::json!({ "lr": lr }),
            inputs: std::collections::BTreeMap::default(),
            sources: std::collections::BTreeMap::default(),
            environment: Vec::new(),
        };
        Record {
            beside: false,
            fingerprint: manifest.fingerprint().unwrap(),
            manifest,
            outputs: Outputs::new(),
            provenance: Provenance::default(),
            stats: ObjectStats::new(),
        }
    }

    #[test]
    fn every_flipped_byte_and_every_truncation_of_a_record_shows() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let record = record(0.1);
        store.write_record(&record).unwrap();
        assert_eq!(
            store.read_record(&record.fingerprint, None).unwrap(),
            Some(record.clone())
        );
        let path = store.record_path(&record.fingerprint);
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x11;
            std::fs::write(&path, &bad).unwrap();
            assert!(
                store.read_record(&record.fingerprint, None).is_err(),
                "byte {at} was flipped unseen"
            );
            std::fs::write(&path, &good[..at]).unwrap();
            assert!(
                store.read_record(&record.fingerprint, None).is_err(),
                "cut at {at} unseen"
            );
        }
    }

    #[test]
    fn results_of_two_classes_stand_beside_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path());
        let of = |class: &str, beside| {
            let mut record = record(0.1);
            record.provenance.numerics = class.to_owned();
            record.beside = beside;
            record
        };
        let (first, second) = (of("cpu/1", false), of("cuda-sm90", true));
        store.write_record(&first).unwrap();
        let find = |class: &str| store.find_record(&first.fingerprint, class).unwrap();
        assert_eq!(find("cpu/1").as_ref(), Some(&first));
        assert_eq!(find("cuda-sm90").as_ref(), Some(&first), "better than none");
        store.write_record(&second).unwrap();
        assert_eq!(find("cpu/1").as_ref(), Some(&first));
        assert_eq!(find("cuda-sm90").as_ref(), Some(&second));
        assert_eq!(find("cuda-sm80").as_ref(), Some(&first));
        assert_eq!(store.read_records().0, [first.clone(), second.clone()]);
        // One that cannot be read leaves the other.
        fs_err::write(store.record_path(&first.fingerprint), "cut").unwrap();
        assert_eq!(find("cuda-sm90").as_ref(), Some(&second));
        assert!(store.find_record(&first.fingerprint, "cpu/1").is_err());
        // Where it takes the place of the first, it stands there alone.
        store.write_record(&of("cuda-sm90", false)).unwrap();
        assert_eq!(store.read_records().0.len(), 1);
    }
}
