//! Templates of chats, which are kept for those who open a written folder.

use std::path::Path;

use serde_json::{Value, json};

use super::TokenizerError;
use crate::ml::documents::read_configuration;

/// The key of `tokenizer_config.json`: a text, or a list of named ones.
pub const KEY: &str = "chat_template";
/// The file that processors of pictures and texts have, with the same key.
pub(super) const OF_PROCESSORS: &str = "chat_template.json";

const FILE: &str = "chat_template.jinja";
const FOLDER: &str = "additional_chat_templates";
const DEFAULT: &str = "default";
/// Most named templates of a folder.
const MOST: usize = 64;

/// Reads the templates that have files of their own, which come before what `tokenizer_config.json` holds.
pub(super) fn read(folder: &Path) -> Result<Option<Value>, TokenizerError> {
    let text = |name: &str| -> Result<String, TokenizerError> {
        let text = String::from_utf8(read_configuration(&folder.join(name))?);
        text.map_err(|_| TokenizerError::Invalid(format!("{name}: it is not UTF-8")))
    };
    let mut templates = Vec::new();
    if folder.join(FILE).exists() {
        templates.push((DEFAULT.to_owned(), text(FILE)?));
    }
    if folder.join(FOLDER).is_dir() {
        let mut names = Vec::new();
        for entry in fs_err::read_dir(folder.join(FOLDER))? {
            let name = entry?.file_name();
            names.extend(
                name.to_str()
                    .and_then(|name| name.strip_suffix(".jinja"))
                    .map(str::to_owned),
            );
            if names.len() > MOST {
                return Err(TokenizerError::Invalid(format!(
                    "{FOLDER}: more than {MOST} templates"
                )));
            }
        }
        names.sort_unstable();
        for name in names {
            let template = text(&format!("{FOLDER}/{name}.jinja"))?;
            templates.retain(|(known, _)| *known != name);
            templates.push((name, template));
        }
    }
    Ok(match &templates[..] {
        [] => None,
        [(name, template)] if name == DEFAULT => Some(template.as_str().into()),
        _ => {
            let named = templates
                .iter()
                .map(|(name, template)| json!({ "name": name, "template": template }));
            Some(named.collect())
        }
    })
}
