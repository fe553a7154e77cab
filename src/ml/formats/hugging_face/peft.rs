//! LoRA adapters in PEFT's layout.
//!
//! `adapter_config.json` states rank, scale and target modules; `adapter_model.safetensors` holds
//! `base_model.model.<module>.lora_A.weight`, (rank, in), and `.lora_B.weight`, (out, rank). An adapter of a
//! classifier also carries the head, `base_model.model.score.weight`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::FormatError;
use super::super::safetensors::{SafetensorsFiles, save_safetensors};
use super::super::tensors::{TensorSource, load_exactly};
use super::config::read_object;
use super::model::write_json;
use crate::ml::adapter::is_named;
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::architecture::{Role, Slot};
use crate::ml::parameters::Weights;

const PREFIX: &str = "base_model.model.";

/// A LoRA adapter: `W x` becomes `W x + scale * B A x` (Hu et al. 2021, arXiv 2106.09685, eq. 3).
#[derive(Debug, Clone)]
pub struct PeftAdapter {
    /// Rank of the update.
    pub rank: usize,
    /// LoRA's alpha; see [`PeftAdapter::scale`].
    pub alpha: f64,
    /// Whether the scale is alpha / sqrt(rank) instead of alpha / rank.
    pub rank_stabilised: bool,
    /// Dropout before `A` in training.
    pub dropout: f64,
    /// Names of the adapted modules or last parts of them, such as `q_proj`, in order.
    pub target_modules: Vec<String>,
    /// `model.layers.0.self_attn.q_proj.lora_A.weight`, (rank, in), and `lora_B`, (out, rank), and so on.
    pub weights: Weights,
    /// Head of a classifier or reward model, (classes, hidden size).
    pub score: Option<Tensor>,
}

impl PeftAdapter {
    /// Returns the factor of the update.
    pub fn scale(&self) -> f64 {
        let rank = self.rank as f64;
        self.alpha
            / if self.rank_stabilised {
                rank.sqrt()
            } else {
                rank
            }
    }
}

/// The keys of `adapter_config.json` that are applied.
#[derive(Deserialize)]
struct AdapterConfig {
    #[serde(default = "default_rank")]
    r: usize,
    #[serde(default = "default_alpha")]
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    #[serde(default)]
    target_modules: Value,
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
const WITHOUT_EFFECT: [&str; 16] = [
    // How the base stores its weights, which follows from the base.
    "fan_in_fan_out",
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "inference_mode",
    "layers_pattern",
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
const APPLIED: [&str; 8] = [
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "use_rslora",
    "modules_to_save",
];
/// Ways to draw the first factors that leave the base as it is.
const HARMLESS_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Checks that every key is applied, has no effect, or is off.
fn check_keys(path: &Path, object: &Map<String, Value>) -> Result<(), FormatError> {
    for (key, value) in object {
        let refuse = |hint: &str| {
            Err(FormatError::unsupported(
                path,
                format!("`{key}`: {value}"),
                hint,
            ))
        };
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
            "modules_to_save" => {
                let modules = value.as_array().into_iter().flatten();
                // PEFT names both for every classifier.
                let is_head = |module: &Value| module == "score" || module == "classifier";
                if !value.is_null() && (!value.is_array() || !modules.clone().all(is_head)) {
                    return refuse("only the head `score` of a classifier is");
                }
            }
            "bias" if value == "none" => {}
            key if APPLIED.contains(&key) || WITHOUT_EFFECT.contains(&key) => {}
            _ if is_off(value) => {}
            "bias" => return refuse("only \"none\" is"),
            _ => {
                return refuse(
                    "merge the adapter in PEFT with `merge_and_unload`, and load the whole model",
                );
            }
        }
    }
    Ok(())
}

/// Tells whether a key asks for nothing.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Which modules an adapter changes.
enum Targets {
    /// Whole names, or last parts of them.
    Names(Vec<String>),
    /// Names that match as a whole.
    Pattern(fancy_regex::Regex),
    /// Every linear layer of the blocks.
    AllLinear,
}

impl Targets {
    fn read(path: &Path, value: &Value) -> Result<Self, FormatError> {
        let refuse =
            |hint: &str| FormatError::unsupported(path, format!("`target_modules`: {value}"), hint);
        match value {
            Value::Array(list) => {
                let names: Option<Vec<_>> = list
                    .iter()
                    .map(|name| name.as_str().map(str::to_owned))
                    .collect();
                names
                    .map(Self::Names)
                    .ok_or_else(|| refuse("a list of module names is"))
            }
            Value::String(text) if text.eq_ignore_ascii_case("all-linear") => Ok(Self::AllLinear),
            Value::String(pattern) => fancy_regex::RegexBuilder::new(&format!("^(?:{pattern})$"))
                .backtrack_limit(100_000)
                .build()
                .map(Self::Pattern)
                .map_err(|error| refuse(&format!("it is no pattern: {error}"))),
            _ => Err(refuse(
                "a list of module names, a pattern or \"all-linear\" is",
            )),
        }
    }

    /// Tells whether PEFT would adapt the module.
    fn contain(&self, module: &str) -> bool {
        match self {
            Self::Names(names) => names.iter().any(|name| is_named(module, name)),
            Self::Pattern(pattern) => pattern.is_match(module).unwrap_or(false),
            // All of a block, that is; what is no linear layer is not asked about.
            Self::AllLinear => true,
        }
    }

    /// Resolves the modules of a model: names stay as the file has them, in its order, if they name something.
    fn of_model(&self, path: &Path, model: &Architecture) -> Result<Vec<String>, FormatError> {
        let mut modules = BTreeSet::new();
        let untied = Architecture {
            tie_word_embeddings: false,
            ..model.clone()
        };
        for slot in untied.slots() {
            let Some(module) = slot.name.strip_suffix(".weight") else {
                continue;
            };
            let is_linear = matches!(slot.role, Role::Linear { .. });
            if !self.contain(module) || (!is_linear && matches!(self, Self::AllLinear)) {
                continue;
            }
            if !is_linear {
                return Err(FormatError::unsupported(
                    path,
                    format!("`target_modules` with `{module}`"),
                    "only the linear layers of the blocks are",
                ));
            }
            modules.insert(module.to_owned());
        }
        Ok(match self {
            Self::Names(names) => {
                let is_there = |name: &String| modules.iter().any(|module| is_named(module, name));
                names
                    .iter()
                    .filter(|name| is_there(name))
                    .cloned()
                    .collect()
            }
            Self::Pattern(_) | Self::AllLinear => modules.into_iter().collect(),
        })
    }
}

/// Loads the adapter in `folder` for a model of shape `config`.
pub fn load_peft_adapter(
    folder: &Path,
    config: impl Into<Architecture>,
) -> Result<PeftAdapter, FormatError> {
    let config = &config.into();
    let config_path = folder.join("adapter_config.json");
    let object = read_object(&config_path)?;
    match object.get("peft_type").and_then(Value::as_str) {
        Some("LORA") => {}
        found => {
            return Err(FormatError::unsupported(
                &config_path,
                format!(
                    "`peft_type`: {}",
                    found.map_or_else(|| "(missing)".to_owned(), |found| format!("\"{found}\""))
                ),
                "only \"LORA\" is",
            ));
        }
    }
    check_keys(&config_path, &object)?;
    let adapter: AdapterConfig = serde_json::from_value(Value::Object(object))
        .map_err(|error| FormatError::malformed(&config_path, error.to_string()))?;
    if adapter.r == 0 || !adapter.lora_alpha.is_finite() {
        return Err(FormatError::malformed(
            &config_path,
            "`r` must be positive and `lora_alpha` finite",
        ));
    }
    let is_classifier = match adapter.task_type.as_deref() {
        Some("SEQ_CLS") => true,
        None | Some("CAUSAL_LM") => false,
        Some(other) => {
            return Err(FormatError::unsupported(
                &config_path,
                format!("`task_type`: \"{other}\""),
                "\"CAUSAL_LM\" and \"SEQ_CLS\" are",
            ));
        }
    };
    let targets = Targets::read(&config_path, &adapter.target_modules)?;

    let files = SafetensorsFiles::open(&folder.join("adapter_model.safetensors"))?;
    let target_modules = targets.of_model(&config_path, config)?;
    if target_modules.is_empty() {
        return Err(FormatError::malformed(
            &config_path,
            format!(
                "`target_modules`: {} names no linear layer of the model",
                adapter.target_modules
            ),
        ));
    }
    let score_name = format!("{PREFIX}score.weight");
    let score_shape = files.shape(&score_name).map(<[usize]>::to_vec);
    if is_classifier && score_shape.is_none() {
        return Err(FormatError::MissingTensor {
            path: files.path().to_owned(),
            name: score_name,
            expected: vec![1, config.embedding_size],
            hint: "; the adapter of a classifier (`task_type`: \"SEQ_CLS\") must carry its head"
                .to_owned(),
        });
    }
    let head = score_shape.map(|shape| {
        let classes = shape.first().copied().unwrap_or(1);
        (score_name.clone(), vec![classes, config.embedding_size])
    });
    let expected = adapter_tensors(config, &target_modules, adapter.r)
        .map(|(name, shape)| (format!("{PREFIX}{name}"), shape))
        .chain(head);
    let loaded = load_exactly(&files, expected, |_| false)?;
    let mut weights: Weights = loaded
        .into_iter()
        .map(|(name, tensor)| {
            let bare = name.strip_prefix(PREFIX).unwrap_or(&name).to_owned();
            (bare, tensor)
        })
        .collect();
    let score = weights.remove("score.weight");
    Ok(PeftAdapter {
        rank: adapter.r,
        alpha: adapter.lora_alpha,
        rank_stabilised: adapter.use_rslora,
        dropout: adapter.lora_dropout,
        target_modules,
        weights,
        score,
    })
}

/// Names and shapes of the factors for every linear layer whose name ends in a target.
fn adapter_tensors<'a>(
    config: &'a Architecture,
    targets: &'a [String],
    rank: usize,
) -> impl Iterator<Item = (String, Vec<usize>)> + use<'a> {
    config.slots().flat_map(move |Slot { name, shape, .. }| {
        let module = name.strip_suffix(".weight").unwrap_or(&name).to_owned();
        let is_target = targets.iter().any(|target| is_named(&module, target));
        let factors = match shape.as_slice() {
            &[outputs, inputs] if is_target => vec![
                (format!("{module}.lora_A.weight"), vec![rank, inputs]),
                (format!("{module}.lora_B.weight"), vec![outputs, rank]),
            ],
            _ => Vec::new(),
        };
        factors.into_iter()
    })
}

/// Writes an adapter so that [`load_peft_adapter`] and PEFT can read it.
pub fn save_peft_adapter(folder: &Path, adapter: &PeftAdapter) -> Result<(), FormatError> {
    let mut tensors: BTreeMap<String, Tensor> = adapter
        .weights
        .iter()
        .map(|(name, tensor)| (format!("{PREFIX}{name}"), tensor.clone()))
        .collect();
    if let Some(score) = &adapter.score {
        tensors.insert(format!("{PREFIX}score.weight"), score.clone());
    }
    let is_classifier = adapter.score.is_some();
    let document = json!({
        "base_model_name_or_path": null,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "lora_alpha": adapter.alpha,
        "lora_dropout": adapter.dropout,
        "modules_to_save": is_classifier.then_some(["score"]),
        "peft_type": "LORA",
        "r": adapter.rank,
        "target_modules": adapter.target_modules,
        "task_type": if is_classifier { "SEQ_CLS" } else { "CAUSAL_LM" },
        "use_dora": false,
        "use_rslora": adapter.rank_stabilised,
    });
    fs_err::create_dir_all(folder)?;
    save_safetensors(&folder.join("adapter_model.safetensors"), &tensors)?;
    write_json(&folder.join("adapter_config.json"), &document)
}

#[cfg(test)]
mod tests {
    use super::super::super::fixture;
    use super::*;
    use crate::random::Stream;
    use candle_core::Device;
    use tempfile::TempDir;

    fn adapter(targets: &[&str]) -> PeftAdapter {
        let targets: Vec<String> = targets.iter().map(|target| (*target).into()).collect();
        let mut draws = Stream::new(1, "adapter").at(0);
        let model = Architecture::from(fixture::config());
        let weights = adapter_tensors(&model, &targets, 2).map(|(name, shape)| {
            let count = shape.iter().product();
            let values: Vec<_> = (0..count).map(|_| draws.normal() as f32).collect();
            (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
        });
        PeftAdapter {
            rank: 2,
            alpha: 16.0,
            rank_stabilised: false,
            dropout: 0.05,
            weights: weights.collect(),
            target_modules: targets,
            score: None,
        }
    }

    fn saved(adapter: &PeftAdapter) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        save_peft_adapter(folder.path(), adapter).unwrap();
        folder
    }

    fn load(folder: &TempDir) -> Result<PeftAdapter, String> {
        load_peft_adapter(folder.path(), fixture::config()).map_err(|error| {
            let folder = folder.path().to_string_lossy();
            error.to_string().replace(&*folder, "DIR")
        })
    }

    fn edit(folder: &TempDir, key: &str, value: Value) {
        let path = folder.path().join("adapter_config.json");
        let mut config = read_object(&path).unwrap();
        config.insert(key.to_owned(), value);
        fs_err::write(path, Value::Object(config).to_string()).unwrap();
    }

    #[test]
    fn a_saved_adapter_is_read_back() {
        let mut adapter = adapter(&["q_proj", "v_proj", "down_proj"]);
        adapter.score = Some(Tensor::ones((1, 8), candle_core::DType::F32, &Device::Cpu).unwrap());
        let read = load(&saved(&adapter)).unwrap();
        assert_eq!(read.scale(), 8.0);
        assert_eq!(read.dropout, 0.05);
        assert_eq!(read.target_modules, ["q_proj", "v_proj", "down_proj"]);
        assert_eq!(read.weights.len(), 2 * 3 * 2);
        assert_eq!(
            read.weights["model.layers.1.self_attn.v_proj.lora_B.weight"].dims(),
            [4, 2]
        );
        fixture::assert_equal(&read.weights, &adapter.weights);
        assert_eq!(fixture::values(&read.score.unwrap()), [1.0; 8]);
    }

    #[test]
    fn the_stabilised_scale_divides_by_the_root() {
        let folder = saved(&adapter(&["q_proj"]));
        edit(&folder, "use_rslora", json!(true));
        assert!((load(&folder).unwrap().scale() - 16.0 / 2f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn what_is_not_implemented_is_refused() {
        for (key, value, message) in [
            (
                "use_dora",
                json!(true),
                "`use_dora`: true is not supported; merge the adapter in PEFT with `merge_and_unload`, and \
                 load the whole model",
            ),
            (
                "bias",
                json!("all"),
                "`bias`: \"all\" is not supported; only \"none\" is",
            ),
            (
                "peft_type",
                json!("IA3"),
                "`peft_type`: \"IA3\" is not supported; only \"LORA\" is",
            ),
            (
                "init_lora_weights",
                json!("pissa_niter_4"),
                "`init_lora_weights`: \"pissa_niter_4\" is not supported; such an adapter fits only \
                 the base that its start changed; convert it to plain LoRA with \
                 `save_pretrained(..., path_initial_model_for_weight_conversion=...)`",
            ),
            (
                "modules_to_save",
                json!(["lm_head"]),
                "`modules_to_save`: [\"lm_head\"] is not supported; only the head `score` of a \
                 classifier is",
            ),
            (
                "target_modules",
                json!(["q_proj", "lm_head"]),
                "`target_modules` with `lm_head` is not supported; only the linear layers of the \
                 blocks are",
            ),
            (
                "target_modules",
                json!(["query"]),
                "`target_modules`: [\"query\"] names no linear layer of the model",
            ),
            (
                "task_type",
                json!("FEATURE_EXTRACTION"),
                "`task_type`: \"FEATURE_EXTRACTION\" is not supported; \"CAUSAL_LM\" and \
                 \"SEQ_CLS\" are",
            ),
            (
                "new_scaling",
                json!(2),
                "`new_scaling`: 2 is not supported; merge the adapter in PEFT with \
                 `merge_and_unload`, and load the whole model",
            ),
            (
                "rank_pattern",
                json!({ "q_proj": 4 }),
                "`rank_pattern`: {\"q_proj\":4} is not supported; merge the adapter in PEFT with \
                 `merge_and_unload`, and load the whole model",
            ),
        ] {
            let folder = saved(&adapter(&["q_proj"]));
            edit(&folder, key, value);
            let message = format!("DIR/adapter_config.json: {message}");
            assert_eq!(load(&folder).unwrap_err(), message);
        }
    }

    /// Keys of PEFT 0.21 at their defaults, and inits that leave the base alone.
    #[test]
    fn what_asks_for_nothing_is_no_hindrance() {
        for (key, value) in [
            ("init_lora_weights", json!(true)),
            ("init_lora_weights", json!("gaussian")),
            ("loftq_config", json!({})),
            ("qalora_group_size", json!(16)),
            ("layers_to_transform", json!([])),
            ("kasa_config", Value::Null),
            ("trained_on_the_moon", json!(false)),
        ] {
            let folder = saved(&adapter(&["q_proj"]));
            edit(&folder, key, value);
            load(&folder).unwrap();
        }
    }

    /// PEFT writes `all-linear` as whole names for few modules, and as the shortest endings for many.
    #[test]
    fn modules_are_named_in_every_way_of_peft() {
        let two = [
            "model.layers.0.self_attn.q_proj",
            "model.layers.1.mlp.up_proj",
        ];
        for (targets, resolved) in [
            (json!(two), two),
            (
                json!(["0.self_attn.q_proj", "1.mlp.up_proj", "key_value"]),
                ["0.self_attn.q_proj", "1.mlp.up_proj"],
            ),
            (json!(r".*\.(0\.self_attn\.q|1\.mlp\.up)_proj"), two),
        ] {
            let folder = saved(&adapter(&two));
            edit(&folder, "target_modules", targets);
            let read = load(&folder).unwrap();
            assert_eq!(read.target_modules, resolved);
            assert_eq!(read.weights.len(), 4);
        }
        let folder = saved(&adapter(&["_proj"]));
        edit(&folder, "target_modules", json!("all-linear"));
        assert!(load(&folder).unwrap_err().contains("is missing"));
        let every = [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ];
        let folder = saved(&adapter(&every));
        edit(&folder, "target_modules", json!("all-linear"));
        assert_eq!(load(&folder).unwrap().target_modules.len(), 2 * 7);
    }

    #[test]
    fn pickled_weights_are_refused() {
        let folder = saved(&adapter(&["q_proj"]));
        let weights = folder.path().join("adapter_model.safetensors");
        fs_err::rename(&weights, weights.with_extension("bin")).unwrap();
        assert_eq!(
            load(&folder).unwrap_err(),
            "DIR/adapter_model.bin: a pickled file, which can run code when it is opened, is not \
             supported; load it in PyTorch and save it with `safe_serialization=True`"
        );
    }

    #[test]
    fn factors_must_fit_the_model_and_the_rank() {
        let folder = saved(&adapter(&["q_proj"]));
        edit(&folder, "r", json!(3));
        assert_eq!(
            load(&folder).unwrap_err(),
            "DIR/adapter_model.safetensors: tensor \
             `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` has shape [2, 8], \
             expected [3, 8]"
        );
        let folder = saved(&adapter(&["q_proj"]));
        edit(&folder, "target_modules", json!(["q_proj", "k_proj"]));
        assert!(load(&folder).unwrap_err().contains("k_proj.lora_A.weight"));
    }

    #[test]
    fn the_adapter_of_a_reward_model_must_carry_its_head() {
        let folder = saved(&adapter(&["q_proj"]));
        edit(&folder, "task_type", json!("SEQ_CLS"));
        let error = load(&folder).unwrap_err();
        assert!(error.contains("must carry its head"), "{error}");
    }
}
