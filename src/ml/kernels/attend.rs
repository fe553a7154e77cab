//! Attention of one new token to a sequence's stored keys and values.

use super::exponential::exp_shifted;
use super::host::{dot, maximum};
use super::vectorised::vectorised;

vectorised! {
    /// Writes the attention of one query token: (heads x head size).
    ///
    /// `query` (heads x size) and `keys` (positions, kv heads x size) are rotated; `values` is as `keys`;
    /// `new` holds the key and value of the token itself, which come last. `scores` is scratch.
    pub(in crate::ml) fn attend(
        out: &mut [f32],
        query: &[f32],
        keys: &[f32],
        values: &[f32],
        new: (&[f32], &[f32]),
        size: usize,
        scores: &mut Vec<f32>,
    ) {
        let width = new.0.len();
        let positions = keys.len() / width + 1;
        let group = query.len() / width;
        let scale = 1.0 / (size as f32).sqrt();
        scores.clear();
        scores.resize(group * positions, 0.0);
        for (kv_head, (out, query)) in out
            .chunks_exact_mut(group * size)
            .zip(query.chunks_exact(group * size))
            .enumerate()
        {
            let place = kv_head * size..(kv_head + 1) * size;
            for (position, keys) in keys
                .chunks_exact(width)
                .chain(std::iter::once(new.0))
                .enumerate()
            {
                let key = &keys[place.clone()];
                for (member, query) in query.chunks_exact(size).enumerate() {
                    scores[member * positions + position] = dot(query, key) * scale;
                }
            }
            for scores in scores.chunks_exact_mut(positions) {
                let total = exp_shifted(scores, maximum(scores));
                for score in scores {
                    *score /= total;
                }
            }
            out.fill(0.0);
            for (position, values) in values
                .chunks_exact(width)
                .chain(std::iter::once(new.1))
                .enumerate()
            {
                let value = &values[place.clone()];
                for (member, out) in out.chunks_exact_mut(size).enumerate() {
                    let weight = scores[member * positions + position];
                    for (out, value) in out.iter_mut().zip(value) {
                        *out += weight * value;
                    }
                }
            }
        }
    }
}
