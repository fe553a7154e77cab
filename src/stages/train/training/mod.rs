//! What all training stages share: a model in training, the loop over steps, and what is written at its end.

mod checkpoint;
mod params;
mod record;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use indexmap::IndexMap;

pub(super) use self::params::{OnDivergence, OptimizerParams};
use self::record::Record;
use crate::artifacts::curve::{CURVE, Curve, SAMPLES};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::engine::context::{Progress, RunContext};
use crate::engine::facts::Known;
use crate::engine::machine::is_about_gpu_memory;
use crate::engine::reference::is_name;
use crate::engine::stage::{Continuation, Output, Problem, StageError};
use crate::ml::adapter::{Adapter, LoraConfig};
use crate::ml::parameters::{Weights, device_of, load};
use crate::ml::schedule::Decay;
use crate::ml::trainer::trained_model::TrainedModel;
use crate::ml::trainer::{self, Cancel, TrainError, Trainer};
use crate::random::Stream;

/// The output that holds the model at the end of its training.
pub(super) const MODEL: &str = "model";

/// How long a training goes on, and what is kept of it.
pub(super) struct Course<'a> {
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
    /// Whether micro-batches are halved where a GPU has no room for them.
    pub halves: bool,
}

/// No labels: the model at the end alone is kept.
pub(super) static NO_LABELS: BTreeMap<String, u64> = BTreeMap::new();

impl<'a> Course<'a> {
    /// Makes one whose model is kept at the end alone, that fails if it diverges, and that nothing is measured behind.
    pub(super) fn new(title: &'a str, steps: u64, optimizer: &'a OptimizerParams) -> Self {
        Self {
            title,
            steps,
            checkpoints: &NO_LABELS,
            optimizer,
            on_divergence: OnDivergence::Fail,
            is_evaluated: false,
            halves: false,
        }
    }
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

/// Says of how many new completions or pairs a training learns: those of `each` for so many prompts in each batch, which
/// serves `updates` of its steps.
pub(super) fn says_samples(
    known: &mut Known<'_>,
    steps: u64,
    updates: u64,
    (prompts, each): (usize, usize),
) {
    let batches = usize::try_from(steps.div_ceil(updates.max(1))).unwrap_or(usize::MAX);
    let samples = batches.saturating_mul(prompts).saturating_mul(each);
    let steps = usize::try_from(steps).unwrap_or(usize::MAX);
    known.says(CURVE, SAMPLES, samples, ("steps", steps));
}

/// Returns the outputs of a training that keeps its model at labelled steps.
pub(super) fn outputs(checkpoints: &BTreeMap<String, u64>) -> Vec<Output> {
    let labels = checkpoints.keys();
    std::iter::once(Output::new(MODEL, LANGUAGE_MODEL))
        .chain(labels.map(|label| Output::new(label, LANGUAGE_MODEL)))
        .chain([Output::new(CURVE, CURVE)])
        .collect()
}

/// Checks the labels of steps whose model is kept.
pub(super) fn validate_labels(
    checkpoints: &BTreeMap<String, u64>,
    steps: u64,
    problems: &mut Vec<Problem>,
) {
    for (label, step) in checkpoints {
        let key = format!("checkpoints.{label}");
        if !is_name(label) || [MODEL, CURVE].contains(&label.as_str()) {
            let text = format!("`{label}` cannot name an output");
            problems.push(Problem::new(&key, text).hint(
                "a label has lower-case letters, digits and `_`, and is neither `model` nor `curve`",
            ));
        }
        if !(1..=steps).contains(step) {
            let text = format!("`{label}` must be from 1 to `steps`, found {step}");
            problems.push(Problem::new(&key, text));
        }
    }
}

/// Estimates in a row beyond `kl_limit` that make a divergence: one of a few completions may be off by chance.
pub(super) const ESTIMATES_BEYOND: usize = 2;

/// Checks a limit of the KL divergence that is estimated every so many steps.
pub(super) fn validate_kl_limit(limit: Option<f64>, every: u64, problems: &mut Vec<Problem>) {
    if limit.is_some_and(|limit| limit.is_nan() || limit <= 0.0) {
        problems.push(Problem::new(
            "kl_limit",
            "`kl_limit` must be above 0, or null",
        ));
    } else if limit.is_some() && every == 0 {
        problems.push(
            Problem::new(
                "kl_limit",
                "`kl_limit` is never checked: `monitor_every` is 0",
            )
            .hint("set `monitor_every` to the steps between estimates of the divergence"),
        );
    }
}

/// What a language model is trained to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A policy.
    Policy,
    /// A trunk under a head that scores.
    Scorer,
}

/// A language model in training: what it starts from, and what is trained of it.
pub(super) struct Training {
    start: LanguageModel,
    /// Whether the adapter that the model came with is part of its base now.
    is_merged: bool,
    model: TrainedModel,
}

impl Training {
    /// Opens a model for training: all of its weights, or the adapter `lora`.
    ///
    /// An adapter of another configuration than `lora` is merged into the base first.
    pub(super) fn open(
        mut start: LanguageModel,
        lora: Option<&LoraConfig>,
        purpose: Purpose,
        stream: &Stream,
    ) -> Result<Self, StageError> {
        let adapter = start.adapter.as_ref();
        let continues = adapter.is_some_and(|adapter| lora == Some(adapter.config()));
        let is_merged = adapter.is_some() && !continues;
        if is_merged {
            let merged = start.merged()?.into_iter();
            let merged = merged.map(|(name, weight)| Ok((name, start.placement.frozen(&weight)?)));
            start.base = merged.collect::<candle_core::Result<_>>()?;
            start.adapter = None;
        }
        match lora {
            Some(lora) if purpose == Purpose::Scorer && lora.saves(start.config.names.head) => {
                return Err(StageError::new(format!(
                    "`adapter.modules_to_save` names `{}`, expected modules that a reward model has",
                    start.config.names.head
                )));
            }
            Some(lora) if purpose == Purpose::Policy => {
                lora.untie(&mut start.config, &mut start.base);
            }
            _ => {}
        }
        let adapter = start.adapter.as_ref();
        let mut model = TrainedModel::new(&start.config, &start.base, adapter, lora, stream)?;
        if start.placement.gradient_checkpointing {
            model.llama = model.llama.with_gradient_checkpointing();
        }
        Ok(Self {
            start,
            is_merged,
            model,
        })
    }

    /// Returns the model that the training starts from, as it is trained: with a merged base, if it was merged.
    pub(super) fn start(&self) -> &LanguageModel {
        &self.start
    }

    /// Returns the model to hand to a trainer.
    pub(super) fn model(&self) -> TrainedModel {
        self.model.clone()
    }

    /// Writes the model at the end, those at labelled steps, and the curve.
    pub(super) fn save(&self, trained: &Trained, ctx: &RunContext) -> Result<(), StageError> {
        let labelled = trained.labelled.iter();
        let labelled = labelled.map(|(label, weights)| (label.as_str(), weights));
        for (name, weights) in labelled.chain([(MODEL, &trained.end)]) {
            self.save_model(weights, None, &ctx.output(name)?)?;
        }
        Ok(trained.curve.write(&ctx.output(CURVE)?)?)
    }

    /// Writes a trained model: its adapter on the base it started from, or all of its weights; as a classifier if there
    /// is a `score` head.
    ///
    /// `parameters` are the trained parameters under the names of [`trainer::parameters`].
    pub(super) fn save_model(
        &self,
        parameters: &Weights,
        score: Option<&Tensor>,
        folder: &Path,
    ) -> Result<(), StageError> {
        let start = &self.start;
        let Some(adapter) = &self.model.adapter else {
            let weights = start.base.iter().map(|(name, tensor)| {
                (name.clone(), parameters.get(name).unwrap_or(tensor).clone())
            });
            return Ok(start.save_full(folder, &weights.collect(), score)?);
        };
        let own: Weights = adapter
            .parameters()
            .trainable()
            .into_iter()
            .filter_map(|(name, _)| Some((name.clone(), parameters.get(&name)?.clone())))
            .collect();
        let adapter =
            Adapter::from_weights(adapter.config(), &start.base, &own, &device_of(&start.base))?;
        if self.is_merged {
            // The base was changed by merging: there is no file to link to.
            start.save_full(folder, &adapter.merge(&start.base)?, score)?;
        } else {
            start.save_adapter(folder, &adapter, score)?;
        }
        Ok(())
    }
}

/// Whether a step failed because a GPU had no room.
fn is_out_of_memory(error: &TrainError) -> bool {
    // Not what somebody else's program says.
    !matches!(error, TrainError::Rewards(_)) && is_about_gpu_memory(&error.to_string())
}

const CHECKPOINT_EVERY: Duration = Duration::from_secs(20);

impl Course<'_> {
    /// Runs a training: steps, progress, checkpoints, resumption, divergence.
    pub(super) fn train(
        &self,
        trainer: &mut dyn Trainer,
        ctx: &mut RunContext,
    ) -> Result<Trained, StageError> {
        let folder = ctx.checkpoints()?.to_owned();
        trainer.cancelled_by(Cancel::new(ctx.cancel_flag()));
        let mut progress = Record::default();
        if let Some((record, state)) = checkpoint::resumable(&folder, self.checkpoints, ctx)? {
            trainer::restore(trainer, &state)?;
            ctx.note(&format!(
                "continues from step {} of {}",
                record.step, self.steps
            ));
            progress = record;
        }
        if self.halves && progress.step == 0 {
            // What a step goes back to that fails after an update of its own.
            checkpoint::write(&folder, &progress, &trainer::state(trainer)?)?;
        }
        let warmup = self.optimizer.warmup_steps;
        if warmup > self.steps {
            ctx.note(&format!(
            "the warm-up of {warmup} steps is longer than the training of {}: the learning rate ends at {:.3} of `lr`",
            self.steps,
            self.steps as f64 / warmup as f64
        ));
        }
        let (mut saved, clock, first) = (Instant::now(), Instant::now(), progress.step);
        while progress.step < self.steps && progress.diverged.is_none() {
            // A copy of all that is trained, for those alone who would get it.
            let rolls_back = self.on_divergence == OnDivergence::Complete;
            let last_good = rolls_back.then(|| trainer::parameters(trainer));
            let last_good = last_good.transpose()?;
            let updates = trainer.optimizer().steps();
            let report = match trainer.step(progress.step) {
                Err(TrainError::Cancelled) => {
                    // Given up before an update, the trainer is as it was before the step.
                    if trainer.optimizer().steps() == updates {
                        checkpoint::write(&folder, &progress, &trainer::state(trainer)?)?;
                    }
                    return Err(StageError::Interrupted);
                }
                Err(error) if self.halves && is_out_of_memory(&error) => {
                    let Some(rows) = trainer.halve_micro_batch() else {
                        return Err(error.into());
                    };
                    // After an update within the step it is no longer as it was before.
                    if trainer.optimizer().steps() != updates {
                        let last = checkpoint::resumable(&folder, self.checkpoints, ctx)?;
                        let Some((record, state)) = last else {
                            return Err(error.into());
                        };
                        trainer::restore(trainer, &state)?;
                        progress = record;
                    }
                    ctx.note(&format!(
                        "the GPU has no room: micro-batches of {rows} from step {} on",
                        progress.step
                    ));
                    continue;
                }
                other => other?,
            };
            progress.take(&report);
            ctx.count(
                report.trained_tokens + report.generated_tokens,
                report.flops,
            );
            if report.diverged.is_some() {
                if let Some(last_good) = &last_good {
                    trainer::set_parameters(trainer, last_good)?;
                }
                break;
            }
            progress.step += 1;
            if self.checkpoints.values().any(|step| *step == progress.step) {
                checkpoint::publish(&ctx.kept_at(progress.step), &trainer::parameters(trainer)?)?;
            }
            let done = progress.step == self.steps;
            let seconds = clock.elapsed().as_secs_f64();
            let rate = (progress.step - first) as f64 / seconds;
            let finite = report.metrics.iter().filter(|(_, value)| value.is_finite());
            let mut metrics: IndexMap<String, f64> = finite
                .map(|(name, value)| ((*name).to_owned(), *value))
                .collect();
            metrics.insert("tokens/s".to_owned(), report.trained_tokens as f64 * rate);
            ctx.progress(Progress {
                step: progress.step,
                total: self.steps,
                unit: "steps".to_owned(),
                metrics,
                ..Progress::default()
            });
            if ctx.is_cancelled() && !done {
                checkpoint::write(&folder, &progress, &trainer::state(trainer)?)?;
                return Err(StageError::Interrupted);
            }
            if saved.elapsed() > CHECKPOINT_EVERY && !done {
                checkpoint::write(&folder, &progress, &trainer::state(trainer)?)?;
                saved = Instant::now();
            }
        }
        if let Some(reason) = &progress.diverged {
            if self.on_divergence == OnDivergence::Fail {
                return Err(StageError::new(format!("the training diverged at step {}: {reason}", progress.step))
                .hint("lower the learning rate, or set `on_divergence: complete` to keep what it had learnt"));
            }
            ctx.note(&format!("diverged at step {}: {reason}", progress.step));
        } else if ctx.continues() || self.is_evaluated {
            checkpoint::write(&folder, &progress, &trainer::state(trainer)?)?;
            if ctx.continues() {
                ctx.keep_end_state();
            }
        }
        if let Some(note) = progress.unlearnt() {
            ctx.note(&note);
        }
        let end = trainer::parameters(trainer)?;
        let mut labelled = BTreeMap::new();
        for (label, step) in self.checkpoints {
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
            curve: progress.into_curve(self.title, trained_parameters),
        })
    }
}
