//! Choices by logits that lie on the processor, row by row.

use candle_core::Tensor;

use super::contrastive;
use super::decoder::{Asking, Choosing, Decoder};
use super::distribution::{Choice, draw, largest, log_sum_exp, penalise};
use super::host_decoder::numbers;
use super::options::{Contrastive, Result, Strategy};
use crate::ml::kernels::threads;
use crate::ml::models::causal::CausalLm;

/// A decoder whose hidden states lie on the processor.
pub(super) trait OnHost: Decoder<State = Vec<f32>, Context = Vec<f32>> {}

impl<D: Decoder<State = Vec<f32>, Context = Vec<f32>>> OnHost for D {}

/// Returns the logits (rows x vocabulary) of the rows' hidden states.
fn logits<D: OnHost>(model: &CausalLm, rows: &[Asking<'_, D>]) -> Result<Vec<f32>> {
    let hidden: Vec<f32> = rows.iter().flat_map(|row| row.state).copied().collect();
    let width = model.config().embedding_size;
    let hidden = Tensor::from_vec(hidden, (rows.len(), width), model.device())?;
    Ok(numbers(&model.logits(&hidden)?)?)
}

/// Chooses by the highest logit or by a draw.
pub(super) fn choose<D: OnHost>(
    model: &CausalLm,
    rows: &[Asking<'_, D>],
    how: &Choosing<'_>,
) -> Result<Vec<Choice>> {
    let mut logits = logits(model, rows)?;
    let vocabulary = logits.len() / rows.len();
    let asked = rows.iter().zip(logits.chunks_exact_mut(vocabulary));
    Ok(threads::map(asked, |(row, logits)| {
        let normaliser = log_sum_exp(logits);
        if !normaliser.is_finite() {
            return Choice::none(normaliser);
        }
        let raw = logits.to_vec();
        punish(row, logits, how);
        let (token, sampling_log_prob) = match how.strategy {
            Strategy::Sampling(sampling) => draw(logits, sampling, row.uniform),
            Strategy::Greedy | Strategy::Contrastive(_) => (largest(logits), 0.0),
        };
        Choice {
            token,
            log_prob: raw[token as usize] - normaliser,
            sampling_log_prob,
            normaliser,
        }
    }))
}

/// Tries each row's candidates, then chooses by the hidden states that they lead to.
pub(super) fn search<D: OnHost>(
    decoder: &D,
    model: &CausalLm,
    rows: &[Asking<'_, D>],
    search: &Contrastive,
    how: &Choosing<'_>,
) -> Result<(Vec<(Choice, usize)>, D::Step)> {
    let mut logits = logits(model, rows)?;
    let vocabulary = logits.len() / rows.len();
    let asked = rows.iter().zip(logits.chunks_exact_mut(vocabulary));
    let candidates = threads::map(asked, |(row, logits)| {
        let normaliser = log_sum_exp(logits);
        let raw = logits.to_vec();
        punish(row, logits, how);
        let found = contrastive::candidates(logits, &raw, normaliser, search);
        (normaliser, found)
    });
    let tried: Vec<(&D::Memory, u32)> = rows
        .iter()
        .zip(&candidates)
        .flat_map(|(row, (_, found))| found.iter().map(|found| (row.memory, found.token)))
        .collect();
    let step = decoder.step(&tried)?;
    let mut first = 0;
    let mut chosen = Vec::with_capacity(rows.len());
    for (row, (normaliser, candidates)) in rows.iter().zip(&candidates) {
        let states = (first..first + candidates.len()).map(|index| decoder.state(&step, index));
        let states: Vec<Vec<f32>> = states.collect::<Result<_>>()?;
        let context = row.context.map_or(&[][..], Vec::as_slice);
        let best = contrastive::choose(candidates, &states, context, search.alpha);
        let choice = Choice {
            token: candidates[best].token,
            log_prob: candidates[best].log_prob,
            sampling_log_prob: 0.0,
            normaliser: *normaliser,
        };
        chosen.push((choice, first + best));
        first += candidates.len();
    }
    Ok((chosen, step))
}

/// Adds a hidden state to a context.
pub(super) fn look_back(context: &mut Vec<f32>, state: &[f32]) {
    context.extend(contrastive::unit_length(state, state.len()));
}

fn punish<D: OnHost>(row: &Asking<'_, D>, logits: &mut [f32], how: &Choosing<'_>) {
    if how.repetition_penalty != 1.0 {
        penalise(logits, row.seen.iter().copied(), how.repetition_penalty);
    }
}
