//! How a policy is trained.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ml::generate::Sampling;
use crate::ml::objectives::divergence::DivergenceLimits;
use crate::ml::objectives::kl_control::KlController;
use crate::ml::objectives::ppo::PpoOptions;
use crate::ml::trainer::update::OptimizerOptions;

/// Over which tokens advantages are whitened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum Whitening {
    /// Those of an optimizer step; the loss is the mean over them. The micro-batch changes nothing.
    #[default]
    MiniBatch,
    /// Those of a forward pass; the loss is the mean of the passes' means. This is TRL's gradient accumulation.
    MicroBatch,
}

/// Which estimate of the KL divergence steers an adaptive coefficient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum ControlledKl {
    /// The plain mean of summed log-ratios, as in TRL.
    #[default]
    Mean,
    /// The trimmed mean, which single completions cannot move far.
    Trimmed,
}

/// How a policy is trained.
#[derive(Debug, Clone)]
pub struct PpoTrainerOptions {
    /// Completions of a step, at least one.
    pub batch_size: usize,
    /// Completions of an optimizer step, at least one.
    pub mini_batch: usize,
    /// Completions in a forward pass, at least one.
    pub micro_batch: usize,
    /// Passes over the completions of a step.
    pub ppo_epochs: u64,
    /// Over which tokens advantages are whitened.
    pub whitening: Whitening,
    /// AdamW and its learning rate over steps; all updates of a step have the same rate.
    pub optimizer: OptimizerOptions,
    /// The horizon: the greatest number of tokens of a completion, the end-of-sequence token included.
    pub max_new_tokens: usize,
    /// If given, each completion has a horizon of its own, drawn from here to `max_new_tokens`.
    pub min_new_tokens: Option<usize>,
    /// Whether completions go on behind an end-of-sequence token.
    pub ignore_eos: bool,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Coefficient of the KL penalty at the start, and what moves it.
    pub kl: KlController,
    /// Which estimate moves it.
    pub controlled_kl: ControlledKl,
    /// Share of completions left out at either end of the trimmed estimate of the KL divergence.
    pub kl_trim: f64,
    /// Discount of rewards.
    pub gamma: f64,
    /// Decay of generalised advantage estimates.
    pub lambda: f64,
    /// Clip ranges, weight of the value loss (above 0: the head is trained by nothing else), and the mean ratio of a
    /// mini-batch above which no update is made on it.
    pub loss: PpoOptions,
    /// Mean log-ratio to the sampling policy, times 1.5, above which a step's remaining updates are left out.
    pub target_kl: Option<f64>,
    /// What is taken off every score.
    pub reward_baseline: f64,
    /// What counts as divergence.
    pub divergence: DivergenceLimits,
}
