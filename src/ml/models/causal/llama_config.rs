//! The shape of a plain Llama model, such as those that are made here.

use serde::{Deserialize, Serialize};

use super::architecture::Architecture;
use crate::ml::kernels::rope::RopeLayout;

/// Shape and constants of a LLaMA model.
///
/// Weights are named as in Hugging Face checkpoints (`model.layers.0.self_attn.q_proj.weight`,
/// `model.embed_tokens.weight`, `model.norm.weight`, `lm_head.weight`), whatever file they came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LlamaConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the SwiGLU feed-forward layer.
    pub intermediate_size: usize,
    /// Number of transformer blocks.
    pub num_layers: usize,
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Pairing of rotated dimensions.
    #[serde(default)]
    pub rope_layout: RopeLayout,
    /// Added to the mean square before its root is taken.
    pub rms_norm_eps: f64,
    /// Whether the output head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Longest sequence, prompt and completion together.
    pub max_position_embeddings: usize,
}

impl LlamaConfig {
    /// Returns the width of one head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.num_heads
    }

    /// Checks that the numbers describe a model; else says which do not.
    pub fn check(&self) -> Result<(), String> {
        let is_split =
            |heads| self.hidden_size.is_multiple_of(heads) && self.head_size().is_multiple_of(2);
        if self.num_heads > 0 && !is_split(self.num_heads) {
            return Err(format!(
                "hidden size {} does not split into {} heads of an even size",
                self.hidden_size, self.num_heads
            ));
        }
        Architecture::from(self).check()
    }
}
