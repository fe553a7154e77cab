//! Reward models: a language model with a scalar head, calibrated.

use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::language_model::{LanguageModel, ModelError};
use crate::ml::formats::FormatError;
use crate::ml::formats::safetensors::{load_safetensors, save_safetensors};
use crate::ml::head::{HeadGradient, ScalarHead};
use crate::ml::llama::{Llama, TokenBatch};
use crate::ml::parameters::Weights;

/// The artifact kind.
pub const REWARD_MODEL: &str = "reward_model";

/// What a reward model is beside its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardDescription {
    /// Reward = `scale` x head + `offset`.
    pub scale: f64,
    /// See `scale`.
    pub offset: f64,
    /// Share of held-out pairs that it orders as people did.
    pub accuracy: Option<f64>,
    /// The same for the rule "the longer completion wins".
    pub longer_wins: Option<f64>,
}

/// A frozen reward model.
pub struct RewardModel {
    /// Trunk and tokenizer.
    pub model: LanguageModel,
    /// Calibration and accuracy.
    pub description: RewardDescription,
    llama: Llama,
    head: ScalarHead,
}

impl RewardModel {
    /// Reads a reward model from a folder; the head's weights must really be there.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let model = LanguageModel::load(folder)?;
        let path = folder.join("score.safetensors");
        let weights = load_safetensors(&path)?;
        let head = ScalarHead::from_weights(model.config.hidden_size, &weights, false)
            .map_err(|error| FormatError::malformed(&path, error.to_string()))?;
        let path = folder.join("reward.json");
        let description = serde_json::from_str(&fs_err::read_to_string(&path)?)
            .map_err(|error| FormatError::malformed(&path, error.to_string()))?;
        Ok(Self {
            llama: model.frozen()?,
            model,
            description,
            head,
        })
    }

    /// Writes head and description beside a model that was written into `folder`.
    pub fn save_head(
        folder: &Path,
        head: &Weights,
        description: &RewardDescription,
    ) -> Result<(), ModelError> {
        save_safetensors(&folder.join("score.safetensors"), head)?;
        let text = serde_json::to_string_pretty(description).map_err(std::io::Error::from)?;
        fs_err::write(folder.join("reward.json"), text)?;
        Ok(())
    }

    /// Returns the reward of every prefix of every row: (rows, time), one forward pass for all of them.
    ///
    /// Place t holds the reward of the row's tokens up to t; a causal model cannot see what follows.
    pub fn prefix_rewards(&self, batch: &TokenBatch) -> Result<Tensor, ModelError> {
        let hidden = self.llama.forward(batch)?;
        let wrap = |error| ModelError::Model(error);
        let raw = self
            .head
            .apply(&hidden, HeadGradient::Detached)
            .map_err(|e| wrap(e.into()))?;
        let rewards = raw.affine(self.description.scale, self.description.offset);
        Ok(rewards.map_err(|error| wrap(error.into()))?.detach())
    }

    /// Returns the reward of each whole row.
    ///
    /// Rows are scored in batches of `batch_size`, which changes no reward.
    pub fn rewards(&self, rows: &[Vec<u32>], batch_size: usize) -> Result<Vec<f64>, ModelError> {
        let mut rewards = Vec::with_capacity(rows.len());
        for chunk in rows.chunks(batch_size.max(1)) {
            let batch = TokenBatch::right_padded(chunk);
            let prefix = self
                .prefix_rewards(&batch)?
                .to_vec2::<f32>()
                .map_err(LlamaError::from)?;
            for (row, span) in prefix.iter().zip(batch.spans()) {
                rewards.push(f64::from(row[span.end - 1]));
            }
        }
        Ok(rewards)
    }
}

use crate::ml::llama::LlamaError;
