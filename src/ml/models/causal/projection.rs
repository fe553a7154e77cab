//! Linear layers with or without a low-rank update.

use candle_core::Tensor;
use rayon::prelude::*;

use super::Result;
use crate::ml::kernels::linear::{DropoutMask, linear, lora_linear};
use crate::ml::kernels::sums::add_bias;
use crate::random::Stream;

/// Which dropout masks a forward pass in training uses.
#[derive(Debug, Clone)]
pub struct DropoutKey {
    /// The training's stream for dropout.
    pub stream: Stream,
    /// A number of its own for each forward pass (the step, or step and micro-batch).
    pub counter: u64,
}

/// A linear layer, with or without a low-rank update.
#[derive(Debug, Clone)]
pub(super) struct Projection {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
    pub(super) update: Option<Update>,
}

#[derive(Debug, Clone)]
pub(super) struct Update {
    pub(super) module: String,
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) scale: f64,
    pub(super) dropout: f64,
}

impl Projection {
    pub(super) fn forward(&self, x: &Tensor, dropout: Option<&DropoutKey>) -> Result<Tensor> {
        let product = self.product(x, dropout)?;
        Ok(match &self.bias {
            Some(bias) => add_bias(&product, bias)?,
            None => product,
        })
    }

    fn product(&self, x: &Tensor, dropout: Option<&DropoutKey>) -> Result<Tensor> {
        let Some(update) = &self.update else {
            return Ok(linear(x, &self.weight)?);
        };
        let mask = dropout
            .filter(|_| update.dropout > 0.0)
            .map(|key| dropout_mask(update, key, x.elem_count()));
        Ok(lora_linear(
            x,
            &self.weight,
            &update.a,
            &update.b,
            update.scale,
            mask,
        )?)
    }

    pub(super) fn detached(&self) -> Self {
        Self {
            weight: self.weight.detach(),
            bias: self.bias.as_ref().map(Tensor::detach),
            update: self.update.as_ref().map(|update| Update {
                a: update.a.detach(),
                b: update.b.detach(),
                ..update.clone()
            }),
        }
    }
}

/// Draws which of `elements` inputs are kept: 16 random bits for each, in blocks with their own counters.
pub(super) fn dropout_mask(update: &Update, key: &DropoutKey, elements: usize) -> DropoutMask {
    const WORDS: usize = 512;
    let stream = key
        .stream
        .child(&update.module)
        .child(&key.counter.to_string());
    let dropped = (update.dropout * 65536.0).round() as u64;
    let mut kept = vec![0u64; elements.div_ceil(64)];
    kept.par_chunks_mut(WORDS)
        .enumerate()
        .for_each(|(block, words)| {
            let mut draws = stream.at(block as u64);
            // One uniform draw has 53 random bits: three numbers of 16.
            let mut left = 0;
            let mut bits = 0u64;
            for word in words {
                for bit in 0..64 {
                    if left == 0 {
                        bits = (draws.uniform() * (1u64 << 53) as f64) as u64;
                        left = 3;
                    }
                    *word |= u64::from(bits & 0xffff >= dropped) << bit;
                    bits >>= 16;
                    left -= 1;
                }
            }
        });
    DropoutMask {
        kept,
        scale: (1.0 / (1.0 - dropped as f64 / 65536.0)) as f32,
    }
}
