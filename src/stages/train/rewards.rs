//! Rewards of completions for trainers.

use candle_core::Tensor;

use crate::artifacts::reward_model::RewardModel;
use crate::ml::models::causal::TokenBatch;
use crate::ml::trainer::policy::rewards::Rewards;
use crate::ml::trainer::{ModelSize, TokenizedCompletion, TrainError};

/// Completions that are scored at once.
const BATCH: usize = 256;

/// Rewards of a reward model.
pub(super) struct ModelRewards(pub(super) RewardModel);

impl Rewards for ModelRewards {
    fn of_completions(&self, rows: &[&TokenizedCompletion]) -> Result<Vec<f64>, TrainError> {
        let rows: Vec<Vec<u32>> = rows.iter().map(|row| row.tokens.clone()).collect();
        let rewards = self.0.rewards(&rows, BATCH);
        rewards.map_err(|error| TrainError::Data(error.to_string()))
    }

    fn of_prefixes(&self, batch: &TokenBatch) -> Result<Tensor, TrainError> {
        let rewards = self.0.prefix_rewards(batch);
        rewards.map_err(|error| TrainError::Data(error.to_string()))
    }

    fn size(&self) -> Option<ModelSize> {
        Some(ModelSize::of(&self.0.model.config, false))
    }
}
