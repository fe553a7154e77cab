//! Tokens that mean something to a model by themselves.

use std::collections::{BTreeMap, BTreeSet};

use super::Tokenizer;

/// The tokens that begin, end and pad a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<String>,
    /// Ends a text.
    pub eos: Option<String>,
    /// Fills a batch; masked everywhere.
    pub pad: Option<String>,
}

impl Tokenizer {
    /// Returns the special tokens that a template of chats may name, by their names in `tokenizer_config.json`.
    pub fn named_tokens(&self) -> BTreeMap<String, String> {
        let SpecialTokens { bos, eos, pad } = &self.tokens;
        let own = [("bos_token", bos), ("eos_token", eos), ("pad_token", pad)];
        let own = own.map(|(name, token)| Some((name.to_owned(), token.clone()?)));
        own.into_iter().flatten().collect()
    }

    /// Returns every token that means something to a model where a text spells it: those marked as special, and those
    /// that begin, end and fill texts.
    pub fn special_texts(&self) -> Vec<String> {
        let marked = self.added.values().filter(|(_, is_special)| *is_special);
        let marked = marked.map(|(token, _)| token);
        let all = marked.cloned().chain(self.named_tokens().into_values());
        let all: BTreeSet<String> = all.filter(|token| !token.is_empty()).collect();
        all.into_iter().collect()
    }

    /// Returns the special tokens as they are spelt.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.tokens
    }
}
