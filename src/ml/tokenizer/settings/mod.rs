//! What stands beside a `tokenizer.json`: `tokenizer_config.json`, `special_tokens_map.json`, `config.json`.
//!
//! `transformers` builds a class around the document, and what these files say overrules it. It is applied to the
//! document as version 4.57 does, so that afterwards the document alone says how text is encoded; what the class
//! would pass over although the document does otherwise is refused.

mod normalisation;
mod pieces;
mod read;
mod special_tokens;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value, json};

use super::added::{Tokens, spelt};
use super::{SpecialTokens, TokenizerError};

const CONFIG: &str = "tokenizer_config.json";
/// Lists of further special tokens; the second is also a map by names.
const FURTHER: &str = "additional_special_tokens";
const EXTRA: &str = "extra_special_tokens";
/// What language models take of a tokenizer; without it `transformers` would hand them token types as well.
pub const MODEL_INPUT_NAMES: [&str; 2] = ["input_ids", "attention_mask"];
/// Whether decoded texts lose the spaces before marks of punctuation.
pub(super) const CLEANS_UP: &str = "clean_up_tokenization_spaces";
/// A `model_max_length` from here on means that there is none.
const NO_LENGTH: u64 = 1_000_000_000;

/// The class that `transformers` builds around a document, as far as it changes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Replaces the post-processor by what `add_bos_token` and `add_eos_token` say.
    Llama,
    /// Writes `do_lower_case` and its companions into a `BertNormalizer`.
    Bert,
    /// Changes neither.
    Other,
}

/// The settings of a folder.
pub(super) struct Settings {
    class: Class,
    class_name: String,
    config: Map<String, Value>,
    /// Whether the folder has no `tokenizer_config.json`.
    is_silent: bool,
    /// Ids that `config.json` has for the begin and the end token, for folders that name none.
    pub(super) model_ids: [Option<u32>; 2],
    /// Tokens of `added_tokens.json`, which older folders have instead of `added_tokens_decoder`.
    older_tokens: Map<String, Value>,
    /// Name of the file that holds the vocabulary.
    pub(super) vocabulary: &'static str,
}

fn invalid(reason: impl Into<String>) -> TokenizerError {
    TokenizerError::Invalid(reason.into())
}

impl Settings {
    /// Applies to the document all that can be applied before it is built, and returns the special tokens.
    pub(super) fn apply(&mut self, document: &mut Value) -> Result<SpecialTokens, TokenizerError> {
        let mut tokens = Tokens::take(document);
        self.name_own_tokens(&tokens)?;
        if self.is_set("split_special_tokens")? == Some(true) {
            return Err(self.refused(
                "`split_special_tokens` is true",
                "special tokens in texts are recognised",
            ));
        }
        let custom = self
            .config
            .get("auto_map")
            .and_then(|map| map.get("AutoTokenizer"));
        if custom.is_some_and(|class| !class.is_null()) {
            return Err(self.refused(
                "`auto_map` names code that comes with the model",
                "no code of a model is run",
            ));
        }
        self.register_tokens(&mut tokens)?;
        tokens.give_back(document);
        self.apply_prefix_space(document)?;
        self.apply_case(document)?;
        Ok(SpecialTokens {
            bos: self.token("bos_token")?,
            eos: self.token("eos_token")?,
            pad: self.token("pad_token")?,
        })
    }

    /// Returns the ids that must surround a text, where the class replaces the document's own, given those of the
    /// special tokens and those that the document puts there.
    pub(super) fn surroundings(
        &self,
        bos: Option<u32>,
        eos: Option<u32>,
        (prefix, suffix): (&[u32], &[u32]),
    ) -> Result<Option<(Option<u32>, Option<u32>)>, TokenizerError> {
        if self.class == Class::Llama {
            let wants = |key: &str, default| match self.config.get(key) {
                None => Ok(default),
                Some(_) => self.is_set(key).map(|set| set.unwrap_or(false)),
            };
            let side = |key: &str, default: bool, id: Option<u32>, role: &str| {
                if !wants(key, default)? {
                    return Ok(None);
                }
                let missing = || {
                    let why = format!("there is no {role} token");
                    self.refused(format!("`{key}` is true"), why)
                };
                id.map(Some).ok_or_else(missing)
            };
            let begin = side("add_bos_token", true, bos, "begin")?;
            let end = side("add_eos_token", false, eos, "end")?;
            let same = prefix == begin.as_slice() && suffix == end.as_slice();
            return Ok((!same).then_some((begin, end)));
        }
        for (key, ids, place) in [
            ("add_bos_token", prefix, "before"),
            ("add_eos_token", suffix, "after"),
        ] {
            let adds = !ids.is_empty();
            if self.is_set(key)?.is_some_and(|set| set != adds) {
                let what = if adds {
                    "puts a token"
                } else {
                    "puts no token"
                };
                return Err(self.refused(
                    format!("`{key}` is {}", !adds),
                    format!("`tokenizer.json` {what} {place} a text"),
                ));
            }
        }
        Ok(None)
    }

    /// Returns what is passed on to whoever opens a folder that the tokenizer is written into.
    pub(super) fn carried(&self, document: &Value) -> Map<String, Value> {
        let mut carried = Map::new();
        let before = &document["pre_tokenizer"];
        if before["type"] == "ByteLevel" && before["add_prefix_space"] == true {
            // Without a word, it would be taken out of the document again.
            carried.insert("add_prefix_space".to_owned(), true.into());
        }
        for key in [
            "chat_template",
            "model_input_names",
            "model_max_length",
            "truncation_side",
            CLEANS_UP,
        ] {
            let Some(value) = self.config.get(key).filter(|value| !value.is_null()) else {
                continue;
            };
            let says_nothing = match key {
                "model_input_names" => *value == json!(MODEL_INPUT_NAMES),
                "model_max_length" => value.as_u64().is_none_or(|length| length >= NO_LENGTH),
                "truncation_side" => value == "right",
                CLEANS_UP => *value == false,
                _ => false,
            };
            if !says_nothing {
                carried.insert(key.to_owned(), value.clone());
            }
        }
        carried
    }

    fn refused(&self, what: impl Into<String>, why: impl Into<String>) -> TokenizerError {
        TokenizerError::Overruled {
            what: what.into(),
            why: why.into(),
            class: self.class_name.clone(),
        }
    }

    /// Reads a flag; null is as good as absent.
    fn is_set(&self, key: &str) -> Result<Option<bool>, TokenizerError> {
        match self.config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(set)) => Ok(Some(*set)),
            Some(other) => Err(invalid(format!(
                "{CONFIG}: `{key}` is {other}, expected true or false"
            ))),
        }
    }

    /// Reads a token: a text or, in older files, an object. An empty one is none.
    fn token(&self, key: &str) -> Result<Option<String>, TokenizerError> {
        match self.config.get(key) {
            None => Ok(None),
            Some(token) => Ok(spelt(key, token)?.map(|(content, _)| content.to_owned())),
        }
    }
}
