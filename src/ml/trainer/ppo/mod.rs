//! Proximal policy optimisation of a language model, as `StackLLaMA` did it (TRL 0.4.7, June 2023).
//!
//! A step is one iteration: completions of a batch of prompts are sampled and scored, then several updates are
//! made on them, `ppo_epochs` passes over shuffled mini-batches. Per token, the reward is `-beta` times the
//! log-ratio to a frozen reference model, plus the score at the last token; a value head on the last hidden
//! state is the baseline of generalised advantage estimates. `beta` may follow a target.
//!
//! Differences from TRL 0.4.7:
//! - Advantages are whitened, and losses averaged, over the mini-batch of an optimizer step, whatever the
//!   micro-batch. TRL does both within one forward pass and averages the means where it accumulates gradients;
//!   [`Whitening::MicroBatch`] is that.
//! - A mini-batch whose mean ratio passes the threshold makes no step; TRL makes one with a gradient of zero.
//! - The value head has no dropout. An adapter's dropout acts in updates alone, as in TRL.
//! - Where completions get horizons of their own, each draws one; TRL draws one for several at a time.
//!
//! As there, log-probabilities are those of the model at temperature 1, whatever the sampling temperature.

mod advantages;
mod options;
mod rollout;
#[cfg(test)]
mod tests;
mod update;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::batches::Epochs;
use super::flops::{ModelSize, backward_flops, forward_flops};
use super::rewards::Rewards;
use super::trained_model::TrainedModel;
use super::update::{Updater, not_finite};
use super::{Cancel, StepReport, TrainError, Trainer};
use crate::ml::generate::GenerateError;
use crate::ml::head::{HeadInit, ScalarHead};
use crate::ml::models::causal::CausalLm;
use crate::ml::objectives::divergence::{DivergenceMonitor, Health, Observation};
use crate::ml::objectives::kl_control::KlController;
use crate::ml::objectives::kl_estimate::KlEstimate;
use crate::ml::optimizer::AdamW;
use crate::random::Stream;

pub use options::{ControlledKl, PpoTrainerOptions, Whitening};

/// What a [`PpoTrainer`] starts from.
pub struct PpoStart {
    /// The policy.
    pub model: TrainedModel,
    /// The frozen model that the policy is kept close to; it has the shape of the policy.
    pub reference: CausalLm,
    /// Where scores come from.
    pub rewards: Box<dyn Rewards>,
    /// Prompts as tokens, at least one.
    pub prompts: Vec<Vec<u32>>,
    /// Tokens that end a completion.
    pub eos: Vec<u32>,
}

/// Training of a policy and its value head.
pub struct PpoTrainer {
    start: PpoStart,
    value_head: ScalarHead,
    options: PpoTrainerOptions,
    updater: Updater,
    epochs: Epochs,
    streams: Streams,
    size: ModelSize,
    controller: KlController,
    monitor: DivergenceMonitor,
    cancel: Cancel,
}

/// Where a step's randomness comes from; the counters are derived from the step.
struct Streams {
    completions: Stream,
    horizons: Stream,
    mini_batches: Stream,
}

/// All that changes from step to step beside parameters and optimiser.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Values {
    controller: KlController,
    monitor: DivergenceMonitor,
}

impl PpoTrainer {
    /// Prepares a training; the value head is new.
    pub fn new(
        start: PpoStart,
        options: PpoTrainerOptions,
        stream: &Stream,
    ) -> Result<Self, TrainError> {
        if start.prompts.is_empty() {
            return Err(TrainError::Data(
                "there are no prompts to train on: the split is empty".to_owned(),
            ));
        }
        let config = start.model.llama.config();
        // The variance of PyTorch's default for linear layers, which TRL's head keeps.
        let init = HeadInit::Normal((3.0 * config.embedding_size as f64).sqrt().recip());
        let value_head = ScalarHead::init(
            config.embedding_size,
            true,
            init,
            &stream.child("value head"),
            start.model.llama.device(),
        )?;
        let mut parameters = start.model.llama.trainable().to_vec();
        parameters.extend(value_head.trainable("value_head."));
        Ok(Self {
            updater: Updater::new(parameters, Vec::new(), options.optimizer.clone())?,
            epochs: Epochs::new(
                start.prompts.len(),
                options.batch_size,
                stream.child("batches"),
            ),
            streams: Streams {
                completions: stream.child("completions"),
                horizons: stream.child("horizons"),
                mini_batches: stream.child("mini-batches"),
            },
            size: ModelSize::of(config, start.model.adapter.is_none()),
            controller: options.kl,
            monitor: DivergenceMonitor::new(options.divergence),
            cancel: Cancel::default(),
            value_head,
            start,
            options,
        })
    }

    /// Returns the policy in training.
    pub fn model(&self) -> &TrainedModel {
        &self.start.model
    }

    /// Returns the value head in training.
    pub fn value_head(&self) -> &ScalarHead {
        &self.value_head
    }

    /// Returns the present coefficient of the KL penalty.
    pub fn beta(&self) -> f64 {
        self.controller.beta()
    }
}

impl Trainer for PpoTrainer {
    fn step(&mut self, step: u64) -> Result<StepReport, TrainError> {
        let mut report = StepReport::default();
        let mut rollouts = match self.sample(step) {
            Err(TrainError::Generate(error @ GenerateError::NonFinite { .. })) => {
                report.diverged = Some(error.to_string());
                return Ok(report);
            }
            other => other?,
        };
        self.evaluate(&mut rollouts)?;
        let pairs = rollouts
            .iter()
            .map(|rollout| (rollout.log_probs.as_slice(), rollout.reference.as_slice()));
        let kl = KlEstimate::of_rows(pairs, self.options.kl_trim)?;
        let beta = self.controller.beta();
        advantages::assign(&mut rollouts, beta, &self.options)?;

        let lengths = || rollouts.iter().map(|rollout| rollout.row.tokens.len());
        // Sampling reads every token once; then policy and reference read the whole rows.
        let forward = forward_flops(&self.size, lengths());
        let scoring = self
            .start
            .rewards
            .size()
            .map(|size| forward_flops(&size, lengths()));
        report.flops = 3.0 * forward + scoring.unwrap_or(0.0);
        report.generated_tokens = rollouts.iter().map(|rollout| rollout.length() as u64).sum();

        let seen = self.update(step, &rollouts)?;
        report.flops += seen.forward_flops + backward_flops(&self.size, seen.forward_flops);
        report.trained_tokens = seen.tokens;

        let mean = |value: &dyn Fn(&rollout::Rollout) -> f64| {
            rollouts.iter().map(value).sum::<f64>() / rollouts.len() as f64
        };
        let means = seen.means();
        let metrics = [
            ("reward", mean(&|rollout| rollout.score)),
            ("kl", kl.trimmed),
            ("kl_mean", kl.mean),
            ("kl_k3", kl.k3),
            ("loss", means.loss),
            ("policy_loss", means.policy_loss),
            ("value_loss", means.value_loss),
            ("approx_kl", means.approximate_kl),
            ("policy_kl", means.policy_kl),
            ("clip_fraction", means.clip_fraction),
            ("value_clip_fraction", means.value_clip_fraction),
            ("ratio", means.ratio),
            (
                "entropy",
                mean(&|rollout| -rollout.log_probs.iter().sum::<f64>()),
            ),
            ("beta", beta),
            ("length", mean(&|rollout| rollout.length() as f64)),
            (
                "truncated",
                mean(&|rollout| f64::from(u8::from(rollout.truncated))),
            ),
            ("updates", seen.updates as f64),
            ("skipped", seen.skipped as f64),
            ("grad_norm", seen.greatest_norm),
            ("lr", self.updater.learning_rate(step)),
        ];
        report.metrics.extend(metrics);

        if let Some(parameter) = &seen.non_finite {
            report.diverged = Some(not_finite(parameter, seen.last_loss));
            return Ok(report);
        }
        let health = self.monitor.observe(Observation {
            step,
            loss: means.loss,
            gradient_norm: seen.greatest_norm,
            kl: Some(kl.trimmed),
            log_z: None,
        });
        if let Health::Diverged(divergence) = health {
            report.diverged = Some(divergence.to_string());
            return Ok(report);
        }
        let controlled = match self.options.controlled_kl {
            ControlledKl::Mean => kl.mean,
            ControlledKl::Trimmed => kl.trimmed,
        };
        self.controller.update(controlled, rollouts.len());
        Ok(report)
    }

    fn optimizer(&mut self) -> &mut AdamW {
        self.updater.optimizer()
    }

    fn halve_micro_batch(&mut self) -> Option<usize> {
        crate::ml::trainer::halve(&mut self.options.micro_batch)
    }

    fn cancelled_by(&mut self, cancel: Cancel) {
        self.cancel = cancel;
    }

    fn values(&self) -> Json {
        let values = Values {
            controller: self.controller,
            monitor: self.monitor.clone(),
        };
        // Structs of numbers and lists: nothing that JSON cannot hold.
        serde_json::to_value(values).unwrap_or(Json::Null)
    }

    fn restore_values(&mut self, values: &Json) -> Result<(), TrainError> {
        let values = Values::deserialize(values)
            .map_err(|error| TrainError::State(format!("controller and monitor: {error}")))?;
        self.controller = values.controller;
        self.monitor = values.monitor;
        Ok(())
    }
}
