//! The choice of contrastive search; see [`Contrastive`].

use super::distribution::most_probable;
use super::options::Contrastive;

/// Scales each state of `width` numbers to length 1.
pub(super) fn unit_length(states: &[f32], width: usize) -> Vec<f32> {
    let mut out = states.to_vec();
    for state in out.chunks_exact_mut(width) {
        let length = state.iter().map(|x| x * x).sum::<f32>().sqrt();
        for x in state {
            *x /= length;
        }
    }
    out
}

/// Returns the candidates with their probabilities, the most probable first. Their mass is not made one.
pub(super) fn candidates(logits: &mut [f32], search: &Contrastive) -> Vec<(u32, f32)> {
    most_probable(logits, search.top_k, search.temperature.unwrap_or(1.0))
}

/// Returns the place of the best candidate, the first among equals.
///
/// `states` are the hidden states that the candidates would have, `context` the unit-length states before.
pub(super) fn choose(
    candidates: &[(u32, f32)],
    states: &[Vec<f32>],
    context: &[f32],
    alpha: f64,
) -> usize {
    let (keep, punish) = ((1.0 - alpha) as f32, alpha as f32);
    let mut best = (0, f32::NEG_INFINITY);
    for (place, ((_, probability), state)) in candidates.iter().zip(states).enumerate() {
        let state = unit_length(state, state.len());
        let nearest = context
            .chunks_exact(state.len())
            .map(|other| state.iter().zip(other).map(|(a, b)| a * b).sum::<f32>())
            .fold(f32::NEG_INFINITY, f32::max);
        let score = keep * probability - punish * nearest;
        if score > best.1 {
            best = (place, score);
        }
    }
    best.0
}
