//! StableLM (Bellagente et al. 2024): Llama's form with layer norms, partly rotated heads and biases on request.

use serde_json::json;

use super::llama::{Defaults, names, read_form};
use crate::ml::formats::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::architecture::{Norm, NormKind};
use crate::ml::models::keys::Keys;

pub(super) fn read(keys: &Keys<'_>) -> Result<Architecture, FormatError> {
    let defaults = Defaults {
        class: "StableLm",
        num_kv_heads: Some(32),
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-5,
        is_tied: false,
        max_position_embeddings: 4096,
    };
    // Its 12B form has both: one norm before two branches, and a norm of its own for each head.
    keys.only("use_parallel_residual", &json!(false))?;
    keys.only("qk_layernorm", &json!(false))?;
    let has_bias = keys.flag("use_qkv_bias", false)?;
    let mut architecture = read_form(keys, names(has_bias, false, false), &defaults)?;
    architecture.norm = Norm {
        kind: NormKind::Layer,
        eps: keys.number("layer_norm_eps", 1e-5)?,
    };
    architecture.rotate_share(keys.share("partial_rotary_factor", 0.25)?);
    Ok(architecture)
}
