//! What sentence-transformers puts around an encoder: `modules.json` and the files that it names.
//!
//! Every key is applied, has no effect on embeddings, or is refused: an encoder that leaves one out embeds something
//! else, and nothing shows it.

use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::FormatError;
use super::super::safetensors::{SafetensorsFiles, save_safetensors};
use super::super::tensors::load_exactly;
use super::json::{read_object, write_json};
use crate::ml::documents::read_configuration;
use crate::ml::models::encoder::{
    Activation, Dense, Prompt, SentenceEmbedding, SentencePooling, SentenceStep,
};
use crate::ml::models::keys::Keys;
use crate::ml::parameters::Weights;
use crate::ml::placement::Placement;

const MODULES: &str = "modules.json";
const PROMPTS: &str = "config_sentence_transformers.json";
const POOLING: &str = "1_Pooling";
const PREFIX: &str = "sentence_transformers.";
/// Modules by the last part of their classes; old and new versions have other words before it.
const KINDS: [&str; 5] = ["Transformer", "Pooling", "Dense", "Normalize", "Dropout"];

/// What the files say of a sentence encoder.
pub(super) struct SentenceFiles {
    /// The folder of the encoder itself.
    pub(super) encoder: PathBuf,
    pub(super) embedding: SentenceEmbedding,
    /// Longer texts are cut.
    pub(super) max_tokens: Option<usize>,
    pub(super) lower_case: bool,
}

/// Reads the files of a folder, if it is one of sentence-transformers; `prompt` names one of its prompts.
pub(super) fn read_sentence_files(
    folder: &Path,
    prompt: Option<&str>,
) -> Result<Option<SentenceFiles>, FormatError> {
    let path = folder.join(MODULES);
    if !path.exists() {
        return match prompt {
            Some(name) => Err(FormatError::malformed(
                folder,
                format!("there is no prompt `{name}`: it is no folder of sentence-transformers"),
            )),
            None => Ok(None),
        };
    }
    let modules = read_modules(folder, &path, &read_configuration(&path)?)?;
    let [(_, encoder), (_, pooling), others @ ..] = modules.as_slice() else {
        return Err(unsupported_modules(&path, &modules));
    };
    let kinds: Vec<&str> = modules.iter().map(|(kind, _)| *kind).collect();
    if kinds[..2] != ["Transformer", "Pooling"] {
        return Err(unsupported_modules(&path, &modules));
    }
    let path_of_pooling = pooling.join("config.json");
    let map = read_object(&path_of_pooling)?;
    let (pooling, pools_prompt) = read_pooling(&path_of_pooling, &map)?;
    let mut steps = Vec::new();
    for (kind, within) in others {
        match *kind {
            "Dense" => steps.push(SentenceStep::Dense(read_dense(within)?)),
            "Normalize" => steps.push(SentenceStep::Normalize),
            // Nothing is dropped but in training.
            "Dropout" => {}
            _ => return Err(unsupported_modules(&path, &modules)),
        }
    }
    let (prompt, truncate_dim) = read_prompts(&folder.join(PROMPTS), prompt)?;
    let (max_tokens, lower_case) = read_transformer(encoder)?;
    Ok(Some(SentenceFiles {
        encoder: encoder.clone(),
        embedding: SentenceEmbedding {
            prompt,
            pooling,
            pools_prompt,
            steps,
            truncate_dim,
        },
        max_tokens,
        lower_case,
    }))
}

/// Reads what modules there are, and in which folders.
fn read_modules(
    folder: &Path,
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<(&'static str, PathBuf)>, FormatError> {
    let modules: Vec<Map<String, Value>> = serde_json::from_slice(bytes)
        .map_err(|error| FormatError::malformed(path, error.to_string()))?;
    let read = |module: &Map<String, Value>| {
        let keys = Keys::new(path, module);
        // Their order is that of the list; arguments that they take from callers are none that are given here.
        keys.ignore(&["idx", "name", "kwargs"]);
        let class = keys.get("type").and_then(Value::as_str);
        let class = class.unwrap_or("(missing)");
        let last = class
            .rsplit('.')
            .next()
            .filter(|_| class.starts_with(PREFIX));
        let kind = KINDS.into_iter().find(|kind| Some(*kind) == last);
        let kind = kind.ok_or_else(|| {
            let hint = format!("{} are; {BY_COMMAND}", KINDS.join(", "));
            FormatError::unsupported(path, format!("the module `{class}`"), &hint)
        })?;
        let within = keys.get("path").and_then(Value::as_str);
        let within = Path::new(within.unwrap_or_default());
        let mut parts = within.components();
        if !parts.all(|part| matches!(part, Component::Normal(_))) {
            let reason = format!("module path `{}` leaves the folder", within.display());
            return Err(FormatError::malformed(path, reason));
        }
        keys.finish(None)?;
        Ok((kind, folder.join(within)))
    };
    modules.iter().map(read).collect()
}

const BY_COMMAND: &str = "embed with sentence-transformers in a stage of kind `command`";

fn unsupported_modules(path: &Path, modules: &[(&str, PathBuf)]) -> FormatError {
    let kinds: Vec<&str> = modules.iter().map(|(kind, _)| *kind).collect();
    let hint = format!(
        "a Transformer, a Pooling and then any of Dense, Normalize and Dropout are, in this order; {BY_COMMAND}"
    );
    FormatError::unsupported(path, format!("the modules {}", kinds.join(", ")), &hint)
}

/// Reads what is pooled, and whether tokens of the prompt are.
fn read_pooling(
    path: &Path,
    map: &Map<String, Value>,
) -> Result<(Vec<SentencePooling>, bool), FormatError> {
    let keys = Keys::new(path, map);
    keys.ignore(&["embedding_dimension", "word_embedding_dimension"]);
    let pools_prompt = keys.flag("include_prompt", true)?;
    let by_name = |name: &Value| {
        let found = name.as_str().and_then(SentencePooling::by_name);
        found.ok_or_else(|| {
            let names = SentencePooling::NAMES.map(|(name, _)| name);
            let hint = format!("{} are", names.join(", "));
            FormatError::unsupported(path, format!("`pooling_mode`: {name}"), &hint)
        })
    };
    let named = keys.get("pooling_mode");
    let mut pooling = match named {
        None => Vec::new(),
        Some(Value::Array(names)) if !names.is_empty() => {
            names.iter().map(by_name).collect::<Result<_, _>>()?
        }
        Some(name) => vec![by_name(name)?],
    };
    // What older versions wrote; as there, the new key wins.
    for ((_, mode), key) in SentencePooling::NAMES.into_iter().zip([
        "pooling_mode_cls_token",
        "pooling_mode_max_tokens",
        "pooling_mode_mean_tokens",
        "pooling_mode_mean_sqrt_len_tokens",
        "pooling_mode_weightedmean_tokens",
        "pooling_mode_lasttoken",
    ]) {
        if keys.flag(key, false)? && named.is_none() {
            pooling.push(mode);
        }
    }
    keys.finish(None)?;
    if pooling.is_empty() {
        pooling.push(SentencePooling::Mean);
    }
    Ok((pooling, pools_prompt))
}

/// What the configuration of a dense layer says.
struct DenseConfig {
    inputs: usize,
    outputs: usize,
    has_bias: bool,
    activation: Activation,
}

fn parse_dense(path: &Path, map: &Map<String, Value>) -> Result<DenseConfig, FormatError> {
    let keys = Keys::new(path, map);
    let inputs = keys.size("in_features")?;
    let outputs = keys.size("out_features")?;
    let has_bias = keys.flag("bias", true)?;
    let activation = match keys.get("activation_function") {
        None => Activation::Tanh,
        Some(class) => {
            let found = class.as_str().and_then(Activation::by_class);
            found.ok_or_else(|| {
                let what = format!("`activation_function`: {class}");
                let hint = format!("{} are", Activation::classes());
                FormatError::unsupported(path, what, &hint)
            })?
        }
    };
    for key in ["module_input_name", "module_output_name"] {
        keys.only(key, &json!("sentence_embedding"))?;
    }
    keys.finish(None)?;
    Ok(DenseConfig {
        inputs,
        outputs,
        has_bias,
        activation,
    })
}

/// Reads a dense layer from its folder.
fn read_dense(folder: &Path) -> Result<Dense, FormatError> {
    let path = folder.join("config.json");
    let config = parse_dense(&path, &read_object(&path)?)?;
    let bias = ("linear.bias".to_owned(), vec![config.outputs]);
    let weight = (
        "linear.weight".to_owned(),
        vec![config.outputs, config.inputs],
    );
    let expected = std::iter::once(weight).chain(config.has_bias.then_some(bias));
    let files = SafetensorsFiles::open_model(folder)?;
    let mut weights = load_exactly(&files, expected, &Placement::HOST, |_| false)?;
    let bias = weights.remove("linear.bias");
    let weight = weights
        .remove("linear.weight")
        .ok_or_else(|| FormatError::malformed(folder, "tensor `linear.weight` is missing"))?;
    Ok(Dense {
        weight,
        bias,
        activation: config.activation,
    })
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
    parse_transformer(&path, &read_object(&path)?)
}

fn parse_transformer(
    path: &Path,
    map: &Map<String, Value>,
) -> Result<(Option<usize>, bool), FormatError> {
    let keys = Keys::new(path, map);
    let max_tokens = match keys.get("max_seq_length") {
        None => None,
        Some(value) => {
            let length = value.as_u64().filter(|length| *length > 0);
            let length = length.and_then(|length| usize::try_from(length).ok());
            let wrong = || keys.wrong("max_seq_length", "a number of tokens", value);
            Some(length.ok_or_else(wrong)?)
        }
    };
    let lower_case = keys.flag("do_lower_case", false)?;
    for (key, usual) in [
        ("transformer_task", json!("feature-extraction")),
        ("module_output_name", json!("token_embeddings")),
        (
            "modality_config",
            json!({ "text": { "method": "forward", "method_output_name": "last_hidden_state" } }),
        ),
    ] {
        keys.only(key, &usual)?;
    }
    // What is passed on to `transformers`.
    for key in [
        "model_args",
        "model_kwargs",
        "tokenizer_args",
        "processor_kwargs",
        "config_args",
        "config_kwargs",
        "processing_kwargs",
    ] {
        keys.only(key, &json!({}))?;
    }
    // Speed only.
    keys.ignore(&["unpad_inputs"]);
    keys.finish(None)?;
    Ok((max_tokens, lower_case))
}

/// Reads the prompt of a name, or the default one, and how much of embeddings is kept.
fn read_prompts(
    path: &Path,
    name: Option<&str>,
) -> Result<(Option<Prompt>, Option<usize>), FormatError> {
    let map = if path.exists() {
        read_object(path)?
    } else {
        Map::new()
    };
    parse_prompts(path, &map, name)
}

fn parse_prompts(
    path: &Path,
    map: &Map<String, Value>,
    name: Option<&str>,
) -> Result<(Option<Prompt>, Option<usize>), FormatError> {
    let keys = Keys::new(path, map);
    keys.only("model_type", &json!("SentenceTransformer"))?;
    // The measure is taken by whoever compares embeddings.
    keys.ignore(&["__version__", "similarity_fn_name"]);
    let mut prompts = Vec::new();
    if let Some(value) = keys.get("prompts") {
        let wrong = || keys.wrong("prompts", "texts by their names", value);
        for (name, text) in value.as_object().ok_or_else(wrong)? {
            prompts.push((name.as_str(), text.as_str().ok_or_else(wrong)?));
        }
    }
    let default = match keys.get("default_prompt_name") {
        None => None,
        Some(value) => {
            let wrong = || keys.wrong("default_prompt_name", "a name", value);
            Some(value.as_str().ok_or_else(wrong)?)
        }
    };
    let truncate_dim = match keys.get("truncate_dim") {
        None => None,
        Some(value) => match keys.size("truncate_dim")? {
            0 => return Err(keys.wrong("truncate_dim", "1 or more", value)),
            most => Some(most),
        },
    };
    keys.finish(None)?;
    let prompt = match name.or(default) {
        None => None,
        Some(name) => {
            let found = prompts.iter().find(|(known, _)| *known == name);
            let (_, text) = found.ok_or_else(|| {
                let known: Vec<String> = prompts
                    .iter()
                    .map(|(name, _)| format!("`{name}`"))
                    .collect();
                let known = if known.is_empty() {
                    "there are none".to_owned()
                } else {
                    format!("there are {}", known.join(", "))
                };
                FormatError::malformed(path, format!("there is no prompt `{name}`: {known}"))
            })?;
            Some(Prompt {
                name: name.to_owned(),
                text: (*text).to_owned(),
            })
        }
    };
    // An empty one is none.
    let prompt = prompt.filter(|prompt| !prompt.text.is_empty());
    Ok((prompt, truncate_dim))
}

/// Writes the files for an encoder that was written into `folder`.
pub(super) fn write_sentence_files(
    folder: &Path,
    embedding: &SentenceEmbedding,
    dimension: usize,
) -> Result<(), FormatError> {
    let steps = embedding.steps.iter().map(|step| match step {
        SentenceStep::Dense(_) => "Dense",
        SentenceStep::Normalize => "Normalize",
    });
    let modules: Vec<Value> = ["Transformer", "Pooling"]
        .into_iter()
        .chain(steps)
        .enumerate()
        .map(|(index, kind)| {
            json!({
                "idx": index,
                "name": index.to_string(),
                "path": if index == 0 { String::new() } else { format!("{index}_{kind}") },
                "type": format!("{PREFIX}models.{kind}"),
            })
        })
        .collect();
    write_json(&folder.join(MODULES), &json!(modules))?;
    let pooling = folder.join(POOLING);
    fs_err::create_dir_all(&pooling)?;
    write_json(
        &pooling.join("config.json"),
        &pooling_document(embedding, dimension),
    )?;
    for (index, step) in embedding.steps.iter().enumerate() {
        if let SentenceStep::Dense(dense) = step {
            write_dense(&folder.join(format!("{}_Dense", index + 2)), dense)?;
        }
    }
    if embedding.prompt.is_none() && embedding.truncate_dim.is_none() {
        return Ok(());
    }
    let mut document = json!({ "prompts": {}, "default_prompt_name": null });
    if let Some(prompt) = &embedding.prompt {
        document["prompts"][&prompt.name] = json!(prompt.text);
        document["default_prompt_name"] = json!(prompt.name);
    }
    if let Some(most) = embedding.truncate_dim {
        document["truncate_dim"] = json!(most);
    }
    write_json(&folder.join(PROMPTS), &document)
}

fn pooling_document(embedding: &SentenceEmbedding, dimension: usize) -> Value {
    let mut document = json!({ "word_embedding_dimension": dimension });
    // The three that any version reads are written as the oldest did.
    match embedding.pooling.as_slice() {
        [only @ (SentencePooling::FirstToken | SentencePooling::Max | SentencePooling::Mean)] => {
            let is = |wanted: SentencePooling| *only == wanted;
            document["pooling_mode_cls_token"] = is(SentencePooling::FirstToken).into();
            document["pooling_mode_max_tokens"] = is(SentencePooling::Max).into();
            document["pooling_mode_mean_tokens"] = is(SentencePooling::Mean).into();
        }
        [only] => document["pooling_mode"] = only.name().into(),
        several => {
            let names: Vec<&str> = several.iter().map(|one| one.name()).collect();
            document["pooling_mode"] = names.into();
        }
    }
    if !embedding.pools_prompt {
        document["include_prompt"] = false.into();
    }
    document
}

fn write_dense(folder: &Path, dense: &Dense) -> Result<(), FormatError> {
    fs_err::create_dir_all(folder)?;
    let (outputs, inputs) = dense.weight.dims2().map_err(FormatError::tensor(folder))?;
    let document = json!({
        "in_features": inputs,
        "out_features": outputs,
        "bias": dense.bias.is_some(),
        "activation_function": dense.activation.class(),
    });
    write_json(&folder.join("config.json"), &document)?;
    let mut weights = Weights::from([("linear.weight".to_owned(), dense.weight.clone())]);
    let bias = dense.bias.clone();
    weights.extend(bias.map(|bias| ("linear.bias".to_owned(), bias)));
    save_safetensors(&folder.join("model.safetensors"), &weights)
}

#[cfg(test)]
mod tests {
    use super::super::super::damage::survives;
    use super::super::json::parse_object;
    use super::*;
    use crate::ml::models::fixture::recorded;

    #[test]
    fn damaged_files_are_errors() {
        let (about, _) = recorded("sentence_transformers");
        for files in ["files", "old_files"] {
            for (name, content) in about[files].as_object().unwrap() {
                survives(content.to_string().as_bytes(), 500, |path, bytes| {
                    if name == MODULES {
                        read_modules(Path::new("folder"), path, bytes)?;
                        return Ok(());
                    }
                    let map = parse_object(path, bytes)?;
                    match name.as_str() {
                        PROMPTS => parse_prompts(path, &map, None).map(|_| ()),
                        "1_Pooling/config.json" => read_pooling(path, &map).map(|_| ()),
                        "2_Dense/config.json" => parse_dense(path, &map).map(|_| ()),
                        _ => parse_transformer(path, &map).map(|_| ()),
                    }
                });
            }
        }
    }
}
