//! `config.json` of a LLaMA model.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::FormatError;
use super::super::shapes::check_config;
use crate::ml::config::{LlamaConfig, RopeLayout};
use crate::ml::documents::read_configuration;
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
    pub(super) llama: LlamaConfig,
    /// Ids that end a text.
    pub(super) end_ids: Vec<u32>,
    /// Names of the classes, by index, if the file has them.
    pub(super) labels: Vec<String>,
}

/// Reads a JSON object from a file.
pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>, FormatError> {
    parse_object(path, &read_configuration(path)?)
}

pub(super) fn parse_object(path: &Path, bytes: &[u8]) -> Result<Map<String, Value>, FormatError> {
    serde_json::from_slice(bytes).map_err(|error| FormatError::malformed(path, error.to_string()))
}

/// Reads and checks `config.json`.
///
/// Defaults are those of `transformers.LlamaConfig`, which also ignores keys that it does not know; each key
/// that it knows and that changes the computation is either implemented or an error.
pub(super) fn read_config(path: &Path) -> Result<ModelConfig, FormatError> {
    parse_config(path, &read_object(path)?)
}

fn parse_config(path: &Path, map: &Map<String, Value>) -> Result<ModelConfig, FormatError> {
    let object = Object { path, map };
    object.only("model_type", &json!("llama"))?;
    if !object.map.contains_key("model_type") {
        return Err(FormatError::malformed(path, "key `model_type` is missing"));
    }
    for (key, value) in [
        ("hidden_act", json!("silu")),
        ("attention_bias", json!(false)),
        ("mlp_bias", json!(false)),
        ("partial_rotary_factor", json!(1.0)),
        ("rope_interleaved", json!(false)),
    ] {
        object.only(key, &value)?;
    }
    for key in ["quantization_config", "sliding_window"] {
        object.only(key, &Value::Null)?;
    }

    let num_heads = object.size("num_attention_heads", None)?;
    let llama = LlamaConfig {
        vocab_size: object.size("vocab_size", None)?,
        hidden_size: object.size("hidden_size", None)?,
        intermediate_size: object.size("intermediate_size", None)?,
        num_layers: object.size("num_hidden_layers", None)?,
        num_heads,
        num_kv_heads: object.size("num_key_value_heads", Some(num_heads))?,
        rope_theta: object.rope_theta()?,
        rope_layout: RopeLayout::HalfSplit,
        rms_norm_eps: object.number("rms_norm_eps", 1e-6)?,
        tie_word_embeddings: object.flag("tie_word_embeddings", false)?,
        max_position_embeddings: object.size("max_position_embeddings", Some(2048))?,
    };
    check_config(path, &llama)?;
    let head_size = object.size("head_dim", Some(llama.head_size()))?;
    if head_size != llama.head_size() {
        return Err(FormatError::unsupported(
            path,
            format!("`head_dim` {head_size}"),
            &format!(
                "only hidden_size / num_attention_heads = {} is",
                llama.head_size()
            ),
        ));
    }
    Ok(ModelConfig {
        llama,
        end_ids: object.ids("eos_token_id")?,
        labels: object.labels()?,
    })
}

/// Reads the ids that end a text from `generation_config.json`.
pub(super) fn read_end_ids(path: &Path) -> Result<Vec<u32>, FormatError> {
    Object::new(path, &read_object(path)?).ids("eos_token_id")
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

/// Reads the id that the `config.json` of a folder pads with, if there is one.
pub fn padding_id(folder: &Path) -> Result<Option<u32>, FormatError> {
    let path = folder.join("config.json");
    if !path.exists() {
        return Ok(None);
    }
    // Some files have -1 for none.
    let id = read_object(&path)?
        .get("pad_token_id")
        .and_then(Value::as_u64);
    Ok(id.and_then(|id| u32::try_from(id).ok()))
}

/// A JSON object that knows the file it came from.
pub(super) struct Object<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
}

impl<'a> Object<'a> {
    pub(super) fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { path, map }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> FormatError {
        FormatError::malformed(
            self.path,
            format!("key `{key}` is {found}, expected {expected}"),
        )
    }

    /// Accepts the key only if it is absent, null or `accepted`.
    pub(super) fn only(&self, key: &str, accepted: &Value) -> Result<(), FormatError> {
        match self.get(key) {
            Some(found) if !equal(found, accepted) => Err(FormatError::unsupported(
                self.path,
                format!("`{key}`: {found}"),
                &format!("only {accepted} is"),
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn size(&self, key: &str, default: Option<usize>) -> Result<usize, FormatError> {
        match (self.get(key), default) {
            (Some(value), _) => value
                .as_u64()
                .and_then(|size| usize::try_from(size).ok())
                .ok_or_else(|| self.wrong(key, "a whole number", value)),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(FormatError::malformed(
                self.path,
                format!("key `{key}` is missing"),
            )),
        }
    }

    pub(super) fn number(&self, key: &str, default: f64) -> Result<f64, FormatError> {
        self.get(key).map_or(Ok(default), |value| {
            value
                .as_f64()
                .ok_or_else(|| self.wrong(key, "a number", value))
        })
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, FormatError> {
        self.get(key).map_or(Ok(default), |value| {
            value
                .as_bool()
                .ok_or_else(|| self.wrong(key, "true or false", value))
        })
    }

    /// Reads one id or a list of ids.
    fn ids(&self, key: &str) -> Result<Vec<u32>, FormatError> {
        let Some(value) = self.get(key) else {
            return Ok(Vec::new());
        };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match value.as_array() {
            Some(list) => list.iter().map(id).collect::<Option<Vec<_>>>(),
            None => id(value).map(|id| vec![id]),
        }
        .ok_or_else(|| self.wrong(key, "a token id or a list of them", value))
    }

    /// Reads the rotary base, in the key's old and new place, and refuses every scaling of it.
    fn rope_theta(&self) -> Result<f64, FormatError> {
        let mut theta = self.number("rope_theta", 10_000.0)?;
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(value) = self.get(key) else { continue };
            let map = value
                .as_object()
                .ok_or_else(|| self.wrong(key, "an object", value))?;
            let inner = Object {
                path: self.path,
                map,
            };
            let kind = inner.get("rope_type").or(inner.get("type"));
            if kind.is_some_and(|kind| kind != "default") || inner.get("factor").is_some() {
                return Err(FormatError::unsupported(
                    self.path,
                    format!("`{key}`: {value}"),
                    "only unscaled rotary embeddings are",
                ));
            }
            inner.only("partial_rotary_factor", &json!(1.0))?;
            theta = inner.number("rope_theta", theta)?;
        }
        Ok(theta)
    }

    /// Reads `id2label`: class names by index.
    pub(super) fn labels(&self) -> Result<Vec<String>, FormatError> {
        let Some(value) = self.get("id2label") else {
            return Ok(Vec::new());
        };
        let wrong = || self.wrong("id2label", "names for the classes 0, 1, 2, ...", value);
        let names = value.as_object().ok_or_else(wrong)?;
        (0..names.len())
            .map(|index| {
                let name = names.get(&index.to_string()).and_then(Value::as_str);
                name.map(str::to_owned).ok_or_else(wrong)
            })
            .collect()
    }
}

/// Compares values, numbers by value (`1` is `1.0`).
fn equal(left: &Value, right: &Value) -> bool {
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left == right,
        _ => left == right,
    }
}

/// Returns the `config.json` of a half-split model; `labels` makes it a classifier.
pub(super) fn config_document(
    config: &LlamaConfig,
    tokenizer: Option<&Tokenizer>,
    labels: Option<&[String]>,
) -> Value {
    let architecture = if labels.is_some() {
        "LlamaForSequenceClassification"
    } else {
        "LlamaForCausalLM"
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
    let mut document = json!({
        "architectures": [architecture],
        "attention_bias": false,
        "bos_token_id": tokenizer.and_then(Tokenizer::bos_id),
        "eos_token_id": end_ids,
        "head_dim": config.head_size(),
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.num_kv_heads,
        "pad_token_id": pad_id,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": null,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": "float32",
        "vocab_size": config.vocab_size,
    });
    if let (Some(labels), Some(object)) = (labels, document.as_object_mut()) {
        let by_index = |(index, label): (usize, &String)| (index.to_string(), json!(label));
        let by_label = |(index, label): (usize, &String)| (label.clone(), json!(index));
        let id2label: Map<_, _> = labels.iter().enumerate().map(by_index).collect();
        let label2id: Map<_, _> = labels.iter().enumerate().map(by_label).collect();
        object.insert("id2label".to_owned(), id2label.into());
        object.insert("label2id".to_owned(), label2id.into());
    }
    document
}

#[cfg(test)]
mod tests {
    use super::super::super::damage::survives;
    use super::super::super::fixture;
    use super::*;

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
        let document = config_document(&fixture::config(), None, Some(&labels));
        survives(document.to_string().as_bytes(), 3000, |path, bytes| {
            parse_config(path, &parse_object(path, bytes)?)
        });
    }
}
