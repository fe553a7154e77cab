//! SmolLM 3 (2025): CausalLm's form, with layers that tell no positions.

use serde_json::Value;

use super::layer_types;
use super::llama::{Defaults, names, read_form};
use crate::ml::formats::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::models::keys::Keys;

pub(super) fn read(keys: &Keys<'_>) -> Result<Architecture, FormatError> {
    let defaults = Defaults {
        class: "SmolLM3",
        num_kv_heads: Some(4),
        rope_theta: 2_000_000.0,
        rms_norm_eps: 1e-6,
        is_tied: true,
        max_position_embeddings: 32_768,
    };
    let attention_bias = keys.flag("attention_bias", false)?;
    let names = names(
        attention_bias,
        attention_bias,
        keys.flag("mlp_bias", false)?,
    );
    let mut architecture = read_form(keys, names, &defaults)?;
    // In this list 1 means that a layer is rotated, 0 that it is not.
    let rotated = keys.list("no_rope_layers")?;
    let interval = keys
        .find_size("no_rope_layer_interval")?
        .unwrap_or(4)
        .max(1);
    if rotated.is_some_and(|list| list.len() < architecture.layers.len()) {
        return Err(
            keys.malformed("`no_rope_layers` is shorter than the list of layers".to_owned())
        );
    }
    let is_used = keys.flag("use_sliding_window", false)?;
    let window = keys.find_size("sliding_window")?;
    for (number, layer) in architecture.layers.iter_mut().enumerate() {
        layer.is_rotated = match rotated.map(|list| &list[number]) {
            Some(Value::Number(flag)) => flag.as_u64() != Some(0),
            Some(other) => {
                return Err(keys.unsupported("no_rope_layers", other, "0 and 1 are"));
            }
            None => (number + 1) % interval != 0,
        };
        layer.window = window.filter(|_| is_used && !layer.is_rotated);
    }
    layer_types(keys, &mut architecture.layers, window)?;
    Ok(architecture)
}
