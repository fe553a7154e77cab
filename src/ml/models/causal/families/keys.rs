//! The keys of a `config.json`, and which of them were read.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::ml::formats::FormatError;

/// Keys that change no number of a forward pass in 32-bit floats, whatever the family: names, ids, what training or
/// generation does.
const WITHOUT_EFFECT: &str = "architectures auto_map attention_dropout attn_implementation attn_pdrop begin_suppress_tokens \
    bos_token_id chunk_size_feed_forward classifier_dropout decoder_start_token_id dtype embd_pdrop eos_token_id \
    finetuning_task gradient_checkpointing hidden_dropout id2label initializer_range label2id model_type \
    output_attentions output_hidden_states pad_token_id prefix problem_type resid_pdrop return_dict \
    sep_token_id task_specific_params tf_legacy_loss tokenizer_class torch_dtype torchscript transformers_version \
    unk_token_id unsloth_fixed unsloth_version use_bfloat16 use_cache _attn_implementation _attn_implementation_autoset \
    _name_or_path bad_words_ids diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size \
    exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length \
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values \
    repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p";

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
pub(in crate::ml) struct Keys<'a> {
    path: &'a Path,
    map: &'a Map<String, Value>,
    seen: RefCell<BTreeSet<&'static str>>,
}

impl<'a> Keys<'a> {
    pub(in crate::ml) fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self {
            path,
            map,
            seen: RefCell::default(),
        }
    }

    /// Returns a value that is not null.
    pub(super) fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.seen.borrow_mut().insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Tells whether a key is there and null.
    pub(super) fn is_null(&self, key: &'static str) -> bool {
        self.seen.borrow_mut().insert(key);
        self.map.get(key).is_some_and(Value::is_null)
    }

    /// Says that some keys change nothing here.
    pub(super) fn ignore(&self, keys: &[&'static str]) {
        self.seen.borrow_mut().extend(keys);
    }

    pub(super) fn malformed(&self, reason: String) -> FormatError {
        FormatError::malformed(self.path, reason)
    }

    pub(super) fn unsupported(&self, key: &str, value: &Value, hint: &str) -> FormatError {
        FormatError::unsupported(self.path, format!("`{key}`: {value}"), hint)
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> FormatError {
        self.malformed(format!("key `{key}` is {found}, expected {expected}"))
    }

    /// Accepts the key only if it is absent, null or `accepted`.
    pub(super) fn only(&self, key: &'static str, accepted: &Value) -> Result<(), FormatError> {
        match self.get(key) {
            Some(found) if !equal(found, accepted) => {
                Err(self.unsupported(key, found, &format!("only {accepted} is")))
            }
            _ => Ok(()),
        }
    }

    fn read<T>(
        &self,
        key: &'static str,
        expected: &str,
        parse: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, FormatError> {
        let value = self.get(key);
        value
            .map(|value| parse(value).ok_or_else(|| self.wrong(key, expected, value)))
            .transpose()
    }

    /// Reads a whole number, if it is there.
    pub(super) fn find_size(&self, key: &'static str) -> Result<Option<usize>, FormatError> {
        self.read(key, "a whole number", |value| {
            value.as_u64().and_then(|size| usize::try_from(size).ok())
        })
    }

    /// Reads a whole number that must be there.
    pub(super) fn size(&self, key: &'static str) -> Result<usize, FormatError> {
        let missing = || self.malformed(format!("key `{key}` is missing"));
        self.find_size(key)?.ok_or_else(missing)
    }

    /// Reads a whole number under one of two names, of which the first wins.
    pub(super) fn size_of(&self, keys: [&'static str; 2]) -> Result<usize, FormatError> {
        match (self.find_size(keys[0])?, self.find_size(keys[1])?) {
            (Some(size), _) | (None, Some(size)) => Ok(size),
            (None, None) => Err(self.malformed(format!("key `{}` is missing", keys[1]))),
        }
    }

    pub(super) fn find_number(&self, key: &'static str) -> Result<Option<f64>, FormatError> {
        self.read(key, "a number", Value::as_f64)
    }

    pub(super) fn number(&self, key: &'static str, default: f64) -> Result<f64, FormatError> {
        Ok(self.find_number(key)?.unwrap_or(default))
    }

    pub(super) fn flag(&self, key: &'static str, default: bool) -> Result<bool, FormatError> {
        let flag = self.read(key, "true or false", Value::as_bool)?;
        Ok(flag.unwrap_or(default))
    }

    pub(super) fn text(&self, key: &'static str) -> Result<Option<&'a str>, FormatError> {
        self.read(key, "a text", Value::as_str)
    }

    pub(super) fn list(&self, key: &'static str) -> Result<Option<&'a [Value]>, FormatError> {
        self.read(key, "a list", |value| value.as_array().map(Vec::as_slice))
    }

    /// Reads an object with keys of its own.
    pub(super) fn object(&self, key: &'static str) -> Result<Option<Keys<'a>>, FormatError> {
        let map = self.read(key, "an object", Value::as_object)?;
        Ok(map.map(|map| Keys::new(self.path, map)))
    }

    /// Returns the keys that were asked for and are there.
    pub(super) fn document(&self) -> Map<String, Value> {
        let seen = self.seen.borrow();
        let kept = self
            .map
            .iter()
            .filter(|(key, _)| seen.contains(key.as_str()));
        kept.map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// Fails if a key is there that nothing asked for and that may change a number.
    pub(super) fn all_known(&self) -> Result<(), FormatError> {
        let seen = self.seen.borrow();
        for (key, value) in self.map {
            if seen.contains(key.as_str())
                || WITHOUT_EFFECT.split_whitespace().any(|name| name == key)
            {
                continue;
            }
            match harmless(key) {
                Some(accepted) if value.is_null() || equal(value, &accepted) => {}
                Some(accepted) => {
                    return Err(self.unsupported(key, value, &format!("only {accepted} is")));
                }
                None => {
                    return Err(self.unsupported(
                        key,
                        value,
                        "it is no key that this model family is known to read; if it changes no number, name it in \
                         `ignore_config`",
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Compares values, numbers by value (`1` is `1.0`).
fn equal(left: &Value, right: &Value) -> bool {
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left == right,
        _ => left == right,
    }
}
