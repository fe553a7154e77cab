//! LoRA adapters in PEFT's layout.
//!
//! `adapter_config.json` states rank, scale and target modules; `adapter_model.safetensors` holds
//! `base_model.model.<module>.lora_A.weight`, (rank, in), and `.lora_B.weight`, (out, rank). An adapter of a
//! classifier also carries the head, `base_model.model.score.weight`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::Tensor;
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::safetensors::{SafetensorsFiles, save_safetensors};
use super::super::tensors::{TensorSource, load_exactly};
use super::super::{FormatError, llama_tensors};
use super::config::read_object;
use super::model::write_json;
use crate::ml::config::LlamaConfig;
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
    /// Last parts of the names of the adapted modules, such as `q_proj`, in order.
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

/// The keys of `adapter_config.json` that change the computation.
#[derive(Deserialize)]
struct AdapterConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: Value,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    task_type: Option<String>,
}

/// Loads the adapter in `folder` for a model of shape `config`.
pub fn load_peft_adapter(folder: &Path, config: &LlamaConfig) -> Result<PeftAdapter, FormatError> {
    let config_path = folder.join("adapter_config.json");
    let object = read_object(&config_path)?;
    for (key, accepted) in [
        ("use_dora", json!(false)),
        ("fan_in_fan_out", json!(false)),
        ("lora_bias", json!(false)),
        ("bias", json!("none")),
        ("rank_pattern", json!({})),
        ("alpha_pattern", json!({})),
        ("layers_to_transform", Value::Null),
        ("layer_replication", Value::Null),
        ("target_parameters", Value::Null),
        ("trainable_token_indices", Value::Null),
        ("use_qalora", json!(false)),
        ("use_bdlora", json!(false)),
        ("exclude_modules", Value::Null),
        ("alora_invocation_tokens", Value::Null),
        ("arrow_config", Value::Null),
        ("monteclora_config", Value::Null),
    ] {
        if let Some(found) = object.get(key)
            && !found.is_null()
            && *found != accepted
        {
            return Err(FormatError::unsupported(
                &config_path,
                format!("`{key}`: {found}"),
                &format!("only {accepted} is"),
            ));
        }
    }
    let adapter: AdapterConfig = serde_json::from_value(Value::Object(object))
        .map_err(|error| FormatError::malformed(&config_path, error.to_string()))?;
    if adapter.peft_type != "LORA" {
        return Err(FormatError::unsupported(
            &config_path,
            format!("`peft_type`: \"{}\"", adapter.peft_type),
            "only \"LORA\" is",
        ));
    }
    if adapter.r == 0 || !adapter.lora_alpha.is_finite() {
        return Err(FormatError::malformed(
            &config_path,
            "`r` must be positive and `lora_alpha` finite",
        ));
    }
    let targets = match &adapter.target_modules {
        Value::Array(list) => list.iter().map(Value::as_str).collect::<Option<Vec<_>>>(),
        _ => None,
    };
    let targets = targets.ok_or_else(|| {
        FormatError::unsupported(
            &config_path,
            format!("`target_modules`: {}", adapter.target_modules),
            "a list of module names is",
        )
    })?;
    let target_modules: BTreeSet<String> = targets.into_iter().map(str::to_owned).collect();

    let files = SafetensorsFiles::open(&folder.join("adapter_model.safetensors"))?;
    let score_name = format!("{PREFIX}score.weight");
    let is_classifier = adapter.task_type.as_deref() == Some("SEQ_CLS");
    let score_shape = files.shape(&score_name).map(<[usize]>::to_vec);
    if is_classifier && score_shape.is_none() {
        return Err(FormatError::MissingTensor {
            path: files.path().to_owned(),
            name: score_name,
            expected: vec![1, config.hidden_size],
            hint: "; the adapter of a classifier (`task_type`: \"SEQ_CLS\") must carry its head"
                .to_owned(),
        });
    }
    let head = score_shape.map(|shape| {
        let classes = shape.first().copied().unwrap_or(1);
        (score_name.clone(), vec![classes, config.hidden_size])
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
    if weights.is_empty() {
        return Err(FormatError::malformed(
            &config_path,
            format!("`target_modules` {target_modules:?} name no linear layer of the model"),
        ));
    }
    Ok(PeftAdapter {
        rank: adapter.r,
        alpha: adapter.lora_alpha,
        rank_stabilised: adapter.use_rslora,
        dropout: adapter.lora_dropout,
        target_modules: target_modules.into_iter().collect(),
        weights,
        score,
    })
}

/// Names and shapes of the factors for every linear layer whose name ends in a target.
fn adapter_tensors<'a>(
    config: &LlamaConfig,
    targets: &'a BTreeSet<String>,
    rank: usize,
) -> impl Iterator<Item = (String, Vec<usize>)> + use<'a> {
    llama_tensors(config).flat_map(move |(name, shape)| {
        let module = name.strip_suffix(".weight").unwrap_or(&name).to_owned();
        let is_target = module.ends_with("_proj")
            && targets
                .iter()
                .any(|target| module == *target || module.ends_with(&format!(".{target}")));
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
        let targets: BTreeSet<String> = targets.iter().map(|target| (*target).into()).collect();
        let mut draws = Stream::new(1, "adapter").at(0);
        let weights = adapter_tensors(&fixture::config(), &targets, 2).map(|(name, shape)| {
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
            target_modules: targets.into_iter().collect(),
            score: None,
        }
    }

    fn saved(adapter: &PeftAdapter) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        save_peft_adapter(folder.path(), adapter).unwrap();
        folder
    }

    fn load(folder: &TempDir) -> Result<PeftAdapter, String> {
        load_peft_adapter(folder.path(), &fixture::config()).map_err(|error| {
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
        assert_eq!(read.target_modules, ["down_proj", "q_proj", "v_proj"]);
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
                "`use_dora`: true is not supported; only false is",
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
                "target_modules",
                json!(".*q_proj"),
                "`target_modules`: \".*q_proj\" is not supported; a list of module names is",
            ),
            (
                "rank_pattern",
                json!({ "q_proj": 4 }),
                "`rank_pattern`: {\"q_proj\":4} is not supported; only {} is",
            ),
        ] {
            let folder = saved(&adapter(&["q_proj"]));
            edit(&folder, key, value);
            let message = format!("DIR/adapter_config.json: {message}");
            assert_eq!(load(&folder).unwrap_err(), message);
        }
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
