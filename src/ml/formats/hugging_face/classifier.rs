//! Classifiers and reward models in Hugging Face folders.

use std::path::Path;

use candle_core::Tensor;

use super::super::tensors::{TensorSource, load_exactly, load_model};
use super::super::{Checkpoint, FormatError};
use super::config::{config_document, read_config};
use super::json::write_json;
use super::trunk::{SCORE, TrunkFiles, checkpoint, is_buffer, refuse_lone_adapter, save};
use crate::ml::models::causal::Architecture;
use crate::ml::placement::{Placement, Precision};
use crate::ml::tokenizer::Tokenizer;

/// A model with a linear head on its last hidden states: `LlamaForSequenceClassification` and the like.
///
/// With one class it is a reward model.
#[derive(Debug, Clone)]
pub struct SequenceClassifier {
    /// Trunk and tokenizer.
    pub trunk: Checkpoint,
    /// Weight of the linear head, (classes, hidden size); it has no bias.
    pub score: Tensor,
    /// Names of the classes; empty if the file has none.
    pub labels: Vec<String>,
}

/// Loads a classifier or reward model from a folder; an output head in it is left out.
///
/// The head must really be there: a reward model that was merged without it scores noise, and nothing
/// else would show it (huggingface/trl#398).
///
/// Keys of `config.json` that are `ignored` are not looked at.
pub fn load_sequence_classifier(
    folder: &Path,
    ignored: &[String],
    placement: &Placement,
) -> Result<SequenceClassifier, FormatError> {
    let config_path = folder.join("config.json");
    refuse_lone_adapter(folder, &config_path)?;
    let mut config = read_config(&config_path, ignored)?;
    let files = TrunkFiles::open(folder, &config.architecture)?;
    let width = config.architecture.embedding_size;
    let declared_classes = config.labels.len();
    let classes = match files.shape(SCORE) {
        Some(&[classes, _]) if declared_classes == 0 => classes,
        Some(_) if declared_classes == 0 => 1,
        Some(_) => declared_classes,
        None => {
            return Err(FormatError::MissingTensor {
                path: files.path().to_owned(),
                name: SCORE.to_owned(),
                expected: vec![declared_classes.max(1), width],
                hint: "; the classification head was not saved with the model, and without it \
                       every score would be noise"
                    .to_owned(),
            });
        }
    };
    // Nothing asks a classifier for logits over tokens.
    config.architecture.tie_word_embeddings = true;
    let architecture = config.architecture;
    let head = architecture.head_name();
    let weights = load_model(&files, &architecture, placement, |name| {
        is_buffer(name) || name == head || name == SCORE
    })?;
    let expected = [(SCORE.to_owned(), vec![classes, width])];
    let in_full = Placement {
        precision: Precision::F32,
        ..placement.clone()
    };
    let mut scored = load_exactly(&files, expected.into_iter(), &in_full, |_| true)?;
    let score = scored.remove(SCORE).ok_or_else(|| {
        FormatError::malformed(files.path(), format!("tensor `{SCORE}` is missing"))
    })?;
    Ok(SequenceClassifier {
        trunk: checkpoint(folder, architecture, config.end_ids, weights)?,
        score,
        labels: config.labels,
    })
}

/// Writes a classifier or reward model in the layout of [`save_hugging_face`](super::save_hugging_face).
pub fn save_sequence_classifier(
    folder: &Path,
    classifier: &SequenceClassifier,
) -> Result<(), FormatError> {
    let mut labels = classifier.labels.clone();
    if labels.is_empty() {
        let classes = classifier.score.dim(0);
        labels = default_labels(classes.map_err(FormatError::tensor(folder))?);
    }
    save(
        folder,
        &classifier.trunk.config,
        &classifier.trunk.weights,
        classifier.trunk.tokenizer.as_ref(),
        Some((&classifier.score, &labels)),
    )
}

/// Writes the `config.json` of a model whose adapter makes it a classifier with one score.
pub fn save_classifier_config(
    folder: &Path,
    config: &Architecture,
    tokenizer: &Tokenizer,
) -> Result<(), FormatError> {
    let document = config_document(config, Some(tokenizer), Some(&default_labels(1)));
    write_json(&folder.join("config.json"), &document)
}

fn default_labels(classes: usize) -> Vec<String> {
    (0..classes).map(|class| format!("LABEL_{class}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::super::fixture;
    use super::super::super::safetensors::save_safetensors;
    use super::super::fixture::classifier;
    use super::*;

    #[test]
    fn a_saved_reward_model_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        save_sequence_classifier(folder.path(), &classifier()).unwrap();
        let read = load_sequence_classifier(folder.path(), &[], &Placement::HOST).unwrap();
        assert_eq!(read.labels, ["LABEL_0"]);
        assert_eq!(
            fixture::values(&read.score),
            fixture::values(&classifier().score)
        );
        fixture::assert_equal(&read.trunk.weights, &classifier().trunk.weights);
    }

    #[test]
    fn a_reward_model_without_its_head_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        save_sequence_classifier(folder.path(), &classifier()).unwrap();
        let path = folder.path().join("model.safetensors");
        save_safetensors(&path, &classifier().trunk.weights).unwrap();
        let error = load_sequence_classifier(folder.path(), &[], &Placement::HOST).unwrap_err();
        assert_eq!(
            error
                .to_string()
                .replace(&*folder.path().to_string_lossy(), "DIR"),
            "DIR/model.safetensors: tensor `score.weight` of shape [1, 8] is missing; the \
             classification head was not saved with the model, and without it every score would be \
             noise"
        );
    }
}
