//! Proximal policy optimisation as `StackLLaMA` used it (TRL 0.4.7, June 2023).
//!
//! Schulman et al. 2017, equations 7 and 9, over the tokens of completions. With the ratio
//! `rho = pi / pi_old` of a token, its whitened advantage `A` and its return `G`:
//!
//! ```text
//! L_policy = mean max( -A rho, -A clip(rho, 1 - c, 1 + c) )
//! L_value  = mean max( (V - G)^2, (clip(V, V_old - c_v, V_old + c_v) - G)^2 ) / 2
//! L        = L_policy + vf_coef L_value
//! ```
//!
//! Rewards, advantages and their whitening are taken on slices before ([`super::advantage`]), once per
//! mini-batch as in TRL. The value head shares the trunk there, so both losses are added up.

use candle_core::Tensor;

use super::{Normaliser, ObjectiveError, expect_shape, keep, scalar};

/// Constants of the loss; the defaults are TRL 0.4.7's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PpoOptions {
    /// Clip range `c` of the ratio.
    pub clip_range: f64,
    /// Clip range `c_v` of the value.
    pub value_clip_range: f64,
    /// Weight of the value loss.
    pub value_coefficient: f64,
    /// Mean ratio above which a call is skipped.
    pub ratio_threshold: f64,
}

impl Default for PpoOptions {
    fn default() -> Self {
        Self {
            clip_range: 0.2,
            value_clip_range: 0.2,
            value_coefficient: 0.1,
            ratio_threshold: 10.0,
        }
    }
}

/// What the loss is computed from, each `(batch, time)`.
#[derive(Debug, Clone, Copy)]
pub struct PpoBatch<'a> {
    /// `log pi` of the sampled tokens.
    pub log_probs: &'a Tensor,
    /// `log pi` when they were sampled.
    pub old_log_probs: &'a Tensor,
    /// `V` now.
    pub values: &'a Tensor,
    /// `V` when the tokens were sampled.
    pub old_values: &'a Tensor,
    /// Whitened advantages.
    pub advantages: &'a Tensor,
    /// Value targets.
    pub returns: &'a Tensor,
    /// Not 0 (u8) for the tokens of completions.
    pub mask: &'a Tensor,
}

/// The loss of a batch. All diagnostics are means over this call's own tokens.
#[derive(Debug, Clone)]
pub struct Ppo {
    /// Policy loss plus weighted value loss, a scalar. Where the call is skipped it is a constant 0 without
    /// gradients.
    pub loss: Tensor,
    /// Tokens: the units of the mean.
    pub count: f64,
    /// Policy loss alone.
    pub policy_loss: f64,
    /// Value loss alone, before its coefficient.
    pub value_loss: f64,
    /// Mean ratio.
    pub ratio: f64,
    /// `mean (log pi - log pi_old)^2 / 2`, an estimate of the KL divergence to the old policy.
    pub approximate_kl: f64,
    /// `mean (log pi_old - log pi)`, the estimate that early stopping watches.
    pub policy_kl: f64,
    /// Share of tokens whose clipped policy term is the greater.
    pub clip_fraction: f64,
    /// Share of tokens whose clipped value term is the greater.
    pub value_clip_fraction: f64,
    /// Whether the mean ratio passed the threshold. TRL multiplies the loss by 0 and still takes an optimiser
    /// step (moments decay, weights move by momentum); a trainer that wants to take none looks here.
    pub skipped: bool,
}

/// Computes the clipped losses.
pub fn ppo(
    batch: &PpoBatch<'_>,
    options: PpoOptions,
    normaliser: Normaliser,
) -> Result<Ppo, ObjectiveError> {
    let (rows, time) = batch.log_probs.dims2()?;
    let dtype = batch.log_probs.dtype();
    expect_shape("mask", batch.mask, &[rows, time])?;
    let mask = batch.mask.ne(&batch.mask.zeros_like()?)?;
    let input = |what: &'static str, tensor: &Tensor| {
        expect_shape(what, tensor, &[rows, time])?;
        keep(&tensor.to_dtype(dtype)?, &mask)
    };
    let constant = |what, tensor: &Tensor| input(what, &tensor.detach());
    let log_probs = input("log_probs", batch.log_probs)?;
    let values = input("values", batch.values)?;
    let old_log_probs = constant("old_log_probs", batch.old_log_probs)?;
    let old_values = constant("old_values", batch.old_values)?;
    let advantages = constant("advantages", batch.advantages)?;
    let returns = constant("returns", batch.returns)?;

    let count = scalar(&mask.to_dtype(dtype)?.sum_all()?)?;
    let divisor = normaliser.divisor(count, "tokens")?;
    let own = count.max(1.0);
    // Padding has ratio 1, which must not count.
    let total = |tensor: &Tensor| -> Result<f64, ObjectiveError> {
        scalar(&keep(&tensor.detach(), &mask)?.sum_all()?)
    };

    let log_ratio = (log_probs - old_log_probs)?;
    let ratio = log_ratio.exp()?;
    let clipped_ratio = ratio.clamp(1.0 - options.clip_range, 1.0 + options.clip_range)?;
    let loss_plain = (&advantages * &ratio)?.neg()?;
    let loss_clipped = (&advantages * clipped_ratio)?.neg()?;
    let policy_sum = loss_plain.maximum(&loss_clipped)?.sum_all()?;

    let move_clipped =
        (&values - &old_values)?.clamp(-options.value_clip_range, options.value_clip_range)?;
    let error_plain = (&values - &returns)?.sqr()?;
    let error_clipped = ((&old_values + move_clipped)? - &returns)?.sqr()?;
    let value_sum = (error_plain.maximum(&error_clipped)?.sum_all()? * 0.5)?;

    let mean_ratio = total(&ratio)? / own;
    let skipped = mean_ratio > options.ratio_threshold;
    let loss = if skipped {
        policy_sum.detach().zeros_like()?
    } else {
        ((&policy_sum + (&value_sum * options.value_coefficient)?)? / divisor)?
    };
    let share = |greater: Tensor| -> Result<f64, ObjectiveError> {
        Ok(total(&greater.to_dtype(dtype)?)? / own)
    };
    Ok(Ppo {
        loss,
        count,
        policy_loss: scalar(&policy_sum)? / own,
        value_loss: scalar(&value_sum)? / own,
        ratio: mean_ratio,
        approximate_kl: total(&log_ratio.sqr()?)? * 0.5 / own,
        policy_kl: -total(&log_ratio)? / own,
        clip_fraction: share(loss_clipped.gt(&loss_plain)?)?,
        value_clip_fraction: share(error_clipped.gt(&error_plain)?)?,
        skipped,
    })
}

/// Whether to leave the remaining updates of a batch: `policy_kl > 1.5 target` (TRL 0.4.7).
pub fn early_stop(policy_kl: f64, target_kl: f64) -> bool {
    policy_kl > 1.5 * target_kl
}
