//! Deciding, for each stage, whether a stored result can be used.
//!
//! `plan` and `run` share [`Planner::decide`]: a plan calls it once for every stage with what is known now,
//! the executor calls it again for each stage when everything upstream of it is known.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::artifact::{Digest, Outputs};
use super::code;
use super::fingerprint::{MANIFEST_FORMAT, Manifest, ManifestInput};
use super::history::History;
use super::instance::Instance;
use super::machine::{Machine, numerics_class};
use super::spec::Pipeline;
use super::stage::{Estimate, SourceParam, StageError};
use super::store::{Record, Store, Wanted};
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
    /// The manifest, as far as it is known; absent if `cached`, since the record has it.
    pub manifest: Option<Manifest>,
    /// Its fingerprint, if it is wholly known.
    pub fingerprint: Option<Digest>,
    /// The numerics class of the record, if `cached` and that is not the first of its fingerprint.
    pub beside: Option<String>,
    /// The artifacts to use, if `cached`.
    pub outputs: Option<Outputs>,
    /// Why the stage will run; empty if `cached`.
    pub causes: Vec<Cause>,
    /// What running it will cost, as far as params and earlier records tell.
    pub estimate: Estimate,
    /// Things people should know: another machine's numerics, a damaged object.
    pub notes: Vec<String>,
    /// Why running it would fail at once: a source that is not there.
    pub obstacle: Option<StageError>,
}

impl StagePlan {
    /// The plan of a stage that is to compute what is recorded.
    pub(super) fn to_recompute(record: &Record) -> Self {
        Self {
            decision: Decision::Run,
            manifest: Some(record.manifest.clone()),
            fingerprint: Some(record.fingerprint),
            beside: None,
            outputs: None,
            causes: Vec::new(),
            estimate: Estimate::default(),
            notes: Vec::new(),
            obstacle: None,
        }
    }
}

/// How records are trusted and what is forced.
#[derive(Debug, Clone, Default)]
pub struct PlanOptions {
    /// Hash every object and source instead of trusting the file system's times.
    pub paranoid: bool,
    /// Believe records without a look at their objects, as an audit does, which looks at them itself.
    pub records_alone: bool,
    /// Stages that run whatever the store holds, by position.
    pub rerun: Vec<bool>,
    /// Whether results of another numerics class are misses.
    pub exact_numerics: bool,
    /// Whether unpinned sources are looked at again.
    pub refresh: bool,
    /// Where stages compute.
    pub machine: Arc<Machine>,
}

/// Outputs that are known so far, by position of their stage.
pub type Known = Vec<Option<Outputs>>;

/// Decides about the stages of one pipeline.
pub struct Planner<'a> {
    pipeline: &'a Pipeline,
    store: &'a Store,
    options: PlanOptions,
    history: OnceCell<(History, BTreeSet<&'a str>)>,
    /// Stages whose unpinned sources were fetched by this run, and need no further look.
    fetched: Vec<bool>,
}

/// What the store holds for a fingerprint.
enum Found {
    Nothing,
    /// A result that cannot be used, and why.
    Unusable(String),
    Usable {
        outputs: Outputs,
        beside: Option<String>,
        notes: Vec<String>,
    },
}

impl<'a> Planner<'a> {
    /// Makes a planner.
    pub fn new(pipeline: &'a Pipeline, store: &'a Store, options: PlanOptions) -> Self {
        Self {
            pipeline,
            store,
            options,
            history: OnceCell::new(),
            fetched: vec![false; pipeline.stages.len()],
        }
    }

    /// Notes that the unpinned sources of a stage were fetched.
    pub fn note_fetched(&mut self, stage: usize) {
        self.fetched[stage] = true;
    }

    /// Whether [`Self::note_fetched`] was called for a stage.
    pub fn was_fetched(&self, stage: usize) -> bool {
        self.fetched[stage]
    }

    /// Decides about every stage with what is known before anything runs.
    ///
    /// # Errors
    /// A result that may be there but cannot be read.
    pub fn plan(&self) -> Result<Vec<StagePlan>, PlanError> {
        let mut plans: Vec<Option<StagePlan>> =
            (0..self.pipeline.stages.len()).map(|_| None).collect();
        let mut known: Known = vec![None; plans.len()];
        let mut errors = Vec::new();
        for &stage in &self.pipeline.order {
            match self.decide(stage, &known, &plans) {
                Ok(mut plan) => {
                    known[stage] = plan.outputs.take();
                    plans[stage] = Some(plan);
                }
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(PlanError { failures: errors });
        }
        let planned = plans.into_iter().zip(known).map(|(plan, outputs)| {
            let plan = plan.unwrap_or_else(|| unreachable!("each stage is planned or an error"));
            StagePlan { outputs, ..plan }
        });
        Ok(planned.collect())
    }

    /// Decides about one stage. `plans` are those made so far, by position, for the causes.
    ///
    /// # Errors
    /// A result that may be there but cannot be read.
    pub fn decide(
        &self,
        stage: usize,
        known: &Known,
        plans: &[Option<StagePlan>],
    ) -> Result<StagePlan, (String, StageError)> {
        let instance = &self.pipeline.stages[stage];
        let failed = |error: StageError| (instance.name.clone(), error);
        let (manifest, obstacle) = self.manifest(stage, known);
        let mut plan = StagePlan {
            decision: Decision::Run,
            fingerprint: manifest.fingerprint(),
            beside: None,
            manifest: None,
            outputs: None,
            causes: Vec::new(),
            estimate: instance.stage.estimate(),
            notes: Vec::new(),
            obstacle,
        };
        let mut reason = None;
        if let Some(StageError::Failed { message, .. }) = &plan.obstacle {
            reason = Some(message.clone());
        } else if self.is_forced(stage) {
            reason = Some("asked to run again".to_owned());
        } else if let Some(fingerprint) = plan.fingerprint {
            match self.look_up(instance, &fingerprint).map_err(failed)? {
                Found::Usable {
                    outputs,
                    beside,
                    notes,
                } => {
                    plan.decision = Decision::Cached;
                    plan.outputs = Some(outputs);
                    plan.beside = beside;
                    plan.notes = notes;
                    return Ok(plan);
                }
                Found::Unusable(why) => reason = Some(why),
                Found::Nothing if self.store.is_evicted(&fingerprint) => {
                    reason = Some("its result was evicted".to_owned());
                }
                Found::Nothing => {}
            }
        }
        let (history, present) = self.history();
        let nearest = history.nearest(
            &instance.name,
            &self.pipeline.name,
            &manifest,
            None,
            present,
        );
        if reason.is_none() && plan.fingerprint.is_none() && history.has_known_part(&manifest) {
            plan.decision = Decision::RunIf;
        }
        // One that is asked to run again begins at the beginning.
        if !self.is_forced(stage)
            && let Some(training) = instance.stage.continuation()
            && let Some(key) =
                manifest.continuation_key(&class_here(instance, &self.options.machine))
            && let Some((steps, _)) = self.store.find_state(&key, &training)
        {
            plan.notes.push(format!("continues from step {steps}"));
        }
        plan.causes = match reason {
            Some(reason) => vec![cause(instance, &reason)],
            None => causes(instance, plan.decision, &manifest, nearest, plans),
        };
        if let Some(record) = nearest.filter(|record| record.provenance.stage == instance.name) {
            plan.estimate.seconds = Some(record.provenance.seconds);
            plan.estimate.memory_bytes = Some(record.provenance.peak_memory_bytes);
        }
        plan.manifest = Some(manifest);
        Ok(plan)
    }

    /// Finds what a stage is best compared with: the nearest earlier record other than its own result.
    pub fn nearest(&self, stage: usize, manifest: &Manifest) -> Option<&Record> {
        let (history, present) = self.history();
        let name = &self.pipeline.stages[stage].name;
        history.nearest(
            name,
            &self.pipeline.name,
            manifest,
            manifest.fingerprint().as_ref(),
            present,
        )
    }

    /// Which results of other machines would do for a stage here.
    pub fn wanted(&self, stage: usize) -> Wanted {
        let instance = &self.pipeline.stages[stage];
        Wanted {
            class: class_here(instance, &self.options.machine),
            exact: self.options.exact_numerics,
            outputs: (instance.stage.outputs().into_iter())
                .map(|output| (output.name, output.kind.into_owned()))
                .collect(),
        }
    }

    /// Whether a stage runs whatever the store holds.
    pub(super) fn is_forced(&self, stage: usize) -> bool {
        self.options.rerun.get(stage).copied().unwrap_or(false)
    }

    /// Returns the fingerprints of the results that may be those of a stage once all that is open is known.
    pub fn possible_results(&self, manifest: &Manifest) -> Vec<Digest> {
        let records = self.history().0.with_known_part(manifest);
        records.map(|record| record.fingerprint).collect()
    }

    fn history(&self) -> &(History, BTreeSet<&'a str>) {
        self.history.get_or_init(|| {
            let names = self.pipeline.stages.iter().map(|stage| stage.name.as_str());
            (History::read(self.store), names.collect())
        })
    }

    /// Looks for a result that can be used.
    fn look_up(&self, instance: &Instance, fingerprint: &Digest) -> Result<Found, StageError> {
        let unreadable = |message: String| {
            StageError::new(message).hint(
                "the result may be there; make it readable for this user, or choose another store with `--store DIR`",
            )
        };
        let here = class_here(instance, &self.options.machine);
        let mut record = match self.store.find_record_head(fingerprint, &here) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(Found::Nothing),
            Err(error) if error.is_denied() => return Err(unreadable(error.to_string())),
            Err(error) => return Ok(Found::Unusable(error.to_string())),
        };
        if !self.options.records_alone {
            match self.store.check_record(&mut record, self.options.paranoid) {
                Ok(()) => {}
                Err(damage) if damage.is_denied() => return Err(unreadable(damage.to_string())),
                Err(damage) => return Ok(Found::Unusable(damage.to_string())),
            }
        }
        let mut notes = Vec::new();
        let class = &record.provenance.numerics;
        if !self.options.machine.is_of(class, &here) {
            if self.options.exact_numerics {
                return Ok(Found::Unusable(format!(
                    "its result was computed as {class}"
                )));
            }
            notes.push(format!("reuses a result computed as {class}"));
        }
        let beside = record.class_beside().map(str::to_owned);
        Ok(Found::Usable {
            outputs: record.outputs,
            beside,
            notes,
        })
    }

    /// Returns the manifest, and what is wrong with a source.
    pub(super) fn manifest(&self, stage: usize, known: &Known) -> (Manifest, Option<StageError>) {
        let instance = &self.pipeline.stages[stage];
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
        let mut obstacle = None;
        for source in instance.stage.sources() {
            let digest = self.source_digest(stage, &source).unwrap_or_else(|error| {
                obstacle.get_or_insert(error);
                None
            });
            sources.insert(source.key, digest);
        }
        for path in instance.stage.code() {
            let digest = self.code_digest(stage, &path).map(Some);
            let digest = digest.unwrap_or_else(|error| {
                obstacle.get_or_insert(error);
                None
            });
            sources.insert(path, digest);
        }
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            kind: instance.kind.name.to_owned(),
            version: instance.kind.version,
            params: instance.stage.params(),
            inputs,
            sources,
            environment: instance.stage.environment(),
        };
        (manifest, obstacle)
    }

    /// Returns the digest of a file or folder that the stage works on a copy of.
    fn code_digest(&self, stage: usize, path: &str) -> Result<String, StageError> {
        let folder = &self.pipeline.stages[stage].base_folder;
        let found = find_local(FilePath::new(path), folder)?;
        let digest = code::digest(&found, &mut |file| {
            self.store.digest_outside(file, self.options.paranoid)
        });
        Ok(digest?)
    }

    /// Returns the digest of a source: a local file's by its bytes, a pinned one's by its pin, another's by what
    /// it was when it was fetched.
    fn source_digest(
        &self,
        stage: usize,
        param: &SourceParam,
    ) -> Result<Option<String>, StageError> {
        let folder = &self.pipeline.stages[stage].base_folder;
        if let Some(path) = local_path(&param.source, folder)? {
            let digest = self.store.digest_outside(&path, self.options.paranoid)?;
            return Ok(Some(format!("blake3:{digest}")));
        }
        if let Some(sha256) = &param.sha256 {
            return Ok(Some(format!("sha256:{sha256}")));
        }
        if self.options.refresh && !self.fetched[stage] {
            return Ok(None);
        }
        let fetched = self.store.fetched_source(&param.source.to_string());
        Ok(fetched.map(|sha256| format!("sha256:{sha256}")))
    }
}

/// Why a plan could not be made.
#[derive(Debug)]
pub struct PlanError {
    /// Stages with what is wrong.
    pub failures: Vec<(String, StageError)>,
}

/// The numerics class that the stage would compute in on this machine.
pub fn class_here(instance: &Instance, machine: &Machine) -> String {
    numerics_class(&machine.place(instance.stage.gpu_use(), &instance.resources))
}

/// Says why a stage is not cached: its own differences from the nearest record, and why its open or changed
/// inputs are so.
fn causes(
    instance: &Instance,
    decision: Decision,
    manifest: &Manifest,
    nearest: Option<&Record>,
    plans: &[Option<StagePlan>],
) -> Vec<Cause> {
    let mut own = Vec::new();
    if decision == Decision::Run {
        let Some(record) = nearest else {
            return vec![cause(instance, "no earlier result")];
        };
        own = record.manifest.differences(manifest);
    }
    let mut upstream: Vec<&Cause> = Vec::new();
    for input in &instance.inputs {
        let items = manifest.inputs.get(&input.port);
        for (index, item) in input.items.iter().enumerate() {
            let Some(producer) = &plans[item.producer] else {
                continue;
            };
            let key = Manifest::input_key(&input.port, index, input.items.len());
            let open = items
                .and_then(|items| items.get(index))
                .is_none_or(|item| item.digest.is_none());
            let changed = own.iter().position(|difference| {
                difference.key == key && difference.old.is_some() && difference.new.is_some()
            });
            if producer.causes.is_empty() || (!open && changed.is_none()) {
                continue;
            }
            upstream.extend(&producer.causes);
            // Other bytes are the effect; what made the producer run is the cause.
            if let Some(changed) = changed {
                own.remove(changed);
            }
        }
    }
    let mut causes: Vec<Cause> = own
        .into_iter()
        .map(|difference| Cause {
            stage: instance.name.clone(),
            key: difference.key,
            old: difference.old,
            new: difference.new,
        })
        .collect();
    let open_sources = manifest.sources.iter();
    for (key, _) in open_sources.filter(|(_, digest)| digest.is_none()) {
        let reason = format!("source `{key}` was not fetched yet");
        causes.push(cause(instance, &reason));
    }
    let mut seen = BTreeSet::new();
    for cause in upstream {
        if seen.insert((&cause.stage, &cause.key)) {
            causes.push(cause.clone());
        }
    }
    if causes.is_empty() {
        causes.push(cause(instance, "no earlier result"));
    }
    causes
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
    match source {
        Source::File(path) => find_local(path, base_folder).map(Some),
        _ => Ok(None),
    }
}

/// Finds a file or folder in the pipeline's folder, or else in the current one.
pub(super) fn find_local(path: &FilePath, base_folder: &FilePath) -> Result<PathBuf, StageError> {
    let in_base = base_folder.join(path);
    if in_base.exists() {
        return Ok(in_base);
    }
    if path.exists() {
        return Ok(path.to_owned());
    }
    Err(
        StageError::new(format!("source `file:{}` does not exist", path.display())).hint(format!(
            "looked for {} and {}",
            in_base.display(),
            path.display()
        )),
    )
}
