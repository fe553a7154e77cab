//! Deciding, for each stage, whether a stored result can be used.
//!
//! `plan` and `run` share [`Planner::decide`]: a plan calls it once for every stage with what is known now,
//! the executor calls it again for each stage when everything upstream of it is known.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path as FilePath, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::artifact::{Artifact, Digest};
use super::fingerprint::{MANIFEST_FORMAT, Manifest, ManifestInput};
use super::spec::{Instance, Pipeline};
use super::stage::{Estimate, SourceParam, StageError};
use super::store::{Record, Store};
use crate::sources::Source;

/// What will happen to a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// A record matches the whole manifest.
    Cached,
    /// No record matches what is known of the manifest, or a result is missing.
    Run,
    /// A record matches what is known, but an upstream output is still open.
    RunIf,
}

/// Why a stage will run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cause {
    /// The stage whose manifest changed; not always the stage that runs.
    pub stage: String,
    /// The component that changed, such as `params.lr`, or a reason in words.
    pub key: String,
    /// Its value in the nearest earlier record.
    pub old: Option<Json>,
    /// Its value now.
    pub new: Option<Json>,
}

/// The decision about one stage.
#[derive(Debug, Clone)]
pub struct StagePlan {
    /// What will happen.
    pub decision: Decision,
    /// The manifest, as far as it is known.
    pub manifest: Manifest,
    /// Its fingerprint, if it is wholly known.
    pub fingerprint: Option<Digest>,
    /// The record to use, if `cached`.
    pub record: Option<Record>,
    /// Why the stage will run; empty if `cached`.
    pub causes: Vec<Cause>,
    /// What running it will cost, as far as params and earlier records tell.
    pub estimate: Estimate,
    /// Things people should know: another machine's numerics, a damaged object.
    pub notes: Vec<String>,
}

/// How records are trusted and what is forced.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Hash every object instead of trusting the file system's times.
    pub paranoid: bool,
    /// Stages that run whatever the store holds, by position.
    pub rerun: Vec<bool>,
    /// Whether results of another numerics class are misses.
    pub exact_numerics: bool,
    /// Whether unpinned sources are looked at again.
    pub refresh: bool,
}

/// Outputs that are known so far, by position of their stage.
pub type Known = Vec<Option<BTreeMap<String, Artifact>>>;

/// Decides about the stages of one pipeline.
pub struct Planner<'a> {
    pipeline: &'a Pipeline,
    store: &'a Store,
    options: PlanOptions,
    base_folder: PathBuf,
    history: OnceCell<Vec<Record>>,
}

impl<'a> Planner<'a> {
    /// Makes a planner.
    pub fn new(pipeline: &'a Pipeline, store: &'a Store, options: PlanOptions) -> Self {
        Self {
            pipeline,
            store,
            options,
            base_folder: pipeline.base_folder(),
            history: OnceCell::new(),
        }
    }

    /// Decides about every stage with what is known before anything runs.
    ///
    /// # Errors
    /// A source file that cannot be read.
    pub fn plan(&self) -> Result<Vec<StagePlan>, PlanError> {
        let mut plans: Vec<Option<StagePlan>> =
            (0..self.pipeline.stages.len()).map(|_| None).collect();
        let mut known: Known = vec![None; plans.len()];
        let mut errors = Vec::new();
        for &stage in &self.pipeline.order {
            let upstream: Vec<&StagePlan> = self
                .pipeline
                .graph
                .needs(stage)
                .into_iter()
                .filter_map(|upstream| plans[upstream].as_ref())
                .collect();
            match self.decide(stage, &known, &upstream) {
                Ok(plan) => {
                    known[stage] = plan.record.as_ref().map(|record| record.outputs.clone());
                    plans[stage] = Some(plan);
                }
                Err(error) => errors.push(error),
            }
        }
        if errors.is_empty() {
            Ok(plans.into_iter().flatten().collect())
        } else {
            Err(PlanError { failures: errors })
        }
    }

    /// Decides about one stage. `upstream` are the plans of what it needs, for the causes.
    pub fn decide(
        &self,
        stage: usize,
        known: &Known,
        upstream: &[&StagePlan],
    ) -> Result<StagePlan, (String, StageError)> {
        let instance = &self.pipeline.stages[stage];
        let manifest = self
            .manifest(instance, known)
            .map_err(|error| (instance.name.clone(), error))?;
        let mut plan = StagePlan {
            decision: Decision::Run,
            fingerprint: manifest.fingerprint(),
            manifest,
            record: None,
            causes: Vec::new(),
            estimate: instance.stage.estimate(),
            notes: Vec::new(),
        };
        let forced = self.options.rerun.get(stage).copied().unwrap_or(false);
        if let Some(fingerprint) = plan.fingerprint {
            self.look_up(&fingerprint, &mut plan);
            if forced {
                plan.record = None;
                plan.causes = vec![cause(instance, "asked to run again")];
            } else if plan.record.is_some() {
                plan.decision = Decision::Cached;
                return Ok(plan);
            }
        }
        let nearest = self.nearest(instance, &plan.manifest);
        if plan.fingerprint.is_none() {
            if !forced && self.known_part_is_recorded(&plan.manifest) {
                plan.decision = Decision::RunIf;
            }
            for cause in upstream.iter().flat_map(|plan| &plan.causes) {
                if !plan.causes.contains(cause) {
                    plan.causes.push(cause.clone());
                }
            }
            for (key, _) in plan
                .manifest
                .sources
                .iter()
                .filter(|(_, digest)| digest.is_none())
            {
                plan.causes.push(cause(
                    instance,
                    &format!("source `{key}` was not fetched yet"),
                ));
            }
        }
        if plan.decision == Decision::Run && !forced {
            let own = match nearest {
                Some(record) => record
                    .manifest
                    .differences(&plan.manifest)
                    .into_iter()
                    .map(|difference| Cause {
                        stage: instance.name.clone(),
                        key: difference.key,
                        old: difference.old,
                        new: difference.new,
                    })
                    .collect(),
                None => vec![cause(instance, "no earlier result")],
            };
            let already: Vec<Cause> = std::mem::take(&mut plan.causes);
            // A changed input is the effect of an upstream change that is listed by its own cause.
            let upstream_known = !already.is_empty();
            plan.causes.extend(
                own.into_iter()
                    .filter(|cause| !(upstream_known && cause.key.starts_with("inputs."))),
            );
            for cause in already {
                if !plan.causes.contains(&cause) {
                    plan.causes.push(cause);
                }
            }
        }
        if let Some(record) = nearest.filter(|record| record.provenance.stage == instance.name) {
            plan.estimate.seconds = Some(record.provenance.seconds);
            plan.estimate.memory_bytes = Some(record.provenance.peak_memory_bytes);
        }
        Ok(plan)
    }

    /// Takes the record of a fingerprint if it can be used.
    fn look_up(&self, fingerprint: &Digest, plan: &mut StagePlan) {
        let mut record = match self.store.read_record(fingerprint) {
            Ok(Some(record)) => record,
            Ok(None) => return,
            Err(error) => {
                plan.notes.push(error.to_string());
                return;
            }
        };
        if let Err(damage) = self.store.check_record(&mut record, self.options.paranoid) {
            plan.notes.push(damage.to_string());
            return;
        }
        let ours = crate::engine::worker::numerics_class(&record.provenance.device);
        if record.provenance.numerics != ours {
            if self.options.exact_numerics {
                plan.notes.push(format!(
                    "its result was computed as {}",
                    record.provenance.numerics
                ));
                return;
            }
            plan.notes.push(format!(
                "reuses a result computed as {}",
                record.provenance.numerics
            ));
        }
        plan.record = Some(record);
    }

    fn manifest(&self, instance: &Instance, known: &Known) -> Result<Manifest, StageError> {
        let inputs = instance.inputs.iter().map(|input| {
            let items = input
                .items
                .iter()
                .map(|item| {
                    let outputs = known[item.producer].as_ref();
                    let digest = outputs
                        .and_then(|outputs| outputs.get(&item.output))
                        .map(|artifact| artifact.digest);
                    ManifestInput::new(digest, &item.labels)
                })
                .collect();
            (input.port.clone(), items)
        });
        let inputs = inputs.collect();
        let mut sources = BTreeMap::new();
        for source in instance.stage.sources() {
            sources.insert(source.key.clone(), self.source_digest(&source)?);
        }
        Ok(Manifest {
            format: MANIFEST_FORMAT,
            kind: instance.kind.name.to_owned(),
            version: instance.kind.version,
            params: instance.stage.params(),
            inputs,
            sources,
            environment: instance.stage.environment(),
        })
    }

    /// Returns the digest of a source: a local file's by its bytes, a pinned one's by its pin, another's by what
    /// it was when it was fetched.
    fn source_digest(&self, param: &SourceParam) -> Result<Option<String>, StageError> {
        if let Some(path) = local_path(&param.source, &self.base_folder)? {
            let digest = self.store.digest_outside(&path, self.options.paranoid)?;
            return Ok(Some(format!("blake3:{digest}")));
        }
        if let Some(sha256) = &param.sha256 {
            return Ok(Some(format!("sha256:{sha256}")));
        }
        if self.options.refresh {
            return Ok(None);
        }
        let fetched = self.store.fetched_source(&param.source.to_string());
        Ok(fetched.map(|sha256| format!("sha256:{sha256}")))
    }

    fn history(&self) -> &[Record] {
        self.history.get_or_init(|| self.store.read_records().0)
    }

    fn nearest(&self, instance: &Instance, manifest: &Manifest) -> Option<&Record> {
        self.history()
            .iter()
            .filter(|record| record.manifest.kind == manifest.kind)
            .max_by_key(|record| {
                let provenance = &record.provenance;
                let same_stage = provenance.stage == instance.name;
                let same_pipeline = provenance.pipeline == self.pipeline.name;
                (
                    same_stage,
                    same_pipeline,
                    record.manifest.agreement(manifest),
                    provenance.started.clone(),
                )
            })
            // Another stage of the same kind is no earlier version of this one.
            .filter(|record| {
                record.provenance.stage == instance.name
                    || record.manifest.differences(manifest).len() <= 2
            })
    }

    fn known_part_is_recorded(&self, manifest: &Manifest) -> bool {
        self.history()
            .iter()
            .any(|record| manifest.matches_known_part(&record.manifest))
    }
}

/// Why a plan could not be made.
#[derive(Debug)]
pub struct PlanError {
    /// Stages with what is wrong.
    pub failures: Vec<(String, StageError)>,
}

fn cause(instance: &Instance, reason: &str) -> Cause {
    Cause {
        stage: instance.name.clone(),
        key: reason.to_owned(),
        old: None,
        new: None,
    }
}

/// Returns the local file or folder that a source names, if it names one.
///
/// A relative path is looked for in the pipeline's folder, then in the current one.
///
/// # Errors
/// A local path where nothing is.
pub fn local_path(source: &Source, base_folder: &FilePath) -> Result<Option<PathBuf>, StageError> {
    let Source::File(path) = source else {
        return Ok(None);
    };
    let in_base = base_folder.join(path);
    if in_base.exists() {
        return Ok(Some(in_base));
    }
    if path.exists() {
        return Ok(Some(path.clone()));
    }
    Err(
        StageError::new(format!("source `{source}` does not exist")).hint(format!(
            "looked for {} and {}",
            in_base.display(),
            path.display()
        )),
    )
}
