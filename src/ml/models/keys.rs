//! The keys of a configuration: each is used, known to change nothing, or refused.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::ml::formats::FormatError;

/// Keys that change no number of a forward pass in 32-bit floats, whatever the model: names, ids, what training or
/// generation does. How the numbers of the file were computed with (`dtype`) is one: they are read as they are.
const WITHOUT_EFFECT: &str = "architectures attention_dropout attn_implementation attn_pdrop begin_suppress_tokens \
    bos_token_id chunk_size_feed_forward classifier_dropout decoder_start_token_id dtype embd_pdrop eos_token_id \
    finetuning_task gradient_checkpointing hidden_dropout id2label initializer_range label2id model_type \
    num_labels output_attentions output_hidden_states output_past pad_token_id prefix problem_type resid_pdrop return_dict \
    sep_token_id task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript transformers_version \
    unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache _attn_implementation _attn_implementation_autoset \
    _name_or_path bad_words_ids diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size \
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length \
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values \
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p";

/// Takes keys out of a configuration that are not to be looked at.
pub(crate) fn ignore(
    path: &Path,
    map: &mut Map<String, Value>,
    ignored: &[String],
) -> Result<(), FormatError> {
    for key in ignored {
        if map.remove(key).is_none() {
            return Err(FormatError::malformed(
                path,
                format!("there is no key `{key}`, which `ignore_config` names"),
            ));
        }
    }
    Ok(())
}

/// Keys that ask for another computation than any that is here, with the values at which they ask for nothing.
fn harmless(key: &str) -> Option<Value> {
    Some(match key {
        "quantization_config" | "cross_attention_hidden_size" => Value::Null,
        "is_decoder" | "add_cross_attention" | "is_encoder_decoder" | "tie_encoder_decoder" => {
            json!(false)
        }
        "pruned_heads" => json!({}),
        _ => return None,
    })
}

/// A JSON object that knows the file it came from, and what was asked of it.
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

    /// Returns a value that is not null.
    pub(crate) fn get(&self, key: &'a str) -> Option<&'a Value> {
        self.seen.borrow_mut().insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Tells whether a key is there and null.
    pub(crate) fn is_null(&self, key: &'a str) -> bool {
        self.seen.borrow_mut().insert(key);
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// Says that some keys change nothing here.
    pub(crate) fn ignore(&self, keys: &[&'a str]) {
        self.seen.borrow_mut().extend(keys);
    }

    pub(crate) fn malformed(&self, reason: String) -> FormatError {
        FormatError::malformed(self.path, reason)
    }

    pub(crate) fn unsupported(&self, key: &str, value: &Value, hint: &str) -> FormatError {
        FormatError::unsupported(self.path, format!("`{key}`: {value}"), hint)
    }

    fn missing(&self, key: &str) -> FormatError {
        self.malformed(format!("key `{key}` is missing"))
    }

    /// Says that a key has what it cannot have.
    pub(crate) fn wrong(&self, key: &str, expected: &str, found: &Value) -> FormatError {
        self.malformed(format!("key `{key}` is {found}, expected {expected}"))
    }

    /// Accepts the key only if it is absent, null or `accepted`.
    pub(crate) fn only(&self, key: &'a str, accepted: &Value) -> Result<(), FormatError> {
        match self.get(key) {
            Some(found) if !equal(found, accepted) => {
                Err(self.unsupported(key, found, &format!("only {accepted} is")))
            }
            _ => Ok(()),
        }
    }

    fn read<T>(
        &self,
        key: &'a str,
        expected: &str,
        parse: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FormatError> {
        let value = self.get(key);
        value
            .map(|value| parse(value).ok_or_else(|| self.wrong(key, expected, value)))
            .transpose()
    }

    /// Reads a whole number, if it is there.
    pub(crate) fn find_size(&self, key: &'a str) -> Result<Option<usize>, FormatError> {
        self.read(key, "a whole number", |value| {
            value.as_u64().and_then(|size| usize::try_from(size).ok())
        })
    }

    /// Reads a whole number that must be there.
    pub(crate) fn size(&self, key: &'a str) -> Result<usize, FormatError> {
        self.find_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// Reads a whole number, or takes the one that is meant where there is none.
    pub(crate) fn size_or(&self, key: &'a str, default: usize) -> Result<usize, FormatError> {
        Ok(self.find_size(key)?.unwrap_or(default))
    }

    /// Reads a whole number that may stand under either of two keys.
    pub(crate) fn size_of(&self, [key, alias]: [&'a str; 2]) -> Result<usize, FormatError> {
        match (self.find_size(key)?, self.find_size(alias)?) {
            (Some(first), Some(second)) if first != second => Err(self.malformed(format!(
                "keys `{key}` and `{alias}` are one, but are {first} and {second}"
            ))),
            (Some(size), _) | (None, Some(size)) => Ok(size),
            (None, None) => Err(self.missing(key)),
        }
    }

    pub(crate) fn find_number(&self, key: &'a str) -> Result<Option<f64>, FormatError> {
        self.read(key, "a number", Value::as_f64)
    }

    pub(crate) fn number(&self, key: &'a str, default: f64) -> Result<f64, FormatError> {
        Ok(self.find_number(key)?.unwrap_or(default))
    }

    /// Reads a number from 0 to 1.
    pub(crate) fn share(&self, key: &'a str, default: f64) -> Result<f64, FormatError> {
        match self.get(key) {
            Some(value) if !(0.0..=1.0).contains(&value.as_f64().unwrap_or(-1.0)) => {
                Err(self.wrong(key, "a number from 0 to 1", value))
            }
            _ => self.number(key, default),
        }
    }

    pub(crate) fn flag(&self, key: &'a str, default: bool) -> Result<bool, FormatError> {
        let flag = self.read(key, "true or false", Value::as_bool)?;
        Ok(flag.unwrap_or(default))
    }

    pub(crate) fn text(&self, key: &'a str) -> Result<Option<&'a str>, FormatError> {
        self.read(key, "a text", Value::as_str)
    }

    pub(crate) fn list(&self, key: &'a str) -> Result<Option<&'a [Value]>, FormatError> {
        self.read(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    /// Reads an object with keys of its own.
    pub(crate) fn object(&self, key: &'a str) -> Result<Option<Keys<'a>>, FormatError> {
        let map = self.read(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Keys::new(self.path, map)))
    }

    /// Reads one token id or a list of them; none if there is none.
    pub(crate) fn token_ids(&self, key: &'a str) -> Result<Vec<u32>, FormatError> {
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = self.read(key, "a token id or a list of them", |value| {
            match value.as_array() {
                Some(list) => list.iter().map(id).collect(),
                None => id(value).map(|id| vec![id]),
            }
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// Reads the names of the classes, by index; none if the file has none.
    pub(crate) fn labels(&self) -> Result<Vec<String>, FormatError> {
        let labels = self.read("id2label", "names for the classes 0, 1, 2, ...", |value| {
            let names = value.as_object()?;
            let name = |index: usize| names.get(&index.to_string())?.as_str().map(str::to_owned);
            (0..names.len()).map(name).collect()
        })?;
        Ok(labels.unwrap_or_default())
    }

    /// Returns the keys that were asked for and are there.
    pub(crate) fn document(&self) -> Map<String, Value> {
        let seen = self.seen.borrow();
        let kept = self
            .map
            .iter()
            .filter(|(key, _)| seen.contains(key.as_str()));
        kept.map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Fails if a model's configuration has a key that nothing asked for and that may change a number.
    pub(crate) fn finish_model(self) -> Result<(), FormatError> {
        for key in self.map.keys() {
            if let Some(accepted) = harmless(key) {
                self.only(key, &accepted)?;
            } else if WITHOUT_EFFECT.split_whitespace().any(|name| name == key) {
                self.ignore(&[key]);
            }
        }
        self.finish(Some(
            "it is no key that this model family is known to read; if it changes no number, name it in `ignore_config`",
        ))
    }

    /// Fails if there is a key that nothing asked for: it may change what is computed, and nothing would show it.
    ///
    /// Without a hint the message lists the keys that are known.
    pub(crate) fn finish(self, hint: Option<&str>) -> Result<(), FormatError> {
        let seen = self.seen.borrow();
        let unknown = self
            .map
            .iter()
            .find(|(key, _)| !seen.contains(key.as_str()));
        unknown.map_or(Ok(()), |(key, value)| {
            let known = || {
                format!(
                    "only the keys {} are",
                    seen.iter().copied().collect::<Vec<_>>().join(", ")
                )
            };
            let hint = hint.map_or_else(known, str::to_owned);
            Err(self.unsupported(key, value, &hint))
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
