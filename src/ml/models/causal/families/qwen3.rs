//! Qwen 3 (2025): CausalLm's form with normalised queries and keys.

use super::llama::{Defaults, names, read_form};
use super::qwen2::windows;
use crate::ml::formats::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::architecture::QueryKeyNorm;
use crate::ml::models::keys::Keys;

pub(super) fn read(keys: &Keys<'_>) -> Result<Architecture, FormatError> {
    let defaults = Defaults {
        class: "Qwen3",
        num_kv_heads: Some(32),
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        is_tied: false,
        max_position_embeddings: 32_768,
    };
    // Its heads are of 128 where nothing says otherwise, not of an equal share.
    if keys.find_size("head_dim")?.is_none() {
        return Err(keys.malformed("key `head_dim` is missing".to_owned()));
    }
    keys.ignore(&["mlp_bias"]);
    let has_bias = keys.flag("attention_bias", false)?;
    let mut names = names(has_bias, has_bias, false);
    names.query_key_norm = Some(QueryKeyNorm {
        names: ["self_attn.q_norm", "self_attn.k_norm"],
        is_by_head: true,
    });
    let mut architecture = read_form(keys, names, &defaults)?;
    windows(keys, &mut architecture)?;
    Ok(architecture)
}
