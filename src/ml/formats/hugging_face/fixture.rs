//! Folders of a tiny model, for tests.

use serde_json::Value;
use tempfile::TempDir;

use super::super::Checkpoint;
use super::super::fixture;
use super::classifier::SequenceClassifier;
use super::language_model::{load_hugging_face, save_hugging_face};
use crate::ml::models::causal::LlamaConfig;
use crate::ml::tokenizer::{Tokenizer, TokenizerAlgorithm, train_tokenizer};

pub(super) fn tokenizer() -> Tokenizer {
    let text = "how do i sort a list ?";
    train_tokenizer(TokenizerAlgorithm::WordLevel, [text], 24, &[]).unwrap()
}

/// A language model, written.
pub(super) fn saved(config: &LlamaConfig) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let weights = fixture::weights(config);
    save_hugging_face(folder.path(), config, &weights, Some(&tokenizer())).unwrap();
    folder
}

/// Changes keys of a saved `config.json`.
pub(super) fn edit(folder: &TempDir, changes: Value) {
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    fs_err::write(&path, config.to_string()).unwrap();
}

/// What loading the folder as a language model fails with; the folder is `DIR`.
pub(super) fn error(folder: &TempDir) -> String {
    let error = load_hugging_face(folder.path()).unwrap_err().to_string();
    error.replace(&*folder.path().to_string_lossy(), "DIR")
}

/// A reward model without a tokenizer.
pub(super) fn classifier() -> SequenceClassifier {
    let config = LlamaConfig {
        tie_word_embeddings: false,
        ..fixture::config()
    };
    let mut weights = fixture::weights(&config);
    weights.remove("lm_head.weight");
    let score = weights["model.layers.0.self_attn.q_proj.weight"].narrow(0, 0, 1);
    SequenceClassifier {
        trunk: Checkpoint {
            config: config.into(),
            weights,
            tokenizer: None,
            eos_ids: Vec::new(),
            added_rows: 0,
        },
        score: score.unwrap(),
        labels: Vec::new(),
    }
}
