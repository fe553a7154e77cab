//! Importance weights of samples that an earlier policy drew (`FlowRL`: Zhu et al. 2025).
//!
//! ```text
//! w = clip( exp( sum_t log pi(y_t) - log pi_old(y_t) ), least, greatest )
//! ```
//!
//! The paper clips as PPO does; the authors' code cuts at 10 alone, and a recipe of verl at 0.8 and 1.28.
//!
//! Weights are numbers: no gradient goes through them.

use std::ops::RangeInclusive;

use candle_core::Tensor;

use super::{ObjectiveError, full_precision, keep, prefix_mask, vector};
use crate::ml::kernels::sums::row_sums;

/// Returns the summed log-probabilities of each row's actions, `log_pf` being `(rows, time)`.
pub fn summed_log_probs(log_pf: &Tensor, lengths: &[usize]) -> Result<Vec<f64>, ObjectiveError> {
    super::residual::check_lengths(lengths, log_pf.dim(0)?, log_pf.dim(1)?)?;
    let mask = prefix_mask(lengths, log_pf.dim(1)?, log_pf.device())?;
    vector(&row_sums(&keep(
        &full_precision(&log_pf.detach())?,
        &mask,
    )?)?)
}

/// Returns each row's weight, from the summed log-probabilities of its actions under the policy as it is and under the
/// one that drew them.
pub fn importance_weights(
    now: &[f64],
    drawn: &[f64],
    bounds: RangeInclusive<f64>,
) -> Result<Vec<f64>, ObjectiveError> {
    if now.len() != drawn.len() {
        return Err(ObjectiveError::Length {
            what: "drawn",
            expected: now.len(),
            got: drawn.len(),
        });
    }
    let pairs = now.iter().zip(drawn);
    Ok(pairs
        .map(|(now, drawn)| libm::exp(now - drawn).clamp(*bounds.start(), *bounds.end()))
        .collect())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn weights_are_clipped_ratios_of_whole_completions() {
        let log_pf = [[-1.0, -0.5, f64::NAN], [-2.0, -0.25, -0.5]];
        let log_pf = Tensor::new(&log_pf, &Device::Cpu).unwrap();
        let now = summed_log_probs(&log_pf, &[2, 3]).unwrap();
        assert_eq!(now, [-1.5, -2.75]);
        let weights = importance_weights(&now, &[-1.6, -2.75], 0.8..=1.28).unwrap();
        assert!((weights[0] - 0.1f64.exp()).abs() < 1e-12);
        assert!((weights[1] - 1.0).abs() < 1e-12);
        let far = importance_weights(&now, &[-9.0, 9.0], 0.8..=1.28);
        assert_eq!(far.unwrap(), [1.28, 0.8]);
        assert!(importance_weights(&now, &[0.0], 0.8..=1.28).is_err());
        assert!(summed_log_probs(&log_pf, &[2, 4]).is_err());
    }
}
