//! Trajectory balance: one squared residual for each trajectory.
//!
//! Malkin et al. 2022, on a tree (`log P_B = 0`):
//!
//! ```text
//! L = mean_b ( log Z(x_b) + sum_t a_{b,t} - log R(x_b, y_b) )^2
//! ```
//!
//! with the step terms `a_t` of [`Steps`] (`log pi` unless a reference enters). At zero loss the policy
//! samples its target exactly: `R / Z`, or what [`ReferenceTerms`] says. `log Z` comes in three forms, see
//! [`LogZ`]. Everything is in log space: a `log Z` of 400 is an ordinary number here, although `Z` is not.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::residual::{ResidualSummary, mean, sequence_residuals, squared};
use super::{
    Normaliser, ObjectiveError, ReferenceTerms, Steps, Trajectories, expect_shape, vector,
};
use crate::ml::kernels::sums::spread;

/// Where the log-partition function comes from.
#[derive(Debug, Clone, Copy)]
pub enum LogZ<'a> {
    /// One trained number for all prompts, a scalar or `(1)`: the literal reading of the paper. With prompts
    /// of different `Z` it has no zero of the loss, and its optimum does not sample `R / Z`.
    Scalar(&'a Tensor),
    /// The output of a head on the prompt's last state, gathered for each row, `(batch)`.
    PerPrompt(&'a Tensor),
    /// The mean of `log R - sum_t a_t` over the rows of the same prompt, detached (`VarGrad`: Richter et al.
    /// 2020; Zhang et al. 2023). `prompt_of[row]` names the prompt. The gradient is that of the
    /// variance of the residuals within prompts. Needs two completions of every prompt in the call.
    Batch(&'a [usize]),
}

/// Choices of trajectory balance.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TrajectoryBalanceOptions {
    /// The reference model's part.
    pub reference: ReferenceTerms,
    /// Whether `sum_t a_t` is divided by the number of actions (`FlowRL`: Zhu et al. 2025), which shifts the optimum
    /// away from the target.
    pub length_normalised: bool,
}

impl From<ReferenceTerms> for TrajectoryBalanceOptions {
    fn from(reference: ReferenceTerms) -> Self {
        Self {
            reference,
            length_normalised: false,
        }
    }
}

impl TrajectoryBalanceOptions {
    fn steps(self, trajectories: &Trajectories<'_>) -> Result<Steps, ObjectiveError> {
        let steps = Steps::new(trajectories, self.reference)?;
        if self.length_normalised {
            steps.divided_by_lengths(trajectories.lengths)
        } else {
            Ok(steps)
        }
    }
}

/// The trajectory-balance loss of a batch.
#[derive(Debug, Clone)]
pub struct TrajectoryBalance {
    /// Mean squared residual of a trajectory in nats squared, a scalar.
    pub loss: Tensor,
    /// Trajectories: the units of the mean.
    pub count: f64,
    /// Mean `log Z` over rows.
    pub log_z: f64,
    /// Mean of the summed `log pi`.
    pub log_pf: f64,
    /// Mean of `log R`.
    pub log_r: f64,
    /// Residuals of trajectories.
    pub residual: ResidualSummary,
    /// Mean summed `log pi - log pi_ref`, with a reference.
    pub log_ratio: Option<f64>,
}

/// Computes the trajectory-balance loss; `log_r` is `(batch)` and is not differentiated.
pub fn trajectory_balance(
    trajectories: &Trajectories<'_>,
    log_r: &Tensor,
    log_z: LogZ<'_>,
    options: impl Into<TrajectoryBalanceOptions>,
    normaliser: Normaliser,
) -> Result<TrajectoryBalance, ObjectiveError> {
    weighted_trajectory_balance(trajectories, log_r, log_z, options, None, normaliser)
}

/// Computes the same loss with a weight for each squared residual, such as those of
/// [`importance_weights`](super::importance::importance_weights); the mean is still over trajectories.
pub fn weighted_trajectory_balance(
    trajectories: &Trajectories<'_>,
    log_r: &Tensor,
    log_z: LogZ<'_>,
    options: impl Into<TrajectoryBalanceOptions>,
    weights: Option<&[f64]>,
    normaliser: Normaliser,
) -> Result<TrajectoryBalance, ObjectiveError> {
    let steps = options.into().steps(trajectories)?;
    let batch = steps.terms.dim(0)?;
    let dtype = steps.terms.dtype();
    expect_shape("log_r", log_r, &[batch])?;
    let log_r = log_r.detach().to_dtype(dtype)?;
    let log_z = match log_z {
        LogZ::Scalar(value) => {
            if value.elem_count() != 1 {
                return Err(ObjectiveError::Shape {
                    what: "log_z",
                    expected: vec![1],
                    got: value.dims().to_vec(),
                });
            }
            spread(&value.to_dtype(dtype)?.reshape(1)?, batch)?
        }
        LogZ::PerPrompt(values) => {
            expect_shape("log_z", values, &[batch])?;
            values.to_dtype(dtype)?
        }
        LogZ::Batch(prompt_of) => batch_log_z(&steps, &log_r, prompt_of)?,
    };
    let residuals = sequence_residuals(&steps, &log_z, &log_r)?;
    let weighted = match weights {
        None => residuals.clone(),
        Some(weights) => {
            if weights.len() != batch {
                return Err(ObjectiveError::Length {
                    what: "weights",
                    expected: batch,
                    got: weights.len(),
                });
            }
            let roots: Vec<f64> = weights.iter().map(|weight| weight.sqrt()).collect();
            (&residuals * Tensor::new(roots, residuals.device())?.to_dtype(dtype)?)?
        }
    };
    Ok(TrajectoryBalance {
        loss: squared(&weighted, batch, normaliser)?,
        count: batch as f64,
        log_z: mean(&vector(&log_z)?),
        log_pf: mean(&steps.log_pf),
        log_r: mean(&vector(&log_r)?),
        residual: ResidualSummary::of(vector(&residuals)?),
        log_ratio: steps.mean_log_ratio(),
    })
}

/// Returns a start for a trained `log Z` from data: the mean of `log R - sum_t a_t`, at which the mean
/// residual is 0. From 0 the first thousand updates would only move `log Z`.
pub fn initial_log_z(
    trajectories: &Trajectories<'_>,
    log_r: &Tensor,
    options: impl Into<TrajectoryBalanceOptions>,
) -> Result<f64, ObjectiveError> {
    let steps = options.into().steps(trajectories)?;
    expect_shape("log_r", log_r, &[steps.terms.dim(0)?])?;
    Ok(mean(&log_z_of_rows(&steps, log_r)?))
}

/// Returns `log R - sum_t a_t` of each row: the `log Z` at which the row's residual is 0.
fn log_z_of_rows(steps: &Steps, log_r: &Tensor) -> Result<Vec<f64>, ObjectiveError> {
    let zero = log_r.zeros_like()?.to_dtype(steps.terms.dtype())?;
    let log_r = log_r.to_dtype(steps.terms.dtype())?;
    let residuals = vector(&sequence_residuals(steps, &zero, &log_r)?)?;
    Ok(residuals.into_iter().map(|residual| -residual).collect())
}

/// Returns the detached mean of the rows' `log Z` within each prompt, `(batch)`.
fn batch_log_z(
    steps: &Steps,
    log_r: &Tensor,
    prompt_of: &[usize],
) -> Result<Tensor, ObjectiveError> {
    let rows = log_z_of_rows(steps, log_r)?;
    if prompt_of.len() != rows.len() {
        return Err(ObjectiveError::Length {
            what: "prompt_of",
            expected: rows.len(),
            got: prompt_of.len(),
        });
    }
    super::Branching::of_rows(prompt_of).require(2, "a batch estimate of log Z")?;
    let mut sums: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for (prompt, value) in prompt_of.iter().zip(&rows) {
        let (sum, count) = sums.entry(*prompt).or_default();
        *sum += value;
        *count += 1.0;
    }
    let means: Vec<f64> = prompt_of
        .iter()
        .map(|prompt| sums[prompt].0 / sums[prompt].1)
        .collect();
    let device = steps.terms.device();
    let means = match steps.terms.dtype() {
        DType::F64 => Tensor::new(means, device)?,
        dtype => {
            let narrow: Vec<f32> = means.iter().map(|value| *value as f32).collect();
            Tensor::new(narrow, device)?.to_dtype(dtype)?
        }
    };
    Ok(means)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::Fixture;
    use super::super::gradient_check::{assert_gradients, assert_recorded, close};
    use super::super::scalar;
    use super::*;

    const PLAIN: ReferenceTerms = ReferenceTerms {
        kl_beta: 0.0,
        in_target: false,
    };
    const POSTERIOR: ReferenceTerms = ReferenceTerms {
        kl_beta: 0.0,
        in_target: true,
    };
    const PENALISED: ReferenceTerms = ReferenceTerms {
        kl_beta: 0.3,
        in_target: false,
    };

    fn per_prompt(
        fixture: &Fixture,
        log_pf: &Tensor,
        log_z: &Tensor,
        terms: ReferenceTerms,
    ) -> TrajectoryBalance {
        let trajectories = fixture.trajectories(log_pf);
        let log_z = LogZ::PerPrompt(log_z);
        trajectory_balance(&trajectories, &fixture.log_r, log_z, terms, Normaliser::Own).unwrap()
    }

    fn batch(fixture: &Fixture, log_pf: &Tensor, terms: ReferenceTerms) -> TrajectoryBalance {
        let trajectories = fixture.trajectories(log_pf);
        let log_z = LogZ::Batch(&fixture.prompt_of);
        trajectory_balance(&trajectories, &fixture.log_r, log_z, terms, Normaliser::Own).unwrap()
    }

    #[test]
    fn losses_and_gradients_match_pytorch() {
        let fixture = Fixture::new();
        let found = |terms| {
            scalar(&per_prompt(&fixture, &fixture.log_pf, &fixture.log_z, terms).loss).unwrap()
        };
        close(found(PLAIN), 7.695, 1e-9);
        close(found(POSTERIOR), 3.215, 1e-9);
        close(found(PENALISED), 8.3919, 1e-9);
        let estimate = batch(&fixture, &fixture.log_pf, PLAIN);
        close(scalar(&estimate.loss).unwrap(), 0.85, 1e-9);

        assert_recorded(
            &[&fixture.log_pf, &fixture.log_z],
            &[
                &[
                    -1.15, -1.15, -1.15, -0.05, -0.05, 0.0, -2.1, 0.0, 0.0, -1.4, -1.4, -1.4,
                ],
                &[-1.15, -0.05, -2.1, -1.4],
            ],
            |inputs| per_prompt(&fixture, &inputs[0], &inputs[1], PLAIN).loss,
        );
        assert_recorded(
            &[&fixture.log_pf],
            &[&[
                -1.105, -1.105, -1.105, -0.005, -0.005, 0.0, -2.235, 0.0, 0.0, -1.475, -1.475,
                -1.475,
            ]],
            |inputs| per_prompt(&fixture, &inputs[0], &fixture.log_z, PENALISED).loss,
        );
        assert_recorded(
            &[&fixture.log_pf],
            &[&[
                -0.55, -0.55, -0.55, 0.55, 0.55, 0.0, -0.35, 0.0, 0.0, 0.35, 0.35, 0.35,
            ]],
            |inputs| batch(&fixture, &inputs[0], PLAIN).loss,
        );
    }

    #[test]
    fn gradients_match_finite_differences() {
        let fixture = Fixture::new();
        let inputs = [fixture.log_pf.clone(), fixture.log_z.clone()];
        for terms in [PLAIN, POSTERIOR] {
            assert_gradients(&inputs, 1.0, |inputs| {
                per_prompt(&fixture, &inputs[0], &inputs[1], terms).loss
            });
            // The batch estimate is detached, and yet this is the gradient of the variance.
            assert_gradients(&inputs[..1], 1.0, |inputs| {
                batch(&fixture, &inputs[0], terms).loss
            });
        }
        // The difference moves the detached penalty too, by beta times what it moves `log pi`.
        assert_gradients(&inputs[..1], 1.3, |inputs| {
            per_prompt(&fixture, &inputs[0], &fixture.log_z, PENALISED).loss
        });
        let one = fixture.log_z.narrow(0, 0, 1).unwrap();
        assert_gradients(&[fixture.log_pf.clone(), one], 1.0, |inputs| {
            let trajectories = fixture.trajectories(&inputs[0]);
            let log_z = LogZ::Scalar(&inputs[1]);
            trajectory_balance(&trajectories, &fixture.log_r, log_z, PLAIN, Normaliser::Own)
                .unwrap()
                .loss
        });
    }

    #[test]
    fn sums_can_be_divided_by_lengths() {
        let fixture = Fixture::new();
        let loss = |inputs: &[Tensor]| {
            let options = TrajectoryBalanceOptions {
                reference: POSTERIOR,
                length_normalised: true,
            };
            let trajectories = fixture.trajectories(&inputs[0]);
            let log_z = LogZ::PerPrompt(&inputs[1]);
            trajectory_balance(
                &trajectories,
                &fixture.log_r,
                log_z,
                options,
                Normaliser::Own,
            )
            .unwrap()
            .loss
        };
        let inputs = [fixture.log_pf.clone(), fixture.log_z.clone()];
        // log Z + mean of log pi - log pi_ref - log R: the log-ratios sum up to 0.3, 0.3, -0.9, -0.5.
        let residuals = [
            0.7 + 0.1 - 1.0,
            0.7 + 0.15 + 0.5,
            -0.2 - 0.9 - 2.0,
            -0.2 - 0.5 / 3.0 - 0.3,
        ];
        let squares: f64 = residuals
            .iter()
            .map(|residual: &f64| residual.powi(2))
            .sum();
        close(scalar(&loss(&inputs)).unwrap(), squares / 4.0, 1e-12);
        assert_gradients(&inputs, 1.0, loss);
    }

    #[test]
    fn squares_can_be_weighted() {
        let fixture = Fixture::new();
        let weights = [0.8, 1.0, 1.28, 0.9];
        let weighted = |inputs: &[Tensor], weights: &[f64]| {
            let trajectories = fixture.trajectories(&inputs[0]);
            let (log_r, log_z) = (&fixture.log_r, LogZ::PerPrompt(&inputs[1]));
            let own = Normaliser::Own;
            weighted_trajectory_balance(&trajectories, log_r, log_z, PLAIN, Some(weights), own)
        };
        let inputs = [fixture.log_pf.clone(), fixture.log_z.clone()];
        // Residuals -2.3, -0.1, -4.2, -2.8; the sum is divided by the number of rows, not by that of the weights.
        let squares = 0.8 * 5.29 + 0.01 + 1.28 * 17.64 + 0.9 * 7.84;
        let loss = weighted(&inputs, &weights).unwrap().loss;
        close(scalar(&loss).unwrap(), squares / 4.0, 1e-12);
        assert_gradients(&inputs, 1.0, |inputs| {
            weighted(inputs, &weights).unwrap().loss
        });
        assert!(weighted(&inputs, &weights[1..]).is_err());
    }

    #[test]
    fn diagnostics_are_those_of_the_rows() {
        let fixture = Fixture::new();
        let result = per_prompt(&fixture, &fixture.log_pf, &fixture.log_z, PLAIN);
        // Residuals -2.3, -0.1, -4.2, -2.8.
        close(result.residual.mean, -2.35, 1e-12);
        close(result.residual.max_abs, 4.2, 1e-12);
        close(result.residual.root_mean_square, 7.695f64.sqrt(), 1e-12);
        close(result.count, 4.0, 0.0);
        close(result.log_z, 0.25, 1e-12);
        close(result.log_r, 0.7, 1e-12);
        close(result.log_pf, -1.9, 1e-12);
        // Log-ratios 0.3, 0.3, -0.9, -0.5.
        close(result.log_ratio.unwrap(), -0.2, 1e-12);
        let trajectories = fixture.trajectories(&fixture.log_pf);
        let start = initial_log_z(&trajectories, &fixture.log_r, PLAIN).unwrap();
        close(start, 2.6, 1e-12);
    }

    #[test]
    fn padding_changes_nothing() {
        let fixture = Fixture::new();
        let wide = fixture.padded(2, f64::NAN);
        for terms in [PLAIN, POSTERIOR, PENALISED] {
            let narrow = per_prompt(&fixture, &fixture.log_pf, &fixture.log_z, terms);
            let var = candle_core::Var::from_tensor(&wide.log_pf).unwrap();
            let result = per_prompt(&wide, &var, &wide.log_z, terms);
            close(
                scalar(&result.loss).unwrap(),
                scalar(&narrow.loss).unwrap(),
                1e-12,
            );
            assert_eq!(result.residual, narrow.residual);
            let gradient = result.loss.backward().unwrap();
            let gradient = gradient.get(&var).unwrap().to_vec2::<f64>().unwrap();
            for (row, length) in gradient.iter().zip(&wide.lengths) {
                assert!(row[..*length].iter().all(|g| g.is_finite()), "{row:?}");
                assert!(row[*length..].iter().all(|g| *g == 0.0), "{row:?}");
            }
        }
    }

    #[test]
    fn micro_batches_add_up_to_the_batch() {
        let fixture = Fixture::new();
        let whole = per_prompt(&fixture, &fixture.log_pf, &fixture.log_z, PENALISED);
        let sum: f64 = (0..4)
            .map(|row| {
                let row = fixture.row(row);
                let trajectories = row.trajectories(&row.log_pf);
                let total = Normaliser::Total(4.0);
                let log_z = LogZ::PerPrompt(&row.log_z);
                let part = trajectory_balance(&trajectories, &row.log_r, log_z, PENALISED, total);
                scalar(&part.unwrap().loss).unwrap()
            })
            .sum();
        close(sum, scalar(&whole.loss).unwrap(), 1e-12);
    }

    #[test]
    fn wrong_inputs_are_named() {
        let fixture = Fixture::new();
        let bare = Trajectories {
            reference: None,
            ..fixture.trajectories(&fixture.log_pf)
        };
        let log_z = LogZ::PerPrompt(&fixture.log_z);
        let error = |trajectories: &Trajectories<'_>, log_r: &Tensor, terms| {
            trajectory_balance(trajectories, log_r, log_z, terms, Normaliser::Own)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            error(&bare, &fixture.log_r, PENALISED),
            "the KL penalty needs the reference model's log-probabilities, and the trajectories carry none"
        );
        assert!(error(&bare, &fixture.log_r, POSTERIOR).contains("inside the target"));
        assert_eq!(
            error(&bare, &fixture.log_r.narrow(0, 0, 3).unwrap(), PLAIN),
            "`log_r` has shape [3], expected [4]"
        );
        for lengths in [&[3, 2, 0, 3][..], &[3, 2, 1, 4], &[3, 2]] {
            let wrong = Trajectories { lengths, ..bare };
            assert!(error(&wrong, &fixture.log_r, PLAIN).contains("expected"));
        }
    }

    #[test]
    fn huge_log_z_is_an_ordinary_number() {
        let fixture = Fixture::new();
        let cast = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap();
        let log_pf = cast(&fixture.log_pf);
        let log_r = (cast(&fixture.log_r) + 460.0).unwrap();
        let log_z = (cast(&fixture.log_z) + 460.0).unwrap();
        let trajectories = fixture.trajectories(&log_pf);
        let log_z = LogZ::PerPrompt(&log_z);
        let result =
            trajectory_balance(&trajectories, &log_r, log_z, PLAIN, Normaliser::Own).unwrap();
        assert_eq!(result.loss.dtype(), DType::F32);
        close(scalar(&result.loss).unwrap(), 7.695, 1e-3);
    }
}
