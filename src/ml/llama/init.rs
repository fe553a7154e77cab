//! Shapes of a model's weights, and their initial values.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};

use super::{LlamaError, Result};
use crate::ml::config::LlamaConfig;
use crate::ml::parameters::Weights;
use crate::random::Stream;

impl LlamaConfig {
    /// Checks that the numbers describe a model.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            ("num_kv_heads", self.num_kv_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        let reason = if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            format!("`{name}` is 0")
        } else if !self.hidden_size.is_multiple_of(self.num_heads)
            || !self.head_size().is_multiple_of(2)
        {
            format!(
                "`hidden_size` {} over `num_heads` {} is not an even head size",
                self.hidden_size, self.num_heads
            )
        } else if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            format!(
                "`num_kv_heads` {} does not divide `num_heads` {}",
                self.num_kv_heads, self.num_heads
            )
        } else if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            format!("`rope_theta` is {}", self.rope_theta)
        } else if !(self.rms_norm_eps >= 0.0 && self.rms_norm_eps.is_finite()) {
            format!("`rms_norm_eps` is {}", self.rms_norm_eps)
        } else {
            return Ok(());
        };
        Err(LlamaError::Config { reason })
    }

    /// Returns the names and shapes of all weights, in name order.
    pub fn shapes(&self) -> BTreeMap<String, Vec<usize>> {
        let hidden = self.hidden_size;
        let kv = self.num_kv_heads * self.head_size();
        let wide = self.intermediate_size;
        let mut shapes = BTreeMap::from([
            (EMBEDDING.to_owned(), vec![self.vocab_size, hidden]),
            (NORM.to_owned(), vec![hidden]),
        ]);
        if !self.tie_word_embeddings {
            shapes.insert(HEAD.to_owned(), vec![self.vocab_size, hidden]);
        }
        for layer in 0..self.num_layers {
            let parts: [(&str, Vec<usize>); 9] = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![hidden, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![wide, hidden]),
                ("mlp.up_proj", vec![wide, hidden]),
                ("mlp.down_proj", vec![hidden, wide]),
            ];
            for (part, shape) in parts {
                shapes.insert(format!("model.layers.{layer}.{part}.weight"), shape);
            }
        }
        shapes
    }
}

pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(super) const NORM: &str = "model.norm.weight";
/// Name of an output head of its own.
pub const HEAD: &str = "lm_head.weight";

/// Draws initial weights.
///
/// Norms are one; the embedding (and an untied head) is `N(0, 0.05)`; projections are `N(0, s)` with
/// `s = 0.04 sqrt(128 / hidden_size)`, those that write to the residual stream divided by
/// `sqrt(2 num_layers)` (Radford et al. 2019, section 2.3).
pub fn init(config: &LlamaConfig, stream: &Stream, device: &Device) -> Result<Weights> {
    config.check()?;
    let projection = 0.04 * (128.0 / config.hidden_size as f64).sqrt();
    let residual = projection / (2.0 * config.num_layers as f64).sqrt();
    config
        .shapes()
        .into_iter()
        .map(|(name, shape)| {
            let elements = shape.iter().product();
            let values = if shape.len() == 1 {
                vec![1f32; elements]
            } else {
                let std = match name.as_str() {
                    EMBEDDING | HEAD => 0.05,
                    _ if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") => {
                        residual
                    }
                    _ => projection,
                };
                let mut draws = stream.child(&name).at(0);
                (0..elements)
                    .map(|_| (std * draws.normal()) as f32)
                    .collect()
            };
            Ok((name, Tensor::from_vec(values, shape, device)?))
        })
        .collect()
}
