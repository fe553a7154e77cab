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
use crate::ml::kernels::product::product;
use crate::ml::models::causal::architecture::LayerOptions;
use crate::ml::models::causal::{CausalLm, TokenBatch};

type TensorResult = candle_core::Result<Tensor>;

/// A place that candle's `scatter_set` leaves as it is.
const UNCHANGED: u32 = u32::MAX;

/// Decodes models of any device and dtype.
pub(super) struct DeviceDecoder<'a> {
    model: &'a CausalLm,
    slab: Mutex<Slab>,
    free: Arc<Mutex<Vec<usize>>>,
}

/// Rotated keys and values of all slots.
struct Slab {
    /// (slots, kv heads, capacity, head size), keys and values of each layer: products read them as they lie.
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
    /// New keys (rotated) and values of each layer: (tokens, kv heads, head size).
    layers: Vec<[Tensor; 2]>,
}

/// What the tokens of a step look back at, the same for all layers.
///
/// Slots are read in their order, whichever tokens look at them: as many places for tokens as the slot with the most of them
/// has (`most`).
struct View {
    /// The slots that are read; all up to some number, as they lie, where that is not far more than are needed.
    slots: Slots,
    /// For each place of each slot, its token; any where there is none: (slots x most).
    tokens: Tensor,
    /// For each token, its place: (tokens).
    places: Tensor,
    most: usize,
    /// Position of each token.
    positions: Vec<u32>,
    longest: usize,
    /// Where each slot's keys are not seen, negative infinity: (slots, 1, 1, longest), for a window or none.
    hidden: BTreeMap<Option<usize>, Tensor>,
}

/// Slots that are read.
enum Slots {
    /// The first ones.
    First(usize),
    /// These: (slots).
    Some(Tensor, usize),
}

impl Slots {
    fn count(&self) -> usize {
        match self {
            Self::First(count) | Self::Some(_, count) => *count,
        }
    }

    /// Returns the first `longest` positions of the slots' keys or values.
    fn of(&self, slab: &Tensor, longest: usize) -> TensorResult {
        let seen = match self {
            Self::First(count) => slab.narrow(0, 0, *count)?,
            Self::Some(slots, _) => slab.index_select(slots, 0)?,
        };
        seen.narrow(2, 0, longest)
    }
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
            let nothing = self.empty(1, slab.capacity)?;
            for tensor in slab.layers.iter().flatten() {
                for index in &used {
                    tensor.slice_set(&nothing, 0, *index)?;
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

    /// Returns keys or values of a layer that hold nothing.
    fn empty(&self, slots: usize, capacity: usize) -> TensorResult {
        let config = self.model.config();
        let shape = (slots, config.num_kv_heads, capacity, config.head_size);
        Tensor::zeros(shape, self.model.dtype(), self.model.device())
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
        if slab.layers.is_empty() {
            for _ in 0..self.layer_count() {
                let both = [self.empty(slots, capacity)?, self.empty(slots, capacity)?];
                slab.layers.push(both);
            }
        } else {
            for tensor in slab.layers.iter_mut().flatten() {
                *tensor = tensor
                    .pad_with_zeros(2, 0, capacity - slab.capacity)?
                    .pad_with_zeros(0, 0, slots - slab.slots)?
                    .contiguous()?;
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

    /// Says what tokens look back at that are tried on these memories.
    fn view(&self, slab: &Slab, memories: &[&Memory]) -> candle_core::Result<View> {
        let device = self.model.device();
        let mut of_slot: BTreeMap<usize, Vec<u32>> = BTreeMap::new();
        for (token, memory) in memories.iter().enumerate() {
            of_slot
                .entry(memory.slot.index)
                .or_default()
                .push(token as u32);
        }
        let last = of_slot.keys().last().map_or(0, |slot| slot + 1);
        // Rows that ended leave gaps: reading over them is cheaper than copying all that lies around them.
        let slots: Vec<usize> = if last <= 2 * of_slot.len() {
            (0..last).collect()
        } else {
            of_slot.keys().copied().collect()
        };
        let most = of_slot.values().map(Vec::len).max().unwrap_or(1);
        let longest = memories
            .iter()
            .map(|memory| memory.positions)
            .max()
            .unwrap_or(1);
        let mut tokens = vec![0u32; slots.len() * most];
        let mut places = vec![0u32; memories.len()];
        let mut seen = vec![longest; slots.len()];
        for (place, slot) in slots.iter().enumerate() {
            for (at, token) in of_slot.get(slot).into_iter().flatten().enumerate() {
                tokens[place * most + at] = *token;
                places[*token as usize] = (place * most + at) as u32;
                seen[place] = memories[*token as usize].positions;
            }
        }
        let windows: BTreeSet<Option<usize>> = (0..self.layer_count())
            .map(|layer| self.model.options(layer).window)
            .collect();
        let hidden = windows.into_iter().map(|window| {
            let mut hidden = vec![0f32; slots.len() * longest];
            for (row, position) in hidden.chunks_exact_mut(longest).zip(&seen) {
                row[..first_seen(*position, window).min(longest)].fill(f32::NEG_INFINITY);
                row[*position..].fill(f32::NEG_INFINITY);
            }
            let hidden = Tensor::from_vec(hidden, (slots.len(), 1, 1, longest), device)?;
            Ok((window, hidden))
        });
        Ok(View {
            hidden: hidden.collect::<candle_core::Result<_>>()?,
            tokens: Tensor::new(tokens, device)?,
            places: Tensor::new(places, device)?,
            most,
            positions: memories
                .iter()
                .map(|memory| memory.positions as u32)
                .collect(),
            longest,
            slots: if slots.len() == last {
                Slots::First(last)
            } else {
                let count = slots.len();
                let slots: Vec<u32> = slots.into_iter().map(|slot| slot as u32).collect();
                debug_assert!(slots.iter().all(|slot| (*slot as usize) < slab.slots));
                Slots::Some(Tensor::new(slots, device)?, count)
            },
        })
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
        let (slots, most) = (view.slots.count(), view.most);
        let LayerOptions { window, scale, .. } = self.model.options(layer);
        let rows = |x: &Tensor| x.contiguous()?.reshape((tokens, ()));
        let q = self.rotated(layer, &rows(queries)?, &view.positions)?;
        let own_key = self
            .rotated(layer, &rows(keys)?, &view.positions)?
            .contiguous()?;
        let own_value = rows(values)?.reshape((tokens, kv_heads, 1, size))?;
        // Heads that share keys lie beside each other.
        let q = q.contiguous()?.reshape((tokens, kv_heads, group, size))?;
        let scored = |scores: &Tensor| scores.to_dtype(DType::F32)?.affine(f64::from(scale), 0.0);
        // From an order by tokens, (tokens, kv heads, group, n), to one by slots, (slots, kv heads, most x group, n).
        let to_slots = |x: &Tensor| {
            let columns = x.dim(3)?;
            x.contiguous()?
                .reshape((tokens, ()))?
                .index_select(&view.tokens, 0)?
                .reshape((slots, most, kv_heads, group * columns))?
                .transpose(1, 2)?
                .contiguous()?
                .reshape((slots, kv_heads, most * group, columns))
        };
        let to_tokens = |x: &Tensor| {
            let columns = x.dim(3)?;
            x.contiguous()?
                .reshape((slots, kv_heads, most, group * columns))?
                .transpose(1, 2)?
                .contiguous()?
                .reshape((slots * most, ()))?
                .index_select(&view.places, 0)?
                .reshape((tokens, kv_heads, group, columns))
        };
        let [k, v] = &slab.layers[layer];
        let (k, v) = (
            view.slots.of(k, view.longest)?,
            view.slots.of(v, view.longest)?,
        );
        let remembered = scored(&product(&to_slots(&q)?, &k.t()?)?)?;
        let own = to_slots(&scored(&product(&q, &own_key.t()?)?)?)?;
        let remembered = match view.hidden.get(&window) {
            Some(hidden) => remembered.broadcast_add(hidden)?,
            None => remembered,
        };
        let scores = Tensor::cat(&[remembered, own], D::Minus1)?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(v.dtype())?;
        let of = |start, length| weights.narrow(D::Minus1, start, length)?.contiguous();
        let out = to_tokens(&product(&of(0, view.longest)?, &v)?)?;
        let own = to_tokens(&of(view.longest, 1)?)?.broadcast_mul(&own_value)?;
        let flat = |x: &Tensor| x.contiguous()?.reshape((tokens, kv_heads, size));
        Ok((
            (out + own)?.reshape((1, tokens, ()))?,
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
        let view = self.view(&slab, memories)?;
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
        let config = self.model.config();
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
                // (rows, kv heads, time, head size)
                let new = new
                    .contiguous()?
                    .reshape((prompts.len(), time, config.num_kv_heads, config.head_size))?
                    .transpose(1, 2)?;
                for (row, memory) in memories.iter().enumerate() {
                    let new = new.narrow(0, row, 1)?.narrow(2, 0, memory.positions)?;
                    let slot = all.narrow(0, memory.slot.index, 1)?;
                    slot.slice_set(&new.contiguous()?, 2, 0)?;
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
        let config = self.model.config();
        let (heads, size) = (config.num_kv_heads, config.head_size);
        // A new position for each head of each slot, or none: all at once, in the order of the slots.
        let mut places = vec![UNCHANGED; slab.slots * heads * size];
        let mut order = vec![0u32; slab.slots];
        for (memory, index) in memories.iter().zip(indices) {
            let slot = memory.slot.index;
            order[slot] = index as u32;
            places[slot * heads * size..][..heads * size].fill(memory.positions as u32);
        }
        let device = self.model.device();
        let places = Tensor::from_vec(places, (slab.slots * heads, 1, size), device)?;
        let order = Tensor::new(order, device)?;
        for (new, all) in step
            .layers
            .iter()
            .flatten()
            .zip(slab.layers.iter().flatten())
        {
            let new = new.index_select(&order, 0)?;
            let new = new.reshape((slab.slots * heads, 1, size))?;
            let all = all.reshape((slab.slots * heads, slab.capacity, size))?;
            all.scatter_set(&places, &new, 1)?;
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
