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
