//! `efficiency`: what the training of several policies cost.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::groups::{Grouping, Row, row_named};
use super::trainings::{ended, load_curves};
use crate::artifacts::curve::{CURVE, Curve, TrainingSummary};
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, StageError};
use crate::stages::defaults;

/// Shows what the training of several policies cost: steps, tokens and floating-point operations.
///
/// Operations are counted from shapes, so they are the same on every machine; seconds and memory belong to records,
/// which `flowgraph show` prints. Numbers are means over the runs.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Efficiency {
    /// The axis whose values are the rows; a training without it is named after its stage.
    #[serde(default = "defaults::policy")]
    row: String,
    /// The axis whose values are the runs of a row.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// The row whose operations are 100%.
    #[serde(default)]
    relative_to: Option<String>,
    /// A paper's share of the operations of `relative_to`, in percent, for each row.
    #[serde(default)]
    reference_values: BTreeMap<String, f64>,
    /// Names shown instead of values of `row`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// The title.
    #[serde(default = "title")]
    title: String,
    /// What else must be known to read the table.
    #[serde(default)]
    notes: Vec<String>,
}

fn title() -> String {
    "Cost of training".to_owned()
}

impl Kind for Efficiency {
    const NAME: &'static str = "efficiency";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = r#"{ relative_to: ppo, reference_values: { flowhf: 3.45 },
      notes: ["Paper: FlowHF takes under 3.5% of PPO's FLOPs: 4 h x 3 GPUs x 0.46 / (20 h x 8 GPUs) = 3.45%."] }"#;

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::many(
                "curves",
                &[CURVE],
                "training curves of every policy and seed",
            )
            .labelled()
            .with_costs(),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("table", TABLE)]
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let grouping = Grouping {
            row: std::slice::from_ref(&self.row),
            aggregate: &self.aggregate,
            names: &self.row_names,
        };
        let rows = load_curves(ctx, grouping)?;
        self.table(&rows)?.write(&ctx.output("table")?)?;
        Ok(())
    }
}

fn mean_of(row: &Row<Curve>, value: impl Fn(&TrainingSummary) -> f64) -> f64 {
    row.runs
        .iter()
        .map(|run| value(&run.content.summary))
        .sum::<f64>()
        / row.runs.len() as f64
}

impl Efficiency {
    fn table(&self, rows: &[Row<Curve>]) -> Result<Table, StageError> {
        let mut table = Table::new(&self.title);
        table.text_column(&self.row, rows.iter().map(|row| Some(row.name.clone())));
        table.whole_column("Runs", rows.iter().map(|row| Some(row.runs.len() as f64)));
        let mut number =
            |heading: &str, decimals: usize, value: &dyn Fn(&TrainingSummary) -> f64| {
                table.number_column(
                    heading,
                    decimals,
                    rows.iter().map(|row| Some(mean_of(row, value))),
                );
            };
        number("Steps", 0, &|summary| summary.steps as f64);
        number("Trained parameters", 0, &|summary| {
            summary.trained_parameters as f64
        });
        number("Trained tokens", 0, &|summary| {
            summary.trained_tokens as f64
        });
        number("Generated tokens", 0, &|summary| {
            summary.generated_tokens as f64
        });
        number("GFLOP", 3, &|summary| summary.flops / 1e9);
        if let Some(label) = &self.relative_to {
            let base = row_named(rows, label)?;
            let whole = mean_of(base, |summary| summary.flops);
            if whole <= 0.0 {
                return Err(StageError::new(format!(
                    "`{label}` counted no operations, so nothing is relative to it"
                )));
            }
            let share = |row: &Row<Curve>| 100.0 * mean_of(row, |summary| summary.flops) / whole;
            table.number_column(
                format!("% of {}", base.name),
                1,
                rows.iter().map(|row| Some(share(row))),
            );
            if !self.reference_values.is_empty() {
                let reported = rows
                    .iter()
                    .map(|row| self.reference_values.get(&row.label).copied());
                table.number_column(format!("% of {} (paper)", base.name), 2, reported);
            }
        }
        table.text_column(
            "Training",
            rows.iter()
                .map(|row| ended(&row.runs.iter().map(|run| &run.content).collect::<Vec<_>>())),
        );
        table.notes.extend(self.notes.iter().cloned());
        table.notes.push(
            "Operations are counted from shapes: those of the training stage itself, with its sampling and scoring, and \
             not those of the models it starts from. A training that diverged stopped early."
                .to_owned(),
        );
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::curve::Status;
    use crate::stages::report::fixture::{curve, rows};

    fn kind(params: serde_json::Value) -> Efficiency {
        serde_json::from_value(params).unwrap()
    }

    #[test]
    fn costs_are_means_over_runs_relative_to_one_row() {
        let all = rows(vec![
            curve("ppo", 1, Status::Completed, 8e9),
            curve("ppo", 3, Status::Completed, 12e9),
            curve("flowhf", 1, Status::Diverged, 1e9),
        ]);
        let params =
            serde_json::json!({ "relative_to": "ppo", "reference_values": { "flowhf": 3.45 } });
        let table = kind(params).table(&all).unwrap();
        assert_eq!(table.numbers("GFLOP").unwrap(), [Some(10.0), Some(1.0)]);
        assert_eq!(
            table.numbers("% of ppo").unwrap(),
            [Some(100.0), Some(10.0)]
        );
        assert_eq!(
            table.numbers("% of ppo (paper)").unwrap(),
            [None, Some(3.45)]
        );
        assert_eq!(
            table.numbers("Trained tokens").unwrap(),
            [Some(2000.0), Some(1000.0)]
        );
        assert_eq!(
            table.all_texts("Training").unwrap(),
            ["completed", "diverged at step 4"]
        );
    }

    #[test]
    fn nothing_is_relative_to_what_is_not_there() {
        let free = rows(vec![curve("ppo", 1, Status::Completed, 0.0)]);
        assert!(
            kind(serde_json::json!({ "relative_to": "ppo" }))
                .table(&free)
                .is_err()
        );
        assert!(
            kind(serde_json::json!({ "relative_to": "pop" }))
                .table(&free)
                .is_err()
        );
        assert!(
            !kind(serde_json::json!({}))
                .table(&free)
                .unwrap()
                .has("% of ppo")
        );
    }
}
