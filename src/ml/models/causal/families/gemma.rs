//! Gemma (first generation, 2024): CausalLm's form with other norms and scaled embeddings.

use super::activation;
use super::llama::{Defaults, names, read_form};
use crate::ml::formats::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::architecture::{Activation, NormKind};
use crate::ml::models::keys::Keys;

pub(super) fn read(keys: &Keys<'_>) -> Result<Architecture, FormatError> {
    let defaults = Defaults {
        class: "Gemma",
        num_kv_heads: Some(16),
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        is_tied: true,
        max_position_embeddings: 8192,
    };
    // Its heads are of 256 where nothing says otherwise, not of an equal share.
    if keys.find_size("head_dim")?.is_none() {
        return Err(keys.malformed("key `head_dim` is missing".to_owned()));
    }
    let has_bias = keys.flag("attention_bias", false)?;
    // `transformers` 4.57 obeys `hidden_act` alone.
    keys.ignore(&["hidden_activation"]);
    let mut architecture = read_form(keys, names(has_bias, has_bias, false), &defaults)?;
    architecture.activation = activation(keys, "hidden_act", Activation::GeluTanh)?;
    architecture.norm.kind = NormKind::RmsPlusOne;
    architecture.embedding_scale = (architecture.hidden_size as f64).sqrt();
    Ok(architecture)
}
