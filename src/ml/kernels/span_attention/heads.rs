//! What is computed in one head of one span, and where that lies in a batch.

use std::ops::Range;

use candle_core::Result;

use super::super::exponential::exp_shifted;
use super::super::host::{dot, maximum};
use super::super::matmul::{Matrix, Threads, multiply};
use super::SpanAttention;
use super::distance_buckets::DistanceBuckets;

/// What is added to scores.
#[derive(Clone, Copy)]
pub(super) struct Bias<'a> {
    /// (buckets, heads)
    pub(super) table: &'a [f32],
    pub(super) buckets: &'a DistanceBuckets,
}

/// One head of one span.
pub(super) struct Job {
    pub(super) head: usize,
    span: Range<usize>,
}

impl SpanAttention {
    fn scale(&self) -> f32 {
        1.0 / (self.head_size as f32).sqrt()
    }

    pub(super) fn width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Views one head of one span: (tokens, head size).
    pub(super) fn view<'a>(&self, x: &'a [f32], job: &Job) -> Matrix<'a> {
        let width = self.width();
        let start = job.span.start * width + job.head * self.head_size;
        Matrix::new(&x[start..], job.span.len(), self.head_size, width)
    }

    /// Views one head of one span of keys and values that lie side by side: (tokens, head size) both.
    pub(super) fn views<'a>(&self, x: &'a [f32], job: &Job) -> [Matrix<'a>; 2] {
        let width = 2 * self.width();
        let start = job.span.start * width + job.head * self.head_size;
        [start, start + self.width()]
            .map(|start| Matrix::new(&x[start..], job.span.len(), self.head_size, width))
    }

    /// Returns the attention weights of one head of one span: (tokens, tokens).
    fn weights(
        &self,
        q: Matrix<'_>,
        k: Matrix<'_>,
        bias: Option<Bias<'_>>,
        job: &Job,
    ) -> Result<Vec<f32>> {
        let tokens = job.span.len();
        let mut weights = vec![0f32; tokens * tokens];
        multiply(
            &mut weights,
            tokens,
            q,
            k.t(),
            self.scale(),
            false,
            Threads::One,
        )?;
        for (query, row) in weights.chunks_exact_mut(tokens).enumerate() {
            if let Some(bias) = bias {
                let buckets = bias.buckets.of_query(query, tokens);
                for (score, bucket) in row.iter_mut().zip(buckets) {
                    *score += bias.table[*bucket as usize * self.heads + job.head];
                }
            }
            let total = exp_shifted(row, maximum(row));
            for weight in row {
                *weight /= total;
            }
        }
        Ok(weights)
    }

    /// Attends within one head of one span: (tokens, head size).
    pub(super) fn forward(
        &self,
        [q, k, v]: [Matrix<'_>; 3],
        bias: Option<Bias<'_>>,
        job: &Job,
    ) -> Result<Vec<f32>> {
        let (tokens, size) = (job.span.len(), self.head_size);
        let weights = self.weights(q, k, bias, job)?;
        let mut out = vec![0f32; tokens * size];
        let weights = Matrix::new(&weights, tokens, tokens, tokens);
        multiply(&mut out, size, weights, v, 1.0, false, Threads::One)?;
        Ok(out)
    }

    /// Returns the gradients of queries, keys and values of one head of one span, each (tokens, head size), and those
    /// of the biases in the head, by bucket.
    pub(super) fn backward(
        &self,
        [q, k, v, gradient]: [Matrix<'_>; 4],
        bias: Option<Bias<'_>>,
        job: &Job,
    ) -> Result<([Vec<f32>; 3], Vec<f64>)> {
        let (tokens, size) = (job.span.len(), self.head_size);
        let weights = self.weights(q, k, bias, job)?;
        let softmax = Matrix::new(&weights, tokens, tokens, tokens);
        let product = |columns: usize, a: Matrix<'_>, b: Matrix<'_>, scale: f32| {
            let mut out = vec![0f32; tokens * columns];
            multiply(&mut out, columns, a, b, scale, false, Threads::One)?;
            Ok::<_, candle_core::Error>(out)
        };
        let to_v = product(size, softmax.t(), gradient, 1.0)?;
        let mut to_scores = product(tokens, gradient, v.t(), 1.0)?;
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
        let mut to_biases = Vec::new();
        if let Some(bias) = bias {
            to_biases.resize(bias.table.len() / self.heads, 0.0);
            for (query, row) in to_scores.chunks_exact(tokens).enumerate() {
                for (value, bucket) in row.iter().zip(bias.buckets.of_query(query, tokens)) {
                    to_biases[*bucket as usize] += f64::from(*value);
                }
            }
        }
        let to_scores = Matrix::new(&to_scores, tokens, tokens, tokens);
        let to_q = product(size, to_scores, k, self.scale())?;
        let to_k = product(size, to_scores.t(), q, self.scale())?;
        Ok(([to_q, to_k, to_v], to_biases))
    }

    pub(super) fn jobs(&self) -> Vec<Job> {
        let spans = self.spans.iter();
        let jobs = spans.flat_map(|span| {
            (0..self.heads).map(|head| Job {
                head,
                span: span.clone(),
            })
        });
        jobs.collect()
    }

    /// Copies one head's (tokens, head size) into the columns from `first` on of (all tokens, width).
    pub(super) fn scatter(
        &self,
        out: &mut [f32],
        width: usize,
        first: usize,
        part: &[f32],
        job: &Job,
    ) {
        for (token, values) in job.span.clone().zip(part.chunks_exact(self.head_size)) {
            let start = token * width + first + job.head * self.head_size;
            out[start..start + self.head_size].copy_from_slice(values);
        }
    }
}
