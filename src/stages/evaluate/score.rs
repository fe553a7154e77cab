//! `score`: rewards of completions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::completions::{COMPLETIONS, CompletionRow, SCORES};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::artifacts::reward::{REWARDS, Reward};
use crate::artifacts::reward_program::RewardProgram;
use crate::artifacts::reward_rule::{Asked, Finding, RewardRule};
use crate::artifacts::table::Table;
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{GpuUse, Kind, Output, Port, Problem, StageError};
use crate::ml::placement::Precision;
use crate::stages::placement::placement;
use crate::stages::rewards::program::{Program, Text};
use crate::stages::tokenized::scorable;
use crate::stages::{defaults, passes, ranges};

/// Scores completions with a reward model, a reward rule or a reward program: column `reward`.
///
/// A rule reads the texts; its column `answer` has the answer that it takes out of each, which `metric_table` counts.
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
    /// The precision of the models' weights.
    #[serde(default)]
    precision: Precision,
}

impl Kind for Score {
    const NAME: &'static str = "score";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = "{}";

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one("completions", &[COMPLETIONS, SCORES], "what is scored"),
            Port::one(
                "reward",
                REWARDS,
                "scores it: a reward model, a rule or a program",
            ),
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
        let added: &[&str] = if known.is_connected("reference") {
            &["reward", "answer", "kl"]
        } else {
            &["reward", "answer"]
        };
        known.passes_on_columns(("completions", "scores"), &["kl"], added);
    }

    fn gpu_use(&self) -> GpuUse {
        GpuUse::Tensors
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let mut table = Table::read(&ctx.input("completions")?.path)?;
        let placement = placement(ctx, self.precision)?;
        let reward = ctx.input("reward")?;
        let reward = Reward::load(reward, &placement)?;
        let reference = ctx.optional_input("reference");
        let reference = reference
            .map(|input| LanguageModel::load_at(&input.path, &placement))
            .transpose()?;
        let models: Vec<&LanguageModel> = reward.model().into_iter().chain(&reference).collect();
        let mut scorable = scorable(&mut table, &models, ctx)?;
        table
            .columns
            .retain(|column| !["reward", "answer", "kl"].contains(&column.name.as_str()));
        match &reward {
            Reward::Model(model) => {
                let rows = scorable.sequences.remove(0).into_iter();
                let tokens: Vec<Vec<u32>> = rows.map(|row| row.tokens).collect();
                let rewards = passes::rewards(ctx, model, &tokens, self.batch_size)?;
                table.number_column("reward", 3, rewards.into_iter().map(Some));
            }
            Reward::Rule(rule) => judge_all(rule, &scorable.rows, &mut table, ctx)?,
            Reward::Program(program) => {
                let rewards = by_program(program, &scorable.rows, ctx)?;
                table.number_column("reward", 3, rewards.into_iter().map(Some));
            }
        }
        if let Some(reference) = reference {
            if let Some(row) = scorable.rows.iter().find(|row| row.log_prob.is_none()) {
                return Err(StageError::new(format!(
                    "nobody says how probable sample {} of question {} is under the policy that wrote it: `kl` compares \
                     that with the reference",
                    row.sample, row.question_id
                ))
                .hint("`score_policy` with the policy says it; or leave `reference` out"));
            }
            let sequences = &scorable.sequences[0];
            let log_probs =
                passes::log_probs(ctx, &reference.frozen()?, sequences, self.batch_size)?;
            let kl = scorable.rows.iter().zip(log_probs);
            let kl = kl.map(|(row, reference)| Some(row.log_prob? - reference));
            table.number_column("kl", 3, kl);
        }
        Ok(table.write_data(&ctx.output("scores")?)?)
    }
}

/// Returns the rewards that a program gives.
fn by_program(
    program: &RewardProgram,
    rows: &[CompletionRow],
    ctx: &mut RunContext,
) -> Result<Vec<f64>, StageError> {
    let program = Program::open(program.clone(), "scores", ctx)?;
    let texts: Vec<Text<'_>> = rows.iter().map(Text::of_row).collect();
    program.ahead(&texts)?;
    let rewards = ctx.pass(
        "completions scored",
        &texts,
        program.batch_size(),
        |texts| program.rewards(texts),
    )?;
    program.finish("scores", ctx)?;
    Ok(rewards)
}

/// Adds what a rule says of completions; notes how many are right if none is.
fn judge_all(
    rule: &RewardRule,
    rows: &[CompletionRow],
    table: &mut Table,
    ctx: &mut RunContext,
) -> Result<(), StageError> {
    let verdicts = ctx.pass("completions scored", rows, passes::TEXTS, |rows| {
        let rows = rows.iter().map(|row| {
            let asked = Asked {
                prompt: &row.prompt,
                question: &row.question,
            };
            rule.judge(asked, &row.completion, !row.truncated)
        });
        rows.collect::<Result<Vec<_>, _>>()
    })?;
    table.number_column("reward", 3, verdicts.iter().map(|found| Some(found.reward)));
    table.text_column("answer", verdicts.iter().map(|found| found.answer.clone()));
    let count = |finding: Finding| {
        let found = verdicts.iter().filter(|found| found.finding == finding);
        found.count()
    };
    if !verdicts.is_empty() && count(Finding::Right) == 0 {
        ctx.note(&format!(
            "none of {} completions is right by the rule: {} wrong, {} malformed, {} unfinished",
            verdicts.len(),
            count(Finding::Wrong),
            count(Finding::Malformed),
            count(Finding::Unfinished)
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::artifacts::completions::to_table;
    use crate::artifacts::reward_rule::{Arithmetic, REWARD_RULE, Rule, RuleDescription};
    use crate::stages::tryout::{Tried, attempt};

    /// Scores completions of one problem by a rule; those with `|` at their end were cut.
    fn scored(folder: &std::path::Path, completions: &[&str]) -> Tried {
        let rows = completions.iter().map(|text| CompletionRow {
            question: "numbers 2 3 6 target 18".to_owned(),
            prompt: "Question: numbers 2 3 6 target 18 Answer:".to_owned(),
            completion: text.trim_end_matches('|').to_owned(),
            truncated: text.ends_with('|'),
            ..CompletionRow::default()
        });
        let rows: Vec<CompletionRow> = rows.collect();
        let [data, rule] = ["completions", "rule"].map(|name| folder.join(name));
        let mut table = to_table("completions", &rows);
        // Of an earlier rule.
        table.text_column("answer", rows.iter().map(|_| Some("old".to_owned())));
        fs_err::create_dir_all(&data).unwrap();
        table.write_data(&data).unwrap();
        let description = RuleDescription {
            unfinished: Rule::Arithmetic(Arithmetic { greatest: 24 }).usual_unfinished(),
            rule: Rule::Arithmetic(Arithmetic { greatest: 24 }),
            right: 1.0,
            wrong: 0.0,
            malformed: -1.0,
            answers: Vec::new(),
        };
        fs_err::create_dir_all(&rule).unwrap();
        RewardRule::new(description).unwrap().save(&rule).unwrap();
        let inputs = [
            ("completions", COMPLETIONS, data.as_path()),
            ("reward", REWARD_RULE, rule.as_path()),
        ];
        attempt::<Score>(folder, json!({}), &inputs, None)
    }

    #[test]
    fn a_rule_adds_rewards_and_answers() {
        let folder = tempfile::tempdir().unwrap();
        let completions = ["3 * 6 = 18", "6 - 3 = 3", "6 +", "3 * 6 = 18|"];
        let tried = scored(folder.path(), &completions);
        tried.outcome.as_ref().unwrap();
        let table = Table::read(&tried.output("scores")).unwrap();
        assert_eq!(table.all_numbers("reward").unwrap(), [1.0, 0.0, -1.0, 0.0]);
        let answers = [
            Some("6 * 3 = 18"),
            Some("6 - 3 = 3"),
            None,
            Some("6 * 3 = 18"),
        ];
        assert_eq!(
            table.texts("answer").unwrap(),
            answers.map(|text| text.map(str::to_owned))
        );
        assert_eq!(tried.told.notes, Vec::<String>::new());
    }

    #[test]
    fn a_rule_that_calls_nothing_right_is_a_result_with_a_note() {
        let folder = tempfile::tempdir().unwrap();
        let tried = scored(folder.path(), &["6 - 3 = 3", "6 +", "3 * 6 = 18|"]);
        tried.outcome.as_ref().unwrap();
        let note = "none of 3 completions is right by the rule: 1 wrong, 1 malformed, 1 unfinished";
        assert_eq!(tried.told.notes, [note]);
        let table = Table::read(&tried.output("scores")).unwrap();
        assert_eq!(table.all_numbers("reward").unwrap(), [0.0, -1.0, 0.0]);
    }
}
