//! Rewards of completions for trainers, whoever gives them.

use std::collections::BTreeMap;

use candle_core::Tensor;

use crate::artifacts::language_model::{LanguageModel, ModelError};
use crate::artifacts::reward::{BoundReward, Reward};
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::ml::models::causal::TokenBatch;
use crate::ml::trainer::rewards::Rewards;
use crate::ml::trainer::{ModelSize, TokenizedCompletion, TrainError};
use crate::stages::tokenized::check_vocabularies;

/// The text of each prompt by its tokens.
pub(super) type Texts = BTreeMap<Vec<u32>, String>;

/// Completions that are scored at once; it changes no reward.
const BATCH: usize = 32;

/// Opens what the port `reward` holds; a model must read the policy's tokens.
pub(super) fn open(policy: &LanguageModel, ctx: &RunContext) -> Result<Reward, StageError> {
    let input = ctx.input("reward")?;
    let reward = Reward::load(&input.kind, &input.path)?;
    if let Some(model) = reward.model() {
        check_vocabularies(&policy.tokenizer, &model.tokenizer)?;
    }
    Ok(reward)
}

/// Returns how many tokens both policy and reward take.
pub(super) fn positions(policy: &LanguageModel, reward: &Reward) -> usize {
    let own = policy.config.max_position_embeddings;
    reward.max_positions().map_or(own, |theirs| own.min(theirs))
}

/// Rewards of what a policy writes on the prompts of a training.
pub(super) struct PromptRewards(BoundReward);

impl PromptRewards {
    /// Binds a reward to a policy; `prompts` has the text of each prompt.
    pub(super) fn new(
        reward: Reward,
        policy: &LanguageModel,
        prompts: Texts,
    ) -> Result<Self, StageError> {
        let bound = reward.bind(policy, prompts);
        bound.check()?;
        Ok(Self(bound))
    }
}

fn prompt_lengths(rows: &[&TokenizedCompletion]) -> Vec<usize> {
    rows.iter().map(|row| row.prompt_length).collect()
}

fn failed(error: ModelError) -> TrainError {
    match error {
        ModelError::Model(error) => TrainError::Model(error),
        other => TrainError::Rewards(Box::new(other)),
    }
}

impl Rewards for PromptRewards {
    fn of_completions(&self, rows: &[&TokenizedCompletion]) -> Result<Vec<f64>, TrainError> {
        let tokens: Vec<Vec<u32>> = rows.iter().map(|row| row.tokens.clone()).collect();
        let rewards = self.0.rewards(&tokens, &prompt_lengths(rows), BATCH);
        rewards.map_err(failed)
    }

    fn of_prefixes(
        &self,
        rows: &[&TokenizedCompletion],
        batch: &TokenBatch,
    ) -> Result<Tensor, TrainError> {
        let rewards = self.0.prefix_rewards(batch, &prompt_lengths(rows));
        rewards.map_err(failed)
    }

    fn size(&self) -> Option<ModelSize> {
        self.0.reward().size()
    }
}
