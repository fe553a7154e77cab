//! Rewards of completions for trainers, whoever gives them.

use candle_core::Tensor;

use std::rc::Rc;

use crate::artifacts::curve::CURVE;
use crate::artifacts::language_model::{LanguageModel, ModelError};
use crate::artifacts::reward::Reward;
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::ml::models::causal::TokenBatch;
use crate::ml::placement::Placement;
use crate::ml::trainer::rewards::{Answer, Rewards};
use crate::ml::trainer::{ModelSize, TrainError};
use crate::stages::rewards::RewardError;
use crate::stages::rewards::bound::{BoundReward, Written};
use crate::stages::rewards::program::{Program, ProgramError};
use crate::stages::tokenized::check_vocabularies;

/// Completions that are scored at once; it changes no reward.
const BATCH: usize = 32;

/// Opens what the port `reward` holds; a model must read the policy's tokens.
pub(super) fn open(
    policy: &LanguageModel,
    placement: &Placement,
    ctx: &RunContext,
) -> Result<Reward, StageError> {
    let input = ctx.input("reward")?;
    let reward = Reward::load(input, placement)?;
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
pub(super) struct PromptRewards {
    reward: BoundReward,
    /// The text of each prompt.
    prompts: Vec<String>,
}

impl PromptRewards {
    /// Binds a reward to a policy; `prompts` has the text of each prompt.
    pub(super) fn new(
        reward: Reward,
        policy: &LanguageModel,
        prompts: Vec<String>,
        ctx: &mut RunContext,
    ) -> Result<Self, StageError> {
        let reward = BoundReward::new(reward, policy, CURVE, ctx)?;
        reward.check(&prompts)?;
        Ok(Self { reward, prompts })
    }

    /// Returns the program that gives them, if one does: it is to be ended when the training is.
    pub(super) fn program(&self) -> Option<Rc<Program>> {
        self.reward.program()
    }

    fn written<'a>(&'a self, answers: &[Answer<'a>]) -> Vec<Written<'a>> {
        let written = answers.iter().map(|answer| Written {
            prompt: &self.prompts[answer.prompt],
            tokens: &answer.completion.tokens,
            prompt_length: answer.completion.prompt_length,
        });
        written.collect()
    }
}

/// Ends a program when the training is over; keeps what it gave beside the curve, if it must be kept.
pub(super) fn finish(program: Option<Rc<Program>>, ctx: &mut RunContext) -> Result<(), StageError> {
    match program {
        Some(program) => program.finish(CURVE, ctx),
        None => Ok(()),
    }
}

fn failed(error: RewardError) -> TrainError {
    match error {
        RewardError::Program(ProgramError::Cancelled) => TrainError::Cancelled,
        RewardError::Model(ModelError::Model(error)) => TrainError::Model(error),
        other => TrainError::Rewards(Box::new(other)),
    }
}

impl Rewards for PromptRewards {
    fn of_completions(&self, answers: &[Answer<'_>]) -> Result<Vec<f64>, TrainError> {
        let rewards = self.reward.rewards(&self.written(answers), BATCH);
        rewards.map_err(failed)
    }

    fn ahead(&self, answers: &[Answer<'_>]) -> Result<(), TrainError> {
        self.reward.ahead(&self.written(answers)).map_err(failed)
    }

    fn of_prefixes(
        &self,
        answers: &[Answer<'_>],
        batch: &TokenBatch,
    ) -> Result<Tensor, TrainError> {
        let rewards = self.reward.prefix_rewards(&self.written(answers), batch);
        rewards.map_err(failed)
    }

    fn size(&self) -> Option<ModelSize> {
        self.reward.size()
    }
}
