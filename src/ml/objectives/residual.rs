//! The residual of a transition on a token tree, shared by the flow-matching objectives.
//!
//! With one path to every state the backward policy is 1, and detailed balance (Bengio et al. 2023) of the
//! transition `s_t -> s_{t+1}` leaves
//!
//! ```text
//! delta_t = log F(s_t) + a_t - log F(s_{t+1}),      log F(s_n) = log R(x) at the terminal
//! ```
//!
//! where the *step term* `a_t` is `log pi(y_{t+1} | s_t)`, changed by the [`ReferenceTerms`]. The objectives
//! differ in `log F` and in which sums of `delta` they square:
//!
//! - trajectory balance: the sum over the whole trajectory, in which the inner flows cancel
//!   ([`sequence_residuals`]); `VarGrad` puts a batch estimate for `log F(s_0)`;
//! - detailed balance: every `delta_t` alone ([`transition_residuals`]);
//! - forward-looking: the same with `log F(s) = log F~(s) + log R(s)`, a potential shaping
//!   ([`super::forward_looking`]).
//!
//! Sub-trajectory objectives square sums of `delta` over windows, so they fit in here too; those with
//! terminable prefixes put `log R(s EOS) - log pi(EOS | s)` for `log F(s)`.
//!
//! # Indexing
//!
//! A row of `n` actions visits `s_0 .. s_n`: `s_0` is the prompt, action column `t` leads from `s_t` to
//! `s_{t+1}`, and `s_n` is the terminal. State tensors have `time + 1` columns; column `n` is the terminal's
//! and later ones are padding. Before the horizon the stop is an action (EOS, in `log_pf`, counted in `n`);
//! a trajectory that reaches the horizon is stopped by force, with probability 1 and so without an entry in
//! `log_pf`: the state after its last token *is* the terminal. Both cases are "the last action leads to the
//! terminal".

use candle_core::{DType, Tensor};

use super::{Normaliser, ObjectiveError, expect_shape, full_precision, keep, prefix_mask, vector};
use crate::ml::kernels::sums::{row_sums, spread, total};

/// A padded batch of trajectories under the policy.
#[derive(Debug, Clone, Copy)]
pub struct Trajectories<'a> {
    /// `log pi(y_{t+1} | s_t)`, `(batch, time)`.
    pub log_pf: &'a Tensor,
    /// Actions of each row (EOS included where it was an action), 1 to `time`.
    pub lengths: &'a [usize],
    /// `log pi_ref(y_{t+1} | s_t)` of the frozen reference model, `(batch, time)`; never differentiated.
    pub reference: Option<&'a Tensor>,
}

/// How the reference model enters a flow-matching objective.
///
/// With both fields at rest the optimum samples `R(y) / Z(x)`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ReferenceTerms {
    /// Coefficient of a KL penalty inside the reward, `log R - beta (log pi - log pi_ref)`.
    ///
    /// The penalty is part of the reward, so it is detached; the optimum has
    /// `pi^(1 + beta)` proportional to `R pi_ref^beta`. FlowHF's rows TB and FL+KL.
    pub kl_beta: f64,
    /// Whether the target is `pi_ref(y) R(y) / Z(x)`, the posterior under the reference.
    pub in_target: bool,
}

/// The step terms of a batch and what marks them.
#[derive(Debug, Clone)]
pub struct Steps {
    /// `a_t`, `(batch, time)`, 0 in padding.
    pub terms: Tensor,
    /// u8, `(batch, time)`: 1 for an action, 0 for padding.
    pub actions: Tensor,
    /// Sum of `log pi` of each row.
    pub log_pf: Vec<f64>,
    /// Sum of `log pi - log pi_ref` of each row, where there is a reference.
    pub log_ratio: Option<Vec<f64>>,
}

impl Steps {
    /// Computes the step terms
    /// `a_t = log pi_t - [in_target] log pi_ref_t + beta detach(log pi_t - log pi_ref_t)`.
    pub fn new(
        trajectories: &Trajectories<'_>,
        terms: ReferenceTerms,
    ) -> Result<Self, ObjectiveError> {
        let Trajectories {
            log_pf, lengths, ..
        } = *trajectories;
        let (batch, time) = log_pf.dims2()?;
        check_lengths(lengths, batch, time)?;
        if !(terms.kl_beta.is_finite() && terms.kl_beta >= 0.0) {
            return Err(ObjectiveError::Range {
                what: "kl_beta",
                value: terms.kl_beta,
                expected: "a number not below 0",
            });
        }
        let actions = prefix_mask(lengths, time, log_pf.device())?;
        let log_pf = keep(&full_precision(log_pf)?, &actions)?;
        let mut sum = log_pf.clone();
        let mut log_ratio = None;
        if let Some(reference) = trajectories.reference {
            expect_shape("reference", reference, &[batch, time])?;
            let reference = keep(&reference.detach().to_dtype(log_pf.dtype())?, &actions)?;
            let ratio = (log_pf.detach() - &reference)?;
            log_ratio = Some(sums_of_rows(&ratio)?);
            if terms.in_target {
                sum = (sum - &reference)?;
            }
            if terms.kl_beta > 0.0 {
                sum = (sum + (ratio * terms.kl_beta)?)?;
            }
        } else if terms.in_target {
            return Err(ObjectiveError::MissingReference {
                what: "reference inside the target",
            });
        } else if terms.kl_beta > 0.0 {
            return Err(ObjectiveError::MissingReference { what: "KL penalty" });
        }
        Ok(Self {
            terms: sum,
            actions,
            log_pf: sums_of_rows(&log_pf)?,
            log_ratio,
        })
    }

    /// Divides the step terms of each row by its number of actions, so that their sum is their mean.
    ///
    /// The optimum is no longer the target: a completion of `n` actions gets `(R / Z)^n`, up to one `Z` for all.
    #[must_use = "the steps themselves stay as they are"]
    pub fn divided_by_lengths(mut self, lengths: &[usize]) -> Result<Self, ObjectiveError> {
        let lengths: Vec<f64> = lengths.iter().map(|length| *length as f64).collect();
        let lengths = Tensor::new(lengths, self.terms.device())?.to_dtype(self.terms.dtype())?;
        let lengths = spread(&lengths.unsqueeze(1)?, self.terms.shape().clone())?;
        self.terms = self.terms.div(&lengths)?;
        Ok(self)
    }

    /// Returns the mean over rows of the summed `log pi - log pi_ref`: the plain (k1) estimate of the KL
    /// divergence to the reference, if the trajectories are samples of the policy.
    pub fn mean_log_ratio(&self) -> Option<f64> {
        self.log_ratio.as_deref().map(mean)
    }
}

/// Returns `delta_t = log F(s_t) + a_t - log F(s_{t+1})`, `(batch, time)`, 0 in padding.
///
/// `log_state_flow` is `(batch, time + 1)` with `log R(x)` in the terminal's column; see [`pin_terminal`].
pub fn transition_residuals(
    steps: &Steps,
    log_state_flow: &Tensor,
) -> Result<Tensor, ObjectiveError> {
    let (batch, time) = steps.terms.dims2()?;
    expect_shape("log_state_flow", log_state_flow, &[batch, time + 1])?;
    let from = log_state_flow.narrow(1, 0, time)?;
    let to = log_state_flow.narrow(1, 1, time)?;
    keep(&((&steps.terms + from)? - to)?, &steps.actions)
}

/// Returns `log F(s_0) + sum_t a_t - log R(x)`, `(batch)`: the sum of a row's transition residuals.
pub fn sequence_residuals(
    steps: &Steps,
    log_source_flow: &Tensor,
    log_r: &Tensor,
) -> Result<Tensor, ObjectiveError> {
    let batch = steps.terms.dim(0)?;
    expect_shape("log_r", log_r, &[batch])?;
    expect_shape("log_source_flow", log_source_flow, &[batch])?;
    Ok(((row_sums(&steps.terms)? + log_source_flow)? - log_r)?)
}

/// Joins inner log-flows and terminal log-rewards into `(batch, time + 1)`: row `b` holds `inner` in columns
/// before `lengths[b]`, `terminal` in column `lengths[b]`, and 0 in padding.
///
/// Whatever `inner` holds for a terminal is ignored. This is not a detail: with a free flow at the terminals
/// every policy has zero loss (choose `F(s') = F(s) pi(s' | s)` down the tree).
pub fn pin_terminal(
    inner: &Tensor,
    terminal: &Tensor,
    lengths: &[usize],
) -> Result<Tensor, ObjectiveError> {
    let (batch, states) = inner.dims2()?;
    expect_shape("log_r", terminal, &[batch, states])?;
    check_lengths(lengths, batch, states.saturating_sub(1))?;
    let before = prefix_mask(lengths, states, inner.device())?;
    let visited: Vec<usize> = lengths.iter().map(|length| length + 1).collect();
    let visited = prefix_mask(&visited, states, inner.device())?;
    let terminal = keep(&terminal.detach().to_dtype(inner.dtype())?, &visited)?;
    Ok(before.where_cond(inner, &terminal)?)
}

/// Residuals of one batch in numbers (nats).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResidualSummary {
    /// Mean; its sign says whether the policy's log-probability is too high (+) or too low.
    pub mean: f64,
    /// Root of the mean square.
    pub root_mean_square: f64,
    /// Greatest absolute value.
    pub max_abs: f64,
}

impl ResidualSummary {
    /// Summarises residuals.
    pub(super) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let (mut count, mut sum, mut squares, mut max_abs) = (0.0_f64, 0.0, 0.0, 0.0_f64);
        for value in values {
            count += 1.0;
            sum += value;
            squares += value * value;
            // `f64::max` would drop a NaN, which must stay visible.
            if value.is_nan() || value.abs() > max_abs {
                max_abs = value.abs();
            }
        }
        let count = count.max(1.0);
        Self {
            mean: sum / count,
            root_mean_square: (squares / count).sqrt(),
            max_abs,
        }
    }
}

/// Returns the sum of squares divided as `normaliser` says, for `rows` trajectories.
pub(super) fn squared(
    residuals: &Tensor,
    rows: usize,
    normaliser: Normaliser,
) -> Result<Tensor, ObjectiveError> {
    let divisor = normaliser.divisor(rows as f64, "trajectories")?;
    Ok((total(&residuals.sqr()?)? / divisor)?)
}

/// Checks one count for each of `batch` rows, 0 to `time`.
pub(super) fn check_counts(
    counts: &[usize],
    batch: usize,
    time: usize,
) -> Result<(), ObjectiveError> {
    let least_one: Vec<usize> = counts.iter().map(|count| (*count).max(1)).collect();
    check_lengths(&least_one, batch, time.max(1))
}

/// Checks one length for each of `batch` rows, 1 to `time`.
pub(super) fn check_lengths(
    lengths: &[usize],
    batch: usize,
    time: usize,
) -> Result<(), ObjectiveError> {
    if lengths.len() != batch {
        return Err(ObjectiveError::Length {
            what: "lengths",
            expected: batch,
            got: lengths.len(),
        });
    }
    match lengths.iter().position(|n| *n == 0 || *n > time) {
        Some(row) => Err(ObjectiveError::TrajectoryLength {
            row,
            length: lengths[row],
            time,
        }),
        None => Ok(()),
    }
}

/// Sums the rows of a matrix in f64.
fn sums_of_rows(tensor: &Tensor) -> Result<Vec<f64>, ObjectiveError> {
    vector(&row_sums(&tensor.detach().to_dtype(DType::F64)?)?)
}

/// Returns the mean, or 0 of nothing.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / (values.len() as f64).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_hides_no_nan() {
        for values in [
            [f64::NAN, 1.0, -2.0],
            [1.0, f64::NAN, -2.0],
            [1.0, -2.0, f64::NAN],
        ] {
            let summary = ResidualSummary::of(values);
            assert!(
                summary.mean.is_nan() && summary.max_abs.is_nan(),
                "{summary:?}"
            );
        }
        assert_eq!(ResidualSummary::of([1.0, -2.0]).max_abs, 2.0);
    }
}
