//! Causal grouped-query attention on padded batches, with rotary positions and windows where a model has them.
//!
//! A row's tokens lie in a span of its time axis; positions count from the span's start, tokens
//! attend only within it, and what lies outside gets zeros and gives no gradient.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, bail};

use super::exponential::exp_shifted;
use super::form::wide;
use super::given::with_gradient_to;
use super::host::{dot, elements, fused, maximum, slice};
use super::matmul::{Matrix, Threads, multiply};
use super::product::product;
use super::rope::Rope;
use super::threads;

/// Queries handled at once; keys after the last of them are never multiplied.
const QUERIES: usize = 64;

/// Shape of an attention layer and the rows it is applied to.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Number of query heads.
    pub heads: usize,
    /// Number of key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_size: usize,
    /// Rotation of queries and keys, where positions are told by one.
    pub rope: Option<Arc<Rope>>,
    /// Scores are multiplied by it.
    pub scale: f32,
    /// How many keys a query sees, its own among them; all that came before if absent.
    pub window: Option<usize>,
    /// For each row of the batch, where its tokens lie.
    pub spans: Arc<[Range<usize>]>,
    /// What the composed form has worked out of these spans.
    pub masks: Arc<Masks>,
}

/// Masks of a batch on its device, by the window: shared by all layers.
#[derive(Debug, Default)]
pub struct Masks(Mutex<BTreeMap<Option<usize>, [Tensor; 2]>>);

impl Attention {
    /// Attends from `q` (batch, time, heads x head size) to `k` and `v` (batch, time, kv heads x head size).
    ///
    /// Returns (batch, time, heads x head size).
    pub fn apply(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        self.check(q.shape(), k.shape(), v.shape())?;
        if !fused(&[q, k, v]) {
            return self.composed(q, k, v);
        }
        q.contiguous()?
            .apply_op3(&k.contiguous()?, &v.contiguous()?, self.clone())
    }

    fn check(&self, q: &Shape, k: &Shape, v: &Shape) -> Result<()> {
        let (batch, time, width) = q.dims3()?;
        let kv = [batch, time, self.kv_heads * self.head_size];
        let longest = self.spans.iter().map(ExactSizeIterator::len).max();
        if width != self.heads * self.head_size || k.dims() != kv || v.dims() != kv {
            bail!("attention: shapes {q:?}, {k:?}, {v:?} do not fit the heads");
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            bail!(
                "attention: {} heads over {} key/value heads",
                self.heads,
                self.kv_heads
            );
        }
        if self.spans.len() != batch || self.spans.iter().any(|s| s.start > s.end || s.end > time) {
            bail!(
                "attention: spans {:?} do not fit ({batch}, {time})",
                self.spans
            );
        }
        let positions = self
            .rope
            .as_ref()
            .map_or(usize::MAX, |rope| rope.positions());
        if longest.unwrap_or(0) > positions {
            bail!(
                "attention: a row of {} tokens exceeds the model's {positions} positions",
                longest.unwrap_or(0),
            );
        }
        Ok(())
    }

    /// The composed form of [`Attention::apply`].
    #[expect(clippy::disallowed_methods, reason = "the composed form")]
    pub fn composed(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (batch, time, width) = q.dims3()?;
        let split = |x: &Tensor, heads: usize| {
            x.reshape((batch, time, heads, self.head_size))?
                .transpose(1, 2)?
                .contiguous()
        };
        let mut positions = vec![0u32; batch * time];
        for (row, span) in self.spans.iter().enumerate() {
            for (position, time_of_it) in span.clone().enumerate() {
                positions[row * time + time_of_it] = position as u32;
            }
        }
        let [allowed, inside] = self.masks(q, batch, time)?;
        let group = self.heads / self.kv_heads;
        let repeat = |x: Tensor| {
            x.unsqueeze(2)?
                .expand((batch, self.kv_heads, group, time, self.head_size))?
                .reshape((batch, self.heads, time, self.head_size))
        };
        let turned = |x: Tensor| match &self.rope {
            Some(rope) => rope.composed(&x, &positions),
            None => Ok(x),
        };
        let q = turned(split(q, self.heads)?)?;
        let k = repeat(turned(split(k, self.kv_heads)?)?)?;
        let v = repeat(split(v, self.kv_heads)?)?;
        let scores = product(&q.contiguous()?, &k.contiguous()?.t()?)?;
        let scores = scores
            .to_dtype(wide(scores.dtype()))?
            .affine(f64::from(self.scale), 0.0)?;
        let weights = masked_softmax(&scores, &allowed)?;
        let out = product(&weights.to_dtype(v.dtype())?, &v.contiguous()?)?
            .transpose(1, 2)?
            .reshape((batch, time, width))?;
        out.broadcast_mul(&inside.to_dtype(out.dtype())?)
    }

    /// Returns where queries see keys, (batch, 1, time, time), and which places lie inside the rows, (batch, time, 1), on the
    /// device of `like`; all layers of a batch share them.
    fn masks(&self, like: &Tensor, batch: usize, time: usize) -> Result<[Tensor; 2]> {
        let mut known = self.masks.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pair) = known.get(&self.window)
            && pair[0].device().same_device(like.device())
            && pair[0].dims() == [batch, 1, time, time]
        {
            return Ok(pair.clone());
        }
        let mut allowed = vec![0u8; batch * time * time];
        let mut inside = vec![0f32; batch * time];
        for (row, span) in self.spans.iter().enumerate() {
            for query in 0..time {
                let row = row * time + query;
                if span.contains(&query) {
                    inside[row] = 1.0;
                    let first = span.start + self.first_seen(query - span.start);
                    allowed[row * time + first..=row * time + query].fill(1);
                } else {
                    // A softmax over nothing would be NaN; its value is multiplied by zero in the end.
                    allowed[row * time + query] = 1;
                }
            }
        }
        let pair = [
            Tensor::from_vec(allowed, (batch, 1, time, time), like.device())?,
            Tensor::from_vec(inside, (batch, time, 1), like.device())?,
        ];
        known.insert(self.window, pair.clone());
        Ok(pair)
    }

    /// Returns the first position that a query at `position` sees.
    fn first_seen(&self, position: usize) -> usize {
        first_seen(position, self.window)
    }

    /// Copies head `head` of a row's span out of `x` (time, width), rotated: (tokens, head size).
    fn rotated(&self, x: &[f32], width: usize, head: usize, span: &Range<usize>) -> Vec<f32> {
        let size = self.head_size;
        let mut out = Vec::with_capacity(span.len() * size);
        for (position, time) in span.clone().enumerate() {
            out.extend_from_slice(&x[time * width + head * size..][..size]);
            if let Some(rope) = &self.rope {
                rope.rotate(&mut out[position * size..][..size], position);
            }
        }
        out
    }

    /// Writes the attention weights of `queries` over the keys before their end: (queries, end).
    fn weights(&self, q: &[f32], k: &[f32], queries: &Range<usize>, out: &mut [f32]) -> Result<()> {
        let (size, end) = (self.head_size, queries.end);
        multiply(
            out,
            end,
            Matrix::new(&q[queries.start * size..], queries.len(), size, size),
            Matrix::new(k, end, size, size).t(),
            self.scale,
            false,
            Threads::One,
        )?;
        for (row, query) in queries.clone().enumerate() {
            let (seen, future) = out[row * end..(row + 1) * end].split_at_mut(query + 1);
            let (past, seen) = seen.split_at_mut(self.first_seen(query));
            let total = exp_shifted(seen, maximum(seen));
            for weight in seen {
                *weight /= total;
            }
            past.fill(0.0);
            future.fill(0.0);
        }
        Ok(())
    }

    /// Attends within one row for one key/value head: (group, tokens, head size).
    fn forward(&self, q: &[f32], k: &[f32], v: &[f32], job: &Job) -> Result<Vec<f32>> {
        let (size, group) = (self.head_size, self.heads / self.kv_heads);
        let (width, kv_width) = (self.heads * size, self.kv_heads * size);
        let tokens = job.span.len();
        let keys = self.rotated(k, kv_width, job.kv_head, &job.span);
        let values = &v[(job.span.start * kv_width + job.kv_head * size).min(v.len())..];
        let mut out = vec![0f32; group * tokens * size];
        let mut weights = vec![0f32; QUERIES.min(tokens) * tokens];
        for (member, out) in out.chunks_exact_mut((tokens * size).max(1)).enumerate() {
            let queries = self.rotated(q, width, job.kv_head * group + member, &job.span);
            for block in blocks(tokens) {
                self.weights(&queries, &keys, &block, &mut weights)?;
                multiply(
                    &mut out[block.start * size..],
                    size,
                    Matrix::new(&weights, block.len(), block.end, block.end),
                    Matrix::new(values, block.end, size, kv_width),
                    1.0,
                    false,
                    Threads::One,
                )?;
            }
        }
        Ok(out)
    }

    /// Returns the gradients of one row and key/value head: queries (group, tokens, head size), keys and
    /// values (tokens, head size).
    fn backward(
        &self,
        [q, k, v, gradient]: [&[f32]; 4],
        job: &Job,
    ) -> Result<(Vec<f32>, Vec<f32>, Vec<f32>)> {
        let (size, group) = (self.head_size, self.heads / self.kv_heads);
        let (width, kv_width) = (self.heads * size, self.kv_heads * size);
        let tokens = job.span.len();
        let keys = self.rotated(k, kv_width, job.kv_head, &job.span);
        let values = &v[(job.span.start * kv_width + job.kv_head * size).min(v.len())..];
        let mut to_q = vec![0f32; group * tokens * size];
        let mut to_k = vec![0f32; tokens * size];
        let mut to_v = vec![0f32; tokens * size];
        let mut weights = vec![0f32; QUERIES.min(tokens) * tokens];
        let mut to_weights = weights.clone();
        for (member, to_q) in to_q.chunks_exact_mut((tokens * size).max(1)).enumerate() {
            let head = job.kv_head * group + member;
            let queries = self.rotated(q, width, head, &job.span);
            for block in blocks(tokens) {
                let (rows, end) = (block.len(), block.end);
                self.weights(&queries, &keys, &block, &mut weights)?;
                let start = (job.span.start + block.start) * width + head * size;
                let gradient = Matrix::new(&gradient[start..], rows, size, width);
                let softmax = Matrix::new(&weights, rows, end, end);
                multiply(
                    &mut to_v,
                    size,
                    softmax.t(),
                    gradient,
                    1.0,
                    true,
                    Threads::One,
                )?;
                multiply(
                    &mut to_weights,
                    end,
                    gradient,
                    Matrix::new(values, end, size, kv_width).t(),
                    1.0,
                    false,
                    Threads::One,
                )?;
                // Through the softmax: dS = P (dP - sum_j P dP); P is 0 for keys after the query.
                for row in 0..rows {
                    let weights = &weights[row * end..(row + 1) * end];
                    let to_weights = &mut to_weights[row * end..(row + 1) * end];
                    let mean = dot(weights, to_weights);
                    for (to_weight, weight) in to_weights.iter_mut().zip(weights) {
                        *to_weight = weight * (*to_weight - mean);
                    }
                }
                let to_scores = Matrix::new(&to_weights, rows, end, end);
                multiply(
                    &mut to_q[block.start * size..],
                    size,
                    to_scores,
                    Matrix::new(&keys, end, size, size),
                    self.scale,
                    false,
                    Threads::One,
                )?;
                multiply(
                    &mut to_k,
                    size,
                    to_scores.t(),
                    Matrix::new(&queries[block.start * size..], rows, size, size),
                    self.scale,
                    true,
                    Threads::One,
                )?;
            }
            self.rotate_back(to_q);
        }
        self.rotate_back(&mut to_k);
        Ok((to_q, to_k, to_v))
    }

    fn rotate_back(&self, heads: &mut [f32]) {
        let Some(rope) = &self.rope else { return };
        for (position, head) in heads.chunks_exact_mut(self.head_size).enumerate() {
            rope.rotate_back(head, position);
        }
    }

    fn jobs(&self) -> Vec<Job> {
        self.spans
            .iter()
            .enumerate()
            .flat_map(|(row, span)| {
                (0..self.kv_heads).map(move |kv_head| Job {
                    row,
                    kv_head,
                    span: span.clone(),
                })
            })
            .collect()
    }

    /// Copies one head's (tokens, head size) into (batch, time, heads x head size).
    fn scatter(&self, out: &mut [f32], part: &[f32], job: &Job, head: usize, extent: Extent) {
        for (time, values) in job.span.clone().zip(part.chunks_exact(self.head_size)) {
            let start = (job.row * extent.time + time) * extent.width + head * self.head_size;
            out[start..start + self.head_size].copy_from_slice(values);
        }
    }
}

/// The softmax of scores over the keys that are `allowed`, of which the weights alone are kept for the gradient.
#[expect(clippy::disallowed_methods, reason = "the composed form")]
fn masked_softmax(scores: &Tensor, allowed: &Tensor) -> Result<Tensor> {
    let weights = {
        let scores = scores.detach();
        let never = Tensor::new(f32::NEG_INFINITY, scores.device())?
            .to_dtype(scores.dtype())?
            .broadcast_as(scores.shape())?;
        let seen = allowed
            .broadcast_as(scores.shape())?
            .where_cond(&scores, &never)?;
        candle_nn::ops::softmax(&seen, D::Minus1)?
    };
    let kept = weights.clone();
    with_gradient_to("masked_softmax", weights, scores, move |_, gradient| {
        // dS = P (dP - sum_j P dP)
        let products = (&kept * gradient)?;
        let sums = products.sum_keepdim(D::Minus1)?;
        Ok(Some((products - kept.broadcast_mul(&sums)?)?))
    })
}

/// One row of the batch and one key/value head.
struct Job {
    row: usize,
    kv_head: usize,
    span: Range<usize>,
}

#[derive(Clone, Copy)]
struct Extent {
    time: usize,
    width: usize,
}

/// Returns the first position that a query at `position` sees through a window.
pub(in crate::ml) fn first_seen(position: usize, window: Option<usize>) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

fn blocks(tokens: usize) -> impl Iterator<Item = Range<usize>> {
    (0..tokens)
        .step_by(QUERIES)
        .map(move |start| start..(start + QUERIES).min(tokens))
}

/// Returns one row's (time, width) of a (batch, time, width) slice.
fn row_of(x: &[f32], row: usize, extent: Extent) -> &[f32] {
    &x[row * extent.time * extent.width..][..extent.time * extent.width]
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "causal_attention"
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
        let (_, time, width) = q_layout.shape().dims3()?;
        let (q, k, v) = (
            slice(q, q_layout)?,
            slice(k, k_layout)?,
            slice(v, v_layout)?,
        );
        let wide = Extent { time, width };
        let narrow = Extent {
            time,
            width: self.kv_heads * self.head_size,
        };
        let jobs = self.jobs();
        let parts = threads::map(jobs.iter(), |job| {
            self.forward(
                row_of(q, job.row, wide),
                row_of(k, job.row, narrow),
                row_of(v, job.row, narrow),
                job,
            )
        });
        let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
        let mut out = vec![0f32; q.len()];
        let group = self.heads / self.kv_heads;
        for (job, part) in jobs.iter().zip(&parts) {
            let tokens = (job.span.len() * self.head_size).max(1);
            for (member, part) in part.chunks_exact(tokens).enumerate() {
                self.scatter(&mut out, part, job, job.kv_head * group + member, wide);
            }
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
        let (_, time, width) = q.dims3()?;
        let wide = Extent { time, width };
        let narrow = Extent {
            time,
            width: self.kv_heads * self.head_size,
        };
        let gradient = gradient.contiguous()?;
        let (gradient_storage, layout) = gradient.storage_and_layout();
        let gradient = elements(&gradient_storage, layout)?;
        let (q_storage, layout) = q.storage_and_layout();
        let q_values = elements(&q_storage, layout)?;
        let (k_storage, layout) = k.storage_and_layout();
        let k_values = elements(&k_storage, layout)?;
        let (v_storage, layout) = v.storage_and_layout();
        let v_values = elements(&v_storage, layout)?;
        let jobs = self.jobs();
        let parts = threads::map(jobs.iter(), |job| {
            let rows = [
                row_of(q_values, job.row, wide),
                row_of(k_values, job.row, narrow),
                row_of(v_values, job.row, narrow),
                row_of(gradient, job.row, wide),
            ];
            self.backward(rows, job)
        });
        let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
        let mut to_q = vec![0f32; q_values.len()];
        let mut to_k = vec![0f32; k_values.len()];
        let mut to_v = vec![0f32; v_values.len()];
        let group = self.heads / self.kv_heads;
        for (job, (q_part, k_part, v_part)) in jobs.iter().zip(&parts) {
            let tokens = (job.span.len() * self.head_size).max(1);
            for (member, part) in q_part.chunks_exact(tokens).enumerate() {
                self.scatter(&mut to_q, part, job, job.kv_head * group + member, wide);
            }
            self.scatter(&mut to_k, k_part, job, job.kv_head, narrow);
            self.scatter(&mut to_v, v_part, job, job.kv_head, narrow);
        }
        Ok((
            Some(Tensor::from_vec(to_q, q.shape(), q.device())?),
            Some(Tensor::from_vec(to_k, k.shape(), k.device())?),
            Some(Tensor::from_vec(to_v, v.shape(), v.device())?),
        ))
    }
}
