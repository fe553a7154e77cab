//! `config.json` of a causal language model.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::FormatError;
use super::json::read_object;
use crate::ml::models::causal::{Architecture, families};
use crate::ml::models::keys::Keys;
use crate::ml::tokenizer::Tokenizer;

/// Keys of `generation_config.json` that change what `transformers` generates.
const GENERATION_KEYS: [&str; 26] = [
    "bad_words_ids",
    "begin_suppress_tokens",
    "do_sample",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "epsilon_cutoff",
    "eta_cutoff",
    "exponential_decay_length_penalty",
    "force_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "guidance_scale",
    "min_length",
    "min_new_tokens",
    "min_p",
    "no_repeat_ngram_size",
    "num_beams",
    "penalty_alpha",
    "repetition_penalty",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// What `config.json` says.
#[derive(Debug, Clone)]
pub(super) struct ModelConfig {
    pub(super) architecture: Architecture,
    /// Ids that end a text.
    pub(super) end_ids: Vec<u32>,
    /// Names of the classes, by index, if the file has them.
    pub(super) labels: Vec<String>,
}

/// Reads and checks `config.json`, but for some keys.
pub(super) fn read_config(path: &Path, ignored: &[String]) -> Result<ModelConfig, FormatError> {
    parse_config(path, &read_object(path)?, ignored)
}

fn parse_config(
    path: &Path,
    map: &Map<String, Value>,
    ignored: &[String],
) -> Result<ModelConfig, FormatError> {
    let architecture = families::read(path, map, ignored)?;
    let mut map = map.clone();
    map.retain(|key, _| !ignored.contains(key));
    let keys = Keys::new(path, &map);
    Ok(ModelConfig {
        architecture,
        end_ids: keys.token_ids("eos_token_id")?,
        labels: keys.labels()?,
    })
}

/// Reads the ids that end a text from `generation_config.json`.
pub(super) fn read_end_ids(path: &Path) -> Result<Vec<u32>, FormatError> {
    Keys::new(path, &read_object(path)?).token_ids("eos_token_id")
}

/// Returns the keys of a folder's `generation_config.json` that ask for other completions than those that a model writes
/// by itself; a key that has the value it has by default asks for nothing.
pub fn generation_wishes(folder: &Path) -> Result<Vec<String>, FormatError> {
    let path = folder.join("generation_config.json");
    if !path.exists() {
        return Ok(Vec::new());
    }
    let asks_nothing = |key: &str, value: &Value| match (key, value) {
        (_, Value::Null) => true,
        (_, Value::Array(list)) => list.is_empty(),
        (_, Value::Object(map)) => map.is_empty(),
        (
            "encoder_repetition_penalty"
            | "guidance_scale"
            | "num_beams"
            | "repetition_penalty"
            | "temperature"
            | "top_p"
            | "typical_p",
            value,
        ) => value.as_f64() == Some(1.0),
        // Zero is a token like others.
        ("forced_bos_token_id" | "forced_eos_token_id", _) => false,
        (_, value) => *value == false || value.as_f64() == Some(0.0),
    };
    let map = read_object(&path)?;
    let wishes = GENERATION_KEYS
        .into_iter()
        .filter(|key| map.get(*key).is_some_and(|value| !asks_nothing(key, value)));
    Ok(wishes.map(str::to_owned).collect())
}

/// Reads the id that the `config.json` of a folder pads with, if there is one and it is not `ignored`.
pub fn padding_id(folder: &Path, ignored: &[String]) -> Result<Option<u32>, FormatError> {
    let path = folder.join("config.json");
    if !path.exists() || ignored.iter().any(|key| key == "pad_token_id") {
        return Ok(None);
    }
    // Some files have -1 for none.
    let id = read_object(&path)?
        .get("pad_token_id")
        .and_then(Value::as_u64);
    Ok(id.and_then(|id| u32::try_from(id).ok()))
}

/// Returns the `config.json` of a half-split model; `labels` makes it a classifier.
pub(super) fn config_document(
    architecture: &Architecture,
    tokenizer: Option<&Tokenizer>,
    labels: Option<&[String]>,
) -> Value {
    let task = match labels {
        Some(_) => "ForSequenceClassification",
        None => architecture.task,
    };
    // One id is written as such, as most files have it.
    let end_ids = match tokenizer.map_or(&[][..], Tokenizer::end_ids) {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    };
    // What classifies reads the last token that is not padding: an end token must not be taken for that.
    let pad_id = tokenizer.and_then(|tokenizer| match labels {
        Some(_) => tokenizer.own_pad_id(),
        None => Some(tokenizer.pad_id()),
    });
    let mut object = architecture.document.clone();
    for (key, value) in [
        (
            "architectures",
            json!([format!("{}{task}", architecture.class)]),
        ),
        ("bos_token_id", json!(tokenizer.and_then(Tokenizer::bos_id))),
        ("eos_token_id", end_ids),
        ("pad_token_id", json!(pad_id)),
        (
            "tie_word_embeddings",
            json!(architecture.tie_word_embeddings),
        ),
        ("torch_dtype", json!("float32")),
    ] {
        object.insert(key.to_owned(), value);
    }
    if let Some(labels) = labels {
        let by_index = |(index, label): (usize, &String)| (index.to_string(), json!(label));
        let by_label = |(index, label): (usize, &String)| (label.clone(), json!(index));
        let id2label: Map<_, _> = labels.iter().enumerate().map(by_index).collect();
        let label2id: Map<_, _> = labels.iter().enumerate().map(by_label).collect();
        object.insert("id2label".to_owned(), id2label.into());
        object.insert("label2id".to_owned(), label2id.into());
    }
    object.into()
}

#[cfg(test)]
mod tests {
    use super::super::super::damage::survives;
    use super::super::super::fixture;
    use super::super::fixture::{edit, error, saved};
    use super::super::json::parse_object;
    use super::super::language_model::{load_hugging_face, load_hugging_face_at};
    use super::*;
    use crate::ml::placement::Placement;

    #[test]
    fn what_a_folder_asks_of_generation_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let wishes = || generation_wishes(folder.path()).unwrap();
        assert!(wishes().is_empty());
        let write = |document: Value| {
            let path = folder.path().join("generation_config.json");
            fs_err::write(path, document.to_string()).unwrap();
        };
        write(json!({
            "bad_words_ids": null, "do_sample": false, "eos_token_id": 2, "min_length": 0, "num_beams": 1,
            "repetition_penalty": 1.0, "sequence_bias": {}, "suppress_tokens": [], "top_k": 0, "top_p": 1,
            "transformers_version": "4.57.6",
        }));
        assert!(wishes().is_empty());
        write(json!({
            "do_sample": true, "forced_eos_token_id": 0, "num_beams": 4, "repetition_penalty": 1.2,
            "suppress_tokens": [3], "temperature": 0.0, "top_p": 0.9,
        }));
        let expected = [
            "do_sample",
            "forced_eos_token_id",
            "num_beams",
            "repetition_penalty",
            "suppress_tokens",
            "temperature",
            "top_p",
        ];
        assert_eq!(wishes(), expected);
    }

    #[test]
    fn damaged_configurations_are_errors() {
        let labels = ["bad".to_owned(), "good".to_owned()];
        let document = config_document(&(&fixture::config()).into(), None, Some(&labels));
        survives(document.to_string().as_bytes(), 3000, |path, bytes| {
            parse_config(path, &parse_object(path, bytes)?, &[])
        });
    }

    #[test]
    fn what_is_not_implemented_is_refused() {
        for (changes, message) in [
            (
                json!({ "rope_scaling": { "rope_type": "longrope", "factor": 8.0 } }),
                "`rope_scaling.type`: \"longrope\" is not supported; default, linear, dynamic, llama3 and yarn are",
            ),
            (
                json!({ "rope_scaling": { "rope_type": "linear" } }),
                "`rope_scaling` of type \"linear\" has no `factor`",
            ),
            (
                json!({ "model_type": "bloom" }),
                "`model_type`: \"bloom\" is not supported; only gemma, gpt2, gpt_neox, llama, mistral, olmo2, opt, \
                 phi3, qwen2, qwen3, smollm3, stablelm, starcoder2 are",
            ),
            (
                json!({ "hidden_act": "mish" }),
                "`hidden_act`: \"mish\" is not supported; silu, gelu, gelu_new, gelu_pytorch_tanh and relu are",
            ),
            (
                json!({ "sliding_window": 4 }),
                "`sliding_window`: 4 is not supported; only null is",
            ),
            (
                json!({ "quantization_config": { "bits": 4 } }),
                "`quantization_config`: {\"bits\":4} is not supported; only null is",
            ),
            (
                json!({ "hidden_size": null }),
                "key `hidden_size` is missing",
            ),
            (
                json!({ "vocab_size": -3 }),
                "key `vocab_size` is -3, expected a whole number",
            ),
            (
                json!({ "num_key_value_heads": 0 }),
                "number of key/value heads is 0, expected 1 to 2147483647",
            ),
        ] {
            let folder = saved(&fixture::config());
            edit(&folder, changes);
            assert_eq!(error(&folder), format!("DIR/config.json: {message}"));
        }
    }

    #[test]
    fn a_key_that_is_ignored_is_not_looked_at_at_all() {
        let folder = saved(&fixture::config());
        let path = folder.path().join("config.json");
        let mut config = read_object(&path).unwrap();
        config.insert("eos_token_id".to_owned(), json!("bogus"));
        config.insert("id2label".to_owned(), json!(3));
        fs_err::write(&path, serde_json::Value::Object(config).to_string()).unwrap();
        assert!(load_hugging_face(folder.path()).is_err());
        let ignored = ["eos_token_id", "id2label"].map(str::to_owned);
        let read = load_hugging_face_at(folder.path(), &ignored, &Placement::HOST).unwrap();
        assert_eq!(read.config.num_layers, 2);
    }

    #[test]
    fn new_spellings_of_the_rotary_base_are_read() {
        let folder = saved(&fixture::config());
        let parameters = json!({ "rope_type": "default", "rope_theta": 500.0 });
        edit(
            &folder,
            json!({ "rope_theta": null, "rope_parameters": parameters }),
        );
        let checkpoint = load_hugging_face(folder.path()).unwrap();
        assert_eq!(checkpoint.config.rotary().unwrap().theta, 500.0);
    }
}
