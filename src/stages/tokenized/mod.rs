//! Texts of a dataset as tokens of a model, and what becomes of those that are too long.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use self::boundary::Boundary;
use self::boundary::{Split, note_boundary};
pub(crate) use self::completions::{scorable, tokenize_completions};
pub(crate) use self::prompts::tokenize_prompts;
use super::passes;
use crate::artifacts::dataset::Example;
use crate::artifacts::language_model::{CONTEXT, LanguageModel};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Problem, StageError};
use crate::ml::tokenizer::Tokenizer;
use crate::ml::trainer::TokenizedCompletion;
use crate::ml::trainer::reward::TokenizedPair;
use crate::stages::ranges::at_least_one;

mod boundary;
mod completions;
mod prompts;

/// What becomes of completions of the data set that are too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LongCompletions {
    /// They are left out.
    #[default]
    LeaveOut,
    /// They end at the limit without an end-of-sequence token, as what is sampled does at the horizon.
    Truncate,
}

impl LongCompletions {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde passes a reference"
    )]
    pub(crate) fn leaves_out(&self) -> bool {
        *self == Self::LeaveOut
    }
}

/// The params of a training that limit its examples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_tokens: Option<usize>,
    pub(crate) max_prompt_tokens: Option<usize>,
    pub(crate) long_completions: LongCompletions,
    pub(crate) boundary: Boundary,
}

impl Limits {
    pub(crate) fn validate(self, problems: &mut Vec<Problem>) {
        let prompt = self.max_prompt_tokens.unwrap_or(1);
        at_least_one("max_prompt_tokens", prompt as u64, problems);
        if self.max_tokens.is_some_and(|most| most <= prompt) {
            problems.push(Problem::new(
                "max_tokens",
                "`max_tokens` must be above `max_prompt_tokens`, and at least 2: a completion has a token",
            ));
        }
    }

    pub(crate) fn lengths(self, model: &LanguageModel) -> Lengths {
        Lengths {
            most: context_length(model, self.max_tokens),
            prompt: self.max_prompt_tokens,
            long_completions: self.long_completions,
            boundary: self.boundary,
            ..Lengths::up_to(0)
        }
    }
}

/// How long examples may be, in tokens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lengths {
    /// Prompt and completion together.
    pub(crate) most: usize,
    /// The prompt, which loses its beginning.
    prompt: Option<usize>,
    /// Tokens that must fit behind the prompt, whatever its completion has.
    horizon: usize,
    long_completions: LongCompletions,
    boundary: Boundary,
}

impl Lengths {
    /// Examples of more than `most` tokens are left out.
    pub(crate) fn up_to(most: usize) -> Self {
        Self {
            most,
            prompt: None,
            horizon: 0,
            long_completions: LongCompletions::LeaveOut,
            boundary: Boundary::Apart,
        }
    }

    /// Examples whose prompt leaves no room for `horizon` new tokens are left out as well.
    pub(crate) fn with_room_for(self, horizon: usize) -> Self {
        Self { horizon, ..self }
    }

    pub(crate) fn with_boundary(self, boundary: Boundary) -> Self {
        Self { boundary, ..self }
    }
}

/// Refuses a horizon that leaves no token of a model's context for the prompt.
pub(crate) fn needs_room(known: &mut Known<'_>, port: &str, max_new_tokens: usize) {
    let hint = "a model takes prompt and completion together: lower it, or take a model with a longer context";
    let least = max_new_tokens.saturating_add(1);
    known.needs(
        port,
        CONTEXT,
        least,
        ("max_new_tokens", max_new_tokens),
        hint,
    );
}

/// Returns how many tokens a model takes, `asked` at most.
pub(crate) fn context_length(model: &LanguageModel, asked: Option<usize>) -> usize {
    let context = model.config.max_position_embeddings;
    asked.map_or(context, |asked| asked.min(context))
}

/// An example as tokens, or why it is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fit {
    Row(TokenizedCompletion),
    TooLong,
    /// Its prompt leaves too little room, or has no token.
    NoRoom,
}

impl Fit {
    fn row(self) -> Option<TokenizedCompletion> {
        match self {
            Self::Row(row) => Some(row),
            Self::TooLong | Self::NoRoom => None,
        }
    }
}

/// Turns an example into tokens, its completion ended by the end-of-sequence token.
fn fit(
    tokenizer: &Tokenizer,
    eos: u32,
    prompt: &str,
    completion: &str,
    lengths: Lengths,
) -> Result<Fit, StageError> {
    let split = lengths.boundary.split(tokenizer, prompt, completion)?;
    Ok(fit_tokens(tokenizer, eos, split, lengths))
}

fn fit_tokens(
    tokenizer: &Tokenizer,
    eos: u32,
    (prompt, completion): Split,
    lengths: Lengths,
) -> Fit {
    let mut tokens = tokenizer.cut_prompt(prompt, lengths.prompt);
    let prompt_length = tokens.len();
    if prompt_length == 0 || prompt_length + lengths.horizon > lengths.most {
        return Fit::NoRoom;
    }
    tokens.extend(completion);
    tokens.push(eos);
    if lengths.long_completions == LongCompletions::Truncate {
        tokens.truncate(lengths.most);
    }
    if tokens.len() > lengths.most || tokens.len() == prompt_length {
        return Fit::TooLong;
    }
    Fit::Row(TokenizedCompletion {
        tokens,
        prompt_length,
    })
}

/// Turns an example into tokens of a model; `None` if it does not fit.
pub(crate) fn tokenize(
    model: &LanguageModel,
    prompt: &str,
    completion: &str,
    lengths: Lengths,
) -> Result<Option<TokenizedCompletion>, StageError> {
    let fit = fit(&model.tokenizer, model.eos[0], prompt, completion, lengths)?;
    Ok(fit.row())
}

/// Checks that a model knows tokens: a tokenizer may have more than the model that it came with.
fn check_vocabulary(
    model: &LanguageModel,
    tokens: &[u32],
    of: impl Fn() -> String,
) -> Result<(), StageError> {
    let size = model.config.vocab_size;
    match tokens.iter().find(|id| **id as usize >= size) {
        None => Ok(()),
        Some(id) => Err(StageError::new(format!(
            "{}: token {id} is outside the model's vocabulary of {size}",
            of()
        ))
        .hint("tokenizer and model do not belong together")),
    }
}

/// What was left out of a dataset.
#[derive(Debug, Default)]
struct LeftOut {
    too_long: usize,
    no_room: usize,
}

impl LeftOut {
    fn note(&self, of: usize, what: &str, lengths: Lengths, ctx: &mut RunContext) {
        let most = lengths.most;
        if self.too_long > 0 {
            ctx.note(&format!(
                "{} of {of} {what} are longer than {most} tokens and were left out",
                self.too_long
            ));
        }
        if self.no_room > 0 {
            ctx.note(&format!(
                "{} of {of} {what} have a prompt that is empty or leaves no room for {} tokens of {most}, and were left \
                 out",
                self.no_room,
                lengths.horizon.max(1)
            ));
        }
    }
}

/// Tokenizes the preferred completions of `examples`, each with its example's place; says how many did not fit.
pub(crate) fn tokenize_chosen(
    model: &LanguageModel,
    examples: &[Example],
    lengths: Lengths,
    ctx: &mut RunContext,
) -> Result<Vec<(usize, TokenizedCompletion)>, StageError> {
    let most = lengths.most;
    let mut left_out = LeftOut::default();
    let mut index = 0;
    let rows = ctx.pass("examples read", examples, passes::TEXTS, |examples| {
        let mut rows = Vec::with_capacity(examples.len());
        for example in examples {
            let completion = example.chosen.as_deref().ok_or_else(|| {
                StageError::new(format!("row {index} of the dataset has no completion"))
                    .hint("it has prompts only")
            })?;
            let (tokenizer, eos) = (&model.tokenizer, model.eos[0]);
            match fit(tokenizer, eos, &example.prompt, completion, lengths)? {
                Fit::Row(row) => {
                    check_vocabulary(model, &row.tokens, || format!("row {index} of the dataset"))?;
                    rows.push((index, row));
                }
                Fit::TooLong => left_out.too_long += 1,
                Fit::NoRoom => left_out.no_room += 1,
            }
            index += 1;
        }
        Ok::<_, StageError>(rows)
    })?;
    left_out.note(examples.len(), "examples", lengths, ctx);
    if rows.is_empty() {
        let (error, hint) = if left_out.no_room > 0 {
            (
                format!(
                    "no prompt leaves room for {} tokens of {most}",
                    lengths.horizon.max(1)
                ),
                "lower `max_new_tokens`, set `max_prompt_tokens` where the kind has it, or look at the dataset",
            )
        } else {
            (
                format!("no example has at most {most} tokens"),
                "raise `max_tokens`, or look at the dataset",
            )
        };
        return Err(StageError::new(error).hint(hint));
    }
    let texts = examples
        .iter()
        .filter_map(|example| Some((example.prompt.as_str(), example.chosen.as_deref()?)));
    note_boundary(&model.tokenizer, texts, lengths.boundary, ctx)?;
    Ok(rows)
}

/// Tokenizes pairs, which notes call `what`; those with a side that does not fit are left out, with their number.
pub(crate) fn tokenize_pairs(
    model: &LanguageModel,
    examples: &[Example],
    what: &str,
    lengths: Lengths,
    ctx: &mut RunContext,
) -> Result<Vec<TokenizedPair>, StageError> {
    let mut index = 0;
    let pairs = ctx.pass(
        &format!("{what} read"),
        examples,
        passes::TEXTS,
        |examples| {
            let mut pairs = Vec::with_capacity(examples.len());
            for example in examples {
                let (Some(chosen), Some(rejected)) = (&example.chosen, &example.rejected) else {
                    return Err(StageError::new(format!(
                        "row {index} of the dataset is not a pair"
                    ))
                    .hint("preferences are learnt from two completions of each prompt"));
                };
                let tokenizer = &model.tokenizer;
                let sides = [chosen.as_str(), rejected.as_str()];
                let splits = lengths
                    .boundary
                    .split_all(tokenizer, &example.prompt, sides)?;
                let sides =
                    splits.map(|split| fit_tokens(tokenizer, model.eos[0], split, lengths).row());
                if let [Some(chosen), Some(rejected)] = sides {
                    for side in [&chosen, &rejected] {
                        check_vocabulary(model, &side.tokens, || {
                            format!("row {index} of the dataset")
                        })?;
                    }
                    pairs.push(TokenizedPair { chosen, rejected });
                }
                index += 1;
            }
            Ok(pairs)
        },
    )?;
    if pairs.is_empty() {
        return Err(StageError::new(format!(
            "no pair has at most {} tokens on both sides",
            lengths.most
        )));
    }
    if pairs.len() < examples.len() {
        ctx.note(&format!(
            "{} of {} {what} fit into {} tokens",
            pairs.len(),
            examples.len(),
            lengths.most
        ));
    }
    let equal = pairs.iter().filter(|pair| pair.chosen == pair.rejected);
    let equal = equal.count();
    if equal > 0 {
        ctx.note(&format!(
            "{equal} of {} {what} have the same tokens on both sides: nothing is preferred in them",
            pairs.len()
        ));
    }
    let texts = examples.iter().flat_map(|example| {
        let sides = example.chosen.iter().chain(&example.rejected);
        sides.map(|side| (example.prompt.as_str(), side.as_str()))
    });
    note_boundary(&model.tokenizer, texts, lengths.boundary, ctx)?;
    Ok(pairs)
}

/// Checks that the same ids mean the same tokens.
pub(crate) fn check_vocabularies(policy: &Tokenizer, reward: &Tokenizer) -> Result<(), StageError> {
    let fail = |what: String| {
        StageError::new(format!(
            "policy and reward model have different vocabularies: {what}"
        ))
        .hint("train the reward model from the policy's own starting model")
    };
    let (ours, theirs) = (policy.vocab_size(), reward.vocab_size());
    if ours != theirs {
        return Err(fail(format!("{ours} and {theirs} tokens")));
    }
    let differing: BTreeSet<u32> = (0..ours as u32)
        .filter(|id| policy.id_to_token(*id) != reward.id_to_token(*id))
        .collect();
    match differing.first() {
        None => Ok(()),
        Some(id) => {
            let name = |tokenizer: &Tokenizer| tokenizer.id_to_token(*id).unwrap_or_default();
            Err(fail(format!(
                "{} tokens differ, such as {id}: `{}` and `{}`",
                differing.len(),
                name(policy),
                name(reward)
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ml::tokenizer::{TokenizerAlgorithm, train_tokenizer};

    /// A prompt of 4 words and a completion of 3, behind the begin token.
    fn fitted(lengths: Lengths) -> Fit {
        let words = ["a a a a a a a b b b b b b c c c c c d d d d x x x y y z"];
        let tokenizer = train_tokenizer(TokenizerAlgorithm::WordLevel, words, 20, &[]).unwrap();
        fit(&tokenizer, 2, "a b c d", "x y z", lengths).unwrap()
    }

    fn row(tokens: &[u32], prompt_length: usize) -> Fit {
        Fit::Row(TokenizedCompletion {
            tokens: tokens.to_vec(),
            prompt_length,
        })
    }

    fn limits(most: usize, prompt: usize) -> Lengths {
        Lengths {
            prompt: Some(prompt),
            long_completions: LongCompletions::Truncate,
            ..Lengths::up_to(most)
        }
    }

    #[test]
    fn long_examples_are_left_out_or_cut() {
        // Begin token 1, words from 4 on, end token 2.
        let whole = row(&[1, 4, 5, 6, 7, 8, 9, 10, 2], 5);
        assert_eq!(fitted(Lengths::up_to(9)), whole);
        assert_eq!(fitted(Lengths::up_to(8)), Fit::TooLong);
        assert_eq!(fitted(limits(9, 5)), whole);
        // The prompt loses its oldest words, the completion its end.
        assert_eq!(fitted(limits(9, 3)), row(&[1, 6, 7, 8, 9, 10, 2], 3));
        assert_eq!(fitted(limits(6, 3)), row(&[1, 6, 7, 8, 9, 10], 3));
        assert_eq!(fitted(limits(2, 1)), row(&[1, 8], 1));
        // No room for a completion.
        assert_eq!(fitted(limits(5, 5)), Fit::TooLong);
        assert_eq!(fitted(limits(4, 5)), Fit::NoRoom);
    }

    #[test]
    fn prompts_without_room_for_new_tokens_are_left_out() {
        let room = |horizon| fitted(Lengths::up_to(9).with_room_for(horizon));
        assert!(matches!(room(4), Fit::Row(_)));
        assert_eq!(room(5), Fit::NoRoom);
    }
}
