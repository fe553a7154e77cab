//! What the settings say of case, accents and spaces.

use serde_json::Value;

use super::super::TokenizerError;
use super::super::parts::{any_part, lowers_case};
use super::{Class, Settings};

impl Settings {
    pub(super) fn apply_prefix_space(&self, document: &mut Value) -> Result<(), TokenizerError> {
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

    pub(super) fn apply_case(&self, document: &mut Value) -> Result<(), TokenizerError> {
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
