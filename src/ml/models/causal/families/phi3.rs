//! Phi 3 and 4 (Abdin et al. 2024): CausalLm's form with joined projections and, in part, unrotated heads.

use serde_json::Value;

use super::llama::{Defaults, names, read_form};
use crate::ml::formats::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::architecture::{QueryKeyValue, Widen, linear};
use crate::ml::models::keys::Keys;

pub(super) fn read(keys: &Keys<'_>) -> Result<Architecture, FormatError> {
    let defaults = Defaults {
        class: "Phi3",
        num_kv_heads: None,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-5,
        is_tied: false,
        max_position_embeddings: 4096,
    };
    // Without a scaling it says nothing; with one, the scaling is refused.
    keys.ignore(&["attention_bias", "original_max_position_embeddings"]);
    keys.only("rope_scaling", &Value::Null)?;
    let mut names = names(false, false, false);
    names.query_key_value = QueryKeyValue::Joined(linear("self_attn.qkv_proj", false));
    names.widen = Widen::GatedJoined(linear("mlp.gate_up_proj", false));
    let mut architecture = read_form(keys, names, &defaults)?;
    architecture.rotate_share(keys.share("partial_rotary_factor", 1.0)?);
    architecture.see(keys.find_size("sliding_window")?);
    Ok(architecture)
}
