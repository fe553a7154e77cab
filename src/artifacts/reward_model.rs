//! Reward models: a language model with a scalar head, calibrated.

use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::language_model::{LanguageModel, ModelError};
use crate::ml::formats::FormatError;
use crate::ml::formats::safetensors::{load_safetensors, save_safetensors};
use crate::ml::head::{HeadGradient, ScalarHead};
use crate::ml::llama::{Llama, LlamaError, TokenBatch};
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

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::artifacts::language_model::save_new;
    use crate::ml::config::{LlamaConfig, RopeLayout};
    use crate::ml::head::HeadInit;
    use crate::ml::llama::init;
    use crate::ml::tokenizer::{TokenizerAlgorithm, train_tokenizer};
    use crate::random::Stream;

    /// Writes a random reward model with a vocabulary of some words.
    fn written(folder: &Path) {
        let stream = Stream::new(3, "reward model test");
        let tokenizer =
            train_tokenizer(TokenizerAlgorithm::WordLevel, ["a b c d e f"; 2], 16, &[]).unwrap();
        let config = LlamaConfig {
            vocab_size: tokenizer.vocab_size(),
            hidden_size: 16,
            intermediate_size: 32,
            num_layers: 2,
            num_heads: 2,
            num_kv_heads: 1,
            rope_theta: 1e4,
            rope_layout: RopeLayout::HalfSplit,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            max_position_embeddings: 32,
        };
        let weights = init(&config, &stream, &Device::Cpu).unwrap();
        save_new(folder, &config, &weights, &tokenizer).unwrap();
        let head =
            ScalarHead::init(16, false, HeadInit::Normal(1.0), &stream, &Device::Cpu).unwrap();
        let description = RewardDescription {
            scale: 2.0,
            offset: -1.0,
            accuracy: None,
            longer_wins: None,
        };
        RewardModel::save_head(folder, &head.parameters().weights().unwrap(), &description)
            .unwrap();
    }

    #[test]
    fn one_forward_pass_scores_every_prefix_as_if_it_stood_alone() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        let model = RewardModel::load(folder.path()).unwrap();
        let rows = vec![vec![1, 4, 5, 6, 7, 2], vec![1, 8, 4, 9]];
        let at_once = model
            .prefix_rewards(&TokenBatch::right_padded(&rows))
            .unwrap()
            .to_vec2::<f32>()
            .unwrap();
        for (row, rewards) in rows.iter().zip(&at_once) {
            for length in 1..=row.len() {
                let alone = model.rewards(&[row[..length].to_vec()], 1).unwrap()[0];
                let together = f64::from(rewards[length - 1]);
                assert!(
                    (alone - together).abs() < 1e-5,
                    "prefix of {length}: {alone} alone, {together} together"
                );
            }
        }
        // The rewards must differ for the comparison to mean anything.
        assert!((at_once[0][2] - at_once[0][5]).abs() > 1e-3, "{at_once:?}");
    }

    #[test]
    fn a_reward_model_without_its_head_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        fs_err::remove_file(folder.path().join("score.safetensors")).unwrap();
        assert!(RewardModel::load(folder.path()).is_err());
    }
}
