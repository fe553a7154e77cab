//! Attention of one new token to a sequence's stored keys and values.

use super::exponential::exp_shifted;
use super::host::maximum;
use super::simd::vectorised;

/// Positions whose keys lie side by side.
const LANES: usize = 16;

/// Keys and values of one sequence in one layer.
#[derive(Debug, Clone, Default)]
pub(in crate::ml) struct Store {
    positions: usize,
    /// Rotated keys, 16 positions side by side: (block, kv heads x head size, lane).
    keys: Vec<[f32; LANES]>,
    /// (position, kv heads x head size)
    values: Vec<f32>,
}

impl Store {
    /// Appends the rotated key and the value of the next position.
    pub(in crate::ml) fn push(&mut self, key: &[f32], value: &[f32]) {
        let lane = self.positions % LANES;
        if lane == 0 {
            self.keys.resize(self.keys.len() + key.len(), [0.0; LANES]);
        }
        let start = self.keys.len() - key.len();
        for (lanes, key) in self.keys[start..].iter_mut().zip(key) {
            lanes[lane] = *key;
        }
        self.values.extend_from_slice(value);
        self.positions += 1;
    }
}

/// How a layer's heads look at what is stored.
#[derive(Clone, Copy)]
pub(in crate::ml) struct View {
    /// Width of a head.
    pub(in crate::ml) size: usize,
    /// Scores are multiplied by it.
    pub(in crate::ml) scale: f32,
    /// The first position that is seen.
    pub(in crate::ml) first: usize,
}

vectorised! {
    /// Writes the attention of one query token to what is stored and to itself: (heads x head size).
    ///
    /// `query` (heads x size) and the token's own `key` (kv heads x size) are rotated.
    pub(in crate::ml) fn attend(
        out: &mut [f32],
        query: &[f32],
        store: &Store,
        key: &[f32],
        value: &[f32],
        view: View,
    ) {
        let View { size, scale, first } = view;
        let width = key.len();
        let group = query.len() / width;
        let blocks = store.positions.div_ceil(LANES);
        // The lanes after the last position are overwritten by the token's own score or cut off.
        let mut scores = vec![0f32; blocks * LANES + 1];
        for (head, (out, query)) in out
            .chunks_exact_mut(size)
            .zip(query.chunks_exact(size))
            .enumerate()
        {
            let start = head / group * size;
            let (lanes, _) = scores.as_chunks_mut::<LANES>();
            for (scores, block) in lanes.iter_mut().zip(store.keys.chunks_exact(width)) {
                let mut sums = [0f32; LANES];
                for (query, keys) in query.iter().zip(&block[start..start + size]) {
                    for lane in 0..LANES {
                        sums[lane] = query.mul_add(keys[lane], sums[lane]);
                    }
                }
                *scores = sums.map(|sum| sum * scale);
            }
            let mut own = 0f32;
            for (query, key) in query.iter().zip(&key[start..start + size]) {
                own = query.mul_add(*key, own);
            }
            scores[store.positions] = own * scale;
            let weights = &mut scores[first..=store.positions];
            let total = exp_shifted(weights, maximum(weights));
            for weight in weights.iter_mut() {
                *weight /= total;
            }
            let (chunks, rest) = out.as_chunks_mut::<LANES>();
            let whole = chunks.len() * LANES;
            for (chunk, out) in chunks.iter_mut().enumerate() {
                let start = start + chunk * LANES;
                let mut sums = [0f32; LANES];
                for (weight, values) in weights
                    .iter()
                    .zip(store.values[first * width..].chunks_exact(width).chain(std::iter::once(value)))
                {
                    let values = &values[start..start + LANES];
                    for lane in 0..LANES {
                        sums[lane] = weight.mul_add(values[lane], sums[lane]);
                    }
                }
                *out = sums;
            }
            for (place, out) in rest.iter_mut().enumerate() {
                let place = start + whole + place;
                *out = weights
                    .iter()
                    .zip(store.values[first * width..].chunks_exact(width).chain(std::iter::once(value)))
                    .fold(0.0, |sum, (weight, values)| weight.mul_add(values[place], sum));
            }
        }
    }
}
