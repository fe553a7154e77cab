//! The tokens of a document by their texts, and new ones among them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::TokenizerError;

/// The file that names special tokens; older folders have others, with the same keys.
const CONFIG: &str = "tokenizer_config.json";
const TOKEN_FLAGS: [&str; 5] = ["single_word", "lstrip", "rstrip", "normalized", "special"];

/// Reads a special token: a text or, in older files, an object of text and flags. Null and an empty text are none.
pub(super) fn spelt<'a>(
    key: &str,
    token: &'a Value,
) -> Result<Option<(&'a str, Option<&'a Map<String, Value>>)>, TokenizerError> {
    let (content, flags) = match token {
        Value::Null => return Ok(None),
        Value::Object(flags) => (flags.get("content").and_then(Value::as_str), Some(flags)),
        token => (token.as_str(), None),
    };
    let content = content
        .ok_or_else(|| TokenizerError::Invalid(format!("{CONFIG}: `{key}` is not a token")))?;
    Ok((!content.is_empty()).then_some((content, flags)))
}

/// The tokens of a document, taken out of it to be found by their texts.
pub(super) struct Tokens {
    model: Value,
    /// Ids of a vocabulary that is a list.
    listed: BTreeMap<String, u64>,
    added: Vec<Value>,
    /// Places among those.
    places: BTreeMap<String, usize>,
    next_added: u64,
}

impl Tokens {
    pub(super) fn take(document: &mut Value) -> Self {
        let mut part = |key| document.get_mut(key).map(Value::take).unwrap_or_default();
        let model = part("model");
        let added = match part("added_tokens") {
            Value::Array(added) => added,
            _ => Vec::new(),
        };
        let mut listed = BTreeMap::new();
        let list = model.get("vocab").and_then(Value::as_array);
        for (id, token) in list.into_iter().flatten().enumerate() {
            if let Some(text) = token.get(0).and_then(Value::as_str) {
                listed.entry(text.to_owned()).or_insert(id as u64);
            }
        }
        let mut places = BTreeMap::new();
        for (place, token) in added.iter().enumerate() {
            if let Some(text) = token.get("content").and_then(Value::as_str) {
                places.entry(text.to_owned()).or_insert(place);
            }
        }
        let ids = added.iter().filter_map(|token| token.get("id")?.as_u64());
        let next_added = ids.max().map_or(0, |id| id.saturating_add(1));
        Self {
            model,
            listed,
            added,
            places,
            next_added,
        }
    }

    pub(super) fn give_back(mut self, document: &mut Value) {
        // New tokens are numbered in the order of the list.
        self.added.sort_by_key(|token| token["id"].as_u64());
        if let Some(document) = document.as_object_mut() {
            document.insert("model".to_owned(), self.model);
            document.insert("added_tokens".to_owned(), self.added.into());
        }
    }

    pub(super) fn is_added(&self, token: &str) -> bool {
        self.places.contains_key(token)
    }

    pub(super) fn id_of(&self, token: &str) -> Option<u64> {
        if let Some(place) = self.places.get(token) {
            return self.added[*place].get("id")?.as_u64();
        }
        match self.model.get("vocab")? {
            Value::Object(vocabulary) => vocabulary.get(token)?.as_u64(),
            _ => self.listed.get(token).copied(),
        }
    }

    /// Returns the id that comes after all others, as the crate has it.
    pub(super) fn next_id(&self) -> u64 {
        let size = match self.model.get("vocab") {
            Some(Value::Object(vocabulary)) => vocabulary.len(),
            Some(Value::Array(list)) => list.len(),
            _ => 0,
        };
        self.next_added.max(size as u64)
    }

    /// Adds a token, or gives the one that is there other flags.
    pub(super) fn register(&mut self, id: u64, content: &str, flags: &Map<String, Value>) {
        let is_special = flags.get("special") == Some(&Value::Bool(true));
        let mut entry = json!({ "id": id, "content": content });
        for flag in TOKEN_FLAGS {
            // As `AddedToken` has it: ordinary tokens are normalised, special ones are not.
            let default = flag == "normalized" && !is_special;
            entry[flag] = flags
                .get(flag)
                .and_then(Value::as_bool)
                .unwrap_or(default)
                .into();
        }
        self.next_added = self.next_added.max(id.saturating_add(1));
        if let Some(place) = self.places.get(content) {
            self.added[*place] = entry;
        } else {
            self.places.insert(content.to_owned(), self.added.len());
            self.added.push(entry);
        }
    }
}
