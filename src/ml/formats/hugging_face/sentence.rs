//! What sentence-transformers puts around an encoder: `modules.json` and the files that it names.
//!
//! Every key is applied, has no effect on embeddings, or is refused: an encoder that leaves one out embeds something
//! else, and nothing shows it.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::FormatError;
use super::config::read_object;
use super::model::write_json;
use crate::ml::documents::read_configuration;
use crate::ml::models::encoder::{SentenceEmbedding, SentencePooling};

const MODULES: &str = "modules.json";
const POOLING: &str = "1_Pooling";
const PREFIX: &str = "sentence_transformers.";

/// What the files say of a sentence encoder.
pub(super) struct SentenceFiles {
    /// The folder of the encoder itself.
    pub(super) encoder: PathBuf,
    pub(super) embedding: SentenceEmbedding,
    /// Longer texts are cut.
    pub(super) max_tokens: Option<usize>,
    pub(super) lower_case: bool,
}

/// Reads the files of a folder, if it is one of sentence-transformers.
pub(super) fn read_sentence_files(folder: &Path) -> Result<Option<SentenceFiles>, FormatError> {
    let path = folder.join(MODULES);
    if !path.exists() {
        return Ok(None);
    }
    let modules: Vec<Map<String, Value>> = serde_json::from_slice(&read_configuration(&path)?)
        .map_err(|error| FormatError::malformed(&path, error.to_string()))?;
    let mut kinds = Vec::new();
    let mut folders = Vec::new();
    for module in &modules {
        let kind = module
            .get("type")
            .and_then(Value::as_str)
            .unwrap_or("(missing)");
        let last = kind.rsplit('.').next().filter(|_| kind.starts_with(PREFIX));
        let last = last.filter(|last| ["Transformer", "Pooling", "Normalize"].contains(last));
        kinds.push(last.ok_or_else(|| unsupported_modules(&path, format!("the module `{kind}`")))?);
        let within = Path::new(
            module
                .get("path")
                .and_then(Value::as_str)
                .unwrap_or_default(),
        );
        if !within
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        {
            let reason = format!("module path `{}` leaves the folder", within.display());
            return Err(FormatError::malformed(&path, reason));
        }
        folders.push(folder.join(within));
        refuse_others(&path, module, &["idx", "name", "path", "type"])?;
    }
    let unit_length = match kinds.as_slice() {
        ["Transformer", "Pooling"] => false,
        ["Transformer", "Pooling", "Normalize"] => true,
        _ => {
            return Err(unsupported_modules(
                &path,
                format!("the modules {}", kinds.join(", ")),
            ));
        }
    };
    let pooling = read_pooling(&folders[1].join("config.json"))?;
    read_prompts(&folder.join("config_sentence_transformers.json"))?;
    let encoder = folders.swap_remove(0);
    let (max_tokens, lower_case) = read_transformer(&encoder)?;
    Ok(Some(SentenceFiles {
        encoder,
        embedding: SentenceEmbedding {
            pooling,
            unit_length,
        },
        max_tokens,
        lower_case,
    }))
}

fn unsupported_modules(path: &Path, what: String) -> FormatError {
    let hint = "a Transformer, a Pooling and perhaps a Normalize are, in this order; embed with sentence-transformers \
                in a stage of kind `command`";
    FormatError::unsupported(path, what, hint)
}

/// Refuses every key that asks for something and is not among `known`.
fn refuse_others(path: &Path, map: &Map<String, Value>, known: &[&str]) -> Result<(), FormatError> {
    let is_off = |value: &Value| match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    };
    let other = map
        .iter()
        .find(|(key, value)| !known.contains(&key.as_str()) && !is_off(value));
    other.map_or(Ok(()), |(key, value)| {
        Err(FormatError::unsupported(
            path,
            format!("`{key}`: {value}"),
            "",
        ))
    })
}

fn read_pooling(path: &Path) -> Result<SentencePooling, FormatError> {
    let mut map = read_object(path)?;
    map.remove("word_embedding_dimension");
    map.remove("embedding_dimension");
    // Without a default prompt there is none to leave out.
    map.remove("include_prompt");
    let new = map.remove("pooling_mode");
    let mut modes: Vec<String> = match new {
        Some(Value::String(mode)) => vec![mode],
        Some(Value::Array(list)) if list.iter().all(Value::is_string) => list
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        None | Some(Value::Null) => Vec::new(),
        Some(other) => {
            let reason = format!("key `pooling_mode` is {other}, expected a name");
            return Err(FormatError::malformed(path, reason));
        }
    };
    let is_new = !modes.is_empty();
    for (key, mode) in [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_mean_tokens", "mean"),
    ] {
        // As there, the new key wins.
        if map.remove(key) == Some(Value::Bool(true)) && !is_new {
            modes.push(mode.to_owned());
        }
    }
    refuse_others(path, &map, &[])?;
    match modes
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [] | ["mean"] => Ok(SentencePooling::Mean),
        ["cls"] => Ok(SentencePooling::FirstToken),
        ["max"] => Ok(SentencePooling::Max),
        _ => Err(FormatError::unsupported(
            path,
            format!("pooling by {}", modes.join(" and ")),
            "one of mean, cls and max is",
        )),
    }
}

/// Reads how long texts may be, and whether they are lowered.
fn read_transformer(encoder: &Path) -> Result<(Option<usize>, bool), FormatError> {
    // The name tells which class once wrote it.
    let names = [
        "bert",
        "roberta",
        "distilbert",
        "camembert",
        "albert",
        "xlm-roberta",
        "xlnet",
    ];
    let mut paths = names
        .iter()
        .map(|name| encoder.join(format!("sentence_{name}_config.json")));
    let Some(path) = paths.find(|path| path.exists()) else {
        return Ok((None, false));
    };
    let mut map = read_object(&path)?;
    let wrong = |key: &str, value: &Value, expected: &str| {
        FormatError::malformed(
            &path,
            format!("key `{key}` is {value}, expected {expected}"),
        )
    };
    let max_tokens = match map.remove("max_seq_length") {
        None | Some(Value::Null) => None,
        Some(value) => {
            let length = value.as_u64().filter(|length| *length > 0);
            let length = length.and_then(|length| usize::try_from(length).ok());
            Some(length.ok_or_else(|| wrong("max_seq_length", &value, "a number of tokens"))?)
        }
    };
    let lower_case = match map.remove("do_lower_case") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(lower)) => lower,
        Some(value) => return Err(wrong("do_lower_case", &value, "true or false")),
    };
    // What newer versions write for every encoder of texts.
    for (key, usual) in [
        ("transformer_task", json!("feature-extraction")),
        ("module_output_name", json!("token_embeddings")),
        (
            "modality_config",
            json!({ "text": { "method": "forward", "method_output_name": "last_hidden_state" } }),
        ),
    ] {
        if map.get(key) == Some(&usual) {
            map.remove(key);
        }
    }
    refuse_others(&path, &map, &["unpad_inputs"])?;
    Ok((max_tokens, lower_case))
}

/// Refuses a prompt that is put before every text.
fn read_prompts(path: &Path) -> Result<(), FormatError> {
    if !path.exists() {
        return Ok(());
    }
    let map = read_object(path)?;
    if let Some(Value::String(name)) = map.get("default_prompt_name") {
        let prompt = map.get("prompts").and_then(|prompts| prompts.get(name));
        if prompt.is_none_or(|prompt| prompt != "") {
            return Err(FormatError::unsupported(
                path,
                format!("`default_prompt_name`: \"{name}\", a prompt before every text,"),
                "set it to null and put the prompt into the texts",
            ));
        }
    }
    if let Some(kind) = map
        .get("model_type")
        .filter(|kind| **kind != "SentenceTransformer")
    {
        return Err(FormatError::unsupported(
            path,
            format!("`model_type`: {kind}"),
            "only \"SentenceTransformer\" is",
        ));
    }
    let without_effect = [
        "__version__",
        "prompts",
        "default_prompt_name",
        "similarity_fn_name",
        "model_type",
    ];
    refuse_others(path, &map, &without_effect)
}

/// Writes the files for an encoder that was written into `folder`.
pub(super) fn write_sentence_files(
    folder: &Path,
    embedding: SentenceEmbedding,
    dimension: usize,
) -> Result<(), FormatError> {
    let mut kinds = vec![("Transformer", ""), ("Pooling", POOLING)];
    if embedding.unit_length {
        kinds.push(("Normalize", "2_Normalize"));
    }
    let modules: Vec<Value> = kinds
        .iter()
        .enumerate()
        .map(|(index, (kind, path))| {
            json!({
                "idx": index,
                "name": index.to_string(),
                "path": path,
                "type": format!("{PREFIX}models.{kind}"),
            })
        })
        .collect();
    write_json(&folder.join(MODULES), &json!(modules))?;
    let pooling = folder.join(POOLING);
    fs_err::create_dir_all(&pooling)?;
    let is = |wanted: SentencePooling| embedding.pooling == wanted;
    let document = json!({
        "word_embedding_dimension": dimension,
        "pooling_mode_cls_token": is(SentencePooling::FirstToken),
        "pooling_mode_max_tokens": is(SentencePooling::Max),
        "pooling_mode_mean_tokens": is(SentencePooling::Mean),
    });
    write_json(&pooling.join("config.json"), &document)
}
