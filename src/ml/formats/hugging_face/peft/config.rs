//! `adapter_config.json`, and what it means for a model.

use std::collections::BTreeMap;
use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::super::FormatError;
use super::super::config::parse_object;
use super::targets::{Patterns, Targets};
use crate::ml::adapter::{AdapterError, Biases, LoraConfig, is_named, named};
use crate::ml::documents::read_configuration;
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::architecture::Slot;

/// The keys of `adapter_config.json` that are applied.
///
/// Patterns are in the order of the file: the first that names a module counts.
#[derive(Deserialize)]
pub(super) struct Stated {
    #[serde(default = "default_rank")]
    r: usize,
    #[serde(default = "default_alpha")]
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    pub(super) target_modules: Value,
    #[serde(default)]
    pub(super) exclude_modules: Value,
    #[serde(default)]
    pub(super) layers_to_transform: Value,
    #[serde(default)]
    pub(super) layers_pattern: Value,
    #[serde(default)]
    rank_pattern: Option<IndexMap<String, usize>>,
    #[serde(default)]
    alpha_pattern: Option<IndexMap<String, f64>>,
    #[serde(default)]
    bias: Value,
    #[serde(default)]
    pub(super) modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    ensure_weight_tying: Option<bool>,
    #[serde(default)]
    use_dora: Option<bool>,
    #[serde(default)]
    use_rslora: bool,
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
/// Names that PEFT gives the head of every classifier.
const HEADS: [&str; 2] = ["score", "classifier"];

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
const MERGE: &str = "merge the adapter in PEFT with `merge_and_unload`, and load the whole model";

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

/// Returns the model as PEFT sees it: its head is a module also if it shares the embedding's weight.
pub(super) fn untied(model: &Architecture) -> Architecture {
    Architecture {
        tie_word_embeddings: false,
        ..model.clone()
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

    /// Works out what is adapted of a model.
    ///
    /// Names stay as the file has them, in its order, if they name something and say the same here; else whole names
    /// take their place.
    pub(super) fn resolve(
        &self,
        path: &Path,
        model: &Architecture,
    ) -> Result<LoraConfig, FormatError> {
        let is_classifier = self.is_classifier(path)?;
        let head = model.head_name();
        let untied = untied(model);
        let slots = untied.slots();
        // A classifier has no head over tokens.
        let slots: Vec<Slot> = slots
            .filter(|slot| !(is_classifier && slot.name == head))
            .collect();
        let bias = match &self.bias {
            Value::Null => Biases::None,
            value => Biases::deserialize(value).map_err(|_| {
                refusal(
                    path,
                    "bias",
                    value,
                    "\"none\", \"all\" and \"lora_only\" are",
                )
            })?,
        };
        let targets = Targets::read(path, self)?;
        let modules = targets.modules(&slots)?;
        if modules.is_empty() {
            return Err(FormatError::malformed(
                path,
                format!(
                    "`target_modules`: {} names no linear layer of the model",
                    self.target_modules
                ),
            ));
        }
        let of_rank = |rank: usize, alpha: f64| {
            if self.use_rslora {
                // Ours is divided by the rank.
                let scale = alpha / (rank as f64).sqrt();
                scale * rank as f64
            } else {
                alpha
            }
        };
        let rank_pattern = Patterns::new(path, "rank_pattern", self.rank_pattern.as_ref())?;
        let alpha_pattern = Patterns::new(path, "alpha_pattern", self.alpha_pattern.as_ref())?;
        let (mut ranks, mut alphas) = (BTreeMap::new(), BTreeMap::new());
        for module in &modules {
            let rank = rank_pattern.first(module)?.unwrap_or(self.r);
            let alpha = alpha_pattern.first(module)?.unwrap_or(self.lora_alpha);
            ranks.insert(module.clone(), rank);
            alphas.insert(module.clone(), of_rank(rank, alpha));
        }
        let alpha = of_rank(self.r, self.lora_alpha);
        let config = LoraConfig {
            rank: self.r,
            alpha,
            dropout: self.lora_dropout,
            target_modules: targets.names(&slots, modules),
            rank_pattern: by_name(self.rank_pattern.as_ref(), self.r, &ranks),
            alpha_pattern: by_name(self.alpha_pattern.as_ref(), alpha, &alphas),
            bias,
            modules_to_save: self.saved(&slots),
            use_dora: self.use_dora == Some(true),
        };
        let tensors = slots.iter();
        let tensors = tensors.map(|slot| (slot.name.as_str(), slot.shape.len()));
        config.check(tensors).map_err(|error| {
            let reason = match error {
                AdapterError::Config { reason } => reason,
                other => other.to_string(),
            };
            FormatError::malformed(path, reason)
        })?;
        let is_kept_tied = self.ensure_weight_tying == Some(true) && model.tie_word_embeddings;
        let saves_either = config.saves(model.names.embedding) || config.saves(model.names.head);
        if is_kept_tied && !is_classifier && saves_either {
            return Err(FormatError::unsupported(
                path,
                "`ensure_weight_tying`: true with an embedding or head in `modules_to_save`",
                MERGE,
            ));
        }
        Ok(config)
    }

    /// Returns the names of modules that are trained whole, without those that name nothing, as in PEFT.
    fn saved(&self, slots: &[Slot]) -> Vec<String> {
        let names = self.modules_to_save.iter().flatten();
        let names = names.filter(|name| !HEADS.contains(&name.as_str()));
        let is_there = |name: &&String| {
            let alone = LoraConfig {
                modules_to_save: vec![(*name).clone()],
                ..LoraConfig::default()
            };
            let mut modules = slots.iter().filter_map(|slot| slot.name.rsplit_once('.'));
            modules.any(|(module, _)| alone.saves(module))
        };
        names.filter(is_there).cloned().collect()
    }
}

/// Returns a pattern by the keys of the file, if each module that these name has one, and has its value by it, else by
/// whole names.
fn by_name<T: PartialEq + Copy>(
    stated: Option<&IndexMap<String, T>>,
    usual: T,
    resolved: &BTreeMap<String, T>,
) -> BTreeMap<String, T> {
    let stated = stated.into_iter().flatten();
    let stated: BTreeMap<String, T> = stated
        .filter(|(key, _)| resolved.keys().any(|module| is_named(module, key)))
        .map(|(key, value)| (key.clone(), *value))
        .collect();
    let says = |module: &str, value: T| {
        let mut values = named(&stated, module).map(|(_, value)| *value);
        values.next().unwrap_or(usual) == value && values.next().is_none()
    };
    if resolved.iter().all(|(module, value)| says(module, *value)) {
        return stated;
    }
    let others = resolved.iter().filter(|(_, value)| **value != usual);
    others
        .map(|(module, value)| (module.clone(), *value))
        .collect()
}
