//! The choice of contrastive search; see [`Contrastive`].

use super::distribution::most_probable;
use super::options::Contrastive;

/// Scales each state of `width` numbers to length 1; one without a direction stays.
pub(super) fn unit_length(states: &[f32], width: usize) -> Vec<f32> {
    let mut out = states.to_vec();
    for state in out.chunks_exact_mut(width) {
        let length = state.iter().map(|x| x * x).sum::<f32>().sqrt();
        if length > 0.0 {
            for x in state {
                *x /= length;
            }
        }
    }
    out
}

/// A token that is tried.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    pub(super) token: u32,
    /// Its probability under the reshaped distribution.
    pub(super) probability: f32,
    /// Its log-probability under the model as it is.
    pub(super) log_prob: f32,
}

/// Returns the candidates, the most probable first. Their mass is not made one.
///
/// `raw` are the model's logits with their `log sum exp`, `logits` those after the repetition penalty.
pub(super) fn candidates(
    logits: &mut [f32],
    raw: &[f32],
    normaliser: f32,
    search: &Contrastive,
) -> Vec<Candidate> {
    most_probable(logits, search.top_k, search.temperature.unwrap_or(1.0))
        .into_iter()
        .map(|(token, probability)| Candidate {
            token,
            probability,
            log_prob: raw[token as usize] - normaliser,
        })
        .collect()
}

/// Returns the place of the best candidate, the first among equals.
///
/// `states` are the hidden states that the candidates would have, `context` the unit-length states before.
pub(super) fn choose(
    candidates: &[Candidate],
    states: &[Vec<f32>],
    context: &[f32],
    alpha: f64,
) -> usize {
    let (keep, punish) = ((1.0 - alpha) as f32, alpha as f32);
    let mut best = (0, f32::NEG_INFINITY);
    for (place, (candidate, state)) in candidates.iter().zip(states).enumerate() {
        let state = unit_length(state, state.len());
        let nearest = context
            .chunks_exact(state.len())
            .map(|other| state.iter().zip(other).map(|(a, b)| a * b).sum::<f32>())
            .fold(f32::NEG_INFINITY, f32::max);
        let score = keep * candidate.probability - punish * nearest;
        if score > best.1 {
            best = (place, score);
        }
    }
    best.0
}
