//! Completions with what they are weighed by, and what they weigh.

use serde::{Deserialize, Serialize};

/// The completions of a step with all that they are weighed by.
#[derive(Debug, Clone, Default)]
pub struct Scored {
    /// The prompt of each, equal numbers being the same prompt.
    pub prompt_of: Vec<usize>,
    /// Rewards.
    pub rewards: Vec<f64>,
    /// Tokens of each.
    pub lengths: Vec<usize>,
    /// Log-probabilities of their tokens under the policy before the step's updates.
    pub log_probs: Vec<Vec<f64>>,
    /// The same under the reference; empty unless asked for.
    pub reference: Vec<Vec<f64>>,
    /// The same at the temperature of sampling; empty unless asked for.
    pub sampler: Vec<Vec<f64>>,
}

/// What a completion weighs in a loss, token by token.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Weights {
    /// Its reward.
    pub reward: f64,
    /// Advantage of each token.
    pub advantages: Vec<f64>,
    /// What corrects for the sampler's having been another distribution; 1 everywhere if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub importance: Vec<f64>,
}
