//! GPT-2 (Radford et al. 2019).

use serde_json::Map;

use super::{activation, equal_share};
use crate::ml::formats::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::architecture::{
    Activation, Arrangement, Names, Norm, NormKind, Positions, QueryKeyValue, Widen, linear,
    plain_layers,
};
use crate::ml::models::keys::Keys;

const NAMES: Names = Names {
    trunk: "transformer.",
    embedding: "transformer.wte",
    projections: ["", ""],
    block: "transformer.h",
    attention_norm: "ln_1",
    query_key_value: QueryKeyValue::Joined(linear("attn.c_attn", true)),
    query_key_norm: None,
    output: linear("attn.c_proj", true),
    feed_forward_norm: "ln_2",
    widen: Widen::Plain(linear("mlp.c_fc", true)),
    down: linear("mlp.c_proj", true),
    norm: Some("transformer.ln_f"),
    head: "lm_head",
    is_transposed: true,
};

pub(super) fn read(keys: &Keys<'_>) -> Result<Architecture, FormatError> {
    let hidden_size = keys.size_of(["hidden_size", "n_embd"])?;
    let num_heads = keys.size_of(["num_attention_heads", "n_head"])?;
    let num_layers = keys.size_of(["num_hidden_layers", "n_layer"])?;
    let head_size = equal_share(keys, hidden_size, num_heads)?;
    keys.ignore(&[
        "n_ctx",
        // Scores are computed in 32-bit floats anyway.
        "reorder_and_upcast_attn",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ]);
    let is_scaled = keys.flag("scale_attn_weights", true)?;
    let by_layer = keys.flag("scale_attn_by_inverse_layer_idx", false)?;
    let mut layers = plain_layers(num_layers, head_size);
    for (layer, number) in layers.iter_mut().zip(1u16..) {
        if !is_scaled {
            layer.scale = 1.0;
        }
        if by_layer {
            layer.scale /= f32::from(number);
        }
    }
    Ok(Architecture {
        document: Map::new(),
        class: "GPT2",
        task: "LMHeadModel",
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        embedding_size: hidden_size,
        intermediate_size: keys
            .find_size("n_inner")?
            .unwrap_or(hidden_size.saturating_mul(4)),
        num_layers,
        num_heads,
        num_kv_heads: num_heads,
        head_size,
        max_position_embeddings: keys.size_of(["max_position_embeddings", "n_positions"])?,
        tie_word_embeddings: keys.flag("tie_word_embeddings", true)?,
        embedding_scale: 1.0,
        positions: Positions::Learned {
            name: "transformer.wpe",
            offset: 0,
        },
        norm: Norm {
            kind: NormKind::Layer,
            eps: keys.number("layer_norm_epsilon", 1e-5)?,
        },
        arrangement: Arrangement::Before,
        activation: activation(keys, "activation_function", Activation::GeluTanh)?,
        layers,
        names: NAMES,
    })
}
