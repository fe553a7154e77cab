//! `score`: rewards of completions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::training;
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
    #[serde(default = "batch_size", skip_serializing)]
    batch_size: usize,
}

fn batch_size() -> usize {
    64
}

impl Kind for Score {
    const NAME: &'static str = "score";
    const VERSION: u32 = 1;
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

/// Tokenizes completions as they were generated: ended by the end-of-sequence token unless the horizon ended them.
pub(super) fn tokenize(
    rows: &[CompletionRow],
    tokenizer: &Tokenizer,
    eos: &[u32],
) -> Result<Vec<TokenizedCompletion>, StageError> {
    rows.iter()
        .map(|row| {
            let mut tokens = tokenizer.encode_prompt(&row.prompt)?;
            let prompt_length = tokens.len();
            tokens.extend(tokenizer.encode(&row.completion)?);
            if !row.truncated {
                tokens.push(eos[0]);
            }
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
