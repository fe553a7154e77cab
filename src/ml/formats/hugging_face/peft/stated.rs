//! What `adapter_config.json` states.

use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::super::FormatError;
use super::super::json::parse_object;
use crate::ml::documents::read_configuration;

/// The keys of `adapter_config.json` that are applied.
///
/// Patterns are in the order of the file: the first that names a module counts.
#[derive(Deserialize)]
pub(super) struct Stated {
    #[serde(default = "default_rank")]
    pub(super) r: usize,
    #[serde(default = "default_alpha")]
    pub(super) lora_alpha: f64,
    #[serde(default)]
    pub(super) lora_dropout: f64,
    #[serde(default)]
    pub(super) target_modules: Value,
    #[serde(default)]
    pub(super) exclude_modules: Value,
    #[serde(default)]
    pub(super) layers_to_transform: Value,
    #[serde(default)]
    pub(super) layers_pattern: Value,
    #[serde(default)]
    pub(super) rank_pattern: Option<IndexMap<String, usize>>,
    #[serde(default)]
    pub(super) alpha_pattern: Option<IndexMap<String, f64>>,
    #[serde(default)]
    pub(super) bias: Value,
    #[serde(default)]
    pub(super) modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    pub(super) ensure_weight_tying: Option<bool>,
    #[serde(default)]
    pub(super) use_dora: Option<bool>,
    #[serde(default)]
    pub(super) use_rslora: bool,
    #[serde(default)]
    task_type: Option<String>,
}

// PEFT's own.
fn default_rank() -> usize {
    8
}

fn default_alpha() -> f64 {
    8.0
}

/// Keys that change no number of a trained adapter on a base in 32-bit floats.
const WITHOUT_EFFECT: [&str; 14] = [
    // How the base stores its weights, which follows from the base.
    "fan_in_fan_out",
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    // How the factors were drawn or found; the ways that change the base are told by `init_lora_weights`.
    "eva_config",
    "loftq_config",
    "corda_config",
    "lora_ga_config",
];
const APPLIED: [&str; 16] = [
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "modules_to_save",
    "ensure_weight_tying",
    "use_dora",
    "use_rslora",
];
/// Ways to draw the first factors that leave the base as it is.
const HARMLESS_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Checks that every key is applied, has no effect, or is off.
fn check_keys(path: &Path, object: &Map<String, Value>) -> Result<(), FormatError> {
    for (key, value) in object {
        let refuse = |hint: &str| Err(refusal(path, key, value, hint));
        match key.as_str() {
            "init_lora_weights" => {
                let is_known = match value {
                    Value::Null | Value::Bool(_) => true,
                    Value::String(way) => HARMLESS_INITS.contains(&way.as_str()),
                    _ => false,
                };
                if !is_known {
                    return refuse(
                        "such an adapter fits only the base that its start changed; convert it to plain LoRA with \
                         `save_pretrained(..., path_initial_model_for_weight_conversion=...)`",
                    );
                }
            }
            key if APPLIED.contains(&key) || WITHOUT_EFFECT.contains(&key) => {}
            _ if is_off(value) => {}
            _ => return refuse(MERGE),
        }
    }
    Ok(())
}

/// What helps with whatever is not implemented.
pub(super) const MERGE: &str =
    "merge the adapter in PEFT with `merge_and_unload`, and load the whole model";

pub(super) fn refusal(path: &Path, key: &str, value: &Value, hint: &str) -> FormatError {
    FormatError::unsupported(path, format!("`{key}`: {value}"), hint)
}

/// Tells whether a key asks for nothing.
pub(super) fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

impl Stated {
    /// Reads and checks the file.
    pub(super) fn read(path: &Path) -> Result<Self, FormatError> {
        Self::parse(path, &read_configuration(path)?)
    }

    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, FormatError> {
        let object = parse_object(path, bytes)?;
        match object.get("peft_type").and_then(Value::as_str) {
            Some("LORA") => {}
            found => {
                return Err(FormatError::unsupported(
                    path,
                    format!(
                        "`peft_type`: {}",
                        found
                            .map_or_else(|| "(missing)".to_owned(), |found| format!("\"{found}\""))
                    ),
                    "only \"LORA\" is",
                ));
            }
        }
        check_keys(path, &object)?;
        let stated: Self = serde_json::from_slice(bytes)
            .map_err(|error| FormatError::malformed(path, error.to_string()))?;
        if stated.r == 0 || !stated.lora_alpha.is_finite() {
            return Err(FormatError::malformed(
                path,
                "`r` must be positive and `lora_alpha` finite",
            ));
        }
        Ok(stated)
    }

    /// Tells whether the adapter makes a classifier of the model.
    pub(super) fn is_classifier(&self, path: &Path) -> Result<bool, FormatError> {
        match self.task_type.as_deref() {
            Some("SEQ_CLS") => Ok(true),
            None | Some("CAUSAL_LM") => Ok(false),
            Some(other) => Err(FormatError::unsupported(
                path,
                format!("`task_type`: \"{other}\""),
                "\"CAUSAL_LM\" and \"SEQ_CLS\" are",
            )),
        }
    }
}
