//! What of a model an adapter changes, and how: the one description that building, files and trainings follow.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{AdapterError, Result};
use crate::ml::models::causal::architecture::Architecture;
use crate::ml::parameters::Weights;

/// Shape and constants of an adapter.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Inner dimension of the update.
    #[schemars(extend("also" = ["r", "lora_r", "lora_rank"]))]
    pub rank: usize,
    /// The update is multiplied by `alpha / rank`.
    #[schemars(extend("also" = ["lora_alpha"]))]
    pub alpha: f64,
    /// Share of a projection's inputs that are dropped on the way into the update, in training.
    #[serde(default)]
    #[schemars(extend("also" = ["lora_dropout"]))]
    pub dropout: f64,
    /// Names of the projections that are adapted, or last parts of them, as `q_proj`; or `all-linear`.
    #[serde(deserialize_with = "targets")]
    #[schemars(with = "Targets")]
    pub target_modules: Vec<String>,
    /// Other ranks for some of the projections, by their names or last parts of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// Other alphas for some of the projections, by their names or last parts of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Which biases of the model are trained too.
    #[serde(default, skip_serializing_if = "Biases::is_none")]
    pub bias: Biases,
    /// Modules outside the projections whose weights are trained whole, as `lm_head`: all whose names end so. A saved
    /// output head or embedding is no longer tied to the other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Whether the lengths of the rows of adapted weights are trained apart from their directions (DoRA).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub use_dora: bool,
}

/// Stands for every linear layer of the blocks.
const ALL_LINEAR: &str = "all-linear";

/// Names of projections, or one word for all.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "it describes what `targets` reads")]
enum Targets {
    Names(Vec<String>),
    All(All),
}

/// The word.
#[derive(JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[expect(dead_code, reason = "it describes what `targets` reads")]
enum All {
    AllLinear,
}

/// Reads a list of names, or the word for all.
fn targets<'a, D: Deserializer<'a>>(source: D) -> std::result::Result<Vec<String>, D::Error> {
    struct Read;

    impl<'a> Visitor<'a> for Read {
        type Value = Vec<String>;

        fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(formatter, "a list of names, or `{ALL_LINEAR}`")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<Vec<String>, E> {
            if text == ALL_LINEAR {
                Ok(vec![text.to_owned()])
            } else {
                Err(E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }

        fn visit_seq<A: SeqAccess<'a>>(
            self,
            list: A,
        ) -> std::result::Result<Vec<String>, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(list))
        }
    }

    source.deserialize_any(Read)
}

/// Which biases are trained with an adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Biases {
    /// None.
    #[default]
    None,
    /// All of the model, those of norms among them.
    All,
    /// Those of adapted projections.
    LoraOnly,
}

impl Biases {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde asks with a reference"
    )]
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

/// What comes before the names of the model's modules in the files of PEFT.
pub(crate) const PREFIX: &str = "base_model.model.";

/// A tensor of an adapter, and what it does to one of the model.
pub(in crate::ml) struct AdapterTensor {
    /// Name in the files of PEFT.
    pub(in crate::ml) name: String,
    pub(in crate::ml) shape: Vec<usize>,
    pub(in crate::ml) part: Part,
}

/// What a tensor of an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ml) enum Part {
    /// What the input is multiplied with, (rank, inputs).
    A,
    /// What that is multiplied with, (outputs, rank).
    B,
    /// Lengths of the adapted weight's rows, (outputs).
    Magnitude,
    /// What stands in place of the model's tensor.
    Whole,
}

impl LoraConfig {
    /// Returns the same with names in place of the word for all, those of the linear layers of the blocks of a model with
    /// these tensors (names and ranks).
    pub(super) fn resolved<'a>(&self, tensors: impl Iterator<Item = (&'a str, usize)>) -> Self {
        let mut config = self.clone();
        if self.target_modules == [ALL_LINEAR] {
            let projections = tensors.filter_map(|(name, rank)| projection(name, rank));
            let names = projections.map(|module| module.rsplit('.').next().unwrap_or(module));
            let names: BTreeSet<&str> = names.collect();
            config.target_modules = names.into_iter().map(str::to_owned).collect();
        }
        config
    }

    /// Returns the inner dimension of a projection's update.
    pub(in crate::ml) fn rank_of(&self, module: &str) -> usize {
        named(&self.rank_pattern, module)
            .next()
            .map_or(self.rank, |(_, rank)| *rank)
    }

    /// Returns the factor of a projection's update.
    pub(in crate::ml) fn scale_of(&self, module: &str) -> f64 {
        let alpha = named(&self.alpha_pattern, module)
            .next()
            .map_or(self.alpha, |(_, alpha)| *alpha);
        alpha / self.rank_of(module) as f64
    }

    /// Checks the values, and that every name is one of a model with these tensors (names and ranks).
    pub(in crate::ml) fn check<'a>(
        &self,
        tensors: impl Iterator<Item = (&'a str, usize)> + Clone,
    ) -> Result<()> {
        let refuse = |reason: String| Err(AdapterError::Config { reason });
        let ranks = self.rank_pattern.iter();
        let ranks = ranks.map(|(key, rank)| (format!("rank_pattern.{key}"), *rank));
        for (key, rank) in ranks.chain([("rank".to_owned(), self.rank)]) {
            if rank == 0 {
                return refuse(format!("`{key}` is 0, expected at least 1"));
            }
        }
        let alphas = self.alpha_pattern.iter();
        let alphas = alphas.map(|(key, alpha)| (format!("alpha_pattern.{key}"), *alpha));
        for (key, alpha) in alphas.chain([("alpha".to_owned(), self.alpha)]) {
            if !alpha.is_finite() {
                return refuse(format!("`{key}` is {alpha}, expected a number"));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return refuse(format!(
                "`dropout` is {}, expected a number from 0 to below 1",
                self.dropout
            ));
        }
        if self.target_modules.is_empty() {
            return refuse("`target_modules` is empty".to_owned());
        }
        let projections = tensors.clone();
        let projections: Vec<&str> = projections
            .filter_map(|(name, rank)| projection(name, rank))
            .collect();
        for target in &self.target_modules {
            if !projections.iter().any(|module| is_named(module, target)) {
                return Err(AdapterError::NoSuchTarget {
                    target: target.clone(),
                });
            }
        }
        let adapted = || projections.iter().filter(|module| self.is_target(module));
        check_pattern("rank_pattern", &self.rank_pattern, adapted())?;
        check_pattern("alpha_pattern", &self.alpha_pattern, adapted())?;
        for saved in &self.modules_to_save {
            let alone = LoraConfig {
                modules_to_save: vec![saved.clone()],
                ..LoraConfig::default()
            };
            let is_saved = |(module, _): (&str, &str)| alone.saves(module);
            let mut parts = tensors
                .clone()
                .filter_map(|(name, _)| name.rsplit_once('.'));
            if saved.is_empty() || !parts.any(is_saved) {
                return refuse(format!(
                    "`modules_to_save`: no module of the model is called `{saved}`"
                ));
            }
            if let Some(module) = projections.iter().find(|module| alone.saves(module)) {
                return refuse(format!(
                    "`modules_to_save`: `{saved}` names `{module}`, a linear layer of a block, expected modules outside \
                 them; put it into `target_modules`"
                ));
            }
        }
        let mut parts = tensors.filter_map(|(name, _)| name.rsplit_once('.'));
        let twice = parts.find(|(module, kind)| {
            self.bias == Biases::All && *kind == "bias" && self.saves(module)
        });
        // PEFT's files of such an adapter hold the bias three times.
        if let Some((module, _)) = twice {
            return refuse(format!(
                "`bias` is \"all\", and `modules_to_save` names `{module}`, which has a bias, expected one of the two"
            ));
        }
        Ok(())
    }

    fn is_target(&self, module: &str) -> bool {
        let mut targets = self.target_modules.iter();
        is_in_block(module) && targets.any(|target| is_named(module, target))
    }

    /// Tells whether a module, or one that it is a part of, is trained whole.
    pub(crate) fn saves(&self, module: &str) -> bool {
        let ends = module.match_indices('.').map(|(at, _)| at);
        ends.chain([module.len()]).any(|end| {
            let mut saved = self.modules_to_save.iter();
            saved.any(|name| module[..end].ends_with(name.as_str()))
        })
    }

    /// Gives a tied model an output head of its own, if its head or embedding is trained whole: then each is alone, as in
    /// PEFT.
    pub fn untie(&self, model: &mut Architecture, base: &mut Weights) {
        if self.saves(model.names.embedding) || self.saves(model.names.head) {
            model.untie(base);
        }
    }

    /// Returns what the adapter has for a tensor of the model.
    pub(in crate::ml) fn tensors(&self, name: &str, shape: &[usize]) -> Vec<AdapterTensor> {
        let Some((module, kind)) = name.rsplit_once('.') else {
            return Vec::new();
        };
        let tensor = |end: &str, shape: Vec<usize>, part| AdapterTensor {
            name: format!("{PREFIX}{module}.{end}"),
            shape,
            part,
        };
        let is_target = self.is_target(module);
        if let (true, "weight", &[outputs, inputs]) = (is_target, kind, shape) {
            let rank = self.rank_of(module);
            let mut tensors = vec![
                tensor("lora_A.weight", vec![rank, inputs], Part::A),
                tensor("lora_B.weight", vec![outputs, rank], Part::B),
            ];
            if self.use_dora {
                let lengths = tensor("lora_magnitude_vector", vec![outputs], Part::Magnitude);
                tensors.push(lengths);
            }
            return tensors;
        }
        let is_trained_bias = kind == "bias"
            && match self.bias {
                Biases::None => false,
                Biases::All => true,
                Biases::LoraOnly => is_target,
            };
        if !is_trained_bias && !self.saves(module) {
            return Vec::new();
        }
        // PEFT puts an adapted layer into a module of its own.
        let layer = if is_target { "base_layer." } else { "" };
        vec![tensor(
            &format!("{layer}{kind}"),
            shape.to_vec(),
            Part::Whole,
        )]
    }
}

/// Tells whether `target` is the name of a module or its last parts, as PEFT has it.
pub(in crate::ml) fn is_named(module: &str, target: &str) -> bool {
    let rest = module.strip_suffix(target);
    rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Returns the entries whose keys name a module.
pub(in crate::ml) fn named<'a, T>(
    pattern: &'a BTreeMap<String, T>,
    module: &str,
) -> impl Iterator<Item = (&'a String, &'a T)> {
    pattern.iter().filter(move |(key, _)| is_named(module, key))
}

/// Tells whether a module is within a block, whose linear layers are the only ones that a model applies updates to: it
/// has the block's number in its name.
fn is_in_block(module: &str) -> bool {
    let is_number = |part: &str| part.parse::<usize>().is_ok();
    module.split('.').any(is_number)
}

/// Returns a linear layer of a block by the name of its weight.
pub(super) fn projection(name: &str, rank: usize) -> Option<&str> {
    let module = name.strip_suffix(".weight")?;
    (rank == 2 && is_in_block(module)).then_some(module)
}

/// Checks that each key names an adapted projection, and each of these at most one value.
fn check_pattern<'a, T>(
    name: &str,
    pattern: &BTreeMap<String, T>,
    adapted: impl Iterator<Item = &'a &'a str> + Clone,
) -> Result<()> {
    let refuse = |reason: String| Err(AdapterError::Config { reason });
    for key in pattern.keys() {
        if !adapted.clone().any(|module| is_named(module, key)) {
            return refuse(format!("`{name}`: no adapted projection is called `{key}`"));
        }
    }
    for module in adapted {
        let keys: Vec<_> = named(pattern, module).map(|(key, _)| key).collect();
        if let [first, second, ..] = keys.as_slice() {
            return refuse(format!(
                "`{name}`: both `{first}` and `{second}` name `{module}`, expected one key for each projection"
            ));
        }
    }
    Ok(())
}
