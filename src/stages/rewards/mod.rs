//! Rewards for the stages that take them: of tokens that a policy writes, of texts by a program.

pub(crate) mod bound;
pub(crate) mod program;

use self::program::ProgramError;
use crate::artifacts::language_model::ModelError;
use crate::artifacts::reward_rule::RuleError;

/// Why there are no rewards.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RewardError {
    /// A model or a rule cannot say.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A program does not say.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

impl From<RuleError> for RewardError {
    fn from(error: RuleError) -> Self {
        Self::Model(error.into())
    }
}
