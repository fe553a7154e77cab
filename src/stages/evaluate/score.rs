//! `score`: rewards of completions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::completions::{COMPLETIONS, SCORES};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::artifacts::reward_model::{REWARD_MODEL, RewardModel};
use crate::artifacts::table::Table;
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stages::tokenized::scorable;
use crate::stages::{defaults, passes, ranges};

/// Scores completions with a reward model: column `reward`.
///
/// With a `reference` model the column `kl` holds log pi(y|x) - log pi_ref(y|x), whose mean over samples at
/// temperature 1 estimates the KL divergence of the policy to the reference. Both models read the tokens that the policy
/// read and wrote, where they share its tokenizer, the prompt as it was cut. Completions beyond the context of one of
/// them are left out, with a note.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Completions in a forward pass; changes no result.
    #[serde(default = "defaults::batch_size", skip_serializing)]
    batch_size: usize,
}

impl Kind for Score {
    const NAME: &'static str = "score";
    const VERSION: u32 = 3;
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
        ranges::at_least_one("batch_size", self.batch_size as u64, &mut problems);
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        known.passes_on("completions");
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let mut table = Table::read(&ctx.input("completions")?.path)?;
        let reward = RewardModel::load(&ctx.input("reward")?.path)?;
        let reference = ctx.optional_input("reference");
        let reference = reference
            .map(|input| LanguageModel::load(&input.path))
            .transpose()?;
        let models: Vec<&LanguageModel> = [&reward.model].into_iter().chain(&reference).collect();
        let scorable = scorable(&mut table, &models, ctx)?;
        let tokens = scorable.sequences[0].iter().map(|row| row.tokens.clone());
        let tokens: Vec<Vec<u32>> = tokens.collect();
        let rewards = passes::rewards(ctx, &reward, &tokens, self.batch_size)?;
        table
            .columns
            .retain(|column| column.name != "reward" && column.name != "kl");
        table.number_column("reward", 3, rewards.into_iter().map(Some));
        if let Some(reference) = reference {
            let sequences = &scorable.sequences[1];
            let log_probs =
                passes::log_probs(ctx, &reference.frozen()?, sequences, self.batch_size)?;
            let kl = scorable.rows.iter().zip(log_probs);
            let kl = kl.map(|(row, reference)| Some(row.log_prob - reference));
            table.number_column("kl", 3, kl);
        }
        Ok(table.write_data(&ctx.output("scores")?)?)
    }
}
