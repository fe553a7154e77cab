//! Choices by logits that stay where the model is, all rows at once.
//!
//! What the processor finds by sorting a vocabulary is found here by halving: the least logit that stays is looked for
//! between the greatest and one that has no weight any more.

#![expect(clippy::disallowed_methods, reason = "the composed form")]

use std::collections::BTreeSet;

use candle_core::{D, DType, Result, Tensor};

use super::decoder::Choosing;
use super::distribution::Choice;
use super::options::{Contrastive, Sampling, Strategy};
use crate::ml::kernels::product::product;

/// Below the greatest logit by so much, a weight is 0.
const DEEP: f64 = -110.0;
/// Halvings of that range: what is left is finer than the numbers there.
const HALVINGS: usize = 32;
/// Weights that are summed one after the other in a draw.
const BLOCK: usize = 256;

/// What is known of the choices of rows: (rows) each, on the device.
pub(super) struct Chosen {
    /// Token ids.
    pub(super) tokens: Tensor,
    pub(super) log_probs: Tensor,
    pub(super) sampling_log_probs: Tensor,
}

/// Candidates of contrastive search: (rows, candidates) each, on the device, the most probable first.
pub(super) struct Candidates {
    pub(super) tokens: Tensor,
    pub(super) probabilities: Tensor,
    pub(super) log_probs: Tensor,
}

/// Returns `log sum exp` of each row's logits: (rows, 1).
pub(super) fn normalisers(logits: &Tensor) -> Result<Tensor> {
    logits.log_sum_exp(D::Minus1)?.unsqueeze(1)
}

/// Chooses by the highest logit or by a draw; `normalisers` are those of the logits. Each row has `seen` some tokens, and a
/// number from `[0, 1)` that a draw is made of.
pub(super) fn choose(
    logits: &Tensor,
    normalisers: &Tensor,
    (seen, uniforms): (&[&BTreeSet<u32>], &[f64]),
    how: &Choosing<'_>,
) -> Result<Chosen> {
    let punished = punish(logits, seen, how)?;
    let (tokens, sampling_log_probs) = match how.strategy {
        Strategy::Sampling(sampling) => {
            let uniforms: Vec<f32> = uniforms.iter().map(|uniform| *uniform as f32).collect();
            let uniforms = Tensor::from_vec(uniforms, (seen.len(), 1), logits.device())?;
            draw(&punished, sampling, &uniforms)?
        }
        Strategy::Greedy | Strategy::Contrastive(_) => {
            let tokens = first_greatest(&punished)?;
            let nothing = Tensor::zeros(seen.len(), DType::F32, logits.device())?;
            (tokens, nothing)
        }
    };
    let log_probs = logits.gather(&tokens.unsqueeze(1)?, 1)?;
    Ok(Chosen {
        log_probs: (log_probs - normalisers)?.squeeze(1)?,
        tokens,
        sampling_log_probs,
    })
}

/// Returns the most probable tokens.
pub(super) fn candidates(
    logits: &Tensor,
    normalisers: &Tensor,
    seen: &[&BTreeSet<u32>],
    search: &Contrastive,
    how: &Choosing<'_>,
) -> Result<Candidates> {
    let punished = punish(logits, seen, how)?;
    let tempered = tempered(&punished, search.temperature.unwrap_or(1.0))?;
    let weights = tempered.exp()?;
    let total = weights.sum_keepdim(1)?;
    let count = search.top_k.min(logits.dim(1)?);
    let places = Tensor::arange(0, logits.dim(1)? as u32, logits.device())?.unsqueeze(0)?;
    let never = Tensor::full(f32::NEG_INFINITY, tempered.shape(), logits.device())?;
    let mut left = tempered;
    let mut found = Vec::with_capacity(count);
    for _ in 0..count {
        let token = first_greatest(&left)?.unsqueeze(1)?;
        let is_it = places.broadcast_eq(&token)?;
        left = is_it.where_cond(&never, &left)?;
        found.push(token);
    }
    let tokens = Tensor::cat(&found, 1)?;
    let probabilities = weights.gather(&tokens, 1)?.broadcast_div(&total)?;
    let log_probs = logits.gather(&tokens, 1)?.broadcast_sub(normalisers)?;
    Ok(Candidates {
        tokens,
        probabilities,
        log_probs,
    })
}

/// Returns the place of the greatest number of each row, the first among equals: (rows).
///
/// Which one candle's own `argmax` finds among equals depends on the device.
pub(super) fn first_greatest(x: &Tensor) -> Result<Tensor> {
    let is_greatest = x.broadcast_eq(&x.max_keepdim(1)?)?;
    marks(&is_greatest)?.argmax(1)
}

/// Gives the places of each row that are chosen (1, others 0) a mark, the first the greatest: `argmax` then finds that.
fn marks(chosen: &Tensor) -> Result<Tensor> {
    let columns = chosen.dim(1)?;
    let marks: Vec<f32> = (0..columns).map(|place| (columns - place) as f32).collect();
    let marks = Tensor::from_vec(marks, (1, columns), chosen.device())?;
    chosen.to_dtype(DType::F32)?.broadcast_mul(&marks)
}

/// Makes tokens that were there before less probable.
fn punish(logits: &Tensor, seen: &[&BTreeSet<u32>], how: &Choosing<'_>) -> Result<Tensor> {
    let most = seen.iter().map(|seen| seen.len()).max().unwrap_or(0);
    if how.repetition_penalty == 1.0 || most == 0 {
        return Ok(logits.clone());
    }
    let mut ids: Vec<u32> = Vec::with_capacity(seen.len() * most);
    for seen in seen {
        // Every row has seen something: its prompt. The first stands for those that a shorter row lacks.
        let first = seen.first().copied().unwrap_or(0);
        ids.extend(seen.iter().copied());
        ids.extend(std::iter::repeat_n(first, most - seen.len()));
    }
    let ids = Tensor::from_vec(ids, (seen.len(), most), logits.device())?;
    let old = logits.gather(&ids, 1)?;
    let zero = old.zeros_like()?;
    let penalty = how.repetition_penalty;
    let new = old
        .lt(&zero)?
        .where_cond(&(&old * penalty)?, &(&old / penalty)?)?
        // Infinite logits would leave no distribution.
        .clamp(f32::MIN, f32::MAX)?;
    logits.contiguous()?.scatter(&ids, &new, 1)
}

/// Divides logits by a temperature, the greatest brought to 0.
fn tempered(logits: &Tensor, temperature: f64) -> Result<Tensor> {
    let logits = logits.broadcast_sub(&logits.max_keepdim(1)?)?;
    logits.affine(1.0 / temperature, 0.0)
}

/// Draws a token of each row after dividing by the temperature and cutting off by rank and mass.
///
/// `uniforms` are from `[0, 1)`: (rows, 1). Returns tokens and their log-probabilities under the reshaped distributions,
/// (rows) each.
fn draw(logits: &Tensor, sampling: &Sampling, uniforms: &Tensor) -> Result<(Tensor, Tensor)> {
    let logits = tempered(logits, sampling.temperature)?;
    let mut weights = logits.exp()?;
    if sampling.top_k > 0 && sampling.top_k < logits.dim(1)? {
        let wanted = Tensor::full(sampling.top_k as f32, uniforms.shape(), logits.device())?;
        let ones = weights.ones_like()?;
        weights = cut(&logits, &weights, &ones, &wanted)?;
    }
    if sampling.top_p < 1.0 {
        let wanted = (weights.sum_keepdim(1)? * sampling.top_p)?;
        weights = cut(&logits, &weights, &weights.clone(), &wanted)?;
    }
    pick(&weights, uniforms)
}

/// Keeps the weights of the greatest logits, so many that the `counted` of them come to what is `wanted` (rows, 1).
fn cut(logits: &Tensor, weights: &Tensor, counted: &Tensor, wanted: &Tensor) -> Result<Tensor> {
    let least = Tensor::full(DEEP as f32, wanted.shape(), logits.device())?;
    let (mut low, mut high) = (least, wanted.zeros_like()?);
    let none = weights.zeros_like()?;
    let kept = |from: &Tensor, what: &Tensor| logits.broadcast_ge(from)?.where_cond(what, &none);
    // The greatest alone may be enough.
    let enough = kept(&high, counted)?.sum_keepdim(1)?.ge(wanted)?;
    low = enough.where_cond(&high, &low)?;
    for _ in 0..HALVINGS {
        let middle = ((&low + &high)? * 0.5)?;
        let enough = kept(&middle, counted)?.sum_keepdim(1)?.ge(wanted)?;
        low = enough.where_cond(&middle, &low)?;
        high = enough.where_cond(&high, &middle)?;
    }
    kept(&low, weights)
}

/// Picks a place of each row with probabilities in proportion to its weights.
fn pick(weights: &Tensor, uniforms: &Tensor) -> Result<(Tensor, Tensor)> {
    let (rows, columns) = weights.dims2()?;
    let blocks = columns.div_ceil(BLOCK);
    let padded = weights
        .pad_with_zeros(1, 0, blocks * BLOCK - columns)?
        .reshape((rows, blocks, BLOCK))?;
    let sums = padded.sum(2)?;
    let total = sums.sum_keepdim(1)?;
    let target = (uniforms * &total)?;
    let (block, before) = step_over(&sums, &target)?;
    let index = block.reshape((rows, 1, 1))?.expand((rows, 1, BLOCK))?;
    let inside = padded.gather(&index.contiguous()?, 1)?.squeeze(1)?;
    let (place, _) = step_over(&inside, &(target - before)?)?;
    let tokens = (block.affine(BLOCK as f64, 0.0)? + place)?;
    let chosen = weights.gather(&tokens, 1)?;
    let log_probs = (chosen.log()? - total.log()?)?;
    Ok((tokens.squeeze(1)?, log_probs.squeeze(1)?))
}

/// Returns the first place of each row at which the sum of its weights exceeds `target` (rows, 1), and the sum before it.
///
/// Where rounding leaves none, it is the place of the greatest weight. One without weight is never chosen.
fn step_over(weights: &Tensor, target: &Tensor) -> Result<(Tensor, Tensor)> {
    let columns = weights.dim(1)?;
    let device = weights.device();
    let sums = product(weights, &Tensor::triu2(columns, DType::F32, device)?)?;
    let has_weight = weights.gt(&weights.zeros_like()?)?;
    let is_over = sums.broadcast_gt(target)?.mul(&has_weight)?;
    // Less than 1: it counts where no mark is set.
    let greatest = (weights.max_keepdim(1)? * 2.0)?;
    let marks = (marks(&is_over)? + weights.broadcast_div(&greatest)?)?;
    let place = marks.argmax_keepdim(1)?;
    let before = (sums.gather(&place, 1)? - weights.gather(&place, 1)?)?;
    Ok((place, before))
}

/// Brings choices back, in one go.
pub(super) fn read_back(
    chosen: &Chosen,
    normalisers: &Tensor,
) -> super::options::Result<Vec<Choice>> {
    // Below 2^24, `f32` has every whole number; no vocabulary is larger.
    let columns = [
        &chosen.tokens.to_dtype(DType::F32)?,
        &chosen.log_probs,
        &chosen.sampling_log_probs,
        &normalisers.squeeze(1)?,
    ];
    let rows: Vec<Vec<f32>> = Tensor::stack(&columns, 1)?.to_vec2()?;
    let choices = rows.into_iter().map(|row| {
        let [token, log_prob, sampling_log_prob, normaliser] = row[..] else {
            return Choice::none(f32::NAN);
        };
        if !normaliser.is_finite() {
            return Choice::none(normaliser);
        }
        Choice {
            token: token as u32,
            log_prob,
            sampling_log_prob,
            normaliser,
        }
    });
    Ok(choices.collect())
}

/// Returns the place of the best candidate of each row, the first among equals, as (rows).
///
/// `states` (rows, candidates, width) are the hidden states that the candidates would have, at unit length; `contexts` those
/// before, (positions, width) for each row.
pub(super) fn best(
    candidates: &Candidates,
    states: &Tensor,
    contexts: &[&Tensor],
    alpha: f64,
) -> Result<Tensor> {
    let nearest = contexts.iter().enumerate().map(|(row, context)| {
        let states = states.get(row)?.contiguous()?;
        product(&states, &context.contiguous()?.t()?)?.max(1)
    });
    let nearest = Tensor::stack(&nearest.collect::<Result<Vec<_>>>()?, 0)?;
    let scores =
        (candidates.probabilities.affine(1.0 - alpha, 0.0)? - nearest.affine(alpha, 0.0)?)?;
    first_greatest(&scores)
}

/// Scales each state (.., width) to length 1; one without a direction stays.
pub(super) fn unit_length(states: &Tensor) -> Result<Tensor> {
    let lengths = states.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    let ones = lengths.ones_like()?;
    let lengths = lengths
        .eq(&lengths.zeros_like()?)?
        .where_cond(&ones, &lengths)?;
    states.broadcast_div(&lengths)
}
