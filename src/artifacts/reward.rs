//! Rewards, whoever gives them: a reward model, a reward rule or a reward program.

use super::language_model::{LanguageModel, ModelError};
use super::reward_model::{REWARD_MODEL, RewardModel};
use super::reward_program::{REWARD_PROGRAM, RewardProgram};
use super::reward_rule::{REWARD_RULE, RewardRule};
use crate::engine::context::Input;
use crate::ml::placement::Placement;
use crate::ml::trainer::ModelSize;

/// The artifact kinds that give rewards.
pub const REWARDS: &[&str] = &[REWARD_MODEL, REWARD_RULE, REWARD_PROGRAM];

/// What gives rewards.
pub enum Reward {
    /// A model.
    Model(Box<RewardModel>),
    /// A rule.
    Rule(Box<RewardRule>),
    /// A program.
    Program(Box<RewardProgram>),
}

impl Reward {
    /// Reads an artifact of one of the kinds of [`REWARDS`]; the tensors of a model lie where they are wanted.
    pub fn load(input: &Input, placement: &Placement) -> Result<Self, ModelError> {
        let folder = &input.path;
        Ok(match input.kind.as_str() {
            REWARD_RULE => Self::Rule(Box::new(RewardRule::load(folder)?)),
            REWARD_PROGRAM => {
                let mut program = RewardProgram::load(folder)?;
                let running = serde_json::from_value(input.handed_on.clone());
                program.running = running.unwrap_or_default();
                Self::Program(Box::new(program))
            }
            _ => Self::Model(Box::new(RewardModel::load_at(folder, placement)?)),
        })
    }

    /// The model, if it is one.
    pub fn model(&self) -> Option<&LanguageModel> {
        match self {
            Self::Model(model) => Some(&model.model),
            Self::Rule(_) | Self::Program(_) => None,
        }
    }

    /// The size of the model; rules and programs cost no operations that are counted.
    pub fn size(&self) -> Option<ModelSize> {
        let model = self.model()?;
        Some(ModelSize::of(&model.config, false))
    }

    /// How many tokens it reads of a prompt with its completion; rules and programs read any number.
    pub fn max_positions(&self) -> Option<usize> {
        Some(self.model()?.config.max_position_embeddings)
    }

    /// Says why it does not value completions that are not ended, if it does not.
    pub fn lacks_prefix_values(&self) -> Option<ModelError> {
        match self {
            Self::Rule(rule) if !rule.description.rule.has_prefix_values() => {
                Some(rule.no_prefix_values().into())
            }
            Self::Program(program) => program.lacks_prefix_values().map(ModelError::from),
            Self::Model(_) | Self::Rule(_) => None,
        }
    }
}
