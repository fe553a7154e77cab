//! Examples of a dataset as tokens, and what becomes of those that are too long.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::training::at_least_one;
use crate::artifacts::dataset::Example;
use crate::artifacts::language_model::LanguageModel;
use crate::engine::context::RunContext;
use crate::engine::stage::{Problem, StageError};
use crate::ml::tokenizer::Tokenizer;
use crate::ml::trainer::TokenizedCompletion;
use crate::ml::trainer::reward::TokenizedPair;

/// What becomes of completions of the data set that are too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum LongCompletions {
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
    pub(super) fn leaves_out(&self) -> bool {
        *self == Self::LeaveOut
    }
}

/// The params of a training that limit its examples.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_tokens: Option<usize>,
    pub(super) max_prompt_tokens: Option<usize>,
    pub(super) long_completions: LongCompletions,
}

impl Limits {
    pub(super) fn validate(self, problems: &mut Vec<Problem>) {
        let prompt = self.max_prompt_tokens.unwrap_or(1);
        at_least_one("max_prompt_tokens", prompt as u64, problems);
        if self.max_tokens.is_some_and(|most| most <= prompt) {
            problems.push(Problem::new(
                "max_tokens",
                "`max_tokens` must be above `max_prompt_tokens`, and at least 2: a completion has a token",
            ));
        }
    }

    pub(super) fn lengths(self, model: &LanguageModel) -> Lengths {
        Lengths {
            most: context_length(model, self.max_tokens),
            prompt: self.max_prompt_tokens,
            long_completions: self.long_completions,
        }
    }
}

/// How long examples may be, in tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lengths {
    /// Prompt and completion together.
    pub(super) most: usize,
    /// The prompt, which loses its beginning.
    prompt: Option<usize>,
    long_completions: LongCompletions,
}

impl Lengths {
    /// Examples of more than `most` tokens are left out.
    pub(super) fn up_to(most: usize) -> Self {
        Self {
            most,
            prompt: None,
            long_completions: LongCompletions::LeaveOut,
        }
    }
}

/// Returns how many tokens a model takes, `asked` at most.
pub(super) fn context_length(model: &LanguageModel, asked: Option<usize>) -> usize {
    let context = model.config.max_position_embeddings;
    asked.map_or(context, |asked| asked.min(context))
}

/// Turns an example into tokens, its completion ended by the end-of-sequence token; `None` if it does not fit.
pub(super) fn tokenize(
    tokenizer: &Tokenizer,
    eos: u32,
    prompt: &str,
    completion: &str,
    lengths: Lengths,
) -> Result<Option<TokenizedCompletion>, StageError> {
    let mut tokens = tokenizer.encode_prompt_within(prompt, lengths.prompt)?;
    let prompt_length = tokens.len();
    tokens.extend(tokenizer.encode(completion)?);
    tokens.push(eos);
    if lengths.long_completions == LongCompletions::Truncate {
        tokens.truncate(lengths.most);
    }
    let fits = tokens.len() <= lengths.most && (1..tokens.len()).contains(&prompt_length);
    Ok(fits.then_some(TokenizedCompletion {
        tokens,
        prompt_length,
    }))
}

/// Tokenizes the preferred completions of `examples`; says how many were too long.
pub(super) fn tokenize_chosen(
    model: &LanguageModel,
    examples: &[Example],
    lengths: Lengths,
    ctx: &mut RunContext,
) -> Result<Vec<(u64, TokenizedCompletion)>, StageError> {
    let most = lengths.most;
    let mut rows = Vec::new();
    let mut long = 0;
    for (index, example) in examples.iter().enumerate() {
        let completion = example.chosen.as_deref().ok_or_else(|| {
            StageError::new(format!("row {index} of the dataset has no completion"))
                .hint("it has prompts only")
        })?;
        let (tokenizer, eos) = (&model.tokenizer, model.eos[0]);
        match tokenize(tokenizer, eos, &example.prompt, completion, lengths)? {
            Some(row) => rows.push((example.question_id, row)),
            None => long += 1,
        }
    }
    if long > 0 {
        ctx.note(&format!(
            "{long} of {} examples are longer than {most} tokens and were left out",
            examples.len()
        ));
    }
    if rows.is_empty() {
        return Err(
            StageError::new(format!("no example has at most {most} tokens"))
                .hint("raise `max_tokens`, or look at the dataset"),
        );
    }
    Ok(rows)
}

/// Tokenizes pairs; those with a side that is too long are left out.
pub(super) fn tokenize_pairs(
    model: &LanguageModel,
    examples: &[Example],
    lengths: Lengths,
) -> Result<Vec<TokenizedPair>, StageError> {
    let mut pairs = Vec::new();
    for (index, example) in examples.iter().enumerate() {
        let (Some(chosen), Some(rejected)) = (&example.chosen, &example.rejected) else {
            return Err(
                StageError::new(format!("row {index} of the dataset is not a pair"))
                    .hint("preferences are learnt from two completions of each prompt"),
            );
        };
        let (tokenizer, eos) = (&model.tokenizer, model.eos[0]);
        let tokenize = |text| tokenize(tokenizer, eos, &example.prompt, text, lengths);
        if let (Some(chosen), Some(rejected)) = (tokenize(chosen)?, tokenize(rejected)?) {
            pairs.push(TokenizedPair { chosen, rejected });
        }
    }
    if pairs.is_empty() {
        return Err(StageError::new(format!(
            "no pair has at most {} tokens on both sides",
            lengths.most
        )));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ml::tokenizer::{TokenizerAlgorithm, train_tokenizer};

    /// Tokens of a prompt of 4 words and a completion of 3, and where the prompt ends.
    fn row(lengths: Lengths) -> Option<(Vec<u32>, usize)> {
        let words = ["a a a a a a a b b b b b b c c c c c d d d d x x x y y z"];
        let tokenizer = train_tokenizer(TokenizerAlgorithm::WordLevel, words, 20, &[]).unwrap();
        let row = tokenize(&tokenizer, 2, "a b c d", "x y z", lengths).unwrap();
        row.map(|row| (row.tokens, row.prompt_length))
    }

    fn limits(most: usize, prompt: usize) -> Lengths {
        Lengths {
            most,
            prompt: Some(prompt),
            long_completions: LongCompletions::Truncate,
        }
    }

    #[test]
    fn long_examples_are_left_out_or_cut() {
        // Begin token 1, words from 4 on, end token 2.
        let whole = vec![1, 4, 5, 6, 7, 8, 9, 10, 2];
        assert_eq!(row(Lengths::up_to(9)), Some((whole.clone(), 5)));
        assert_eq!(row(Lengths::up_to(8)), None);
        assert_eq!(row(limits(9, 5)), Some((whole, 5)));
        // The prompt loses its oldest words, the completion its end.
        assert_eq!(row(limits(9, 3)), Some((vec![1, 6, 7, 8, 9, 10, 2], 3)));
        assert_eq!(row(limits(6, 3)), Some((vec![1, 6, 7, 8, 9, 10], 3)));
        assert_eq!(row(limits(2, 1)), Some((vec![1, 8], 1)));
        // No room for a completion.
        assert_eq!(row(limits(5, 5)), None);
    }
}
