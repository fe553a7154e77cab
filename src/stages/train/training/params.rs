//! Params that trainings share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::stage::Problem;
use crate::ml::optimizer::AdamWConfig;
use crate::ml::schedule::{Decay, Schedule};
use crate::ml::trainer::update::OptimizerOptions;
use crate::stages::ranges;

/// AdamW and its schedule.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::stages::train) struct OptimizerParams {
    /// Peak learning rate.
    #[schemars(extend("also" = ["learning_rate"]))]
    pub lr: f64,
    /// How the learning rate falls after the warm-up.
    #[serde(default)]
    #[schemars(extend("also" = ["scheduler", "lr_scheduler", "lr_scheduler_type"]))]
    pub schedule: Decay,
    /// Steps over which the learning rate rises.
    #[serde(default)]
    #[schemars(extend("also" = ["warmup"]))]
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
    #[schemars(extend("also" = ["adam_beta1"]))]
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    #[serde(default = "beta2")]
    #[schemars(extend("also" = ["adam_beta2"]))]
    pub beta2: f64,
    /// Norm above which gradients are scaled down; null leaves them.
    #[serde(default = "max_grad_norm")]
    #[schemars(extend("also" = ["grad_clip", "gradient_clipping"]))]
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
    /// Returns how a training of `steps` is updated.
    pub(in crate::stages::train) fn options(&self, steps: u64) -> OptimizerOptions {
        OptimizerOptions {
            lr: self.lr,
            schedule: Schedule {
                decay: self.schedule,
                warmup_steps: self.warmup_steps,
                total_steps: steps,
                floor: self.floor,
            },
            weight_decay: self.weight_decay,
            adamw: AdamWConfig {
                beta1: self.beta1,
                beta2: self.beta2,
                max_grad_norm: self.max_grad_norm,
                decay_vectors: self.decay_norms_and_biases,
                ..AdamWConfig::default()
            },
        }
    }

    /// Checks ranges.
    pub(in crate::stages::train) fn validate(&self, key: &str, problems: &mut Vec<Problem>) {
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
pub(in crate::stages::train) enum OnDivergence {
    /// The stage fails.
    #[default]
    Fail,
    /// The stage completes with the last good parameters, its curve, and the status `diverged`.
    Complete,
}
