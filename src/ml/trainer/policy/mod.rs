//! Training of a policy against rewards of its completions, by any [`Objective`]: those of `GFlowNet`s and policy
//! gradients.
//!
//! A step takes some prompts with several completions each: from the data set (off-policy), from the policy as
//! it is now (on-policy), or from a replay buffer of what it sampled before. `log R` is a scaled reward; with
//! the forward-looking objective that of every prefix, which one causal forward pass gives.

pub mod asynchronous;
mod batch;
pub mod found;
pub mod group;
pub mod objective;
pub mod objectives;
pub mod requirements;
mod rollout;
pub mod scored;
mod shares;
pub mod view;
mod weighing;

use candle_core::DType;
use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use self::asynchronous::{Asynchronous, Findings};
use self::batch::Batch;
use self::found::{Found, Mean};
use self::group::Group;
use self::objective::{Objective, Setup};
use self::scored::Weights;
use self::view::{Part, Shared, View};
use super::batches::{Epochs, TokenizedCompletion};
use super::flops::{ModelSize, forward_flops};
use super::rewards::Rewards;
use super::trained_model::TrainedModel;
use super::update::{OptimizerOptions, Updater};
use super::{Cancel, StepReport, TrainError, Trainer};
use crate::ml::generate::GenerateError;
use crate::ml::models::causal::CausalLm;
use crate::ml::objectives::divergence::{DivergenceLimits, DivergenceMonitor, Health, Observation};
use crate::ml::objectives::{Normaliser, ReferenceTerms};
use crate::ml::optimizer::{AdamW, Gradients};
use crate::ml::replay_buffer::{Completion as Remembered, ReplayBuffer};
use crate::ml::schedule::Ramp;
use crate::random::Stream;

/// How a policy is trained.
#[derive(Debug, Clone)]
pub struct PolicyOptions {
    /// `log R = reward_scale x reward / reward_temperature`.
    pub reward_scale: f64,
    /// The reward's temperature over the steps.
    pub reward_temperature: Ramp,
    /// How the reference model enters.
    pub reference: ReferenceTerms,
    /// Updates that the completions of a step serve before others are taken.
    pub updates_per_batch: u64,
    /// Prompts in a step.
    pub prompts_per_step: usize,
    /// Completions of each prompt in a step.
    pub completions_per_prompt: usize,
    /// Share of the completions that the policy samples anew.
    pub on_policy: f64,
    /// Share of the completions that come from the replay buffer, once it has any.
    pub replay: f64,
    /// Completions that the buffer keeps of each prompt.
    pub replay_capacity: usize,
    /// Share of their lengths by which completions of a prompt in the buffer differ, if they must.
    pub replay_min_distance: Option<f64>,
    /// Temperature of the buffer's priorities; `None` draws uniformly.
    pub replay_temperature: Option<f64>,
    /// The horizon.
    pub max_new_tokens: usize,
    /// Temperature of on-policy sampling over the steps.
    pub temperature: Ramp,
    /// Batches of prompts that a step may sample until it has enough prompts whose completions differ in reward; 0 takes
    /// one batch as it is.
    pub dynamic_sampling: u64,
    /// Sampling that runs behind learning; then completions come from nowhere else.
    pub asynchronous: Option<Asynchronous>,
    /// Steps at which another temperature is drawn.
    pub exploration: Option<Exploration>,
    /// AdamW and the policy's learning rate.
    pub optimizer: OptimizerOptions,
    /// Prompts in a forward pass.
    pub micro_batch: usize,
    /// Steps between estimates of the KL divergence to the reference.
    pub monitor_every: u64,
    /// Completions in such an estimate.
    pub monitor_completions: usize,
    /// Whether their mean reward is told as well.
    pub monitor_reward: bool,
    /// When the training counts as diverged.
    pub limits: DivergenceLimits,
    /// Ids that end a completion.
    pub eos: Vec<u32>,
}

impl PolicyOptions {
    /// The factor from reward to `log R` at a step.
    pub fn reward_factor(&self, step: u64) -> f64 {
        self.reward_scale / self.reward_temperature.at(step)
    }

    /// Whether the policy samples any of the completions.
    pub fn samples(&self) -> bool {
        self.on_policy > 0.0 || self.asynchronous.is_some()
    }
}

/// Sampling at random temperatures (Hu et al. 2024).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exploration {
    /// Share of steps that sample at a temperature drawn evenly from `low` to `high`.
    pub probability: f64,
    /// The lowest temperature.
    pub low: f64,
    /// The highest temperature.
    pub high: f64,
}

/// A prompt with the completions that the data set has for it.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptCompletions {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// Distinct completions.
    pub completions: Vec<TokenizedCompletion>,
}

/// What a training starts from.
pub struct PolicyStart {
    /// The policy.
    pub model: TrainedModel,
    /// The frozen model that it starts from.
    pub reference: CausalLm,
    /// Where rewards come from.
    pub rewards: Box<dyn Rewards>,
    /// Prompts, at least one, with the completions of the data set.
    pub prompts: Vec<PromptCompletions>,
}

/// Training of a policy.
pub struct PolicyTrainer {
    shared: Shared,
    objective: Box<dyn Objective>,
    prompts: Vec<PromptCompletions>,
    updater: Updater,
    epochs: Epochs,
    picks: Stream,
    sampling: Stream,
    buffer: ReplayBuffer,
    /// The completions that the next update is to see again.
    held: Option<Batch>,
    /// Batches of prompts that steps have taken, where they may take several.
    taken: u64,
    /// What sampling behind learning has found.
    findings: Findings,
    monitor: DivergenceMonitor,
    cancel: Cancel,
}

/// What changes from step to step beside tensors.
#[derive(Serialize, Deserialize)]
struct Values {
    buffer: ReplayBuffer,
    monitor: DivergenceMonitor,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<Batch>,
    #[serde(default, skip_serializing_if = "is_zero")]
    taken: u64,
    #[serde(default, skip_serializing_if = "is_empty")]
    findings: Findings,
}

fn is_empty(findings: &Findings) -> bool {
    *findings == Findings::default()
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// What a step found in place of what it has changed.
#[derive(Default)]
struct Undo {
    /// Completions in the buffer of each prompt that got more.
    remembered: Vec<(u64, Vec<Remembered>)>,
    /// The completions of earlier updates, if others were taken.
    held: Option<Earlier>,
    /// Batches of prompts taken before, if more were.
    taken: Option<u64>,
    /// What had been found before, if more was.
    findings: Option<Findings>,
}

/// The completions that were held before, if any were.
struct Earlier(Option<Batch>);

/// What the values of a metric add up to.
#[derive(Default)]
struct Sum {
    value: f64,
    /// Tokens, where the metric is a mean over them.
    tokens: Option<f64>,
    is_root: bool,
}

/// Sums over the micro-batches of a step.
#[derive(Default)]
struct Sums {
    loss: f64,
    log_r: f64,
    /// By name.
    metrics: IndexMap<&'static str, Sum>,
    flops: f64,
}

impl PolicyTrainer {
    /// Prepares a training by `objective`.
    pub fn new(
        start: PolicyStart,
        mut objective: Box<dyn Objective>,
        options: PolicyOptions,
        stream: &Stream,
        cancel: Cancel,
    ) -> Result<Self, TrainError> {
        let prompts = start.prompts;
        if prompts.is_empty() {
            return Err(TrainError::Data(
                "there are no prompts to train on: the split is empty".to_owned(),
            ));
        }
        let config = start.model.llama.config();
        let own = objective.attach(&Setup {
            hidden_size: config.embedding_size,
            device: start.model.llama.device(),
            stream,
            lr: options.optimizer.lr,
        })?;
        let parameters = start.model.llama.trainable().to_vec();
        let mut trainer = Self {
            updater: Updater::new(parameters, own, options.optimizer.clone())?,
            epochs: Epochs::new(
                prompts.len(),
                options.prompts_per_step.min(prompts.len()),
                stream.child("prompts"),
            ),
            picks: stream.child("completions"),
            sampling: stream.child("sampling"),
            buffer: ReplayBuffer::new(options.replay_capacity.max(1))
                .and_then(|buffer| buffer.with_min_distance(options.replay_min_distance))
                .map_err(|error| TrainError::Data(error.to_string()))?,
            held: None,
            taken: 0,
            findings: Findings::default(),
            monitor: DivergenceMonitor::new(options.limits),
            shared: Shared {
                size: ModelSize::of(config, start.model.adapter.is_none()),
                model: start.model,
                reference: start.reference,
                rewards: start.rewards,
                options,
            },
            objective,
            prompts,
            cancel,
        };
        trainer.start()?;
        Ok(trainer)
    }

    /// Returns the model in training.
    pub fn model(&self) -> &TrainedModel {
        &self.shared.model
    }

    /// Puts the objective's parameters where they begin.
    fn start(&mut self) -> Result<(), TrainError> {
        if !self.objective.wants_first() {
            return self.objective.start(None);
        }
        // The first step finds the same once more.
        let mut undo = Undo::default();
        let groups = match self.shared.options.asynchronous {
            Some(settings) => self.found_rows(0, &settings, &mut undo)?.groups,
            None => {
                let items = self.epochs.at(0);
                self.rows(0, 0, &items, &mut undo)?.groups
            }
        };
        let part = Part {
            groups: &groups,
            first_row: 0,
            drawn: None,
            weights: &[],
        };
        let first = View::frozen(&self.shared, 0, part)?;
        self.objective.start(Some(&first))?;
        self.take_back(undo);
        Ok(())
    }

    /// Makes what a step has changed but for the model what it was before.
    fn take_back(&mut self, step: Undo) {
        for (prompt, completions) in step.remembered {
            self.buffer.set(prompt, completions);
        }
        if let Some(Earlier(held)) = step.held {
            self.held = held;
        }
        if let Some(taken) = step.taken {
            self.taken = taken;
        }
        if let Some(findings) = step.findings {
            self.findings = findings;
        }
    }
}

impl Sums {
    fn add(&mut self, found: &Found, rows: usize, total: f64) -> Result<(), TrainError> {
        let share = rows as f64 / total;
        self.loss += f64::from(found.loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
        self.log_r += share * found.log_r;
        for metric in &found.metrics {
            let sum = self.metrics.entry(metric.name).or_default();
            match metric.mean {
                Mean::OfCompletions => sum.value += share * metric.value,
                Mean::RootOfSquares => {
                    sum.is_root = true;
                    sum.value += share * metric.value.powi(2);
                }
                Mean::OfTokens(tokens) => {
                    let so_far = sum.tokens.get_or_insert_default();
                    *so_far += tokens;
                    sum.value += tokens * metric.value;
                }
            }
        }
        Ok(())
    }

    /// Returns the numbers of the whole step; a mean over no tokens is none.
    fn metrics(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.metrics.iter().filter_map(|(name, sum)| {
            let value = match sum {
                Sum { is_root: true, .. } => sum.value.sqrt(),
                Sum {
                    tokens: Some(0.0), ..
                } => return None,
                Sum {
                    tokens: Some(tokens),
                    ..
                } => sum.value / tokens,
                Sum { value, .. } => *value,
            };
            Some((*name, value))
        })
    }
}

impl Trainer for PolicyTrainer {
    fn step(&mut self, step: u64) -> Result<StepReport, TrainError> {
        let mut undo = Undo::default();
        let found = self.make_step(step, &mut undo);
        if found.is_err() {
            self.take_back(undo);
        }
        found
    }

    fn optimizer(&mut self) -> &mut AdamW {
        self.updater.optimizer()
    }

    fn halve_micro_batch(&mut self) -> Option<usize> {
        crate::ml::trainer::halve(&mut self.shared.options.micro_batch)
    }

    fn cancelled_by(&mut self, cancel: Cancel) {
        self.cancel = cancel;
    }

    fn values(&self) -> Json {
        serde_json::to_value(Values {
            buffer: self.buffer.clone(),
            monitor: self.monitor.clone(),
            held: self.held.clone(),
            taken: self.taken,
            findings: self.findings.clone(),
        })
        .unwrap_or_default()
    }

    fn restore_values(&mut self, values: &Json) -> Result<(), TrainError> {
        let values: Values = serde_json::from_value(values.clone())
            .map_err(|error| TrainError::State(error.to_string()))?;
        let (asks, count) = (self.objective.requirements(), self.prompts.len());
        let is_whole = |batch: &Batch| batch.is_whole(&asks, &self.shared.options, count);
        if !values.held.as_ref().is_none_or(is_whole) {
            return Err(TrainError::State(
                "its completions are not whole".to_owned(),
            ));
        }
        if !values.findings.is_whole(count) {
            return Err(TrainError::State(
                "what its sampling has found is not whole".to_owned(),
            ));
        }
        self.buffer = values.buffer;
        self.monitor = values.monitor;
        self.held = values.held;
        self.taken = values.taken;
        self.findings = values.findings;
        Ok(())
    }
}

impl PolicyTrainer {
    fn make_step(&mut self, step: u64, undo: &mut Undo) -> Result<StepReport, TrainError> {
        let (batch, rows) = match self.batch(step, undo) {
            Err(TrainError::Generate(error @ GenerateError::NonFinite { .. })) => {
                return Ok(StepReport {
                    diverged: Some(error.to_string()),
                    ..StepReport::default()
                });
            }
            other => other?,
        };
        let all = group::rows(&batch.groups);
        if all.is_empty() {
            return Ok(self.without_update(&batch, &rows));
        }
        let total = all.len() as f64;
        // Of completions that all end at once there is nothing to average over: their loss is 0.
        let eos = &self.shared.options.eos;
        let units = Some(self.objective.units(&all, eos)).filter(|units| *units > 0.0);
        let normaliser = Normaliser::Total(units.unwrap_or(1.0));
        let asks = self.objective.requirements();
        let mut gradients = Gradients::default();
        let mut sums = Sums::default();
        let mut first_row = 0;
        for groups in batch.groups.chunks(self.shared.options.micro_batch.max(1)) {
            let count = groups.iter().map(Group::count).sum::<usize>();
            if count == 0 {
                continue;
            }
            self.cancel.check()?;
            let drawn = batch.drawn.as_ref();
            let part = Part {
                groups,
                first_row,
                drawn: drawn.map(|drawn| &drawn[first_row..][..count]),
                weights: batch
                    .weights
                    .get(first_row..first_row + count)
                    .unwrap_or(&[]),
            };
            first_row += count;
            let view = View::training(&self.shared, step, part)?;
            let found = self.objective.loss(&view, normaliser)?;
            gradients.add_of(&found.loss, &self.updater.parameters())?;
            sums.flops += view.flops(&asks);
            sums.add(&found, count, total)?;
        }
        let mut report = StepReport {
            trained_tokens: all.iter().map(|row| row.tokens.len() as u64).sum(),
            generated_tokens: rows.generated,
            flops: sums.flops + rows.flops,
            ..StepReport::default()
        };
        // Each generated token is one forward pass over one token with a cache.
        report.flops += forward_flops(&self.shared.size, [1]) * rows.generated as f64;
        let metrics = &mut report.metrics;
        metrics.insert("loss", sums.loss);
        metrics.insert(
            "reward",
            sums.log_r / self.shared.options.reward_factor(step),
        );
        metrics.extend(sums.metrics());
        if let Some(age) = batch.age {
            metrics.insert("staleness", age + (step - batch.step) as f64);
        }
        metrics.extend(rows.of_prompts(&batch.groups));
        if rows.sampled > 0 {
            metrics.insert("truncated", rows.truncated as f64 / rows.sampled as f64);
        }
        metrics.insert("lr", self.updater.learning_rate(step));
        let log_z = metrics.get("log_z").copied();
        let Some(gradient_norm) = self.updater.finish(step, &gradients, &mut report)? else {
            return Ok(report);
        };
        let mut kl = None;
        if self.shared.options.monitor_every > 0
            && (step + 1).is_multiple_of(self.shared.options.monitor_every)
        {
            let watched = match self.watched(step) {
                Err(TrainError::Generate(error @ GenerateError::NonFinite { .. })) => {
                    report.diverged = Some(error.to_string());
                    return Ok(report);
                }
                other => other?,
            };
            report.metrics.insert("kl", watched.kl);
            let reward = watched.reward.map(|reward| ("sampled_reward", reward));
            report.metrics.extend(reward);
            kl = Some(watched.kl);
        }
        let health = self.monitor.observe(Observation {
            step,
            loss: sums.loss,
            gradient_norm,
            kl,
            log_z: log_z.filter(|_| asks.watches_log_z),
        });
        if let Health::Diverged(divergence) = health {
            report.diverged = Some(divergence.to_string());
        }
        Ok(report)
    }
}

impl PolicyTrainer {
    /// Tells of a step that found nothing to learn from.
    fn without_update(&self, batch: &Batch, rows: &rollout::Rows) -> StepReport {
        StepReport {
            metrics: rows.of_prompts(&batch.groups).collect(),
            generated_tokens: rows.generated,
            flops: rows.flops + forward_flops(&self.shared.size, [1]) * rows.generated as f64,
            ..StepReport::default()
        }
    }
}

#[cfg(test)]
mod tests;
