//! What stands beside a `tokenizer.json`: `tokenizer_config.json`, `special_tokens_map.json`, `config.json`.
//!
//! `transformers` builds a class around the document, and what these files say overrules it. It is applied to the
//! document as version 4.57 does, so that afterwards the document alone says how text is encoded; what the class
//! would pass over although the document does otherwise is refused.

use std::collections::BTreeSet;
use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::added::{Tokens, spelt};
use super::sentence_piece::{self, PieceClass, SentencePieceModel};
use super::{SpecialTokens, TokenizerError, chat_template};
use crate::ml::documents::{read_configuration, read_pieces};

const CONFIG: &str = "tokenizer_config.json";
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
/// Lists of further ones; the second is also a map by names.
const FURTHER: &str = "additional_special_tokens";
const EXTRA: &str = "extra_special_tokens";
/// What language models take of a tokenizer; without it `transformers` would hand them token types as well.
pub const MODEL_INPUT_NAMES: [&str; 2] = ["input_ids", "attention_mask"];
/// Whether decoded texts lose the spaces before marks of punctuation.
pub(super) const CLEANS_UP: &str = "clean_up_tokenization_spaces";
/// A `model_max_length` from here on means that there is none.
const NO_LENGTH: u64 = 1_000_000_000;

/// The class that `transformers` builds around a document, as far as it changes one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Replaces the post-processor by what `add_bos_token` and `add_eos_token` say.
    Llama,
    /// Writes `do_lower_case` and its companions into a `BertNormalizer`.
    Bert,
    /// Changes neither.
    Other,
}

/// The settings of a folder.
pub(super) struct Settings {
    class: Class,
    class_name: String,
    config: Map<String, Value>,
    /// Whether the folder has no `tokenizer_config.json`.
    is_silent: bool,
    /// Ids that `config.json` has for the begin and the end token, for folders that name none.
    pub(super) model_ids: [Option<u32>; 2],
    /// Tokens of `added_tokens.json`, which older folders have instead of `added_tokens_decoder`.
    older_tokens: Map<String, Value>,
    /// Name of the file that holds the vocabulary.
    pub(super) vocabulary: &'static str,
}

/// Special tokens by the names that a model has for them, in the order of the file, which numbers new ones.
#[derive(Deserialize)]
struct NamedTokens {
    extra_special_tokens: IndexMap<String, Value>,
}

fn invalid(reason: impl Into<String>) -> TokenizerError {
    TokenizerError::Invalid(reason.into())
}

impl Settings {
    /// Reads the files that are there.
    pub(super) fn read(folder: &Path) -> Result<Self, TokenizerError> {
        let object = |name: &str| -> Result<Option<Map<String, Value>>, TokenizerError> {
            let path = folder.join(name);
            if !path.exists() {
                return Ok(None);
            }
            let parsed = serde_json::from_slice(&read_configuration(&path)?);
            parsed
                .map(Some)
                .map_err(|error| invalid(format!("{name}: {error}")))
        };
        let stated = object(CONFIG)?;
        let is_silent = stated.is_none();
        let mut config = stated.unwrap_or_default();
        if config.get(EXTRA).is_some_and(Value::is_object) {
            let named = serde_json::from_slice(&read_configuration(&folder.join(CONFIG))?);
            let named: NamedTokens =
                named.map_err(|error| invalid(format!("{CONFIG}: {error}")))?;
            let tokens = named.extra_special_tokens.into_values().collect();
            config.insert(EXTRA.to_owned(), Value::Array(tokens));
        }
        // Older folders name their tokens in files of their own, which newer ones keep for older readers.
        let mut older_tokens = Map::new();
        if !config.contains_key("added_tokens_decoder") {
            if let Some(mut map) = object("special_tokens_map.json")? {
                join_further(&config, &mut map);
                config.extend(map);
            }
            older_tokens = object("added_tokens.json")?.unwrap_or_default();
        }
        if let Some(template) = chat_template::read(folder)? {
            config.insert(chat_template::KEY.to_owned(), template);
        } else if config.get(chat_template::KEY).is_none_or(Value::is_null)
            && let Some(template) = object(chat_template::OF_PROCESSORS)?
                .and_then(|mut map| map.remove(chat_template::KEY))
        {
            config.insert(chat_template::KEY.to_owned(), template);
        }
        let model = object("config.json")?.unwrap_or_default();
        let name = |map: &Map<String, Value>| {
            let name = map.get("tokenizer_class").and_then(Value::as_str)?;
            Some(name.strip_suffix("Fast").unwrap_or(name).to_owned())
        };
        let model_type = model.get("model_type").and_then(Value::as_str);
        let class_name = name(&config).or_else(|| name(&model));
        let class_name = class_name.unwrap_or_else(|| {
            match model_type {
                Some("llama" | "mistral" | "phi3") => "LlamaTokenizer",
                Some("gemma") => "GemmaTokenizer",
                Some("t5") => "T5Tokenizer",
                Some("xlm-roberta") => "XLMRobertaTokenizer",
                Some("bert") => "BertTokenizer",
                Some("distilbert") => "DistilBertTokenizer",
                _ => "PreTrainedTokenizer",
            }
            .to_owned()
        });
        let class = match class_name.as_str() {
            "LlamaTokenizer" | "CodeLlamaTokenizer" | "GemmaTokenizer" => Class::Llama,
            "BertTokenizer" | "DistilBertTokenizer" | "ElectraTokenizer" => Class::Bert,
            _ => Class::Other,
        };
        let id = |key: &str| {
            let id = model.get(key)?;
            let first = id.as_array().and_then(|ids| ids.first()).unwrap_or(id);
            first.as_u64().and_then(|id| u32::try_from(id).ok())
        };
        Ok(Self {
            class,
            class_name,
            config,
            is_silent,
            model_ids: [id("bos_token_id"), id("eos_token_id")].map(|id| id.filter(|_| is_silent)),
            older_tokens,
            vocabulary: "tokenizer.json",
        })
    }

    /// Tells whether the class makes its tokenizer of the SentencePiece file although there is a document: LLaMA's and
    /// T5's do where `add_prefix_space` is stated.
    pub(super) fn wants_pieces(&self, folder: &Path) -> bool {
        let class = PieceClass::named(&self.class_name);
        let class = class.filter(|class| matches!(class, PieceClass::Llama | PieceClass::T5));
        let states = self
            .config
            .get("add_prefix_space")
            .is_some_and(|set| !set.is_null());
        states
            && class.is_some_and(|class| {
                class
                    .file_names()
                    .iter()
                    .any(|name| folder.join(name).exists())
            })
    }

    /// Keeps the added tokens of a document that is not used otherwise.
    pub(super) fn keep_added(&mut self, document: &Value) {
        let Some(added) = document.get("added_tokens").and_then(Value::as_array) else {
            return;
        };
        let by_id = added
            .iter()
            .filter_map(|token| Some((token.get("id")?.to_string(), token.clone())));
        let by_id: Map<String, Value> = by_id.collect();
        self.config
            .entry("added_tokens_decoder")
            .or_insert_with(|| by_id.into());
    }

    /// Builds the document from the folder's SentencePiece file; none if it has no such file.
    pub(super) fn convert(&mut self, folder: &Path) -> Result<Option<Value>, TokenizerError> {
        let names = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"];
        let there = |name: &str| folder.join(name).exists();
        let Some(found) = names.into_iter().find(|name| there(name)) else {
            return Ok(None);
        };
        let class = PieceClass::named(&self.class_name);
        let name = class.and_then(|class| class.file_names().into_iter().find(|name| there(name)));
        let (Some(class), Some(name)) = (class, name) else {
            return Err(TokenizerError::Class {
                file: found,
                class: self.class_name.clone(),
            });
        };
        self.vocabulary = name;
        let model = SentencePieceModel::parse(&read_pieces(&folder.join(name))?);
        let named = |error| match error {
            TokenizerError::Invalid(reason) => invalid(format!("{name}: {reason}")),
            error => error,
        };
        let document = sentence_piece::document(&model.map_err(named)?, class, &mut self.config);
        document.map(Some).map_err(named)
    }

    /// Applies to the document all that can be applied before it is built, and returns the special tokens.
    pub(super) fn apply(&mut self, document: &mut Value) -> Result<SpecialTokens, TokenizerError> {
        let mut tokens = Tokens::take(document);
        self.name_own_tokens(&tokens)?;
        if self.is_set("split_special_tokens")? == Some(true) {
            return Err(self.refused(
                "`split_special_tokens` is true",
                "special tokens in texts are recognised",
            ));
        }
        let custom = self
            .config
            .get("auto_map")
            .and_then(|map| map.get("AutoTokenizer"));
        if custom.is_some_and(|class| !class.is_null()) {
            return Err(self.refused(
                "`auto_map` names code that comes with the model",
                "no code of a model is run",
            ));
        }
        self.register_tokens(&mut tokens)?;
        tokens.give_back(document);
        self.apply_prefix_space(document)?;
        self.apply_case(document)?;
        Ok(SpecialTokens {
            bos: self.token("bos_token")?,
            eos: self.token("eos_token")?,
            pad: self.token("pad_token")?,
        })
    }

    /// Returns the ids that must surround a text, where the class replaces the document's own, given those of the
    /// special tokens and those that the document puts there.
    pub(super) fn surroundings(
        &self,
        bos: Option<u32>,
        eos: Option<u32>,
        (prefix, suffix): (&[u32], &[u32]),
    ) -> Result<Option<(Option<u32>, Option<u32>)>, TokenizerError> {
        if self.class == Class::Llama {
            let wants = |key: &str, default| match self.config.get(key) {
                None => Ok(default),
                Some(_) => self.is_set(key).map(|set| set.unwrap_or(false)),
            };
            let side = |key: &str, default: bool, id: Option<u32>, role: &str| {
                if !wants(key, default)? {
                    return Ok(None);
                }
                let missing = || {
                    let why = format!("there is no {role} token");
                    self.refused(format!("`{key}` is true"), why)
                };
                id.map(Some).ok_or_else(missing)
            };
            let begin = side("add_bos_token", true, bos, "begin")?;
            let end = side("add_eos_token", false, eos, "end")?;
            let same = prefix == begin.as_slice() && suffix == end.as_slice();
            return Ok((!same).then_some((begin, end)));
        }
        for (key, ids, place) in [
            ("add_bos_token", prefix, "before"),
            ("add_eos_token", suffix, "after"),
        ] {
            let adds = !ids.is_empty();
            if self.is_set(key)?.is_some_and(|set| set != adds) {
                let what = if adds {
                    "puts a token"
                } else {
                    "puts no token"
                };
                return Err(self.refused(
                    format!("`{key}` is {}", !adds),
                    format!("`tokenizer.json` {what} {place} a text"),
                ));
            }
        }
        Ok(None)
    }

    /// Returns what is passed on to whoever opens a folder that the tokenizer is written into.
    pub(super) fn carried(&self, document: &Value) -> Map<String, Value> {
        let mut carried = Map::new();
        let before = &document["pre_tokenizer"];
        if before["type"] == "ByteLevel" && before["add_prefix_space"] == true {
            // Without a word, it would be taken out of the document again.
            carried.insert("add_prefix_space".to_owned(), true.into());
        }
        for key in [
            "chat_template",
            "model_input_names",
            "model_max_length",
            "truncation_side",
            CLEANS_UP,
        ] {
            let Some(value) = self.config.get(key).filter(|value| !value.is_null()) else {
                continue;
            };
            let says_nothing = match key {
                "model_input_names" => *value == json!(MODEL_INPUT_NAMES),
                "model_max_length" => value.as_u64().is_none_or(|length| length >= NO_LENGTH),
                "truncation_side" => value == "right",
                CLEANS_UP => *value == false,
                _ => false,
            };
            if !says_nothing {
                carried.insert(key.to_owned(), value.clone());
            }
        }
        carried
    }

    fn refused(&self, what: impl Into<String>, why: impl Into<String>) -> TokenizerError {
        TokenizerError::Overruled {
            what: what.into(),
            why: why.into(),
            class: self.class_name.clone(),
        }
    }

    /// Reads a flag; null is as good as absent.
    fn is_set(&self, key: &str) -> Result<Option<bool>, TokenizerError> {
        match self.config.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Bool(set)) => Ok(Some(*set)),
            Some(other) => Err(invalid(format!(
                "{CONFIG}: `{key}` is {other}, expected true or false"
            ))),
        }
    }

    /// Reads a token: a text or, in older files, an object. An empty one is none.
    fn token(&self, key: &str) -> Result<Option<String>, TokenizerError> {
        match self.config.get(key) {
            None => Ok(None),
            Some(token) => Ok(spelt(key, token)?.map(|(content, _)| content.to_owned())),
        }
    }

    /// Fills in the names that the class has for tokens that a folder does not name, if it is LLaMA's or Gemma's.
    ///
    /// A folder that says nothing of its tokenizer is of this class only if its vocabulary is.
    fn name_own_tokens(&mut self, tokens: &Tokens) -> Result<(), TokenizerError> {
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
    fn register_tokens(&self, tokens: &mut Tokens) -> Result<(), TokenizerError> {
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

    fn apply_prefix_space(&self, document: &mut Value) -> Result<(), TokenizerError> {
        let set = self.is_set("add_prefix_space")?;
        if let Some(pre_tokenizer) = document.get_mut("pre_tokenizer")
            && pre_tokenizer["type"] == "ByteLevel"
            && (self.class != Class::Llama || set.is_some())
        {
            pre_tokenizer["add_prefix_space"] = set.unwrap_or(false).into();
        }
        let prepends = any_part(document, &|part| match part["type"].as_str() {
            Some("Prepend") => true,
            Some("ByteLevel") => part["add_prefix_space"] == true,
            Some("Metaspace") => match part.get("prepend_scheme").and_then(Value::as_str) {
                Some(scheme) => scheme != "never",
                None => part.get("add_prefix_space") != Some(&Value::Bool(false)),
            },
            _ => false,
        });
        match set {
            Some(set) if set != prepends => Err(self.refused(
                format!("`add_prefix_space` is {set}"),
                format!(
                    "`{}` puts {} space before a text",
                    self.vocabulary,
                    if prepends { "a" } else { "no" }
                ),
            )),
            _ => Ok(()),
        }
    }

    fn apply_case(&self, document: &mut Value) -> Result<(), TokenizerError> {
        let lowers = self.is_set("do_lower_case")?;
        let strips = self.is_set("strip_accents")?;
        let splits = self.is_set("tokenize_chinese_chars")?;
        if self.class == Class::Bert
            && let Some(normalizer) = document.get_mut("normalizer")
            && normalizer["type"] == "BertNormalizer"
        {
            normalizer["lowercase"] = lowers.unwrap_or(true).into();
            normalizer["strip_accents"] = strips.into();
            normalizer["handle_chinese_chars"] = splits.unwrap_or(true).into();
            return Ok(());
        }
        let does_lower = lowers_case(document);
        let does_strip = any_part(document, &|part| match part["type"].as_str() {
            Some("StripAccents") => true,
            Some("BertNormalizer") => match part["strip_accents"].as_bool() {
                Some(strips) => strips,
                None => part["lowercase"] != false,
            },
            _ => false,
        });
        for (key, set, does) in [
            ("do_lower_case", lowers, does_lower),
            ("strip_accents", strips, does_strip),
        ] {
            if set.is_some_and(|set| set != does) {
                return Err(self.refused(
                    format!("`{key}` is {}", !does),
                    format!(
                        "`tokenizer.json` {} so",
                        if does { "does" } else { "does not do" }
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// Puts before the further special tokens of `special_tokens_map.json` those that the settings have already.
fn join_further(config: &Map<String, Value>, map: &mut Map<String, Value>) {
    let known = config.get(FURTHER).and_then(Value::as_array);
    let list = map.get_mut(FURTHER).and_then(Value::as_array_mut);
    if let (Some(known), Some(list)) = (known, list) {
        let more = std::mem::replace(list, known.clone());
        for token in more {
            if !list.contains(&token) {
                list.push(token);
            }
        }
    }
}

fn lowers_case(document: &Value) -> bool {
    any_part(document, &|part| match part["type"].as_str() {
        Some("Lowercase") => true,
        Some("BertNormalizer") => part["lowercase"] != false,
        _ => false,
    })
}

/// Has a document lower texts before anything else, unless it does so already.
pub(super) fn lower(document: &mut Value) {
    if lowers_case(document) {
        return;
    }
    let lower = json!({ "type": "Lowercase" });
    let before = document["normalizer"].take();
    document["normalizer"] = match before {
        Value::Null => lower,
        before => json!({ "type": "Sequence", "normalizers": [lower, before] }),
    };
}

/// Tells whether normalizer or pre-tokenizer, or a member of theirs, is what is looked for.
fn any_part(document: &Value, wanted: &dyn Fn(&Value) -> bool) -> bool {
    fn within(part: &Value, wanted: &dyn Fn(&Value) -> bool) -> bool {
        let members = ["normalizers", "pretokenizers"]
            .iter()
            .filter_map(|key| part.get(*key)?.as_array());
        wanted(part) || members.flatten().any(|member| within(member, wanted))
    }
    ["normalizer", "pre_tokenizer"]
        .iter()
        .filter_map(|key| document.get(*key))
        .any(|part| within(part, wanted))
}
