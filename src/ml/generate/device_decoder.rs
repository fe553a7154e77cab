//! Decoding over keys and values that stay where the model is, in whatever dtype it has.
//!
//! All sequences share one tensor of keys and one of values a layer, in which each has a slot. A copied memory shares its
//! slot until one of the two is written to.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{D, DType, Tensor};

use super::decoder::{Asking, Choosing, Decoder, Read};
use super::device_choice::{self, Chosen};
use super::distribution::Choice;
use super::options::{Contrastive, Result};
use crate::ml::kernels::attention::first_seen;
use crate::ml::models::causal::architecture::LayerOptions;
use crate::ml::models::causal::{CausalLm, TokenBatch};

type TensorResult = candle_core::Result<Tensor>;

/// Decodes models of any device and dtype.
pub(super) struct DeviceDecoder<'a> {
    model: &'a CausalLm,
    slab: Mutex<Slab>,
    free: Arc<Mutex<Vec<usize>>>,
}

/// Rotated keys and values of all slots.
struct Slab {
    /// (slots x capacity, kv heads x head size), keys and values of each layer.
    layers: Vec<[Tensor; 2]>,
    slots: usize,
    /// Positions that a slot has room for.
    capacity: usize,
}

/// What is remembered of a sequence.
#[derive(Clone)]
pub(super) struct Memory {
    slot: Arc<Slot>,
    positions: usize,
}

/// A slot, free again when nobody remembers it.
struct Slot {
    index: usize,
    free: Arc<Mutex<Vec<usize>>>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.free).push(self.index);
    }
}

/// What a step computed.
pub(super) struct Step {
    /// (tokens, hidden size)
    hidden: Tensor,
    /// New keys (rotated) and values of each layer: (tokens, kv heads x head size).
    layers: Vec<[Tensor; 2]>,
}

/// What the tokens of a step look back at, the same for all layers.
struct View {
    /// The slot of each token.
    slots: Tensor,
    positions: Vec<u32>,
    longest: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> DeviceDecoder<'a> {
    pub(super) fn new(model: &'a CausalLm) -> Self {
        Self {
            model,
            slab: Mutex::new(Slab {
                layers: Vec::new(),
                slots: 0,
                capacity: 0,
            }),
            free: Arc::default(),
        }
    }

    /// Slots that there are, free ones and others.
    #[cfg(test)]
    pub(super) fn slots_in_all(&self) -> usize {
        lock(&self.slab).slots
    }

    fn layer_count(&self) -> usize {
        self.model.config().layers.len()
    }

    /// Gives out slots, and makes room for as many positions in all.
    ///
    /// They hold nothing: what another sequence left, an infinity perhaps, would be multiplied by a weight of 0 where it is
    /// not seen, which is NaN.
    fn slots(
        &self,
        slab: &mut Slab,
        count: usize,
        capacity: usize,
    ) -> candle_core::Result<Vec<Arc<Slot>>> {
        let used: Vec<usize> = {
            let mut free = lock(&self.free);
            let kept = free.len().saturating_sub(count);
            free.split_off(kept)
        };
        let new = slab.slots..slab.slots + count - used.len();
        self.grow(slab, new.end, capacity)?;
        if !used.is_empty() {
            let width = self.model.config().kv_width();
            let (device, dtype) = (self.model.device(), self.model.dtype());
            let nothing = Tensor::zeros((slab.capacity, width), dtype, device)?;
            for tensor in slab.layers.iter().flatten() {
                for index in &used {
                    tensor.slice_set(&nothing, 0, index * slab.capacity)?;
                }
            }
        }
        let slot = |index| {
            Arc::new(Slot {
                index,
                free: Arc::clone(&self.free),
            })
        };
        Ok(used.into_iter().chain(new).map(slot).collect())
    }

    /// Makes room for `slots` of `capacity` positions.
    fn grow(&self, slab: &mut Slab, slots: usize, capacity: usize) -> candle_core::Result<()> {
        if slots <= slab.slots && capacity <= slab.capacity {
            return Ok(());
        }
        let slots = slots.max(slab.slots);
        let capacity = if capacity <= slab.capacity {
            slab.capacity
        } else {
            // Half as much again: every growth copies all.
            capacity.max(slab.capacity * 3 / 2)
        };
        let width = self.model.config().kv_width();
        let (device, dtype) = (self.model.device(), self.model.dtype());
        if slab.layers.is_empty() {
            for _ in 0..self.layer_count() {
                let zeros = || Tensor::zeros((slots * capacity, width), dtype, device);
                slab.layers.push([zeros()?, zeros()?]);
            }
        } else {
            for tensor in slab.layers.iter_mut().flatten() {
                *tensor = tensor
                    .reshape((slab.slots, slab.capacity, width))?
                    .pad_with_zeros(1, 0, capacity - slab.capacity)?
                    .pad_with_zeros(0, 0, slots - slab.slots)?
                    .contiguous()?
                    .reshape((slots * capacity, width))?;
            }
        }
        (slab.slots, slab.capacity) = (slots, capacity);
        Ok(())
    }

    /// Splits (rows, heads x head size) into heads and rotates them: (rows, heads, 1, head size).
    fn rotated(&self, layer: usize, x: &Tensor, positions: &[u32]) -> TensorResult {
        let size = self.model.config().head_size;
        let heads = x.reshape((positions.len(), (), 1, size))?;
        match self.model.rope(layer) {
            Some(rope) => rope.composed(&heads, positions),
            None => Ok(heads),
        }
    }

    /// Attends from each token to its memory and to itself. Returns (1, tokens, heads x head size), and the tokens' own
    /// rotated keys and values.
    #[expect(clippy::disallowed_methods, reason = "the composed form")]
    fn attend(
        &self,
        slab: &Slab,
        view: &View,
        layer: usize,
        [queries, keys, values]: [&Tensor; 3],
    ) -> candle_core::Result<(Tensor, [Tensor; 2])> {
        let config = self.model.config();
        let (kv_heads, size) = (config.num_kv_heads, config.head_size);
        let (tokens, group) = (view.positions.len(), config.num_heads / kv_heads);
        let LayerOptions { window, scale, .. } = self.model.options(layer);
        let rows = |x: &Tensor| x.contiguous()?.reshape((tokens, ()));
        let q = self.rotated(layer, &rows(queries)?, &view.positions)?;
        let own_key = self.rotated(layer, &rows(keys)?, &view.positions)?;
        let own_value = rows(values)?.reshape((tokens, kv_heads, 1, size))?;
        // Heads that share keys lie beside each other.
        let q = q.contiguous()?.reshape((tokens, kv_heads, group, size))?;
        let remembered = |x: &Tensor| {
            x.reshape((slab.slots, slab.capacity * kv_heads * size))?
                .index_select(&view.slots, 0)?
                .reshape((tokens, slab.capacity, kv_heads, size))?
                .narrow(1, 0, view.longest)?
                .transpose(1, 2)?
                .contiguous()
        };
        let [k, v] = &slab.layers[layer];
        let (k, v) = (remembered(k)?, remembered(v)?);
        let mut hidden = vec![0f32; tokens * view.longest];
        for (row, position) in hidden.chunks_exact_mut(view.longest).zip(&view.positions) {
            let position = *position as usize;
            row[..first_seen(position, window)].fill(f32::NEG_INFINITY);
            row[position..].fill(f32::NEG_INFINITY);
        }
        let hidden = Tensor::from_vec(hidden, (tokens, 1, 1, view.longest), q.device())?;
        let scores = |keys: &Tensor| {
            q.matmul(&keys.t()?.contiguous()?)?
                .to_dtype(DType::F32)?
                .affine(f64::from(scale), 0.0)
        };
        let scores = [scores(&k)?.broadcast_add(&hidden)?, scores(&own_key)?];
        let weights = candle_nn::ops::softmax(&Tensor::cat(&scores, D::Minus1)?, D::Minus1)?;
        let weights = weights.to_dtype(v.dtype())?;
        let of = |start, length| weights.narrow(D::Minus1, start, length)?.contiguous();
        let out = (of(0, view.longest)?.matmul(&v)?
            + of(view.longest, 1)?.matmul(&own_value.contiguous()?)?)?;
        let flat = |x: &Tensor| x.contiguous()?.reshape((tokens, kv_heads * size));
        Ok((
            out.reshape((1, tokens, ()))?,
            [flat(&own_key)?, flat(&own_value)?],
        ))
    }

    /// Gives each memory a slot that nobody else remembers.
    fn own_slots<'m>(
        &self,
        slab: &mut Slab,
        memories: impl Iterator<Item = &'m mut Memory>,
    ) -> candle_core::Result<()> {
        // The last one that remembers a slot keeps it.
        let mut others: BTreeMap<usize, usize> = BTreeMap::new();
        let shared: Vec<&mut Memory> = memories
            .filter(|memory| {
                let others = others
                    .entry(memory.slot.index)
                    .or_insert(Arc::strong_count(&memory.slot) - 1);
                let is_shared = *others > 0;
                *others = others.saturating_sub(1);
                is_shared
            })
            .collect();
        if shared.is_empty() {
            return Ok(());
        }
        let capacity = slab.capacity;
        let own = self.slots(slab, shared.len(), capacity)?;
        let (mut from, mut to) = (Vec::new(), Vec::new());
        for (memory, slot) in shared.into_iter().zip(own) {
            from.push(memory.slot.index as u32);
            to.push(slot.index);
            memory.slot = slot;
        }
        let from = Tensor::new(from, self.model.device())?;
        for tensor in slab.layers.iter().flatten() {
            let slots = tensor.reshape((slab.slots, ()))?;
            let copied = slots.index_select(&from, 0)?;
            for (row, slot) in to.iter().enumerate() {
                slots.slice_set(&copied.narrow(0, row, 1)?.contiguous()?, 0, *slot)?;
            }
        }
        Ok(())
    }
}

impl DeviceDecoder<'_> {
    /// Tries one token after each memory; `ids` (memories) lie on the device.
    fn step_on(&self, memories: &[&Memory], ids: &Tensor) -> Result<Step> {
        let slab = lock(&self.slab);
        let slots: Vec<u32> = memories
            .iter()
            .map(|memory| memory.slot.index as u32)
            .collect();
        let positions = || memories.iter().map(|memory| memory.positions);
        let view = View {
            slots: Tensor::new(slots, self.model.device())?,
            positions: positions().map(|position| position as u32).collect(),
            longest: positions().max().unwrap_or(1),
        };
        let mut layers = Vec::new();
        let hidden = self.model.step(ids, &view.positions, |layer, qkv| {
            let (attended, new) = self.attend(&slab, &view, layer, qkv)?;
            layers.push(new);
            Ok(attended)
        })?;
        Ok(Step { hidden, layers })
    }

    /// Returns the logits of the rows' hidden states, (rows, vocabulary), and their normalisers, (rows, 1).
    fn logits(&self, rows: &[Asking<'_, Self>]) -> Result<(Tensor, Tensor)> {
        let states: Vec<&Tensor> = rows.iter().map(|row| row.state).collect();
        let logits = self.model.logits(&Tensor::stack(&states, 0)?)?;
        let logits = logits.to_dtype(DType::F32)?;
        let normalisers = device_choice::normalisers(&logits)?;
        Ok((logits, normalisers))
    }
}

impl Decoder for DeviceDecoder<'_> {
    type Memory = Memory;
    type Step = Step;
    type State = Tensor;
    type Context = Tensor;

    fn read(&self, prompts: &[&[u32]], looks_back: bool) -> Result<Vec<Read<Self>>> {
        let batch = TokenBatch::right_padded(prompts);
        let time = batch.time();
        let mut slab = lock(&self.slab);
        let slots = self.slots(&mut slab, prompts.len(), time + 1)?;
        let memories: Vec<Memory> = prompts
            .iter()
            .zip(slots)
            .map(|(prompt, slot)| Memory {
                slot,
                positions: prompt.len(),
            })
            .collect();
        let positions: Vec<u32> = (0..prompts.len()).flat_map(|_| 0..time as u32).collect();
        let states = self.model.prefill(&batch, |layer, keys, values| {
            let rows = (prompts.len() * time, ());
            let keys = self.rotated(layer, &keys.contiguous()?.reshape(rows)?, &positions)?;
            let new = [keys, values.clone()];
            for (new, all) in new.iter().zip(&slab.layers[layer]) {
                let new = new.contiguous()?.reshape(rows)?;
                for (row, memory) in memories.iter().enumerate() {
                    let new = new.narrow(0, row * time, memory.positions)?;
                    all.slice_set(&new.contiguous()?, 0, memory.slot.index * slab.capacity)?;
                }
            }
            Ok(())
        })?;
        let rows = memories.into_iter().enumerate();
        rows.map(|(row, memory)| {
            let states = states.get(row)?.narrow(0, 0, memory.positions)?;
            let context = looks_back.then(|| device_choice::unit_length(&states));
            Ok(Read {
                state: states.get(memory.positions - 1)?.contiguous()?,
                context: context.transpose()?,
                memory,
            })
        })
        .collect()
    }

    fn step(&self, tokens: &[(&Memory, u32)]) -> Result<Step> {
        let ids: Vec<u32> = tokens.iter().map(|(_, token)| *token).collect();
        let memories: Vec<&Memory> = tokens.iter().map(|(memory, _)| *memory).collect();
        self.step_on(&memories, &Tensor::new(ids, self.model.device())?)
    }

    fn state(&self, step: &Step, index: usize) -> Result<Tensor> {
        Ok(step.hidden.get(index)?)
    }

    fn take(&self, taken: Vec<(&mut Memory, usize)>, step: &Step) -> Result<()> {
        let (mut memories, indices): (Vec<&mut Memory>, Vec<usize>) = taken.into_iter().unzip();
        let mut slab = lock(&self.slab);
        let longest = memories.iter().map(|memory| memory.positions + 1).max();
        let slots = slab.slots;
        self.grow(&mut slab, slots, longest.unwrap_or(0))?;
        self.own_slots(&mut slab, memories.iter_mut().map(|memory| &mut **memory))?;
        let width = self.model.config().kv_width();
        let places: Vec<u32> = memories
            .iter()
            .flat_map(|memory| {
                let place = memory.slot.index * slab.capacity + memory.positions;
                std::iter::repeat_n(place as u32, width)
            })
            .collect();
        let device = self.model.device();
        let places = Tensor::from_vec(places, (memories.len(), width), device)?;
        let indices: Vec<u32> = indices.into_iter().map(|index| index as u32).collect();
        let indices = Tensor::new(indices, device)?;
        for (new, all) in step
            .layers
            .iter()
            .flatten()
            .zip(slab.layers.iter().flatten())
        {
            all.scatter_set(&places, &new.index_select(&indices, 0)?, 0)?;
        }
        for memory in memories {
            memory.positions += 1;
        }
        Ok(())
    }

    fn choose(&self, rows: &[Asking<'_, Self>], how: &Choosing<'_>) -> Result<Vec<Choice>> {
        let (logits, normalisers) = self.logits(rows)?;
        let seen: Vec<&BTreeSet<u32>> = rows.iter().map(|row| row.seen).collect();
        let uniforms: Vec<f64> = rows.iter().map(|row| row.uniform).collect();
        let chosen = device_choice::choose(&logits, &normalisers, (&seen, &uniforms), how)?;
        device_choice::read_back(&chosen, &normalisers)
    }

    fn search(
        &self,
        rows: &[Asking<'_, Self>],
        search: &Contrastive,
        how: &Choosing<'_>,
    ) -> Result<(Vec<(Choice, usize)>, Step)> {
        let (logits, normalisers) = self.logits(rows)?;
        let seen: Vec<&BTreeSet<u32>> = rows.iter().map(|row| row.seen).collect();
        let found = device_choice::candidates(&logits, &normalisers, &seen, search, how)?;
        let count = found.tokens.dim(1)?;
        let memories: Vec<&Memory> = rows
            .iter()
            .flat_map(|row| std::iter::repeat_n(row.memory, count))
            .collect();
        let step = self.step_on(&memories, &found.tokens.flatten_all()?)?;
        let states = step.hidden.reshape((rows.len(), count, ()))?;
        let states = device_choice::unit_length(&states)?;
        let contexts: Vec<&Tensor> = rows.iter().filter_map(|row| row.context).collect();
        let best = device_choice::best(&found, &states, &contexts, search.alpha)?;
        let of_best = |x: &Tensor| x.gather(&best.unsqueeze(1)?, 1)?.squeeze(1);
        let chosen = Chosen {
            tokens: of_best(&found.tokens)?,
            log_probs: of_best(&found.log_probs)?,
            // Where it lies among the candidates, for the one way back.
            sampling_log_probs: best.to_dtype(DType::F32)?,
        };
        let mut chosen = device_choice::read_back(&chosen, &normalisers)?;
        let placed = chosen.drain(..).enumerate().map(|(row, choice)| {
            let place = choice.sampling_log_prob as usize;
            let choice = Choice {
                sampling_log_prob: 0.0,
                ..choice
            };
            (choice, row * count + place)
        });
        Ok((placed.collect(), step))
    }

    fn look_back(&self, context: &mut Tensor, state: &Tensor) -> Result<()> {
        let state = device_choice::unit_length(&state.unsqueeze(0)?)?;
        *context = Tensor::cat(&[&*context, &state], 0)?;
        Ok(())
    }
}
