//! Which sums of residuals are squared: single transitions, or every sub-trajectory.
//!
//! With `delta_t` the residual of transition `t` (see [`super::residual`]) and `C_j = sum_{t < j} delta_t`, a window
//! `s_i .. s_j` of a trajectory has the residual `C_j - C_i`: sub-trajectory balance (Madan et al. 2023) squares all
//! of them, weighing a window of `l` transitions with `lambda^l`.

use candle_core::Tensor;

use super::residual::{check_counts, squared};
use super::{Normaliser, ObjectiveError};
use crate::ml::kernels::sums::{cumulative, spread, total};

/// Which sums of residuals are squared.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Windows {
    /// Every transition alone, summed over the trajectory: detailed balance.
    #[default]
    Transitions,
    /// Every window; the weights of each trajectory add up to 1 ("geometric within" of Madan et al. 2023;
    /// `lambda` = 1 weighs all windows alike).
    WithinTrajectory {
        /// Factor from one length to the next.
        lambda: f64,
    },
    /// Every window; the weights of all windows of the batch add up to 1 (Hu et al. 2024).
    AcrossBatch {
        /// Factor from one length to the next.
        lambda: f64,
    },
}

impl Windows {
    /// Returns the units of the mean that trajectories of so many transitions bring: trajectories, or, across a
    /// batch, the weights of their windows.
    pub fn units(self, transitions: &[usize]) -> f64 {
        match self {
            Self::Transitions | Self::WithinTrajectory { .. } => transitions.len() as f64,
            Self::AcrossBatch { lambda } => {
                transitions.iter().map(|n| total_weight(*n, lambda)).sum()
            }
        }
    }

    /// Returns the weighted sum of squared window residuals, divided as `normaliser` says; see [`Self::units`].
    ///
    /// `residuals` is `(batch, time)` with 0 in padding; row `b` has `transitions[b]` of them, perhaps none.
    pub fn loss(
        self,
        residuals: &Tensor,
        transitions: &[usize],
        normaliser: Normaliser,
    ) -> Result<Tensor, ObjectiveError> {
        let (batch, time) = residuals.dims2()?;
        check_counts(transitions, batch, time)?;
        let (lambda, within) = match self {
            Self::Transitions => return squared(residuals, batch, normaliser),
            Self::WithinTrajectory { lambda } => (lambda, true),
            Self::AcrossBatch { lambda } => (lambda, false),
        };
        if !(lambda.is_finite() && lambda > 0.0) {
            return Err(ObjectiveError::Range {
                what: "lambda",
                value: lambda,
                expected: "a positive number",
            });
        }
        let divisor = normaliser.divisor(self.units(transitions), "windows")?;
        let states = time + 1;
        let mut weights = vec![0.0; batch * states * states];
        for (row, n) in transitions.iter().enumerate() {
            let total = if within {
                total_weight(*n, lambda)
            } else {
                1.0
            };
            for from in 0..*n {
                for to in from + 1..=*n {
                    weights[(row * states + from) * states + to] =
                        lambda.powi((to - from) as i32) / total;
                }
            }
        }
        let weights = Tensor::from_vec(weights, (batch, states, states), residuals.device())?
            .to_dtype(residuals.dtype())?;
        let start = Tensor::zeros((batch, 1), residuals.dtype(), residuals.device())?;
        let sums = Tensor::cat(&[&start, &cumulative(residuals)?], 1)?;
        let ends = spread(&sums.unsqueeze(1)?, (batch, states, states))?;
        let windows = (ends - spread(&sums.unsqueeze(2)?, (batch, states, states))?)?;
        Ok((total(&(windows.sqr()? * weights)?)? / divisor)?)
    }
}

/// Sum of `lambda^length` over the windows of a trajectory of `n` transitions.
fn total_weight(n: usize, lambda: f64) -> f64 {
    (1..=n)
        .map(|length| (n + 1 - length) as f64 * lambda.powi(length as i32))
        .sum()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::gradient_check::{assert_gradients, close};
    use super::super::scalar;
    use super::*;

    const TRANSITIONS: [usize; 3] = [3, 0, 2];
    const ALL: [Windows; 4] = [
        Windows::Transitions,
        Windows::WithinTrajectory { lambda: 0.9 },
        Windows::WithinTrajectory { lambda: 1.0 },
        Windows::AcrossBatch { lambda: 0.5 },
    ];

    fn residuals() -> Tensor {
        let rows = [[0.5, -1.0, 2.0], [0.0, 0.0, 0.0], [1.5, 0.25, 0.0]];
        Tensor::new(&rows, &Device::Cpu).unwrap()
    }

    /// The definition, window by window.
    fn expected(windows: Windows) -> f64 {
        let rows: Vec<Vec<f64>> = residuals().to_vec2().unwrap();
        let (mut sum, mut units) = (0.0, 0.0);
        for (row, n) in rows.iter().zip(TRANSITIONS) {
            let (mut of_row, mut weight) = (0.0, 0.0);
            for from in 0..n {
                for to in from + 1..=n {
                    let residual: f64 = row[from..to].iter().sum();
                    let factor = match windows {
                        Windows::Transitions => f64::from(u8::from(to == from + 1)),
                        Windows::WithinTrajectory { lambda } | Windows::AcrossBatch { lambda } => {
                            lambda.powi((to - from) as i32)
                        }
                    };
                    of_row += factor * residual * residual;
                    weight += factor;
                }
            }
            match windows {
                Windows::Transitions => (sum, units) = (sum + of_row, units + 1.0),
                Windows::WithinTrajectory { .. } => {
                    let share = if n == 0 { 0.0 } else { of_row / weight };
                    (sum, units) = (sum + share, units + 1.0);
                }
                Windows::AcrossBatch { .. } => (sum, units) = (sum + of_row, units + weight),
            }
        }
        sum / units
    }

    #[test]
    fn losses_are_those_of_the_definition() {
        for windows in ALL {
            let loss = windows.loss(&residuals(), &TRANSITIONS, Normaliser::Own);
            close(scalar(&loss.unwrap()).unwrap(), expected(windows), 1e-12);
        }
    }

    #[test]
    fn gradients_match_finite_differences() {
        for windows in ALL {
            assert_gradients(&[residuals()], 1.0, |inputs| {
                let used = Tensor::new(&[[1.0, 1.0, 1.0], [0.0; 3], [1.0, 1.0, 0.0]], &Device::Cpu);
                let kept = (&inputs[0] * used.unwrap()).unwrap();
                windows.loss(&kept, &TRANSITIONS, Normaliser::Own).unwrap()
            });
        }
    }

    #[test]
    fn micro_batches_add_up_to_the_batch() {
        for windows in ALL {
            let total = Normaliser::Total(windows.units(&TRANSITIONS));
            let sum: f64 = (0..3)
                .map(|row| {
                    let part = residuals().narrow(0, row, 1).unwrap();
                    scalar(&windows.loss(&part, &TRANSITIONS[row..=row], total).unwrap()).unwrap()
                })
                .sum();
            close(sum, expected(windows), 1e-12);
        }
    }

    #[test]
    fn a_lambda_that_weighs_nothing_is_an_error() {
        for lambda in [0.0, -1.0, f64::NAN] {
            let windows = Windows::WithinTrajectory { lambda };
            let error = windows
                .loss(&residuals(), &TRANSITIONS, Normaliser::Own)
                .unwrap_err();
            assert!(error.to_string().contains("lambda"), "{error}");
        }
    }
}
