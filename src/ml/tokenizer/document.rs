//! `tokenizer.json` documents: their parts, and checks before the crate sees them.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{TokenizerError, charsmap};

/// The key of a table of characters.
const CHARSMAP: &str = "precompiled_charsmap";

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
            "post_processor": self.begin.map(|begin| surround(Some(&begin), None)),
            "decoder": self.decoder,
            "model": self.model,
        })
    }
}

/// A post-processor that puts tokens, with their ids, before and after every text.
pub(super) fn surround(begin: Option<&(String, u32)>, end: Option<&(String, u32)>) -> Value {
    let around = |name: &'static str, kind: u32| {
        let [begin, end] = [begin, end].map(|token| token.map(|(token, _)| Place::Token(token)));
        let places = [begin, Some(Place::Text(name, kind)), end];
        places.into_iter().flatten().collect::<Vec<_>>()
    };
    let single = around("A", 0);
    let pair = [single.clone(), around("B", 1)].concat();
    let tokens: Vec<_> = begin
        .into_iter()
        .chain(end)
        .map(|(token, id)| (&**token, *id))
        .collect();
    template(&single, &pair, &tokens)
}

/// What stands at a place of a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// A text by its name, with the type of its tokens.
    Text(&'a str, u32),
    /// A token.
    Token(&'a str),
}

/// A post-processor of one template for a text and one for two, with the ids of their tokens.
pub(super) fn template(single: &[Place<'_>], pair: &[Place<'_>], tokens: &[(&str, u32)]) -> Value {
    let places = |places: &[Place<'_>]| -> Vec<Value> {
        let place = |place: &Place<'_>| match place {
            Place::Text(name, kind) => json!({ "Sequence": { "id": name, "type_id": kind } }),
            Place::Token(token) => json!({ "SpecialToken": { "id": token, "type_id": 0 } }),
        };
        places.iter().map(place).collect()
    };
    let entry = |(token, id): &(&str, u32)| {
        let entry = json!({ "id": token, "ids": [id], "tokens": [token] });
        ((*token).to_owned(), entry)
    };
    json!({
        "type": "TemplateProcessing",
        "single": places(single),
        "pair": places(pair),
        "special_tokens": tokens.iter().map(entry).collect::<Map<_, _>>(),
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
        check_words(model)?;
    }
    check_added(&document)?;
    check_steps(&document)?;
    if let Some(processor) = document.get("post_processor") {
        check_templates(processor)?;
    }
    if let Some(object) = document.as_object_mut() {
        object.remove("truncation");
        object.remove("padding");
    }
    let bytes = document.to_string();
    let added = document.get_mut("added_tokens").map(Value::take);
    drop(document);
    let built = super::guarded(|| tokenizers::Tokenizer::from_bytes(bytes))
        .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
    check_ids(&built, added.as_ref().and_then(Value::as_array))?;
    Ok(built)
}

/// Tells whether two documents take texts apart and put them together in the same way, added tokens apart.
pub(super) fn is_same(one: &Value, other: &Value) -> Result<bool, TokenizerError> {
    let parts = |document: &Value| -> Result<[Value; 4], TokenizerError> {
        let written = build(document.clone())?.to_string(false);
        let written = written.map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        let mut written: Value = serde_json::from_str(&written)
            .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        Ok(["model", "normalizer", "pre_tokenizer", "decoder"].map(|key| written[key].take()))
    };
    Ok(parts(one)? == parts(other)?)
}

/// Checks that added tokens have the ids that are stated: the crate numbers those that the vocabulary lacks itself, one
/// after the other.
fn check_ids(
    built: &tokenizers::Tokenizer,
    added: Option<&Vec<Value>>,
) -> Result<(), TokenizerError> {
    for token in added.into_iter().flatten() {
        let (Some(content), Some(id)) = (token["content"].as_str(), token["id"].as_u64()) else {
            continue;
        };
        let found = built.token_to_id(content).map(u64::from);
        if let Some(found) = found.filter(|found| *found != id) {
            return Err(TokenizerError::Invalid(format!(
                "its `added_tokens` give `{content}` the id {id}, expected {found}: tokens that the vocabulary lacks are \
                 numbered after it without a gap"
            )));
        }
    }
    Ok(())
}

/// Bytes of the longest token. The crate takes tokens apart by calls within calls, one for each byte.
const LONGEST_TOKEN: usize = 4096;

/// Different beginnings of the tokens that the crate keeps in a tree; XLM-R's 250,000 tokens have fewer.
const MOST_BEGINNINGS: usize = 1 << 20;

/// Values in a normalizer, pre-tokenizer, post-processor or decoder, and bytes in one of their texts.
const MOST_STEPS: usize = 1 << 14;
const LONGEST_PATTERN: usize = 1 << 14;

/// Characters of the longest word that is taken apart, in time that grows with their square.
const LONGEST_WORD: u64 = 100_000;

/// By how much replacing and prepending may lengthen a text.
const MOST_GROWTH: usize = 1 << 12;

/// Checks that no token is so long that the crate would run out of stack, and that its tree of tokens fits.
fn check_lengths(model: &Value) -> Result<(), TokenizerError> {
    match model.get("vocab") {
        Some(Value::Object(vocabulary)) => check_tokens(vocabulary.keys().map(String::as_str)),
        Some(Value::Array(tokens)) => {
            let texts = || tokens.iter().filter_map(|token| token.get(0)?.as_str());
            check_tokens(texts())?;
            check_beginnings(texts().collect())
        }
        _ => Ok(()),
    }
}

fn check_tokens<'a>(tokens: impl Iterator<Item = &'a str>) -> Result<(), TokenizerError> {
    tokens
        .max_by_key(|token| token.len())
        .map_or(Ok(()), check_length)
}

/// Checks that a token is no longer than one may be.
pub(super) fn check_length(token: &str) -> Result<(), TokenizerError> {
    if token.len() <= LONGEST_TOKEN {
        return Ok(());
    }
    Err(TokenizerError::Invalid(format!(
        "a token has {} bytes, expected at most {LONGEST_TOKEN}",
        token.len()
    )))
}

/// Checks that a tree of the tokens' bytes has not too many nodes.
fn check_beginnings(mut tokens: Vec<&str>) -> Result<(), TokenizerError> {
    tokens.sort_unstable();
    let mut before: &[u8] = &[];
    let mut nodes = 0;
    for token in tokens {
        let shared = before
            .iter()
            .zip(token.as_bytes())
            .take_while(|(a, b)| a == b);
        nodes += token.len() - shared.count();
        before = token.as_bytes();
    }
    if nodes > MOST_BEGINNINGS {
        return Err(TokenizerError::Invalid(format!(
            "its tokens have {nodes} different beginnings, expected at most {MOST_BEGINNINGS}"
        )));
    }
    Ok(())
}

/// Checks the tokens that are matched before all else, which the crate keeps in a tree too.
fn check_added(document: &Value) -> Result<(), TokenizerError> {
    let added = document.get("added_tokens").and_then(Value::as_array);
    let texts = || {
        added
            .into_iter()
            .flatten()
            .filter_map(|token| token.get("content")?.as_str())
    };
    check_tokens(texts())?;
    check_beginnings(texts().collect())
}

/// Checks that what is done before and after the model is of human size, and lengthens no text beyond measure: a few
/// replacements of one character by two, one after the other, fill any memory.
fn check_steps(document: &Value) -> Result<(), TokenizerError> {
    for key in ["normalizer", "pre_tokenizer", "post_processor", "decoder"] {
        let Some(part) = document.get(key) else {
            continue;
        };
        check_charsmaps(part)?;
        let (mut left, mut growth) = (MOST_STEPS, 1);
        let fits = measure(part, &mut left, &mut growth);
        if !fits || growth > MOST_GROWTH {
            return Err(TokenizerError::Invalid(format!(
                "its `{key}` does more than a tokenizer's may: at most {MOST_STEPS} values, texts of {LONGEST_PATTERN} \
                 bytes, and steps that lengthen a text {MOST_GROWTH}-fold"
            )));
        }
    }
    Ok(())
}

/// Checks the tables of characters in a part, which the crate trusts.
fn check_charsmaps(part: &Value) -> Result<(), TokenizerError> {
    match part {
        Value::Array(members) => members.iter().try_for_each(check_charsmaps),
        Value::Object(members) => {
            let table = members.get(CHARSMAP).and_then(Value::as_str);
            if let Some(table) = table.and_then(charsmap::from_base64) {
                charsmap::check(&table)?;
            }
            members.values().try_for_each(check_charsmaps)
        }
        _ => Ok(()),
    }
}

/// Counts down what is `left` and multiplies what may grow; false if a text is too long or nothing is left.
fn measure(part: &Value, left: &mut usize, growth: &mut usize) -> bool {
    if *left == 0 {
        return false;
    }
    *left -= 1;
    match part {
        Value::String(text) => text.len() <= LONGEST_PATTERN,
        Value::Array(members) => members.iter().all(|member| measure(member, left, growth)),
        Value::Object(members) => {
            if let (Some(pattern), Some(content)) = (part.get("pattern"), part.get("content")) {
                // What can match nothing is put between all characters.
                let is_fixed = pattern
                    .get("String")
                    .and_then(Value::as_str)
                    .is_some_and(|text| !text.is_empty());
                let content = content
                    .as_str()
                    .map_or(0, |content| content.chars().count());
                let factor = if is_fixed {
                    content.max(1)
                } else {
                    content + 1
                };
                *growth = growth.saturating_mul(factor);
            }
            if let Some(prefix) = part.get("prepend").and_then(Value::as_str) {
                // Put before a text that may have but one character.
                *growth = growth.saturating_mul(prefix.chars().count() + 1);
            }
            members.iter().all(|(key, member)| {
                // A table of characters, which is checked as such.
                key == CHARSMAP || measure(member, left, growth)
            })
        }
        _ => true,
    }
}

/// Checks that a text has the same tokens whenever it is read, and has them within human time.
fn check_words(model: &Value) -> Result<(), TokenizerError> {
    if let Some(dropout) = model.get("dropout")
        && !dropout.is_null()
        && dropout.as_f64() != Some(0.0)
    {
        return Err(TokenizerError::Invalid(format!(
            "its `dropout` of {dropout} would split texts at random, expected null or 0: set it so in the file"
        )));
    }
    match model.get("max_input_chars_per_word") {
        Some(most) if most.as_u64().is_some_and(|most| most > LONGEST_WORD) => {
            Err(TokenizerError::Invalid(format!(
                "its `max_input_chars_per_word` is {most}, expected at most {LONGEST_WORD}"
            )))
        }
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
