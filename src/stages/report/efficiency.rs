//! `efficiency`: what the training of several policies cost.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::groups::{Grouping, Row, Run, refuse_ungrouped, row_named, within};
use super::reach::Reach;
use super::repeats::once;
use super::trainings::{ended, load_curves};
use crate::artifacts::curve::{CURVE, Curve, TrainingSummary};
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::excerpt::listed;
use crate::stages::defaults;
use crate::stages::ranges::at_least_one;
use crate::stats::mean;

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
    /// With this, the operations until each row first reaches what `relative_to` ends with, and the other way round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reach: Option<Reach>,
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
    const VERSION: u32 = 4;
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

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if let Some(reach) = &self.reach {
            at_least_one("reach.window", reach.window as u64, &mut problems);
            if self.relative_to.is_none() {
                let what = "`reach` compares with `relative_to`, which is not given";
                problems.push(Problem::new("reach", what).hint("such as `relative_to: ppo`"));
            }
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        let base: Vec<String> = self.relative_to.iter().cloned().collect();
        refuse_ungrouped(
            known,
            "curves",
            self.grouping(),
            true,
            ("relative_to", &base),
        );
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let rows = load_curves(ctx, self.grouping())?;
        self.table(&rows)?.write(&ctx.output("table")?)?;
        Ok(())
    }
}

fn mean_of(row: &Row<&Curve>, value: impl Fn(&TrainingSummary) -> f64) -> f64 {
    row.runs
        .iter()
        .map(|run| value(&run.content.summary))
        .sum::<f64>()
        / row.runs.len() as f64
}

impl Efficiency {
    fn grouping(&self) -> Grouping<'_> {
        Grouping {
            row: std::slice::from_ref(&self.row),
            aggregate: &self.aggregate,
            names: &self.row_names,
        }
    }

    fn table(&self, rows: &[Row<Curve>]) -> Result<Table, StageError> {
        let all = rows;
        let (rows, repeats) = once(all, &self.aggregate);
        let rows = rows.as_slice();
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
            let share = |row: &Row<&Curve>| 100.0 * mean_of(row, |summary| summary.flops) / whole;
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
        if let (Some(reach), Some(label)) = (&self.reach, &self.relative_to) {
            add_reached(&mut table, rows, row_named(all, label)?, reach)?;
        }
        table.text_column(
            "Training",
            rows.iter()
                .map(|row| ended(&row.runs.iter().map(|run| run.content).collect::<Vec<_>>())),
        );
        table.notes.extend(self.notes.iter().cloned());
        table.notes.push(
            "Operations are counted from shapes: those of the training stage itself, with its sampling and scoring, and \
             not those of the models it starts from. A training that diverged stopped early."
                .to_owned(),
        );
        if let Some(label) = &self.relative_to {
            table
                .notes
                .extend(self.other_runs(all, row_named(all, label)?));
        }
        table.notes.extend(repeats);
        Ok(table)
    }

    /// Says which rows have other runs than the one that they are relative to; a row without the axis has none to compare.
    fn other_runs(&self, rows: &[Row<Curve>], base: &Row<Curve>) -> Option<String> {
        let runs = |row: &Row<Curve>| -> BTreeSet<String> {
            row.runs.iter().map(|run| run.label.clone()).collect()
        };
        let of_base = runs(base);
        let told = rows.iter().filter_map(|row| {
            let runs = runs(row);
            let is_other = runs != of_base && !runs.union(&of_base).any(String::is_empty);
            is_other.then(|| format!("{} {}", row.name, listed(runs)))
        });
        let told: Vec<String> = told.collect();
        (!told.is_empty()).then(|| {
            format!(
                "% of {0} compares means over different runs ({1}): {0} {2}; {3}.",
                base.name,
                self.aggregate,
                listed(of_base),
                told.join("; ")
            )
        })
    }
}

/// Adds the operations until a row has what another one ends with, run by run: means over the runs that get there.
fn add_reached(
    table: &mut Table,
    rows: &[Row<&Curve>],
    base: &Row<Curve>,
    reach: &Reach,
) -> Result<(), StageError> {
    for run in &base.runs {
        // Without it nothing at all could be told.
        let end = reach.end(&run.content);
        end.map_err(|error| within(format!("{} {}", base.label, run.label).trim(), error))?;
    }
    let mut untold = Vec::new();
    for (of_row, heading, times) in [
        (
            true,
            format!("GFLOP to {}'s end", base.name),
            "Reach it".to_owned(),
        ),
        (
            false,
            format!("GFLOP of {} to its end", base.name),
            format!("{} reaches it", base.name),
        ),
    ] {
        let found = rows.iter().map(|row| {
            let pairs = row.runs.iter().filter_map(|run| {
                let other = base.runs.iter().find(|other| other.label == run.label)?;
                Some((run.content, &other.content))
            });
            let flops = pairs.map(|(own, others)| {
                let (one, other) = if of_row { (own, others) } else { (others, own) };
                reach.flops(one, reach.end(other)?)
            });
            flops.collect::<Result<Vec<Option<f64>>, StageError>>()
        });
        let found: Vec<_> = found.collect();
        let means = found.iter().map(|found| {
            let reached: Vec<f64> = found.as_ref().ok()?.iter().copied().flatten().collect();
            Some(mean(&reached).ok()? / 1e9)
        });
        table.number_column(heading, 3, means);
        let counts = found.iter().map(|found| match found {
            Ok(runs) => format!("{} of {}", runs.iter().flatten().count(), runs.len()),
            Err(_) => "not told".to_owned(),
        });
        table.text_column(times, counts.map(Some));
        for (row, found) in rows.iter().zip(found) {
            if let Err(StageError::Failed { message, .. }) = found {
                let note = format!("{}, not told: {message}.", row.name);
                if !untold.contains(&note) {
                    untold.push(note);
                }
            }
        }
    }
    table.notes.push(format!(
        "To its end: until the reward, a mean of {} values in a row, first is what the other training ends with, run by run; \
         a mean over the runs that get there.",
        reach.window
    ));
    let told = rows.iter().filter(|row| {
        let tells = |run: &Run<&Curve>| reach.end(run.content).is_ok();
        row.runs.iter().all(tells)
    });
    table.notes.extend(told.filter_map(|row| {
        let stand_in = reach.stand_in(&row.name, row.runs.iter().map(|run| run.content))?;
        Some(format!("To its end: {stand_in}"))
    }));
    table.notes.extend(untold);
    Ok(())
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
        let note = "% of ppo compares means over different runs (seed): ppo 1, 3; flowhf 1.";
        let told = |rows: &[Row<Curve>]| {
            let params = serde_json::json!({ "relative_to": "ppo" });
            let notes = kind(params).table(rows).unwrap().notes;
            notes.iter().any(|told| told == note)
        };
        assert!(told(&all));
        assert!(!told(&all[..1]));
    }

    #[test]
    fn operations_are_counted_until_another_row_s_end_is_reached() {
        let with = |stage: &str, seed: u64, flops: f64, values: [f64; 4]| {
            let (labels, mut curve) = curve(stage, seed, Status::Completed, flops);
            let values = values.map(Some).to_vec();
            curve.metrics.insert("reward".to_owned(), values);
            (labels, curve)
        };
        let all = rows(vec![
            with("ppo", 1, 8e9, [0.0, 1.0, 2.0, 3.0]),
            with("ppo", 2, 8e9, [0.0, 1.0, 2.0, 3.0]),
            with("flowhf", 1, 4e9, [1.0, 3.0, 3.0, 2.0]),
            with("flowhf", 2, 4e9, [1.0, 1.0, 1.0, 1.0]),
        ]);
        let params = serde_json::json!({ "relative_to": "ppo", "reach": { "window": 1 } });
        let table = kind(params).table(&all).unwrap();
        let numbers = |name: &str| table.numbers(name).unwrap()[1];
        assert_eq!(numbers("GFLOP to ppo's end"), Some(2.0));
        assert_eq!(table.all_texts("Reach it").unwrap()[1], "1 of 2");
        // 2 is reached with the third step, 1 with the second.
        assert_eq!(numbers("GFLOP of ppo to its end"), Some(5.0));
        assert_eq!(table.all_texts("ppo reaches it").unwrap()[1], "2 of 2");
        let alone = kind(serde_json::json!({ "reach": {} }));
        assert_eq!(alone.validate().len(), 1);
    }

    #[test]
    fn what_a_curve_does_not_tell_is_not_never_reached() {
        let mut told = curve("ppo", 1, Status::Completed, 8e9);
        told.1
            .metrics
            .insert("reward".to_owned(), vec![Some(1.0); 4]);
        let all = rows(vec![told, curve("sft", 1, Status::Completed, 4e9)]);
        let params = |reach| serde_json::json!({ "relative_to": "ppo", "reach": reach });
        let table = kind(params(serde_json::json!({}))).table(&all).unwrap();
        assert_eq!(table.all_texts("Reach it").unwrap(), ["1 of 1", "not told"]);
        assert_eq!(table.all_texts("ppo reaches it").unwrap()[1], "not told");
        let note = "sft, not told: the curve has no metric `sampled_reward` or `reward`.";
        assert_eq!(table.notes.iter().filter(|told| *told == note).count(), 1);
        let note =
            "To its end: the curves of ppo have no `sampled_reward`: their `reward` stands in.";
        let stand_in = |told: &&String| told.contains("stands in");
        assert_eq!(
            table.notes.iter().filter(stand_in).collect::<Vec<_>>(),
            [note]
        );
        let long = kind(params(serde_json::json!({ "window": 5 }))).table(&all);
        let Err(StageError::Failed { message, .. }) = long else {
            panic!("an end of five values");
        };
        assert!(
            message.starts_with("ppo 1: the curve has fewer values than `window`, 5"),
            "{message}"
        );
        let none = kind(params(serde_json::json!({ "fallback": null }))).table(&all);
        assert!(none.is_err());
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
