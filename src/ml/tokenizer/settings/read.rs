//! Settings as the files of a folder state them.

use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::TokenizerError;
use super::super::chat_template;
use super::{CONFIG, Class, EXTRA, FURTHER, Settings, invalid};
use crate::ml::documents::read_configuration;

/// Special tokens by the names that a model has for them, in the order of the file, which numbers new ones.
#[derive(Deserialize)]
struct NamedTokens {
    extra_special_tokens: IndexMap<String, Value>,
}

impl Settings {
    /// Reads the files that are there.
    pub(in crate::ml::tokenizer) fn read(folder: &Path) -> Result<Self, TokenizerError> {
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
