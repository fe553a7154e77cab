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
/// TRL 0.4.7 does this for each mini-batch, before it is split into micro-batches: do the same, the whitening
/// is not a sum over units. A term of 1e-8 is added to the variance.
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
