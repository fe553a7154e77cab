//! Text encoders and text classifiers in the Hugging Face layout.

use std::path::{Path, PathBuf};

use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::excerpt::listed;
use crate::ml::formats::FormatError;
use crate::ml::formats::hugging_face::{
    EncoderCheckpoint, EncoderOptions, load_encoder, load_encoder_classifier, save_encoder,
};
use crate::ml::models::encoder::{
    self, Encoder, EncoderClassifier, PackedTokens, SentenceEmbedding,
};
use crate::ml::tokenizer::Tokenizer;

/// The artifact kind of encoders.
pub const TEXT_ENCODER: &str = "text_encoder";
/// The artifact kind of encoders with a classification head.
pub const TEXT_CLASSIFIER: &str = "text_classifier";

/// Why an encoder could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum EncoderError {
    /// A file is not what it should be.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The weights do not make an encoder, or a text cannot be encoded.
    #[error(transparent)]
    Encoder(#[from] encoder::EncoderError),
    /// The file system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// There is no tokenizer.
    #[error("{}: it has no tokenizer", folder.display())]
    Tokenizer {
        /// The artifact.
        folder: PathBuf,
    },
    /// A class is not known.
    #[error("no class is called `{class}`; the classes are {known}")]
    Class {
        /// The class.
        class: String,
        /// The classes that are there.
        known: String,
    },
}

/// An encoder artifact in memory, frozen.
pub struct TextEncoder {
    /// Shape, weights and tokenizer as they were read.
    pub checkpoint: EncoderCheckpoint,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// The encoder.
    pub encoder: Encoder,
}

impl TextEncoder {
    /// Embeds texts as its folder says, or by their mean at unit length; `batch_tokens` changes speed and memory only.
    pub fn embed(
        &self,
        texts: &[String],
        batch_tokens: usize,
    ) -> Result<Vec<Vec<f32>>, EncoderError> {
        let embeddings =
            self.encoder
                .embed_texts(&self.tokenizer, &self.sentence(), texts, batch_tokens);
        Ok(embeddings?)
    }

    /// Returns how many numbers an embedding has.
    pub fn dimension(&self) -> Result<usize, EncoderError> {
        let hidden_size = self.checkpoint.config.hidden_size;
        Ok(self.sentence().dimension(hidden_size)?)
    }

    fn sentence(&self) -> SentenceEmbedding {
        self.checkpoint.sentence.clone().unwrap_or_default()
    }

    /// Reads an encoder from a folder.
    pub fn load(folder: &Path) -> Result<Self, EncoderError> {
        Self::load_at(folder, &Device::Cpu)
    }

    /// The same, with the tensors on a device.
    pub fn load_at(folder: &Path, device: &Device) -> Result<Self, EncoderError> {
        let mut checkpoint = load_encoder(folder, &EncoderOptions::default())?;
        let moved = checkpoint.move_to(device);
        moved.map_err(FormatError::tensor(folder))?;
        Ok(Self {
            tokenizer: tokenizer(&checkpoint, folder)?,
            encoder: Encoder::new(&checkpoint.config, &checkpoint.weights, |_| false)?,
            checkpoint,
        })
    }
}

/// How well a classifier does on texts that it was not trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassifierMetrics {
    /// Texts.
    pub texts: usize,
    /// Share that got its label.
    pub accuracy: f64,
    /// Share of the most frequent label: what a constant answer would get.
    pub majority: f64,
    /// Mean of the classes' F1.
    pub macro_f1: f64,
    /// F1 of each class.
    pub f1: Vec<(String, f64)>,
}

/// A classifier artifact in memory, frozen.
pub struct TextClassifier {
    /// Names of the classes, in the order of the logits.
    pub labels: Vec<String>,
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Encoder and head.
    pub classifier: EncoderClassifier,
}

impl TextClassifier {
    /// Reads a classifier from a folder; the head's weights must really be there.
    pub fn load(folder: &Path) -> Result<Self, EncoderError> {
        Self::load_at(folder, &Device::Cpu)
    }

    /// The same, with the tensors on a device.
    pub fn load_at(folder: &Path, device: &Device) -> Result<Self, EncoderError> {
        let mut checkpoint = load_encoder_classifier(folder, &[])?;
        let moved = checkpoint.move_to(device);
        moved.map_err(FormatError::tensor(folder))?;
        let head = checkpoint.head.as_ref().ok_or_else(|| {
            FormatError::malformed(folder, "it has no classification head".to_owned())
        })?;
        let classifier =
            EncoderClassifier::new(&checkpoint.config, head, &checkpoint.weights, |_| false)?;
        let labels = if checkpoint.labels.is_empty() {
            (0..head.classes)
                .map(|class| format!("LABEL_{class}"))
                .collect()
        } else {
            checkpoint.labels.clone()
        };
        Ok(Self {
            labels,
            tokenizer: tokenizer(&checkpoint, folder)?,
            classifier,
        })
    }

    /// Returns the place of a class among the logits.
    pub fn class(&self, name: &str) -> Result<usize, EncoderError> {
        let place = self.labels.iter().position(|label| label == name);
        place.ok_or_else(|| EncoderError::Class {
            class: name.to_owned(),
            known: listed(&self.labels),
        })
    }

    /// Returns the logits of each text, one for each class.
    ///
    /// Texts are cut to what the encoder can take. `batch_tokens` changes speed and memory only.
    pub fn logits(
        &self,
        texts: &[String],
        batch_tokens: usize,
    ) -> Result<Vec<Vec<f32>>, EncoderError> {
        logits(&self.classifier, &self.tokenizer, texts, batch_tokens)
    }
}

/// Returns the logits of each text under a classifier that may be in training.
pub fn logits(
    classifier: &EncoderClassifier,
    tokenizer: &Tokenizer,
    texts: &[String],
    batch_tokens: usize,
) -> Result<Vec<Vec<f32>>, EncoderError> {
    let rows = classifier.encoder().encode_texts(tokenizer, texts)?;
    let mut logits = Vec::with_capacity(rows.len());
    for batch in PackedTokens::batches(&rows, batch_tokens) {
        let found = classifier.logits(&batch)?.to_vec2::<f32>();
        logits.extend(found.map_err(encoder::EncoderError::from)?);
    }
    Ok(logits)
}

/// Writes an encoder or classifier, and what is known of it.
pub fn save(
    folder: &Path,
    checkpoint: &EncoderCheckpoint,
    metrics: Option<&ClassifierMetrics>,
) -> Result<(), EncoderError> {
    save_encoder(folder, checkpoint)?;
    if let Some(metrics) = metrics {
        let text = serde_json::to_string_pretty(metrics).map_err(std::io::Error::from)?;
        fs_err::write(folder.join("metrics.json"), text)?;
    }
    Ok(())
}

fn tokenizer(checkpoint: &EncoderCheckpoint, folder: &Path) -> Result<Tokenizer, EncoderError> {
    let tokenizer = checkpoint.tokenizer.clone();
    tokenizer.ok_or_else(|| EncoderError::Tokenizer {
        folder: folder.to_owned(),
    })
}
