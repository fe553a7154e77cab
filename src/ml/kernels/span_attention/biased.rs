//! Attention with biases by distance.

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, bail};

use super::super::host::{elements, fused, slice};
use super::super::threads;
use super::SpanAttention;
use super::distance_buckets::DistanceBuckets;
use super::heads::Bias;

impl SpanAttention {
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
            return self.composed(q, k, v, Some((table, buckets)));
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
        let parts = threads::map(jobs.iter(), |job| {
            let [k, v] = attention.views(keys_and_values, job);
            attention.forward([attention.view(q, job), k, v], Some(bias), job)
        });
        let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
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
        let parts = threads::map(jobs.iter(), |job| {
            let [k, v] = attention.views(pairs, job);
            let [q, gradient] = [queries, of_result].map(|x| attention.view(x, job));
            attention.backward([q, k, v, gradient], Some(bias), job)
        });
        let parts = parts.into_iter().collect::<Result<Vec<_>>>()?;
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
