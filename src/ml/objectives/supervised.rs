//! Supervised fine-tuning: the negative log-likelihood of tokens.
//!
//! ```text
//! L = - sum_{b,t} m_{b,t} log pi(y_{b,t+1} | y_{b,<=t}) / sum_{b,t} m_{b,t}
//! ```
//!
//! The mean is over tokens that count, not over sequences: a long completion weighs more than a short one, as
//! in the usual language-modelling loss. The mask chooses between training on completions alone
//! ([`completion_mask`]) and on every token of packed sequences ([`every_token_mask`]).

use candle_core::{Device, Tensor};

use super::{Normaliser, ObjectiveError, count_of, expect_shape, full_precision, keep, scalar};
use crate::ml::kernels::sums::total;

/// The supervised loss of a batch.
#[derive(Debug, Clone)]
pub struct Supervised {
    /// Mean negative log-likelihood of a token in nats, a scalar.
    pub loss: Tensor,
    /// Tokens that count: the units of the mean.
    pub count: f64,
    /// Sum of the negative log-likelihood over the tokens of this call, in nats; `exp(sum / count)` is the
    /// perplexity.
    pub sum: f64,
}

impl Supervised {
    /// Returns the perplexity of the tokens of this call.
    pub fn perplexity(&self) -> f64 {
        libm::exp(self.sum / self.count)
    }
}

/// Computes the negative log-likelihood of the tokens where `mask` is not 0.
///
/// `log_probs` and `mask` (u8) are `(batch, time)`; column `t` is the prediction of token `t + 1`. A micro-batch
/// without a token that counts is an error under [`Normaliser::Own`] and has loss 0 under a total.
pub fn supervised(
    log_probs: &Tensor,
    mask: &Tensor,
    normaliser: Normaliser,
) -> Result<Supervised, ObjectiveError> {
    let (batch, time) = log_probs.dims2()?;
    expect_shape("mask", mask, &[batch, time])?;
    let mask = mask.ne(&mask.zeros_like()?)?;
    let count = count_of(&mask)?;
    let divisor = normaliser.divisor(count, "tokens")?;
    let sum = total(&keep(&full_precision(log_probs)?, &mask)?)?.neg()?;
    Ok(Supervised {
        count,
        sum: scalar(&sum)?,
        loss: (sum / divisor)?,
    })
}

/// Marks the predictions of completion tokens, `(batch, time)` in u8.
///
/// Row `b` is a sequence of `lengths[b]` tokens (EOS included) of which the first `prompt_lengths[b]` are the
/// prompt. Column `t` predicts token `t + 1`, so columns `prompt - 1 .. length - 1` count; the first token of
/// an empty prompt is predicted by nothing and never counts.
pub fn completion_mask(
    prompt_lengths: &[usize],
    lengths: &[usize],
    time: usize,
    device: &Device,
) -> Result<Tensor, ObjectiveError> {
    if prompt_lengths.len() != lengths.len() {
        return Err(ObjectiveError::Length {
            what: "prompt_lengths",
            expected: lengths.len(),
            got: prompt_lengths.len(),
        });
    }
    let mut mask = vec![0u8; lengths.len() * time];
    for (row, (prompt, length)) in prompt_lengths.iter().zip(lengths).enumerate() {
        let end = length.saturating_sub(1);
        if end > time {
            return Err(ObjectiveError::TrajectoryLength {
                row,
                length: *length,
                time: time + 1,
            });
        }
        let start = prompt.saturating_sub(1).min(end);
        mask[row * time + start..row * time + end].fill(1);
    }
    Ok(Tensor::from_vec(mask, (lengths.len(), time), device)?)
}

/// Marks the predictions of every token, `(batch, time)` in u8: packed sequences without padding, or plain
/// language modelling of padded ones.
pub fn every_token_mask(
    lengths: &[usize],
    time: usize,
    device: &Device,
) -> Result<Tensor, ObjectiveError> {
    completion_mask(&vec![0; lengths.len()], lengths, time, device)
}

#[cfg(test)]
mod tests {
    use super::super::gradient_check::{assert_gradients, close};
    use super::*;

    /// Python:
    /// ```python
    /// import torch
    /// lp = torch.tensor([[-.1, -2., -.7], [-1.5, -.3, -4.]], dtype=torch.float64)
    /// m = torch.tensor([[0, 1, 1], [0, 1, 0]], dtype=torch.float64)
    /// print(-(lp * m).sum() / m.sum())  # 1.0
    /// ```
    #[test]
    fn loss_is_the_mean_over_completion_tokens() {
        let log_probs = log_probs();
        let mask = completion_mask(&[2, 2], &[4, 3], 3, &Device::Cpu).unwrap();
        assert_eq!(mask.to_vec2::<u8>().unwrap(), [[0, 1, 1], [0, 1, 0]]);
        let result = supervised(&log_probs, &mask, Normaliser::Own).unwrap();
        close(scalar(&result.loss).unwrap(), 1.0, 1e-12);
        close(result.count, 3.0, 0.0);
        close(result.perplexity(), 1f64.exp(), 1e-12);
    }

    #[test]
    fn packed_sequences_train_on_every_prediction() {
        let mask = every_token_mask(&[4, 3], 3, &Device::Cpu).unwrap();
        assert_eq!(mask.to_vec2::<u8>().unwrap(), [[1, 1, 1], [1, 1, 0]]);
    }

    #[test]
    fn micro_batches_add_up_to_the_batch() {
        let log_probs = log_probs();
        let mask = completion_mask(&[1, 2], &[4, 3], 3, &Device::Cpu).unwrap();
        let whole = supervised(&log_probs, &mask, Normaliser::Own).unwrap();
        let mut sum = 0.0;
        for row in 0..2 {
            let part = supervised(
                &log_probs.narrow(0, row, 1).unwrap(),
                &mask.narrow(0, row, 1).unwrap(),
                Normaliser::Total(whole.count),
            )
            .unwrap();
            sum += scalar(&part.loss).unwrap();
        }
        close(sum, scalar(&whole.loss).unwrap(), 1e-12);
    }

    #[test]
    fn gradients_match_finite_differences() {
        let mask = completion_mask(&[2, 2], &[4, 3], 3, &Device::Cpu).unwrap();
        assert_gradients(&[log_probs()], 1.0, |inputs| {
            supervised(&inputs[0], &mask, Normaliser::Own).unwrap().loss
        });
    }

    #[test]
    fn padding_may_hold_anything() {
        let log_probs = Tensor::new(&[[f32::NAN, -2.0, f32::NEG_INFINITY]], &Device::Cpu).unwrap();
        let mask = completion_mask(&[2], &[3], 3, &Device::Cpu).unwrap();
        let result = supervised(&log_probs, &mask, Normaliser::Own).unwrap();
        assert_eq!(result.loss.to_scalar::<f32>().unwrap(), 2.0);
    }

    #[test]
    fn a_batch_without_tokens_is_an_error_and_a_micro_batch_is_not() {
        let mask = Tensor::zeros((2, 3), candle_core::DType::U8, &Device::Cpu).unwrap();
        let error = supervised(&log_probs(), &mask, Normaliser::Own).unwrap_err();
        assert_eq!(error.to_string(), "no tokens to average over");
        let result = supervised(&log_probs(), &mask, Normaliser::Total(5.0)).unwrap();
        assert_eq!(scalar(&result.loss).unwrap(), 0.0);
    }

    #[test]
    fn half_precision_is_summed_in_single() {
        // In bf16 the count alone would be 512 and the sum 256.
        let log_probs = Tensor::full(-1.0_f32, (1, 511), &Device::Cpu).unwrap();
        let log_probs = log_probs.to_dtype(candle_core::DType::BF16).unwrap();
        let mask = every_token_mask(&[512], 511, &Device::Cpu).unwrap();
        let result = supervised(&log_probs, &mask, Normaliser::Own).unwrap();
        assert_eq!((result.count, result.sum), (511.0, 511.0));
        assert_eq!(result.loss.to_scalar::<f32>().unwrap(), 1.0);
    }

    fn log_probs() -> Tensor {
        Tensor::new(&[[-0.1, -2.0, -0.7], [-1.5, -0.3, -4.0]], &Device::Cpu).unwrap()
    }
}
