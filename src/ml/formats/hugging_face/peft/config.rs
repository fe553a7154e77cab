//! What an `adapter_config.json` means for a model.

use std::collections::BTreeMap;
use std::path::Path;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use super::super::super::FormatError;
use super::stated::{MERGE, Stated, refusal};
use super::targets::{Patterns, Targets};
use crate::ml::adapter::{AdapterError, Biases, LoraConfig, is_named, named};
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::architecture::Slot;

/// Names that PEFT gives the head of every classifier.
const HEADS: [&str; 2] = ["score", "classifier"];

/// Returns the model as PEFT sees it: its head is a module also if it shares the embedding's weight.
pub(super) fn untied(model: &Architecture) -> Architecture {
    Architecture {
        tie_word_embeddings: false,
        ..model.clone()
    }
}

impl Stated {
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
