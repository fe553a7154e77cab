//! The form of plain candle operations, on other devices and in other dtypes.

use candle_core::{D, Result, Tensor};

use super::SpanAttention;
use super::distance_buckets::DistanceBuckets;
use crate::ml::kernels::product::product;

impl SpanAttention {
    /// The composed form of [`SpanAttention::apply`] and [`SpanAttention::apply_biased`].
    #[expect(clippy::disallowed_methods, reason = "the composed form")]
    pub fn composed(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        bias: Option<(&Tensor, &DistanceBuckets)>,
    ) -> Result<Tensor> {
        let parts = self
            .spans
            .iter()
            .map(|span| {
                let tokens = span.len();
                // (heads, tokens, head size)
                let heads = |x: &Tensor| {
                    x.narrow(0, span.start, tokens)?
                        .reshape((tokens, self.heads, self.head_size))?
                        .transpose(0, 1)?
                        .contiguous()
                };
                let (q, k, v) = (heads(q)?, heads(k)?, heads(v)?);
                let mut scores =
                    product(&q, &k.t()?)?.affine(1.0 / (self.head_size as f64).sqrt(), 0.0)?;
                if let Some((table, buckets)) = bias {
                    let pairs = (0..tokens).flat_map(|query| buckets.of_query(query, tokens));
                    let pairs: Vec<u32> = pairs.copied().collect();
                    let bias = table.index_select(&Tensor::new(pairs, table.device())?, 0)?;
                    let bias = bias.reshape((tokens, tokens, self.heads))?;
                    // (heads, queries, keys)
                    scores = (scores + bias.permute((2, 0, 1))?.contiguous()?)?;
                }
                product(&candle_nn::ops::softmax(&scores, D::Minus1)?, &v)?
                    .transpose(0, 1)?
                    .reshape((tokens, self.heads * self.head_size))
            })
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)
    }
}
