//! Frequencies of rotary positions (Su et al. 2021), plain and stretched.

use crate::ml::kernels::rope::RopeLayout;
use crate::ml::kernels::rope::{Rope, frequencies};

/// Rotation of queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotary {
    /// Pairing of rotated dimensions.
    pub layout: RopeLayout,
    /// Dimensions of a head that are rotated, the first ones; an even number.
    pub dimensions: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are changed for sequences longer than those first trained on.
    pub scaling: Scaling,
}

/// A change of the frequencies `f`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// None.
    None,
    /// `f / factor`.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// That of Llama 3.1: `f / factor` for waves longer than `original / low`, `f` for those shorter than
    /// `original / high`, and in between a mean.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Waves of the original length that count as long.
        low: f64,
        /// Waves of the original length that count as short.
        high: f64,
        /// Positions first trained on.
        original: f64,
    },
    /// YaRN (Peng et al. 2023): a ramp over the pairs between both; rotated numbers are multiplied by
    /// `attention_factor`.
    Yarn {
        /// The factor.
        factor: f64,
        /// Rotations within the original length from which on a frequency stays.
        fast: f64,
        /// Rotations up to which it is divided by the factor.
        slow: f64,
        /// Positions first trained on.
        original: f64,
        /// Whether the ends of the ramp are whole numbers.
        truncate: bool,
        /// See above.
        attention_factor: f64,
    },
}

impl Rotary {
    /// Checks that the numbers describe a rotation of heads of some size.
    pub(super) fn check(&self, head_size: usize) -> Result<(), String> {
        let positive = |name: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(format!("{name} is {value}, expected a positive number"))
            }
        };
        positive("rotary base", self.theta)?;
        if !self.dimensions.is_multiple_of(2) || self.dimensions > head_size {
            return Err(format!(
                "{} rotated dimensions in heads of {head_size}, expected an even number up to that",
                self.dimensions
            ));
        }
        match self.scaling {
            Scaling::None => Ok(()),
            Scaling::Linear { factor } => positive("rotary factor", factor),
            Scaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                if high <= low {
                    return Err(format!(
                        "rotary `high_freq_factor` is {high}, expected more than `low_freq_factor`, {low}"
                    ));
                }
                positive("rotary factor", factor)?;
                positive("rotary `low_freq_factor`", low)?;
                positive("rotary `original_max_position_embeddings`", original)
            }
            Scaling::Yarn {
                factor,
                fast,
                slow,
                original,
                attention_factor,
                ..
            } => {
                if self.theta <= 1.0 {
                    return Err(format!(
                        "rotary base is {} under yarn, expected more than 1",
                        self.theta
                    ));
                }
                positive("rotary factor", factor)?;
                positive("rotary `beta_fast`", fast)?;
                positive("rotary `beta_slow`", slow)?;
                positive("rotary `original_max_position_embeddings`", original)?;
                positive("rotary `attention_factor`", attention_factor)
            }
        }
    }

    /// Makes the angles of `positions` positions.
    pub(super) fn rope(&self, positions: usize) -> Rope {
        let plain = frequencies(self.dimensions, self.theta);
        let (scaled, factor) = self.scaled(plain);
        Rope::of_frequencies(self.layout, scaled, factor, positions)
    }

    /// Returns the frequency of each rotated pair.
    pub(in crate::ml) fn frequencies(&self) -> Vec<f32> {
        self.scaled(frequencies(self.dimensions, self.theta)).0
    }

    fn scaled(&self, plain: Vec<f32>) -> (Vec<f32>, f32) {
        let map = |change: &dyn Fn(usize, f64) -> f64| {
            let changed = plain.iter().enumerate();
            changed
                .map(|(pair, frequency)| change(pair, f64::from(*frequency)) as f32)
                .collect()
        };
        match self.scaling {
            Scaling::None => (plain, 1.0),
            Scaling::Linear { factor } => (map(&|_, frequency| frequency / factor), 1.0),
            Scaling::Llama3 {
                factor,
                low,
                high,
                original,
            } => {
                let change = |_, frequency: f64| {
                    let waves = original * frequency / (2.0 * std::f64::consts::PI);
                    let share = ((waves - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - share) * frequency / factor + share * frequency
                };
                (map(&change), 1.0)
            }
            Scaling::Yarn {
                factor,
                fast,
                slow,
                original,
                truncate,
                attention_factor,
            } => {
                let dimensions = self.dimensions as f64;
                let pair_of = |rotations: f64| {
                    dimensions * libm::log(original / (2.0 * std::f64::consts::PI * rotations))
                        / (2.0 * libm::log(self.theta))
                };
                let (mut low, mut high) = (pair_of(fast), pair_of(slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dimensions - 1.0));
                if low == high {
                    high += 0.001;
                }
                let change = |pair: usize, frequency: f64| {
                    let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    ramp * frequency / factor + (1.0 - ramp) * frequency
                };
                (map(&change), attention_factor as f32)
            }
        }
    }
}
