//! What all training stages share: the loop over steps, checkpoints, curves, and common params.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::curve::{Curve, Status, TrainingSummary};
use crate::artifacts::language_model::LanguageModel;
use crate::engine::artifact::Digest;
use crate::engine::context::{Progress, RunContext};
use crate::engine::stage::{Continuation, Problem, StageError};
use crate::ml::adapter::LoraConfig;
use crate::ml::optimizer::AdamWConfig;
use crate::ml::parameters::{Weights, load, save};
use crate::ml::schedule::{Decay, Schedule};
use crate::ml::trainer::policy::TrainedModel;
use crate::ml::trainer::{self, Cancel, StepReport, TrainError, Trainer, TrainerState};
use crate::random::Stream;
use crate::stages::ranges;

/// AdamW and its schedule.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OptimizerParams {
    /// Peak learning rate.
    pub lr: f64,
    /// How the learning rate falls after the warm-up.
    #[serde(default)]
    pub schedule: Decay,
    /// Steps over which the learning rate rises.
    #[serde(default)]
    pub warmup_steps: u64,
    /// What a decaying learning rate falls to, as a share of its peak.
    #[serde(default)]
    pub floor: f64,
    /// Share of the learning rate by which weights shrink at each step.
    #[serde(default)]
    pub weight_decay: f64,
    /// Whether norms and biases shrink too.
    #[serde(default)]
    pub decay_norms_and_biases: bool,
    /// Decay of the mean of gradients.
    #[serde(default = "beta1")]
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    #[serde(default = "beta2")]
    pub beta2: f64,
    /// Norm above which gradients are scaled down; null leaves them.
    #[serde(default = "max_grad_norm")]
    pub max_grad_norm: Option<f64>,
}

fn beta1() -> f64 {
    0.9
}

fn beta2() -> f64 {
    0.999
}

#[expect(clippy::unnecessary_wraps, reason = "serde wants the field's type")]
fn max_grad_norm() -> Option<f64> {
    Some(1.0)
}

impl OptimizerParams {
    /// Returns AdamW's constants.
    pub(super) fn adamw(&self) -> AdamWConfig {
        AdamWConfig {
            beta1: self.beta1,
            beta2: self.beta2,
            max_grad_norm: self.max_grad_norm,
            decay_vectors: self.decay_norms_and_biases,
            ..AdamWConfig::default()
        }
    }

    /// Returns the schedule of a training of `steps`.
    pub(super) fn schedule(&self, steps: u64) -> Schedule {
        Schedule {
            decay: self.schedule,
            warmup_steps: self.warmup_steps,
            total_steps: steps,
            floor: self.floor,
        }
    }

    /// Checks ranges.
    pub(super) fn validate(&self, key: &str, problems: &mut Vec<Problem>) {
        let mut require = |ok: bool, field: &str, expected: &str| {
            if !ok {
                problems.push(Problem::new(
                    &format!("{key}.{field}"),
                    format!("`{field}` must be {expected}"),
                ));
            }
        };
        require(
            (0.0..1.0).contains(&self.beta1),
            "beta1",
            "at least 0 and below 1",
        );
        require(
            (0.0..1.0).contains(&self.beta2),
            "beta2",
            "at least 0 and below 1",
        );
        require((0.0..=1.0).contains(&self.floor), "floor", "from 0 to 1");
        require(self.weight_decay >= 0.0, "weight_decay", "at least 0");
        require(
            self.max_grad_norm.is_none_or(|norm| norm >= 1e-6),
            "max_grad_norm",
            "at least 1e-6, or null",
        );
        ranges::learning_rate(&format!("{key}.lr"), self.lr, problems);
    }
}

/// What happens when a training diverges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub(super) enum OnDivergence {
    /// The stage fails.
    #[default]
    Fail,
    /// The stage completes with the last good parameters, its curve, and the status `diverged`.
    Complete,
}

/// Opens the model that a stage starts from, ready for training.
///
/// An adapter of another configuration than `lora` is merged into the base first.
pub(super) fn trained_model(
    model: &mut LanguageModel,
    lora: Option<&LoraConfig>,
    is_classifier: bool,
    stream: &Stream,
) -> Result<TrainedModel, StageError> {
    let continues = model
        .adapter
        .as_ref()
        .is_some_and(|adapter| lora == Some(adapter.config()));
    if model.adapter.is_some() && !continues {
        model.base = model.merged()?;
        model.adapter = None;
    }
    match lora {
        Some(lora) if is_classifier && lora.saves(model.config.names.head) => {
            return Err(StageError::new(format!(
                "`adapter.modules_to_save` names `{}`, expected modules that a reward model has",
                model.config.names.head
            )));
        }
        Some(lora) if !is_classifier => lora.untie(&mut model.config, &mut model.base),
        _ => {}
    }
    Ok(TrainedModel::new(
        &model.config,
        &model.base,
        model.adapter.as_ref(),
        lora,
        stream,
    )?)
}

/// Writes a trained model: its adapter on the base it started from, or all of its weights.
///
/// `parameters` are the trained parameters under the names of [`trainer::parameters`].
pub(super) fn save_model(
    start: &LanguageModel,
    merged_start: bool,
    trained: &TrainedModel,
    parameters: &Weights,
    folder: &Path,
) -> Result<(), StageError> {
    save_scored_model(start, merged_start, trained, parameters, None, folder)
}

/// As [`save_model`], as a classifier if there is a `score` head.
pub(super) fn save_scored_model(
    start: &LanguageModel,
    merged_start: bool,
    trained: &TrainedModel,
    parameters: &Weights,
    score: Option<&Tensor>,
    folder: &Path,
) -> Result<(), StageError> {
    match &trained.adapter {
        Some(adapter) => {
            let own: Weights = adapter
                .parameters()
                .trainable()
                .into_iter()
                .filter_map(|(name, _)| Some((name.clone(), parameters.get(&name)?.clone())))
                .collect();
            let adapter = crate::ml::adapter::Adapter::from_weights(
                adapter.config(),
                &start.base,
                &own,
                &Device::Cpu,
            )?;
            if merged_start {
                // The base was changed by merging: there is no file to link to.
                start.save_full(folder, &adapter.merge(&start.base)?, score)?;
            } else {
                start.save_adapter(folder, &adapter, score)?;
            }
        }
        None => {
            let weights: Weights = start
                .base
                .iter()
                .map(|(name, tensor)| {
                    (name.clone(), parameters.get(name).unwrap_or(tensor).clone())
                })
                .collect();
            start.save_full(folder, &weights, score)?;
        }
    }
    Ok(())
}

/// How a training is run.
pub(super) struct Run<'a> {
    /// What is trained, for the curve's title.
    pub title: &'a str,
    /// Steps in all.
    pub steps: u64,
    /// Steps after which the parameters are kept under a label.
    pub checkpoints: &'a BTreeMap<String, u64>,
    /// AdamW and its schedule.
    pub optimizer: &'a OptimizerParams,
    /// What divergence means.
    pub on_divergence: OnDivergence,
    /// Whether an evaluation follows, which is not to cost the steps if it is interrupted.
    pub is_evaluated: bool,
}

/// How a training continues from a shorter one, if its learning rate does not depend on its length.
pub(super) fn continuation(
    steps: u64,
    checkpoints: &BTreeMap<String, u64>,
    optimizer: &OptimizerParams,
) -> Option<Continuation> {
    (optimizer.schedule == Decay::Constant).then(|| Continuation {
        steps,
        kept_steps: checkpoints.values().copied().collect(),
    })
}

/// What a training left.
pub(super) struct Trained {
    /// The trained parameters at the end.
    pub end: Weights,
    /// The trained parameters at each label.
    pub labelled: BTreeMap<String, Weights>,
    /// What happened on the way.
    pub curve: Curve,
}

const CHECKPOINT_EVERY: Duration = Duration::from_secs(20);

/// Runs a training: steps, progress, checkpoints, resumption, divergence.
pub(super) fn train(
    trainer: &mut dyn Trainer,
    run: &Run<'_>,
    ctx: &mut RunContext,
) -> Result<Trained, StageError> {
    let folder = ctx.checkpoints()?.to_owned();
    trainer.cancelled_by(Cancel::new(ctx.cancel_flag()));
    let mut progress = Record::default();
    if let Some((record, state)) = resumable(&folder, run, ctx)? {
        trainer::restore(trainer, &state)?;
        ctx.note(&format!(
            "continues from step {} of {}",
            record.step, run.steps
        ));
        progress = record;
    }
    let warmup = run.optimizer.warmup_steps;
    if warmup > run.steps {
        ctx.note(&format!(
            "the warm-up of {warmup} steps is longer than the training of {}: the learning rate ends at {:.3} of `lr`",
            run.steps,
            run.steps as f64 / warmup as f64
        ));
    }
    let (mut saved, clock, first) = (Instant::now(), Instant::now(), progress.step);
    while progress.step < run.steps && progress.diverged.is_none() {
        // A copy of all that is trained, for those alone who would get it.
        let rolls_back = run.on_divergence == OnDivergence::Complete;
        let last_good = rolls_back.then(|| trainer::parameters(trainer));
        let last_good = last_good.transpose()?;
        let updates = trainer.optimizer().steps();
        let report = match trainer.step(progress.step) {
            Err(TrainError::Cancelled) => {
                // Given up before an update, the trainer is as it was before the step.
                if trainer.optimizer().steps() == updates {
                    checkpoint(&folder, &progress, &trainer::state(trainer)?)?;
                }
                return Err(StageError::Interrupted);
            }
            other => other?,
        };
        progress.take(&report);
        if report.diverged.is_some() {
            if let Some(last_good) = &last_good {
                trainer::set_parameters(trainer, last_good)?;
            }
            break;
        }
        progress.step += 1;
        if run.checkpoints.values().any(|step| *step == progress.step) {
            publish(&ctx.kept_at(progress.step), &trainer::parameters(trainer)?)?;
        }
        let done = progress.step == run.steps;
        let seconds = clock.elapsed().as_secs_f64();
        let rate = (progress.step - first) as f64 / seconds;
        let mut metrics: IndexMap<String, f64> = report
            .metrics
            .iter()
            .map(|(name, value)| ((*name).to_owned(), *value))
            .collect();
        metrics.insert("tokens/s".to_owned(), report.trained_tokens as f64 * rate);
        ctx.progress(Progress {
            step: progress.step,
            total: run.steps,
            unit: "steps".to_owned(),
            metrics,
        });
        if ctx.is_cancelled() && !done {
            checkpoint(&folder, &progress, &trainer::state(trainer)?)?;
            return Err(StageError::Interrupted);
        }
        if saved.elapsed() > CHECKPOINT_EVERY && !done {
            checkpoint(&folder, &progress, &trainer::state(trainer)?)?;
            saved = Instant::now();
        }
    }
    if let Some(reason) = &progress.diverged {
        if run.on_divergence == OnDivergence::Fail {
            return Err(StageError::new(format!("the training diverged at step {}: {reason}", progress.step))
                .hint("lower the learning rate, or set `on_divergence: complete` to keep what it had learnt"));
        }
        ctx.note(&format!("diverged at step {}: {reason}", progress.step));
    } else if ctx.continues() || run.is_evaluated {
        checkpoint(&folder, &progress, &trainer::state(trainer)?)?;
        if ctx.continues() {
            ctx.keep_end_state();
        }
    }
    let end = trainer::parameters(trainer)?;
    let mut labelled = BTreeMap::new();
    for (label, step) in run.checkpoints {
        let path = ctx.kept_at(*step);
        // A training that diverged before a label's step has its last good parameters there.
        let parameters = if path.exists() {
            load(&path, &Device::Cpu)?
        } else {
            end.clone()
        };
        labelled.insert(label.clone(), parameters);
    }
    let trained_parameters = end.values().map(|tensor| tensor.elem_count() as u64).sum();
    Ok(Trained {
        end,
        labelled,
        curve: progress.into_curve(run.title, trained_parameters),
    })
}

/// What a training has recorded so far; part of its checkpoints.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    step: u64,
    steps: Vec<u64>,
    metrics: IndexMap<String, Vec<Option<f64>>>,
    trained_tokens: u64,
    generated_tokens: u64,
    flops: f64,
    diverged: Option<String>,
}

impl Record {
    fn take(&mut self, report: &StepReport) {
        let known = self.steps.len();
        self.steps.push(self.step);
        for (name, value) in &report.metrics {
            let column = self
                .metrics
                .entry((*name).to_owned())
                .or_insert_with(|| vec![None; known]);
            column.resize(known, None);
            column.push(value.is_finite().then_some(*value));
        }
        self.trained_tokens += report.trained_tokens;
        self.generated_tokens += report.generated_tokens;
        self.flops += report.flops;
        self.diverged.clone_from(&report.diverged);
    }

    fn into_curve(self, title: &str, trained_parameters: u64) -> Curve {
        let rows = self.steps.len();
        let mut metrics = self.metrics;
        metrics
            .values_mut()
            .for_each(|column| column.resize(rows, None));
        Curve {
            title: title.to_owned(),
            steps: self.steps,
            metrics,
            summary: TrainingSummary {
                status: if self.diverged.is_some() {
                    Status::Diverged
                } else {
                    Status::Completed
                },
                reason: self.diverged,
                steps: self.step,
                trained_tokens: self.trained_tokens,
                generated_tokens: self.generated_tokens,
                flops: self.flops,
                trained_parameters,
            },
        }
    }
}

#[derive(Serialize, Deserialize)]
struct StoredValues {
    record: Record,
    trainer: serde_json::Value,
}

fn publish(path: &Path, weights: &Weights) -> Result<(), StageError> {
    let temporary = path.with_extension("new");
    save(weights, &temporary)?;
    fs_err::File::open(&temporary)?.sync_all()?;
    fs_err::rename(&temporary, path)?;
    Ok(())
}

fn checkpoint(folder: &Path, record: &Record, state: &TrainerState) -> Result<(), StageError> {
    let temporary = folder.join("checkpoint.new");
    let _ = fs_err::remove_dir_all(&temporary);
    fs_err::create_dir_all(&temporary)?;
    save(&state.tensors, &temporary.join("tensors.safetensors"))?;
    #[derive(Serialize)]
    struct Borrowed<'a> {
        record: &'a Record,
        trainer: &'a serde_json::Value,
    }
    let values = Borrowed {
        record,
        trainer: &state.values,
    };
    fs_err::write(temporary.join("values.json"), serde_json::to_vec(&values)?)?;
    let mut digests = BTreeMap::new();
    for name in ["tensors.safetensors", "values.json"] {
        let path = temporary.join(name);
        digests.insert(name.to_owned(), digest_of(&path)?);
        fs_err::File::open(path)?.sync_all()?;
    }
    for (name, path) in kept(folder)? {
        digests.insert(name, digest_of(&path)?);
    }
    let digests_path = temporary.join("digests.json");
    fs_err::write(&digests_path, serde_json::to_vec(&digests)?)?;
    fs_err::File::open(digests_path)?.sync_all()?;
    let target = folder.join(format!("checkpoint-{:012}", record.step));
    let _ = fs_err::remove_dir_all(&target);
    fs_err::rename(&temporary, &target)?;
    fs_err::File::open(folder)?.sync_all()?;
    for (path, step) in checkpoints(folder)? {
        if step < record.step {
            fs_err::remove_dir_all(path)?;
        }
    }
    Ok(())
}

fn checkpoints(folder: &Path) -> Result<Vec<(PathBuf, u64)>, StageError> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let step = name
            .strip_prefix("checkpoint-")
            .and_then(|step| step.parse().ok());
        found.extend(step.map(|step: u64| (entry.path(), step)));
    }
    found.sort_by_key(|(_, step)| *step);
    Ok(found)
}

/// Lists what is kept of steps.
fn kept(folder: &Path) -> Result<Vec<(String, PathBuf)>, StageError> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // One that is being written has an extension.
        if name.starts_with("at-") && entry.path().extension().is_none() {
            found.push((name, entry.path()));
        }
    }
    Ok(found)
}

fn digest_of(path: &Path) -> Result<Digest, StageError> {
    Ok(blake3::Hasher::new()
        .update_mmap_rayon(path)?
        .finalize()
        .into())
}

/// Reads the latest checkpoint, if it is whole and has what the labels need. Else the training begins anew: a
/// checkpoint only saves time.
fn resumable(
    folder: &Path,
    run: &Run<'_>,
    ctx: &mut RunContext,
) -> Result<Option<(Record, TrainerState)>, StageError> {
    let Some((path, step)) = checkpoints(folder)?.pop() else {
        return Ok(None);
    };
    let behind = run.checkpoints.values().filter(|kept| **kept <= step);
    let missing = behind.clone().find(|kept| !ctx.kept_at(**kept).exists());
    let problem = match (missing, read_checkpoint(folder, &path)) {
        (None, Ok(found)) => return Ok(Some(found)),
        (Some(kept), _) => format!("it lacks the parameters of step {kept}"),
        (None, Err(StageError::Failed { message, .. })) => message,
        (None, Err(StageError::Interrupted)) => return Err(StageError::Interrupted),
    };
    ctx.note(&format!(
        "the checkpoint of step {step} cannot be used ({problem}): begins at the beginning"
    ));
    fs_err::remove_dir_all(folder)?;
    fs_err::create_dir_all(folder)?;
    Ok(None)
}

fn read_checkpoint(folder: &Path, path: &Path) -> Result<(Record, TrainerState), StageError> {
    let digests: BTreeMap<String, Digest> =
        serde_json::from_slice(&fs_err::read(path.join("digests.json"))?)?;
    for (name, digest) in digests {
        let file = if name.starts_with("at-") {
            folder.join(&name)
        } else {
            path.join(&name)
        };
        if digest_of(&file)? != digest {
            return Err(StageError::new(format!("{name} is damaged")));
        }
    }
    let values: StoredValues = serde_json::from_slice(&fs_err::read(path.join("values.json"))?)?;
    let tensors = load(&path.join("tensors.safetensors"), &Device::Cpu)?;
    let state = TrainerState {
        tensors,
        values: values.trainer,
    };
    Ok((values.record, state))
}
