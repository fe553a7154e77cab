//! Attention in both directions within the spans of a packed batch.
//!
//! Rows of different lengths lie one after the other, without padding: a row's result cannot depend on
//! what it is batched with, to the last bit.

mod biased;
mod distance_buckets;
mod heads;
mod plain;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::host::{elements, fused, slice};
use super::threads;

pub use distance_buckets::DistanceBuckets;

/// Shape of an attention layer and the spans it is applied to.
#[derive(Debug, Clone)]
pub struct SpanAttention {
    /// Number of heads.
    pub heads: usize,
    /// Width of a head.
    pub head_size: usize,
    /// Where each row's tokens lie, one after the other from 0 to the number of tokens.
    pub spans: Arc<[Range<usize>]>,
}

impl SpanAttention {
    /// Attends from `q` to `k` and `v`, all (tokens, heads x head size) and so is the result.
    pub fn apply(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        self.check(q, k, v)?;
        if !fused(&[q, k, v]) {
            return self.composed(q, k, v, None);
        }
        q.contiguous()?
            .apply_op3(&k.contiguous()?, &v.contiguous()?, self.clone())
    }

    fn check(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<()> {
        let (tokens, width) = q.dims2()?;
        let mut end = 0;
        let adjoin = self.spans.iter().all(|span| {
            let adjoins = span.start == end && span.end > span.start;
            end = span.end;
            adjoins
        });
        if width != self.heads * self.head_size || k.dims() != q.dims() || v.dims() != q.dims() {
            bail!(
                "span attention: shapes {:?}, {:?}, {:?} do not fit {} heads of {}",
                q.shape(),
                k.shape(),
                v.shape(),
                self.heads,
                self.head_size
            );
        }
        if !adjoin || end != tokens {
            bail!(
                "span attention: spans {:?} do not cover {tokens} tokens",
                self.spans
            );
        }
        Ok(())
    }
}

impl CustomOp3 for SpanAttention {
    fn name(&self) -> &'static str {
        "span_attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let inputs = [
            slice(q, q_layout)?,
            slice(k, k_layout)?,
            slice(v, v_layout)?,
        ];
        let jobs = self.jobs();
        let parts = threads::map(jobs.iter(), |job| {
            self.forward(inputs.map(|x| self.view(x, job)), None, job)
        });
        let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
        let mut out = vec![0f32; inputs[0].len()];
        for (job, part) in jobs.iter().zip(&parts) {
            self.scatter(&mut out, self.width(), 0, part, job);
        }
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let gradient = gradient.contiguous()?;
        let (gradient_storage, gradient_layout) = gradient.storage_and_layout();
        let (q_storage, q_layout) = q.storage_and_layout();
        let (k_storage, k_layout) = k.storage_and_layout();
        let (v_storage, v_layout) = v.storage_and_layout();
        let inputs = [
            elements(&q_storage, q_layout)?,
            elements(&k_storage, k_layout)?,
            elements(&v_storage, v_layout)?,
            elements(&gradient_storage, gradient_layout)?,
        ];
        let jobs = self.jobs();
        let parts = threads::map(jobs.iter(), |job| {
            self.backward(inputs.map(|x| self.view(x, job)), None, job)
        });
        let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
        let mut out = [(); 3].map(|()| vec![0f32; inputs[0].len()]);
        for (job, (parts, _)) in jobs.iter().zip(&parts) {
            for (out, part) in out.iter_mut().zip(parts) {
                self.scatter(out, self.width(), 0, part, job);
            }
        }
        let [to_q, to_k, to_v] =
            out.map(|values| Tensor::from_vec(values, q.shape(), q.device()).map(Some));
        Ok((to_q?, to_k?, to_v?))
    }
}
