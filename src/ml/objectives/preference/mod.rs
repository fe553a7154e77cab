//! Preference losses: what is trained on pairs without a reward model.
//!
//! With `h = (log pi(y+) - log pi(y-)) - (log pi_ref(y+) - log pi_ref(y-))`, sums over the tokens of a completion,
//! `m` the same divided by the number of tokens, and `s` the logistic function:
//!
//! | loss | of a pair | source |
//! | --- | --- | --- |
//! | DPO | `-(1 - e) log s(beta h) - e log s(-beta h)`; reference-free without `pi_ref` | Rafailov et al. 2023; label smoothing `e`: Mitchell 2023 |
//! | IPO | `(m+ - m- - 1 / (2 beta))^2`, `m` of log-ratios | Azar et al. 2023, mean over tokens as in TRL |
//! | CPO | `-log s(beta (log pi(y+) - log pi(y-))) - w m+` | Xu et al. 2024, equation 6 |
//! | ORPO | `-m+ - w log s(log odds(e^m+) - log odds(e^m-))` | Hong et al. 2024, equation 6 |
//! | SimPO | `-log s(beta (m+ - m-) - margin)` | Meng et al. 2024, equation 6 |
//! | KTO | `(w+ (1 - s(beta (r+ - z))) + w- (1 - s(beta (z - r-)))) / 2`, `r` log-ratios | Ethayarajh et al. 2024, equation 8 |
//!
//! `z` of KTO estimates the KL divergence from prompts with completions of other prompts; see [`kto_baseline`].

mod loss;
#[cfg(test)]
mod tests;

use candle_core::Tensor;

use super::bradley_terry::log_sigmoid;
use super::residual::mean;
use super::{Normaliser, ObjectiveError, expect_shape, full_precision, vector};
use crate::ml::kernels::pointwise::{exp, log};
use crate::ml::kernels::sums::total;

pub use loss::{Likelihood, PreferenceLoss, ReferencePoint};

/// Log-probabilities of whole completions, each tensor `(pairs)`.
#[derive(Debug, Clone, Copy)]
pub struct PairLogProbs<'a> {
    /// Of the preferred completions.
    pub chosen: &'a Tensor,
    /// Of the others.
    pub rejected: &'a Tensor,
}

/// A batch of pairs.
#[derive(Debug, Clone, Copy)]
pub struct PreferenceBatch<'a> {
    /// Under the policy.
    pub policy: PairLogProbs<'a>,
    /// Under the frozen reference model; never differentiated.
    pub reference: Option<PairLogProbs<'a>>,
    /// Tokens of the preferred completions.
    pub chosen_lengths: &'a [usize],
    /// Tokens of the others.
    pub rejected_lengths: &'a [usize],
    /// KTO's estimate of the KL divergence, taken over the whole batch; see [`kto_baseline`].
    pub kl: f64,
    /// Tokens of the preferred completions of the whole batch, of which this may be one micro-batch.
    pub chosen_tokens: f64,
}

/// The loss of a batch.
#[derive(Debug, Clone)]
pub struct Preference {
    /// Mean loss of a pair, a scalar.
    pub loss: Tensor,
    /// Pairs: the units of the mean.
    pub count: f64,
    /// Share of pairs with a positive margin; ties count half.
    pub accuracy: f64,
    /// Mean of `log pi(y+) - log pi(y-)`, with a reference less the same of `pi_ref`: sums over tokens.
    pub margin: f64,
    /// Mean `log pi - log pi_ref` of preferred completions, with a reference.
    pub chosen_log_ratio: Option<f64>,
    /// Mean `log pi - log pi_ref` of the others, with a reference.
    pub rejected_log_ratio: Option<f64>,
}

/// Computes a preference loss.
pub fn preference(
    batch: &PreferenceBatch<'_>,
    loss: PreferenceLoss,
    normaliser: Normaliser,
) -> Result<Preference, ObjectiveError> {
    let pairs = batch.policy.chosen.dims1()?;
    let divisor = normaliser.divisor(pairs as f64, "pairs")?;
    let (chosen, rejected) = (
        full_precision(batch.policy.chosen)?,
        full_precision(batch.policy.rejected)?,
    );
    expect_shape("rejected", &rejected, &[pairs])?;
    let reference = |name, tensor: &Tensor| -> Result<Tensor, ObjectiveError> {
        expect_shape(name, tensor, &[pairs])?;
        Ok(tensor.detach().to_dtype(chosen.dtype())?)
    };
    let ratios = match batch.reference {
        Some(of) => Some((
            (&chosen - reference("reference chosen", of.chosen)?)?,
            (&rejected - reference("reference rejected", of.rejected)?)?,
        )),
        None if loss.needs_reference() => {
            return Err(ObjectiveError::MissingReference {
                what: "preference loss",
            });
        }
        None => None,
    };
    let lengths = |what, lengths: &[usize]| -> Result<Tensor, ObjectiveError> {
        if lengths.len() != pairs || lengths.contains(&0) {
            return Err(ObjectiveError::Length {
                what,
                expected: pairs,
                got: lengths.iter().filter(|length| **length > 0).count(),
            });
        }
        let lengths: Vec<f64> = lengths.iter().map(|length| *length as f64).collect();
        Ok(Tensor::new(lengths, chosen.device())?.to_dtype(chosen.dtype())?)
    };
    let chosen_lengths = lengths("chosen_lengths", batch.chosen_lengths)?;
    let rejected_lengths = lengths("rejected_lengths", batch.rejected_lengths)?;
    // What the loss compares: log-ratios to the reference where it has one.
    let (plus, minus) = ratios
        .as_ref()
        .filter(|_| loss.needs_reference())
        .map_or((&chosen, &rejected), |(plus, minus)| (plus, minus));
    let difference = (plus - minus)?;
    let mean_plus = (plus / &chosen_lengths)?;
    let mean_minus = (minus / &rejected_lengths)?;
    let losses = match loss {
        PreferenceLoss::Dpo {
            beta,
            label_smoothing,
            ..
        } => {
            let scaled = (&difference * beta)?;
            let loss = (log_sigmoid(&scaled)? * (label_smoothing - 1.0))?;
            if label_smoothing > 0.0 {
                (loss - (log_sigmoid(&scaled.neg()?)? * label_smoothing)?)?
            } else {
                loss
            }
        }
        PreferenceLoss::Ipo { beta } => ((mean_plus - mean_minus)? - 0.5 / beta)?.sqr()?,
        PreferenceLoss::Cpo {
            beta,
            sft_weight,
            likelihood,
        } => {
            let loss = log_sigmoid(&(&difference * beta)?)?.neg()?;
            if sft_weight > 0.0 {
                let likelihood = match likelihood {
                    // Divided by the pairs below.
                    Likelihood::Tokens => (plus * (divisor / batch.chosen_tokens))?,
                    Likelihood::Pairs => mean_plus,
                };
                (loss - (likelihood * sft_weight)?)?
            } else {
                loss
            }
        }
        PreferenceLoss::Orpo { weight } => {
            let odds = (log_odds(&mean_plus)? - log_odds(&mean_minus)?)?;
            (mean_plus.neg()? - (log_sigmoid(&odds)? * weight)?)?
        }
        PreferenceLoss::Simpo { beta, margin } => {
            log_sigmoid(&(((mean_plus - mean_minus)? * beta)? - margin)?)?.neg()?
        }
        PreferenceLoss::Kto {
            beta,
            desirable_weight,
            undesirable_weight,
            ..
        } => {
            // 1 - s(x) = s(-x).
            let value = |ratio: &Tensor, sign: f64| -> Result<Tensor, ObjectiveError> {
                Ok(exp(&log_sigmoid(
                    &((ratio - batch.kl)? * (-sign * beta))?,
                )?)?)
            };
            let desirable = (value(plus, 1.0)? * desirable_weight)?;
            let undesirable = (value(minus, -1.0)? * undesirable_weight)?;
            ((desirable + undesirable)? * 0.5)?
        }
    };
    let margins = vector(&match &ratios {
        Some((plus, minus)) => (plus - minus)?,
        None => difference,
    })?;
    let log_ratio = |of: &Tensor| Ok::<f64, ObjectiveError>(mean(&vector(of)?));
    Ok(Preference {
        loss: (total(&losses)? / divisor)?,
        count: pairs as f64,
        accuracy: super::bradley_terry::accuracy(&margins),
        margin: mean(&margins),
        chosen_log_ratio: ratios.as_ref().map(|of| log_ratio(&of.0)).transpose()?,
        rejected_log_ratio: ratios.as_ref().map(|of| log_ratio(&of.1)).transpose()?,
    })
}

/// Returns `log(p / (1 - p))` for `p = exp(log_p)`, `log_p` below 0.
fn log_odds(log_p: &Tensor) -> Result<Tensor, ObjectiveError> {
    // A model that is sure of every token would divide by 0.
    let log_p = log_p.minimum(-1e-6)?;
    Ok((&log_p - log(&(exp(&log_p)?.neg()? + 1.0)?)?)?)
}

/// Returns KTO's `z`: the mean of `log pi - log pi_ref` of completions under prompts they do not belong to, not
/// below 0.
pub fn kto_baseline(log_ratios: &[f64]) -> f64 {
    mean(log_ratios).max(0.0)
}
