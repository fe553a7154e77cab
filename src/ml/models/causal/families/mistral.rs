//! Mistral (Jiang et al. 2023): CausalLm's form with a sliding window.

use serde_json::Value;

use super::llama::{Defaults, names, read_form};
use crate::ml::formats::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::models::keys::Keys;

pub(super) fn read(keys: &Keys<'_>) -> Result<Architecture, FormatError> {
    let defaults = Defaults {
        class: "Mistral",
        num_kv_heads: Some(8),
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        is_tied: false,
        max_position_embeddings: 131_072,
    };
    let mut architecture = read_form(keys, names(false, false, false), &defaults)?;
    // `transformers` has no biases here and looks at no list of layers, whatever the file says.
    for key in ["attention_bias", "mlp_bias"] {
        keys.only(key, &false.into())?;
    }
    keys.only("layer_types", &Value::Null)?;
    let window = if keys.is_null("sliding_window") {
        None
    } else {
        Some(keys.find_size("sliding_window")?.unwrap_or(4096))
    };
    architecture.see(window);
    Ok(architecture)
}
