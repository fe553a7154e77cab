//! The tokenizer inside a GGUF file.
//!
//! `tokenizer.ggml.model` names the algorithm: `gpt2` is byte-level BPE with a merge list, `llama` is a
//! SentencePiece BPE vocabulary with scores. How byte-level BPE splits text before merging is not in the
//! file but named by `tokenizer.ggml.pre`; the splits below are those of the tokenizers that carry the name
//! (`llama-vocab.cpp` of llama.cpp lists them).

use std::path::Path;

use super::super::FormatError;
use super::container::{GgufFile, Value};
use crate::ml::tokenizer::{
    ByteLevelBpe, PreTokenizer, ScoredToken, ScoredTokenKind, ScoredVocabulary, Tokenizer,
};

const TOKENS: &str = "tokenizer.ggml.tokens";

// Codes of `tokenizer.ggml.token_type`.
const UNKNOWN: f64 = 2.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;
const BYTE: f64 = 6.0;

/// Builds the tokenizer.
pub(super) fn read_tokenizer(path: &Path, file: &GgufFile) -> Result<Tokenizer, FormatError> {
    if file.flag("tokenizer.ggml.add_eos_token")? == Some(true) {
        return Err(FormatError::unsupported(
            path,
            "`tokenizer.ggml.add_eos_token` true".to_owned(),
            "only false is: a model that is to go on must not be given the end first",
        ));
    }
    let model = file.text("tokenizer.ggml.model")?.unwrap_or_default();
    let tokenizer = match model {
        "gpt2" => byte_level(path, file)?.into_tokenizer(),
        "llama" => scored(file)?.into_tokenizer(),
        other => {
            return Err(FormatError::unsupported(
                path,
                format!("`tokenizer.ggml.model` \"{other}\""),
                "gpt2 (byte-level BPE) and llama (SentencePiece BPE) are",
            ));
        }
    };
    tokenizer.map_err(FormatError::tokenizer(path))
}

fn byte_level(path: &Path, file: &GgufFile) -> Result<ByteLevelBpe, FormatError> {
    let tokens = file.texts(TOKENS)?;
    let kinds = kinds(file, tokens.len())?;
    let merges = file
        .texts("tokenizer.ggml.merges")?
        .iter()
        .map(|merge| {
            // A token may start with the separator's character only in escaped form, so the first one splits.
            merge
                .split_once(' ')
                .map(|(left, right)| (left.to_owned(), right.to_owned()))
                .ok_or_else(|| file.malformed(format!("merge `{merge}` is not a pair")))
        })
        .collect::<Result<_, _>>()?;
    let name = file.text("tokenizer.ggml.pre")?.unwrap_or("default");
    let pre_tokenizer = match name {
        "default" | "gpt-2" | "phi-2" | "jina-es" | "jina-de" | "mpt" | "olmo" | "jais" => {
            PreTokenizer::Gpt2
        }
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            PreTokenizer::SingleDigits
        }
        "llama3" | "llama-v3" | "llama-bpe" => PreTokenizer::Llama3,
        "qwen2" | "deepseek-r1-qwen" => PreTokenizer::Qwen2,
        other => {
            return Err(FormatError::unsupported(
                path,
                format!("`tokenizer.ggml.pre` \"{other}\""),
                "gpt-2, smollm, llama-bpe and qwen2 are; use the model's Hugging Face folder",
            ));
        }
    };
    let special = |kind: f64| [CONTROL, USER_DEFINED, UNKNOWN].contains(&kind);
    let added = tokens
        .iter()
        .zip(&kinds)
        .filter(|(_, kind)| special(**kind))
        .map(|(token, kind)| ((*token).to_owned(), *kind != USER_DEFINED))
        .collect();
    Ok(ByteLevelBpe {
        tokens: tokens.iter().map(|token| (*token).to_owned()).collect(),
        merges,
        added,
        pre_tokenizer,
        bos: id(file, "bos", tokens.len())?,
        eos: id(file, "eos", tokens.len())?,
        pad: id(file, "padding", tokens.len())?,
        // Converters leave it out of Llama 3's files, and llama.cpp adds it to these.
        adds_bos: file
            .flag("tokenizer.ggml.add_bos_token")?
            .unwrap_or(pre_tokenizer == PreTokenizer::Llama3),
    })
}

fn scored(file: &GgufFile) -> Result<ScoredVocabulary, FormatError> {
    let tokens = file.texts(TOKENS)?;
    let kinds = kinds(file, tokens.len())?;
    let scores = file
        .get("tokenizer.ggml.scores")
        .and_then(Value::numbers)
        .filter(|scores| scores.len() == tokens.len())
        .ok_or_else(|| {
            file.malformed(format!(
                "`tokenizer.ggml.scores` does not hold {} numbers",
                tokens.len()
            ))
        })?;
    let tokens = tokens.iter().zip(kinds).zip(scores);
    let tokens: Vec<_> = tokens
        .map(|((text, kind), score)| ScoredToken {
            text: (*text).to_owned(),
            score: score as f32,
            kind: match kind {
                UNKNOWN => ScoredTokenKind::Unknown,
                CONTROL => ScoredTokenKind::Control,
                USER_DEFINED => ScoredTokenKind::UserDefined,
                BYTE => ScoredTokenKind::Byte,
                _ => ScoredTokenKind::Normal,
            },
        })
        .collect();
    Ok(ScoredVocabulary {
        bos: id(file, "bos", tokens.len())?,
        eos: id(file, "eos", tokens.len())?,
        pad: id(file, "padding", tokens.len())?,
        adds_bos: file.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(true),
        adds_space_prefix: file
            .flag("tokenizer.ggml.add_space_prefix")?
            .unwrap_or(true),
        tokens,
    })
}

/// Returns the type code of every token; all are normal if the file does not say.
fn kinds(file: &GgufFile, count: usize) -> Result<Vec<f64>, FormatError> {
    const KEY: &str = "tokenizer.ggml.token_type";
    let Some(value) = file.get(KEY) else {
        return Ok(vec![1.0; count]);
    };
    value
        .numbers()
        .filter(|kinds| kinds.len() == count)
        .ok_or_else(|| file.malformed(format!("`{KEY}` does not hold {count} numbers")))
}

/// Reads the id of the token that the file has for a role.
pub(super) fn id(file: &GgufFile, name: &str, count: usize) -> Result<Option<u32>, FormatError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    match file.unsigned(&key)? {
        None => Ok(None),
        Some(id) if id < count as u64 => Ok(Some(id as u32)),
        Some(id) => Err(file.malformed(format!("`{key}` is {id}, but there are {count} tokens"))),
    }
}
