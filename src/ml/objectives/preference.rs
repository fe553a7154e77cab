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

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::bradley_terry::log_sigmoid;
use super::residual::mean;
use super::{Normaliser, ObjectiveError, expect_shape, full_precision, vector};
use crate::ml::kernels::pointwise::{exp, log};
use crate::ml::kernels::sums::total;

/// The loss, with its own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "loss", rename_all = "snake_case", deny_unknown_fields)]
pub enum PreferenceLoss {
    /// Direct preference optimisation.
    Dpo {
        /// Strength of the pull to the reference.
        beta: f64,
        /// Share of pairs that may be labelled the wrong way round.
        #[serde(default)]
        label_smoothing: f64,
        /// Leaves the reference model out.
        #[serde(default)]
        reference_free: bool,
    },
    /// Identity preference optimisation.
    Ipo {
        /// Regularisation; the margin aimed at is `1 / (2 beta)`.
        beta: f64,
    },
    /// Contrastive preference optimisation.
    Cpo {
        /// Scale of the margin.
        beta: f64,
        /// Weight of the likelihood of preferred completions.
        #[serde(default = "one")]
        sft_weight: f64,
        /// What that likelihood is a mean over.
        #[serde(default)]
        likelihood: Likelihood,
    },
    /// Odds-ratio preference optimisation.
    Orpo {
        /// Weight of the odds ratio.
        weight: f64,
    },
    /// Simple preference optimisation.
    Simpo {
        /// Scale of the margin.
        beta: f64,
        /// Margin aimed at.
        margin: f64,
    },
    /// Kahneman-Tversky optimisation, each completion judged by itself.
    Kto {
        /// Strength of the pull to the reference.
        beta: f64,
        /// Weight of preferred completions.
        #[serde(default = "one")]
        desirable_weight: f64,
        /// Weight of the others.
        #[serde(default = "one")]
        undesirable_weight: f64,
        /// The completions whose divergence from the reference rewards are compared to.
        #[serde(default)]
        reference_point: ReferencePoint,
    },
}

/// What CPO's likelihood of preferred completions is a mean over.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, Default,
)]
#[serde(rename_all = "snake_case")]
pub enum Likelihood {
    /// Over the tokens of all preferred completions of a step, as TRL does: long ones weigh more.
    #[default]
    Tokens,
    /// Over the pairs, each with the mean of its own tokens.
    Pairs,
}

/// Which completions KTO's reference point is taken over, each under another prompt of the step.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, Default,
)]
#[serde(rename_all = "snake_case")]
pub enum ReferencePoint {
    /// All of them, as TRL does.
    #[default]
    All,
    /// The preferred ones.
    Chosen,
}

fn one() -> f64 {
    1.0
}

impl PreferenceLoss {
    /// Whether the loss needs the reference model.
    pub fn needs_reference(self) -> bool {
        match self {
            Self::Dpo { reference_free, .. } => !reference_free,
            Self::Ipo { .. } | Self::Kto { .. } => true,
            Self::Cpo { .. } | Self::Orpo { .. } | Self::Simpo { .. } => false,
        }
    }

    /// Names a number that is out of its range, with what was expected.
    pub fn problem(self) -> Option<(&'static str, &'static str)> {
        // What a margin is multiplied with or divided by: beyond, `f32` has no room.
        let positive = |value: f64| (1e-6..=1e6).contains(&value);
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        let checks: Vec<(bool, &'static str, &'static str)> = match self {
            Self::Dpo {
                beta,
                label_smoothing,
                ..
            } => vec![
                (positive(beta), "beta", "from 1e-6 to 1e6"),
                (
                    (0.0..0.5).contains(&label_smoothing),
                    "label_smoothing",
                    "from 0 to below 0.5",
                ),
            ],
            Self::Ipo { beta } => vec![(positive(beta), "beta", "from 1e-6 to 1e6")],
            Self::Cpo {
                beta, sft_weight, ..
            } => vec![
                (positive(beta), "beta", "from 1e-6 to 1e6"),
                (not_negative(sft_weight), "sft_weight", "at least 0"),
            ],
            Self::Orpo { weight } => vec![(positive(weight), "weight", "from 1e-6 to 1e6")],
            Self::Simpo { beta, margin } => vec![
                (positive(beta), "beta", "from 1e-6 to 1e6"),
                (not_negative(margin), "margin", "at least 0"),
            ],
            Self::Kto {
                beta,
                desirable_weight,
                undesirable_weight,
                ..
            } => vec![
                (positive(beta), "beta", "from 1e-6 to 1e6"),
                (
                    not_negative(desirable_weight),
                    "desirable_weight",
                    "at least 0",
                ),
                (
                    not_negative(undesirable_weight),
                    "undesirable_weight",
                    "at least 0",
                ),
            ],
        };
        let wrong = checks.into_iter().find(|(holds, ..)| !holds);
        wrong.map(|(_, key, expected)| (key, expected))
    }
}

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

#[cfg(test)]
mod tests {
    //! Losses and gradients recorded from PyTorch.
    //!
    //! Python (`c`, `r`, `rc`, `rr`, `nc`, `nr` as in [`batch`]; `b` = .3):
    //! ```python
    //! h = (c - r) - (rc - rr); m = (c - rc) / nc - (r - rr) / nr; mc, mr = c / nc, r / nr; ls = F.logsigmoid
    //! odds = (mc - mr) - (torch.log1p(-mc.exp()) - torch.log1p(-mr.exp()))
    //! [-ls(b * h), -.9 * ls(b * h) - .1 * ls(-b * h), -ls(b * (c - r)), (m - 1 / (2 * b)) ** 2,
    //!  -ls(b * (c - r)) - .5 * mc, -mc - .4 * ls(odds), -ls(2. * (mc - mr) - .6),
    //!  (1.2 * (1 - torch.sigmoid(b * (c - rc - .2))) + .8 * (1 - torch.sigmoid(b * (.2 - (r - rr))))) / 2]
    //! ```
    use candle_core::Device;

    use super::super::gradient_check::{assert_gradients, assert_recorded, close};
    use super::super::scalar;
    use super::*;

    const BETA: f64 = 0.3;

    fn column(values: [f64; 3]) -> Tensor {
        Tensor::new(&values, &Device::Cpu).unwrap()
    }

    fn policy() -> [Tensor; 2] {
        [column([-4.0, -7.5, -3.2]), column([-5.0, -6.0, -9.0])]
    }

    fn found(inputs: &[Tensor], loss: PreferenceLoss) -> Preference {
        let reference = [column([-4.4, -7.0, -3.0]), column([-4.5, -6.6, -8.0])];
        let batch = PreferenceBatch {
            policy: PairLogProbs {
                chosen: &inputs[0],
                rejected: &inputs[1],
            },
            reference: loss.needs_reference().then_some(PairLogProbs {
                chosen: &reference[0],
                rejected: &reference[1],
            }),
            chosen_lengths: &[4, 6, 3],
            rejected_lengths: &[5, 4, 7],
            kl: 0.2,
            chosen_tokens: 13.0,
        };
        preference(&batch, loss, Normaliser::Own).unwrap()
    }

    fn dpo(label_smoothing: f64, reference_free: bool) -> PreferenceLoss {
        PreferenceLoss::Dpo {
            beta: BETA,
            label_smoothing,
            reference_free,
        }
    }

    fn recorded() -> Vec<(PreferenceLoss, f64, [f64; 3], [f64; 3])> {
        vec![
            (
                dpo(0.0, false),
                0.673_086_820_114_202_3,
                [
                    -0.043_290_709_503_454_56,
                    -0.058_175_937_684_183_616,
                    -0.044_028_635_073_280_704,
                ],
                [
                    0.043_290_709_503_454_56,
                    0.058_175_937_684_183_616,
                    0.044_028_635_073_280_704,
                ],
            ),
            (
                dpo(0.1, false),
                0.679_086_820_114_202_2,
                [
                    -0.033_290_709_503_454_56,
                    -0.048_175_937_684_183_62,
                    -0.034_028_635_073_280_71,
                ],
                [
                    0.033_290_709_503_454_56,
                    0.048_175_937_684_183_62,
                    0.034_028_635_073_280_71,
                ],
            ),
            (
                dpo(0.0, true),
                0.553_105_044_718_522_6,
                [
                    -0.042_555_748_318_834_095,
                    -0.061_063_923_394_922_184,
                    -0.014_931_293_453_084_372,
                ],
                [
                    0.042_555_748_318_834_095,
                    0.061_063_923_394_922_184,
                    0.014_931_293_453_084_372,
                ],
            ),
            (
                PreferenceLoss::Ipo { beta: BETA },
                2.763_575_207_860_922,
                [
                    -0.244_444_444_444_444_4,
                    -0.211_111_111_111_111_1,
                    -0.353_439_153_439_153_44,
                ],
                [
                    0.195_555_555_555_555_54,
                    0.316_666_666_666_666_65,
                    0.151_473_922_902_494_34,
                ],
            ),
            (
                PreferenceLoss::Cpo {
                    beta: BETA,
                    sft_weight: 0.5,
                    likelihood: Likelihood::Pairs,
                },
                1.105_882_822_496_300_4,
                [
                    -0.084_222_414_985_500_76,
                    -0.088_841_701_172_699_96,
                    -0.070_486_849_008_639_93,
                ],
                [
                    0.042_555_748_318_834_095,
                    0.061_063_923_394_922_184,
                    0.014_931_293_453_084_372,
                ],
            ),
            (
                PreferenceLoss::Orpo { weight: 0.4 },
                1.342_855_838_659_854_4,
                [
                    -0.109_699_611_781_155_43,
                    -0.068_543_291_802_016_97,
                    -0.139_663_681_039_615_9,
                ],
                [
                    0.021_093_022_758_257_685,
                    0.017_892_355_391_089_27,
                    0.011_091_843_023_538_554,
                ],
            ),
            (
                PreferenceLoss::Simpo {
                    beta: 2.0,
                    margin: 0.6,
                },
                0.853_085_747_835_262_8,
                [
                    -0.107_609_384_370_965_9,
                    -0.058_331_020_830_993_334,
                    -0.120_086_223_167_850_28,
                ],
                [
                    0.086_087_507_496_772_71,
                    0.087_496_531_246_49,
                    0.051_465_524_214_792_98,
                ],
            ),
            (
                PreferenceLoss::Kto {
                    beta: BETA,
                    desirable_weight: 1.2,
                    undesirable_weight: 0.8,
                    reference_point: ReferencePoint::All,
                },
                0.498_604_053_028_108_2,
                [
                    -0.014_986_508_095_870_934,
                    -0.014_835_832_955_757_853,
                    -0.014_946_129_336_111_003,
                ],
                [
                    0.009_890_555_303_838_568,
                    0.009_964_086_224_074_003,
                    0.009_682_872_044_105_78,
                ],
            ),
        ]
    }

    #[test]
    fn losses_and_gradients_match_pytorch() {
        for (loss, value, chosen, rejected) in recorded() {
            let inputs = policy();
            close(scalar(&found(&inputs, loss).loss).unwrap(), value, 1e-12);
            assert_recorded(&[&inputs[0], &inputs[1]], &[&chosen, &rejected], |inputs| {
                found(inputs, loss).loss
            });
            assert_gradients(&inputs, 1.0, |inputs| found(inputs, loss).loss);
        }
    }

    /// TRL's `CPOTrainer`: the margin's mean over pairs, plus `cpo_alpha` times the cross-entropy of all tokens of the
    /// preferred completions.
    #[test]
    fn the_likelihood_of_cpo_is_a_mean_over_tokens() {
        let cpo = |likelihood, sft_weight| PreferenceLoss::Cpo {
            beta: BETA,
            sft_weight,
            likelihood,
        };
        let value = |loss| scalar(&found(&policy(), loss).loss).unwrap();
        let margin = value(cpo(Likelihood::Tokens, 0.0));
        let found_tokens = value(cpo(Likelihood::Tokens, 0.5)) - margin;
        close(found_tokens, 0.5 * (4.0 + 7.5 + 3.2) / 13.0, 1e-12);
        let found_pairs = value(cpo(Likelihood::Pairs, 0.5)) - margin;
        let of_pairs = (4.0 / 4.0 + 7.5 / 6.0 + 3.2 / 3.0) / 3.0;
        close(found_pairs, 0.5 * of_pairs, 1e-12);
        assert_gradients(&policy(), 1.0, |inputs| {
            found(inputs, cpo(Likelihood::Tokens, 0.5)).loss
        });
    }

    #[test]
    fn diagnostics_are_those_of_the_pairs() {
        let result = found(&policy(), dpo(0.0, false));
        // Log-ratios 0.4, -0.5, -0.2 and -0.5, 0.6, -1.
        close(result.margin, (0.9 - 1.1 + 0.8) / 3.0, 1e-12);
        close(result.accuracy, 2.0 / 3.0, 1e-12);
        close(result.chosen_log_ratio.unwrap(), -0.1, 1e-12);
        close(result.rejected_log_ratio.unwrap(), -0.3, 1e-12);
        let free = found(&policy(), dpo(0.0, true));
        assert_eq!(free.chosen_log_ratio, None);
        assert_eq!(kto_baseline(&[-3.0, 1.0]), 0.0);
        assert_eq!(kto_baseline(&[3.0, 1.0]), 2.0);
    }

    #[test]
    fn numbers_out_of_range_are_named() {
        assert_eq!(dpo(0.0, false).problem(), None);
        assert_eq!(dpo(0.5, false).problem().unwrap().0, "label_smoothing");
        let loss = PreferenceLoss::Ipo { beta: 0.0 };
        assert_eq!(loss.problem(), Some(("beta", "from 1e-6 to 1e6")));
    }

    #[test]
    fn a_loss_without_its_reference_is_an_error() {
        let inputs = policy();
        let pairs = PairLogProbs {
            chosen: &inputs[0],
            rejected: &inputs[1],
        };
        let batch = PreferenceBatch {
            policy: pairs,
            reference: None,
            chosen_lengths: &[1, 1, 1],
            rejected_lengths: &[1, 1, 1],
            kl: 0.0,
            chosen_tokens: 3.0,
        };
        let error = preference(&batch, dpo(0.0, false), Normaliser::Own).unwrap_err();
        assert!(error.to_string().contains("reference"), "{error}");
        assert!(preference(&batch, dpo(0.0, true), Normaliser::Own).is_ok());
    }
}
