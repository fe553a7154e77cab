//! Rewards and advantages of proximal policy optimisation, on slices.
//!
//! One slice holds one completion, without padding, so that nothing here can mix rows. Values, rewards and
//! log-probabilities are f64; [`pad`] makes tensors of the results.

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};

use super::ObjectiveError;

/// Per-token estimate of the divergence from the reference that is taken off the reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KlPenalty {
    /// `log pi - log pi_ref`.
    #[default]
    Kl,
    /// `|log pi - log pi_ref|`.
    Abs,
    /// `(log pi - log pi_ref)^2 / 2`.
    Mse,
}

impl KlPenalty {
    fn of(self, log_ratio: f64) -> f64 {
        match self {
            Self::Kl => log_ratio,
            Self::Abs => log_ratio.abs(),
            Self::Mse => 0.5 * log_ratio * log_ratio,
        }
    }
}

/// Returns the reward of each token of a completion, `-beta penalty_t`, with `score` added at the last one
/// (Ziegler et al. 2019; TRL 0.4.7).
pub fn penalised_rewards(
    log_probs: &[f64],
    reference: &[f64],
    score: f64,
    beta: f64,
    penalty: KlPenalty,
) -> Result<Vec<f64>, ObjectiveError> {
    expect_length("reference", reference.len(), log_probs.len())?;
    let mut rewards: Vec<f64> = log_probs
        .iter()
        .zip(reference)
        .map(|(policy, reference)| -beta * penalty.of(policy - reference))
        .collect();
    match rewards.last_mut() {
        Some(last) => *last += score,
        None => return Err(ObjectiveError::Empty { what: "tokens" }),
    }
    Ok(rewards)
}

/// Advantages and value targets of one completion.
#[derive(Debug, Clone, PartialEq)]
pub struct Advantages {
    /// `A_t`.
    pub advantages: Vec<f64>,
    /// `A_t + V(s_t)`, what the value head is trained on.
    pub returns: Vec<f64>,
}

/// Computes generalised advantage estimates (Schulman et al. 2016, equation 16), the value after the last token
/// being 0:
///
/// ```text
/// d_t = r_t + gamma V(s_{t+1}) - V(s_t),      A_t = d_t + gamma lambda A_{t+1}
/// ```
pub fn generalised_advantages(
    rewards: &[f64],
    values: &[f64],
    gamma: f64,
    lambda: f64,
) -> Result<Advantages, ObjectiveError> {
    expect_length("values", values.len(), rewards.len())?;
    for (what, value) in [("gamma", gamma), ("lambda", lambda)] {
        if !(0.0..=1.0).contains(&value) {
            return Err(ObjectiveError::Range {
                what,
                value,
                expected: "a number from 0 to 1",
            });
        }
    }
    let mut advantages = vec![0.0; rewards.len()];
    let (mut later, mut next_value) = (0.0, 0.0);
    for t in (0..rewards.len()).rev() {
        let surprise = rewards[t] + gamma * next_value - values[t];
        later = surprise + gamma * lambda * later;
        advantages[t] = later;
        next_value = values[t];
    }
    let returns = advantages
        .iter()
        .zip(values)
        .map(|(advantage, value)| advantage + value)
        .collect();
    Ok(Advantages {
        advantages,
        returns,
    })
}

/// Shifts and scales all entries of `rows` together to mean 0 and (unbiased) variance 1, in place.
///
/// The whitening is not a sum over units: do it before a batch is split into micro-batches. A term of 1e-8 is
/// added to the variance, as in TRL 0.4.7.
pub fn whiten(rows: &mut [Vec<f64>]) -> Result<(), ObjectiveError> {
    let count = rows.iter().map(Vec::len).sum::<usize>() as f64;
    if count < 2.0 {
        return Err(ObjectiveError::Empty {
            what: "pairs of tokens",
        });
    }
    let mean = rows.iter().flatten().sum::<f64>() / count;
    let squares: f64 = rows.iter().flatten().map(|v| (v - mean) * (v - mean)).sum();
    let scale = (squares / (count - 1.0) + 1e-8).sqrt().recip();
    for value in rows.iter_mut().flatten() {
        *value = (*value - mean) * scale;
    }
    Ok(())
}

/// Whitens rows as [`whiten`] does; one entry alone, which is its own mean and has no variance to divide by, becomes 0.
pub fn whitened(mut rows: Vec<Vec<f64>>) -> Result<Vec<Vec<f64>>, ObjectiveError> {
    if rows.iter().map(Vec::len).sum::<usize>() < 2 {
        rows.iter_mut().flatten().for_each(|value| *value = 0.0);
    } else {
        whiten(&mut rows)?;
    }
    Ok(rows)
}

/// Pads rows with 0 on the right to `(rows, time)`.
pub fn pad(
    rows: &[Vec<f64>],
    time: usize,
    dtype: DType,
    device: &Device,
) -> Result<Tensor, ObjectiveError> {
    let mut values = vec![0.0f64; rows.len() * time];
    for (index, row) in rows.iter().enumerate() {
        if row.len() > time {
            return Err(ObjectiveError::TrajectoryLength {
                row: index,
                length: row.len(),
                time,
            });
        }
        values[index * time..index * time + row.len()].copy_from_slice(row);
    }
    Ok(Tensor::from_vec(values, (rows.len(), time), &Device::Cpu)?
        .to_dtype(dtype)?
        .to_device(device)?)
}

fn expect_length(what: &'static str, got: usize, expected: usize) -> Result<(), ObjectiveError> {
    if got == expected {
        Ok(())
    } else {
        Err(ObjectiveError::Length {
            what,
            expected,
            got,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::gradient_check::close;
    use super::*;

    /// Python (advantages from the definition, not the recursion):
    /// ```python
    /// import torch
    /// def gae(r, v, g, l):
    ///     n = len(r); d = [r[t] + g * (v[t + 1] if t + 1 < n else 0.) - v[t] for t in range(n)]
    ///     return [sum((g * l) ** k * d[t + k] for k in range(n - t)) for t in range(n)]
    /// lp = [[-1.1, -.4, -2.], [-.3, -.9]]; ref = [[-.8, -.9, -1.5], [-1., -.7]]; score = [1.5, -.6]
    /// v = [[.2, -.1, .4], [.5, .3]]
    /// def rewards(pen):
    ///     return [[-.2 * pen(a - b) + (s if t == len(x) - 1 else 0) for t, (a, b) in enumerate(zip(x, y))]
    ///             for x, y, s in zip(lp, ref, score)]
    /// for pen in [lambda d: d, abs, lambda d: d * d / 2]: print(rewards(pen))
    /// adv = [gae(r, w, .97, .9) for r, w in zip(rewards(lambda d: d), v)]
    /// print(adv, [[a + b for a, b in zip(x, y)] for x, y in zip(adv, v)])
    /// flat = torch.tensor([a for x in adv for a in x], dtype=torch.float64)
    /// print((flat - flat.mean()) / (flat.var(unbiased=True) + 1e-8).sqrt())
    /// ```
    #[test]
    fn rewards_advantages_and_whitening_match_recorded_numbers() {
        let all = |penalty| {
            [
                rewards(&[-1.1, -0.4, -2.0], &[-0.8, -0.9, -1.5], 1.5, penalty),
                rewards(&[-0.3, -0.9], &[-1.0, -0.7], -0.6, penalty),
            ]
        };
        let kl = all(KlPenalty::Kl);
        assert_rows(&kl, &[&[0.06, -0.1, 1.6], &[-0.14, -0.56]]);
        assert_rows(
            &all(KlPenalty::Abs),
            &[&[-0.06, -0.1, 1.4], &[-0.14, -0.64]],
        );
        assert_rows(
            &all(KlPenalty::Mse),
            &[&[-0.009, -0.025, 1.475], &[-0.049, -0.604]],
        );

        let values = [vec![0.2, -0.1, 0.4], vec![0.5, 0.3]];
        let found: Vec<Advantages> = kl
            .iter()
            .zip(&values)
            .map(|(rewards, values)| generalised_advantages(rewards, values, 0.97, 0.9).unwrap())
            .collect();
        let mut advantages: Vec<Vec<f64>> = found.iter().map(|a| a.advantages.clone()).collect();
        let returns: Vec<Vec<f64>> = found.iter().map(|a| a.returns.clone()).collect();
        assert_rows(
            &advantages,
            &[&[1.016_278_8, 1.4356, 1.2], &[-1.099_78, -0.86]],
        );
        assert_rows(
            &returns,
            &[&[1.216_278_8, 1.3356, 1.6], &[-0.599_78, -0.56]],
        );
        whiten(&mut advantages).unwrap();
        assert_rows(
            &advantages,
            &[
                &[
                    0.557_656_277_171_28,
                    0.902_620_474_050_609_9,
                    0.708_798_733_616_856_2,
                ],
                &[-1.183_167_999_043_323_5, -0.985_907_485_795_422_3],
            ],
        );
    }

    #[test]
    fn lambda_one_is_the_return_minus_the_value_and_lambda_zero_the_surprise() {
        let (rewards, values) = ([0.3, -0.2, 1.0], [0.5, 0.1, -0.4]);
        let whole = generalised_advantages(&rewards, &values, 1.0, 1.0).unwrap();
        assert_rows(&[whole.returns], &[&[1.1, 0.8, 1.0]]);
        let one_step = generalised_advantages(&rewards, &values, 1.0, 0.0).unwrap();
        assert_rows(&[one_step.advantages], &[&[-0.1, -0.7, 1.4]]);
    }

    #[test]
    fn whitened_rows_have_mean_0_and_variance_1_together() {
        let mut rows = vec![vec![5.0, 7.0], vec![], vec![-3.0]];
        whiten(&mut rows).unwrap();
        let flat: Vec<f64> = rows.concat();
        close(flat.iter().sum(), 0.0, 1e-12);
        close(flat.iter().map(|v| v * v).sum::<f64>() / 2.0, 1.0, 1e-8);
        let mut equal = vec![vec![2.0; 3]];
        whiten(&mut equal).unwrap();
        assert_eq!(equal, [vec![0.0; 3]]);
        assert!(whiten(&mut [vec![1.0]]).is_err());
    }

    #[test]
    fn padding_is_zero_and_rows_must_fit() {
        let rows = [vec![1.0], vec![2.0, 3.0]];
        let padded = pad(&rows, 3, DType::F32, &Device::Cpu).unwrap();
        assert_eq!(
            padded.to_vec2::<f32>().unwrap(),
            [[1.0, 0.0, 0.0], [2.0, 3.0, 0.0]]
        );
        assert!(pad(&rows, 1, DType::F32, &Device::Cpu).is_err());
    }

    #[test]
    fn wrong_inputs_are_named() {
        let error = penalised_rewards(&[0.1], &[], 1.0, 0.2, KlPenalty::Kl).unwrap_err();
        assert_eq!(error.to_string(), "`reference` has 0 entries, expected 1");
        assert!(penalised_rewards(&[], &[], 1.0, 0.2, KlPenalty::Kl).is_err());
        let error = generalised_advantages(&[1.0], &[1.0], 1.0, 1.5).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`lambda` is 1.5, expected a number from 0 to 1"
        );
        assert!(generalised_advantages(&[1.0], &[1.0, 2.0], 1.0, 1.0).is_err());
    }

    fn rewards(policy: &[f64], reference: &[f64], score: f64, penalty: KlPenalty) -> Vec<f64> {
        penalised_rewards(policy, reference, score, 0.2, penalty).unwrap()
    }

    #[track_caller]
    fn assert_rows(found: &[Vec<f64>], expected: &[&[f64]]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(*expected) {
                close(*found, *expected, 1e-9);
            }
        }
    }
}
