//! Learning rates over the steps of a training.

use serde::{Deserialize, Serialize};

/// How the learning rate falls after the warm-up.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, Default,
)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// It stays.
    #[default]
    Constant,
    /// On a straight line to the floor.
    Linear,
    /// On half a cosine to the floor (Loshchilov and Hutter 2017, equation 5, one cycle).
    Cosine,
}

/// A number that stays, or goes from one value to another over the first steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(untagged)]
pub enum Ramp {
    /// The same at every step.
    Constant(f64),
    /// On a straight line from `start` to `end` over `steps` steps, then `end`.
    Line {
        /// At the first step.
        start: f64,
        /// After `steps` steps.
        end: f64,
        /// Length of the way.
        steps: u64,
    },
}

impl Default for Ramp {
    fn default() -> Self {
        Self::Constant(1.0)
    }
}

impl Ramp {
    /// Returns the value at `step`, counted from 0.
    pub fn at(self, step: u64) -> f64 {
        match self {
            Self::Constant(value) => value,
            Self::Line { start, end, steps } => {
                let share = (step as f64 / steps.max(1) as f64).min(1.0);
                start + (end - start) * share
            }
        }
    }

    /// Returns the values that all others lie between, with what is appended to the param's name.
    pub fn ends(self) -> Vec<(&'static str, f64)> {
        match self {
            Self::Constant(value) => vec![("", value)],
            Self::Line { start, end, .. } => vec![(".start", start), (".end", end)],
        }
    }
}

/// A linear warm-up, then a decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// How the rate falls.
    pub decay: Decay,
    /// Steps over which the rate rises from `1 / warmup_steps` to 1.
    pub warmup_steps: u64,
    /// Steps of the whole training.
    pub total_steps: u64,
    /// What the rate falls to, as a share of its peak.
    pub floor: f64,
}

impl Schedule {
    /// Returns the share of the peak learning rate at `step`, counted from 0.
    ///
    /// The last step of a decay is at the floor; no step has the rate 0 unless the floor is 0.
    pub fn factor(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return (step + 1) as f64 / self.warmup_steps as f64;
        }
        let length = self
            .total_steps
            .saturating_sub(self.warmup_steps + 1)
            .max(1);
        let done = ((step - self.warmup_steps) as f64 / length as f64).min(1.0);
        let share = match self.decay {
            Decay::Constant => return 1.0,
            Decay::Linear => 1.0 - done,
            Decay::Cosine => 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done)),
        };
        self.floor + (1.0 - self.floor) * share
    }

    /// Tells whether the rates of the first steps do not depend on how many steps follow, so that a longer
    /// training can continue a shorter one.
    pub fn is_extendable(&self) -> bool {
        self.decay == Decay::Constant
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(decay: Decay) -> Vec<f64> {
        let schedule = Schedule {
            decay,
            warmup_steps: 2,
            total_steps: 7,
            floor: 0.1,
        };
        (0..8).map(|step| schedule.factor(step)).collect()
    }

    fn assert_close(found: &[f64], expected: &[f64]) {
        for (found, expected) in found.iter().zip(expected) {
            assert!(
                (found - expected).abs() < 1e-12,
                "{found} is not {expected}"
            );
        }
    }

    #[test]
    fn rates_rise_to_the_peak_and_fall_to_the_floor() {
        assert_close(
            &factors(Decay::Constant),
            &[0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        );
        assert_close(
            &factors(Decay::Linear),
            &[0.5, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1],
        );
        let half_root = 0.5f64.sqrt() / 2.0;
        assert_close(
            &factors(Decay::Cosine),
            &[
                0.5,
                1.0,
                1.0,
                0.1 + 0.9 * (0.5 + half_root),
                0.55,
                0.1 + 0.9 * (0.5 - half_root),
                0.1,
                0.1,
            ],
        );
    }

    #[test]
    fn a_ramp_goes_straight_and_then_stays() {
        let ramp = Ramp::Line {
            start: 1.0,
            end: 0.8,
            steps: 4,
        };
        assert_close(
            &[0, 1, 2, 4, 9].map(|step| ramp.at(step)),
            &[1.0, 0.95, 0.9, 0.8, 0.8],
        );
        assert_eq!(Ramp::default().at(7), 1.0);
        assert_eq!(ramp.ends(), [(".start", 1.0), (".end", 0.8)]);
    }

    #[test]
    fn only_a_constant_rate_lets_a_longer_training_continue() {
        for (decay, expected) in [
            (Decay::Constant, true),
            (Decay::Linear, false),
            (Decay::Cosine, false),
        ] {
            let at = |total_steps| Schedule {
                decay,
                warmup_steps: 1,
                total_steps,
                floor: 0.0,
            };
            assert_eq!(at(10).is_extendable(), expected);
            assert_eq!(at(10).factor(5) == at(20).factor(5), expected);
        }
    }

    #[test]
    fn degenerate_lengths_give_finite_rates() {
        for (warmup_steps, total_steps) in [(0, 0), (0, 1), (5, 3), (3, 3)] {
            for decay in [Decay::Constant, Decay::Linear, Decay::Cosine] {
                let schedule = Schedule {
                    decay,
                    warmup_steps,
                    total_steps,
                    floor: 0.0,
                };
                assert!((0..10).all(|step| (0.0..=1.0).contains(&schedule.factor(step))));
            }
        }
    }
}
