//! Tokens that the settings name, and those that they add.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::super::TokenizerError;
use super::super::added::{Tokens, spelt};
use super::{CONFIG, Class, EXTRA, FURTHER, Settings, invalid};

/// Roles of tokens that `transformers` treats as special even if the document does not.
const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

impl Settings {
    /// Fills in the names that the class has for tokens that a folder does not name, if it is LLaMA's or Gemma's.
    ///
    /// A folder that says nothing of its tokenizer is of this class only if its vocabulary is.
    pub(super) fn name_own_tokens(&mut self, tokens: &Tokens) -> Result<(), TokenizerError> {
        if self.class != Class::Llama {
            return Ok(());
        }
        let own = match self.class_name.as_str() {
            "GemmaTokenizer" => [("bos_token", "<bos>"), ("eos_token", "<eos>")],
            _ => [("bos_token", "<s>"), ("eos_token", "</s>")],
        };
        let known = own.map(|(_, token)| tokens.id_of(token).is_some());
        if self.is_silent && known != [true, true] {
            self.class = Class::Other;
            return Ok(());
        }
        for ((key, token), known) in own.into_iter().zip(known) {
            if self.config.contains_key(key) {
                continue;
            }
            if !known {
                return Err(self.refused(
                    format!("`{key}` is not there"),
                    format!("the class's own, `{token}`, is not in the vocabulary"),
                ));
            }
            self.config.insert(key.to_owned(), token.into());
        }
        Ok(())
    }

    /// Gives the document the added tokens that the settings state, and makes the special tokens special: those that it
    /// lacks get the next ids.
    pub(super) fn register_tokens(&self, tokens: &mut Tokens) -> Result<(), TokenizerError> {
        if let Some(stated) = self.config.get("added_tokens_decoder") {
            let wrong = || {
                invalid(format!(
                    "{CONFIG}: `added_tokens_decoder` is not tokens by id"
                ))
            };
            let stated = stated.as_object().ok_or_else(wrong)?;
            let mut by_id = Vec::with_capacity(stated.len());
            for (id, token) in stated {
                let id: u32 = id.parse().map_err(|_| wrong())?;
                by_id.push((id, token.as_object().ok_or_else(wrong)?));
            }
            by_id.sort_by_key(|(id, _)| *id);
            for (id, token) in by_id {
                let content = token
                    .get("content")
                    .and_then(Value::as_str)
                    .ok_or_else(wrong)?;
                if let Some(found) = tokens
                    .id_of(content)
                    .filter(|found| *found != u64::from(id))
                {
                    return Err(invalid(format!(
                        "{CONFIG}: `added_tokens_decoder` gives `{content}` the id {id}, expected {found}, which it has in \
                         `{}`",
                        self.vocabulary
                    )));
                }
                tokens.register(u64::from(id), content, token);
            }
        }
        self.register_older_tokens(tokens)?;
        let mut named = Vec::new();
        for role in ROLES {
            named.extend(self.config.get(role).map(|token| (role, token)));
        }
        for key in [FURTHER, EXTRA] {
            match self.config.get(key) {
                None | Some(Value::Null) => {}
                Some(Value::Array(list)) => named.extend(list.iter().map(|token| (key, token))),
                Some(_) => {
                    return Err(invalid(format!("{CONFIG}: `{key}` is no list of tokens")));
                }
            }
        }
        for (key, token) in named {
            let Some((content, flags)) = spelt(key, token)? else {
                continue;
            };
            // The flags of a token in `tokenizer.json` win over those of a role, as in `transformers` 4.57.
            let is_role = key != FURTHER && key != EXTRA;
            let is_settled = is_role && self.vocabulary == "tokenizer.json";
            if (flags.is_none() || is_settled) && tokens.is_added(content) {
                continue;
            }
            let id = match tokens.id_of(content) {
                Some(id) => id,
                None => tokens.next_id(),
            };
            let mut flags = flags.cloned().unwrap_or_default();
            flags.insert("special".to_owned(), true.into());
            tokens.register(id, content, &flags);
        }
        Ok(())
    }

    /// Gives the document the tokens of `added_tokens.json` that it lacks; those that are named as special are.
    fn register_older_tokens(&self, tokens: &mut Tokens) -> Result<(), TokenizerError> {
        const FILE: &str = "added_tokens.json";
        let mut special = Vec::new();
        for role in ROLES {
            special.extend(self.config.get(role));
        }
        let further = self.config.get(FURTHER).and_then(Value::as_array);
        special.extend(further.into_iter().flatten());
        let special: BTreeSet<&str> = special
            .into_iter()
            .filter_map(|token| token.get("content").unwrap_or(token).as_str())
            .collect();
        let mut by_id = Vec::with_capacity(self.older_tokens.len());
        for (content, id) in &self.older_tokens {
            let id = id.as_u64().ok_or_else(|| {
                invalid(format!(
                    "{FILE}: `{content}` is {id}, expected a token's id"
                ))
            })?;
            by_id.push((id, content));
        }
        by_id.sort_unstable();
        for (id, content) in by_id {
            match tokens.id_of(content) {
                Some(found) if found != id => {
                    return Err(invalid(format!(
                        "{FILE}: `{content}` is {id}, expected {found}, which it is in `{}`",
                        self.vocabulary
                    )));
                }
                // The document says more of it.
                Some(_) if self.vocabulary == "tokenizer.json" && tokens.is_added(content) => {}
                _ => {
                    let flags = json!({ "special": special.contains(&**content) });
                    tokens.register(id, content, flags.as_object().unwrap_or(&Map::new()));
                }
            }
        }
        Ok(())
    }
}
