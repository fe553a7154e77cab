//! Forward passes one token at a time over stored keys and values.

use candle_core::Tensor;
use rayon::prelude::*;

use super::options::Result;
use crate::ml::kernels::attend::{Store, attend};
use crate::ml::kernels::host::elements;
use crate::ml::kernels::panels::{Panels, multiply};
use crate::ml::llama::{Llama, Projection, TokenBatch};

/// Multiplications below which attention runs on the calling thread.
const PARALLEL_PRODUCTS: usize = 1 << 17;

/// What generation asks of a model.
pub(super) trait Decoder: Sync {
    /// What is remembered of a sequence.
    type Memory: Clone + Send + Sync;
    /// What a step adds to the memories of its sequences, should its tokens be taken.
    type Step: Sync;

    /// Reads prompts: memory, and the hidden states of all places (tokens x hidden size).
    fn read(&self, prompts: &[&[u32]]) -> Result<Vec<(Self::Memory, Vec<f32>)>>;

    /// Tries one token after each memory.
    fn step(&self, tokens: &[(&Self::Memory, u32)]) -> Result<Self::Step>;

    /// Returns the hidden state of the token at `index` of a step.
    fn hidden(&self, step: &Self::Step, index: usize) -> Vec<f32>;

    /// Adds the token at `index` of a step to the memory it was tried on.
    fn take(&self, memory: &mut Self::Memory, step: &Self::Step, index: usize);

    /// Returns the logits (rows x vocabulary) of hidden states (rows x hidden size).
    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>>;
}

/// Decodes `f32` models on the CPU. A sequence's numbers depend on no other sequence.
pub(super) struct HostDecoder<'a> {
    model: &'a Llama,
}

/// Keys and values of one sequence.
#[derive(Clone)]
pub(super) struct Memory {
    layers: Vec<Store>,
    positions: usize,
}

/// Hidden states after a step, and each layer's new keys (rotated) and values.
pub(super) struct Step {
    hidden: Panels,
    layers: Vec<Layer>,
}

/// One layer's new keys and values: (tokens, kv heads x head size).
#[derive(Default)]
struct Layer {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl<'a> HostDecoder<'a> {
    pub(super) fn new(model: &'a Llama) -> Self {
        Self { model }
    }

    fn kv_width(&self) -> usize {
        let config = self.model.config();
        config.num_kv_heads * config.head_size()
    }

    fn rotate(&self, heads: &mut [f32], position: usize) {
        let rope = self.model.parts().rope;
        for head in heads.chunks_exact_mut(self.model.config().head_size()) {
            rope.rotate(head, position);
        }
    }

    /// Attends from each token to its memory; adds the tokens' keys and values to `new`.
    fn attend(
        &self,
        tokens: &[(&Memory, u32)],
        layer: usize,
        [q, k, v]: &[Panels; 3],
        new: &mut Layer,
    ) -> Panels {
        let size = self.model.config().head_size();
        let width = self.model.config().hidden_size;
        let one = |index: usize| {
            let memory = tokens[index].0;
            let mut query = q.row(index);
            let mut key = k.row(index);
            let value = v.row(index);
            self.rotate(&mut query, memory.positions);
            self.rotate(&mut key, memory.positions);
            let mut out = vec![0f32; width];
            attend(&mut out, &query, &memory.layers[layer], &key, &value, size);
            (out, key, value)
        };
        let positions: usize = tokens.iter().map(|(memory, _)| memory.positions + 1).sum();
        let parts: Vec<_> = if positions * width < PARALLEL_PRODUCTS {
            (0..tokens.len()).map(one).collect()
        } else {
            (0..tokens.len()).into_par_iter().map(one).collect()
        };
        let mut attended = Panels::zeros(tokens.len(), width);
        for (index, (out, key, value)) in parts.iter().enumerate() {
            attended.set_row(index, out);
            new.keys.extend_from_slice(key);
            new.values.extend_from_slice(value);
        }
        attended
    }
}

/// Applies projections to the same rows.
fn project<const N: usize>(x: &Panels, projections: [&Projection; N]) -> Result<[Panels; N]> {
    let held = projections.map(|projection| projection.weight.storage_and_layout());
    let mut weights = [&[][..]; N];
    for (weight, (storage, layout)) in weights.iter_mut().zip(&held) {
        *weight = elements(storage, layout)?;
    }
    let mut results = multiply(x, weights);
    for (out, projection) in results.iter_mut().zip(projections) {
        if let Some(update) = &projection.update {
            let [inner] = product(x, &update.a)?;
            let [outer] = product(&inner, &update.b)?;
            out.add_scaled(&outer, update.scale as f32);
        }
    }
    Ok(results)
}

fn product(x: &Panels, weight: &Tensor) -> Result<[Panels; 1]> {
    let (storage, layout) = weight.storage_and_layout();
    Ok(multiply(x, [elements(&storage, layout)?]))
}

fn normalise(x: &Panels, weight: &Tensor, eps: f64) -> Result<Panels> {
    let (storage, layout) = weight.storage_and_layout();
    Ok(x.rms_norm(elements(&storage, layout)?, eps as f32))
}

impl Decoder for HostDecoder<'_> {
    type Memory = Memory;
    type Step = Step;

    fn read(&self, prompts: &[&[u32]]) -> Result<Vec<(Memory, Vec<f32>)>> {
        let batch = TokenBatch::right_padded(prompts);
        let (kv_width, time) = (self.kv_width(), batch.time());
        let mut memories: Vec<Memory> = prompts
            .iter()
            .map(|prompt| Memory {
                layers: Vec::new(),
                positions: prompt.len(),
            })
            .collect();
        let states = self.model.prefill(&batch, |keys, values| {
            let (keys, values) = (keys.contiguous()?, values.contiguous()?);
            let (keys_storage, layout) = keys.storage_and_layout();
            let keys = elements(&keys_storage, layout)?;
            let (values_storage, layout) = values.storage_and_layout();
            let values = elements(&values_storage, layout)?;
            for (row, memory) in memories.iter_mut().enumerate() {
                let place = row * time * kv_width..(row * time + memory.positions) * kv_width;
                let mut store = Store::default();
                for (position, (key, value)) in keys[place.clone()]
                    .chunks_exact(kv_width)
                    .zip(values[place].chunks_exact(kv_width))
                    .enumerate()
                {
                    let mut key = key.to_vec();
                    self.rotate(&mut key, position);
                    store.push(&key, value);
                }
                memory.layers.push(store);
            }
            Ok(())
        })?;
        let states = states.contiguous()?;
        let (storage, layout) = states.storage_and_layout();
        let states = elements(&storage, layout)?;
        let width = self.model.config().hidden_size;
        Ok(memories
            .into_iter()
            .enumerate()
            .map(|(row, memory)| {
                let place = row * time * width..(row * time + memory.positions) * width;
                (memory, states[place].to_vec())
            })
            .collect())
    }

    fn step(&self, tokens: &[(&Memory, u32)]) -> Result<Step> {
        let parts = self.model.parts();
        let config = self.model.config();
        let eps = config.rms_norm_eps;
        let mut x = Panels::zeros(tokens.len(), config.hidden_size);
        {
            let (storage, layout) = parts.embedding.storage_and_layout();
            let embedding = elements(&storage, layout)?;
            for (index, (_, token)) in tokens.iter().enumerate() {
                let start = *token as usize * config.hidden_size;
                x.set_row(index, &embedding[start..start + config.hidden_size]);
            }
        }
        let mut layers = Vec::with_capacity(parts.blocks.len());
        for (layer, block) in parts.blocks.iter().enumerate() {
            let normed = normalise(&x, &block.attention_norm, eps)?;
            let projected = project(&normed, [&block.query, &block.key, &block.value])?;
            let mut new = Layer::default();
            let attended = self.attend(tokens, layer, &projected, &mut new);
            layers.push(new);
            let [output] = project(&attended, [&block.output])?;
            x.add(&output);
            let normed = normalise(&x, &block.feed_forward_norm, eps)?;
            let [gate, up] = project(&normed, [&block.gate, &block.up])?;
            let [down] = project(&gate.swiglu(&up), [&block.down])?;
            x.add(&down);
        }
        Ok(Step {
            hidden: normalise(&x, parts.norm, eps)?,
            layers,
        })
    }

    fn hidden(&self, step: &Step, index: usize) -> Vec<f32> {
        step.hidden.row(index)
    }

    fn take(&self, memory: &mut Memory, step: &Step, index: usize) {
        let place = index * self.kv_width()..(index + 1) * self.kv_width();
        for (layer, new) in memory.layers.iter_mut().zip(&step.layers) {
            layer.push(&new.keys[place.clone()], &new.values[place.clone()]);
        }
        memory.positions += 1;
    }

    fn logits(&self, hidden: &[f32]) -> Result<Vec<f32>> {
        let panels = Panels::from_rows(hidden, self.model.config().hidden_size);
        let [logits] = product(&panels, self.model.parts().head)?;
        Ok(logits.into_rows())
    }
}
