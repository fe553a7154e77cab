//! Rewards of completions.

use candle_core::Tensor;

use crate::ml::models::causal::TokenBatch;
use crate::ml::trainer::{ModelSize, TokenizedCompletion, TrainError};

/// A completion of one of a training's prompts.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// The prompt's place among those of the training: two prompts may have the same tokens.
    pub prompt: usize,
    /// The completion behind its prompt.
    pub completion: &'a TokenizedCompletion,
}

/// Where rewards come from.
pub trait Rewards {
    /// Returns the reward of each completion as it is; none depends on what is beside it.
    fn of_completions(&self, answers: &[Answer<'_>]) -> Result<Vec<f64>, TrainError>;

    /// Says that the rewards of these completions will be asked for, so that whoever gives them can begin.
    fn ahead(&self, _answers: &[Answer<'_>]) -> Result<(), TrainError> {
        Ok(())
    }

    /// Returns the reward of every prefix of every completion: (rows, time). `batch` holds the same completions.
    fn of_prefixes(&self, answers: &[Answer<'_>], batch: &TokenBatch)
    -> Result<Tensor, TrainError>;

    /// Returns the size of the model behind them, if there is one, for counting operations.
    fn size(&self) -> Option<ModelSize>;
}
