//! `normality`: are the rewards of a policy normally distributed?

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::groups::{Grouping, Row, within};
use super::repeats::once;
use super::scored::{self, Scored};
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stages::defaults;
use crate::stats::{NormalityTest, StatsError, dagostino_pearson, shapiro_wilk};

/// Tests whether the rewards of each policy are normally distributed, all runs pooled and run by run.
///
/// D'Agostino and Pearson's K2 (skewness and kurtosis) and Shapiro and Wilk's W. A small p speaks against a normal
/// distribution; t-tests of means of some hundred values do not need one.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Normality {
    /// The axis whose values are the rows.
    #[serde(default = "defaults::policy")]
    row: String,
    /// The axis whose values are the runs of a row.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// The numeric column of `scores` that is tested.
    #[serde(default = "defaults::reward")]
    column: String,
    /// Below this p of K2 the verdict is `not normal`.
    #[serde(default = "defaults::alpha")]
    alpha: f64,
    /// Names shown instead of values of `row`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// The title.
    #[serde(default = "title")]
    title: String,
}

fn title() -> String {
    "Tests of normality of the rewards".to_owned()
}

impl Kind for Normality {
    const NAME: &'static str = "normality";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = "{ column: reward, alpha: 0.05 }";

    fn ports(&self) -> Vec<Port> {
        vec![scored::scores_port()]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("table", TABLE)]
    }

    fn validate(&self) -> Vec<Problem> {
        if self.alpha > 0.0 && self.alpha < 1.0 {
            Vec::new()
        } else {
            vec![Problem::new(
                "alpha",
                "`alpha` must be between 0 and 1, such as 0.05",
            )]
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

struct Line {
    name: String,
    runs: String,
    n: usize,
    k2: Option<NormalityTest>,
    w: Option<NormalityTest>,
}

impl Normality {
    fn table(&self, rows: &[Row<Scored>]) -> Result<Table, StageError> {
        let mut lines = Vec::new();
        let (rows, repeats) = once(rows, &self.aggregate);
        for row in &rows {
            let mut samples = Vec::new();
            for run in &row.runs {
                let values = run.content.column(&self.column);
                samples.push((
                    run.label.clone(),
                    values.map_err(|error| within(&row.describe(run, &self.aggregate), error))?,
                ));
            }
            let all: Vec<f64> = samples
                .iter()
                .flat_map(|(_, values)| values.clone())
                .collect();
            let several = samples.len() > 1;
            let whole = if several { "pooled" } else { "all" };
            lines.push(line(row, whole.to_owned(), &all)?);
            for (label, values) in samples.iter().filter(|_| several) {
                lines.push(line(row, format!("{} {label}", self.aggregate), values)?);
            }
        }
        let mut table = Table::new(&self.title);
        table.text_column(&self.row, lines.iter().map(|line| Some(line.name.clone())));
        table.text_column("Runs", lines.iter().map(|line| Some(line.runs.clone())));
        table.number_column("n", 0, lines.iter().map(|line| Some(line.n as f64)));
        table.number_column(
            "K2",
            3,
            lines.iter().map(|line| line.k2.map(|test| test.statistic)),
        );
        table.number_column("p", 5, lines.iter().map(|line| line.k2.map(|test| test.p)));
        table.number_column(
            "W",
            4,
            lines.iter().map(|line| line.w.map(|test| test.statistic)),
        );
        table.number_column(
            "p of W",
            5,
            lines.iter().map(|line| line.w.map(|test| test.p)),
        );
        let verdict = |test: NormalityTest| {
            if test.p < self.alpha {
                "not normal"
            } else {
                "not rejected"
            }
            .to_owned()
        };
        table.text_column("Verdict", lines.iter().map(|line| line.k2.map(verdict)));
        table.notes.push(format!(
            "K2: D'Agostino and Pearson, W: Shapiro and Wilk (for up to 5000 values). The verdict is that of K2 at {}, \
             each line by itself. A test that is not rejected does not show that the rewards are normal.",
            self.alpha
        ));
        table.notes.push(
            "An empty cell: the test is undefined, because the values do not vary or are too many."
                .to_owned(),
        );
        table.notes.extend(repeats);
        Ok(table)
    }
}

fn line(row: &Row<&Scored>, runs: String, values: &[f64]) -> Result<Line, StageError> {
    let defined = |result: Result<NormalityTest, StatsError>| match result {
        Ok(test) => Ok(Some(test)),
        Err(StatsError::NoVariance { .. } | StatsError::OutOfRange { .. }) => Ok(None),
        Err(error) => Err(within(&format!("{}, {runs}", row.label), error)),
    };
    Ok(Line {
        k2: defined(dagostino_pearson(values))?,
        w: defined(shapiro_wilk(values))?,
        name: row.name.clone(),
        n: values.len(),
        runs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;
    use crate::stages::report::fixture::{rows, scored, with_rewards};
    use crate::stages::report::groups::tests::labels;
    use crate::stages::report::repeats::tests::repeat;

    fn kind() -> Normality {
        serde_json::from_value(serde_json::json!({})).unwrap()
    }

    #[test]
    fn normal_rewards_pass_and_skewed_ones_do_not() {
        let texts: Vec<String> = (0..200).map(|at| at.to_string()).collect();
        let noise = Stream::new(4, "noise");
        let skewed: Vec<f64> = (0..200).map(|at| noise.at(at).normal().exp()).collect();
        let all = rows(vec![
            scored("normal", 1, 1.0, 200),
            scored("normal", 2, 1.0, 100),
            (
                labels(&[("policy", "skewed"), ("seed", "1")]),
                with_rewards(&skewed, &texts),
            ),
            (
                labels(&[("policy", "constant"), ("seed", "1")]),
                with_rewards(&[0.5; 200], &texts),
            ),
        ]);
        let table = kind().table(&all).unwrap();
        let text = |column: &str| -> Vec<String> {
            let cells = table.texts(column).unwrap().into_iter();
            cells.map(|cell| cell.unwrap_or("-".to_owned())).collect()
        };
        assert_eq!(text("Runs"), ["pooled", "seed 1", "seed 2", "all", "all"]);
        assert_eq!(
            text("Verdict"),
            [
                "not rejected",
                "not rejected",
                "not rejected",
                "not normal",
                "-"
            ]
        );
        assert_eq!(table.numbers("n").unwrap()[0], Some(300.0));
        let expected = dagostino_pearson(&skewed).unwrap();
        assert_eq!(table.numbers("K2").unwrap()[3], Some(expected.statistic));
        assert_eq!(
            table.numbers("p of W").unwrap()[3],
            Some(shapiro_wilk(&skewed).unwrap().p)
        );
    }

    #[test]
    fn runs_that_are_one_and_the_same_are_pooled_once() {
        let items = (1..=3).map(|seed| scored("ppo", seed, 1.0, 50));
        let mut all = rows(items.collect());
        repeat(&mut all[0]);
        let table = kind().table(&all).unwrap();
        assert_eq!(table.all_texts("Runs").unwrap(), ["all"]);
        assert_eq!(table.all_numbers("n").unwrap(), [50.0]);
        assert!(
            table
                .notes
                .iter()
                .any(|note| note.ends_with("count once: seed 1 = 2 = 3."))
        );
    }

    #[test]
    fn too_few_values_are_an_error_that_names_the_row() {
        let error = kind()
            .table(&rows(vec![scored("ppo", 1, 1.0, 5)]))
            .unwrap_err();
        assert!(
            matches!(error, StageError::Failed { message, .. } if message.starts_with("ppo, all: "))
        );
    }
}
