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
//! Rewards, advantages and their whitening are taken on slices before ([`super::advantage`]). TRL whitens what
//! one call of its loss sees and, where it accumulates gradients, adds up the *means* of those calls; for the
//! same, whiten each micro-batch alone and divide by [`Normaliser::Total`] of its count times their number.

use candle_core::Tensor;

use super::{
    Normaliser, ObjectiveError, clamped, count_of, expect_shape, full_precision, keep, scalar,
};
use crate::ml::kernels::pointwise::exp;
use crate::ml::kernels::sums;

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
    let log_probs = full_precision(batch.log_probs)?;
    let dtype = log_probs.dtype();
    expect_shape("mask", batch.mask, &[rows, time])?;
    let mask = batch.mask.ne(&batch.mask.zeros_like()?)?;
    let input = |what: &'static str, tensor: &Tensor| {
        expect_shape(what, tensor, &[rows, time])?;
        keep(&tensor.to_dtype(dtype)?, &mask)
    };
    let constant = |what, tensor: &Tensor| input(what, &tensor.detach());
    let log_probs = input("log_probs", &log_probs)?;
    let values = input("values", batch.values)?;
    let old_log_probs = constant("old_log_probs", batch.old_log_probs)?;
    let old_values = constant("old_values", batch.old_values)?;
    let advantages = constant("advantages", batch.advantages)?;
    let returns = constant("returns", batch.returns)?;

    let count = count_of(&mask)?;
    let divisor = normaliser.divisor(count, "tokens")?;
    let own = count.max(1.0);
    // Padding has ratio 1, which must not count.
    let total = |tensor: &Tensor| -> Result<f64, ObjectiveError> {
        scalar(&sums::total(&keep(&tensor.detach(), &mask)?)?)
    };

    let log_ratio = (log_probs - old_log_probs)?;
    let ratio = exp(&log_ratio)?;
    let clipped_ratio = clamped(&ratio, 1.0 - options.clip_range, 1.0 + options.clip_range)?;
    let loss_plain = (&advantages * &ratio)?.neg()?;
    let loss_clipped = (&advantages * clipped_ratio)?.neg()?;
    let policy_sum = sums::total(&loss_plain.maximum(&loss_clipped)?)?;

    let value_range = options.value_clip_range;
    let move_clipped = clamped(&(&values - &old_values)?, -value_range, value_range)?;
    let error_plain = (&values - &returns)?.sqr()?;
    let error_clipped = ((&old_values + move_clipped)? - &returns)?.sqr()?;
    let value_sum = (sums::total(&error_plain.maximum(&error_clipped)?)? * 0.5)?;

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

/// Whether to leave the remaining updates of a batch: `policy_kl > 1.5 target` (TRL 0.4.7, which looks at the
/// estimate of each mini-batch after the step on it).
pub fn early_stop(policy_kl: f64, target_kl: f64) -> bool {
    policy_kl > 1.5 * target_kl
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::super::advantage::{
        Advantages, KlPenalty, generalised_advantages, pad, penalised_rewards, whiten,
    };
    use super::super::gradient_check::{assert_gradients, assert_recorded, close};
    use super::super::scalar;
    use super::*;

    /// Entries that mask out hold numbers that would show.
    struct Fixture {
        log_probs: Tensor,
        old_log_probs: Tensor,
        values: Tensor,
        old_values: Tensor,
        advantages: Tensor,
        returns: Tensor,
        mask: Tensor,
    }

    impl Fixture {
        fn new() -> Self {
            let make = |values: &[[f64; 3]; 2]| Tensor::new(values, &Device::Cpu).unwrap();
            Self {
                log_probs: make(&[[-0.8, -0.45, -2.1], [-0.9, -0.6, 5.0]]),
                old_log_probs: make(&[[-1.1, -0.4, -2.0], [-0.3, -0.9, 7.0]]),
                values: make(&[[0.5, -0.15, 0.3], [0.1, 0.9, 3.0]]),
                old_values: make(&[[0.2, -0.1, 0.4], [0.5, 0.3, -2.0]]),
                advantages: make(&[[0.9, -0.3, 1.1], [0.7, -1.4, 4.0]]),
                returns: make(&[[1.0, 0.2, -0.5], [-0.1, 0.6, 8.0]]),
                mask: Tensor::new(&[[1u8, 1, 1], [1, 1, 0]], &Device::Cpu).unwrap(),
            }
        }

        fn batch<'a>(&'a self, log_probs: &'a Tensor, values: &'a Tensor) -> PpoBatch<'a> {
            PpoBatch {
                log_probs,
                old_log_probs: &self.old_log_probs,
                values,
                old_values: &self.old_values,
                advantages: &self.advantages,
                returns: &self.returns,
                mask: &self.mask,
            }
        }

        fn loss(&self, log_probs: &Tensor, values: &Tensor) -> Ppo {
            let batch = self.batch(log_probs, values);
            ppo(&batch, PpoOptions::default(), Normaliser::Own).unwrap()
        }
    }

    /// Python:
    /// ```python
    /// import torch
    /// T = lambda x: torch.tensor(x, dtype=torch.float64)
    /// m = T([[1, 1, 1], [1, 1, 0]])
    /// new = T([[-.8, -.45, -2.1], [-.9, -.6, 5.]]).requires_grad_(); old = T([[-1.1, -.4, -2.], [-.3, -.9, 7.]])
    /// val = T([[.5, -.15, .3], [.1, .9, 3.]]).requires_grad_(); oldv = T([[.2, -.1, .4], [.5, .3, -2.]])
    /// A = T([[.9, -.3, 1.1], [.7, -1.4, 4.]]); G = T([[1., .2, -.5], [-.1, .6, 8.]])
    /// rho = (new - old).exp(); p1 = -A * rho; p2 = -A * rho.clamp(.8, 1.2)
    /// vc = torch.max(torch.min(val, oldv + .2), oldv - .2); e1 = (val - G) ** 2; e2 = (vc - G) ** 2
    /// mm = lambda x: (x * m).sum() / m.sum()
    /// pl = mm(torch.max(p1, p2)); vl = .5 * mm(torch.max(e1, e2)); loss = pl + .1 * vl
    /// print(loss, pl, vl, mm((p2 > p1).double()), mm((e2 > e1).double()), mm(rho), .5 * mm((new - old) ** 2))
    /// print(mm(old - new), torch.autograd.grad(loss, [new, val]))
    /// ```
    #[test]
    fn loss_gradients_and_diagnostics_match_pytorch() {
        let fixture = Fixture::new();
        let result = fixture.loss(&fixture.log_probs, &fixture.values);
        close(scalar(&result.loss).unwrap(), -0.043_138_629_429_751, 1e-12);
        close(result.policy_loss, -0.056_863_629_429_751, 1e-12);
        close(result.value_loss, 0.137_25, 1e-12);
        close(result.clip_fraction, 0.2, 1e-12);
        close(result.value_clip_fraction, 0.4, 1e-12);
        close(result.ratio, 1.020_919_218_756_541, 1e-12);
        close(result.approximate_kl, 0.055_25, 1e-12);
        close(result.policy_kl, 0.03, 1e-12);
        close(result.count, 5.0, 0.0);
        assert!(!result.skipped);
        assert_recorded(
            &[&fixture.log_probs, &fixture.values],
            &[
                &[
                    0.0,
                    0.057_073_765_470_043,
                    -0.199_064_231_967_911,
                    -0.076_833_629_053_164,
                    0.377_960_466_121_281,
                    0.0,
                ],
                &[0.0, -0.007, 0.016, 0.0, 0.006, 0.0],
            ],
            |inputs| fixture.loss(&inputs[0], &inputs[1]).loss,
        );
    }

    /// The whole recipe against `PPOTrainer.loss` of the released TRL 0.4.7 (gamma 0.97, lambda 0.9) on the
    /// rewards of [`super::super::advantage`]'s test; it gave policy loss 0.02164719993568598 and
    /// `vf_coef` times value loss 0.0750452248772944.
    #[test]
    fn recipe_matches_trl() {
        let fixture = Fixture::new();
        let penalty = KlPenalty::Kl;
        let rewards = [
            penalised_rewards(&[-1.1, -0.4, -2.0], &[-0.8, -0.9, -1.5], 1.5, 0.2, penalty),
            penalised_rewards(&[-0.3, -0.9], &[-1.0, -0.7], -0.6, 0.2, penalty),
        ];
        let values = [vec![0.2, -0.1, 0.4], vec![0.5, 0.3]];
        let (mut advantages, mut returns) = (Vec::new(), Vec::new());
        for (rewards, values) in rewards.into_iter().zip(&values) {
            let row = generalised_advantages(&rewards.unwrap(), values, 0.97, 0.9).unwrap();
            let Advantages {
                advantages: a,
                returns: r,
            } = row;
            advantages.push(a);
            returns.push(r);
        }
        whiten(&mut advantages).unwrap();
        let tensor = |rows: &[Vec<f64>]| pad(rows, 3, DType::F64, &Device::Cpu).unwrap();
        let (advantages, returns) = (tensor(&advantages), tensor(&returns));
        let batch = PpoBatch {
            advantages: &advantages,
            returns: &returns,
            ..fixture.batch(&fixture.log_probs, &fixture.values)
        };
        let result = ppo(&batch, PpoOptions::default(), Normaliser::Own).unwrap();
        close(result.policy_loss, 0.021_647_199_935_685_98, 1e-12);
        close(result.value_loss * 0.1, 0.075_045_224_877_294_4, 1e-12);
        close(
            scalar(&result.loss).unwrap(),
            0.096_692_424_812_980_38,
            1e-12,
        );
    }

    #[test]
    fn gradients_match_finite_differences() {
        let fixture = Fixture::new();
        let inputs = [fixture.log_probs.clone(), fixture.values.clone()];
        assert_gradients(&inputs, 1.0, |inputs| {
            fixture.loss(&inputs[0], &inputs[1]).loss
        });
    }

    #[test]
    fn ratio_one_gives_minus_the_mean_advantage_and_the_plain_gradient() {
        let mut fixture = Fixture::new();
        fixture.old_log_probs = fixture.log_probs.clone();
        let options = PpoOptions {
            value_coefficient: 0.0,
            ..PpoOptions::default()
        };
        let loss = |log_probs: &Tensor| {
            let batch = fixture.batch(log_probs, &fixture.values);
            ppo(&batch, options, Normaliser::Own).unwrap().loss
        };
        let mean = (0.9 - 0.3 + 1.1 + 0.7 - 1.4) / 5.0;
        close(scalar(&loss(&fixture.log_probs)).unwrap(), -mean, 1e-12);
        // Both branches of the maximum are equal there; each token must still get all of -A / n.
        let expected = [-0.18, 0.06, -0.22, -0.14, 0.28, 0.0];
        assert_recorded(&[&fixture.log_probs], &[&expected], |inputs| {
            loss(&inputs[0])
        });
    }

    #[test]
    fn a_runaway_ratio_skips_the_call() {
        let fixture = Fixture::new();
        for shift in [4.0, 1000.0] {
            let log_probs = candle_core::Var::from_tensor(&(&fixture.log_probs + shift).unwrap());
            let log_probs = log_probs.unwrap();
            let result = fixture.loss(&log_probs, &fixture.values);
            assert!(result.skipped);
            assert_eq!(scalar(&result.loss).unwrap(), 0.0);
            assert!(result.loss.backward().unwrap().get(&log_probs).is_none());
        }
        assert!(
            !fixture
                .loss(&(&fixture.log_probs + 2.0).unwrap(), &fixture.values)
                .skipped
        );
    }

    #[test]
    fn micro_batches_add_up_to_the_batch() {
        let fixture = Fixture::new();
        let whole = fixture.loss(&fixture.log_probs, &fixture.values);
        let sum: f64 = (0..2)
            .map(|row| {
                let take = |tensor: &Tensor| tensor.narrow(0, row, 1).unwrap();
                let part = Fixture {
                    log_probs: take(&fixture.log_probs),
                    old_log_probs: take(&fixture.old_log_probs),
                    values: take(&fixture.values),
                    old_values: take(&fixture.old_values),
                    advantages: take(&fixture.advantages),
                    returns: take(&fixture.returns),
                    mask: take(&fixture.mask),
                };
                let batch = part.batch(&part.log_probs, &part.values);
                let total = Normaliser::Total(whole.count);
                scalar(&ppo(&batch, PpoOptions::default(), total).unwrap().loss).unwrap()
            })
            .sum();
        close(sum, scalar(&whole.loss).unwrap(), 1e-12);
    }

    #[test]
    fn padding_may_hold_anything() {
        let fixture = Fixture::new();
        let widen = |tensor: &Tensor| {
            let nan = (tensor.narrow(1, 0, 2).unwrap() * f64::NAN).unwrap();
            Tensor::cat(&[tensor, &nan], 1).unwrap()
        };
        let mask = Tensor::new(&[[1u8, 1, 1, 0, 0], [1, 1, 0, 0, 0]], &Device::Cpu).unwrap();
        let wide = Fixture {
            log_probs: widen(&fixture.log_probs),
            old_log_probs: widen(&fixture.old_log_probs),
            values: widen(&fixture.values),
            old_values: widen(&fixture.old_values),
            advantages: widen(&fixture.advantages),
            returns: widen(&fixture.returns),
            mask,
        };
        let narrow = fixture.loss(&fixture.log_probs, &fixture.values);
        let result = wide.loss(&wide.log_probs, &wide.values);
        close(
            scalar(&result.loss).unwrap(),
            scalar(&narrow.loss).unwrap(),
            1e-12,
        );
        close(result.policy_kl, narrow.policy_kl, 1e-12);
        close(result.ratio, narrow.ratio, 1e-12);
    }

    #[test]
    fn early_stopping_allows_half_more_than_the_target() {
        assert!(!early_stop(0.15, 0.1 + 1e-9));
        assert!(early_stop(0.150_001, 0.1));
        assert!(!early_stop(-3.0, 0.1));
    }
}
