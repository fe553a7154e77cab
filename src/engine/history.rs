//! Earlier records, arranged to find out why a stage is not cached.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use super::artifact::Digest;
use super::fingerprint::Manifest;
use super::store::{Record, Store};

/// The records of a store. Read only when some stage is not cached.
#[derive(Debug, Default)]
pub(super) struct History {
    entries: Vec<Entry>,
    by_stage: BTreeMap<String, Vec<usize>>,
    /// By kind, version and params: what a manifest always knows of itself.
    by_params: BTreeMap<String, Vec<usize>>,
}

#[derive(Debug)]
struct Entry {
    record: Record,
    components: BTreeMap<String, Json>,
}

impl History {
    /// Reads every record that can be read.
    pub(super) fn read(store: &Store) -> Self {
        let mut history = Self::default();
        for record in store.read_records().0 {
            let at = history.entries.len();
            let stage = record.provenance.stage.clone();
            history.by_stage.entry(stage).or_default().push(at);
            let params = params_key(&record.manifest);
            history.by_params.entry(params).or_default().push(at);
            history.entries.push(Entry {
                components: record.manifest.components(),
                record,
            });
        }
        history
    }

    /// Finds the record that a stage's manifest is most probably a changed version of.
    ///
    /// A record of a stage in `present`, the names of the pipeline, is the past of that stage and of no other.
    /// Records of names that are gone count only if almost everything agrees: the stage was renamed. The record
    /// of the fingerprint `but` is passed over.
    pub(super) fn nearest(
        &self,
        stage: &str,
        pipeline: &str,
        manifest: &Manifest,
        but: Option<&Digest>,
        present: &BTreeSet<&str>,
    ) -> Option<&Record> {
        let other = |entry: &&Entry| {
            entry.record.manifest.kind == manifest.kind && but != Some(&entry.record.fingerprint)
        };
        let components = manifest.components();
        let closeness = |entry: &Entry| {
            let provenance = &entry.record.provenance;
            (
                provenance.pipeline == pipeline,
                agreement(&entry.components, &components),
                provenance.started.clone(),
            )
        };
        let own = self.by_stage.get(stage).into_iter().flatten();
        let own = own
            .map(|at| &self.entries[*at])
            .filter(other)
            .max_by_key(|entry| closeness(entry));
        own.or_else(|| {
            self.entries
                .iter()
                .filter(other)
                .filter(|entry| {
                    !present.contains(entry.record.provenance.stage.as_str())
                        && is_renamed(&entry.components, &components)
                })
                .max_by_key(|entry| closeness(entry))
        })
        .map(|entry| &entry.record)
    }

    /// Lists the records that agree with everything that is known of `manifest`.
    pub(super) fn with_known_part(&self, manifest: &Manifest) -> impl Iterator<Item = &Record> {
        let same_params = self.by_params.get(&params_key(manifest));
        let records = same_params.into_iter().flatten();
        records
            .map(|at| &self.entries[*at].record)
            .filter(|record| manifest.matches_known_part(&record.manifest))
    }

    /// Whether there is one of [`Self::with_known_part`].
    pub(super) fn has_known_part(&self, manifest: &Manifest) -> bool {
        self.with_known_part(manifest).next().is_some()
    }
}

fn params_key(manifest: &Manifest) -> String {
    format!("{} {} {}", manifest.kind, manifest.version, manifest.params)
}

fn agreement(ours: &BTreeMap<String, Json>, theirs: &BTreeMap<String, Json>) -> usize {
    theirs
        .iter()
        .filter(|(key, value)| ours.get(*key) == Some(value))
        .count()
}

/// Whether so little differs that one may be the other under a new name.
fn is_renamed(ours: &BTreeMap<String, Json>, theirs: &BTreeMap<String, Json>) -> bool {
    let agreeing = agreement(ours, theirs);
    let differing = ours.len().max(theirs.len()) - agreeing;
    differing <= 2 && agreeing >= 3 * differing
}
