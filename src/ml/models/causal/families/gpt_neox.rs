//! GPT-NeoX (Black et al. 2022) and Pythia.

use serde_json::{Map, Value};

use super::{activation, equal_share, rotary};
use crate::ml::formats::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::architecture::{
    Activation, Arrangement, Names, Norm, NormKind, Positions, QueryKeyValue, Widen, linear,
    plain_layers,
};
use crate::ml::models::keys::Keys;

fn names(attention_bias: bool) -> Names {
    Names {
        trunk: "gpt_neox.",
        embedding: "gpt_neox.embed_in",
        projections: ["", ""],
        block: "gpt_neox.layers",
        attention_norm: "input_layernorm",
        query_key_value: QueryKeyValue::JoinedByHead(linear(
            "attention.query_key_value",
            attention_bias,
        )),
        query_key_norm: None,
        output: linear("attention.dense", attention_bias),
        feed_forward_norm: "post_attention_layernorm",
        widen: Widen::Plain(linear("mlp.dense_h_to_4h", true)),
        down: linear("mlp.dense_4h_to_h", true),
        norm: Some("gpt_neox.final_layer_norm"),
        head: "embed_out",
        is_transposed: false,
    }
}

pub(super) fn read(keys: &Keys<'_>) -> Result<Architecture, FormatError> {
    let (hidden_size, num_layers) = (keys.size("hidden_size")?, keys.size("num_hidden_layers")?);
    let num_heads = keys.size("num_attention_heads")?;
    let head_size = equal_share(keys, hidden_size, num_heads)?;
    keys.only("head_dim", &Value::from(head_size))?;
    let share = keys.share("rotary_pct", 0.25)?;
    let theta = keys.number("rotary_emb_base", 10_000.0)?;
    // Written by some versions of `transformers`, and overruled by the two above when read.
    keys.only("partial_rotary_factor", &share.into())?;
    keys.only("rope_theta", &theta.into())?;
    let positions = keys.find_size("max_position_embeddings")?;
    let dimensions = (head_size as f64 * share) as usize;
    let mut layers = plain_layers(num_layers, head_size);
    for layer in &mut layers {
        layer.is_rotated = dimensions > 0;
    }
    Ok(Architecture {
        document: Map::new(),
        class: "GPTNeoX",
        task: "ForCausalLM",
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        embedding_size: hidden_size,
        intermediate_size: keys.size("intermediate_size")?,
        num_layers,
        num_heads,
        num_kv_heads: num_heads,
        head_size,
        max_position_embeddings: positions.unwrap_or(2048),
        tie_word_embeddings: keys.flag("tie_word_embeddings", false)?,
        embedding_scale: 1.0,
        positions: Positions::Rotary(rotary(keys, theta, dimensions, positions)?),
        norm: Norm {
            kind: NormKind::Layer,
            eps: keys.number("layer_norm_eps", 1e-5)?,
        },
        arrangement: if keys.flag("use_parallel_residual", true)? {
            Arrangement::Parallel
        } else {
            Arrangement::Before
        },
        activation: activation(keys, "hidden_act", Activation::Gelu)?,
        layers,
        names: names(keys.flag("attention_bias", true)?),
    })
}
