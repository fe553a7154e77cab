//! Decoding on the processor, one token at a time over stored keys and values.

use candle_core::{DType, Tensor};

use super::contrastive::unit_length;
use super::decoder::{Asking, Choosing, Decoder, Read};
use super::distribution::Choice;
use super::host_choice::{self, OnHost};
use super::options::{Contrastive, Result};
use crate::ml::kernels::attend::{Store, View, attend};
use crate::ml::kernels::attention::first_seen;
use crate::ml::kernels::host::elements;
use crate::ml::kernels::threads;
use crate::ml::models::causal::architecture::LayerOptions;
use crate::ml::models::causal::{CausalLm, TokenBatch};

/// Multiplications below which attention runs on the calling thread.
const PARALLEL_PRODUCTS: usize = 1 << 17;

/// Decodes `f32` models on the CPU. A sequence's numbers depend on no other sequence.
pub(super) struct HostDecoder<'a> {
    model: &'a CausalLm,
}

/// Keys and values of one sequence.
#[derive(Clone)]
pub(super) struct Memory {
    layers: Vec<Store>,
    positions: usize,
}

/// Hidden states after a step (tokens x hidden size), and each layer's new keys (rotated) and values.
pub(super) struct Step {
    hidden: Vec<f32>,
    layers: Vec<Layer>,
}

/// One layer's new keys and values: (tokens, kv heads x head size).
#[derive(Default)]
struct Layer {
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl<'a> HostDecoder<'a> {
    pub(super) fn new(model: &'a CausalLm) -> Self {
        Self { model }
    }

    fn kv_width(&self) -> usize {
        self.model.config().kv_width()
    }

    /// Rotates a layer's query or key, if it does.
    fn rotate(&self, layer: usize, heads: &mut [f32], position: usize) {
        if let Some(rope) = self.model.rope(layer) {
            for head in heads.chunks_exact_mut(self.model.config().head_size) {
                rope.rotate(head, position);
            }
        }
    }

    /// Attends from each token to its memory and to itself: (tokens, heads x head size). Returns the tokens' rotated
    /// keys and their values as well.
    fn attend(
        &self,
        tokens: &[(&Memory, u32)],
        layer: usize,
        [queries, keys, values]: [&[f32]; 3],
    ) -> (Vec<f32>, Layer) {
        let size = self.model.config().head_size;
        let LayerOptions { window, scale, .. } = self.model.options(layer);
        let (width, kv_width) = (queries.len() / tokens.len(), self.kv_width());
        let mut new = Layer {
            keys: keys.to_vec(),
            values: values.to_vec(),
        };
        let mut out = vec![0f32; queries.len()];
        let one = |(index, (out, key)): (usize, (&mut [f32], &mut [f32]))| {
            let memory = tokens[index].0;
            let mut query = queries[index * width..][..width].to_vec();
            self.rotate(layer, &mut query, memory.positions);
            self.rotate(layer, key, memory.positions);
            let view = View {
                size,
                scale,
                first: first_seen(memory.positions, window),
            };
            let value = &values[index * kv_width..][..kv_width];
            attend(out, &query, &memory.layers[layer], key, value, view);
        };
        let positions: usize = tokens.iter().map(|(memory, _)| memory.positions + 1).sum();
        if positions * width < PARALLEL_PRODUCTS {
            let keys = new.keys.chunks_exact_mut(kv_width);
            out.chunks_exact_mut(width)
                .zip(keys)
                .enumerate()
                .for_each(one);
        } else {
            let keys = new.keys.chunks_exact_mut(kv_width);
            let rows = out.chunks_exact_mut(width).zip(keys);
            threads::each(rows.enumerate(), one);
        }
        (out, new)
    }
}

/// Returns a tensor's elements, whatever its device and dtype.
pub(super) fn numbers(x: &Tensor) -> candle_core::Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
}

/// Puts together what was read of a prompt whose hidden states are `states` (tokens x `width`).
pub(super) fn read<D: OnHost>(
    memory: D::Memory,
    states: &[f32],
    width: usize,
    looks_back: bool,
) -> Read<D> {
    Read {
        memory,
        state: states[states.len() - width..].to_vec(),
        context: looks_back.then(|| unit_length(states, width)),
    }
}

impl Decoder for HostDecoder<'_> {
    type Memory = Memory;
    type Step = Step;
    type State = Vec<f32>;
    type Context = Vec<f32>;

    fn read(&self, prompts: &[&[u32]], looks_back: bool) -> Result<Vec<Read<Self>>> {
        let batch = TokenBatch::right_padded(prompts);
        let (kv_width, time) = (self.kv_width(), batch.time());
        let mut memories: Vec<Memory> = prompts
            .iter()
            .map(|prompt| Memory {
                layers: Vec::new(),
                positions: prompt.len(),
            })
            .collect();
        let states = self.model.prefill(&batch, |layer, keys, values| {
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
                    self.rotate(layer, &mut key, position);
                    store.push(&key, value);
                }
                memory.layers.push(store);
            }
            Ok(())
        })?;
        let states = states.contiguous()?;
        let (storage, layout) = states.storage_and_layout();
        let states = elements(&storage, layout)?;
        let width = self.model.config().embedding_size;
        Ok(memories
            .into_iter()
            .enumerate()
            .map(|(row, memory)| {
                let place = row * time * width..(row * time + memory.positions) * width;
                read(memory, &states[place], width, looks_back)
            })
            .collect())
    }

    fn step(&self, tokens: &[(&Memory, u32)]) -> Result<Step> {
        let ids: Vec<u32> = tokens.iter().map(|(_, token)| *token).collect();
        let positions: Vec<u32> = tokens
            .iter()
            .map(|(memory, _)| memory.positions as u32)
            .collect();
        let mut layers = Vec::new();
        let ids = Tensor::new(ids, self.model.device())?;
        let hidden = self
            .model
            .step(&ids, &positions, |layer, [queries, keys, values]| {
                let [queries, keys, values] = [
                    queries.contiguous()?,
                    keys.contiguous()?,
                    values.contiguous()?,
                ];
                let [queries, keys, values] = [&queries, &keys, &values];
                let held = [queries, keys, values].map(Tensor::storage_and_layout);
                let mut inputs = [&[][..]; 3];
                for (input, (storage, layout)) in inputs.iter_mut().zip(&held) {
                    *input = elements(storage, layout)?;
                }
                let (attended, new) = self.attend(tokens, layer, inputs);
                layers.push(new);
                Ok(Tensor::from_vec(
                    attended,
                    queries.shape(),
                    queries.device(),
                )?)
            })?;
        Ok(Step {
            hidden: numbers(&hidden)?,
            layers,
        })
    }

    fn state(&self, step: &Step, index: usize) -> Result<Vec<f32>> {
        let width = self.model.config().embedding_size;
        Ok(step.hidden[index * width..(index + 1) * width].to_vec())
    }

    fn take(&self, taken: Vec<(&mut Memory, usize)>, step: &Step) -> Result<()> {
        for (memory, index) in taken {
            let place = index * self.kv_width()..(index + 1) * self.kv_width();
            for (layer, new) in memory.layers.iter_mut().zip(&step.layers) {
                layer.push(&new.keys[place.clone()], &new.values[place.clone()]);
            }
            memory.positions += 1;
        }
        Ok(())
    }

    fn choose(&self, rows: &[Asking<'_, Self>], how: &Choosing<'_>) -> Result<Vec<Choice>> {
        host_choice::choose(self.model, rows, how)
    }

    fn search(
        &self,
        rows: &[Asking<'_, Self>],
        search: &Contrastive,
        how: &Choosing<'_>,
    ) -> Result<(Vec<(Choice, usize)>, Step)> {
        host_choice::search(self, self.model, rows, search, how)
    }

    fn look_back(&self, context: &mut Vec<f32>, state: &Vec<f32>) -> Result<()> {
        host_choice::look_back(context, state);
        Ok(())
    }
}
