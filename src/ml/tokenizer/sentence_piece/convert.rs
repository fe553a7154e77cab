//! From pieces to a `tokenizer.json`, as `convert_slow_tokenizer` of `transformers` 4.57.6 makes it.
//!
//! What the conversion passes over, we pass over: SentencePiece itself (the slow tokenizer) differs where spaces stand
//! together or beside a special token, by the replacements that the class LLaMA leaves out, and in the bytes that T5 and
//! XLM-R do not fall back to.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::super::TokenizerError;
use super::super::charsmap;
use super::super::document::{Place, template, vocabulary};
use super::super::merges::merges;
use super::{Algorithm, Piece, PieceKind, SentencePieceModel, malformed};

/// Stands for a space inside pieces.
const SPACE: &str = "\u{2581}";
/// Most of T5's `extra_ids`, of which it has 100.
const MOST_EXTRA_IDS: u64 = 1 << 12;
/// What Gemma's pieces have in place of a tabulator, where they lack one.
const TABULATOR: [&str; 2] = ["\t", "<0x09>"];

/// A class of `transformers` that is made of a SentencePiece file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum PieceClass {
    /// LLaMA 1 and 2, Mistral, Phi 3.
    Llama,
    /// Gemma.
    Gemma,
    /// T5.
    T5,
    /// XLM-RoBERTa, whose ids are one more than the file's.
    XlmRoberta,
}

impl PieceClass {
    /// Returns the class of a name without `Fast`.
    pub(in super::super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "LlamaTokenizer" => Self::Llama,
            "GemmaTokenizer" => Self::Gemma,
            "T5Tokenizer" => Self::T5,
            "XLMRobertaTokenizer" => Self::XlmRoberta,
            _ => return None,
        })
    }

    /// Returns the tokens that a folder means where it does not name them.
    fn own_tokens(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Llama => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
            ],
            Self::Gemma => &[
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("pad_token", "<pad>"),
                ("unk_token", "<unk>"),
            ],
            Self::T5 => &[
                ("eos_token", "</s>"),
                ("pad_token", "<pad>"),
                ("unk_token", "<unk>"),
            ],
            Self::XlmRoberta => &[
                ("bos_token", "<s>"),
                ("cls_token", "<s>"),
                ("eos_token", "</s>"),
                ("mask_token", "<mask>"),
                ("pad_token", "<pad>"),
                ("sep_token", "</s>"),
                ("unk_token", "<unk>"),
            ],
        }
    }

    /// Returns the names that the file may have in a folder.
    pub(in super::super) fn file_names(self) -> [&'static str; 2] {
        let own = match self {
            Self::Llama | Self::Gemma => "tokenizer.model",
            Self::T5 => "spiece.model",
            Self::XlmRoberta => "sentencepiece.bpe.model",
        };
        ["tokenizer.model", own]
    }
}

/// What a folder's settings say about the conversion.
struct Options {
    /// Keeps what older versions did with a text after a special token.
    legacy: bool,
    adds_space: bool,
}

impl Options {
    fn read(config: &Map<String, Value>) -> Result<Self, TokenizerError> {
        let flag = |key: &str, absent: bool, null: bool| match config.get(key) {
            None => Ok(absent),
            Some(Value::Null) => Ok(null),
            Some(Value::Bool(set)) => Ok(*set),
            Some(other) => Err(TokenizerError::Invalid(format!(
                "tokenizer_config.json: `{key}` is {other}, expected true or false"
            ))),
        };
        Ok(Self {
            legacy: flag("legacy", true, true)?,
            // A null is not absent: it is false, as in Python.
            adds_space: flag("add_prefix_space", true, false)?,
        })
    }

    /// Returns where a space is put before a text.
    fn scheme(&self, knows_legacy: bool) -> &'static str {
        match (self.adds_space, self.legacy || !knows_legacy) {
            (false, _) => "never",
            (true, true) => "always",
            (true, false) => "first",
        }
    }
}

/// Builds the document, and writes into the settings the tokens that the class means where they do not name them.
pub(in super::super) fn document(
    model: &SentencePieceModel,
    class: PieceClass,
    config: &mut Map<String, Value>,
) -> Result<Value, TokenizerError> {
    let options = Options::read(config)?;
    for (key, token) in class.own_tokens() {
        config.entry(*key).or_insert_with(|| Value::from(*token));
    }
    if class == PieceClass::XlmRoberta
        && let Some(mask) = config.get_mut("mask_token")
        && let Some(text) = mask.as_str()
    {
        // Like a word, it takes the space before it.
        *mask = json!({ "content": text, "lstrip": true, "normalized": false });
    }
    let extra = match class {
        PieceClass::T5 => extra_ids(config)?,
        _ => Vec::new(),
    };
    let scored = scored_texts(model, class, config, &extra)?;
    let id_of: BTreeMap<&str, usize> = (0..)
        .zip(&scored)
        .map(|(id, (text, _))| (*text, id))
        .collect();
    let falls_back = matches!(class, PieceClass::Llama | PieceClass::Gemma);
    let algorithm = algorithm(model, class, &scored, falls_back)?;
    let added: Vec<_> = model
        .pieces
        .iter()
        .filter(|piece| piece.kind != PieceKind::Other)
        .filter_map(|piece| Some((*id_of.get(&*piece.text)?, piece)))
        .collect();
    let added: Vec<_> = added
        .into_iter()
        .map(|(id, piece)| {
            json!({
                "id": id, "content": piece.text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": is_special(piece, class),
            })
        })
        .collect();
    let id = |token: &str| id_of.get(token).map(|id| *id as u32);
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": normalizer(model, class, &options),
        "pre_tokenizer": pre_tokenizer(class, &options),
        "post_processor": post_processor(class, id)?,
        "decoder": decoder(class, &options),
        "model": algorithm,
    }))
}

/// Returns what takes texts apart.
fn algorithm(
    model: &SentencePieceModel,
    class: PieceClass,
    scored: &[(&str, f32)],
    falls_back: bool,
) -> Result<Value, TokenizerError> {
    match model.algorithm {
        Algorithm::Unigram => {
            let unk_id = match class {
                PieceClass::Llama => 0,
                PieceClass::Gemma | PieceClass::XlmRoberta => 3,
                PieceClass::T5 => model.unk_id,
            };
            let unk_id = usize::try_from(unk_id)
                .ok()
                .filter(|id| *id < scored.len())
                .ok_or_else(|| {
                    malformed(format!(
                        "its unknown piece has the id {unk_id}, but there are {} pieces",
                        scored.len()
                    ))
                })?;
            // A score is widened, as Python widens it.
            let pieces: Vec<_> = scored
                .iter()
                .map(|(text, score)| json!([text, f64::from(*score)]))
                .collect();
            Ok(
                json!({ "type": "Unigram", "unk_id": unk_id, "vocab": pieces, "byte_fallback": falls_back }),
            )
        }
        Algorithm::Bpe => {
            let mut ids: BTreeMap<&str, usize> = (0..)
                .zip(&model.pieces)
                .map(|(id, piece)| (&*piece.text, id))
                .collect();
            let [tabulator, byte] = TABULATOR;
            if class == PieceClass::Gemma
                && !ids.contains_key(tabulator)
                && let Some(id) = ids.get(byte)
            {
                ids.insert(tabulator, *id);
            }
            Ok(json!({
                "type": "BPE",
                "dropout": null,
                "unk_token": model.unk_piece,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": true,
                "byte_fallback": falls_back,
                "ignore_merges": false,
                "vocab": vocabulary(scored.iter().map(|(text, _)| *text))?,
                "merges": merges(&ids, scored)?,
            }))
        }
    }
}

fn is_special(piece: &Piece, class: PieceClass) -> bool {
    let marks_turns = ["<start_of_turn>", "<end_of_turn>"].contains(&&*piece.text);
    piece.kind == PieceKind::Control || class == PieceClass::Gemma && marks_turns
}

/// Returns the texts by id, with their scores.
fn scored_texts<'a>(
    model: &'a SentencePieceModel,
    class: PieceClass,
    config: &'a Map<String, Value>,
    extra: &'a [String],
) -> Result<Vec<(&'a str, f32)>, TokenizerError> {
    let pieces = model.pieces.iter().map(|piece| (&*piece.text, piece.score));
    let mut texts: Vec<(&str, f32)> = match class {
        // Scores of the first three are not looked at.
        PieceClass::Llama => (0..)
            .zip(pieces)
            .map(|(id, (text, score))| (text, if id < 3 { 0.0 } else { score }))
            .collect(),
        PieceClass::Gemma => {
            let first = ["pad_token", "eos_token", "bos_token"].map(|key| {
                let token = config.get(key);
                let text = token.and_then(|token| token.get("content").unwrap_or(token).as_str());
                text.filter(|text| !text.is_empty()).ok_or_else(|| {
                    malformed(format!(
                        "tokenizer_config.json: `{key}` names no token, which a Gemma must have"
                    ))
                })
            });
            let mut texts = Vec::new();
            for text in first {
                texts.push((text?, 0.0));
            }
            texts.extend(pieces.skip(3));
            let [tabulator, byte] = TABULATOR;
            if !texts.iter().any(|(text, _)| *text == tabulator)
                && let Some(entry) = texts.iter_mut().find(|(text, _)| *text == byte)
            {
                *entry = (tabulator, 0.0);
            }
            texts
        }
        PieceClass::T5 => pieces
            .chain(extra.iter().rev().map(|text| (&**text, 0.0)))
            .collect(),
        PieceClass::XlmRoberta => {
            let first = ["<s>", "<pad>", "</s>", "<unk>"].map(|text| (text, 0.0));
            first
                .into_iter()
                .chain(pieces.skip(3))
                .chain([("<mask>", 0.0)])
                .collect()
        }
    };
    texts.shrink_to_fit();
    let mut sorted: Vec<&str> = texts.iter().map(|(text, _)| *text).collect();
    sorted.sort_unstable();
    if sorted.first().is_some_and(|text| text.is_empty()) {
        return Err(malformed("a piece is empty"));
    }
    match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(malformed(format!("it has the piece `{}` twice", pair[0]))),
        None => Ok(texts),
    }
}

/// Returns T5's further tokens, which are counted in `extra_ids`, and names them in the settings.
fn extra_ids(config: &mut Map<String, Value>) -> Result<Vec<String>, TokenizerError> {
    let wrong = |found: &Value| {
        TokenizerError::Invalid(format!(
            "tokenizer_config.json: `extra_ids` is {found}, expected a whole number up to {MOST_EXTRA_IDS}"
        ))
    };
    let count = match config.get("extra_ids") {
        None => 100,
        Some(count) => count
            .as_u64()
            .filter(|count| *count <= MOST_EXTRA_IDS)
            .ok_or_else(|| wrong(count))?,
    };
    let tokens: Vec<String> = (0..count).map(|id| format!("<extra_id_{id}>")).collect();
    let key = "additional_special_tokens";
    let named = config.entry(key).or_insert(Value::Null);
    if named.is_null() {
        *named = json!([]);
    }
    if let Some(named) = named.as_array_mut() {
        let is_extra = |token: &&Value| {
            let content = token.get("content").unwrap_or(token);
            content
                .as_str()
                .is_some_and(|text| text.contains("<extra_id_"))
        };
        let found = named.iter().filter(is_extra).count();
        if found == 0 {
            named.extend(tokens.iter().map(|token| json!(token)));
        } else if count > 0 && found as u64 != count {
            return Err(TokenizerError::Invalid(format!(
                "tokenizer_config.json: `{key}` names {found} tokens `<extra_id_...>`, expected {count}, which is \
                 `extra_ids` (100 if it is absent)"
            )));
        }
    }
    Ok(tokens)
}

fn normalizer(model: &SentencePieceModel, class: PieceClass, options: &Options) -> Value {
    let marks = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let steps = match class {
        PieceClass::Gemma => return marks,
        PieceClass::Llama if !options.legacy => return Value::Null,
        PieceClass::Llama if options.adds_space => {
            vec![json!({ "type": "Prepend", "prepend": SPACE }), marks]
        }
        PieceClass::Llama => vec![marks],
        PieceClass::T5 | PieceClass::XlmRoberta => {
            let table = json!({
                "type": "Precompiled",
                "precompiled_charsmap": charsmap::to_base64(&model.charsmap),
            });
            let strip = json!({ "type": "Strip", "strip_left": false, "strip_right": true });
            let join =
                json!({ "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": SPACE });
            let first = (!model.charsmap.is_empty()).then_some(table);
            first.into_iter().chain([strip, join]).collect()
        }
    };
    json!({ "type": "Sequence", "normalizers": steps })
}

fn metaspace(scheme: &str, splits: bool) -> Value {
    json!({ "type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": splits })
}

fn pre_tokenizer(class: PieceClass, options: &Options) -> Value {
    match class {
        PieceClass::Llama if options.legacy => Value::Null,
        PieceClass::Llama => metaspace(options.scheme(true), false),
        PieceClass::Gemma => json!({
            "type": "Split", "pattern": { "String": " " }, "behavior": "MergedWithPrevious", "invert": false,
        }),
        PieceClass::T5 => metaspace(options.scheme(true), true),
        // The class has neither setting.
        PieceClass::XlmRoberta => metaspace("always", true),
    }
}

/// Returns what is put around texts; the classes LLaMA and Gemma do so by their own settings.
fn post_processor(
    class: PieceClass,
    id: impl Fn(&str) -> Option<u32>,
) -> Result<Value, TokenizerError> {
    let (begin, end) = ("<s>", "</s>");
    let first = Place::Text("A", 0);
    let second = Place::Text("B", 0);
    let (single, pair) = match class {
        PieceClass::Llama | PieceClass::Gemma => return Ok(Value::Null),
        PieceClass::T5 => (
            vec![first, Place::Token(end)],
            vec![first, Place::Token(end), second, Place::Token(end)],
        ),
        PieceClass::XlmRoberta => {
            let [begin, end] = [begin, end].map(Place::Token);
            (
                vec![begin, first, end],
                vec![begin, first, end, end, second, end],
            )
        }
    };
    let mut tokens = Vec::new();
    for token in [begin, end] {
        if single.contains(&Place::Token(token)) {
            let id = id(token).ok_or_else(|| {
                malformed(format!(
                    "it has no piece `{token}`, which its class puts around texts"
                ))
            })?;
            tokens.push((token, id));
        }
    }
    Ok(template(&single, &pair, &tokens))
}

fn decoder(class: PieceClass, options: &Options) -> Value {
    let mut steps = match class {
        PieceClass::T5 => return metaspace(options.scheme(true), true),
        PieceClass::XlmRoberta => return metaspace("always", true),
        PieceClass::Llama | PieceClass::Gemma => vec![
            json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ],
    };
    if class == PieceClass::Llama && options.adds_space {
        steps.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    json!({ "type": "Sequence", "decoders": steps })
}
