//! The keys of a configuration: each is used, known to change nothing, or refused.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::activation::Activation;
use crate::ml::formats::FormatError;

/// Keys that every configuration of `transformers` may have and that change no number here.
const WITHOUT_EFFECT: [&str; 65] = [
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    // How the numbers of the file were computed with; they are read as they are, and computed with in `f32`.
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    // The file itself says how many classes there are; their names are read apart.
    "id2label",
    "initializer_range",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    // Of the head that predicts masked tokens, which is not loaded.
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
    // Training drops nothing out.
    "attention_dropout",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "dropout",
    "hidden_dropout_prob",
    "qa_dropout",
    "seq_classif_dropout",
    "layerdrop",
];

/// The object in a file, which notes what was asked of it.
pub(crate) struct Keys<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
    seen: RefCell<BTreeSet<&'a str>>,
}

impl<'a> Keys<'a> {
    pub(crate) fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self {
            path,
            map,
            seen: RefCell::default(),
        }
    }

    /// Returns what a key has; null is as good as absent.
    pub(crate) fn get(&self, key: &'a str) -> Option<&'a Value> {
        self.seen.borrow_mut().insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Says that a key has what it cannot have.
    pub(crate) fn wrong(&self, key: &str, expected: &str, found: &Value) -> FormatError {
        FormatError::malformed(
            self.path,
            format!("key `{key}` is {found}, expected {expected}"),
        )
    }

    /// Takes note of keys that change no number here.
    pub(crate) fn ignore(&self, keys: &[&'a str]) {
        self.seen.borrow_mut().extend(keys);
    }

    /// Accepts a key only if it is absent, null or `accepted`, which is what is computed.
    pub(crate) fn only(&self, key: &'a str, accepted: &Value) -> Result<(), FormatError> {
        match self.get(key) {
            Some(found) if !equal(found, accepted) => Err(FormatError::unsupported(
                self.path,
                format!("`{key}`: {found}"),
                &format!("only {accepted} is"),
            )),
            _ => Ok(()),
        }
    }

    /// Reads a whole number.
    pub(crate) fn size(&self, key: &'a str, default: Option<usize>) -> Result<usize, FormatError> {
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

    /// Reads a whole number that may stand under either of two keys.
    pub(crate) fn size_of(&self, key: &'a str, alias: &'a str) -> Result<usize, FormatError> {
        match (self.get(key), self.get(alias)) {
            (Some(first), Some(second)) if !equal(first, second) => Err(FormatError::malformed(
                self.path,
                format!("keys `{key}` and `{alias}` are one, but are {first} and {second}"),
            )),
            (None, Some(_)) => self.size(alias, None),
            _ => self.size(key, None),
        }
    }

    /// Reads a number.
    pub(crate) fn number(&self, key: &'a str, default: f64) -> Result<f64, FormatError> {
        self.get(key).map_or(Ok(default), |value| {
            let number = value.as_f64();
            number.ok_or_else(|| self.wrong(key, "a number", value))
        })
    }

    /// Reads an activation, the exact GELU if none is named.
    pub(crate) fn activation(&self, key: &'a str) -> Result<Activation, FormatError> {
        let Some(value) = self.get(key) else {
            return Ok(Activation::default());
        };
        let found = value.as_str().and_then(Activation::by_name);
        found.ok_or_else(|| {
            FormatError::unsupported(
                self.path,
                format!("`{key}`: {value}"),
                &format!("{} are", Activation::names()),
            )
        })
    }

    /// Reads the names of the classes, by index; none if the file has none.
    pub(crate) fn labels(&self) -> Result<Vec<String>, FormatError> {
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

    /// Reads true or false.
    pub(crate) fn flag(&self, key: &'a str, default: bool) -> Result<bool, FormatError> {
        self.get(key).map_or(Ok(default), |value| {
            let flag = value.as_bool();
            flag.ok_or_else(|| self.wrong(key, "true or false", value))
        })
    }

    /// Refuses what would make another model of any encoder, and takes note of what changes none.
    pub(crate) fn common(&self) -> Result<(), FormatError> {
        for key in [
            "add_cross_attention",
            "is_decoder",
            "is_encoder_decoder",
            "tie_encoder_decoder",
        ] {
            // A decoder sees earlier tokens only.
            self.only(key, &json!(false))?;
        }
        for key in [
            "auto_map",
            "cross_attention_hidden_size",
            "quantization_config",
        ] {
            self.only(key, &Value::Null)?;
        }
        for (key, accepted) in [
            ("pruned_heads", json!({})),
            ("classifier_pooling", json!("mean")),
        ] {
            self.only(key, &accepted)?;
        }
        self.ignore(&["model_type"]);
        self.ignore(&WITHOUT_EFFECT);
        Ok(())
    }

    /// Refuses every key that nobody asked for: it may change what is computed, and nothing would show it.
    ///
    /// Without a hint the message lists the keys that are known.
    pub(crate) fn finish(self, hint: Option<&str>) -> Result<(), FormatError> {
        let seen = self.seen.into_inner();
        let unknown = self
            .map
            .iter()
            .find(|(key, _)| !seen.contains(key.as_str()));
        unknown.map_or(Ok(()), |(key, value)| {
            let what = format!("the key `{key}` ({value})");
            let known = || format!("{} are", Vec::from_iter(seen).join(", "));
            let hint = hint.map_or_else(known, str::to_owned);
            Err(FormatError::unsupported(self.path, what, &hint))
        })
    }
}

/// Compares values, numbers by value (`1` is `1.0`).
fn equal(left: &Value, right: &Value) -> bool {
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left == right,
        _ => left == right,
    }
}
