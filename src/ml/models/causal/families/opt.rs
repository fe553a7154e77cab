//! OPT (Zhang et al. 2022).

use serde_json::{Map, json};

use super::{activation, equal_share};
use crate::ml::formats::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::architecture::{
    Activation, Arrangement, Names, Norm, NormKind, Positions, QueryKeyValue, Widen, linear,
    plain_layers,
};
use crate::ml::models::keys::Keys;

fn names(has_bias: bool, has_final_norm: bool) -> Names {
    Names {
        trunk: "model.",
        embedding: "model.decoder.embed_tokens",
        projections: ["model.decoder.project_in", "model.decoder.project_out"],
        block: "model.decoder.layers",
        attention_norm: "self_attn_layer_norm",
        query_key_value: QueryKeyValue::Separate([
            linear("self_attn.q_proj", has_bias),
            linear("self_attn.k_proj", has_bias),
            linear("self_attn.v_proj", has_bias),
        ]),
        query_key_norm: None,
        output: linear("self_attn.out_proj", has_bias),
        feed_forward_norm: "final_layer_norm",
        widen: Widen::Plain(linear("fc1", has_bias)),
        down: linear("fc2", has_bias),
        norm: has_final_norm.then_some("model.decoder.final_layer_norm"),
        head: "lm_head",
        is_transposed: false,
    }
}

pub(super) fn read(keys: &Keys<'_>) -> Result<Architecture, FormatError> {
    let (hidden_size, num_layers) = (keys.size("hidden_size")?, keys.size("num_hidden_layers")?);
    let num_heads = keys.size("num_attention_heads")?;
    let head_size = equal_share(keys, hidden_size, num_heads)?;
    let is_before = keys.flag("do_layer_norm_before", true)?;
    let is_removed = keys.flag("_remove_final_layer_norm", false)?;
    keys.only("layer_norm_elementwise_affine", &json!(true))?;
    keys.ignore(&["activation_dropout", "dropout", "init_std", "layerdrop"]);
    Ok(Architecture {
        document: Map::new(),
        class: "OPT",
        task: "ForCausalLM",
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        embedding_size: keys
            .find_size("word_embed_proj_dim")?
            .unwrap_or(hidden_size),
        intermediate_size: keys.size("ffn_dim")?,
        num_layers,
        num_heads,
        num_kv_heads: num_heads,
        head_size,
        max_position_embeddings: keys.size("max_position_embeddings")?,
        tie_word_embeddings: keys.flag("tie_word_embeddings", true)?,
        embedding_scale: 1.0,
        positions: Positions::Learned {
            name: "model.decoder.embed_positions",
            offset: 2,
        },
        norm: Norm {
            kind: NormKind::Layer,
            eps: 1e-5,
        },
        arrangement: if is_before {
            Arrangement::Before
        } else {
            Arrangement::After
        },
        activation: activation(keys, "activation_function", Activation::Relu)?,
        layers: plain_layers(num_layers, head_size),
        names: names(keys.flag("enable_bias", true)?, is_before && !is_removed),
    })
}
