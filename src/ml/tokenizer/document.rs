//! `tokenizer.json` documents: their parts, and checks before the crate sees them.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::TokenizerError;

/// The parts of a document; what is `None` is absent.
#[derive(Default)]
pub(super) struct Document {
    /// Content, id and whether the token is left out of decoded text.
    pub(super) added_tokens: Vec<(String, u32, bool)>,
    pub(super) normalizer: Option<Value>,
    pub(super) pre_tokenizer: Option<Value>,
    /// The token put before every text, with its id.
    pub(super) begin: Option<(String, u32)>,
    pub(super) decoder: Option<Value>,
    pub(super) model: Value,
}

impl Document {
    pub(super) fn into_value(self) -> Value {
        let added: Vec<_> = self
            .added_tokens
            .iter()
            .map(|(content, id, special)| {
                json!({
                    "id": id,
                    "content": content,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": special,
                })
            })
            .collect();
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": self.begin.map(|(token, id)| begin_with(&token, id)),
            "decoder": self.decoder,
            "model": self.model,
        })
    }
}

/// A post-processor that puts `token` before every text.
fn begin_with(token: &str, id: u32) -> Value {
    let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let sequence = |name: &str, kind: usize| json!({ "Sequence": { "id": name, "type_id": kind } });
    json!({
        "type": "TemplateProcessing",
        "single": [special, sequence("A", 0)],
        "pair": [special, sequence("A", 0), special, sequence("B", 1)],
        "special_tokens": { token: { "id": token, "ids": [id], "tokens": [token] } },
    })
}

/// Numbers tokens by position, refusing duplicates.
pub(super) fn vocabulary<'a>(
    tokens: impl IntoIterator<Item = &'a str>,
) -> Result<Map<String, Value>, TokenizerError> {
    let mut vocabulary = Map::new();
    for (id, token) in tokens.into_iter().enumerate() {
        if let Some(first) = vocabulary.insert(token.to_owned(), id.into()) {
            return Err(TokenizerError::Invalid(format!(
                "token `{token}` has the ids {first} and {id}"
            )));
        }
    }
    Ok(vocabulary)
}

/// Hands a document to the crate, without the truncation and padding it asks for, unless the crate would
/// panic on it.
pub(super) fn build(mut document: Value) -> Result<tokenizers::Tokenizer, TokenizerError> {
    if let Some(model) = document.get("model") {
        check_lengths(model)?;
        check_merges(model)?;
    }
    if let Some(processor) = document.get("post_processor") {
        check_templates(processor)?;
    }
    if let Some(object) = document.as_object_mut() {
        object.remove("truncation");
        object.remove("padding");
    }
    let bytes = document.to_string();
    super::guarded(|| tokenizers::Tokenizer::from_bytes(bytes))
        .map_err(|error| TokenizerError::Invalid(error.to_string()))
}

/// Bytes of the longest token. The crate takes tokens apart by calls within calls, one for each byte.
const LONGEST_TOKEN: usize = 4096;

/// Checks that no token is so long that the crate would run out of stack.
fn check_lengths(model: &Value) -> Result<(), TokenizerError> {
    let longest = match model.get("vocab") {
        Some(Value::Object(vocabulary)) => vocabulary.keys().map(String::len).max(),
        Some(Value::Array(tokens)) => {
            let texts = tokens.iter().filter_map(|token| token.get(0)?.as_str());
            texts.map(str::len).max()
        }
        _ => None,
    };
    match longest {
        Some(length) if length > LONGEST_TOKEN => Err(TokenizerError::Invalid(format!(
            "a token has {length} bytes, expected at most {LONGEST_TOKEN}"
        ))),
        _ => Ok(()),
    }
}

/// Checks that both halves of every merge and their concatenation are tokens.
fn check_merges(model: &Value) -> Result<(), TokenizerError> {
    let Some(merges) = model.get("merges").and_then(Value::as_array) else {
        return Ok(());
    };
    let invalid = |reason: String| Err(TokenizerError::Invalid(reason));
    let Some(vocabulary) = model.get("vocab").and_then(Value::as_object) else {
        return invalid("merges without a vocabulary".to_owned());
    };
    let prefix = model
        .get("continuing_subword_prefix")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let mut pairs = BTreeSet::new();
    for merge in merges {
        // Older documents write a merge as one text.
        let pair = match merge {
            Value::String(text) => text.split_once(' '),
            Value::Array(parts) => match parts.as_slice() {
                [Value::String(left), Value::String(right)] => {
                    Some((left.as_str(), right.as_str()))
                }
                _ => None,
            },
            _ => None,
        };
        let Some((left, right)) = pair else {
            return invalid(format!("merge {merge} is not a pair of tokens"));
        };
        let Some(rest) = right.strip_prefix(prefix) else {
            return invalid(format!("merge {merge} lacks the prefix `{prefix}`"));
        };
        for token in [left, right, &format!("{left}{rest}")] {
            if !vocabulary.contains_key(token) {
                return invalid(format!(
                    "merge {merge} needs `{token}`, which is not in the vocabulary"
                ));
            }
        }
        if !pairs.insert((left, right)) {
            return invalid(format!("merge {merge} occurs twice"));
        }
    }
    Ok(())
}

/// Checks that the templates of a post-processor, and of those within it, use only tokens that they define,
/// and the template for one text only one text.
fn check_templates(processor: &Value) -> Result<(), TokenizerError> {
    let members = processor.get("processors").and_then(Value::as_array);
    for member in members.into_iter().flatten() {
        check_templates(member)?;
    }
    let defined = processor.get("special_tokens").and_then(Value::as_object);
    for key in ["single", "pair"] {
        let pieces = processor.get(key).and_then(Value::as_array);
        for piece in pieces.into_iter().flatten() {
            let used = piece.get("SpecialToken").and_then(|token| token.get("id"));
            if let Some(token) = used.and_then(Value::as_str)
                && !defined.is_some_and(|defined| defined.contains_key(token))
            {
                return Err(TokenizerError::Invalid(format!(
                    "the template uses `{token}`, which its `special_tokens` do not define"
                )));
            }
            let sequence = piece.get("Sequence").and_then(|text| text.get("id"));
            if key == "single" && sequence.is_some_and(|id| id == "B") {
                return Err(TokenizerError::Invalid(
                    "the template for one text uses a second one".to_owned(),
                ));
            }
        }
    }
    Ok(())
}
