//! Counting floating-point operations from shapes.
//!
//! A multiply-add counts as two operations. Counted are the matrix products, which is all that matters
//! (Kaplan et al. 2020, section 2.1): `2 N` for each token forward, and attention's `4 L d` for each token and
//! each position it sees. Backward, the gradient with respect to the inputs costs the same again, and so does
//! the gradient with respect to trained weights.

use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::architecture::Role;

/// What the counts need of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelSize {
    /// Weights in matrix products, the output head among them.
    pub matrix_weights: f64,
    /// Operations for each pair of a token and a position that it sees.
    pub attention: f64,
    /// Whether the matrices themselves are trained (else an adapter, which is small, is).
    pub trains_matrices: bool,
}

impl ModelSize {
    /// Counts a model.
    pub fn of(model: impl Into<Architecture>, trains_matrices: bool) -> Self {
        let model = model.into();
        let slots = model.slots();
        let blocks = slots.filter(|slot| matches!(slot.role, Role::Linear { .. }));
        let blocks: usize = blocks
            .map(|slot| slot.shape.iter().product::<usize>())
            .sum();
        let queries = model.num_heads * model.head_size;
        Self {
            matrix_weights: (blocks + model.embedding_size * model.vocab_size) as f64,
            attention: (4 * model.num_layers * queries) as f64,
            trains_matrices,
        }
    }
}

/// Returns the operations of a forward pass over rows of these lengths.
pub fn forward_flops(size: &ModelSize, lengths: impl IntoIterator<Item = usize>) -> f64 {
    lengths
        .into_iter()
        .map(|length| {
            let length = length as f64;
            2.0 * size.matrix_weights * length + size.attention * length * (length + 1.0) / 2.0
        })
        .sum()
}

/// Returns the operations of the backward pass that follows such a forward pass.
pub fn backward_flops(size: &ModelSize, forward: f64) -> f64 {
    if size.trains_matrices {
        2.0 * forward
    } else {
        forward
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ml::kernels::rope::RopeLayout;
    use crate::ml::models::causal::LlamaConfig;

    #[test]
    fn smollm2_costs_what_its_shape_says() {
        let config = LlamaConfig {
            vocab_size: 49152,
            hidden_size: 576,
            intermediate_size: 1536,
            num_layers: 30,
            num_heads: 9,
            num_kv_heads: 3,
            rope_theta: 1e5,
            rope_layout: RopeLayout::HalfSplit,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: true,
            max_position_embeddings: 2048,
        };
        let size = ModelSize::of(&config, true);
        // 134.5 million parameters, of which 35 thousand are in norms.
        assert!(
            (size.matrix_weights - 134.48e6).abs() < 0.02e6,
            "{}",
            size.matrix_weights
        );
        let forward = forward_flops(&size, [1]);
        assert_eq!(forward, 2.0 * size.matrix_weights + 4.0 * 30.0 * 576.0);
        assert_eq!(backward_flops(&size, forward), 2.0 * forward);
    }
}
