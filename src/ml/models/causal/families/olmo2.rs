//! OLMo 2 (2024): CausalLm's form with norms after the branches, and of whole queries and keys.

use super::llama::{Defaults, names, read_form};
use crate::ml::formats::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::architecture::{Arrangement, QueryKeyNorm};
use crate::ml::models::keys::Keys;

pub(super) fn read(keys: &Keys<'_>) -> Result<Architecture, FormatError> {
    let defaults = Defaults {
        class: "Olmo2",
        num_kv_heads: None,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-5,
        is_tied: false,
        max_position_embeddings: 2048,
    };
    let has_bias = keys.flag("attention_bias", false)?;
    let mut names = names(has_bias, has_bias, false);
    names.attention_norm = "post_attention_layernorm";
    names.feed_forward_norm = "post_feedforward_layernorm";
    names.query_key_norm = Some(QueryKeyNorm {
        names: ["self_attn.q_norm", "self_attn.k_norm"],
        is_by_head: false,
    });
    let mut architecture = read_form(keys, names, &defaults)?;
    architecture.arrangement = Arrangement::OfBranches;
    Ok(architecture)
}
