//! `compare_completions`: what several policies answer to the same questions.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::groups::{Grouping, Row, Run, rows_named, within};
use super::scored::{self, Scored};
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::excerpt::listed;
use crate::stages::defaults;

/// Shows what several policies answer to the same questions, one row for each question and policy.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CompareCompletions {
    /// Which questions, counted from 0 in the order of the first input.
    #[serde(default = "first")]
    questions: Vec<usize>,
    /// Which sample of each question.
    #[serde(default)]
    sample: u64,
    /// The axis whose values are compared.
    #[serde(default = "defaults::policy")]
    row: String,
    /// The axis whose values are the runs of a row.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// The run shown, a value of `aggregate`; the first one if null.
    #[serde(default)]
    run: Option<String>,
    /// The rows shown, in this order; all if empty.
    #[serde(default)]
    rows: Vec<String>,
    /// Numeric columns of `scores` shown beside the completion.
    #[serde(default = "reward")]
    columns: Vec<String>,
    /// Names shown instead of values of `row`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// The title.
    #[serde(default = "title")]
    title: String,
}

fn first() -> Vec<usize> {
    vec![0]
}

fn reward() -> Vec<String> {
    vec!["reward".to_owned()]
}

fn title() -> String {
    "Completions of the same questions".to_owned()
}

impl Kind for CompareCompletions {
    const NAME: &'static str = "compare_completions";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = "{ questions: [0, 7], columns: [reward, exact_reward] }";

    fn ports(&self) -> Vec<Port> {
        vec![scored::scores_port()]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("table", TABLE)]
    }

    fn validate(&self) -> Vec<Problem> {
        if self.questions.is_empty() {
            vec![Problem::new("questions", "`questions` is empty").hint("the first question is 0")]
        } else {
            Vec::new()
        }
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let grouping = Grouping {
            row: std::slice::from_ref(&self.row),
            aggregate: &self.aggregate,
            names: &self.row_names,
        };
        let rows = scored::load_scores(ctx, grouping)?;
        self.table(&rows)?.write(&ctx.output("table")?)?;
        Ok(())
    }
}

impl CompareCompletions {
    fn table(&self, rows: &[Row<Scored>]) -> Result<Table, StageError> {
        let chosen = rows_named(rows, &self.rows)?;
        let runs: Vec<(&Row<Scored>, &Run<Scored>)> = chosen
            .into_iter()
            .map(|row| Ok((row, self.run_of(row)?)))
            .collect::<Result<_, StageError>>()?;
        let Some((_, guide)) = runs.first() else {
            return Err(StageError::new("there is nothing to compare"));
        };
        let mut cells = Vec::new();
        for question in &self.questions {
            let places = guide.content.questions.get(*question).ok_or_else(|| {
                StageError::new(format!(
                    "there is no question {question}: the questions are 0 to {}",
                    guide.content.questions.len().saturating_sub(1)
                ))
            })?;
            let identity = (guide.content.identities[places[0]].0, self.sample);
            for (row, run) in &runs {
                let at = run
                    .content
                    .identities
                    .iter()
                    .position(|other| *other == identity)
                    .ok_or_else(|| {
                        StageError::new(format!(
                            "{} has no sample {} of question {} (question_id {})",
                            row.describe(run, &self.aggregate),
                            identity.1,
                            question,
                            identity.0
                        ))
                    })?;
                cells.push((*row, *run, at));
            }
        }
        let texts = |column: &str| -> Result<Vec<Option<String>>, StageError> {
            cells
                .iter()
                .map(|(_, run, at)| Ok(run.content.table.texts(column)?[*at].clone()))
                .collect()
        };
        let mut table = Table::new(&self.title);
        table.text_column("Question", texts("question")?);
        table.text_column(
            &self.row,
            cells.iter().map(|(row, ..)| Some(row.name.clone())),
        );
        table.text_column("Completion", texts("completion")?);
        for column in &self.columns {
            let numbers: Vec<Option<f64>> = cells
                .iter()
                .map(|(row, run, at)| match run.content.table.numbers(column) {
                    Ok(values) => Ok(values[*at]),
                    Err(error) => Err(within(&row.describe(run, &self.aggregate), error)),
                })
                .collect::<Result<_, _>>()?;
            table.number_column(column, 3, numbers);
        }
        if !guide.label.is_empty() {
            table.notes.push(format!(
                "{} {}, sample {}.",
                self.aggregate, guide.label, self.sample
            ));
        }
        Ok(table)
    }

    /// The run shown; a row without the axis has one run for all.
    fn run_of<'a>(&self, row: &'a Row<Scored>) -> Result<&'a Run<Scored>, StageError> {
        let wanted = match &self.run {
            None => row.runs.first(),
            Some(label) => row
                .runs
                .iter()
                .find(|run| run.label == *label || run.label.is_empty()),
        };
        wanted.ok_or_else(|| {
            let known: Vec<&str> = row.runs.iter().map(|run| run.label.as_str()).collect();
            StageError::new(format!(
                "`{}` has no run `{}`",
                row.label,
                self.run.as_deref().unwrap_or_default()
            ))
            .hint(format!("its runs are: {}", listed(known)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::report::fixture::{rows, scored};

    fn kind(params: serde_json::Value) -> CompareCompletions {
        serde_json::from_value(params).unwrap()
    }

    fn all() -> Vec<Row<Scored>> {
        rows(vec![
            scored("ppo", 1, 1.0, 9),
            scored("ppo", 2, 1.0, 9),
            scored("tb", 2, 0.0, 9),
            scored("tb", 1, 0.0, 9),
        ])
    }

    #[test]
    fn policies_stand_side_by_side() {
        let rows = all();
        let table = kind(serde_json::json!({ "questions": [4, 0], "run": "2" }))
            .table(&rows)
            .unwrap();
        let text = |column: &str| -> Vec<String> { table.all_texts(column).unwrap() };
        assert_eq!(
            text("Question"),
            ["question 4", "question 4", "question 0", "question 0"]
        );
        assert_eq!(text("policy"), ["ppo", "tb", "ppo", "tb"]);
        assert_eq!(text("Completion")[1], "tb says word4 and word1");
        let rewards = table.all_numbers("reward").unwrap();
        assert_eq!(
            rewards[0],
            rows[0].runs[1].content.column("reward").unwrap()[4]
        );
        assert_eq!(
            rewards[1],
            rows[1].runs[0].content.column("reward").unwrap()[4]
        );
    }

    #[test]
    fn what_is_not_there_is_named() {
        let fails = |params, part: &str| match kind(params).table(&all()) {
            Err(StageError::Failed { message, .. }) => assert!(message.contains(part), "{message}"),
            other => panic!("{other:?}"),
        };
        fails(
            serde_json::json!({ "questions": [9] }),
            "the questions are 0 to 8",
        );
        fails(
            serde_json::json!({ "sample": 1 }),
            "ppo, seed 1 has no sample 1 of question 0",
        );
        fails(serde_json::json!({ "run": "3" }), "`ppo` has no run `3`");
        fails(
            serde_json::json!({ "columns": ["rewards"] }),
            "no column `rewards`",
        );
        fails(
            serde_json::json!({ "rows": ["pp"] }),
            "no input is the row `pp`",
        );
    }
}
