//! What language models and classifiers share: the folder, its tokenizer, and the weights below the head.

use std::path::Path;

use candle_core::Tensor;
use serde_json::Value;

use super::super::safetensors::{SafetensorsFiles, save_safetensors};
use super::super::tensors::{TensorSource, turn};
use super::super::{Checkpoint, FormatError, to_half_split};
use super::config::{config_document, read_end_ids};
use super::json::{read_object, write_json};
use super::vocabulary::make_room;
use crate::ml::models::causal::Architecture;
use crate::ml::parameters::Weights;
use crate::ml::tokenizer::Tokenizer;

/// Weight of a classifier's head.
pub(super) const SCORE: &str = "score.weight";

/// Safetensors files of a model, with or without what a language model puts before the names of its trunk.
pub(super) struct TrunkFiles {
    files: SafetensorsFiles,
    trunk: &'static str,
    pub(super) is_bare: bool,
}

impl TrunkFiles {
    pub(super) fn open(folder: &Path, architecture: &Architecture) -> Result<Self, FormatError> {
        let files = SafetensorsFiles::open_model(folder)?;
        let has = |name: &str| files.shape(name).is_some();
        let (embedding, trunk) = (architecture.embedding_name(), architecture.names.trunk);
        let is_bare = !has(&embedding) && embedding.strip_prefix(trunk).is_some_and(has);
        Ok(Self {
            files,
            trunk,
            is_bare,
        })
    }
}

impl TensorSource for TrunkFiles {
    fn path(&self) -> &Path {
        self.files.path()
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.files.names()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.files.shape(name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        self.files.read(name)
    }

    fn stored_name(&self, name: &str) -> String {
        let bare = name.strip_prefix(self.trunk).filter(|_| self.is_bare);
        bare.unwrap_or(name).to_owned()
    }
}

/// Says so if a folder holds an adapter and not the model that it belongs to.
pub(super) fn refuse_lone_adapter(folder: &Path, config_path: &Path) -> Result<(), FormatError> {
    let adapter_path = folder.join("adapter_config.json");
    if config_path.exists() || !adapter_path.exists() {
        return Ok(());
    }
    let adapter = read_object(&adapter_path)?;
    let base = adapter
        .get("base_model_name_or_path")
        .and_then(Value::as_str);
    let base = base.map_or_else(
        || "the model it was trained on".to_owned(),
        |name| format!("`{name}`"),
    );
    Err(FormatError::malformed(
        folder,
        format!(
            "it holds an adapter and no model; load {base} first and give it at the port `base`"
        ),
    ))
}

/// Old checkpoints carry rotary frequencies and causal masks, which follow from the configuration.
pub(super) fn is_buffer(name: &str) -> bool {
    [
        ".rotary_emb.inv_freq",
        ".attn.bias",
        ".attn.masked_bias",
        ".attention.bias",
        ".attention.masked_bias",
    ]
    .iter()
    .any(|end| name.ends_with(end))
}

/// Adds the tokenizer, with rows for all of its tokens, and all ids that end a text: the tokenizer's own, and those that `transformers` stops at, which
/// are `generation_config.json`'s if it names any and `config.json`'s otherwise.
pub(super) fn checkpoint(
    folder: &Path,
    mut config: Architecture,
    mut end_ids: Vec<u32>,
    mut weights: Weights,
) -> Result<Checkpoint, FormatError> {
    let mut ends_path = folder.join("config.json");
    let generation_path = folder.join("generation_config.json");
    if generation_path.exists() {
        let stated = read_end_ids(&generation_path)?;
        if !stated.is_empty() {
            (end_ids, ends_path) = (stated, generation_path);
        }
    }
    let mut added_rows = 0;
    let mut tokenizer = None;
    if let Some(path) = Tokenizer::file(folder) {
        let loaded = Tokenizer::load(folder).map_err(FormatError::tokenizer(&path))?;
        if let (_, [id, ..]) = loaded.surroundings() {
            let token = loaded.id_to_token(*id).unwrap_or_default();
            return Err(FormatError::unsupported(
                &path,
                format!("`{token}` after every text, prompts too,"),
                "set `add_eos_token` to false, or take it out of the `post_processor`",
            ));
        }
        added_rows = make_room(&path, &mut config, &mut weights, loaded.vocab_size())?;
        tokenizer = Some(loaded.with_end_ids(&end_ids));
    }
    let vocab_size = config.vocab_size;
    if let Some(id) = end_ids.iter().find(|id| **id as usize >= vocab_size) {
        return Err(FormatError::malformed(
            &ends_path,
            format!(
                "key `eos_token_id` names {id}, expected ids below the model's `vocab_size` of {vocab_size}"
            ),
        ));
    }
    if let Some(tokenizer) = &tokenizer {
        end_ids = tokenizer.end_ids().to_vec();
    }
    Ok(Checkpoint {
        config,
        weights,
        tokenizer,
        eos_ids: end_ids,
        added_rows,
    })
}

/// Writes a model, and the `head` of a classifier with the names of its classes.
pub(super) fn save(
    folder: &Path,
    config: &Architecture,
    weights: &Weights,
    tokenizer: Option<&Tokenizer>,
    head: Option<(&Tensor, &[String])>,
) -> Result<(), FormatError> {
    let (config, mut weights) = to_half_split(config, weights)?;
    turn(&mut weights, &config).map_err(FormatError::tensor(folder))?;
    if let Some((score, _)) = head {
        weights.insert(SCORE.to_owned(), score.clone());
    }
    fs_err::create_dir_all(folder)?;
    save_safetensors(&folder.join("model.safetensors"), &weights)?;
    let document = config_document(&config, tokenizer, head.map(|(_, labels)| labels));
    write_json(&folder.join("config.json"), &document)?;
    if let Some(tokenizer) = tokenizer {
        tokenizer
            .save(folder)
            .map_err(FormatError::tokenizer(folder))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use serde_json::json;
    use tempfile::TempDir;

    use super::super::super::fixture;
    use super::super::super::safetensors::load_safetensors;
    use super::super::fixture::{edit, error, saved};
    use super::super::language_model::{load_hugging_face, save_hugging_face};
    use super::*;
    use crate::ml::models::causal::LlamaConfig;

    #[test]
    fn every_id_that_ends_a_text_is_read_and_written() {
        let folder = saved(&fixture::config());
        let ids = |folder: &TempDir| load_hugging_face(folder.path()).unwrap().eos_ids;
        assert_eq!(ids(&folder), [2]);
        edit(&folder, json!({ "eos_token_id": [3, 2, 5] }));
        assert_eq!(ids(&folder), [2, 3, 5]);
        let copy = tempfile::tempdir().unwrap();
        let read = load_hugging_face(folder.path()).unwrap();
        let tokenizer = read.tokenizer.as_ref();
        save_hugging_face(copy.path(), &read.config, &read.weights, tokenizer).unwrap();
        assert_eq!(ids(&copy), [2, 3, 5]);
        // What `transformers` generates with takes precedence over the model.
        let generation = folder.path().join("generation_config.json");
        fs_err::write(&generation, r#"{ "eos_token_id": 4 }"#).unwrap();
        assert_eq!(ids(&folder), [2, 4]);
        fs_err::write(&generation, r#"{ "temperature": 0.6 }"#).unwrap();
        assert_eq!(ids(&folder), [2, 3, 5]);
        edit(&folder, json!({ "eos_token_id": 24 }));
        assert_eq!(
            error(&folder),
            "DIR/config.json: key `eos_token_id` names 24, expected ids below the model's `vocab_size` of 24"
        );
        // A tokenizer that names none.
        edit(&folder, json!({ "eos_token_id": 3 }));
        let settings = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "" });
        fs_err::write(
            folder.path().join("tokenizer_config.json"),
            settings.to_string(),
        )
        .unwrap();
        assert_eq!(ids(&folder), [3]);
    }

    #[test]
    fn a_bare_trunk_is_a_model_if_its_embedding_is_its_head() {
        for tied in [true, false] {
            let config = LlamaConfig {
                tie_word_embeddings: tied,
                ..fixture::config()
            };
            let folder = saved(&config);
            let path = folder.path().join("model.safetensors");
            let weights = load_safetensors(&path).unwrap();
            let bare = weights
                .into_iter()
                .filter_map(|(name, tensor)| {
                    Some((name.strip_prefix("model.")?.to_owned(), tensor))
                })
                .collect();
            save_safetensors(&path, &bare).unwrap();
            if tied {
                let read = load_hugging_face(folder.path()).unwrap();
                fixture::assert_equal(&read.weights, &fixture::weights(&config));
            } else {
                assert_eq!(
                    error(&folder),
                    "DIR/model.safetensors: tensor `lm_head.weight` of shape [24, 8] is missing; \
                     the folder holds a bare `LlamaModel`, which has no output head: save the \
                     `LlamaForCausalLM` that it is part of"
                );
            }
        }
    }

    #[test]
    fn a_tokenizer_that_ends_every_text_is_refused() {
        let folder = saved(&fixture::config());
        let settings = json!({
            "tokenizer_class": "LlamaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "add_eos_token": true,
        });
        fs_err::write(
            folder.path().join("tokenizer_config.json"),
            settings.to_string(),
        )
        .unwrap();
        assert_eq!(
            error(&folder),
            "DIR/tokenizer.json: `<eos>` after every text, prompts too, is not supported; set \
             `add_eos_token` to false, or take it out of the `post_processor`"
        );
    }

    #[test]
    fn missing_extra_and_misshaped_tensors_are_named() {
        let with = |change: &dyn Fn(&mut Weights)| {
            let folder = saved(&fixture::config());
            let path = folder.path().join("model.safetensors");
            let mut weights = load_safetensors(&path).unwrap();
            change(&mut weights);
            save_safetensors(&path, &weights).unwrap();
            error(&folder)
        };
        let norm = |weights: &Weights| weights["model.norm.weight"].clone();
        assert_eq!(
            with(&|weights| {
                weights.remove("model.layers.1.mlp.up_proj.weight");
            }),
            "DIR/model.safetensors: tensor `model.layers.1.mlp.up_proj.weight` of shape [12, 8] is \
             missing"
        );
        assert_eq!(
            with(&|weights| {
                weights.insert("model.layers.0.self_attn.q_proj.bias".into(), norm(weights));
            }),
            "DIR/model.safetensors: unexpected tensor `model.layers.0.self_attn.q_proj.bias` of \
             shape [8]; the configuration has no place for it"
        );
        assert_eq!(
            with(&|weights| {
                weights.insert(
                    "model.layers.0.self_attn.q_proj.weight".into(),
                    norm(weights),
                );
            }),
            "DIR/model.safetensors: tensor `model.layers.0.self_attn.q_proj.weight` has shape [8], \
             expected [8, 8]"
        );
        assert_eq!(
            with(&|weights| {
                let mut values = vec![1f32; 8];
                values[3] = f32::NAN;
                let norm = Tensor::new(values, &Device::Cpu).unwrap();
                weights.insert("model.norm.weight".into(), norm);
            }),
            "DIR/model.safetensors: tensor `model.norm.weight` holds NaN at place 3 of 8, expected finite numbers alone; \
             the training that wrote it may have diverged"
        );
        assert_eq!(
            with(&|weights| {
                let other = weights["model.embed_tokens.weight"]
                    .affine(1.0, 1.0)
                    .unwrap();
                weights.insert("lm_head.weight".into(), other);
            }),
            "DIR/model.safetensors: `lm_head.weight` differs from `model.embed_tokens.weight` \
             although `tie_word_embeddings` is true"
        );
    }

    /// Splits a saved model into two shards with an index.
    fn sharded() -> TempDir {
        let folder = saved(&fixture::config());
        let single = folder.path().join("model.safetensors");
        let weights = load_safetensors(&single).unwrap();
        fs_err::remove_file(&single).unwrap();
        let in_first = |name: &str| name.contains("layers.0");
        let (first, second): (Weights, Weights) =
            weights.into_iter().partition(|(name, _)| in_first(name));
        let mut map = json!({});
        for (shard, weights) in [("one.safetensors", first), ("two.safetensors", second)] {
            save_safetensors(&folder.path().join(shard), &weights).unwrap();
            for name in weights.keys() {
                map[name] = json!(shard);
            }
        }
        write_index(&folder, &map);
        folder
    }

    fn write_index(folder: &TempDir, map: &Value) {
        let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
        let path = folder.path().join("model.safetensors.index.json");
        fs_err::write(path, index.to_string()).unwrap();
    }

    #[test]
    fn shards_are_one_model() {
        let folder = sharded();
        let checkpoint = load_hugging_face(folder.path()).unwrap();
        fixture::assert_equal(&checkpoint.weights, &fixture::weights(&fixture::config()));
    }

    #[test]
    fn an_index_may_not_lie_or_leave_its_folder() {
        let folder = sharded();
        write_index(&folder, &json!({ "model.norm.weight": "one.safetensors" }));
        assert_eq!(
            error(&folder),
            "DIR/model.safetensors.index.json: tensor `model.norm.weight` is not in \
             `one.safetensors`"
        );
        write_index(&folder, &json!({ "x": "../secret.safetensors" }));
        assert_eq!(
            error(&folder),
            "DIR/model.safetensors.index.json: shard `../secret.safetensors` is not a plain file \
             name"
        );
        fs_err::remove_file(folder.path().join("two.safetensors")).unwrap();
        write_index(&folder, &json!({ "x": "two.safetensors" }));
        assert!(
            error(&folder).contains("DIR/two.safetensors"),
            "{}",
            error(&folder)
        );
    }
}
