//! What is generated, how, and what comes out.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::ml::models::causal::CausalLmError;

/// Numbers that logits may be divided by: far beyond what changes a draw, and within what `f32` has room for.
pub const DIVISORS: RangeInclusive<f64> = 1e-6..=1e6;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Strategy {
    /// The most probable token; the lowest id among equals.
    Greedy,
    /// A draw from the (reshaped) distribution.
    Sampling(Sampling),
    /// Contrastive search.
    Contrastive(Contrastive),
}

/// How the distribution is reshaped before a draw, in this order, as in the transformers library.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Logits are divided by it.
    pub temperature: f64,
    /// Only tokens with a logit of at least the k-th largest stay; 0 keeps all.
    pub top_k: usize,
    /// Only the most probable tokens stay, until their mass reaches it; 1 keeps all.
    pub top_p: f64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
        }
    }
}

/// Contrastive search (Su et al. 2022, equation 5) as in transformers 4.30.
///
/// Of the `top_k` most probable tokens v the one with the largest
/// `(1 - alpha) p(v) - alpha max_j cos(h_v, h_j)` is taken, where h are hidden states after the final norm and
/// j runs over the whole context, prompt included. It draws nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Contrastive {
    /// Weight of the penalty.
    pub alpha: f64,
    /// Number of candidates.
    pub top_k: usize,
    /// `p = softmax(logits / temperature)`. transformers ignores a temperature here, which is 1.
    #[serde(default)]
    pub temperature: Option<f64>,
}

/// Limits of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// The horizon: a completion has at most so many tokens, the end-of-sequence token included.
    pub max_new_tokens: usize,
    /// Tokens that end a completion.
    pub eos: Vec<u32>,
    /// Logits of tokens already in the prompt or completion are divided by it where positive and multiplied
    /// where negative (Keskar et al. 2019); 1 changes nothing.
    pub repetition_penalty: f64,
    /// Rows decoded together. It changes no result.
    pub batch_size: usize,
}

impl GenerateOptions {
    /// Generates up to `max_new_tokens` tokens, ending at `eos`.
    pub fn new(max_new_tokens: usize, eos: &[u32]) -> Self {
        Self {
            max_new_tokens,
            eos: eos.to_vec(),
            repetition_penalty: 1.0,
            batch_size: 32,
        }
    }
}

/// What was generated for one prompt.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Completion {
    /// New tokens; the last is an end-of-sequence token unless the completion is truncated.
    pub tokens: Vec<u32>,
    /// For each token, its log-probability under the model as it is: temperature 1, nothing cut off.
    pub log_probs: Vec<f32>,
    /// For each token, its log-probability under the distribution it was drawn from; 0 where nothing is drawn.
    pub sampling_log_probs: Vec<f32>,
    /// Whether the horizon ended it.
    pub truncated: bool,
}

/// How far a generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Completions that are done.
    pub finished: usize,
    /// Completions in all.
    pub total: usize,
    /// Tokens generated so far.
    pub tokens: usize,
}

/// Why a generation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// An option is out of range.
    #[error("generation: {reason}")]
    Option {
        /// Which option, and what is allowed.
        reason: String,
    },
    /// A prompt cannot be continued.
    #[error("prompt {index}: {reason}")]
    Prompt {
        /// Place of the prompt in the list.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The model's logits are not numbers, as after a diverged training.
    #[error("prompt {index}: the logits after {tokens} new tokens are not finite")]
    NonFinite {
        /// Place of the prompt in the list.
        index: usize,
        /// Tokens generated before.
        tokens: usize,
    },
    /// The progress callback asked to stop.
    #[error("the generation was cancelled")]
    Cancelled,
    /// The model failed.
    #[error(transparent)]
    Model(#[from] CausalLmError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

pub(super) type Result<T> = std::result::Result<T, GenerateError>;

/// Checks that every number is in range.
pub(super) fn check(options: &GenerateOptions, strategy: &Strategy) -> Result<()> {
    let divides = |x: f64| DIVISORS.contains(&x);
    let range = format!("from {:?} to {}", DIVISORS.start(), DIVISORS.end());
    let reason = if options.max_new_tokens == 0 {
        "`max_new_tokens` is 0, expected at least 1".to_owned()
    } else if options.batch_size == 0 {
        "`batch_size` is 0, expected at least 1".to_owned()
    } else if !divides(options.repetition_penalty) {
        format!(
            "`repetition_penalty` is {:?}, expected a number {range}",
            options.repetition_penalty
        )
    } else {
        match strategy {
            Strategy::Sampling(sampling) if !divides(sampling.temperature) => format!(
                "`temperature` is {:?}, expected a number {range} (or the greedy strategy)",
                sampling.temperature
            ),
            Strategy::Sampling(sampling) if !(0.0..=1.0).contains(&sampling.top_p) => {
                format!("`top_p` is {}, expected 0 to 1", sampling.top_p)
            }
            Strategy::Contrastive(search) if !(0.0..=1.0).contains(&search.alpha) => {
                format!("`alpha` is {}, expected 0 to 1", search.alpha)
            }
            Strategy::Contrastive(search) if search.top_k == 0 => {
                "`top_k` is 0, expected at least 1 candidate".to_owned()
            }
            Strategy::Contrastive(search) if !search.temperature.is_none_or(divides) => format!(
                "`temperature` is {:?}, expected a number {range}",
                search.temperature.unwrap_or_default()
            ),
            Strategy::Greedy | Strategy::Sampling(_) | Strategy::Contrastive(_) => return Ok(()),
        }
    };
    Err(GenerateError::Option { reason })
}
