//! Rewards of completions.

use candle_core::Tensor;

use crate::ml::models::causal::TokenBatch;
use crate::ml::trainer::{ModelSize, TokenizedCompletion, TrainError};

/// Where rewards come from.
pub trait Rewards {
    /// Returns the reward of each completion as it is; none depends on what is beside it.
    fn of_completions(&self, rows: &[&TokenizedCompletion]) -> Result<Vec<f64>, TrainError>;

    /// Returns the reward of every prefix of every row: (rows, time). `batch` holds the same completions.
    fn of_prefixes(
        &self,
        rows: &[&TokenizedCompletion],
        batch: &TokenBatch,
    ) -> Result<Tensor, TrainError>;

    /// Returns the size of the model behind them, if there is one, for counting operations.
    fn size(&self) -> Option<ModelSize>;
}

/// The completions of a step with all that they are weighed by.
#[derive(Debug, Clone, Default)]
pub struct Scored {
    /// The prompt of each, equal numbers being the same prompt.
    pub prompt_of: Vec<usize>,
    /// Rewards.
    pub rewards: Vec<f64>,
    /// Tokens of each.
    pub lengths: Vec<usize>,
    /// Whether the horizon ended them.
    pub truncated: Vec<bool>,
    /// Log-probabilities of their tokens under the policy before the step's updates.
    pub log_probs: Vec<Vec<f64>>,
    /// The same under the reference; empty unless asked for.
    pub reference: Vec<Vec<f64>>,
    /// The same at the temperature of sampling; empty unless asked for.
    pub sampler: Vec<Vec<f64>>,
}
