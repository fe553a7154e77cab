//! Seeded counter streams, the only source of randomness.
//!
//! A stream is named by `(seed, label)`; the draws at one counter of it depend on nothing else: not on
//! batch size, thread count, or the order in which counters are visited. Two runs that differ in a
//! learning rate therefore see the same prompts, initial weights and sampling noise.

use rand::{RngCore, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

/// A named family of independent generators, one for each counter.
#[derive(Debug, Clone)]
pub struct Stream {
    key: [u8; 32],
}

impl Stream {
    /// Names a stream by seed and label.
    pub fn new(seed: u64, label: &str) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("flowgraph random stream v1");
        hasher.update(&seed.to_le_bytes());
        hasher.update(label.as_bytes());
        Self {
            key: *hasher.finalize().as_bytes(),
        }
    }

    /// Names a stream within this one.
    #[must_use]
    pub fn child(&self, label: &str) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(label.as_bytes());
        Self {
            key: *hasher.finalize().as_bytes(),
        }
    }

    /// Returns the generator at `counter`.
    pub fn at(&self, counter: u64) -> Draws {
        let mut generator = ChaCha8Rng::from_seed(self.key);
        generator.set_stream(counter);
        Draws(generator)
    }
}

/// Draws at one counter of a [`Stream`].
#[derive(Debug, Clone)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// Draws uniformly from `[0, 1)` with 53 random bits.
    pub fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Draws from the standard normal distribution (Box and Muller 1958; the sine's half is left).
    pub fn normal(&mut self) -> f64 {
        // From (0, 1], so that the logarithm is finite.
        let radius = (-2.0 * libm::log(1.0 - self.uniform())).sqrt();
        radius * libm::cos(std::f64::consts::TAU * self.uniform())
    }

    /// Draws uniformly from `0..n` (`n > 0`), without bias.
    pub fn below(&mut self, n: usize) -> usize {
        assert!(n > 0, "BUG: a draw from an empty range");
        rand::Rng::random_range(&mut self.0, 0..n as u64) as usize
    }

    /// Returns `true` with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Draws an index with probability proportional to `weights` (finite, not negative, not all zero).
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let total: f64 = weights.iter().sum();
        assert!(total > 0.0, "BUG: weights without mass");
        let mut left = self.uniform() * total;
        for (index, weight) in weights.iter().enumerate() {
            left -= weight;
            if left < 0.0 {
                return index;
            }
        }
        // Rounding can leave a sliver beyond the last weight.
        weights.iter().rposition(|w| *w > 0.0).unwrap_or(0)
    }

    /// Permutes `items` uniformly.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        items.shuffle(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_seed_label_and_counter_only() {
        let first = Stream::new(7, "a").at(3).uniform();
        assert_eq!(first, Stream::new(7, "a").at(3).uniform());
        assert_ne!(first, Stream::new(8, "a").at(3).uniform());
        assert_ne!(first, Stream::new(7, "b").at(3).uniform());
        assert_ne!(first, Stream::new(7, "a").at(4).uniform());
        assert_ne!(first, Stream::new(7, "a").child("c").at(3).uniform());
    }

    #[test]
    fn streams_are_pinned_because_results_in_stores_depend_on_them() {
        let mut draws = Stream::new(1, "golden").at(0);
        let seen = (draws.uniform(), draws.below(1000), draws.normal());
        assert_eq!(format!("{seen:?}"), GOLDEN);
    }

    const GOLDEN: &str = "(0.5526538194946672, 213, -0.22436840170599315)";

    #[test]
    fn weighted_draws_follow_their_weights() {
        let stream = Stream::new(1, "weights");
        let mut counts = [0usize; 3];
        for counter in 0..10_000 {
            counts[stream.at(counter).weighted(&[1.0, 0.0, 3.0])] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!(
            (counts[2] as f64 / 10_000.0 - 0.75).abs() < 0.02,
            "{counts:?}"
        );
    }
}
