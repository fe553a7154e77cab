//! `enumerate_answers`: every legal answer of the generated world to some questions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::completions::{COLUMNS, COMPLETIONS, CompletionRow, to_table};
use crate::artifacts::dataset::{DATASET, Dataset};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stages::ranges::at_least_one;
use crate::world::Examiner;

/// Lists every legal answer of the generated world to some questions (or dialogues; every legal summary of posts; every right derivation of problems of arithmetic), so that a policy can be measured exactly.
///
/// The completions are ended; `log_prob` is the log-probability with which the world itself gives the answer, and
/// `exact_reward` its reward. `score_policy` puts a model's log-probability in its place, `target_distance` compares
/// that with R(y) / Z.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnumerateAnswers {
    /// How many questions, the first ones of `prompts`; each question has 249 answers, each post 153
    /// summaries, each problem 2 to 60 derivations.
    n: usize,
    /// Which world.
    #[serde(default)]
    world: u64,
}

impl Kind for EnumerateAnswers {
    const NAME: &'static str = "enumerate_answers";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = "{ n: 20 }";

    fn ports(&self) -> Vec<Port> {
        vec![Port::one(
            "prompts",
            &[DATASET],
            "prompts of the generated world",
        )]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("answers", COMPLETIONS)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one("n", self.n as u64, &mut problems);
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        let columns = [COLUMNS.as_slice(), &["exact_reward", "mode"]].concat();
        known.says_columns("answers", columns);
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let dataset = Dataset::read(&ctx.input("prompts")?.path)?;
        let examples = dataset.distinct_prompts();
        if examples.len() < self.n {
            return Err(StageError::new(format!(
                "`n` is {}, but the dataset has {} distinct prompts",
                self.n,
                examples.len()
            )));
        }
        let examiner = Examiner::new(self.world);
        let mut rows = Vec::new();
        let mut rewards = Vec::new();
        let mut modes = Vec::new();
        for (_, example) in &examples[..self.n] {
            let exam = examiner.exam(&example.question).ok_or_else(|| {
                StageError::new(format!(
                    "`{}` is no prompt of the generated world {}",
                    example.question, self.world
                ))
            })?;
            for (sample, answer) in (0..).zip(exam.legal()) {
                // A token a word in the world's own tokenizer, and the end.
                let tokens = answer.text.split(' ').count() as u64 + 1;
                rewards.push(Some(answer.reward));
                modes.push(Some(answer.mode.unwrap_or("none").to_owned()));
                rows.push(CompletionRow {
                    question_id: example.question_id,
                    sample,
                    question: example.question.clone(),
                    prompt: example.prompt.clone(),
                    completion: answer.text,
                    tokens: Some(tokens),
                    log_prob: Some(answer.log_prior),
                    ..CompletionRow::default()
                });
            }
        }
        let mut table = to_table("Legal answers of the generated world", &rows);
        table.number_column("exact_reward", 3, rewards);
        table.text_column("mode", modes);
        Ok(table.write_data(&ctx.output("answers")?)?)
    }
}
