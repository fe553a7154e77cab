//! Linear layers with or without an adapter's update.

use std::sync::Arc;

use candle_core::Tensor;

use super::Result;
use crate::ml::adapter::Update;
use crate::ml::kernels::dora::dora_linear;
use crate::ml::kernels::linear::{DropoutMask, linear, lora_linear};
use crate::ml::kernels::packed_weight::PackedWeight;
use crate::ml::kernels::sums::add_bias;
use crate::ml::kernels::threads;
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
    pub(super) update: Option<Updating>,
    /// The weight once more, for inputs of few rows, in a model whose weights stay as they are.
    pub(super) packed: Option<Arc<PackedWeight>>,
}

/// An update, and how it is applied.
#[derive(Debug, Clone)]
pub(super) struct Updating {
    pub(super) module: String,
    pub(super) update: Update,
    pub(super) dropout: f64,
    /// What [`Update::factors`] gives, in a model whose weights stay as they are.
    pub(super) factors: Option<Tensor>,
}

impl Projection {
    /// Returns a layer that is a weight alone.
    pub(super) fn plain(weight: Tensor) -> Self {
        Self {
            weight,
            bias: None,
            update: None,
            packed: None,
        }
    }

    pub(super) fn forward(&self, x: &Tensor, dropout: Option<&DropoutKey>) -> Result<Tensor> {
        let product = self.product(x, dropout)?;
        Ok(match &self.bias {
            Some(bias) => add_bias(&product, bias)?,
            None => product,
        })
    }

    fn product(&self, x: &Tensor, dropout: Option<&DropoutKey>) -> Result<Tensor> {
        let rows = x.elem_count() / x.dims().last().copied().unwrap_or(1).max(1);
        let packed = self.packed.as_ref();
        let packed = packed.filter(|_| rows <= PackedWeight::MOST_ROWS);
        let Some(updating) = &self.update else {
            return Ok(match packed {
                Some(packed) => packed.multiply(x, None)?,
                None => linear(x, &self.weight)?,
            });
        };
        let mask = dropout
            .filter(|_| updating.dropout > 0.0)
            .map(|key| dropout_mask(updating, key, x.elem_count()));
        let Update { a, b, scale, .. } = &updating.update;
        let factors = match &updating.factors {
            Some(factors) => Some(factors.clone()),
            None => updating.update.factors(&self.weight)?,
        };
        Ok(match factors {
            Some(factors) => dora_linear(x, &self.weight, (a, b), *scale, &factors, mask)?,
            None => match packed {
                Some(packed) if mask.is_none() => packed.multiply(x, Some((a, b, *scale)))?,
                _ => lora_linear(x, &self.weight, a, b, *scale, mask)?,
            },
        })
    }

    pub(super) fn detached(&self) -> Self {
        Self {
            weight: self.weight.detach(),
            bias: self.bias.as_ref().map(Tensor::detach),
            update: self.update.as_ref().map(|updating| Updating {
                update: updating.update.detached(),
                ..updating.clone()
            }),
            packed: None,
        }
    }

    /// Works out what does not change as long as the weights do not.
    pub(super) fn settle(&mut self) -> Result<()> {
        if let Some(updating) = &mut self.update {
            updating.factors = updating.update.factors(&self.weight)?;
        }
        Ok(())
    }

    /// Packs the weight of a settled layer, if it can be and is used as it is.
    pub(super) fn pack(&mut self) -> Result<()> {
        let update = self.update.as_ref();
        if update.is_none_or(|updating| updating.factors.is_none()) {
            self.packed = PackedWeight::of(&self.weight)?.map(Arc::new);
        }
        Ok(())
    }
}

/// Draws which of `elements` inputs are kept: 16 random bits for each, in blocks with their own counters.
pub(super) fn dropout_mask(update: &Updating, key: &DropoutKey, elements: usize) -> DropoutMask {
    const WORDS: usize = 512;
    let stream = key
        .stream
        .child(&update.module)
        .child(&key.counter.to_string());
    let dropped = (update.dropout * 65536.0).round() as u64;
    let mut kept = vec![0u64; elements.div_ceil(64)];
    threads::each(kept.chunks_mut(WORDS).enumerate(), |(block, words)| {
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
