//! Qwen 2 and 2.5 (Yang et al. 2024): CausalLm's form with biases on queries, keys and values.

use super::layer_types;
use super::llama::{Defaults, names, read_form};
use crate::ml::formats::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::models::keys::Keys;

pub(super) fn read(keys: &Keys<'_>) -> Result<Architecture, FormatError> {
    let defaults = Defaults {
        class: "Qwen2",
        num_kv_heads: Some(32),
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        is_tied: false,
        max_position_embeddings: 32_768,
    };
    keys.ignore(&["attention_bias", "mlp_bias", "use_mrope"]);
    let mut architecture = read_form(keys, names(true, false, false), &defaults)?;
    windows(keys, &mut architecture)?;
    Ok(architecture)
}

/// Reads which layers see through a window: those that `layer_types` names, or all from `max_window_layers` on.
pub(super) fn windows(keys: &Keys<'_>, architecture: &mut Architecture) -> Result<(), FormatError> {
    let window = keys.find_size("sliding_window")?;
    let first = keys.find_size("max_window_layers")?.unwrap_or(28);
    let is_used = keys.flag("use_sliding_window", false)?;
    let is_null = keys.is_null("sliding_window");
    let window = window.or((!is_null).then_some(4096)).filter(|_| is_used);
    if !layer_types(keys, &mut architecture.layers, window)? {
        for layer in architecture.layers.iter_mut().skip(first) {
            layer.window = window;
        }
    }
    Ok(())
}
