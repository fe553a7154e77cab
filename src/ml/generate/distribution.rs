//! Next-token distributions: log-probabilities, reshaping and draws.

use super::options::Sampling;
use crate::ml::kernels::exponential::{exp_shifted, sum_exp};
use crate::ml::kernels::host::maximum;

/// A chosen token with its log-probabilities under the model and under what it was drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Choice {
    pub(super) token: u32,
    pub(super) log_prob: f32,
    pub(super) sampling_log_prob: f32,
    /// `log sum exp` of the logits; where it is not finite, the choice means nothing.
    pub(super) normaliser: f32,
}

impl Choice {
    /// Stands for a choice where the logits are no numbers.
    pub(super) fn none(normaliser: f32) -> Self {
        Self {
            token: 0,
            log_prob: 0.0,
            sampling_log_prob: 0.0,
            normaliser,
        }
    }
}

/// Returns `log sum exp` of the logits; not finite where they are not.
pub(super) fn log_sum_exp(logits: &[f32]) -> f32 {
    let most = maximum(logits);
    most + libm::logf(sum_exp(logits, most))
}

/// Makes tokens that were there before less probable (`penalty` above 1) or more.
pub(super) fn penalise(logits: &mut [f32], seen: impl Iterator<Item = u32>, penalty: f64) {
    for token in seen {
        let logit = &mut logits[token as usize];
        let changed = if *logit < 0.0 {
            *logit * penalty as f32
        } else {
            *logit / penalty as f32
        };
        // Infinite logits would leave no distribution.
        *logit = changed.clamp(f32::MIN, f32::MAX);
    }
}

/// Divides logits by a temperature.
///
/// Where the quotient of the largest would be infinite, it is subtracted first: that changes no distribution.
pub(super) fn temper(logits: &mut [f32], temperature: f64) {
    if temperature == 1.0 {
        return;
    }
    let temperature = temperature as f32;
    let most = maximum(logits);
    let shift = if (most / temperature).is_finite() {
        0.0
    } else {
        most
    };
    for logit in logits {
        *logit = (*logit - shift) / temperature;
    }
}

/// Returns the token with the largest logit; the lowest id among equals.
pub(super) fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

/// Draws a token after dividing by the temperature and cutting off by rank and mass.
///
/// `uniform` is from `[0, 1)`. Returns the token and its log-probability under the reshaped distribution.
pub(super) fn draw(logits: &mut [f32], sampling: &Sampling, uniform: f64) -> (u32, f32) {
    temper(logits, sampling.temperature);
    if sampling.top_k > 0 && sampling.top_k < logits.len() {
        let mut ranked = logits.to_vec();
        let place = sampling.top_k - 1;
        let (_, least, _) = ranked.select_nth_unstable_by(place, |a, b| b.total_cmp(a));
        let least = *least;
        for logit in logits.iter_mut().filter(|logit| **logit < least) {
            *logit = f32::NEG_INFINITY;
        }
    }
    let most = maximum(logits);
    let weights = logits;
    let total = f64::from(exp_shifted(weights, most));
    if sampling.top_p < 1.0 {
        cut_mass(weights, sampling.top_p * total);
    }
    // The sum in the order in which the draw adds.
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let target = uniform * total;
    let mut before = 0.0;
    let mut chosen = 0;
    for (token, weight) in weights.iter().enumerate() {
        if *weight > 0.0 {
            chosen = token;
            before += f64::from(*weight);
            if before > target {
                break;
            }
        }
    }
    let log_prob = libm::log(f64::from(weights[chosen]) / total);
    (chosen as u32, log_prob as f32)
}

/// Keeps the heaviest tokens until those before one have `mass`, at least one, and drops the others.
fn cut_mass(weights: &mut [f32], mass: f64) {
    let mut order: Vec<u32> = (0..weights.len() as u32)
        .filter(|token| weights[*token as usize] > 0.0)
        .collect();
    order.sort_unstable_by(|a, b| {
        let (heavy, other) = (weights[*a as usize], weights[*b as usize]);
        other.total_cmp(&heavy).then(a.cmp(b))
    });
    let mut kept = 0;
    let mut before = 0.0;
    for token in &order {
        if kept > 0 && before >= mass {
            break;
        }
        before += f64::from(weights[*token as usize]);
        kept += 1;
    }
    for token in &order[kept..] {
        weights[*token as usize] = 0.0;
    }
}

/// Returns the `count` most probable tokens with their probabilities under `softmax(logits / temperature)`,
/// the most probable first, the lowest id first among equals.
pub(super) fn most_probable(logits: &mut [f32], count: usize, temperature: f64) -> Vec<(u32, f32)> {
    temper(logits, temperature);
    let total = exp_shifted(logits, maximum(logits));
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let by_weight = |a: &u32, b: &u32| {
        let (heavy, other) = (logits[*a as usize], logits[*b as usize]);
        other.total_cmp(&heavy).then(a.cmp(b))
    };
    let count = count.min(order.len());
    if count < order.len() {
        order.select_nth_unstable_by(count, by_weight);
        order.truncate(count);
    }
    order.sort_unstable_by(by_weight);
    order
        .into_iter()
        .map(|token| (token, logits[token as usize] / total))
        .collect()
}
