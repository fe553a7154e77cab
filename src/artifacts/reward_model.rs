//! Reward models: a language model with a scalar head, calibrated.
//!
//! The folder is one that `transformers` opens as a classifier with one class: the head is among the model's weights,
//! or those of its adapter. A reward is read at the last token of a row, which is the end token wherever a completion
//! ended of itself: completions are trained on and scored with it. A model of others may skip a token at the end, or be
//! read at an end token whatever the row.

use std::path::Path;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::language_model::{LanguageModel, ModelError, REWARD_DESCRIPTION, SCORE};
use crate::ml::documents::read_configuration;
use crate::ml::formats::FormatError;
use crate::ml::head::{HeadGradient, ScalarHead};
use crate::ml::models::causal::{CausalLm, CausalLmError, TokenBatch};
use crate::ml::parameters::Weights;
use crate::ml::placement::Placement;

/// The artifact kind.
pub const REWARD_MODEL: &str = "reward_model";

/// Rows that are scored in one pass where each prefix is one.
const PREFIXES_AT_ONCE: usize = 16;

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
    /// A token that is skipped at the end of a row: the reward is read at the last other one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped_end: Option<u32>,
    /// An end token that is put after every row that does not end with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub appended_end: Option<u32>,
}

impl RewardDescription {
    /// Reads the description in a folder.
    pub fn read(folder: &Path) -> Result<Self, ModelError> {
        let path = folder.join(REWARD_DESCRIPTION);
        let described = serde_json::from_slice(&read_configuration(&path)?);
        Ok(described.map_err(|error| FormatError::malformed(&path, error.to_string()))?)
    }

    /// Reads the description in a folder of whatever origin, if one is there.
    pub fn find(folder: &Path) -> Result<Option<Self>, ModelError> {
        let is_there = folder.join(REWARD_DESCRIPTION).exists();
        is_there.then(|| Self::read(folder)).transpose()
    }

    /// Writes the description beside a model that was written into `folder`.
    pub fn save(&self, folder: &Path) -> Result<(), ModelError> {
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::from)?;
        Ok(fs_err::write(folder.join(REWARD_DESCRIPTION), text)?)
    }
}

/// A frozen reward model.
pub struct RewardModel {
    /// Trunk and tokenizer.
    pub model: LanguageModel,
    /// Calibration and accuracy.
    pub description: RewardDescription,
    trunk: CausalLm,
    head: ScalarHead,
}

impl RewardModel {
    /// Reads a reward model from a folder; the head's weights must really be there.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        Self::load_at(folder, &Placement::HOST)
    }

    /// The same, with the tensors where they are wanted.
    pub fn load_at(folder: &Path, placement: &Placement) -> Result<Self, ModelError> {
        let (model, score) = LanguageModel::load_classifier(folder, &[], placement)?;
        let weights = Weights::from([(SCORE.to_owned(), score)]);
        let head = ScalarHead::from_weights(model.config.embedding_size, &weights, false)
            .map_err(|error| FormatError::malformed(folder, error.to_string()))?;
        let description = RewardDescription::read(folder)?;
        Ok(Self {
            trunk: model.frozen()?,
            model,
            description,
            head,
        })
    }

    /// Returns the reward of every prefix of every row, (rows, time).
    ///
    /// Place t holds the reward of the row's tokens up to t, read where the description says. It is one forward pass for
    /// all of them, as a causal model cannot see what follows, but where an end token is put after each: then there are
    /// as many rows as prefixes.
    pub fn prefix_rewards(&self, batch: &TokenBatch) -> Result<Tensor, ModelError> {
        match self.description.appended_end {
            Some(end) => self.ended_rewards(batch, end),
            None => self.read_rewards(batch),
        }
    }

    /// Returns the reward of every prefix with an end token after it; zero outside the rows.
    fn ended_rewards(&self, batch: &TokenBatch, end: u32) -> Result<Tensor, ModelError> {
        let time = batch.time();
        let mut rewards = vec![0.0; batch.tokens().len()];
        for (row, span) in batch.spans().iter().enumerate() {
            let tokens = &batch.tokens()[row * time..][span.clone()];
            let ended: Vec<Vec<u32>> = (1..=tokens.len())
                .map(|length| self.ended(&tokens[..length], end))
                .collect();
            for (place, reward) in self
                .last_rewards(&ended, PREFIXES_AT_ONCE)?
                .into_iter()
                .enumerate()
            {
                rewards[row * time + span.start + place] = reward;
            }
        }
        let rewards = Tensor::from_vec(rewards, (batch.spans().len(), time), self.trunk.device());
        Ok(rewards.map_err(CausalLmError::from)?)
    }

    /// Puts an end token after a row that has none.
    fn ended(&self, row: &[u32], end: u32) -> Vec<u32> {
        let has_end = row.last().is_some_and(|last| self.model.eos.contains(last));
        row.iter()
            .copied()
            .chain((!has_end).then_some(end))
            .collect()
    }

    /// Returns the reward of every prefix of every row, read in the rows as they are.
    fn read_rewards(&self, batch: &TokenBatch) -> Result<Tensor, ModelError> {
        let hidden = self.trunk.forward(batch)?;
        let wrap = |error| ModelError::Model(error);
        let raw = self
            .head
            .apply(&hidden, HeadGradient::Detached)
            .map_err(|e| wrap(e.into()))?;
        let raw = match self.description.skipped_end {
            Some(skipped) => {
                let places = scored_places(batch, skipped);
                let scored = Tensor::new(places, raw.device())
                    .and_then(|places| raw.flatten_all()?.index_select(&places, 0))
                    .and_then(|scored| scored.reshape(raw.shape()));
                scored.map_err(|error| wrap(error.into()))?
            }
            None => raw,
        };
        let rewards = raw.affine(self.description.scale, self.description.offset);
        Ok(rewards.map_err(|error| wrap(error.into()))?.detach())
    }

    /// Returns the reward of each whole row.
    ///
    /// Rows are scored in batches of `batch_size`, which changes no reward.
    pub fn rewards(&self, rows: &[Vec<u32>], batch_size: usize) -> Result<Vec<f64>, ModelError> {
        let rewards = match self.description.appended_end {
            Some(end) => {
                let rows: Vec<_> = rows.iter().map(|row| self.ended(row, end)).collect();
                self.last_rewards(&rows, batch_size)
            }
            None => self.last_rewards(rows, batch_size),
        };
        Ok(rewards?.into_iter().map(f64::from).collect())
    }

    /// Returns the reward that is read in each whole row as it is.
    fn last_rewards(&self, rows: &[Vec<u32>], batch_size: usize) -> Result<Vec<f32>, ModelError> {
        let mut rewards = Vec::with_capacity(rows.len());
        for chunk in rows.chunks(batch_size.max(1)) {
            let batch = TokenBatch::right_padded(chunk);
            let prefix = self
                .read_rewards(&batch)?
                .to_vec2::<f32>()
                .map_err(CausalLmError::from)?;
            let last = prefix.iter().zip(batch.spans());
            rewards.extend(last.map(|(row, span)| row[span.end - 1]));
        }
        Ok(rewards)
    }
}

/// Returns, for each place of a batch, that of the last token up to it which is not `skipped`; the first of the row if
/// there is none.
fn scored_places(batch: &TokenBatch, skipped: u32) -> Vec<u32> {
    let time = batch.time();
    let mut last = 0;
    let places = batch.tokens().iter().enumerate().map(|(place, token)| {
        let (row, column) = (place / time, place % time);
        if column <= batch.spans()[row].start || *token != skipped {
            last = place;
        }
        last as u32
    });
    places.collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::artifacts::language_model::save_new_classifier;
    use crate::ml::adapter::{Adapter, LoraConfig};
    use crate::ml::formats::safetensors::{load_safetensors, save_safetensors};
    use crate::ml::head::HeadInit;
    use crate::ml::kernels::rope::RopeLayout;
    use crate::ml::models::causal::LlamaConfig;
    use crate::ml::models::causal::init;
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
        let head =
            ScalarHead::init(16, false, HeadInit::Normal(1.0), &stream, &Device::Cpu).unwrap();
        let score = &head.parameters().weights().unwrap()[SCORE];
        save_new_classifier(folder, &config, &weights, &tokenizer, score).unwrap();
        let description = RewardDescription {
            scale: 2.0,
            offset: -1.0,
            accuracy: None,
            longer_wins: None,
            skipped_end: None,
            appended_end: None,
        };
        description.save(folder).unwrap();
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
    fn a_reward_at_an_end_token_is_that_of_the_text_with_one_after_it() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        let plain = RewardModel::load(folder.path()).unwrap();
        let end = plain.model.eos[0];
        let mut ended = RewardModel::load(folder.path()).unwrap();
        ended.description.appended_end = Some(end);
        let rows = vec![vec![1, 4, 5, end], vec![1, 8, 4, 9, 6]];
        let with_end = |row: &[u32]| {
            let mut row = row.to_vec();
            if row.last() != Some(&end) {
                row.push(end);
            }
            plain.rewards(&[row], 1).unwrap()[0]
        };
        let found = ended.rewards(&rows, 2).unwrap();
        assert_eq!(found, [with_end(&rows[0]), with_end(&rows[1])]);
        assert_eq!(found[0], plain.rewards(&rows, 2).unwrap()[0]);
        assert!((found[1] - plain.rewards(&rows, 2).unwrap()[1]).abs() > 1e-3);
        let prefixes = ended.prefix_rewards(&TokenBatch::right_padded(&rows));
        let prefixes = prefixes.unwrap().to_vec2::<f32>().unwrap();
        for (row, rewards) in rows.iter().zip(&prefixes) {
            for length in 1..=row.len() {
                let alone = with_end(&row[..length]);
                assert_eq!(f64::from(rewards[length - 1]), alone, "prefix of {length}");
            }
        }
    }

    /// A classifier's folder reads as one, whatever its trunk is made of.
    #[test]
    fn an_adapter_carries_its_head() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        let whole = RewardModel::load(folder.path()).unwrap();
        let score = load_safetensors(&folder.path().join("model.safetensors"))
            .unwrap()
            .remove(SCORE)
            .unwrap();
        let mut model = whole.model;
        let lora = LoraConfig {
            rank: 3,
            alpha: 16.0,
            dropout: 0.0,
            target_modules: vec!["v_proj".to_owned()],
            ..LoraConfig::default()
        };
        let stream = Stream::new(4, "adapter");
        model.adapter = Some(Adapter::init(&lora, &model.base, &stream, &Device::Cpu).unwrap());
        // An output head of its own is no hindrance.
        model.config.tie_word_embeddings = false;
        let head = model.base["model.embed_tokens.weight"].clone();
        model.base.insert("lm_head.weight".to_owned(), head);
        let adapted = tempfile::tempdir().unwrap();
        model.save_copy(adapted.path(), Some(&score)).unwrap();
        whole.description.save(adapted.path()).unwrap();
        let read = RewardModel::load(adapted.path()).unwrap();
        assert!(read.model.adapter.is_some());
        let rows = [vec![1, 4, 5, 2], vec![1, 6, 2]];
        let before = RewardModel::load(folder.path()).unwrap();
        // A new adapter changes nothing yet.
        assert_eq!(
            read.rewards(&rows, 2).unwrap(),
            before.rewards(&rows, 2).unwrap()
        );
        let error = LanguageModel::load(adapted.path()).unwrap_err().to_string();
        assert!(
            error.contains("its adapter is a classifier's, with a head"),
            "{error}"
        );
        let again = tempfile::tempdir().unwrap();
        let (model, score) =
            LanguageModel::load_classifier(adapted.path(), &[], &Placement::HOST).unwrap();
        model.save_copy(again.path(), Some(&score)).unwrap();
        for file in [
            "config.json",
            "model.safetensors",
            "adapter_config.json",
            "adapter_model.safetensors",
        ] {
            let bytes =
                |folder: &tempfile::TempDir| fs_err::read(folder.path().join(file)).unwrap();
            assert_eq!(bytes(&again), bytes(&adapted), "{file}");
        }
    }

    #[test]
    fn a_reward_model_without_its_head_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        let path = folder.path().join("model.safetensors");
        let mut weights = load_safetensors(&path).unwrap();
        weights.remove(SCORE).unwrap();
        save_safetensors(&path, &weights).unwrap();
        let error = RewardModel::load(folder.path()).err().unwrap().to_string();
        assert!(
            error.contains("`score.weight` of shape [1, 16] is missing"),
            "{error}"
        );
    }

    /// `transformers` reads the last token that is not `pad_token_id` (4.57, `modeling_layers.py`).
    #[test]
    fn a_token_that_ends_rows_can_be_skipped() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        let end = 4;
        let rows = vec![
            vec![5, 6, end],
            vec![5, 6],
            vec![5, end, 6, end, end],
            vec![end],
        ];
        let plain = RewardModel::load(folder.path()).unwrap();
        let mut description = plain.description.clone();
        description.skipped_end = Some(end);
        description.save(folder.path()).unwrap();
        let skipping = RewardModel::load(folder.path()).unwrap();
        let found = skipping.rewards(&rows, 4).unwrap();
        let read_at = vec![vec![5, 6], vec![5, 6], vec![5, end, 6], vec![end]];
        assert_eq!(found, plain.rewards(&read_at, 4).unwrap());
        assert_ne!(found[0], plain.rewards(&rows, 4).unwrap()[0]);
        let prefixes = skipping.prefix_rewards(&TokenBatch::right_padded(&rows));
        let prefixes = prefixes.unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(prefixes[2][1], prefixes[2][0]);
        assert_eq!(prefixes[2][4], prefixes[2][2]);
    }
}
