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

/// Which number of a table is added to the score of a query and a key, by how far the key is from the query.
#[derive(Debug, Clone)]
pub struct DistanceBuckets {
    /// For each distance from `1 - longest` to `longest - 1`.
    buckets: Arc<[u32]>,
    longest: usize,
}

impl DistanceBuckets {
    /// Notes the bucket of every distance (key - query) within spans of up to `longest` tokens.
    pub fn new(longest: usize, bucket: impl Fn(isize) -> u32) -> Self {
        let most = longest as isize;
        Self {
            buckets: (1 - most..most).map(bucket).collect(),
            longest,
        }
    }

    /// Returns the buckets of the keys 0, 1, .. of a span of `tokens` tokens, for its query number `query`.
    fn of_query(&self, query: usize, tokens: usize) -> &[u32] {
        let start = self.longest - 1 - query;
        &self.buckets[start..start + tokens]
    }
}

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
            return self.naive(q, k, v, None);
        }
        q.contiguous()?
            .apply_op3(&k.contiguous()?, &v.contiguous()?, self.clone())
    }

    /// Attends as [`SpanAttention::apply`] does, with numbers of `table` (buckets, heads) added to the scores: in each
    /// head that of the bucket in which the distance from query to key is.
    pub fn apply_biased(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        table: &Tensor,
        buckets: &DistanceBuckets,
    ) -> Result<Tensor> {
        self.check(q, k, v)?;
        let (rows, heads) = table.dims2()?;
        let longest = self.spans.iter().map(ExactSizeIterator::len).max();
        let known = buckets.buckets.iter().all(|at| (*at as usize) < rows);
        if heads != self.heads || !known || longest.is_some_and(|most| most > buckets.longest) {
            bail!(
                "span attention: a table of biases of shape {:?} does not fit {} heads, spans of up to {longest:?} \
                 tokens and buckets of distances below {}",
                table.shape(),
                self.heads,
                buckets.longest
            );
        }
        if !fused(&[q, k, v, table]) {
            return self.naive(q, k, v, Some((table, buckets)));
        }
        // An operation has three operands: keys and values are one.
        let keys_and_values = Tensor::cat(&[k, v], 1)?;
        let operation = BiasedSpanAttention {
            attention: self.clone(),
            buckets: buckets.clone(),
        };
        q.contiguous()?
            .apply_op3(&keys_and_values, &table.contiguous()?, operation)
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

    /// The plain candle form of [`SpanAttention::apply`] and [`SpanAttention::apply_biased`].
    #[expect(clippy::disallowed_methods, reason = "the plain form")]
    pub fn naive(
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
                let mut scores = q
                    .matmul(&k.t()?.contiguous()?)?
                    .affine(1.0 / (self.head_size as f64).sqrt(), 0.0)?;
                if let Some((table, buckets)) = bias {
                    let pairs = (0..tokens).flat_map(|query| buckets.of_query(query, tokens));
                    let pairs: Vec<u32> = pairs.copied().collect();
                    let bias = table.index_select(&Tensor::new(pairs, table.device())?, 0)?;
                    let bias = bias.reshape((tokens, tokens, self.heads))?;
                    // (heads, queries, keys)
                    scores = (scores + bias.permute((2, 0, 1))?.contiguous()?)?;
                }
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

    /// Views one head of one span of keys and values that lie side by side: (tokens, head size) both.
    fn views<'a>(&self, x: &'a [f32], job: &Job) -> [Matrix<'a>; 2] {
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
    fn forward(
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
    fn backward(
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

    /// Copies one head's (tokens, head size) into the columns from `first` on of (all tokens, width).
    fn scatter(&self, out: &mut [f32], width: usize, first: usize, part: &[f32], job: &Job) {
        for (token, values) in job.span.clone().zip(part.chunks_exact(self.head_size)) {
            let start = token * width + first + job.head * self.head_size;
            out[start..start + self.head_size].copy_from_slice(values);
        }
    }
}

/// What is added to scores.
#[derive(Clone, Copy)]
struct Bias<'a> {
    /// (buckets, heads)
    table: &'a [f32],
    buckets: &'a DistanceBuckets,
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
            .map(|job| self.forward(inputs.map(|x| self.view(x, job)), None, job))
            .collect::<Result<Vec<_>>>()?;
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
        let parts = jobs
            .par_iter()
            .map(|job| self.backward(inputs.map(|x| self.view(x, job)), None, job))
            .collect::<Result<Vec<_>>>()?;
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

/// Attention with biases; its operands are queries, keys and values side by side, and the table.
struct BiasedSpanAttention {
    attention: SpanAttention,
    buckets: DistanceBuckets,
}

impl CustomOp3 for BiasedSpanAttention {
    fn name(&self) -> &'static str {
        "biased_span_attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        keys_and_values: &CpuStorage,
        keys_and_values_layout: &Layout,
        table: &CpuStorage,
        table_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let attention = &self.attention;
        let q = slice(q, q_layout)?;
        let keys_and_values = slice(keys_and_values, keys_and_values_layout)?;
        let bias = Bias {
            table: slice(table, table_layout)?,
            buckets: &self.buckets,
        };
        let jobs = attention.jobs();
        let parts = jobs
            .par_iter()
            .map(|job| {
                let [k, v] = attention.views(keys_and_values, job);
                attention.forward([attention.view(q, job), k, v], Some(bias), job)
            })
            .collect::<Result<Vec<_>>>()?;
        let mut out = vec![0f32; q.len()];
        for (job, part) in jobs.iter().zip(&parts) {
            attention.scatter(&mut out, attention.width(), 0, part, job);
        }
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        keys_and_values: &Tensor,
        table: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let attention = &self.attention;
        let gradient = gradient.contiguous()?;
        let (storage, layout) = gradient.storage_and_layout();
        let of_result = elements(&storage, layout)?;
        let (storage, layout) = q.storage_and_layout();
        let queries = elements(&storage, layout)?;
        let (storage, layout) = keys_and_values.storage_and_layout();
        let pairs = elements(&storage, layout)?;
        let (storage, layout) = table.storage_and_layout();
        let bias = Bias {
            table: elements(&storage, layout)?,
            buckets: &self.buckets,
        };
        let jobs = attention.jobs();
        let parts = jobs
            .par_iter()
            .map(|job| {
                let [k, v] = attention.views(pairs, job);
                let [q, gradient] = [queries, of_result].map(|x| attention.view(x, job));
                attention.backward([q, k, v, gradient], Some(bias), job)
            })
            .collect::<Result<Vec<_>>>()?;
        let width = attention.width();
        let mut to_q = vec![0f32; queries.len()];
        let mut to_pairs = vec![0f32; pairs.len()];
        let mut to_table = vec![0f64; bias.table.len()];
        // In the order of spans and heads, whatever threads there are.
        for (job, ([of_q, of_k, of_v], of_biases)) in jobs.iter().zip(&parts) {
            attention.scatter(&mut to_q, width, 0, of_q, job);
            attention.scatter(&mut to_pairs, 2 * width, 0, of_k, job);
            attention.scatter(&mut to_pairs, 2 * width, width, of_v, job);
            for (bucket, value) in of_biases.iter().enumerate() {
                to_table[bucket * attention.heads + job.head] += value;
            }
        }
        let to_table = to_table.into_iter().map(|value| value as f32).collect();
        let like = |values: Vec<f32>, tensor: &Tensor| {
            let wanted = tensor.track_op();
            let made = wanted.then(|| Tensor::from_vec(values, tensor.shape(), tensor.device()));
            made.transpose()
        };
        Ok((
            like(to_q, q)?,
            like(to_pairs, keys_and_values)?,
            like(to_table, table)?,
        ))
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
        let naive = gradients(&inputs, |[q, k, v]| attention.naive(q, k, v, None));
        for (fused, naive) in fused.iter().zip(&naive) {
            assert_close(fused, naive, 1e-5);
        }
    }

    /// Buckets that hold one, two or many distances.
    pub(in super::super) fn buckets(longest: usize) -> DistanceBuckets {
        DistanceBuckets::new(longest, |distance| match distance {
            ..-4 => 0,
            -4..=-2 => 1,
            -1..=1 => (distance + 3) as u32,
            2..=20 => 5,
            _ => 6,
        })
    }

    #[test]
    fn biased_values_and_gradients_are_those_of_the_plain_form() {
        let (attention, buckets) = (attention(&[7, 1, 70]), buckets(70));
        let [q, k, v] = [1, 2, 3].map(|counter| random(counter, &[78, 15]));
        let table = random(4, &[8, 3]);
        let run = |fused: bool, inputs: &[Tensor; 3]| {
            gradients(inputs, |[q, k, table]| {
                if fused {
                    attention.apply_biased(q, k, &v, table, &buckets)
                } else {
                    attention.naive(q, k, &v, Some((table, &buckets)))
                }
            })
        };
        let inputs = [q, k, table];
        for (fused, naive) in run(true, &inputs).iter().zip(&run(false, &inputs)) {
            assert_close(fused, naive, 1e-5);
        }
        let [q, k, table] = inputs;
        let of_values = |fused: bool| {
            gradients(&[v.clone(), q.clone(), table.clone()], |[v, q, table]| {
                if fused {
                    attention.apply_biased(q, &k, v, table, &buckets)
                } else {
                    attention.naive(q, &k, v, Some((table, &buckets)))
                }
            })
        };
        for (fused, naive) in of_values(true).iter().zip(&of_values(false)) {
            assert_close(fused, naive, 1e-5);
        }
        // The bucket that no distance has gets nothing.
        let last = of_values(true)[3].get(7).unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(last, [0.0; 3]);
    }

    #[test]
    fn biases_of_zero_change_no_bit() {
        let [q, k, v] = [1, 2, 3].map(|counter| random(counter, &[78, 15]));
        let attention = attention(&[7, 1, 70]);
        let zeros = Tensor::zeros((7, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        let biased = attention.apply_biased(&q, &k, &v, &zeros, &buckets(90));
        assert_eq!(
            biased.unwrap().to_vec2::<f32>().unwrap(),
            attention
                .apply(&q, &k, &v)
                .unwrap()
                .to_vec2::<f32>()
                .unwrap()
        );
    }

    #[test]
    fn a_table_that_does_not_fit_is_an_error() {
        let x = random(1, &[9, 15]);
        for (shape, longest) in [([7, 2], 9), ([6, 3], 30), ([7, 3], 8)] {
            let table = random(2, &shape);
            let found = attention(&[9]).apply_biased(&x, &x, &x, &table, &buckets(longest));
            let error = found.unwrap_err().to_string();
            assert!(error.contains("does not fit 3 heads"), "{error}");
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
