//! `score`: rewards of completions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{defaults, training};
use crate::artifacts::completions::{COMPLETIONS, CompletionRow, SCORES, from_table};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::artifacts::reward_model::{REWARD_MODEL, RewardModel};
use crate::artifacts::table::Table;
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::ml::llama::Llama;
use crate::ml::tokenizer::Tokenizer;
use crate::ml::trainer::TokenizedCompletion;
use crate::ml::trainer::actions::Actions;

/// Scores completions with a reward model: column `reward`.
///
/// With a `reference` model the column `kl` holds log pi(y|x) - log pi_ref(y|x), whose mean over samples at
/// temperature 1 estimates the KL divergence of the policy to the reference.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Completions in a forward pass; changes no result.
    #[serde(default = "defaults::batch_size", skip_serializing)]
    batch_size: usize,
}

impl Kind for Score {
    const NAME: &'static str = "score";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = "{}";

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one("completions", &[COMPLETIONS, SCORES], "what is scored"),
            Port::one("reward", &[REWARD_MODEL], "scores it"),
            Port::optional(
                "reference",
                &[LANGUAGE_MODEL],
                "the model that the policy started from",
            ),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("scores", SCORES)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        training::at_least_one("batch_size", self.batch_size as u64, &mut problems);
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let mut table = Table::read(&ctx.input("completions")?.path)?;
        let rows = from_table(&table)?;
        let reward = RewardModel::load(&ctx.input("reward")?.path)?;
        let sequences = tokenize(&rows, &reward.model.tokenizer, &reward.model.eos)?;
        let tokens: Vec<Vec<u32>> = sequences.iter().map(|row| row.tokens.clone()).collect();
        let rewards = reward.rewards(&tokens, self.batch_size)?;
        table
            .columns
            .retain(|column| column.name != "reward" && column.name != "kl");
        table.number_column("reward", 3, rewards.into_iter().map(Some));
        if let Some(input) = ctx.optional_input("reference") {
            let reference = LanguageModel::load(&input.path)?;
            let sequences = tokenize(&rows, &reference.tokenizer, &reference.eos)?;
            let log_probs = log_probs(&reference.frozen()?, &sequences, self.batch_size)?;
            let kl = rows.iter().zip(log_probs);
            let kl = kl.map(|(row, reference)| Some(row.log_prob - reference));
            table.number_column("kl", 3, kl);
        }
        Ok(table.write_data(&ctx.output("scores")?)?)
    }
}

/// Returns the log-probability of each completion under a model.
pub(super) fn log_probs(
    model: &Llama,
    sequences: &[TokenizedCompletion],
    batch_size: usize,
) -> Result<Vec<f64>, StageError> {
    let mut sums = Vec::with_capacity(sequences.len());
    for sequences in sequences.chunks(batch_size) {
        let actions = Actions::new(&sequences.iter().collect::<Vec<_>>());
        let log_probs = actions.frozen_log_probs(model)?.to_vec2::<f32>()?;
        sums.extend(log_probs.iter().map(|tokens| {
            let tokens = tokens.iter().map(|value| f64::from(*value));
            tokens.sum::<f64>()
        }));
    }
    Ok(sums)
}

/// Returns the log-probability of each completion under a model, and the mean over its tokens of the entropy of the
/// next-token distribution, in nats.
pub(super) fn log_probs_and_entropies(
    model: &Llama,
    sequences: &[TokenizedCompletion],
    batch_size: usize,
) -> Result<(Vec<f64>, Vec<f64>), StageError> {
    let (mut sums, mut entropies) = (Vec::new(), Vec::new());
    for sequences in sequences.chunks(batch_size) {
        let actions = Actions::new(&sequences.iter().collect::<Vec<_>>());
        let states = actions.states(&model.forward(&actions.batch)?, false)?;
        let log_probs = actions.log_probs(model, &states)?.to_vec2::<f32>()?;
        sums.extend(log_probs.iter().map(|tokens| {
            let tokens = tokens.iter().map(|value| f64::from(*value));
            tokens.sum::<f64>()
        }));
        entropies.extend(actions.mean_entropies(model, &states)?);
    }
    Ok((sums, entropies))
}

/// Tokenizes completions as they were generated.
pub(super) fn tokenize(
    rows: &[CompletionRow],
    tokenizer: &Tokenizer,
    eos: &[u32],
) -> Result<Vec<TokenizedCompletion>, StageError> {
    rows.iter()
        .map(|row| {
            let mut tokens = tokenizer.encode_prompt(&row.prompt)?;
            let prompt_length = tokens.len();
            tokens.extend(completion_tokens(row, tokenizer, eos)?);
            if tokens.len() == prompt_length {
                return Err(StageError::new(format!(
                    "the completion of question {} has no tokens and did not end: it cannot be scored",
                    row.question_id
                )));
            }
            Ok(TokenizedCompletion { tokens, prompt_length })
        })
        .collect()
}

/// The tokens that the policy chose if they spell the completion in this tokenizer; else those of its text, ended by
/// the end-of-sequence token unless the horizon ended it.
fn completion_tokens(
    row: &CompletionRow,
    tokenizer: &Tokenizer,
    eos: &[u32],
) -> Result<Vec<u32>, StageError> {
    if let Some(ids) = &row.token_ids {
        let has_ended = ids.last().is_some_and(|id| eos.contains(id));
        if has_ended != row.truncated && tokenizer.decode(ids)? == row.completion {
            return Ok(ids.clone());
        }
    }
    let mut tokens = tokenizer.encode(&row.completion)?;
    if !row.truncated {
        tokens.push(eos[0]);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ml::tokenizer::{TokenizerAlgorithm, train_tokenizer};

    const EOS: [u32; 1] = [2];

    fn tokenizer(text: &str) -> Tokenizer {
        train_tokenizer(TokenizerAlgorithm::Bpe, [text], 270, &[]).unwrap()
    }

    /// A completion whose every byte was chosen as a token of its own.
    fn by_bytes(tokenizer: &Tokenizer, text: &str, truncated: bool) -> CompletionRow {
        let ids = text.split_inclusive(|_| true);
        let ids = ids.flat_map(|byte| tokenizer.encode(byte).unwrap());
        let ids = ids.chain((!truncated).then_some(EOS[0]));
        CompletionRow {
            prompt: "why".to_owned(),
            completion: text.to_owned(),
            token_ids: Some(ids.collect()),
            truncated,
            ..CompletionRow::default()
        }
    }

    fn completion(row: &CompletionRow, tokenizer: &Tokenizer) -> Vec<u32> {
        let rows = tokenize(std::slice::from_ref(row), tokenizer, &EOS).unwrap();
        rows[0].tokens[rows[0].prompt_length..].to_vec()
    }

    #[test]
    fn tokens_are_those_that_the_policy_chose() {
        let tokenizer = tokenizer("that that that");
        let read_again = tokenizer.encode("that").unwrap();
        for truncated in [true, false] {
            let row = by_bytes(&tokenizer, "that", truncated);
            let chosen = completion(&row, &tokenizer);
            assert_eq!(Some(&chosen), row.token_ids.as_ref());
            assert!(read_again.len() < 4 && chosen.len() == 4 + usize::from(!truncated));
        }
    }

    #[test]
    fn tokens_of_another_tokenizer_are_read_again_from_the_text() {
        let (ours, theirs) = (tokenizer("that that that"), tokenizer("why why why"));
        let row = CompletionRow {
            token_ids: Some(theirs.encode("why").unwrap()),
            ..by_bytes(&ours, "why", true)
        };
        assert_eq!(completion(&row, &ours), ours.encode("why").unwrap());
        let written = CompletionRow {
            token_ids: None,
            truncated: false,
            ..row
        };
        let expected = [ours.encode("why").unwrap(), EOS.to_vec()].concat();
        assert_eq!(completion(&written, &ours), expected);
    }

    #[test]
    fn tokens_without_the_end_that_the_row_claims_are_read_again() {
        let tokenizer = tokenizer("that that that");
        let row = CompletionRow {
            truncated: false,
            ..by_bytes(&tokenizer, "that", true)
        };
        let expected = [tokenizer.encode("that").unwrap(), EOS.to_vec()].concat();
        assert_eq!(completion(&row, &tokenizer), expected);
    }
}
