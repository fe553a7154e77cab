//! `GFlowNet`-DPO (GDPO; Kwon, Matsunaga and Kim 2024, arXiv 2410.15096): preference pairs as trajectories.
//!
//! Not to be confused with NVIDIA's GDPO (group reward-decoupled normalisation policy optimisation), which is a
//! relative of GRPO.
//!
//! Both completions of a pair are trajectories whose prefixes may all end (see [`super::terminable`]), with the
//! log-reward
//!
//! ```text
//! log R(s_t EOS) = sum_{i <= t} log pi_ref(y_i | s_{i-1}) + log softmax(z_ref(s_t) / gamma)[EOS] + alpha c [t = T]
//! ```
//!
//! `z_ref` being the reference model's logits and `c` 0 for the preferred completion, -8 for the other. Squared are
//! the transitions ([`Windows::Transitions`]).
//!
//! # The released code
//!
//! [`released_gdpo`] is what the code released with the paper computes. It differs: the reference's log-probability
//! is that of the *next* token alone, not the sum over the prefix; the transition into the completion's first state,
//! from the last but one place of the prompt, counts, its action being the token with id 0; so does the transition
//! out of the state before EOS into the one after it, except in the longest row of a batch, where that is cut off.

use candle_core::Tensor;

use super::residual::check_counts;
use super::terminable::{Terminable, TerminableTrajectories, modified_sub_trajectory_balance};
use super::{Normaliser, ObjectiveError, Windows, expect_shape, full_precision, keep, prefix_mask};
use crate::ml::kernels::sums::cumulative;

/// The preference term of the log-reward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PreferenceReward {
    /// Its weight.
    pub alpha: f64,
    /// `c` of a completion that was not preferred, below 0.
    pub rejected: f64,
}

impl Default for PreferenceReward {
    /// The values of the released code.
    fn default() -> Self {
        Self {
            alpha: 0.1,
            rejected: -8.0,
        }
    }
}

impl PreferenceReward {
    /// `alpha c` in the last of each row's `counts` states, 0 elsewhere.
    fn at_end(
        self,
        preferred: &[bool],
        last: impl Iterator<Item = usize>,
        like: &Tensor,
    ) -> Result<Tensor, ObjectiveError> {
        let (batch, columns) = like.dims2()?;
        if preferred.len() != batch {
            return Err(ObjectiveError::Length {
                what: "preferred",
                expected: batch,
                got: preferred.len(),
            });
        }
        let mut values = vec![0.0; batch * columns];
        for ((row, last), preferred) in last.enumerate().zip(preferred) {
            if !preferred {
                values[row * columns + last] = self.alpha * self.rejected;
            }
        }
        let values = Tensor::from_vec(values, (batch, columns), like.device())?;
        Ok(values.to_dtype(like.dtype())?)
    }
}

/// The frozen reference model's part.
#[derive(Debug, Clone, Copy)]
pub struct ReferenceReward<'a> {
    /// `log pi_ref(y_{t+1} | s_t)`, `(batch, time)`.
    pub log_pf: &'a Tensor,
    /// `log softmax(z_ref(s_t) / gamma)[EOS]`, `(batch, time + 1)`; that of a forced stop is ignored.
    pub log_stop: &'a Tensor,
}

/// Computes the loss on completions of which `preferred` says which were preferred.
pub fn gflownet_dpo(
    trajectories: &TerminableTrajectories<'_>,
    reference: ReferenceReward<'_>,
    preferred: &[bool],
    preference: PreferenceReward,
    windows: Windows,
    normaliser: Normaliser,
) -> Result<Terminable, ObjectiveError> {
    let (batch, time) = trajectories.log_pf.dims2()?;
    let TerminableTrajectories { tokens, forced, .. } = *trajectories;
    expect_shape("reference", reference.log_pf, &[batch, time])?;
    expect_shape("reference stop", reference.log_stop, &[batch, time + 1])?;
    check_counts(tokens, batch, time)?;
    let device = reference.log_pf.device();
    let log_pf = keep(
        &full_precision(&reference.log_pf.detach())?,
        &prefix_mask(tokens, time, device)?,
    )?;
    let start = Tensor::zeros((batch, 1), log_pf.dtype(), device)?;
    let so_far = Tensor::cat(&[&start, &cumulative(&log_pf)?], 1)?;
    let free: Vec<usize> = tokens
        .iter()
        .zip(forced)
        .map(|(tokens, forced)| tokens + usize::from(!forced))
        .collect();
    let stop = keep(
        &reference.log_stop.detach().to_dtype(log_pf.dtype())?,
        &prefix_mask(&free, time + 1, device)?,
    )?;
    let scores = preference.at_end(preferred, tokens.iter().copied(), &so_far)?;
    let log_r = ((so_far + stop)? + scores)?;
    modified_sub_trajectory_balance(trajectories, &log_r, windows, normaliser)
}

/// What the released code reads, `(batch, columns)`: column 0 is the last but one place of the prompt, columns 1 to
/// `n + 1` the states before each of a row's `n` tokens (EOS included) and after the last.
#[derive(Debug, Clone, Copy)]
pub struct ReleasedPositions<'a> {
    /// `log pi` of the next token; of the token with id 0 in the first and last column.
    pub log_pf: &'a Tensor,
    /// `log pi(EOS)`.
    pub log_stop: &'a Tensor,
    /// The same as `log_pf` under the reference model.
    pub reference: &'a Tensor,
    /// `log softmax(z_ref / gamma)[EOS]`.
    pub reference_log_stop: &'a Tensor,
    /// Columns of each row, `n + 2`.
    pub columns: &'a [usize],
    /// Rows with as many tokens as the longest of the batch.
    pub longest: &'a [bool],
    /// Which completions were preferred.
    pub preferred: &'a [bool],
}

/// Computes the loss as the released code does: the mean over rows of the sum of squared residuals, a scalar.
pub fn released_gdpo(
    positions: &ReleasedPositions<'_>,
    preference: PreferenceReward,
    normaliser: Normaliser,
) -> Result<Tensor, ObjectiveError> {
    let log_pf = full_precision(positions.log_pf)?;
    let (batch, columns) = log_pf.dims2()?;
    let shape = [batch, columns];
    expect_shape("log_stop", positions.log_stop, &shape)?;
    expect_shape("reference", positions.reference, &shape)?;
    expect_shape("reference stop", positions.reference_log_stop, &shape)?;
    check_counts(positions.columns, batch, columns)?;
    let mask = prefix_mask(positions.columns, columns, log_pf.device())?;
    let dtype = log_pf.dtype();
    let kept = |tensor: &Tensor| keep(&tensor.to_dtype(dtype)?, &mask);
    let log_r =
        (kept(&positions.reference.detach())? + kept(&positions.reference_log_stop.detach())?)?;
    let before_end = positions
        .columns
        .iter()
        .map(|columns| columns.saturating_sub(2));
    let scores = preference.at_end(positions.preferred, before_end, &log_r)?;
    let log_flow = ((log_r + scores)? - kept(positions.log_stop)?)?;
    let log_pf = kept(&log_pf)?;
    let from = (log_flow.narrow(1, 0, columns - 1)? + log_pf.narrow(1, 0, columns - 1)?)?;
    let residuals = (from - log_flow.narrow(1, 1, columns - 1)?)?;
    let transitions: Vec<usize> = positions
        .columns
        .iter()
        .zip(positions.longest)
        .map(|(columns, longest)| columns - 1 - usize::from(*longest))
        .collect();
    let mask = prefix_mask(&transitions, columns - 1, log_flow.device())?;
    Windows::Transitions.loss(&keep(&residuals, &mask)?, &transitions, normaliser)
}

#[cfg(test)]
mod tests {
    //! Losses and gradients recorded from PyTorch.
    //!
    //! Python (loops over the definitions; `lp`, `st`, `rf`, `rs` as in [`principled`], `pf` .. `pe` as in [`released`]):
    //! ```python
    //! def principled():
    //!     total = 0
    //!     for b in range(3):
    //!         def flow(t):
    //!             r = rf[b, :t].sum()
    //!             stop = 0.
    //!             if not (forced[b] and t == n[b]):
    //!                 r = r + rs[b, t]; stop = st[b, t]
    //!             if t == n[b] and not preferred[b]: r = r - 8 * alpha
    //!             return r - stop
    //!         for t in range(n[b]):
    //!             total = total + (flow(t) + lp[b, t] - flow(t + 1)) ** 2
    //!     return total / 3
    //! def released():
    //!     total = 0
    //!     for b in range(2):
    //!         bump = torch.zeros(5); bump[columns[b] - 2] = 0. if preferred[b] else -8 * alpha
    //!         F = pr[b] + pe[b] + bump - ps[b]
    //!         for k in range(columns[b] - 1 - longest[b]):
    //!             total = total + (F[k] - F[k + 1] + pf[b, k]) ** 2
    //!     return total / 2
    //! ```
    use candle_core::Device;

    use super::super::gradient_check::{assert_recorded, close};
    use super::super::scalar;
    use super::*;

    fn matrix<const C: usize>(rows: &[[f64; C]]) -> Tensor {
        Tensor::from_vec(rows.concat(), (rows.len(), C), &Device::Cpu).unwrap()
    }

    const JUNK: f64 = f64::NAN;

    fn policy() -> [Tensor; 2] {
        [
            matrix(&[[-0.5, -1.2, JUNK], [-0.9, JUNK, JUNK], [-0.7, -0.1, -1.5]]),
            matrix(&[
                [-2.0, -1.0, -0.3, JUNK],
                [-0.4, -0.6, JUNK, JUNK],
                [-3.0, -2.5, -1.0, JUNK],
            ]),
        ]
    }

    fn principled(inputs: &[Tensor], rejected: f64) -> Terminable {
        let reference = ReferenceReward {
            log_pf: &matrix(&[[-0.6, -0.8, JUNK], [-0.2, JUNK, JUNK], [-0.3, -0.5, -1.0]]),
            log_stop: &matrix(&[
                [-4.0, -2.0, -0.1, JUNK],
                [-3.0, -0.2, JUNK, JUNK],
                [-6.0, -5.0, -2.0, JUNK],
            ]),
        };
        let trajectories = TerminableTrajectories {
            log_pf: &inputs[0],
            log_stop: &inputs[1],
            tokens: &[2, 1, 3],
            forced: &[false, false, true],
        };
        let preference = PreferenceReward {
            rejected,
            ..PreferenceReward::default()
        };
        let preferred = [true, false, false];
        gflownet_dpo(
            &trajectories,
            reference,
            &preferred,
            preference,
            Windows::Transitions,
            Normaliser::Own,
        )
        .unwrap()
    }

    #[test]
    fn the_loss_and_its_gradients_match_pytorch() {
        let inputs = policy();
        let found = principled(&inputs, -8.0);
        close(scalar(&found.loss).unwrap(), 4.763_333_333_333_334, 1e-12);
        // Preferences count: without them the loss is another.
        let indifferent = principled(&inputs, 0.0);
        assert!((scalar(&indifferent.loss).unwrap() - 4.763_333_333_333_334).abs() > 0.1);
        let recorded: [&[f64]; 2] = [
            &[
                -0.6,
                -1.066_666_666_666_666_4,
                0.0,
                -1.933_333_333_333_333_1,
                0.0,
                0.0,
                -0.6,
                -0.733_333_333_333_333_4,
                -0.466_666_666_666_666_45,
            ],
            &[
                0.6,
                0.466_666_666_666_666_56,
                -1.066_666_666_666_666_4,
                0.0,
                1.933_333_333_333_333_1,
                -1.933_333_333_333_333_1,
                0.0,
                0.0,
                0.6,
                0.133_333_333_333_333_2,
                -0.266_666_666_666_666_94,
                0.0,
            ],
        ];
        assert_recorded(&[&inputs[0], &inputs[1]], &recorded, |inputs| {
            principled(inputs, -8.0).loss
        });
    }

    fn released(inputs: &[Tensor]) -> Tensor {
        let positions = ReleasedPositions {
            log_pf: &inputs[0],
            log_stop: &inputs[1],
            reference: &matrix(&[
                [-1.3, -0.6, -0.8, -0.9, -2.0],
                [-0.7, -0.2, -0.5, -1.4, JUNK],
            ]),
            reference_log_stop: &matrix(&[
                [-9.0, -4.0, -2.0, -0.1, -0.4],
                [-7.0, -3.0, -0.2, -0.3, JUNK],
            ]),
            columns: &[5, 4],
            longest: &[true, false],
            preferred: &[true, false],
        };
        released_gdpo(&positions, PreferenceReward::default(), Normaliser::Own).unwrap()
    }

    #[test]
    fn the_released_loss_and_its_gradients_match_pytorch() {
        let inputs = [
            matrix(&[
                [-1.1, -0.5, -1.2, -0.3, -2.2],
                [-0.8, -0.9, -0.6, -1.7, JUNK],
            ]),
            matrix(&[
                [-5.0, -2.0, -1.0, -0.3, -0.2],
                [-4.0, -0.4, -0.6, -0.9, JUNK],
            ]),
        ];
        close(
            scalar(&released(&inputs)).unwrap(),
            16.320_000_000_000_007,
            1e-12,
        );
        let recorded: [&[f64]; 2] = [
            &[-3.8, -1.3, -2.3, 0.0, 0.0, -1.7, -2.8, -0.7, 0.0, 0.0],
            &[3.8, -2.5, 1.0, -2.3, 0.0, 1.7, 1.1, -2.1, -0.7, 0.0],
        ];
        assert_recorded(&[&inputs[0], &inputs[1]], &recorded, released);
    }
}
