//! Text to token ids and back: a thin layer over the `tokenizers` crate.
//!
//! Whatever a tokenizer comes from (a `tokenizer.json`, a GGUF or llama2.c file, training), it is built from
//! one JSON document in Hugging Face's format, checked first: the crate panics on some damaged documents.
//!
//! SentencePiece's `tokenizer.model` (`spiece.model`, `sentencepiece.bpe.model`) becomes what the fast tokenizers of
//! transformers 4.57.6 are, for the classes of LLaMA, Gemma, T5 and XLM-R: the same ids and texts, also where SentencePiece
//! itself has others, around several spaces, special tokens and letters that T5 has no piece for. `tokenizer_config.json`,
//! `special_tokens_map.json` and `added_tokens.json` are applied as there.

mod added;
mod byte_level;
mod charsmap;
pub mod chat;
mod chat_template;
mod document;
mod merges;
mod parts;
mod scored;
mod sentence_piece;
mod settings;
mod special;
mod template;
#[cfg(test)]
mod tests;
mod train;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value, json};
use tokenizers::{Decoder, Model};

use settings::{CLEANS_UP, Settings};

use super::documents::{check_values, read_tokenizer};

pub use byte_level::{ByteLevelBpe, PreTokenizer};
pub use chat_template::KEY as CHAT_TEMPLATE;
pub use scored::{ScoredToken, ScoredTokenKind, ScoredVocabulary};
pub use settings::MODEL_INPUT_NAMES;
pub use special::SpecialTokens;
pub use template::{PromptTemplate, TemplateError};
pub use train::{TokenizerAlgorithm, train_tokenizer};

use crate::quiet::catch_quietly;

/// Files that a tokenizer is read from, the first that is there.
const FILES: [&str; 4] = [
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
];

/// A tokenizer could not be built or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The operating system refused; the message carries the path.
    #[error(transparent)]
    Io(#[from] std::io::Error),

    /// The document does not describe a tokenizer.
    #[error("invalid tokenizer: {0}")]
    Invalid(String),

    /// A special token is not in the vocabulary.
    #[error("{role} token `{token}` is not in the vocabulary")]
    UnknownSpecialToken {
        /// begin, end or padding.
        role: &'static str,
        /// The token.
        token: String,
    },

    /// A setting beside the document contradicts it, and is not applied.
    #[error(
        "tokenizer_config.json: {what}, but {why}; make the two agree (its class is `{class}`)"
    )]
    Overruled {
        /// The key and its value.
        what: String,
        /// What is so instead.
        why: String,
        /// The class that the folder names.
        class: String,
    },

    /// A SentencePiece file whose class is made otherwise.
    #[error(
        "{file}: the tokenizer's class is `{class}`, which is not made of a SentencePiece file here: LlamaTokenizer, \
         GemmaTokenizer, T5Tokenizer and XLMRobertaTokenizer are (of `tokenizer.model`, or the file that `transformers` \
         has for the class); `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` writes a `tokenizer.json`"
    )]
    Class {
        /// The file that was found.
        file: &'static str,
        /// The class that the folder names.
        class: String,
    },

    /// Training was asked for a vocabulary that cannot hold the obligatory tokens.
    #[error("vocabulary size {found} is too small, expected at least {least}: {why}")]
    VocabularyTooSmall {
        /// The size asked for.
        found: usize,
        /// The smallest possible.
        least: usize,
        /// What takes the room.
        why: String,
    },

    /// A text could not be encoded or ids not be decoded.
    #[error("cannot {action}: {reason}")]
    Text {
        /// encode or decode.
        action: &'static str,
        /// The reason.
        reason: String,
    },
}

/// A tokenizer and its special ids.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    tokens: SpecialTokens,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    /// Ids that end a text, `eos` first.
    ends: Vec<u32>,
    /// Ids that the document puts before and after a text.
    prefix: Vec<u32>,
    suffix: Vec<u32>,
    vocab_size: usize,
    /// Added tokens as they are spelt, and whether they are special.
    added: BTreeMap<u32, (String, bool)>,
    /// Further keys of `tokenizer_config.json`, for those who open a written folder.
    carried: Map<String, Value>,
}

/// Calls the crate, which panics on what some documents ask for: a pattern that matches nothing, say.
fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    let called = catch_quietly(AssertUnwindSafe(call));
    called.unwrap_or_else(|| {
        Err("the tokenizer is damaged: expected one that handles every text".into())
    })
}

/// Returns the ids that a tokenizer puts before and after every text.
fn surroundings(inner: &tokenizers::Tokenizer) -> tokenizers::Result<(Vec<u32>, Vec<u32>)> {
    let ids = |text: &str, surrounded: bool| -> tokenizers::Result<Vec<u32>> {
        Ok(guarded(|| inner.encode(text, surrounded))?
            .get_ids()
            .to_vec())
    };
    for text in ["a", "0", ".", " "] {
        let bare = ids(text, false)?;
        if bare.is_empty() {
            continue;
        }
        let whole = ids(text, true)?;
        let place = whole.windows(bare.len()).position(|window| window == bare);
        let place = place.ok_or("the template for one text does not hold the text")?;
        let suffix = whole[place + bare.len()..].to_vec();
        return Ok((whole[..place].to_vec(), suffix));
    }
    // No probe is a token: all that surrounds nothing is taken to come first.
    Ok((ids("", true)?, Vec::new()))
}

impl Tokenizer {
    /// Builds a tokenizer from the bytes of a `tokenizer.json`.
    ///
    /// Truncation and padding that the document asks for are dropped; callers batch for themselves.
    pub fn from_json(document: &[u8], tokens: SpecialTokens) -> Result<Self, TokenizerError> {
        let document: Value = serde_json::from_slice(document)
            .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        Self::from_document(document, tokens)
    }

    fn from_document(document: Value, tokens: SpecialTokens) -> Result<Self, TokenizerError> {
        let inner = document::build(document)?;
        let invalid = |error: tokenizers::Error| TokenizerError::Invalid(error.to_string());
        let id = |role: &'static str, token: &Option<String>| match token {
            None => Ok(None),
            Some(token) => inner.token_to_id(token).map(Some).ok_or_else(|| {
                TokenizerError::UnknownSpecialToken {
                    role,
                    token: token.clone(),
                }
            }),
        };
        let bos = id("begin", &tokens.bos)?;
        let eos = id("end", &tokens.eos)?;
        let pad = id("padding", &tokens.pad)?;
        let added = inner.get_added_tokens_decoder().into_iter();
        let added = added.map(|(id, token)| (id, (token.content, token.special)));
        let added = added.collect();
        let largest = inner.get_vocab(true).into_values().max();
        let vocab_size = largest.map_or(0, |id| id as usize + 1);
        let (prefix, suffix) = surroundings(&inner).map_err(invalid)?;
        Ok(Self {
            inner,
            tokens,
            bos,
            eos,
            pad,
            ends: eos.into_iter().collect(),
            prefix,
            suffix,
            vocab_size,
            added,
            carried: Map::new(),
        })
    }

    /// Returns the file that a folder's tokenizer is read from: `tokenizer.json`, or that of SentencePiece.
    pub fn file(folder: &Path) -> Option<PathBuf> {
        let paths = FILES.iter().map(|name| folder.join(name));
        paths.into_iter().find(|path| path.exists())
    }

    /// Loads the tokenizer of a folder: `tokenizer.json` or else SentencePiece's `tokenizer.model`, with what
    /// `tokenizer_config.json` and its companions say of it.
    pub fn load(folder: &Path) -> Result<Self, TokenizerError> {
        let path = folder.join(FILES[0]);
        let invalid = |error: serde_json::Error| TokenizerError::Invalid(error.to_string());
        let mut settings = Settings::read(folder)?;
        let is_there = path.exists();
        let converted = if !is_there || settings.wants_pieces(folder) {
            settings.convert(folder)?
        } else {
            None
        };
        let mut document = match converted {
            Some(converted) if !is_there => converted,
            converted => {
                let bytes = read_tokenizer(&path)?;
                check_values(&bytes).map_err(invalid)?;
                let document: Value = serde_json::from_slice(&bytes).map_err(invalid)?;
                match converted {
                    Some(converted) if !document::is_same(&converted, &document)? => {
                        settings.keep_added(&document);
                        converted
                    }
                    _ => {
                        settings.vocabulary = FILES[0];
                        document
                    }
                }
            }
        };
        let mut tokens = settings.apply(&mut document)?;
        let carried = settings.carried(&document);
        let mut loaded = Self::from_document(document, tokens.clone())?;
        let surroundings = (&*loaded.prefix, &*loaded.suffix);
        if let Some((begin, end)) = settings.surroundings(loaded.bos, loaded.eos, surroundings)? {
            let named = |token: &Option<String>, id: Option<u32>| token.clone().zip(id);
            let (begin, end) = (named(&tokens.bos, begin), named(&tokens.eos, end));
            let mut document: Value = serde_json::from_str(&loaded.to_json()?).map_err(invalid)?;
            document["post_processor"] = match (&begin, &end) {
                (None, None) => Value::Null,
                _ => document::surround(begin.as_ref(), end.as_ref()),
            };
            loaded = Self::from_document(document, tokens)?;
        } else {
            // A folder that names no tokens at all may have the model name them.
            let [bos, eos] = settings.model_ids;
            let spelt = |id: Option<u32>| id.and_then(|id| loaded.id_to_token(id));
            if tokens.bos.is_none() && tokens.eos.is_none() {
                (tokens.bos, tokens.eos) = (spelt(bos), spelt(eos));
                (loaded.bos, loaded.eos) = (
                    bos.filter(|_| tokens.bos.is_some()),
                    eos.filter(|_| tokens.eos.is_some()),
                );
                loaded.ends = loaded.eos.into_iter().collect();
                loaded.tokens = tokens;
            }
        }
        loaded.carried = carried;
        Ok(loaded)
    }

    /// Returns the same tokenizer with other ids that end a text, its own first.
    pub fn with_end_ids(mut self, ids: &[u32]) -> Self {
        self.ends = self.eos.into_iter().collect();
        for id in ids {
            if !self.ends.contains(id) {
                self.ends.push(*id);
            }
        }
        self
    }

    /// Returns the same tokenizer with `token` as the only one that ends a text.
    pub fn with_end_token(mut self, token: &str) -> Result<Self, TokenizerError> {
        let id = self.token_to_id(token);
        let id = id.ok_or_else(|| TokenizerError::UnknownSpecialToken {
            role: "end",
            token: token.to_owned(),
        })?;
        self.tokens.eos = Some(token.to_owned());
        self.eos = Some(id);
        self.ends = vec![id];
        Ok(self)
    }

    /// Returns the `tokenizer.json`; equal tokenizers give equal bytes.
    pub fn to_json(&self) -> Result<String, TokenizerError> {
        let text = self.inner.to_string(true);
        text.map_err(|error| TokenizerError::Invalid(error.to_string()))
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` into a folder.
    pub fn save(&self, folder: &Path) -> Result<(), TokenizerError> {
        let mut config = json!({
            "bos_token": self.tokens.bos,
            CLEANS_UP: false,
            "eos_token": self.tokens.eos,
            "pad_token": self.tokens.pad,
            "tokenizer_class": "PreTrainedTokenizerFast",
        });
        for (key, value) in &self.carried {
            config[key] = value.clone();
        }
        fs_err::create_dir_all(folder)?;
        fs_err::write(folder.join("tokenizer.json"), self.to_json()?)?;
        fs_err::write(
            folder.join("tokenizer_config.json"),
            format!("{config:#}\n"),
        )?;
        Ok(())
    }

    /// Returns the same tokenizer, cutting encoded texts to `length` ids with special tokens kept.
    pub fn truncated_to(mut self, length: usize) -> Result<Self, TokenizerError> {
        let special = self.encode_with_special_tokens("")?.len();
        if length <= special {
            return Err(TokenizerError::Invalid(format!(
                "texts cannot be cut to {length} ids, {special} are special"
            )));
        }
        let from_the_left = self
            .carried
            .get("truncation_side")
            .is_some_and(|side| side == "left");
        let params = tokenizers::TruncationParams {
            max_length: length,
            direction: if from_the_left {
                tokenizers::TruncationDirection::Left
            } else {
                tokenizers::TruncationDirection::Right
            },
            ..Default::default()
        };
        self.inner
            .with_truncation(Some(params))
            .map_err(|error| TokenizerError::Invalid(error.to_string()))?;
        Ok(self)
    }

    /// Encodes a text as it stands: special tokens spelt out in it are recognised, none is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.ids(text, false)
    }

    /// Encodes a text with whatever the tokenizer puts around one, such as `[CLS]` and `[SEP]`.
    pub fn encode_with_special_tokens(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.ids(text, true)
    }

    /// Encodes the beginning of a document: what this tokenizer puts before a text, such as a begin token, then the
    /// text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.prefix.clone();
        ids.extend(self.encode(text)?);
        Ok(ids)
    }

    /// Cuts the tokens of [`Tokenizer::encode_prompt`] to at most `most`: the begin token stays, the oldest of the
    /// others go.
    pub fn cut_prompt(&self, mut ids: Vec<u32>, most: Option<usize>) -> Vec<u32> {
        if let Some(excess) = most.and_then(|most| ids.len().checked_sub(most)) {
            let first = self.prefix.len().min(ids.len() - excess);
            ids.drain(first..first + excess);
        }
        ids
    }

    /// Decodes the tokens of [`Tokenizer::encode_prompt`], cut or not: special tokens are spelt out, all but
    /// those that it put first.
    pub fn decode_prompt(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let text = ids.strip_prefix(self.prefix.as_slice()).unwrap_or(ids);
        self.text(text, false)
    }

    /// Encodes texts in parallel, each as [`Tokenizer::encode`] does; results are in order.
    pub fn encode_batch<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
    ) -> Result<Vec<Vec<u32>>, TokenizerError> {
        texts
            .par_iter()
            .map(|text| self.encode(text.as_ref()))
            .collect()
    }

    fn ids(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = guarded(|| self.inner.encode_fast(text, add_special_tokens));
        encoding
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TokenizerError::Text {
                action: "encode",
                reason: error.to_string(),
            })
    }

    /// Decodes ids to text, leaving special tokens out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        Ok(self.cleaned_up(self.text(ids, true)?))
    }

    /// Decodes ids to text with special tokens spelt out.
    pub fn decode_with_special_tokens(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        Ok(self.cleaned_up(self.text(ids, false)?))
    }

    /// Takes out of a decoded text the spaces that `transformers` takes out of it.
    fn cleaned_up(&self, text: String) -> String {
        if self.carried.get(CLEANS_UP) != Some(&Value::Bool(true)) {
            return text;
        }
        let marks = [
            (" .", "."),
            (" ?", "?"),
            (" !", "!"),
            (" ,", ","),
            (" ' ", "'"),
            (" n't", "n't"),
            (" 'm", "'m"),
            (" 's", "'s"),
            (" 've", "'ve"),
            (" 're", "'re"),
        ];
        marks
            .iter()
            .fold(text, |text, (spaced, mark)| text.replace(spaced, mark))
    }

    fn text(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, TokenizerError> {
        // As version 0.22 of the crate, which `transformers` 4.57 has. From 0.23 on, its own decoding spells a token that is
        // normalised in its normalised form, and does not know it as special by that.
        let tokens: Vec<String> = ids
            .iter()
            .filter_map(|id| match self.added.get(id) {
                Some((_, true)) if skip_special_tokens => None,
                Some((token, _)) => Some(token.clone()),
                None => self.inner.get_model().id_to_token(*id),
            })
            .collect();
        let text = guarded(|| match self.inner.get_decoder() {
            Some(decoder) => decoder.decode(tokens),
            None => Ok(tokens.join(" ")),
        });
        text.map_err(|error| TokenizerError::Text {
            action: "decode",
            reason: error.to_string(),
        })
    }

    /// Returns the id of a token.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Returns the token of an id, as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Returns one more than the largest id.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Returns the id that begins a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// Returns the id that ends a text.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// Returns the id that fills batches: the padding token's, else the end token's, else 0.
    ///
    /// Padding is masked everywhere, so that which id fills it changes nothing.
    pub fn pad_id(&self) -> u32 {
        self.pad.or(self.eos).unwrap_or(0)
    }

    /// Returns the id of a padding token that ends no text.
    pub fn own_pad_id(&self) -> Option<u32> {
        self.pad.filter(|id| !self.ends.contains(id))
    }

    /// Returns the ids that end a text, the end token's own first.
    pub fn end_ids(&self) -> &[u32] {
        &self.ends
    }

    /// Returns the ids that this tokenizer puts before and after every text.
    pub fn surroundings(&self) -> (&[u32], &[u32]) {
        (&self.prefix, &self.suffix)
    }

    /// Returns the same tokenizer for a model that takes at most `length` ids.
    pub fn with_max_length(mut self, length: usize) -> Self {
        self.carried
            .insert("model_max_length".to_owned(), length.into());
        self
    }

    /// Returns the same tokenizer with the template of chats that its file has.
    pub fn with_chat_template(mut self, template: &str) -> Self {
        self.carried
            .insert("chat_template".to_owned(), template.into());
        self
    }

    /// Returns the template of chats that the folder has, the default one of several.
    pub fn chat_template(&self) -> Option<&str> {
        match self.carried.get("chat_template")? {
            Value::String(template) => Some(template),
            Value::Array(named) => {
                let is_default = |named: &&Value| named["name"] == "default";
                named.iter().find(is_default)?["template"].as_str()
            }
            _ => None,
        }
    }

    /// Returns the same tokenizer for texts in lower case.
    pub fn lowered(self) -> Result<Self, TokenizerError> {
        let invalid = |error: serde_json::Error| TokenizerError::Invalid(error.to_string());
        let mut document: Value = serde_json::from_str(&self.to_json()?).map_err(invalid)?;
        parts::lower(&mut document);
        Ok(Self {
            inner: document::build(document)?,
            ..self
        })
    }

    /// Returns the greatest number of ids that the folder said its model takes.
    pub fn max_length(&self) -> Option<usize> {
        let length = self.carried.get("model_max_length")?.as_u64()?;
        usize::try_from(length).ok()
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size)
            .field("special_tokens", &self.tokens)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}
