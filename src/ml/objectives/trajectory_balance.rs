//! Trajectory balance: one squared residual for each trajectory.
//!
//! Malkin et al. 2022, equation 14, on a tree (`log P_B = 0`):
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

/// Where the log-partition function comes from.
#[derive(Debug, Clone, Copy)]
pub enum LogZ<'a> {
    /// One trained number for all prompts, a scalar or `(1)`: the literal reading of the paper. With prompts
    /// of different `Z` it has no zero of the loss, and its optimum does not sample `R / Z`.
    Scalar(&'a Tensor),
    /// The output of a head on the prompt's last state, gathered for each row, `(batch)`.
    PerPrompt(&'a Tensor),
    /// The mean of `log R - sum_t a_t` over the rows of the same prompt, detached (`VarGrad`: Richter et al.
    /// 2020; Zhang et al. 2023, equation 6). `prompt_of[row]` names the prompt. The gradient is that of the
    /// variance of the residuals within prompts. Needs two completions of every prompt in the call.
    Batch(&'a [usize]),
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
    reference: ReferenceTerms,
    normaliser: Normaliser,
) -> Result<TrajectoryBalance, ObjectiveError> {
    let steps = Steps::new(trajectories, reference)?;
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
            value.to_dtype(dtype)?.reshape(1)?.broadcast_as(batch)?
        }
        LogZ::PerPrompt(values) => {
            expect_shape("log_z", values, &[batch])?;
            values.to_dtype(dtype)?
        }
        LogZ::Batch(prompt_of) => batch_log_z(&steps, &log_r, prompt_of)?,
    };
    let residuals = sequence_residuals(&steps, &log_z, &log_r)?;
    Ok(TrajectoryBalance {
        loss: squared(&residuals, batch, normaliser)?,
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
    reference: ReferenceTerms,
) -> Result<f64, ObjectiveError> {
    let steps = Steps::new(trajectories, reference)?;
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
