//! `score_classifier`: rewards of completions by a text classifier.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::completions::{COMPLETIONS, SCORES, from_table};
use crate::artifacts::table::Table;
use crate::artifacts::text_encoder::{TEXT_CLASSIFIER, TextClassifier};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{GpuUse, Kind, Output, Port, Problem, StageError};
use crate::ml::placement::Precision;
use crate::stages::passes;
use crate::stages::placement::placement;
use crate::stages::ranges::at_least_one;

/// Scores completions with a text classifier: column `reward`, the raw logit of one class.
///
/// Only the completion is read, not the prompt, as in TRL's detoxification example. With `scale` and `offset` the
/// reward is `scale` x logit + `offset`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoreClassifier {
    /// The class whose logit is the reward.
    class: String,
    /// Factor of the logit.
    #[serde(default = "one")]
    scale: f64,
    /// Added to it.
    #[serde(default)]
    offset: f64,
    /// Tokens in a forward pass; changes no result.
    #[serde(default = "batch_tokens", skip_serializing)]
    batch_tokens: usize,
}

fn one() -> f64 {
    1.0
}

fn batch_tokens() -> usize {
    4096
}

impl Kind for ScoreClassifier {
    const NAME: &'static str = "score_classifier";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = "{ class: neutral }";

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one("completions", &[COMPLETIONS, SCORES], "what is scored"),
            Port::one("classifier", &[TEXT_CLASSIFIER], "scores it"),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("scores", SCORES)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one("batch_tokens", self.batch_tokens as u64, &mut problems);
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        known.passes_on("completions");
        known.passes_on_columns(("completions", "scores"), &[], &["reward"]);
    }

    fn gpu_use(&self) -> GpuUse {
        GpuUse::Tensors
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let mut table = Table::read(&ctx.input("completions")?.path)?;
        let texts: Vec<String> = from_table(&table)?
            .into_iter()
            .map(|row| row.completion)
            .collect();
        let device = placement(ctx, Precision::F32)?.device;
        let classifier = TextClassifier::load_at(&ctx.input("classifier")?.path, &device)?;
        let class = classifier.class(&self.class)?;
        let part = passes::texts_at_once(&texts);
        let logits = ctx.pass("texts", &texts, part, |texts| {
            classifier.logits(texts, self.batch_tokens)
        })?;
        table.columns.retain(|column| column.name != "reward");
        let rewards = logits
            .iter()
            .map(|logits| Some(self.scale * f64::from(logits[class]) + self.offset));
        table.number_column("reward", 3, rewards);
        Ok(table.write_data(&ctx.output("scores")?)?)
    }
}
