//! Language models in Hugging Face folders.

use std::path::Path;

use super::super::tensors::{TensorSource, load_model};
use super::super::{Checkpoint, FormatError};
use super::config::read_config;
use super::trunk::{SCORE, TrunkFiles, checkpoint, is_buffer, refuse_lone_adapter, save};
use crate::ml::models::causal::Architecture;
use crate::ml::parameters::Weights;
use crate::ml::placement::Placement;
use crate::ml::tokenizer::Tokenizer;

/// Loads a language model of any of the [families](crate::ml::models::causal::families) from a folder.
///
/// The folder holds `config.json`, `model.safetensors` or the shards of `model.safetensors.index.json`, and
/// optionally `tokenizer.json` (or SentencePiece's `tokenizer.model`) with `tokenizer_config.json`. An adapter beside them is not looked at.
pub fn load_hugging_face(folder: &Path) -> Result<Checkpoint, FormatError> {
    load_hugging_face_at(folder, &[], &Placement::HOST)
}

/// As [`load_hugging_face`], without looking at some keys of `config.json`, with the weights where they are wanted.
pub fn load_hugging_face_at(
    folder: &Path,
    ignored: &[String],
    placement: &Placement,
) -> Result<Checkpoint, FormatError> {
    let config_path = folder.join("config.json");
    refuse_lone_adapter(folder, &config_path)?;
    let config = read_config(&config_path, ignored)?;
    let files = TrunkFiles::open(folder, &config.architecture)?;
    // That of a classifier's adapter, beside it, stands among the base's weights too.
    let is_adapted = folder.join("adapter_config.json").exists();
    if files.shape(SCORE).is_some() && !is_adapted {
        return Err(FormatError::unsupported(
            files.path(),
            format!("the head `{SCORE}` of a classifier in place of a language model's"),
            "a reward model is read by `load_reward`",
        ));
    }
    let architecture = config.architecture;
    let Architecture { class, task, .. } = architecture;
    let tied = architecture.tie_word_embeddings;
    let head = architecture.head_name();
    if !tied && files.is_bare && files.shape(&head).is_none() {
        return Err(FormatError::MissingTensor {
            path: files.path().to_owned(),
            name: head,
            expected: vec![architecture.vocab_size, architecture.embedding_size],
            hint: format!(
                "; the folder holds a bare `{class}Model`, which has no output head: save the \
                 `{class}{task}` that it is part of"
            ),
        });
    }
    let weights = load_model(&files, &architecture, placement, |name| {
        is_buffer(name) || (tied && name == head) || (is_adapted && name == SCORE)
    })?;
    if tied && files.shape(&head).is_some() {
        check_tied(&files, &architecture)?;
    }
    checkpoint(folder, architecture, config.end_ids, weights)
}

/// A tied model may store its head again, but only the same one.
fn check_tied(files: &TrunkFiles, architecture: &Architecture) -> Result<(), FormatError> {
    let (head, embedding) = (architecture.head_name(), architecture.embedding_name());
    let bits = |values: Vec<f32>| -> Vec<u32> { values.into_iter().map(f32::to_bits).collect() };
    if bits(files.read(&head)?) == bits(files.read(&files.stored_name(&embedding))?) {
        return Ok(());
    }
    Err(FormatError::malformed(
        files.path(),
        format!("`{head}` differs from `{embedding}` although `tie_word_embeddings` is true"),
    ))
}

/// Writes a language model as `config.json`, `model.safetensors` and, if given, the tokenizer's two files.
///
/// The folder can be opened by `transformers`: interleaved rotary pairs are reordered. Equal models give
/// equal bytes.
pub fn save_hugging_face(
    folder: &Path,
    config: impl Into<Architecture>,
    weights: &Weights,
    tokenizer: Option<&Tokenizer>,
) -> Result<(), FormatError> {
    save(folder, &config.into(), weights, tokenizer, None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::fixture;
    use super::super::super::safetensors::{load_safetensors, save_safetensors};
    use super::super::classifier::save_sequence_classifier;
    use super::super::fixture::{classifier, error, saved, tokenizer};
    use super::*;
    use crate::ml::kernels::rope::RopeLayout;
    use crate::ml::models::causal::LlamaConfig;

    #[test]
    fn a_saved_model_is_read_back_bit_for_bit() {
        for tied in [true, false] {
            let config = LlamaConfig {
                tie_word_embeddings: tied,
                ..fixture::config()
            };
            let checkpoint = load_hugging_face(saved(&config).path()).unwrap();
            assert_eq!(checkpoint.config, (&config).into());
            fixture::assert_equal(&checkpoint.weights, &fixture::weights(&config));
            assert_eq!(checkpoint.eos_ids, [2]);
            let read = checkpoint.tokenizer.unwrap();
            assert_eq!(read.to_json().unwrap(), tokenizer().to_json().unwrap());
            assert_eq!(read.special_tokens(), tokenizer().special_tokens());
            assert_eq!(read.surroundings().0, [1]);
        }
    }

    #[test]
    fn interleaved_pairs_are_reordered_for_transformers() {
        let config = LlamaConfig {
            rope_layout: RopeLayout::Interleaved,
            ..fixture::config()
        };
        let checkpoint = load_hugging_face(saved(&config).path()).unwrap();
        let rotary = checkpoint.config.rotary().unwrap();
        assert_eq!(rotary.layout, RopeLayout::HalfSplit);
        let name = "model.layers.1.self_attn.k_proj.weight";
        let rows = |weights: &Weights| weights[name].to_vec2::<f32>().unwrap();
        let before = rows(&fixture::weights(&config));
        let expected: Vec<_> = [0, 2, 1, 3].map(|row| before[row].clone()).to_vec();
        assert_eq!(rows(&checkpoint.weights), expected);
    }

    #[test]
    fn folders_of_another_kind_say_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let adapter = json!({ "base_model_name_or_path": "some/base" });
        fs_err::write(
            folder.path().join("adapter_config.json"),
            adapter.to_string(),
        )
        .unwrap();
        assert_eq!(
            error(&folder),
            "DIR: it holds an adapter and no model; load `some/base` first and give it at the port \
             `base`"
        );
        let folder = tempfile::tempdir().unwrap();
        save_sequence_classifier(folder.path(), &classifier()).unwrap();
        assert_eq!(
            error(&folder),
            "DIR/model.safetensors: the head `score.weight` of a classifier in place of a language \
             model's is not supported; a reward model is read by `load_reward`"
        );
    }

    #[test]
    fn a_tied_head_and_rotary_buffers_may_be_stored_again() {
        let folder = saved(&fixture::config());
        let path = folder.path().join("model.safetensors");
        let mut weights = load_safetensors(&path).unwrap();
        let copy = weights["model.embed_tokens.weight"].clone();
        weights.insert("lm_head.weight".to_owned(), copy);
        let buffer = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
        weights.insert(buffer, weights["model.norm.weight"].clone());
        save_safetensors(&path, &weights).unwrap();
        let checkpoint = load_hugging_face(folder.path()).unwrap();
        fixture::assert_equal(&checkpoint.weights, &fixture::weights(&fixture::config()));
    }
}
