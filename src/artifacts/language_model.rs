//! Language models: base weights and tokenizer in the Hugging Face layout, and an adapter in PEFT's.
//!
//! A policy that was trained with an adapter shares its base weights with the model it started from: its
//! artifact links to the same objects of the store.

use std::path::{Path, PathBuf};

use crate::ml::adapter::{Adapter, AdapterError, LoraConfig};
use crate::ml::config::LlamaConfig;
use crate::ml::formats::hugging_face::{
    PeftAdapter, load_hugging_face, load_peft_adapter, save_hugging_face, save_peft_adapter,
};
use crate::ml::formats::{Checkpoint, FormatError};
use crate::ml::llama::{Llama, LlamaError, Training};
use crate::ml::parameters::Weights;
use crate::ml::tokenizer::Tokenizer;

/// The artifact kind.
pub const LANGUAGE_MODEL: &str = "language_model";

const PEFT_PREFIX: &str = "base_model.model.";
const BASE_FILES: [&str; 4] = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Why a model artifact could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is not what it should be.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The adapter does not fit the base.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The weights do not make a model.
    #[error(transparent)]
    Model(#[from] LlamaError),
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// There is no tokenizer, or it does not say how a text ends.
    #[error("{}: {what}", folder.display())]
    Tokenizer {
        /// The artifact.
        folder: PathBuf,
        /// What is missing.
        what: &'static str,
    },
}

/// A language model artifact in memory.
#[derive(Debug, Clone)]
pub struct LanguageModel {
    /// Shape of the model.
    pub config: LlamaConfig,
    /// Base weights.
    pub base: Weights,
    /// What was trained on top of them.
    pub adapter: Option<Adapter>,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Ids that end a completion.
    pub eos: Vec<u32>,
    /// Where it was read from.
    folder: PathBuf,
}

impl LanguageModel {
    /// Reads a model from a folder.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        let checkpoint: Checkpoint = load_hugging_face(folder)?;
        let fail = |what| ModelError::Tokenizer {
            folder: folder.to_owned(),
            what,
        };
        let tokenizer = checkpoint
            .tokenizer
            .ok_or_else(|| fail("it has no tokenizer"))?;
        if checkpoint.eos_ids.is_empty() {
            return Err(fail(
                "neither the model nor the tokenizer names a token that ends a text",
            ));
        }
        let adapter = if folder.join("adapter_config.json").exists() {
            let stored = load_peft_adapter(folder, &checkpoint.config)?;
            Some(adapter_of(&stored, &checkpoint.weights)?)
        } else {
            None
        };
        Ok(Self {
            config: checkpoint.config,
            base: checkpoint.weights,
            adapter,
            tokenizer,
            eos: checkpoint.eos_ids,
            folder: folder.to_owned(),
        })
    }

    /// Returns the model as it is, building no graph.
    pub fn frozen(&self) -> Result<Llama, ModelError> {
        let training = self
            .adapter
            .as_ref()
            .map_or(Training::Frozen, Training::Adapter);
        Ok(Llama::new(&self.config, &self.base, training)?.detached())
    }

    /// Returns the weights with the adapter, if any, merged into them.
    pub fn merged(&self) -> Result<Weights, ModelError> {
        Ok(match &self.adapter {
            Some(adapter) => adapter.merge(&self.base)?,
            None => self.base.clone(),
        })
    }

    /// Writes a model with weights of its own.
    pub fn save_full(&self, folder: &Path, weights: &Weights) -> Result<(), ModelError> {
        Ok(save_hugging_face(
            folder,
            &self.config,
            weights,
            Some(&self.tokenizer),
        )?)
    }

    /// Writes the same base with another adapter; the base's files become links.
    pub fn save_adapter(&self, folder: &Path, adapter: &Adapter) -> Result<(), ModelError> {
        self.link_base(folder)?;
        let config = adapter.config();
        let weights = adapter.parameters().weights().map_err(AdapterError::from)?;
        let strip = |name: String| {
            name.strip_prefix(PEFT_PREFIX)
                .map(str::to_owned)
                .unwrap_or(name)
        };
        let stored = PeftAdapter {
            rank: config.rank,
            alpha: config.alpha,
            rank_stabilised: false,
            dropout: config.dropout,
            target_modules: config.target_modules.clone(),
            weights: weights
                .into_iter()
                .map(|(name, tensor)| (strip(name), tensor))
                .collect(),
            score: None,
        };
        Ok(save_peft_adapter(folder, &stored)?)
    }

    /// Writes the model with the PEFT adapter in `source` on top; an adapter that it has already is merged first.
    pub fn save_with_peft(&mut self, source: &Path, folder: &Path) -> Result<(), ModelError> {
        let stored = load_peft_adapter(source, &self.config)?;
        let is_merged = self.adapter.is_some();
        self.base = self.merged()?;
        self.adapter = None;
        let adapter = adapter_of(&stored, &self.base)?;
        if is_merged {
            // There is no file of the merged base to link to.
            self.save_full(folder, &adapter.merge(&self.base)?)
        } else {
            self.save_adapter(folder, &adapter)
        }
    }

    /// Links the base's files into `folder`.
    fn link_base(&self, folder: &Path) -> Result<(), ModelError> {
        for name in BASE_FILES {
            let source = self.folder.join(name);
            if source.exists() {
                fs_err::os::unix::fs::symlink(fs_err::canonicalize(source)?, folder.join(name))?;
            }
        }
        Ok(())
    }
}

/// Writes a new model, which no artifact holds yet.
pub fn save_new(
    folder: &Path,
    config: &LlamaConfig,
    weights: &Weights,
    tokenizer: &Tokenizer,
) -> Result<(), ModelError> {
    Ok(save_hugging_face(folder, config, weights, Some(tokenizer))?)
}

fn adapter_of(stored: &PeftAdapter, base: &Weights) -> Result<Adapter, AdapterError> {
    let config = LoraConfig {
        rank: stored.rank,
        // Only the product counts; ours is alpha / rank.
        alpha: stored.scale() * stored.rank as f64,
        dropout: stored.dropout,
        target_modules: stored.target_modules.clone(),
    };
    let weights: Weights = stored
        .weights
        .iter()
        .map(|(name, tensor)| (format!("{PEFT_PREFIX}{name}"), tensor.clone()))
        .collect();
    Adapter::from_weights(&config, base, &weights, &candle_core::Device::Cpu)
}
