//! Llama 1 to 3.3 (Touvron et al. 2023) and models of its form.

use serde_json::{Map, Value, json};

use super::{activation, head_size, rotary};
use crate::ml::formats::FormatError;
use crate::ml::kernels::rope::RopeLayout;
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::LlamaConfig;
use crate::ml::models::causal::architecture::{
    Activation, Arrangement, Names, Norm, NormKind, Positions, QueryKeyValue, Widen, linear,
    plain_layers,
};
use crate::ml::models::causal::rotary::{Rotary, Scaling};
use crate::ml::models::keys::Keys;

/// Names of tensors, with or without biases in attention and in the feed-forward layer.
pub(super) fn names(attention_bias: bool, output_bias: bool, mlp_bias: bool) -> Names {
    Names {
        trunk: "model.",
        embedding: "model.embed_tokens",
        projections: ["", ""],
        block: "model.layers",
        attention_norm: "input_layernorm",
        query_key_value: QueryKeyValue::Separate([
            linear("self_attn.q_proj", attention_bias),
            linear("self_attn.k_proj", attention_bias),
            linear("self_attn.v_proj", attention_bias),
        ]),
        query_key_norm: None,
        output: linear("self_attn.o_proj", output_bias),
        feed_forward_norm: "post_attention_layernorm",
        widen: Widen::Gated {
            gate: linear("mlp.gate_proj", mlp_bias),
            up: linear("mlp.up_proj", mlp_bias),
        },
        down: linear("mlp.down_proj", mlp_bias),
        norm: Some("model.norm"),
        head: "lm_head",
        is_transposed: false,
    }
}

/// Defaults of keys that differ between families of this form.
pub(super) struct Defaults {
    pub(super) class: &'static str,
    pub(super) num_kv_heads: Option<usize>,
    pub(super) rope_theta: f64,
    pub(super) rms_norm_eps: f64,
    pub(super) is_tied: bool,
    pub(super) max_position_embeddings: usize,
}

/// Reads what all families of this form have.
pub(super) fn read_form(
    keys: &Keys<'_>,
    names: Names,
    defaults: &Defaults,
) -> Result<Architecture, FormatError> {
    let num_heads = keys.size("num_attention_heads")?;
    let hidden_size = keys.size("hidden_size")?;
    let head_size = head_size(keys, hidden_size, num_heads)?;
    let positions = keys.find_size("max_position_embeddings")?;
    let theta = keys.number("rope_theta", defaults.rope_theta)?;
    keys.only("rope_interleaved", &json!(false))?;
    keys.ignore(&["pretraining_tp"]);
    let config = LlamaConfig {
        vocab_size: keys.size("vocab_size")?,
        hidden_size,
        intermediate_size: keys.size("intermediate_size")?,
        num_layers: keys.size("num_hidden_layers")?,
        num_heads,
        num_kv_heads: keys
            .find_size("num_key_value_heads")?
            .or(defaults
                .num_kv_heads
                .filter(|_| !keys.is_null("num_key_value_heads")))
            .unwrap_or(num_heads),
        rope_theta: theta,
        rope_layout: RopeLayout::HalfSplit,
        rms_norm_eps: keys.number("rms_norm_eps", defaults.rms_norm_eps)?,
        tie_word_embeddings: keys.flag("tie_word_embeddings", defaults.is_tied)?,
        max_position_embeddings: positions.unwrap_or(defaults.max_position_embeddings),
    };
    Ok(Architecture {
        document: Map::new(),
        class: defaults.class,
        head_size,
        positions: Positions::Rotary(rotary(keys, theta, head_size, positions)?),
        activation: activation(keys, "hidden_act", Activation::Silu)?,
        layers: plain_layers(config.num_layers, head_size),
        names,
        ..Architecture::from(config)
    })
}

pub(super) fn read(keys: &Keys<'_>) -> Result<Architecture, FormatError> {
    keys.only("partial_rotary_factor", &json!(1.0))?;
    keys.only("sliding_window", &Value::Null)?;
    let attention_bias = keys.flag("attention_bias", false)?;
    let mlp_bias = keys.flag("mlp_bias", false)?;
    let names = names(attention_bias, attention_bias, mlp_bias);
    let mut architecture = read_form(
        keys,
        names,
        &Defaults {
            class: "Llama",
            num_kv_heads: None,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-6,
            is_tied: false,
            max_position_embeddings: 2048,
        },
    )?;
    let scaling = ["rope_scaling", "rope_parameters"]
        .into_iter()
        .find_map(|key| keys.get(key));
    // A plain scaling is none.
    let is_scaled = |rotary: &Rotary| rotary.scaling != Scaling::None;
    let scaling = scaling.filter(|_| architecture.rotary().is_some_and(is_scaled));
    architecture.document = document(&architecture, scaling, [attention_bias, mlp_bias]);
    Ok(architecture)
}

/// Returns the keys of a `config.json`, all of them named.
fn document(
    architecture: &Architecture,
    scaling: Option<&Value>,
    [attention_bias, mlp_bias]: [bool; 2],
) -> Map<String, Value> {
    let activation = match architecture.activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
        Activation::Relu => "relu",
    };
    let document = json!({
        "attention_bias": attention_bias,
        "head_dim": architecture.head_size,
        "hidden_act": activation,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "max_position_embeddings": architecture.max_position_embeddings,
        "mlp_bias": mlp_bias,
        "model_type": "llama",
        "num_attention_heads": architecture.num_heads,
        "num_hidden_layers": architecture.num_layers,
        "num_key_value_heads": architecture.num_kv_heads,
        "rms_norm_eps": architecture.norm.eps,
        "rope_scaling": scaling,
        "rope_theta": architecture.rotary().map(|rotary| rotary.theta),
        "tie_word_embeddings": architecture.tie_word_embeddings,
        "vocab_size": architecture.vocab_size,
    });
    match document {
        Value::Object(document) => document,
        _ => Map::new(),
    }
}

impl From<&LlamaConfig> for Architecture {
    fn from(config: &LlamaConfig) -> Self {
        // Heads that are no equal shares have no size.
        let is_shared = config.num_heads > 0 && config.hidden_size.is_multiple_of(config.num_heads);
        let head_size = if is_shared { config.head_size() } else { 0 };
        let rotary = Rotary {
            layout: config.rope_layout,
            dimensions: head_size,
            theta: config.rope_theta,
            scaling: Scaling::None,
        };
        let mut architecture = Self {
            document: Map::new(),
            class: "Llama",
            task: "ForCausalLM",
            vocab_size: config.vocab_size,
            hidden_size: config.hidden_size,
            embedding_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_layers: config.num_layers,
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_size,
            max_position_embeddings: config.max_position_embeddings,
            tie_word_embeddings: config.tie_word_embeddings,
            embedding_scale: 1.0,
            positions: Positions::Rotary(rotary),
            norm: Norm {
                kind: NormKind::Rms,
                eps: config.rms_norm_eps,
            },
            arrangement: Arrangement::Before,
            activation: Activation::Silu,
            layers: plain_layers(config.num_layers, head_size),
            names: names(false, false, false),
        };
        architecture.document = document(&architecture, None, [false, false]);
        architecture
    }
}

impl From<LlamaConfig> for Architecture {
    fn from(config: LlamaConfig) -> Self {
        Self::from(&config)
    }
}

impl From<&Architecture> for Architecture {
    fn from(architecture: &Architecture) -> Self {
        architecture.clone()
    }
}

impl Architecture {
    /// Returns the same architecture with rotary pairs of another layout.
    #[must_use]
    pub fn with_layout(mut self, layout: RopeLayout) -> Self {
        if let Positions::Rotary(rotary) = &mut self.positions {
            rotary.layout = layout;
        }
        self
    }
}
