//! SentencePiece BPE: tokens with scores, as in LLaMA 1 and 2, llama2.c and GGUF's `llama` vocabularies.
//!
//! The algorithm merges, again and again, the neighbours whose concatenation has the highest score, the
//! leftmost first. A merge list ranked by the score of the result is the same, but where one token can
//! arise from overlapping pairs of different parts; Hugging Face's converter makes the same list.

use std::collections::BTreeMap;

use serde_json::json;

use super::document::{Document, vocabulary};
use super::merges::merges;
use super::{SpecialTokens, Tokenizer, TokenizerError};

/// Stands for a space inside tokens.
const SPACE: &str = "\u{2581}";

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScoredTokenKind {
    /// A piece of text.
    Normal,
    /// Stands for what cannot be written.
    Unknown,
    /// Begins or ends a text, and the like; never part of text.
    Control,
    /// Matched before anything else, and part of text.
    UserDefined,
    /// One byte, spelt `<0x0A>`.
    Byte,
}

/// A token with its score.
#[derive(Debug, Clone)]
pub struct ScoredToken {
    /// The text, spaces written as U+2581.
    pub text: String,
    /// Higher is merged earlier.
    pub score: f32,
    /// What it is for.
    pub kind: ScoredTokenKind,
}

/// The parts of a SentencePiece BPE tokenizer.
#[derive(Debug, Clone)]
pub struct ScoredVocabulary {
    /// Tokens by id.
    pub tokens: Vec<ScoredToken>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Fills batches.
    pub pad: Option<u32>,
    /// Whether every text begins with `bos`.
    pub adds_bos: bool,
    /// Whether a space is put before every text.
    pub adds_space_prefix: bool,
}

impl ScoredVocabulary {
    /// Builds the tokenizer.
    pub fn into_tokenizer(self) -> Result<Tokenizer, TokenizerError> {
        let vocabulary = vocabulary(self.tokens.iter().map(|token| token.text.as_str()))?;
        let spelt = |id: Option<u32>| {
            let token = id.and_then(|id| self.tokens.get(id as usize));
            token.map(|token| token.text.clone())
        };
        let tokens = SpecialTokens {
            bos: spelt(self.bos),
            eos: spelt(self.eos),
            pad: spelt(self.pad),
        };
        let begin = tokens.bos.clone().zip(self.bos).filter(|_| self.adds_bos);
        let added_tokens = (0u32..)
            .zip(&self.tokens)
            .filter_map(|(id, token)| match token.kind {
                ScoredTokenKind::Unknown | ScoredTokenKind::Control => {
                    Some((token.text.clone(), id, true))
                }
                ScoredTokenKind::UserDefined => Some((token.text.clone(), id, false)),
                ScoredTokenKind::Normal | ScoredTokenKind::Byte => None,
            })
            .collect();
        let unknown = self
            .tokens
            .iter()
            .find(|token| token.kind == ScoredTokenKind::Unknown)
            .map(|token| &token.text);

        let to_marks = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
        let to_spaces =
            json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " });
        let mut normalizers = vec![to_marks];
        let mut decoders = vec![
            to_spaces,
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if self.adds_space_prefix {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        let texts = self.texts();
        let ids: BTreeMap<&str, usize> = texts
            .iter()
            .map(|(id, token)| (token.text.as_str(), *id))
            .collect();
        let scores: Vec<_> = texts
            .iter()
            .map(|(_, token)| (token.text.as_str(), token.score))
            .collect();
        let document = Document {
            added_tokens,
            normalizer: Some(json!({ "type": "Sequence", "normalizers": normalizers })),
            begin,
            decoder: Some(json!({ "type": "Sequence", "decoders": decoders })),
            model: json!({
                "type": "BPE",
                "dropout": null,
                "unk_token": unknown,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": true,
                "byte_fallback": true,
                "ignore_merges": false,
                "vocab": vocabulary,
                "merges": merges(&ids, &scores)?,
            }),
            ..Document::default()
        };
        Tokenizer::from_document(document.into_value(), tokens)
    }

    /// Returns the texts that may be parts of others, with their scores, in the order of ids.
    fn texts(&self) -> Vec<(usize, &ScoredToken)> {
        let is_text = |(_, token): &(usize, &ScoredToken)| {
            matches!(
                token.kind,
                ScoredTokenKind::Normal | ScoredTokenKind::UserDefined
            )
        };
        self.tokens.iter().enumerate().filter(is_text).collect()
    }
}
