//! One block: attention and a feed-forward layer, with their norms.

use candle_core::Tensor;

use super::architecture::{Activation, Architecture, Arrangement, Norm, NormKind, QueryKeyNorm};
use super::{DropoutKey, Projection, Result};
use crate::ml::kernels::form::wide;
use crate::ml::kernels::layer_norm::layer_norm;
use crate::ml::kernels::pointwise::{gelu, gelu_tanh};
use crate::ml::kernels::rms_norm::rms_norm;
use crate::ml::kernels::swiglu::swiglu;

#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) attention_norm: NormWeights,
    pub(super) query_key_value: QueryKeyValues,
    pub(super) query_key_norm: Option<[NormWeights; 2]>,
    pub(super) output: Projection,
    pub(super) feed_forward_norm: NormWeights,
    pub(super) feed_forward: FeedForward,
    pub(super) down: Projection,
}

#[derive(Debug, Clone)]
pub(super) struct NormWeights {
    pub(super) norm: Norm,
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

#[derive(Debug, Clone)]
pub(super) enum QueryKeyValues {
    Separate([Projection; 3]),
    Joined(Projection),
    JoinedByHead(Projection),
}

#[derive(Debug, Clone)]
pub(super) enum FeedForward {
    Plain(Projection),
    Gated([Projection; 2]),
    GatedJoined(Projection),
}

impl NormWeights {
    pub(super) fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let Norm { kind, eps } = self.norm;
        Ok(match (kind, &self.bias) {
            (NormKind::RmsPlusOne, _) => {
                // One more than a narrow number has room for few digits of it.
                let weight = self.weight.to_dtype(wide(self.weight.dtype()))?;
                rms_norm(x, &weight.affine(1.0, 1.0)?, eps)?
            }
            (NormKind::Layer, Some(bias)) => layer_norm(x, &self.weight, bias, eps)?,
            _ => rms_norm(x, &self.weight, eps)?,
        })
    }

    pub(super) fn detached(&self) -> Self {
        Self {
            weight: self.weight.detach(),
            bias: self.bias.as_ref().map(Tensor::detach),
            ..*self
        }
    }
}

impl Block {
    /// Returns the residual stream (rows, time, hidden size) after the block.
    pub(super) fn forward(
        &self,
        architecture: &Architecture,
        x: &Tensor,
        mut attend: impl FnMut([&Tensor; 3]) -> Result<Tensor>,
        dropout: Option<&DropoutKey>,
    ) -> Result<Tensor> {
        let mut attention = |x: &Tensor| -> Result<Tensor> {
            let [queries, keys, values] = self.query_key_value(architecture, x, dropout)?;
            let attended = attend([&queries, &keys, &values])?;
            self.output.forward(&attended, dropout)
        };
        let feed_forward = |x: &Tensor| self.feed_forward(architecture, x, dropout);
        let (first, second) = (&self.attention_norm, &self.feed_forward_norm);
        match architecture.arrangement {
            Arrangement::Before => {
                let x = (x + attention(&first.apply(x)?)?)?;
                Ok((&x + feed_forward(&second.apply(&x)?)?)?)
            }
            Arrangement::After => {
                let x = first.apply(&(x + attention(x)?)?)?;
                second.apply(&(&x + feed_forward(&x)?)?)
            }
            Arrangement::OfBranches => {
                let x = (x + first.apply(&attention(x)?)?)?;
                Ok((&x + second.apply(&feed_forward(&x)?)?)?)
            }
            Arrangement::Parallel => {
                let attended = attention(&first.apply(x)?)?;
                let fed = feed_forward(&second.apply(x)?)?;
                Ok((x + (attended + fed)?)?)
            }
        }
    }

    /// Returns queries, keys and values, (rows, time, width) each.
    fn query_key_value(
        &self,
        architecture: &Architecture,
        x: &Tensor,
        dropout: Option<&DropoutKey>,
    ) -> Result<[Tensor; 3]> {
        let (rows, time, _) = x.dims3()?;
        let size = architecture.head_size;
        let (width, kv_width) = (architecture.num_heads * size, architecture.kv_width());
        let [mut queries, mut keys, values] = match &self.query_key_value {
            QueryKeyValues::Separate([query, key, value]) => [
                query.forward(x, dropout)?,
                key.forward(x, dropout)?,
                value.forward(x, dropout)?,
            ],
            QueryKeyValues::Joined(joined) => {
                let all = joined.forward(x, dropout)?;
                [
                    all.narrow(2, 0, width)?,
                    all.narrow(2, width, kv_width)?,
                    all.narrow(2, width + kv_width, kv_width)?,
                ]
            }
            QueryKeyValues::JoinedByHead(joined) => {
                let all = joined.forward(x, dropout)?;
                let all = all.reshape((rows, time, architecture.num_heads, 3, size))?;
                let part = |place| all.narrow(3, place, 1)?.reshape((rows, time, width));
                [part(0)?, part(1)?, part(2)?]
            }
        };
        if let (Some([query_norm, key_norm]), Some(QueryKeyNorm { is_by_head, .. })) =
            (&self.query_key_norm, architecture.names.query_key_norm)
        {
            let norm = |x: &Tensor, norm: &NormWeights| -> Result<Tensor> {
                if !is_by_head {
                    return norm.apply(x);
                }
                let heads = x.contiguous()?.reshape((rows, time, (), size))?;
                Ok(norm.apply(&heads)?.reshape((rows, time, ()))?)
            };
            queries = norm(&queries, query_norm)?;
            keys = norm(&keys, key_norm)?;
        }
        Ok([queries, keys, values])
    }

    fn feed_forward(
        &self,
        architecture: &Architecture,
        x: &Tensor,
        dropout: Option<&DropoutKey>,
    ) -> Result<Tensor> {
        let gated = |gate: &Tensor, up: &Tensor| -> Result<Tensor> {
            Ok(match architecture.activation {
                Activation::Silu => swiglu(gate, up)?,
                other => bend(other, gate)?.mul(up)?,
            })
        };
        let wide = match &self.feed_forward {
            FeedForward::Plain(up) => bend(architecture.activation, &up.forward(x, dropout)?)?,
            FeedForward::Gated([gate, up]) => {
                gated(&gate.forward(x, dropout)?, &up.forward(x, dropout)?)?
            }
            FeedForward::GatedJoined(both) => {
                let (both, width) = (both.forward(x, dropout)?, architecture.intermediate_size);
                gated(&both.narrow(2, 0, width)?, &both.narrow(2, width, width)?)?
            }
        };
        self.down.forward(&wide, dropout)
    }

    pub(super) fn detached(&self) -> Self {
        let mut block = self.clone();
        for norm in block.norms_mut() {
            *norm = norm.detached();
        }
        for projection in block.projections_mut() {
            *projection = projection.detached();
        }
        block
    }

    fn norms_mut(&mut self) -> impl Iterator<Item = &mut NormWeights> {
        [&mut self.attention_norm, &mut self.feed_forward_norm]
            .into_iter()
            .chain(self.query_key_norm.iter_mut().flatten())
    }

    pub(super) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        let first = match &mut self.query_key_value {
            QueryKeyValues::Separate(three) => three.as_mut_slice(),
            QueryKeyValues::Joined(one) | QueryKeyValues::JoinedByHead(one) => {
                std::slice::from_mut(one)
            }
        };
        let wide = match &mut self.feed_forward {
            FeedForward::Gated(two) => two.as_mut_slice(),
            FeedForward::Plain(one) | FeedForward::GatedJoined(one) => std::slice::from_mut(one),
        };
        let written = [&mut self.output, &mut self.down];
        first.iter_mut().chain(wide).chain(written)
    }
}

/// Applies the function of a feed-forward layer.
fn bend(activation: Activation, x: &Tensor) -> Result<Tensor> {
    Ok(match activation {
        Activation::Silu => swiglu(x, &x.ones_like()?)?,
        Activation::Gelu => gelu(x)?,
        Activation::GeluTanh => gelu_tanh(x)?,
        Activation::Relu => x.relu()?,
    })
}
