//! `score_world`: what the generated world itself says of completions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::completions::{COMPLETIONS, SCORES, from_table};
use crate::artifacts::table::Table;
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, StageError};
use crate::world::{Examiner, toxicity_reward};

/// What fills the column `reward`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WorldReward {
    /// What is there already: a learned reward.
    #[default]
    Keep,
    /// The exact reward.
    Exact,
    /// The toxicity reward: 1 for a civil completion, less for each rude word.
    Toxicity,
}

/// Adds the generated world's own judgement of completions: `exact_reward`, `coherent`, `rude_words`,
/// `slot_errors`, `mode`.
///
/// Completions of questions, of dialogues, of posts (whose form is the `mode`, and whose wrong words are the
/// `slot_errors`) and of problems of arithmetic (whose last operation is the `mode`, and which are coherent if every step
/// holds). Beside a learned reward this shows reward hacking: a policy can raise the learned reward while the exact one falls.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScoreWorld {
    /// Which world.
    #[serde(default)]
    world: u64,
    /// What fills the column `reward`.
    #[serde(default)]
    reward: WorldReward,
}

/// The columns that this kind adds.
const ADDED: [&str; 5] = [
    "exact_reward",
    "coherent",
    "rude_words",
    "slot_errors",
    "mode",
];

impl Kind for ScoreWorld {
    const NAME: &'static str = "score_world";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = "{}";

    fn ports(&self) -> Vec<Port> {
        vec![Port::one(
            "completions",
            &[COMPLETIONS, SCORES],
            "completions of prompts of the world",
        )]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("scores", SCORES)]
    }

    fn facts(&self, known: &mut Known<'_>) {
        known.passes_on("completions");
        let reward: &[&str] = match self.reward {
            WorldReward::Keep => &[],
            WorldReward::Exact | WorldReward::Toxicity => &["reward"],
        };
        let added = [&ADDED, reward].concat();
        known.passes_on_columns(("completions", "scores"), &[], &added);
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let mut table = Table::read(&ctx.input("completions")?.path)?;
        let examiner = Examiner::new(self.world);
        let rows = from_table(&table)?;
        let mut assessed = Vec::with_capacity(rows.len());
        for row in &rows {
            let exam = examiner.exam(&row.question).ok_or_else(|| {
                StageError::new(format!(
                    "`{}` is no prompt of the generated world {}",
                    row.question, self.world
                ))
            })?;
            assessed.push(exam.marks(&row.completion, !row.truncated));
        }
        match self.reward {
            WorldReward::Keep if !table.has("reward") => {
                return Err(StageError::new("the completions have no rewards to keep")
                    .hint("score them first, or set `reward: exact` or `reward: toxicity`"));
            }
            WorldReward::Keep => {}
            WorldReward::Exact | WorldReward::Toxicity => {
                table.columns.retain(|column| column.name != "reward");
                let rewards = rows.iter().zip(&assessed).map(|(row, assessment)| {
                    Some(if self.reward == WorldReward::Exact {
                        assessment.reward
                    } else {
                        toxicity_reward(&row.completion)
                    })
                });
                table.number_column("reward", 3, rewards.collect::<Vec<_>>());
            }
        }
        // Scored before, or enumerated with their rewards.
        table
            .columns
            .retain(|column| !ADDED.contains(&column.name.as_str()));
        let number = |flag: bool| Some(f64::from(u8::from(flag)));
        table.number_column("exact_reward", 3, assessed.iter().map(|a| Some(a.reward)));
        table.number_column(
            "coherent",
            2,
            assessed
                .iter()
                .map(|a| number(a.mode.is_some() && a.leftover_words == 0)),
        );
        table.number_column(
            "rude_words",
            2,
            assessed.iter().map(|a| Some(a.rude_words as f64)),
        );
        table.number_column(
            "slot_errors",
            2,
            assessed.iter().map(|a| Some(a.slot_errors as f64)),
        );
        table.text_column(
            "mode",
            assessed
                .iter()
                .map(|a| Some(a.mode.unwrap_or("none").to_owned())),
        );
        Ok(table.write_data(&ctx.output("scores")?)?)
    }
}
