//! StarCoder 2 (Lozhkov et al. 2024): Llama's names with layer norms, biases and a plain feed-forward layer.

use super::activation;
use super::llama::{Defaults, names, read_form};
use crate::ml::formats::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::architecture::{Activation, Norm, NormKind, Widen, linear};
use crate::ml::models::keys::Keys;

pub(super) fn read(keys: &Keys<'_>) -> Result<Architecture, FormatError> {
    let defaults = Defaults {
        class: "Starcoder2",
        num_kv_heads: Some(2),
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-5,
        is_tied: true,
        max_position_embeddings: 4096,
    };
    keys.ignore(&["embedding_dropout", "residual_dropout"]);
    let has_bias = keys.flag("use_bias", true)?;
    let mut names = names(has_bias, has_bias, has_bias);
    names.widen = Widen::Plain(linear("mlp.c_fc", has_bias));
    names.down = linear("mlp.c_proj", has_bias);
    let mut architecture = read_form(keys, names, &defaults)?;
    architecture.norm = Norm {
        kind: NormKind::Layer,
        eps: keys.number("norm_epsilon", 1e-5)?,
    };
    architecture.activation = activation(keys, "hidden_act", Activation::GeluTanh)?;
    architecture.see(keys.find_size("sliding_window")?);
    Ok(architecture)
}
