//! Policy gradients on groups of completions without a value head: REINFORCE with leave-one-out, GRPO and its
//! descendants.
//!
//! With the log-ratio `d_t = log pi(y_t) - log pi_old(y_t)` of a token, the ratio `w_t` of its level, an advantage `A_t`
//! and a weight `u_t` that corrects for the sampler (1 unless stated):
//!
//! ```text
//! w_t = exp(d_t)                        token        (Schulman et al. 2017)
//!     = exp(mean_t d_t)                 sequence     (GSPO: Zheng et al. 2025, equation 7)
//!     = exp(sum_t d_t)                  completion   (RLOO: Ahmadian et al. 2024)
//! q_t = -u_t min( min(w_t, c) A_t, clip(w_t, 1 - low, 1 + high) A_t ) + beta K_t - h H_t
//! ```
//!
//! `K_t` estimates the divergence from the reference with `l_t = log pi - log pi_ref` (Schulman 2020): k1 = `l`,
//! k2 = `l^2 / 2`, k3 = `exp(-l) - 1 + l`. As a loss, k1 has a gradient whose mean is zero, and k3 that of the *forward*
//! divergence. *Corrected*, `w_t K_t`, the gradient of k3 is that of the reverse divergence whatever drew the tokens
//! (DeepSeek-V3.2; TRL's `use_bias_correction_kl`). `H_t` is the entropy of the policy. The loss is a mean of `q` over
//! tokens, over completions of means over their tokens, or a sum over tokens by completions times horizon (Dr. GRPO:
//! Liu et al. 2025).

use candle_core::Tensor;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Normaliser, ObjectiveError, clamped, expect_shape, full_precision, keep, prefix_mask, scalar,
};
use crate::ml::kernels::pointwise::exp;
use crate::ml::kernels::sums::{row_sums, spread, total};

/// Of what the ratio to the old policy is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RatioLevel {
    /// Each token.
    Token,
    /// The geometric mean over a completion's tokens (GSPO).
    Sequence,
    /// The product over a completion's tokens (RLOO).
    Completion,
}

/// Over what a loss is a mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MeanOver {
    /// All tokens of a step alike (DAPO).
    Tokens,
    /// Completions, of each the mean over its tokens (GRPO).
    Completions,
    /// Completions, of each the sum over its tokens divided by the horizon (Dr. GRPO).
    Horizon,
}

/// An estimate of the divergence from the reference, token by token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// `l = log pi - log pi_ref`.
    K1,
    /// `l^2 / 2`.
    K2,
    /// `exp(-l) - 1 + l`.
    K3,
}

impl KlEstimator {
    /// Returns the estimate at one token.
    pub fn of(self, log_ratio: f64) -> f64 {
        match self {
            Self::K1 => log_ratio,
            Self::K2 => 0.5 * log_ratio * log_ratio,
            Self::K3 => libm::expm1(-log_ratio) + log_ratio,
        }
    }

    fn of_tensor(self, log_ratio: &Tensor) -> Result<Tensor, ObjectiveError> {
        Ok(match self {
            Self::K1 => log_ratio.clone(),
            Self::K2 => (log_ratio.sqr()? * 0.5)?,
            Self::K3 => ((exp(&log_ratio.neg()?)? - 1.0)? + log_ratio)?,
        })
    }
}

/// A divergence term of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KlTerm {
    /// Its coefficient.
    pub coefficient: f64,
    /// What estimates it.
    pub estimator: KlEstimator,
    /// Whether it is multiplied by the ratio to the old policy.
    pub corrected: bool,
}

/// The loss of a policy gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicyGradientOptions {
    /// Of what the ratio is taken.
    pub ratio: RatioLevel,
    /// How far below 1 the ratio counts.
    pub clip_low: f64,
    /// How far above 1 the ratio counts.
    pub clip_high: f64,
    /// The greatest ratio that counts, if there is one (two-sided clipping). Where the advantage is above 0 `clip_high` is
    /// the lower bound unless the ceiling is below it.
    pub clip_ceiling: Option<f64>,
    /// The divergence term, if there is one.
    pub kl: Option<KlTerm>,
    /// Weight of the entropy.
    pub entropy_bonus: f64,
    /// Over what the loss is a mean.
    pub mean: MeanOver,
    /// The horizon, in tokens.
    pub horizon: usize,
}

impl PolicyGradientOptions {
    /// Returns the units of the loss's mean in completions of these lengths; those that are masked have length 0.
    pub fn units(&self, lengths: &[usize]) -> f64 {
        match self.mean {
            MeanOver::Tokens => lengths.iter().sum::<usize>() as f64,
            MeanOver::Completions => lengths.len() as f64,
            MeanOver::Horizon => (lengths.len() * self.horizon) as f64,
        }
    }
}

/// What the loss is computed from; tensors are `(rows, time)`.
#[derive(Debug, Clone, Copy)]
pub struct PolicyGradientBatch<'a> {
    /// `log pi` of the tokens.
    pub log_probs: &'a Tensor,
    /// `log pi_old`; that of the policy as it is, detached, if absent.
    pub old_log_probs: Option<&'a Tensor>,
    /// `log pi_ref`.
    pub reference: Option<&'a Tensor>,
    /// Advantages.
    pub advantages: &'a Tensor,
    /// `u_t`.
    pub importance: Option<&'a Tensor>,
    /// Entropies of the policy, which are differentiated where there is a bonus.
    pub entropies: Option<&'a Tensor>,
    /// Tokens of each completion; 0 masks one.
    pub lengths: &'a [usize],
}

/// The loss of some completions; all other numbers are means over tokens.
#[derive(Debug, Clone)]
pub struct PolicyGradient {
    /// A scalar.
    pub loss: Tensor,
    /// Tokens.
    pub tokens: f64,
    /// Mean ratio.
    pub ratio: f64,
    /// Share of tokens whose ratio is below the range and has an advantage below 0, or above it with one above 0: those
    /// without a gradient.
    pub clip_fraction: f64,
    /// `mean d^2 / 2`, an estimate of the divergence from the old policy.
    pub approximate_kl: f64,
    /// The divergence term before its coefficient, if there is one.
    pub kl: Option<f64>,
}

/// Computes the loss.
pub fn policy_gradient(
    batch: &PolicyGradientBatch<'_>,
    options: &PolicyGradientOptions,
    normaliser: Normaliser,
) -> Result<PolicyGradient, ObjectiveError> {
    let (rows, time) = batch.log_probs.dims2()?;
    let lengths = batch.lengths;
    if lengths.len() != rows {
        return Err(ObjectiveError::Length {
            what: "lengths",
            expected: rows,
            got: lengths.len(),
        });
    }
    let log_probs = full_precision(batch.log_probs)?;
    let (dtype, device) = (log_probs.dtype(), log_probs.device().clone());
    let mask = prefix_mask(lengths, time, &device)?;
    let input = |what: &'static str, tensor: &Tensor| {
        expect_shape(what, tensor, &[rows, time])?;
        keep(&tensor.to_dtype(dtype)?, &mask)
    };
    let constant = |what, tensor: &Tensor| input(what, &tensor.detach());
    let log_probs = input("log_probs", &log_probs)?;
    let old = match batch.old_log_probs {
        Some(old) => constant("old_log_probs", old)?,
        None => log_probs.detach(),
    };
    let advantages = constant("advantages", batch.advantages)?;
    let divisor = normaliser.divisor(options.units(lengths), "completions")?;
    let tokens = lengths
        .iter()
        .map(|length| (*length).min(time))
        .sum::<usize>() as f64;

    // Numbers of rows, given to each of their tokens.
    let per_row = |values: Vec<f64>| -> Result<Tensor, ObjectiveError> {
        Ok(Tensor::from_vec(values, (rows, 1), &device)?.to_dtype(dtype)?)
    };
    let inverse_lengths = || -> Vec<f64> {
        let inverse = |length: &usize| 1.0 / (*length).max(1) as f64;
        lengths.iter().map(inverse).collect()
    };
    let log_ratio = (&log_probs - old)?;
    let level = match options.ratio {
        RatioLevel::Token => log_ratio.clone(),
        RatioLevel::Completion => spread(&row_sums(&log_ratio)?.unsqueeze(1)?, (rows, time))?,
        RatioLevel::Sequence => {
            let sums = row_sums(&log_ratio)?.unsqueeze(1)?;
            spread(&(sums * per_row(inverse_lengths())?)?, (rows, time))?
        }
    };
    let ratio = exp(&level)?;
    let clipped = clamped(&ratio, 1.0 - options.clip_low, 1.0 + options.clip_high)?;
    let bounded = match options.clip_ceiling {
        Some(ceiling) => clamped(&ratio, 0.0, ceiling)?,
        None => ratio.clone(),
    };
    let free = (bounded * &advantages)?.neg()?;
    let bound = (clipped * &advantages)?.neg()?;
    let mut losses = free.maximum(&bound)?;
    if let Some(importance) = batch.importance {
        losses = (losses * constant("importance", importance)?)?;
    }
    // Padding has ratio 1, which must not count.
    let sum = |tensor: &Tensor| -> Result<f64, ObjectiveError> {
        scalar(&total(&keep(&tensor.detach(), &mask)?)?)
    };
    let own = tokens.max(1.0);
    let mut divergence = None;
    if let Some(term) = options.kl {
        let Some(reference) = batch.reference else {
            return Err(ObjectiveError::MissingReference { what: "KL term" });
        };
        let reference = constant("reference", reference)?;
        let mut kl = term.estimator.of_tensor(&(&log_probs - reference)?)?;
        divergence = Some(sum(&kl)? / own);
        if term.corrected {
            kl = (kl * &ratio)?;
        }
        losses = (losses + (kl * term.coefficient)?)?;
    }
    if options.entropy_bonus != 0.0 {
        let Some(entropies) = batch.entropies else {
            return Err(ObjectiveError::Missing {
                what: "entropies",
                term: "entropy bonus",
            });
        };
        losses = (losses - (input("entropies", entropies)? * options.entropy_bonus)?)?;
    }
    if options.mean == MeanOver::Completions {
        losses = (losses * spread(&per_row(inverse_lengths())?, (rows, time))?)?;
    }
    let loss = (total(&keep(&losses, &mask)?)? / divisor)?;
    let is_clipped = bound.gt(&free)?.to_dtype(dtype)?;
    Ok(PolicyGradient {
        loss,
        tokens,
        ratio: sum(&ratio)? / own,
        clip_fraction: sum(&is_clipped)? / own,
        approximate_kl: sum(&log_ratio.sqr()?)? * 0.5 / own,
        kl: divergence,
    })
}

/// Returns what is taken off the reward of a completion that comes near the horizon or reaches it (DAPO: Yu et al. 2025,
/// equation 13): from 0 at `horizon - buffer` tokens to -1 at `horizon`.
pub fn overlong_penalty(length: usize, horizon: usize, buffer: usize) -> f64 {
    let free = horizon.saturating_sub(buffer);
    if length <= free {
        0.0
    } else if length <= horizon {
        -((length - free) as f64) / buffer as f64
    } else {
        -1.0
    }
}

/// Returns the reward to come at each token of a completion whose `reward` comes at its end, `beta` times the divergence
/// being taken off at each token: the returns of REINFORCE++ (Hu 2025) without a discount.
pub fn returns(reward: f64, log_ratios: &[f64], beta: f64, estimator: KlEstimator) -> Vec<f64> {
    let mut to_come = reward;
    let mut returns: Vec<f64> = log_ratios
        .iter()
        .rev()
        .map(|log_ratio| {
            to_come -= beta * estimator.of(*log_ratio);
            to_come
        })
        .collect();
    returns.reverse();
    returns
}

/// How ratios between trainer and sampler become weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Correction {
    /// Ratios beyond the bounds count as the bounds.
    Truncate,
    /// What is beyond the bounds counts nothing.
    Mask,
}

/// Returns the weight of each token of a completion that a sampler drew with log-probabilities `sampler`, `policy` being
/// those of the policy at that time: `exp(log pi_old - log mu)`, of tokens or of whole sequences, within bounds.
pub fn sampler_weights(
    policy: &[f64],
    sampler: &[f64],
    of_sequences: bool,
    correction: Correction,
    least: f64,
    greatest: f64,
) -> Vec<f64> {
    let differences = policy
        .iter()
        .zip(sampler)
        .map(|(policy, sampler)| policy - sampler);
    let log_ratios: Vec<f64> = if of_sequences {
        vec![differences.sum(); policy.len()]
    } else {
        differences.collect()
    };
    let bounded = |log_ratio: f64| {
        let ratio = libm::exp(log_ratio);
        match correction {
            Correction::Truncate => ratio.clamp(least, greatest),
            Correction::Mask if (least..=greatest).contains(&ratio) => ratio,
            Correction::Mask => 0.0,
        }
    };
    log_ratios.into_iter().map(bounded).collect()
}

#[cfg(test)]
mod tests;
