//! Families of models: what the keys of their `config.json` mean, and how their tensors are called.
//!
//! A family is a file that reads the keys, and a line in [`FAMILIES`]. A key that a family neither reads nor names as
//! one that changes nothing is an error: it might change numbers.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::Architecture;
use super::architecture::{Activation, LayerOptions};
use super::rotary::{Rotary, Scaling};
use crate::ml::formats::FormatError;
use crate::ml::kernels::rope::RopeLayout;
use crate::ml::models::keys::{self, Keys};

mod gemma;
mod gpt2;
mod gpt_neox;
mod llama;
mod mistral;
mod olmo2;
mod opt;
mod phi3;
mod qwen2;
mod qwen3;
mod smollm3;
mod stablelm;
mod starcoder2;

/// Reads one family's keys.
type Read = fn(&Keys<'_>) -> Result<Architecture, FormatError>;

/// The families, by their `model_type`.
const FAMILIES: &[(&str, Read)] = &[
    ("gemma", gemma::read),
    ("gpt2", gpt2::read),
    ("gpt_neox", gpt_neox::read),
    ("llama", llama::read),
    ("mistral", mistral::read),
    ("olmo2", olmo2::read),
    ("opt", opt::read),
    ("phi3", phi3::read),
    ("qwen2", qwen2::read),
    ("qwen3", qwen3::read),
    ("smollm3", smollm3::read),
    ("stablelm", stablelm::read),
    ("starcoder2", starcoder2::read),
];

/// Reads and checks the keys of a `config.json`, but for those in `ignored`. `path` is for messages.
pub(in crate::ml) fn read(
    path: &Path,
    map: &Map<String, Value>,
    ignored: &[String],
) -> Result<Architecture, FormatError> {
    let mut map = map.clone();
    keys::ignore(path, &mut map, ignored)?;
    let keys = Keys::new(path, &map);
    let Some(model_type) = keys.text("model_type")? else {
        return Err(keys.malformed("key `model_type` is missing".to_owned()));
    };
    let Some((_, read)) = FAMILIES.iter().find(|(name, _)| *name == model_type) else {
        let names: Vec<&str> = FAMILIES.iter().map(|(name, _)| *name).collect();
        let hint = format!("only {} are", names.join(", "));
        return Err(keys.unsupported("model_type", &json!(model_type), &hint));
    };
    let mut architecture = read(&keys)?;
    if architecture.document.is_empty() {
        architecture.document = keys.document();
    }
    architecture.document.insert(
        "tie_word_embeddings".to_owned(),
        json!(architecture.tie_word_embeddings),
    );
    // A family that is known needs no code of the folder's own.
    keys.ignore(&["auto_map"]);
    let check = architecture.check();
    check.map_err(|reason| keys.malformed(reason))?;
    keys.finish_model()?;
    Ok(architecture)
}

/// Reads the size of a head, which is `hidden_size / heads` where `head_dim` does not say otherwise.
fn head_size(keys: &Keys<'_>, hidden_size: usize, heads: usize) -> Result<usize, FormatError> {
    match keys.find_size("head_dim")? {
        Some(size) => Ok(size),
        None => equal_share(keys, hidden_size, heads),
    }
}

/// Returns `hidden_size / heads`.
fn equal_share(keys: &Keys<'_>, hidden_size: usize, heads: usize) -> Result<usize, FormatError> {
    if heads == 0 || !hidden_size.is_multiple_of(heads) {
        return Err(keys.malformed(format!(
            "hidden size {hidden_size} does not split into {heads} heads of one size"
        )));
    }
    Ok(hidden_size / heads)
}

fn activation(
    keys: &Keys<'_>,
    key: &'static str,
    default: Activation,
) -> Result<Activation, FormatError> {
    let Some(name) = keys.text(key)? else {
        return Ok(default);
    };
    let hint = "silu, gelu, gelu_new, gelu_pytorch_tanh and relu are";
    Activation::named(name).ok_or_else(|| keys.unsupported(key, &json!(name), hint))
}

/// Reads which layers see through a window of `sliding_window` keys: a list of `layer_types`.
fn layer_types(
    keys: &Keys<'_>,
    layers: &mut [LayerOptions],
    window: Option<usize>,
) -> Result<bool, FormatError> {
    let Some(types) = keys.list("layer_types")? else {
        return Ok(false);
    };
    if types.len() != layers.len() {
        let (found, expected) = (types.len(), layers.len());
        return Err(keys.malformed(format!(
            "`layer_types` has {found} entries for {expected} layers"
        )));
    }
    for (layer, kind) in layers.iter_mut().zip(types) {
        layer.window = match (kind.as_str(), window) {
            (Some("full_attention"), _) => None,
            (Some("sliding_attention"), Some(window)) => Some(window),
            (Some("sliding_attention"), None) => {
                return Err(keys.malformed(
                    "`layer_types` has \"sliding_attention\", but no window is in use".to_owned(),
                ));
            }
            _ => {
                let hint = "\"full_attention\" and \"sliding_attention\" are";
                return Err(keys.unsupported("layer_types", kind, hint));
            }
        };
    }
    Ok(true)
}

/// Reads the rotary base and its scaling, in the keys' old and new places; `dimensions` of a head are rotated.
fn rotary(
    keys: &Keys<'_>,
    theta: f64,
    dimensions: usize,
    max_positions: Option<usize>,
) -> Result<Rotary, FormatError> {
    let mut rotary = Rotary {
        layout: RopeLayout::HalfSplit,
        dimensions,
        theta,
        scaling: Scaling::None,
    };
    for key in ["rope_scaling", "rope_parameters"] {
        let Some(inner) = keys.object(key)? else {
            continue;
        };
        inner.only("partial_rotary_factor", &json!(1.0))?;
        rotary.theta = inner.number("rope_theta", rotary.theta)?;
        let (old, new) = (inner.text("type")?, inner.text("rope_type")?);
        let Some(kind) = old.or(new) else {
            if inner.get("factor").is_some() {
                return Err(keys.malformed(format!("`{key}` has a factor and no `rope_type`")));
            }
            continue;
        };
        if let (Some(old), Some(new)) = (old, new)
            && old != new
        {
            return Err(keys.malformed(format!(
                "`{key}` has `type` \"{old}\" and `rope_type` \"{new}\""
            )));
        }
        rotary.scaling = scaling(keys, &inner, key, kind, max_positions)?;
        inner.finish(None)?;
    }
    Ok(rotary)
}

fn scaling(
    keys: &Keys<'_>,
    inner: &Keys<'_>,
    key: &str,
    kind: &str,
    max_positions: Option<usize>,
) -> Result<Scaling, FormatError> {
    let needed = |name: &'static str| {
        let missing = || keys.malformed(format!("`{key}` of type \"{kind}\" has no `{name}`"));
        inner.find_number(name)?.ok_or_else(missing)
    };
    let longest = max_positions.unwrap_or(2048) as f64;
    Ok(match kind {
        "default" => Scaling::None,
        "linear" => Scaling::Linear {
            factor: needed("factor")?,
        },
        // Up to `max_position_embeddings`, the longest row that is taken here, nothing is scaled. Beyond it the
        // frequencies would follow the longest row of a batch.
        "dynamic" => {
            needed("factor")?;
            inner.ignore(&["original_max_position_embeddings"]);
            Scaling::None
        }
        "llama3" => Scaling::Llama3 {
            factor: needed("factor")?,
            low: needed("low_freq_factor")?,
            high: needed("high_freq_factor")?,
            original: needed("original_max_position_embeddings")?,
        },
        "yarn" => {
            let factor = needed("factor")?;
            let or = |name, default| -> Result<f64, FormatError> {
                let value = inner.find_number(name)?.filter(|value| *value != 0.0);
                Ok(value.unwrap_or(default))
            };
            let grown = |scale: f64| {
                if factor <= 1.0 {
                    1.0
                } else {
                    0.1 * scale * libm::log(factor) + 1.0
                }
            };
            let (some, all) = (or("mscale", 0.0)?, or("mscale_all_dim", 0.0)?);
            let attention_factor = if some != 0.0 && all != 0.0 {
                grown(some) / grown(all)
            } else {
                grown(1.0)
            };
            Scaling::Yarn {
                factor,
                fast: or("beta_fast", 32.0)?,
                slow: or("beta_slow", 1.0)?,
                original: or("original_max_position_embeddings", longest)?,
                truncate: inner.flag("truncate", true)?,
                attention_factor: inner.number("attention_factor", attention_factor)?,
            }
        }
        _ => {
            let hint = "default, linear, dynamic, llama3 and yarn are";
            return Err(keys.unsupported(&format!("{key}.type"), &json!(kind), hint));
        }
    })
}
