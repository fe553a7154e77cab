//! Passes of frozen models over many rows, in parts of seconds: they say how far they are and can be stopped.

use crate::artifacts::reward_model::RewardModel;
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::ml::models::causal::CausalLm;
use crate::ml::trainer::TokenizedCompletion;
use crate::ml::trainer::actions::Actions;

/// Tokens of a part: seconds for a model of some hundred million parameters.
const TOKENS: usize = 4096;
/// Texts of a part that is quickly done, such as reading them with a tokenizer.
pub(crate) const TEXTS: usize = 256;

/// Returns how many rows make a part, at most `most`.
///
/// A row's numbers do not depend on those beside it, so neither do results on this.
pub(crate) fn rows_at_once(lengths: impl IntoIterator<Item = usize>, most: usize) -> usize {
    let longest = lengths.into_iter().max().unwrap_or(0).max(1);
    (TOKENS / longest).clamp(1, most.max(1))
}

/// Returns how many texts make a part for an encoder, which reads some hundred tokens of each.
pub(crate) fn texts_at_once(texts: &[String]) -> usize {
    /// Bytes of a token, more or less, and the tokens that usual encoders take.
    const BYTES: usize = 4;
    const LONGEST: usize = 512;
    let tokens = texts.iter().map(|text| (text.len() / BYTES).min(LONGEST));
    rows_at_once(tokens, TEXTS)
}

/// Returns the reward of each row, `most` rows at once at most.
pub(crate) fn rewards(
    ctx: &mut RunContext,
    reward: &RewardModel,
    rows: &[Vec<u32>],
    most: usize,
) -> Result<Vec<f64>, StageError> {
    let part = rows_at_once(rows.iter().map(Vec::len), most);
    ctx.pass("completions scored", rows, part, |rows| {
        reward.rewards(rows, part)
    })
}

/// Returns the log-probability of each completion under a model, `most` at once at most.
pub(crate) fn log_probs(
    ctx: &mut RunContext,
    model: &CausalLm,
    sequences: &[TokenizedCompletion],
    most: usize,
) -> Result<Vec<f64>, StageError> {
    let part = rows_at_once(sequences.iter().map(|row| row.tokens.len()), most);
    ctx.pass("completions scored", sequences, part, |sequences| {
        let actions = Actions::new(&sequences.iter().collect::<Vec<_>>());
        let log_probs = actions.frozen_log_probs(model)?.to_vec2::<f32>()?;
        Ok::<_, StageError>(sums(&log_probs))
    })
}

/// Returns the log-probability of each completion under a model, and the mean over its tokens of the entropy of the
/// next-token distribution, in nats.
pub(crate) fn log_probs_and_entropies(
    ctx: &mut RunContext,
    model: &CausalLm,
    sequences: &[TokenizedCompletion],
    most: usize,
) -> Result<(Vec<f64>, Vec<f64>), StageError> {
    let part = rows_at_once(sequences.iter().map(|row| row.tokens.len()), most);
    let found = ctx.pass("completions scored", sequences, part, |sequences| {
        let actions = Actions::new(&sequences.iter().collect::<Vec<_>>());
        let states = actions.states(&model.forward(&actions.batch)?, false)?;
        let log_probs = actions.log_probs(model, &states)?.to_vec2::<f32>()?;
        let entropies = actions.mean_entropies(model, &states)?;
        let both = sums(&log_probs).into_iter().zip(entropies);
        Ok::<_, StageError>(both.collect::<Vec<_>>())
    })?;
    Ok(found.into_iter().unzip())
}

fn sums(log_probs: &[Vec<f32>]) -> Vec<f64> {
    let rows = log_probs.iter();
    rows.map(|tokens| tokens.iter().map(|value| f64::from(*value)).sum())
        .collect()
}
