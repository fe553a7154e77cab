//! Byte-level BPE as in GPT-2: any text can be written, whatever its characters.

use serde_json::{Value, json};

use super::document::{Document, vocabulary};
use super::{SpecialTokens, Tokenizer, TokenizerError};

/// How text is split before bytes are merged; merges never cross a split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PreTokenizer {
    /// GPT-2's pattern: contractions, words, numbers, punctuation, spaces.
    Gpt2,
    /// Each digit alone, then GPT-2's pattern (StarCoder, SmolLM).
    SingleDigits,
    /// LLaMA 3's pattern; a split that is a token as a whole is taken without merging.
    Llama3,
    /// Qwen 2's pattern, which is LLaMA 3's with each digit alone, after composing characters (NFC).
    Qwen2,
}

impl PreTokenizer {
    pub(super) fn document(self) -> Value {
        let byte_level = |use_regex: bool| {
            json!({
                "type": "ByteLevel",
                "add_prefix_space": false,
                "trim_offsets": true,
                "use_regex": use_regex,
            })
        };
        let split = |numbers: &str| {
            let words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+";
            let rest = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
            json!({
                "type": "Split",
                "pattern": { "Regex": format!("{words}|{numbers}|{rest}") },
                "behavior": "Isolated",
                "invert": false,
            })
        };
        let first = match self {
            Self::Gpt2 => return byte_level(true),
            Self::SingleDigits => json!({ "type": "Digits", "individual_digits": true }),
            Self::Llama3 => split(r"\p{N}{1,3}"),
            Self::Qwen2 => split(r"\p{N}"),
        };
        let second = byte_level(self == Self::SingleDigits);
        json!({ "type": "Sequence", "pretokenizers": [first, second] })
    }
}

/// The parts of a byte-level BPE tokenizer.
#[derive(Debug, Clone)]
pub struct ByteLevelBpe {
    /// Tokens by id, bytes written as GPT-2's stand-in characters.
    pub tokens: Vec<String>,
    /// Pairs to merge, most urgent first.
    pub merges: Vec<(String, String)>,
    /// Tokens matched before anything else, and whether decoding leaves them out.
    pub added: Vec<(String, bool)>,
    /// How text is split.
    pub pre_tokenizer: PreTokenizer,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Fills batches.
    pub pad: Option<u32>,
    /// Whether every text begins with `bos`.
    pub adds_bos: bool,
}

impl ByteLevelBpe {
    /// Builds the tokenizer.
    pub fn into_tokenizer(self) -> Result<Tokenizer, TokenizerError> {
        let vocabulary = vocabulary(self.tokens.iter().map(String::as_str))?;
        let spelt = |id: Option<u32>| {
            let token = id.and_then(|id| self.tokens.get(id as usize));
            token.cloned()
        };
        let tokens = SpecialTokens {
            bos: spelt(self.bos),
            eos: spelt(self.eos),
            pad: spelt(self.pad),
        };
        let begin = tokens.bos.clone().zip(self.bos).filter(|_| self.adds_bos);
        let id = |token: &String| vocabulary.get(token).and_then(Value::as_u64);
        let added_tokens = self
            .added
            .iter()
            .filter_map(|(token, special)| Some((token.clone(), id(token)? as u32, *special)))
            .collect();
        let document = Document {
            added_tokens,
            normalizer: (self.pre_tokenizer == PreTokenizer::Qwen2)
                .then(|| json!({ "type": "NFC" })),
            pre_tokenizer: Some(self.pre_tokenizer.document()),
            begin,
            decoder: Some(json!({
                "type": "ByteLevel",
                "add_prefix_space": true,
                "trim_offsets": true,
                "use_regex": true,
            })),
            model: json!({
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": self.pre_tokenizer == PreTokenizer::Llama3,
                "vocab": vocabulary,
                "merges": self.merges,
            }),
        };
        Tokenizer::from_document(document.into_value(), tokens)
    }
}
