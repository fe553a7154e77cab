//! Bradley-Terry loss of a reward model on preference pairs.
//!
//! ```text
//! L = mean_i [ -log sigmoid(r(x_i, y_i+) - r(x_i, y_i-)) + w -log sigmoid(r(x_i, p_i+) - r(x_i, p_i-)) ]
//! ```
//!
//! The first term (Bradley and Terry 1952; Ouyang et al. 2022, equation 1) scores the complete answers at their
//! EOS. The second, optional one scores prefixes `p` that hold the same fraction of both completions: it makes
//! the scores of prefixes meaningful, which the forward-looking objective needs for its per-prefix rewards.

use candle_core::Tensor;

use super::{Normaliser, ObjectiveError, expect_shape, full_precision, vector};
use crate::ml::kernels::pointwise::{exp, log};
use crate::ml::kernels::sums::total;

/// Scores of the two completions of each pair.
#[derive(Debug, Clone, Copy)]
pub struct PairScores<'a> {
    /// Scores of the preferred completions, `(pairs)`.
    pub chosen: &'a Tensor,
    /// Scores of the others, `(pairs)`.
    pub rejected: &'a Tensor,
}

/// The loss of a batch of pairs.
#[derive(Debug, Clone)]
pub struct BradleyTerry {
    /// Mean loss of a pair, a scalar.
    pub loss: Tensor,
    /// Pairs: the units of the mean.
    pub count: f64,
    /// Share of pairs whose chosen completion scores higher; a tie counts half.
    pub accuracy: f64,
    /// Mean difference of the scores of complete answers.
    pub margin: f64,
    /// Share of pairs whose chosen prefix scores higher, where the prefix term is on.
    pub prefix_accuracy: Option<f64>,
}

/// Computes the loss of the complete answers, and of prefixes times their weight.
pub fn bradley_terry(
    answers: PairScores<'_>,
    prefixes: Option<(PairScores<'_>, f64)>,
    normaliser: Normaliser,
) -> Result<BradleyTerry, ObjectiveError> {
    let pairs = answers.chosen.dims1()?;
    let divisor = normaliser.divisor(pairs as f64, "pairs")?;
    let difference = difference(&answers, pairs)?;
    let mut sum = total(&log_sigmoid(&difference)?)?;
    let mut prefix_accuracy = None;
    if let Some((scores, weight)) = prefixes {
        if !(weight.is_finite() && weight >= 0.0) {
            return Err(ObjectiveError::Range {
                what: "prefix weight",
                value: weight,
                expected: "a number not below 0",
            });
        }
        let difference = self::difference(&scores, pairs)?;
        prefix_accuracy = Some(accuracy(&vector(&difference)?));
        sum = (sum + (total(&log_sigmoid(&difference)?)? * weight)?)?;
    }
    let differences = vector(&difference)?;
    Ok(BradleyTerry {
        loss: (sum.neg()? / divisor)?,
        count: pairs as f64,
        accuracy: accuracy(&differences),
        margin: super::residual::mean(&differences),
        prefix_accuracy,
    })
}

/// Returns how many completion tokens a prefix of `fraction` (in `[0, 1)`) holds: `floor(fraction * length)`,
/// 0 being the end of the prompt. EOS, the last token, is never part of it.
pub fn prefix_length(fraction: f64, completion_length: usize) -> usize {
    let length = (fraction.clamp(0.0, 1.0) * completion_length as f64).floor() as usize;
    length.min(completion_length.saturating_sub(1))
}

/// Computes `log sigmoid(x)` element by element, without overflow, with the gradient `sigmoid(-x)`.
///
/// `x/2 - |x|/2 - log(1 + exp(-|x|))`. The usual `min(x, 0) - log(1 + exp(-|x|))` has a wrong gradient at
/// exactly 0, where a zero-initialised head starts; here the two subgradients of `|x|` cancel.
pub fn log_sigmoid(x: &Tensor) -> Result<Tensor, ObjectiveError> {
    let magnitude = x.abs()?;
    let tail = log(&(exp(&magnitude.neg()?)? + 1.0)?)?;
    Ok((((x - magnitude)? * 0.5)? - tail)?)
}

fn difference(scores: &PairScores<'_>, pairs: usize) -> Result<Tensor, ObjectiveError> {
    expect_shape("chosen", scores.chosen, &[pairs])?;
    expect_shape("rejected", scores.rejected, &[pairs])?;
    Ok((full_precision(scores.chosen)? - full_precision(scores.rejected)?)?)
}

pub(super) fn accuracy(differences: &[f64]) -> f64 {
    let wins: f64 = differences
        .iter()
        .map(|difference| match difference.partial_cmp(&0.0) {
            Some(std::cmp::Ordering::Greater) => 1.0,
            Some(std::cmp::Ordering::Equal) => 0.5,
            _ => 0.0,
        })
        .sum();
    wins / (differences.len() as f64).max(1.0)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::super::gradient_check::{assert_gradients, close};
    use super::super::scalar;
    use super::*;

    /// Python:
    /// ```python
    /// import torch; import torch.nn.functional as F
    /// c = torch.tensor([1.2, -.3, .4], dtype=torch.float64); r = torch.tensor([.2, .5, .4], dtype=torch.float64)
    /// pc = torch.tensor([.1, .2, -.7], dtype=torch.float64); pr = torch.tensor([.3, -.2, -.5], dtype=torch.float64)
    /// print((-F.logsigmoid(c - r)).mean(), (-F.logsigmoid(c - r) - .5 * F.logsigmoid(pc - pr)).mean())
    /// ```
    #[test]
    fn loss_matches_pytorch() {
        let [chosen, rejected, prefix_chosen, prefix_rejected] = scores();
        let answers = PairScores {
            chosen: &chosen,
            rejected: &rejected,
        };
        let plain = bradley_terry(answers, None, Normaliser::Own).unwrap();
        close(scalar(&plain.loss).unwrap(), PLAIN, 1e-9);
        close(plain.accuracy, 0.5, 1e-12);
        close(plain.margin, 0.2 / 3.0, 1e-12);
        let prefixes = PairScores {
            chosen: &prefix_chosen,
            rejected: &prefix_rejected,
        };
        let both = bradley_terry(answers, Some((prefixes, 0.5)), Normaliser::Own).unwrap();
        close(scalar(&both.loss).unwrap(), WITH_PREFIX, 1e-9);
        close(both.prefix_accuracy.unwrap(), 1.0 / 3.0, 1e-12);
    }

    const PLAIN: f64 = 0.725_836_511_341_981_9;
    const WITH_PREFIX: f64 = 1.077_385_343_202_504_7;

    #[test]
    fn gradients_match_finite_differences() {
        assert_gradients(&scores(), 1.0, |inputs| {
            let answers = PairScores {
                chosen: &inputs[0],
                rejected: &inputs[1],
            };
            let prefixes = PairScores {
                chosen: &inputs[2],
                rejected: &inputs[3],
            };
            bradley_terry(answers, Some((prefixes, 0.5)), Normaliser::Own)
                .unwrap()
                .loss
        });
    }

    #[test]
    fn log_sigmoid_is_stable_and_has_its_gradient_everywhere() {
        let points = [-1e4_f32, -30.0, -1.0, 0.0, 1.0, 30.0, 1e4];
        let x = Var::new(&points, &Device::Cpu).unwrap();
        let y = log_sigmoid(&x).unwrap();
        let gradients = y.sum_all().unwrap().backward().unwrap();
        let slopes = gradients.get(&x).unwrap().to_vec1::<f32>().unwrap();
        let values = y.to_vec1::<f32>().unwrap();
        for (index, point) in points.iter().map(|p| f64::from(*p)).enumerate() {
            let value = if point < -700.0 {
                point
            } else {
                -(-point).exp().ln_1p()
            };
            close(f64::from(values[index]), value, 1e-6 * (1.0 + point.abs()));
            close(f64::from(slopes[index]), 1.0 / (1.0 + point.exp()), 1e-6);
        }
        assert_eq!(slopes[3], 0.5);
    }

    #[test]
    fn micro_batches_add_up_to_the_batch() {
        let [chosen, rejected, ..] = scores();
        let whole = bradley_terry(
            PairScores {
                chosen: &chosen,
                rejected: &rejected,
            },
            None,
            Normaliser::Own,
        )
        .unwrap();
        let sum: f64 = (0..3)
            .map(|row| {
                let chosen = chosen.narrow(0, row, 1).unwrap();
                let rejected = rejected.narrow(0, row, 1).unwrap();
                let part = bradley_terry(
                    PairScores {
                        chosen: &chosen,
                        rejected: &rejected,
                    },
                    None,
                    Normaliser::Total(3.0),
                );
                scalar(&part.unwrap().loss).unwrap()
            })
            .sum();
        close(sum, scalar(&whole.loss).unwrap(), 1e-12);
    }

    #[test]
    fn prefixes_hold_the_same_fraction_and_never_the_end() {
        assert_eq!(prefix_length(0.0, 9), 0);
        assert_eq!(prefix_length(0.5, 9), 4);
        assert_eq!(prefix_length(0.5, 4), 2);
        assert_eq!(prefix_length(0.999_999, 9), 8);
        assert_eq!(prefix_length(1.0, 9), 8);
        assert_eq!(prefix_length(0.5, 0), 0);
    }

    fn scores() -> [Tensor; 4] {
        let make = |values: &[f64; 3]| Tensor::new(values, &Device::Cpu).unwrap();
        [
            make(&[1.2, -0.3, 0.4]),
            make(&[0.2, 0.5, 0.4]),
            make(&[0.1, 0.2, -0.7]),
            make(&[0.3, -0.2, -0.5]),
        ]
    }
}
