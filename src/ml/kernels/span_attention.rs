//! Attention in both directions within the spans of a packed batch.
//!
//! Rows of different lengths lie one after the other, without padding: a row's result cannot depend on
//! what it is batched with, to the last bit.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use super::exponential::exp_shifted;
use super::host::{dot, elements, fused, maximum, slice};
use super::matmul::{Matrix, Threads, multiply};

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
        if !fused(&[q, k, v]) {
            return self.naive(q, k, v);
        }
        q.contiguous()?
            .apply_op3(&k.contiguous()?, &v.contiguous()?, self.clone())
    }

    /// The plain candle form of [`SpanAttention::apply`].
    #[expect(clippy::disallowed_methods, reason = "the plain form")]
    pub fn naive(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
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
                let scores = q
                    .matmul(&k.t()?.contiguous()?)?
                    .affine(1.0 / (self.head_size as f64).sqrt(), 0.0)?;
                candle_nn::ops::softmax(&scores, D::Minus1)?
                    .matmul(&v)?
                    .transpose(0, 1)?
                    .reshape((tokens, self.heads * self.head_size))
            })
            .collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 0)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_size as f32).sqrt()
    }

    fn width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Views one head of one span: (tokens, head size).
    fn view<'a>(&self, x: &'a [f32], job: &Job) -> Matrix<'a> {
        let width = self.width();
        let start = job.span.start * width + job.head * self.head_size;
        Matrix::new(&x[start..], job.span.len(), self.head_size, width)
    }

    /// Returns the attention weights of one head of one span: (tokens, tokens).
    fn weights(&self, q: &[f32], k: &[f32], job: &Job) -> Result<Vec<f32>> {
        let tokens = job.span.len();
        let mut weights = vec![0f32; tokens * tokens];
        multiply(
            &mut weights,
            tokens,
            self.view(q, job),
            self.view(k, job).t(),
            self.scale(),
            false,
            Threads::One,
        )?;
        for row in weights.chunks_exact_mut(tokens) {
            let total = exp_shifted(row, maximum(row));
            for weight in row {
                *weight /= total;
            }
        }
        Ok(weights)
    }

    /// Attends within one head of one span: (tokens, head size).
    fn forward(&self, [q, k, v]: [&[f32]; 3], job: &Job) -> Result<Vec<f32>> {
        let (tokens, size) = (job.span.len(), self.head_size);
        let weights = self.weights(q, k, job)?;
        let mut out = vec![0f32; tokens * size];
        let weights = Matrix::new(&weights, tokens, tokens, tokens);
        let values = self.view(v, job);
        multiply(&mut out, size, weights, values, 1.0, false, Threads::One)?;
        Ok(out)
    }

    /// Returns the gradients of queries, keys and values of one head of one span.
    fn backward(&self, [q, k, v, gradient]: [&[f32]; 4], job: &Job) -> Result<[Vec<f32>; 3]> {
        let (tokens, size) = (job.span.len(), self.head_size);
        let weights = self.weights(q, k, job)?;
        let softmax = Matrix::new(&weights, tokens, tokens, tokens);
        let gradient = self.view(gradient, job);
        let product = |columns: usize, a: Matrix<'_>, b: Matrix<'_>, scale: f32| {
            let mut out = vec![0f32; tokens * columns];
            multiply(&mut out, columns, a, b, scale, false, Threads::One)?;
            Ok::<_, candle_core::Error>(out)
        };
        let to_v = product(size, softmax.t(), gradient, 1.0)?;
        let mut to_scores = product(tokens, gradient, self.view(v, job).t(), 1.0)?;
        // Through the softmax: dS = P (dP - sum_j P dP).
        for (to_scores, weights) in to_scores
            .chunks_exact_mut(tokens)
            .zip(weights.chunks_exact(tokens))
        {
            let mean = dot(weights, to_scores);
            for (to_score, weight) in to_scores.iter_mut().zip(weights) {
                *to_score = weight * (*to_score - mean);
            }
        }
        let to_scores = Matrix::new(&to_scores, tokens, tokens, tokens);
        let to_q = product(size, to_scores, self.view(k, job), self.scale())?;
        let to_k = product(size, to_scores.t(), self.view(q, job), self.scale())?;
        Ok([to_q, to_k, to_v])
    }

    fn jobs(&self) -> Vec<Job> {
        let spans = self.spans.iter();
        let jobs = spans.flat_map(|span| {
            (0..self.heads).map(|head| Job {
                head,
                span: span.clone(),
            })
        });
        jobs.collect()
    }

    /// Copies one head's (tokens, head size) into (all tokens, width).
    fn scatter(&self, out: &mut [f32], part: &[f32], job: &Job) {
        for (token, values) in job.span.clone().zip(part.chunks_exact(self.head_size)) {
            let start = token * self.width() + job.head * self.head_size;
            out[start..start + self.head_size].copy_from_slice(values);
        }
    }
}

/// One head of one span.
struct Job {
    head: usize,
    span: Range<usize>,
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
        let parts = jobs
            .par_iter()
            .map(|job| self.forward(inputs, job))
            .collect::<Result<Vec<_>>>()?;
        let mut out = vec![0f32; inputs[0].len()];
        for (job, part) in jobs.iter().zip(&parts) {
            self.scatter(&mut out, part, job);
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
        let parts = jobs
            .par_iter()
            .map(|job| self.backward(inputs, job))
            .collect::<Result<Vec<_>>>()?;
        let mut out = [(); 3].map(|()| vec![0f32; inputs[0].len()]);
        for (job, parts) in jobs.iter().zip(&parts) {
            for (out, part) in out.iter_mut().zip(parts) {
                self.scatter(out, part, job);
            }
        }
        let [to_q, to_k, to_v] =
            out.map(|values| Tensor::from_vec(values, q.shape(), q.device()).map(Some));
        Ok((to_q?, to_k?, to_v?))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::random::Stream;
    use candle_core::{Device, Var};

    pub(in super::super) fn random(counter: u64, shape: &[usize]) -> Tensor {
        let mut draws = Stream::new(1, "kernel tests").at(counter);
        let values: Vec<f32> = (0..shape.iter().product())
            .map(|_| draws.normal() as f32)
            .collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// Returns the result of `form` and the gradients of its three inputs under fixed random weights.
    pub(in super::super) fn gradients(
        inputs: &[Tensor; 3],
        form: impl Fn([&Tensor; 3]) -> Result<Tensor>,
    ) -> Vec<Tensor> {
        let vars = inputs
            .each_ref()
            .map(|input| Var::from_tensor(input).unwrap());
        let out = form(vars.each_ref().map(Var::as_tensor)).unwrap();
        let weights = random(99, out.dims());
        let loss = (&out * weights).unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        let grads = vars.iter().map(|var| grads.get(var).unwrap().clone());
        std::iter::once(out).chain(grads).collect()
    }

    pub(in super::super) fn assert_close(found: &Tensor, expected: &Tensor, tolerance: f32) {
        assert_eq!(found.dims(), expected.dims());
        let difference = (found - expected).unwrap().abs().unwrap();
        let difference = difference.max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < tolerance, "largest difference {difference}");
    }

    fn attention(lengths: &[usize]) -> SpanAttention {
        let mut start = 0;
        let spans = lengths.iter().map(|length| {
            start += length;
            start - length..start
        });
        SpanAttention {
            heads: 3,
            head_size: 5,
            spans: spans.collect(),
        }
    }

    #[test]
    fn values_and_gradients_are_those_of_the_plain_form() {
        let attention = attention(&[7, 1, 70]);
        let inputs = [1, 2, 3].map(|counter| random(counter, &[78, 15]));
        let fused = gradients(&inputs, |[q, k, v]| attention.apply(q, k, v));
        let naive = gradients(&inputs, |[q, k, v]| attention.naive(q, k, v));
        for (fused, naive) in fused.iter().zip(&naive) {
            assert_close(fused, naive, 1e-5);
        }
    }

    #[test]
    fn a_row_does_not_depend_on_its_neighbours_to_the_last_bit() {
        let inputs = [1, 2, 3].map(|counter| random(counter, &[78, 15]));
        let together = gradients(&inputs, |[q, k, v]| attention(&[7, 1, 70]).apply(q, k, v));
        let alone = inputs
            .each_ref()
            .map(|input| input.narrow(0, 8, 70).unwrap().contiguous().unwrap());
        let alone = attention(&[70]).apply(&alone[0], &alone[1], &alone[2]);
        let part = together[0].narrow(0, 8, 70).unwrap();
        assert_eq!(
            part.to_vec2::<f32>().unwrap(),
            alone.unwrap().to_vec2::<f32>().unwrap()
        );
    }

    #[test]
    fn spans_must_cover_the_tokens() {
        let x = random(1, &[9, 15]);
        for lengths in [&[8][..], &[5, 5], &[9, 0]] {
            let error = attention(lengths).apply(&x, &x, &x).unwrap_err();
            assert!(
                error.to_string().contains("do not cover 9 tokens"),
                "{error}"
            );
        }
    }
}
