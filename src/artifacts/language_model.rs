//! Language models: base weights and tokenizer in the Hugging Face layout, and an adapter in PEFT's.
//!
//! A policy that was trained with an adapter shares its base weights with the model it started from: its
//! artifact links to the same objects of the store.

use std::path::{Path, PathBuf};

use crate::ml::adapter::{Adapter, AdapterError, PREFIX};
use candle_core::Tensor;
use serde_json::{Map, Value, json};

use super::reward_program::RewardProgramError;
use super::reward_rule::RuleError;
use crate::ml::documents::read_configuration;
use crate::ml::formats::hugging_face::{
    PeftAdapter, SequenceClassifier, load_hugging_face_at, load_peft_adapter,
    load_sequence_classifier, save_classifier_config, save_hugging_face, save_peft_adapter,
    save_sequence_classifier,
};
use crate::ml::formats::safetensors::{load_safetensors, save_safetensors, tensor_names};
use crate::ml::formats::{Checkpoint, FormatError};
use crate::ml::models::causal::{Architecture, CausalLm, CausalLmError, Training};
use crate::ml::parameters::{Weights, device_of};
use crate::ml::placement::Placement;
use crate::ml::tokenizer::{CHAT_TEMPLATE, MODEL_INPUT_NAMES, Tokenizer, TokenizerError};

/// The artifact kind.
pub const LANGUAGE_MODEL: &str = "language_model";

/// What a model has a known number of: positions of prompt and completion together.
pub const CONTEXT: &str = "tokens of context";

/// What a reward model is beside its weights.
pub const REWARD_DESCRIPTION: &str = "reward.json";
/// Files that a copied model may hold, each of which changes what the others mean.
pub const COPIED_FILES: [&str; 7] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    REWARD_DESCRIPTION,
];
/// Name of the weight of a classifier's head.
pub const SCORE: &str = "score.weight";
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
    Model(#[from] CausalLmError),
    /// A reward rule cannot say.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A reward program cannot say.
    #[error(transparent)]
    RewardProgram(#[from] RewardProgramError),
    /// Tokens spell no text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// There is no tokenizer.
    #[error("{}: it has no tokenizer, expected `tokenizer.json` or `tokenizer.model` in the folder", folder.display())]
    NoTokenizer {
        /// The folder.
        folder: PathBuf,
    },
    /// Nothing says how a text ends.
    #[error(
        "{}: neither `config.json`, `generation_config.json` nor `tokenizer_config.json` names a token that ends a text",
        folder.display()
    )]
    NoEnd {
        /// The folder.
        folder: PathBuf,
    },
    /// A classifier is where a language model was expected.
    #[error(
        "{}: its adapter is a classifier's, with a head; expected a language model's (`load_reward` reads a reward model)",
        folder.display()
    )]
    Head {
        /// The folder.
        folder: PathBuf,
    },
    /// A language model is where a classifier was expected.
    #[error(
        "{}: its adapter has no head; `adapter_model.safetensors` must hold `base_model.model.score.weight`",
        folder.display()
    )]
    NoHead {
        /// The folder.
        folder: PathBuf,
    },
}

/// A language model artifact in memory.
#[derive(Debug, Clone)]
pub struct LanguageModel {
    /// What the model is made of.
    pub config: Architecture,
    /// Base weights.
    pub base: Weights,
    /// What was trained on top of them.
    pub adapter: Option<Adapter>,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Ids that end a completion.
    pub eos: Vec<u32>,
    /// Rows that embedding and head were given for tokens that the files have no row for.
    pub added_rows: usize,
    /// Where its tensors lie, and how.
    pub placement: Placement,
    /// Where it was read from.
    folder: PathBuf,
    /// Whether the output head is the embedding matrix there; an adapter may have untied them since.
    is_tied_in_files: bool,
}

impl LanguageModel {
    /// Reads a model from a folder, with the adapter that lies beside it.
    pub fn load(folder: &Path) -> Result<Self, ModelError> {
        Self::load_at(folder, &Placement::HOST)
    }

    /// The same, with the tensors where they are wanted.
    pub fn load_at(folder: &Path, placement: &Placement) -> Result<Self, ModelError> {
        let (model, score) = Self::load_adapted(folder, &[], placement)?;
        match score {
            None => Ok(model),
            Some(_) => Err(ModelError::Head {
                folder: folder.to_owned(),
            }),
        }
    }

    /// Reads a model with the adapter beside it, and the head of a classifier's adapter.
    fn load_adapted(
        folder: &Path,
        ignored: &[String],
        placement: &Placement,
    ) -> Result<(Self, Option<Tensor>), ModelError> {
        let checkpoint = load_hugging_face_at(folder, ignored, placement)?;
        let mut model = Self::from_checkpoint(folder, checkpoint)?;
        model.placement = placement.clone();
        if !folder.join("adapter_config.json").exists() {
            return Ok((model, None));
        }
        let stored = load_peft_adapter(folder, &model.config)?;
        model.adapter = Some(model.adapter_of(&stored)?);
        Ok((model, stored.score))
    }

    /// Reads the trunk of a classifier or reward model with its adapter, if it has one, and its head, (classes, size).
    ///
    /// Keys of `config.json` that are `ignored` are not looked at.
    pub fn load_classifier(
        folder: &Path,
        ignored: &[String],
        placement: &Placement,
    ) -> Result<(Self, Tensor), ModelError> {
        if folder.join("config.json").exists() && folder.join("adapter_config.json").exists() {
            let (model, score) = Self::load_adapted(folder, ignored, placement)?;
            let score = score.ok_or_else(|| ModelError::NoHead {
                folder: folder.to_owned(),
            })?;
            return Ok((model, score));
        }
        let classifier = load_sequence_classifier(folder, ignored, placement)?;
        let model = Self::from_checkpoint(folder, classifier.trunk)?;
        Ok((model, classifier.score))
    }

    fn from_checkpoint(folder: &Path, checkpoint: Checkpoint) -> Result<Self, ModelError> {
        let tokenizer = checkpoint
            .tokenizer
            .ok_or_else(|| ModelError::NoTokenizer {
                folder: folder.to_owned(),
            })?;
        if checkpoint.eos_ids.is_empty() {
            return Err(ModelError::NoEnd {
                folder: folder.to_owned(),
            });
        }
        Ok(Self {
            is_tied_in_files: checkpoint.config.tie_word_embeddings,
            config: checkpoint.config,
            base: checkpoint.weights,
            adapter: None,
            tokenizer,
            eos: checkpoint.eos_ids,
            added_rows: checkpoint.added_rows,
            placement: Placement::HOST,
            folder: folder.to_owned(),
        })
    }

    /// Fits a stored adapter to the model.
    fn adapter_of(&mut self, stored: &PeftAdapter) -> Result<Adapter, AdapterError> {
        if stored.score.is_none() {
            stored.config.untie(&mut self.config, &mut self.base);
        }
        let device = device_of(&self.base);
        Adapter::from_weights(&stored.config, &self.base, &stored.weights, &device)
    }

    /// Returns the model as it is, building no graph.
    pub fn frozen(&self) -> Result<CausalLm, ModelError> {
        let training = self
            .adapter
            .as_ref()
            .map_or(Training::Frozen, Training::Adapter);
        Ok(CausalLm::new(&self.config, &self.base, training)?.settled()?)
    }

    /// Returns the weights with the adapter, if any, merged into them.
    pub fn merged(&self) -> Result<Weights, ModelError> {
        Ok(match &self.adapter {
            Some(adapter) => adapter.merge(&self.base)?,
            None => self.base.clone(),
        })
    }

    /// Writes a model with weights of its own; with a `score` head, as a classifier.
    pub fn save_full(
        &self,
        folder: &Path,
        weights: &Weights,
        score: Option<&Tensor>,
    ) -> Result<(), ModelError> {
        match score {
            None => save_new(folder, &self.config, weights, &self.tokenizer),
            Some(score) => {
                save_new_classifier(folder, &self.config, weights, &self.tokenizer, score)
            }
        }
    }

    /// Writes the same base with another adapter; the base's files become links.
    pub fn save_adapter(
        &self,
        folder: &Path,
        adapter: &Adapter,
        score: Option<&Tensor>,
    ) -> Result<(), ModelError> {
        self.link_base(folder, score.is_some())?;
        Ok(save_peft_adapter(folder, &stored_adapter(adapter, score)?)?)
    }

    /// Writes the model, with an adapter if it has one, into a folder of its own, linking nothing.
    pub fn save_copy(&self, folder: &Path, score: Option<&Tensor>) -> Result<(), ModelError> {
        let Some(adapter) = &self.adapter else {
            return self.save_full(folder, &self.base, score);
        };
        self.save_full(folder, &self.base, None)?;
        if score.is_some() {
            save_classifier_config(folder, &self.config, &self.tokenizer)?;
        }
        Ok(save_peft_adapter(folder, &stored_adapter(adapter, score)?)?)
    }

    /// Writes the language model's PEFT adapter in `source` beside the model, which was written into `folder`.
    pub fn add_peft(&mut self, source: &Path, folder: &Path) -> Result<(), ModelError> {
        let stored = load_peft_adapter(source, &self.config)?;
        if stored.score.is_some() {
            return Err(ModelError::Head {
                folder: source.to_owned(),
            });
        }
        let adapter = self.adapter_of(&stored)?;
        Ok(save_peft_adapter(folder, &stored_adapter(&adapter, None)?)?)
    }

    /// Writes the model with the PEFT adapter in `source` on top, and with the head that this has if it is to be a
    /// classifier's; an adapter that the model has already is merged first.
    pub fn save_with_peft(
        &mut self,
        source: &Path,
        folder: &Path,
        is_classifier: bool,
    ) -> Result<(), ModelError> {
        let stored = load_peft_adapter(source, &self.config)?;
        let score = match (&stored.score, is_classifier) {
            (None, true) => {
                return Err(ModelError::NoHead {
                    folder: source.to_owned(),
                });
            }
            (Some(_), false) => {
                return Err(ModelError::Head {
                    folder: source.to_owned(),
                });
            }
            (score, _) => score.as_ref(),
        };
        let is_merged = self.adapter.is_some();
        self.base = self.merged()?;
        self.adapter = None;
        let adapter = self.adapter_of(&stored)?;
        if is_merged {
            // There is no file of the merged base to link to.
            self.save_full(folder, &adapter.merge(&self.base)?, score)
        } else {
            self.save_adapter(folder, &adapter, score)
        }
    }

    /// Links the base's files into `folder`; as that of a classifier, `config.json` says another thing.
    fn link_base(&self, folder: &Path, is_classifier: bool) -> Result<(), ModelError> {
        if is_classifier {
            fs_err::create_dir_all(folder)?;
            let config = Architecture {
                tie_word_embeddings: self.is_tied_in_files,
                ..self.config.clone()
            };
            save_classifier_config(folder, &config, &self.tokenizer)?;
        }
        for name in BASE_FILES {
            let source = self.folder.join(name);
            if source.exists() && !(is_classifier && name == "config.json") {
                fs_err::os::unix::fs::symlink(fs_err::canonicalize(source)?, folder.join(name))?;
            }
        }
        Ok(())
    }
}

/// Writes a new model, which no artifact holds yet.
pub fn save_new(
    folder: &Path,
    config: impl Into<Architecture>,
    weights: &Weights,
    tokenizer: &Tokenizer,
) -> Result<(), ModelError> {
    if tokenizer.end_ids().is_empty() {
        return Err(ModelError::NoEnd {
            folder: folder.to_owned(),
        });
    }
    Ok(save_hugging_face(folder, config, weights, Some(tokenizer))?)
}

/// Writes a new classifier or reward model; an output head among the weights is left out.
pub fn save_new_classifier(
    folder: &Path,
    config: impl Into<Architecture>,
    weights: &Weights,
    tokenizer: &Tokenizer,
    score: &Tensor,
) -> Result<(), ModelError> {
    let mut trunk = Checkpoint {
        config: config.into(),
        weights: weights.clone(),
        tokenizer: Some(tokenizer.clone()),
        eos_ids: tokenizer.end_ids().to_vec(),
        added_rows: 0,
    };
    trunk.config.tie_word_embeddings = true;
    trunk.weights.remove(&trunk.config.head_name());
    let classifier = SequenceClassifier {
        trunk,
        score: score.clone(),
        labels: Vec::new(),
    };
    Ok(save_sequence_classifier(folder, &classifier)?)
}

/// Makes a copy of a model's files what other programs expect of a folder: PEFT is told where the base is, which is the
/// folder itself, and `transformers` what the model takes of its tokenizer; a head that an adapter carries stands among the
/// base's weights as well, or `transformers` would draw one first and warn of it. A tokenizer without a template of chats
/// is given `chat_template`.
pub fn complete_copy(folder: &Path, chat_template: Option<&str>) -> Result<(), ModelError> {
    complete_base(folder)?;
    let edit = |name: &str, change: &dyn Fn(&mut Map<String, Value>)| -> Result<(), ModelError> {
        let path = folder.join(name);
        if !path.exists() {
            return Ok(());
        }
        let mut document = serde_json::from_slice(&read_configuration(&path)?)
            .map_err(|error| FormatError::malformed(&path, error.to_string()))?;
        change(&mut document);
        Ok(fs_err::write(
            path,
            format!("{:#}\n", Value::Object(document)),
        )?)
    };
    edit("tokenizer_config.json", &|tokenizer| {
        let inputs = tokenizer.entry("model_input_names");
        inputs.or_insert_with(|| json!(MODEL_INPUT_NAMES));
        if let Some(template) = chat_template {
            let own = tokenizer.entry(CHAT_TEMPLATE);
            own.or_insert_with(|| template.into());
        }
    })?;
    // A reward that is read before the end token: other programs skip what the model pads with.
    let description = folder.join(REWARD_DESCRIPTION);
    if description.exists() {
        let description: Value = serde_json::from_slice(&read_configuration(&description)?)
            .map_err(|error| FormatError::malformed(&description, error.to_string()))?;
        if let Some(skipped) = description.get("skipped_end") {
            edit("config.json", &|config| {
                config.insert("pad_token_id".to_owned(), skipped.clone());
            })?;
        }
    }
    let base = fs_err::canonicalize(folder)?.display().to_string();
    edit("adapter_config.json", &|adapter| {
        adapter.insert("base_model_name_or_path".to_owned(), base.clone().into());
    })
}

/// Adds the head of a classifier's adapter to the weights of the base, as a second file of them.
fn complete_base(folder: &Path) -> Result<(), ModelError> {
    let adapter = folder.join("adapter_model.safetensors");
    let base = folder.join("model.safetensors");
    if !adapter.exists() || !base.exists() {
        return Ok(());
    }
    let mut factors = load_safetensors(&adapter)?;
    let Some(score) = factors.remove(&format!("{PREFIX}{SCORE}")) else {
        return Ok(());
    };
    let files = [1, 2].map(|number| format!("model-0000{number}-of-00002.safetensors"));
    let mut places: Map<String, Value> = tensor_names(&base)?
        .into_iter()
        .map(|name| (name, files[0].clone().into()))
        .collect();
    places.insert(SCORE.to_owned(), files[1].clone().into());
    let heads = Weights::from([(SCORE.to_owned(), score)]);
    save_safetensors(&folder.join(&files[1]), &heads)?;
    fs_err::rename(base, folder.join(&files[0]))?;
    let index = json!({ "metadata": {}, "weight_map": places });
    let path = folder.join("model.safetensors.index.json");
    Ok(fs_err::write(path, format!("{index:#}\n"))?)
}

fn stored_adapter(adapter: &Adapter, score: Option<&Tensor>) -> Result<PeftAdapter, AdapterError> {
    Ok(PeftAdapter {
        config: adapter.config().clone(),
        weights: adapter.parameters().weights()?,
        score: score.cloned(),
    })
}
