//! What stands beside a `tokenizer.json`: `tokenizer_config.json`, `special_tokens_map.json`, `config.json`.
//!
//! `transformers` builds a class around the document, and what these files say overrules it. It is applied to the
//! document as version 4.57 does, so that afterwards the document alone says how text is encoded; what the class
//! would pass over although the document does otherwise is refused.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{SpecialTokens, TokenizerError};
use crate::ml::documents::read_configuration;

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
const TOKEN_FLAGS: [&str; 5] = ["single_word", "lstrip", "rstrip", "normalized", "special"];
/// What language models take of a tokenizer; without it `transformers` would hand them token types as well.
pub const MODEL_INPUT_NAMES: [&str; 2] = ["input_ids", "attention_mask"];
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
        // Older folders name their tokens in a file of their own, which newer ones keep for older readers.
        if !config.contains_key("added_tokens_decoder")
            && let Some(map) = object("special_tokens_map.json")?
        {
            config.extend(map);
        }
        let template = folder.join("chat_template.jinja");
        if template.exists() {
            let text = String::from_utf8(read_configuration(&template)?);
            let text = text.map_err(|_| invalid("chat_template.jinja: it is not UTF-8"))?;
            config.insert("chat_template".to_owned(), text.into());
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
                Some("llama") => "LlamaTokenizer",
                Some("bert") => "BertTokenizer",
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
        })
    }

    /// Applies to the document all that can be applied before it is built, and returns the special tokens.
    pub(super) fn apply(&mut self, document: &mut Value) -> Result<SpecialTokens, TokenizerError> {
        self.name_own_tokens(document)?;
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
        self.register_tokens(document)?;
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
        ] {
            let Some(value) = self.config.get(key).filter(|value| !value.is_null()) else {
                continue;
            };
            let says_nothing = match key {
                "model_input_names" => *value == json!(MODEL_INPUT_NAMES),
                "model_max_length" => value.as_u64().is_none_or(|length| length >= NO_LENGTH),
                "truncation_side" => value == "right",
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
        let text = match self.config.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(text)) => Some(text),
            Some(Value::Object(object)) => match object.get("content") {
                Some(Value::String(text)) => Some(text),
                _ => None,
            },
            Some(_) => None,
        };
        let text = text.ok_or_else(|| invalid(format!("{CONFIG}: `{key}` is not a token")))?;
        Ok((!text.is_empty()).then(|| text.clone()))
    }

    /// Fills in the names that the class LLaMA has for tokens that a folder does not name.
    ///
    /// A folder that says nothing of its tokenizer is of this class only if its vocabulary is.
    fn name_own_tokens(&mut self, document: &Value) -> Result<(), TokenizerError> {
        if self.class != Class::Llama {
            return Ok(());
        }
        let own = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let known = own.map(|(_, token)| id_of(document, token).is_some());
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

    /// Gives the document the added tokens that the settings state, and makes the special tokens special.
    fn register_tokens(&self, document: &mut Value) -> Result<(), TokenizerError> {
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
                let found = id_of(document, content);
                if found.is_some_and(|found| found != u64::from(id)) {
                    return Err(invalid(format!(
                        "{CONFIG}: `added_tokens_decoder` gives `{content}` the id {id}, `tokenizer.json` another"
                    )));
                }
                register(document, u64::from(id), content, token);
            }
        }
        let more = self
            .config
            .get("additional_special_tokens")
            .and_then(Value::as_array);
        let named = ROLES.iter().filter_map(|role| self.config.get(*role));
        for token in named.chain(more.into_iter().flatten()) {
            let (content, flags) = match token {
                Value::String(content) => (content.as_str(), None),
                Value::Object(flags) => match flags.get("content").and_then(Value::as_str) {
                    Some(content) => (content, Some(flags)),
                    None => continue,
                },
                _ => continue,
            };
            let is_added = added(document)
                .is_some_and(|added| added.iter().any(|added| added["content"] == content));
            let Some(id) = id_of(document, content).filter(|_| flags.is_some() || !is_added) else {
                continue;
            };
            let mut flags = flags.cloned().unwrap_or_default();
            flags.insert("special".to_owned(), true.into());
            register(document, id, content, &flags);
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
                    "`tokenizer.json` puts {} space before a text",
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

fn added(document: &Value) -> Option<&Vec<Value>> {
    document.get("added_tokens")?.as_array()
}

/// Returns the id of a token of the document.
fn id_of(document: &Value, token: &str) -> Option<u64> {
    let added = added(document).into_iter().flatten();
    let mut added = added.filter(|added| added["content"] == token);
    if let Some(found) = added.next() {
        return found["id"].as_u64();
    }
    match document.get("model")?.get("vocab")? {
        Value::Object(vocabulary) => vocabulary.get(token)?.as_u64(),
        Value::Array(scored) => {
            let place = scored.iter().position(|entry| entry[0] == token)?;
            Some(place as u64)
        }
        _ => None,
    }
}

/// Adds a token to the document, or gives the one that is there other flags.
fn register(document: &mut Value, id: u64, content: &str, flags: &Map<String, Value>) {
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
    let Some(object) = document.as_object_mut() else {
        return;
    };
    let list = object.entry("added_tokens").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else {
        return;
    };
    match list.iter_mut().find(|added| added["content"] == content) {
        Some(added) => *added = entry,
        None => {
            let after = list.partition_point(|added| added["id"].as_u64() < Some(id));
            list.insert(after, entry);
        }
    }
}
