//! `score_policy`: log-probabilities of given completions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::completions::{COMPLETIONS, SCORES};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::artifacts::table::Table;
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{GpuUse, Kind, Output, Port, Problem, StageError};
use crate::ml::placement::Precision;
use crate::stages::placement::placement;
use crate::stages::ranges::at_least_one;
use crate::stages::tokenized::scorable;
use crate::stages::{defaults, passes};

/// Sets `log_prob` of completions to their log-probability under a policy, whoever wrote them, and adds `entropy`.
///
/// At temperature 1, over all the completion's tokens and its end. `entropy` is the mean over these tokens of the exact
/// entropy of the distribution that each was chosen from, H = -sum_v p_v ln p_v in nats. A column `kl`, which compares
/// the former `log_prob` with a reference, is dropped. The tokens are those that were read and written, a cut prompt as it
/// was cut, where the tokenizer is the same. Completions beyond the policy's context are left out, with a note.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScorePolicy {
    /// Completions in a forward pass; changes no result.
    #[serde(default = "defaults::batch_size", skip_serializing)]
    batch_size: usize,
    /// The precision of weights of the model.
    #[serde(default)]
    precision: Precision,
}

impl Kind for ScorePolicy {
    const NAME: &'static str = "score_policy";
    const VERSION: u32 = 4;
    const EXAMPLE: &'static str = "{}";

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one("completions", &[COMPLETIONS, SCORES], "what is scored"),
            Port::one("policy", &[LANGUAGE_MODEL], "scores it"),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("scores", SCORES)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one("batch_size", self.batch_size as u64, &mut problems);
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        known.passes_on("completions");
        let added = ["log_prob", "entropy"];
        known.passes_on_columns(("completions", "scores"), &["kl"], &added);
    }

    fn gpu_use(&self) -> GpuUse {
        GpuUse::Tensors
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let mut table = Table::read(&ctx.input("completions")?.path)?;
        let placement = placement(ctx, self.precision)?;
        let policy = LanguageModel::load_at(&ctx.input("policy")?.path, &placement)?;
        let sequences = &scorable(&mut table, &[&policy], ctx)?.sequences[0];
        let (log_probs, entropies) =
            passes::log_probs_and_entropies(ctx, &policy.frozen()?, sequences, self.batch_size)?;
        table
            .columns
            .retain(|column| !["log_prob", "kl", "entropy"].contains(&column.name.as_str()));
        table.number_column("log_prob", 3, log_probs.into_iter().map(Some));
        table.number_column("entropy", 3, entropies.into_iter().map(Some));
        Ok(table.write_data(&ctx.output("scores")?)?)
    }
}
