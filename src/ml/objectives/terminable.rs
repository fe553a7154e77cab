//! Objectives on prefixes that may all end: modified sub-trajectory balance, and `GFlowNet`-DPO.
//!
//! Where every prefix may stop, the flow of a state needs no head: `F(s) pi(EOS | s) = R(s EOS)` gives
//! (Deleu et al. 2022; Hu et al. 2024)
//!
//! ```text
//! log F(s_t) = log R(s_t EOS) - log pi(EOS | s_t)
//! delta_t    = log F(s_t) + log pi(y_{t+1} | s_t) - log F(s_{t+1}),      t = 0 .. T - 1
//! ```
//!
//! for the `T` tokens of a completion without its EOS; the EOS step holds by construction. At the horizon the stop
//! is forced, so `log pi(EOS | s_T)` is 0 there. [`Windows`] says which sums of `delta` are squared. The optimum
//! samples `y` with probability `R(y EOS) / Z`.

use candle_core::Tensor;

use super::residual::{ResidualSummary, check_counts, mean};
use super::{
    Normaliser, ObjectiveError, Windows, expect_shape, full_precision, keep, matrix, prefix_mask,
};

/// A padded batch of completions whose prefixes may all end.
#[derive(Debug, Clone, Copy)]
pub struct TerminableTrajectories<'a> {
    /// `log pi(y_{t+1} | s_t)`, `(batch, time)`.
    pub log_pf: &'a Tensor,
    /// `log pi(EOS | s_t)`, `(batch, time + 1)`; that of a forced stop is ignored.
    pub log_stop: &'a Tensor,
    /// Tokens of each row without the EOS, 0 to `time`.
    pub tokens: &'a [usize],
    /// Whether the horizon ended the row.
    pub forced: &'a [bool],
}

/// The loss of a batch.
#[derive(Debug, Clone)]
pub struct Terminable {
    /// Mean weighted square of window residuals in nats squared, a scalar; see [`Windows::units`].
    pub loss: Tensor,
    /// Mean `log F(s_0)`, an estimate of `log Z`.
    pub log_z: f64,
    /// Mean `log pi` of whole completions, their EOS included.
    pub log_pf: f64,
    /// Mean `log R` of whole completions.
    pub log_r: f64,
    /// Residuals of transitions.
    pub residual: ResidualSummary,
}

/// Computes modified sub-trajectory balance; `log_r` holds `log R(s_t EOS)`, `(batch, time + 1)`, and is not
/// differentiated.
pub fn modified_sub_trajectory_balance(
    trajectories: &TerminableTrajectories<'_>,
    log_r: &Tensor,
    windows: Windows,
    normaliser: Normaliser,
) -> Result<Terminable, ObjectiveError> {
    let TerminableTrajectories {
        log_pf,
        log_stop,
        tokens,
        forced,
    } = *trajectories;
    let (batch, time) = log_pf.dims2()?;
    expect_shape("log_stop", log_stop, &[batch, time + 1])?;
    expect_shape("log_r", log_r, &[batch, time + 1])?;
    check_counts(tokens, batch, time)?;
    if forced.len() != batch {
        return Err(ObjectiveError::Length {
            what: "forced",
            expected: batch,
            got: forced.len(),
        });
    }
    let device = log_pf.device();
    let log_pf = keep(
        &full_precision(log_pf)?,
        &prefix_mask(tokens, time, device)?,
    )?;
    let dtype = log_pf.dtype();
    let visited: Vec<usize> = tokens.iter().map(|tokens| tokens + 1).collect();
    let free: Vec<usize> = tokens
        .iter()
        .zip(forced)
        .map(|(tokens, forced)| tokens + usize::from(!forced))
        .collect();
    let log_stop = keep(
        &log_stop.to_dtype(dtype)?,
        &prefix_mask(&free, time + 1, device)?,
    )?;
    let log_r = keep(
        &log_r.detach().to_dtype(dtype)?,
        &prefix_mask(&visited, time + 1, device)?,
    )?;
    let log_flow = (&log_r - &log_stop)?;
    let from = log_flow.narrow(1, 0, time)?;
    let to = log_flow.narrow(1, 1, time)?;
    let residuals = keep(
        &((&log_pf + from)? - to)?,
        &prefix_mask(tokens, time, device)?,
    )?;
    let loss = windows.loss(&residuals, tokens, normaliser)?;
    let (log_flow, log_r) = (matrix(&log_flow)?, matrix(&log_r)?);
    let (log_pf, log_stop) = (matrix(&log_pf)?, matrix(&log_stop)?);
    let sums: Vec<f64> = log_pf.iter().map(|row| row.iter().sum()).collect();
    let values = matrix(&residuals)?;
    Ok(Terminable {
        loss,
        log_z: mean(&log_flow.iter().map(|row| row[0]).collect::<Vec<_>>()),
        log_pf: mean(&sums) + mean_at_end(&log_stop, tokens),
        log_r: mean_at_end(&log_r, tokens),
        residual: ResidualSummary::of(
            values
                .iter()
                .zip(tokens)
                .flat_map(|(row, tokens)| row[..*tokens].iter().copied()),
        ),
    })
}

/// Returns the mean over completions of a number of their states, `(batch, time + 1)`, in the last one.
pub fn mean_at_end(of_states: &[Vec<f64>], tokens: &[usize]) -> f64 {
    let rows = of_states.iter().zip(tokens);
    mean(&rows.map(|(row, tokens)| row[*tokens]).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::gradient_check::{assert_gradients, close};
    use super::super::scalar;
    use super::*;

    const TOKENS: [usize; 3] = [2, 0, 3];
    const FORCED: [bool; 3] = [false, false, true];

    fn tensors(junk: f64, extra: usize) -> [Tensor; 3] {
        let matrix = |rows: [&[f64]; 3], columns: usize| {
            let rows = rows.iter().flat_map(|row| {
                let mut row = row.to_vec();
                row.resize(columns + extra, junk);
                row
            });
            Tensor::from_vec(rows.collect(), (3, columns + extra), &Device::Cpu).unwrap()
        };
        [
            matrix([&[-0.5, -1.2], &[], &[-0.7, -0.1, -1.5]], 3),
            matrix([&[-2.0, -1.0, -0.3], &[-0.4], &[-3.0, -2.5, -1.0, junk]], 4),
            matrix([&[0.1, 0.4, 1.0], &[0.8], &[-0.4, 0.5, 0.9, 0.3]], 4),
        ]
    }

    fn loss(inputs: &[Tensor], log_r: &Tensor, windows: Windows) -> Terminable {
        let trajectories = TerminableTrajectories {
            log_pf: &inputs[0],
            log_stop: &inputs[1],
            tokens: &TOKENS,
            forced: &FORCED,
        };
        modified_sub_trajectory_balance(&trajectories, log_r, windows, Normaliser::Own).unwrap()
    }

    #[test]
    fn residuals_are_those_of_the_definition() {
        let [log_pf, log_stop, log_r] = tensors(0.0, 0);
        let found = loss(&[log_pf, log_stop], &log_r, Windows::Transitions);
        // log F of the first row: 2.1, 1.4, 1.3; of the last, forced at the end: 2.6, 3, 1.9, 0.3.
        let residuals = [
            2.1 - 0.5 - 1.4,
            1.4 - 1.2 - 1.3,
            2.6 - 0.7 - 3.0,
            3.0 - 0.1 - 1.9,
            1.9 - 1.5 - 0.3,
        ];
        let squares: f64 = residuals
            .iter()
            .map(|residual: &f64| residual.powi(2))
            .sum();
        close(scalar(&found.loss).unwrap(), squares / 3.0, 1e-12);
        close(found.log_z, (2.1 + 1.2 + 2.6) / 3.0, 1e-12);
        close(found.log_r, (1.0 + 0.8 + 0.3) / 3.0, 1e-12);
        close(found.log_pf, (-1.7 - 0.3 - 0.4 - 2.3) / 3.0, 1e-12);
        close(found.residual.max_abs, 1.1, 1e-12);
    }

    #[test]
    fn gradients_match_finite_differences_and_padding_changes_nothing() {
        for windows in [
            Windows::Transitions,
            Windows::WithinTrajectory { lambda: 0.9 },
            Windows::AcrossBatch { lambda: 1.0 },
        ] {
            let [log_pf, log_stop, log_r] = tensors(0.0, 0);
            assert_gradients(&[log_pf.clone(), log_stop.clone()], 1.0, |inputs| {
                loss(inputs, &log_r, windows).loss
            });
            let narrow = loss(&[log_pf, log_stop], &log_r, windows);
            let [log_pf, log_stop, log_r] = tensors(f64::NAN, 2);
            let wide = loss(&[log_pf, log_stop], &log_r, windows);
            let value = |found: &Terminable| scalar(&found.loss).unwrap();
            close(value(&wide), value(&narrow), 1e-12);
            assert_eq!(wide.residual, narrow.residual);
        }
    }
}
