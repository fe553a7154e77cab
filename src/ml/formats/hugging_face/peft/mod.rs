//! LoRA adapters in PEFT's layout.
//!
//! `adapter_config.json` states rank, scale and modules; `adapter_model.safetensors` holds
//! `base_model.model.<module>.lora_A.weight`, (rank, in), and `.lora_B.weight`, (out, rank), with DoRA also
//! `.lora_magnitude_vector`, (out). Biases and whole modules that were trained have their names after the same prefix;
//! the bias of an adapted layer is `<module>.base_layer.bias`. An adapter of a classifier carries the head,
//! `base_model.model.score.weight`.

use std::path::Path;

use candle_core::Tensor;
use serde_json::json;

use super::super::FormatError;
use super::super::safetensors::{SafetensorsFiles, save_safetensors};
use super::super::tensors::{TensorSource, load_exactly};
use super::json::write_json;
use crate::ml::adapter::{AdapterTensor, LoraConfig, PREFIX};
use crate::ml::models::causal::Architecture;
use crate::ml::parameters::Weights;
use crate::ml::placement::Placement;

mod config;
mod stated;
mod targets;
#[cfg(test)]
mod tests;

use stated::Stated;

/// A LoRA adapter: `W x` becomes `W x + scale * B A x` (Hu et al. 2021, arXiv 2106.09685, eq. 3), or what else its
/// configuration says.
#[derive(Debug, Clone)]
pub struct PeftAdapter {
    /// What it changes, in the names of the model that it was loaded for.
    pub config: LoraConfig,
    /// All tensors but the head, by their names in the file.
    pub weights: Weights,
    /// Head of a classifier or reward model, (classes, hidden size).
    pub score: Option<Tensor>,
}

/// Loads the adapter in `folder` for a model of shape `config`.
pub fn load_peft_adapter(
    folder: &Path,
    config: impl Into<Architecture>,
) -> Result<PeftAdapter, FormatError> {
    let model = config.into();
    let config_path = folder.join("adapter_config.json");
    let stated = Stated::read(&config_path)?;
    let is_classifier = stated.is_classifier(&config_path)?;
    let files = SafetensorsFiles::open(&folder.join("adapter_model.safetensors"))?;
    let config = stated.resolve(&config_path, &model)?;

    let score_name = format!("{PREFIX}score.weight");
    let score_shape = files.shape(&score_name).map(<[usize]>::to_vec);
    if is_classifier && score_shape.is_none() {
        return Err(FormatError::MissingTensor {
            path: files.path().to_owned(),
            name: score_name,
            expected: vec![1, model.embedding_size],
            hint: "; the adapter of a classifier (`task_type`: \"SEQ_CLS\") must carry its head"
                .to_owned(),
        });
    }
    let head = score_shape.map(|shape| {
        let classes = shape.first().copied().unwrap_or(1);
        (score_name.clone(), vec![classes, model.embedding_size])
    });
    let untied = config::untied(&model);
    let expected = adapter_tensors(&config, &untied).chain(head);
    let loaded = load_exactly(&files, expected, &Placement::HOST, |_| false);
    let mut weights = loaded.map_err(explain_missing_bias)?;
    let score = weights.remove(&score_name);
    Ok(PeftAdapter {
        config,
        weights,
        score,
    })
}

/// Names and shapes of an adapter's tensors for a model.
fn adapter_tensors<'a>(
    config: &'a LoraConfig,
    model: &'a Architecture,
) -> impl Iterator<Item = (String, Vec<usize>)> + use<'a> {
    let tensors = model
        .slots()
        .flat_map(|slot| config.tensors(&slot.name, &slot.shape));
    tensors.map(|AdapterTensor { name, shape, .. }| (name, shape))
}

fn explain_missing_bias(mut error: FormatError) -> FormatError {
    if let FormatError::MissingTensor { name, hint, .. } = &mut error
        && matches!(name.rsplit_once('.'), Some((_, "bias")))
    {
        *hint = "; some versions of PEFT did not write it: with `bias` set to \"none\" in `adapter_config.json` the \
                 model's own is taken, as PEFT does"
            .to_owned();
    }
    error
}

/// Writes an adapter so that [`load_peft_adapter`] and PEFT can read it.
pub fn save_peft_adapter(folder: &Path, adapter: &PeftAdapter) -> Result<(), FormatError> {
    let mut tensors = adapter.weights.clone();
    if let Some(score) = &adapter.score {
        tensors.insert(format!("{PREFIX}score.weight"), score.clone());
    }
    let config = &adapter.config;
    let is_classifier = adapter.score.is_some();
    let mut saved = config.modules_to_save.clone();
    saved.extend(is_classifier.then(|| "score".to_owned()));
    let mut document = json!({
        "base_model_name_or_path": null,
        "bias": config.bias,
        "fan_in_fan_out": false,
        "inference_mode": true,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": (!saved.is_empty()).then_some(saved),
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": config.target_modules,
        "task_type": if is_classifier { "SEQ_CLS" } else { "CAUSAL_LM" },
        "use_dora": config.use_dora,
        "use_rslora": false,
    });
    if !config.rank_pattern.is_empty() {
        document["rank_pattern"] = json!(config.rank_pattern);
    }
    if !config.alpha_pattern.is_empty() {
        document["alpha_pattern"] = json!(config.alpha_pattern);
    }
    fs_err::create_dir_all(folder)?;
    save_safetensors(&folder.join("adapter_model.safetensors"), &tensors)?;
    write_json(&folder.join("adapter_config.json"), &document)
}
