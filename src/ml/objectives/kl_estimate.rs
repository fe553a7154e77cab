//! Estimates of the KL divergence to the reference model from sampled completions.
//!
//! The plain estimate, the mean over completions of `sum_t log pi_t - log pi_ref_t` (k1 of Schulman 2020,
//! "Approximating KL divergence"), is heavy-tailed: one completion of 50 nats decides it. Two steadier ones
//! stand beside it: the trimmed mean of the same sums (biased, blind to the tail on purpose: for controllers
//! and limits), and k3, `sum_t exp(-d_t) - 1 + d_t` with `d_t = log pi_t - log pi_ref_t` (unbiased, never
//! negative). All three estimate `KL(pi || pi_ref)` only if the completions were sampled from the policy.

use candle_core::Tensor;

use super::residual::{check_lengths, mean};
use super::{ObjectiveError, expect_shape, matrix};

/// KL divergence of a completion to the reference, in nats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KlEstimate {
    /// Mean of the summed log-ratios (k1); unbiased, may be negative.
    pub mean: f64,
    /// The same with a share of the sums left out at either end.
    pub trimmed: f64,
    /// k3; not negative.
    pub k3: f64,
    /// Completions.
    pub completions: usize,
}

impl KlEstimate {
    /// Estimates from pairs of rows (policy, reference) of log-probabilities of the same tokens; `trim` is the
    /// share left out at either end, 0 to below 0.5.
    pub fn of_rows<'a>(
        rows: impl IntoIterator<Item = (&'a [f64], &'a [f64])>,
        trim: f64,
    ) -> Result<Self, ObjectiveError> {
        let (mut sums, mut k3) = (Vec::new(), Vec::new());
        for (policy, reference) in rows {
            if policy.len() != reference.len() {
                return Err(ObjectiveError::Length {
                    what: "reference",
                    expected: policy.len(),
                    got: reference.len(),
                });
            }
            let (mut sum, mut positive) = (0.0, 0.0);
            for (policy, reference) in policy.iter().zip(reference) {
                let log_ratio = policy - reference;
                sum += log_ratio;
                positive += libm::expm1(-log_ratio) + log_ratio;
            }
            sums.push(sum);
            k3.push(positive);
        }
        if sums.is_empty() {
            return Err(ObjectiveError::Empty {
                what: "completions",
            });
        }
        Ok(Self {
            mean: mean(&sums),
            trimmed: trimmed_mean(&sums, trim)?,
            k3: mean(&k3),
            completions: sums.len(),
        })
    }

    /// Estimates from padded tensors `(batch, time)`; row `b` has `lengths[b]` tokens.
    pub fn of_tensors(
        log_probs: &Tensor,
        reference: &Tensor,
        lengths: &[usize],
        trim: f64,
    ) -> Result<Self, ObjectiveError> {
        let (batch, time) = log_probs.dims2()?;
        expect_shape("reference", reference, &[batch, time])?;
        check_lengths(lengths, batch, time)?;
        let (policy, reference) = (matrix(log_probs)?, matrix(reference)?);
        let rows = policy
            .iter()
            .zip(&reference)
            .zip(lengths)
            .map(|((policy, reference), length)| (&policy[..*length], &reference[..*length]));
        Self::of_rows(rows, trim)
    }
}

/// Returns the mean after leaving out `floor(trim * n)` of the least and of the greatest values.
///
/// A NaN sorts beyond infinity and so may be trimmed; [`KlEstimate::mean`] keeps it.
pub fn trimmed_mean(values: &[f64], trim: f64) -> Result<f64, ObjectiveError> {
    if !(0.0..0.5).contains(&trim) {
        return Err(ObjectiveError::Range {
            what: "trim",
            value: trim,
            expected: "a share from 0 to below 0.5",
        });
    }
    if values.is_empty() {
        return Err(ObjectiveError::Empty { what: "values" });
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let cut = (trim * values.len() as f64).floor() as usize;
    Ok(mean(&sorted[cut..values.len() - cut]))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::super::gradient_check::close;
    use super::*;

    /// Python:
    /// ```python
    /// import numpy as np
    /// p = np.array([[-1., -.5], [-.2, -2.], [-.7, -.1]]); q = np.array([[-1.3, -.4], [-.9, -1.], [-40., -.6]])
    /// d = p - q; print(d.sum(1).mean(), np.median(d.sum(1)), (np.exp(-d) - 1 + d).sum(1).mean())
    /// ```
    #[test]
    fn estimates_match_recorded_numbers() {
        let policy = Tensor::new(
            &[[-1.0, -0.5, f64::NAN], [-0.2, -2.0, 0.0], [-0.7, -0.1, 0.0]],
            &Device::Cpu,
        )
        .unwrap();
        let reference = Tensor::new(
            &[[-1.3, -0.4, 1.0], [-0.9, -1.0, 0.0], [-40.0, -0.6, 7.0]],
            &Device::Cpu,
        )
        .unwrap();
        let estimate = KlEstimate::of_tensors(&policy, &reference, &[2, 2, 2], 0.34).unwrap();
        close(estimate.mean, MEAN, 1e-12);
        close(estimate.trimmed, TRIMMED, 1e-12);
        close(estimate.k3, K3, 1e-12);
    }

    const MEAN: f64 = 13.233_333_333_333_333;
    const TRIMMED: f64 = 0.2;
    const K3: f64 = 13.122_462_310_240_15;

    #[test]
    fn k3_is_exact_in_expectation() {
        // One token, two outcomes: the expectation under the policy is the divergence itself.
        let (policy, reference) = ([0.9_f64, 0.1], [0.4_f64, 0.6]);
        let exact: f64 = (0..2)
            .map(|i| policy[i] * (policy[i] / reference[i]).ln())
            .sum();
        let expected: f64 = (0..2)
            .map(|i| {
                let rows = ([policy[i].ln()], [reference[i].ln()]);
                let one = KlEstimate::of_rows([(&rows.0[..], &rows.1[..])], 0.0).unwrap();
                policy[i] * one.k3
            })
            .sum();
        close(expected, exact, 1e-12);
    }

    #[test]
    fn trimming_ignores_the_tail() {
        let mut values = vec![1.0; 19];
        values.push(1e6);
        assert_eq!(trimmed_mean(&values, 0.05).unwrap(), 1.0);
        assert!(trimmed_mean(&values, 0.0).unwrap() > 1e4);
        assert!(trimmed_mean(&values, 0.5).is_err());
        assert!(trimmed_mean(&[], 0.1).is_err());
    }
}
