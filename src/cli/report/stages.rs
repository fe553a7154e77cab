//! What is known of each stage: manifest, decision and why, how its result was made, outputs, the end of its log.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value as Json;

use super::super::Failure;
use super::super::plan::{causes, value};
use super::audit::{Audit, Audited};
use super::embed::{in_script, readable};
use super::logs::{LogView, Logs};
use crate::engine::artifact::{Artifact, Digest};
use crate::engine::fingerprint::{Manifest, flatten};
use crate::engine::plan::{Decision, StagePlan};
use crate::engine::provenance::Provenance;
use crate::engine::spec::Pipeline;
use crate::engine::stage::StageError;
use crate::engine::store::{Provenance as Made, Record};

/// Bytes of what is told of stages; those that come after are told of in short.
const MOST_BYTES: usize = 2_000_000;

/// A stage, by position as in the pipeline.
#[derive(Debug, Serialize)]
pub(super) struct StageView<'a> {
    name: &'a str,
    template: &'a str,
    kind: &'a str,
    axes: Vec<(&'a String, &'a String)>,
    decision: Decision,
    fingerprint: Option<Digest>,
    /// Port, position of the producer, its output.
    inputs: Vec<(&'a str, usize, &'a str)>,
    seconds: Option<f64>,
    /// Absent where there was no room.
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details<'a>>,
}

#[derive(Debug, Default, Serialize)]
struct Details<'a> {
    description: &'a str,
    version: u32,
    params: Vec<(String, String)>,
    sources: Vec<(String, Option<String>)>,
    /// Names of the variables whose values count; a digest could tell a short value.
    environment: Vec<&'a str>,
    /// Why it would run.
    why: String,
    notes: &'a [String],
    made: Option<&'a Made>,
    outputs: Vec<OutputView<'a>>,
    audit: &'a [Audited],
    log: Option<LogView>,
}

#[derive(Debug, Serialize)]
struct OutputView<'a> {
    name: &'a str,
    kind: &'a str,
    digest: Digest,
    bytes: u64,
    /// Path, bytes, digest.
    files: Vec<(&'a str, u64, Digest)>,
}

/// Tells of every stage, as JSON.
pub(super) fn read(
    pipeline: &Pipeline,
    plans: &[StagePlan],
    provenance: &Provenance<'_>,
    logs: &Logs,
    audit: &Audit,
) -> Result<Json, Failure> {
    let records: BTreeMap<&str, &Record> = provenance.records().collect();
    let mut left = MOST_BYTES;
    let mut views = Vec::with_capacity(plans.len());
    for (at, (instance, plan)) in pipeline.stages.iter().zip(plans).enumerate() {
        let record = records.get(instance.name.as_str()).copied();
        let inputs = instance.inputs.iter().flat_map(|port| {
            let items = port.items.iter();
            items.map(|item| (port.port.as_str(), item.producer, item.output.as_str()))
        });
        let mut view = StageView {
            name: &instance.name,
            template: &instance.template,
            kind: instance.kind.name,
            axes: instance.axes.iter().collect(),
            decision: plan.decision,
            fingerprint: plan.fingerprint,
            inputs: inputs.collect(),
            seconds: record.map(|record| record.provenance.seconds),
            details: None,
        };
        let mut told = readable(&view).map_err(StageError::from)?;
        if left > 0 {
            let manifest = record
                .map(|record| &record.manifest)
                .or(plan.manifest.as_ref());
            view.details = Some(Details {
                description: &instance.description,
                version: manifest.map_or(instance.kind.version, |manifest| manifest.version),
                why: causes(&plan.causes, &instance.name),
                notes: &plan.notes,
                made: record.map(|record| &record.provenance),
                outputs: plan.outputs.iter().flatten().map(output).collect(),
                audit: audit.of(at),
                log: plan
                    .fingerprint
                    .and_then(|fingerprint| logs.of(&fingerprint)),
                ..manifest.map(of_manifest).unwrap_or_default()
            });
            told = readable(&view).map_err(StageError::from)?;
        }
        left = left.saturating_sub(in_script(&told).len());
        views.push(told);
    }
    Ok(views.into())
}

/// What a manifest says but for inputs, which are told as links.
fn of_manifest(manifest: &Manifest) -> Details<'_> {
    let mut params = BTreeMap::new();
    for (key, param) in manifest.params.as_object().into_iter().flatten() {
        flatten(key, param, &mut params);
    }
    let params = params
        .into_iter()
        .map(|(key, param)| (key, value(Some(&param))));
    let sources = manifest.sources.iter();
    Details {
        params: params.collect(),
        sources: sources
            .map(|(key, digest)| (key.clone(), digest.clone()))
            .collect(),
        environment: manifest
            .environment
            .iter()
            .map(|entry| {
                entry
                    .split_once('=')
                    .map_or(entry.as_str(), |(name, _)| name)
            })
            .collect(),
        ..Details::default()
    }
}

fn output<'a>((name, artifact): (&'a String, &'a Artifact)) -> OutputView<'a> {
    let files = artifact.files.iter();
    OutputView {
        name,
        kind: &artifact.kind,
        digest: artifact.digest,
        bytes: artifact.size(),
        files: files
            .map(|file| (file.path.as_str(), file.size, file.digest))
            .collect(),
    }
}
