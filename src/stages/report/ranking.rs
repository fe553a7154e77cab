//! `ranking`: who wins what, over columns of several tables.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stages::defaults;
use crate::stats::{Alternative, mean, paired_t_test, sample_std};

/// Puts columns of several tables side by side and says which rows are best in each.
///
/// The tables are those with one row for each run, such as `per_seed` of `metric_table` and `target_distance`; rows of one
/// name are the runs of it. One row has the best mean of a column; others are level with it if their runs do not differ from
/// its (two-sided paired t-test over the runs, at `level`): with few runs it takes a large difference not to be.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Ranking {
    /// The columns, in this order.
    columns: Vec<Column>,
    /// The column with the names of rows.
    #[serde(default = "defaults::policy")]
    row: String,
    /// The column with the names of runs.
    #[serde(default = "defaults::seed_axis")]
    run: String,
    /// Rows that are shown and win nothing, such as the model that all others start from.
    #[serde(default)]
    unranked: Vec<String>,
    /// Level of the tests.
    #[serde(default = "defaults::level")]
    level: f64,
    /// The title.
    title: String,
    /// What else must be known to read the table.
    #[serde(default)]
    notes: Vec<String>,
}

/// A column of one of the tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Column {
    /// The stage whose table has it; needed where several have it.
    #[serde(default)]
    from: Option<String>,
    /// Its heading there.
    column: String,
    /// What it is called here, if not the same.
    #[serde(default)]
    name: Option<String>,
    /// Which values are best; if absent the column is shown alone.
    #[serde(default)]
    best: Option<Best>,
    /// Decimal places.
    #[serde(default = "three")]
    digits: usize,
}

/// Which values are best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Best {
    /// The greatest.
    #[default]
    Greatest,
    /// The least.
    Least,
}

impl Best {
    /// Returns a number that is the greater the better a value is.
    pub(super) fn merit(self, value: f64) -> f64 {
        match self {
            Self::Greatest => value,
            Self::Least => -value,
        }
    }
}

/// The column that lists where a row has the best mean.
const BEST: &str = "Best mean";
/// The column that lists where a row is level with the best.
const LEVEL: &str = "Level with it";

fn three() -> usize {
    3
}

impl Column {
    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.column)
    }
}

/// The values of each row by run, rows in order of first appearance.
type Runs = IndexMap<String, BTreeMap<String, f64>>;

impl Kind for Ranking {
    const NAME: &'static str = "ranking";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = "{ title: Who wins what, columns: [{ column: Mean, name: Reward, best: greatest }, \
        { column: kl, best: least }] }";

    fn ports(&self) -> Vec<Port> {
        vec![Port::many("tables", &[TABLE], "tables with one row for each run").labelled()]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("table", TABLE)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.columns.is_empty() {
            problems.push(Problem::new(
                "columns",
                "`columns` must name at least one column",
            ));
        }
        if !(self.level > 0.0 && self.level < 1.0) {
            problems.push(Problem::new("level", "`level` must be between 0 and 1"));
        }
        for (place, column) in self.columns.iter().enumerate() {
            let twice = self.columns[..place]
                .iter()
                .any(|other| other.name() == column.name());
            if twice || [BEST, LEVEL].contains(&column.name()) {
                let text = format!("`{}` names another column, too", column.name());
                problems.push(Problem::new("columns", text).hint("give it a `name` of its own"));
            }
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let mut tables = Vec::new();
        for input in ctx.inputs("tables") {
            let stage = input.labels.get("stage").cloned().unwrap_or_default();
            tables.push((stage, Table::read(&input.path)?));
        }
        self.table(&tables)?.write(&ctx.output("table")?)?;
        Ok(())
    }
}

impl Ranking {
    fn table(&self, tables: &[(String, Table)]) -> Result<Table, StageError> {
        let columns: Vec<Runs> = self
            .columns
            .iter()
            .map(|column| self.runs(column, tables))
            .collect::<Result<_, _>>()?;
        let mut names: Vec<&String> = Vec::new();
        for name in columns.iter().flat_map(Runs::keys) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        for unranked in &self.unranked {
            if !names.contains(&unranked) {
                return Err(StageError::new(format!(
                    "`unranked` names `{unranked}`, and no row is called so"
                ))
                .hint("rows are called as in the tables: by their `row_names`"));
            }
        }
        let mut wins: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        let mut level: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        let mut table = Table::new(&self.title);
        table.text_column(&self.row, names.iter().map(|name| Some((*name).clone())));
        for (column, runs) in self.columns.iter().zip(&columns) {
            let values = |name: &String| -> Vec<f64> {
                let runs = runs.get(name).into_iter().flatten();
                runs.map(|(_, value)| *value).collect()
            };
            let means: Vec<Option<f64>> =
                names.iter().map(|name| mean(&values(name)).ok()).collect();
            table.number_column(column.name(), column.digits, means);
            if runs.values().any(|runs| runs.len() > 1) {
                let spread = names.iter().map(|name| sample_std(&values(name)).ok());
                table.spread_of_last("sd", spread);
            }
            let best = column.best.map(|best| self.best(best, runs)).transpose()?;
            for (place, name) in best.into_iter().flatten().enumerate() {
                let list = if place == 0 { &mut wins } else { &mut level };
                list.entry(name).or_default().push(column.name());
            }
        }
        let listed = |of: &BTreeMap<String, Vec<&str>>| -> Vec<Option<String>> {
            let of = |name: &&String| of.get(*name).map(|columns| columns.join(", "));
            names.iter().map(of).collect()
        };
        table.text_column(BEST, listed(&wins));
        table.text_column(LEVEL, listed(&level));
        table.notes.push(format!(
            "{LEVEL}: the runs do not differ from those of the row with the best mean (two-sided paired t-test, {:.0}% \
             level).",
            100.0 * (1.0 - self.level)
        ));
        table.notes.extend(self.notes.iter().cloned());
        Ok(table)
    }

    /// Returns the values of a column by row and run; a row of which it is missing has none.
    fn runs(&self, column: &Column, tables: &[(String, Table)]) -> Result<Runs, StageError> {
        let is_from = |stage: &str| match &column.from {
            Some(from) => stage == from || stage.split('.').next() == Some(from),
            None => true,
        };
        let having: Vec<&(String, Table)> = tables
            .iter()
            .filter(|(stage, table)| is_from(stage) && table.numbers(&column.column).is_ok())
            .collect();
        let [(_, table)] = having[..] else {
            let stages: Vec<&str> = tables.iter().map(|(stage, _)| stage.as_str()).collect();
            if let Some(from) = &column.from
                && !stages.iter().any(|stage| is_from(stage))
            {
                return Err(StageError::new(format!(
                    "`from` names `{from}`, and no table is of that stage"
                ))
                .hint(format!("the tables are of {}", stages.join(", "))));
            }
            let found = if having.is_empty() {
                "no table"
            } else {
                "more than one table"
            };
            return Err(StageError::new(format!(
                "{found} of {} has the column `{}`",
                stages.join(", "),
                column.column
            ))
            .hint("columns are called as in the tables; `from` names the stage of one"));
        };
        let (names, runs) = (table.all_texts(&self.row)?, table.all_texts(&self.run)?);
        let values = table.numbers(&column.column)?;
        let mut found = Runs::new();
        for ((name, run), value) in names.into_iter().zip(runs).zip(values) {
            let row = found.entry(name).or_default();
            row.extend(value.map(|value| (run, value)));
        }
        Ok(found)
    }

    /// Returns the row with the best mean, then those that are level with it.
    fn best(&self, best: Best, runs: &Runs) -> Result<Vec<String>, StageError> {
        let ranked = runs
            .iter()
            .filter(|(name, runs)| !runs.is_empty() && !self.unranked.contains(name));
        let mut means = Vec::new();
        for (name, runs) in ranked {
            let values: Vec<f64> = runs.values().copied().collect();
            means.push((name, mean(&values)?));
        }
        let is_better = |a: usize, b: usize| best.merit(means[a].1) > best.merit(means[b].1);
        let place = (0..means.len()).reduce(
            |best, other| {
                if is_better(other, best) { other } else { best }
            },
        );
        let Some(place) = place else {
            return Ok(Vec::new());
        };
        let (winner, _) = means.remove(place);
        let mut found = vec![winner.clone()];
        for (name, _) in &means {
            if !self.differs(&runs[winner], &runs[*name])? {
                found.push((*name).clone());
            }
        }
        Ok(found)
    }

    /// Whether two rows differ over the runs that both have.
    fn differs(
        &self,
        a: &BTreeMap<String, f64>,
        b: &BTreeMap<String, f64>,
    ) -> Result<bool, StageError> {
        let shared = a.iter().filter_map(|(run, a)| Some((*a, *b.get(run)?)));
        let (a, b): (Vec<f64>, Vec<f64>) = shared.unzip();
        let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        // One run has no spread; differences that are all the same have none either, and say all there is to say.
        if a.len() < 2 {
            return Ok(differences.iter().all(|difference| *difference != 0.0));
        }
        if differences
            .iter()
            .all(|difference| *difference == differences[0])
        {
            return Ok(differences[0] != 0.0);
        }
        Ok(paired_t_test(&a, &b, Alternative::TwoSided)?.p < 1.0 - self.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(column: &str, rows: &[(&str, &[f64])]) -> Table {
        let mut table = Table::new("per seed");
        let runs = || {
            rows.iter().flat_map(|(name, values)| {
                let values = values.iter().enumerate();
                values.map(move |(seed, value)| (*name, seed.to_string(), *value))
            })
        };
        table.text_column("policy", runs().map(|(name, _, _)| Some(name.to_owned())));
        table.label_column("seed", runs().map(|(_, seed, _)| Some(seed)));
        table.number_column(column, 3, runs().map(|(_, _, value)| Some(value)));
        table
    }

    fn ranking(columns: &str) -> Ranking {
        let text = format!(r#"{{ "title": "t", "unranked": ["sft"], "columns": [{columns}] }}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn rows_whose_runs_do_not_differ_share_the_best_place() {
        let rewards = table(
            "Mean",
            &[
                ("sft", &[9.0, 9.0, 9.0]),
                ("a", &[1.0, 1.1, 1.2]),
                ("b", &[1.1, 0.9, 1.3]),
                ("c", &[0.5, 0.6, 0.7]),
            ],
        );
        let distances = table("kl", &[("a", &[2.0, 2.0, 2.1]), ("c", &[1.0, 1.1, 1.05])]);
        let tables = [
            ("scores.per_seed".to_owned(), rewards),
            ("far.per_seed".to_owned(), distances),
        ];
        let ranking = ranking(
            r#"{ "column": "Mean", "name": "Reward", "best": "greatest" },
               { "from": "far", "column": "kl", "name": "KL", "best": "least" }"#,
        );
        assert!(ranking.validate().is_empty());
        let found = ranking.table(&tables).unwrap();
        assert_eq!(found.all_texts("policy").unwrap(), ["sft", "a", "b", "c"]);
        let texts = |name: &str| found.texts(name).unwrap();
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(texts(BEST), [None, some("Reward"), None, some("KL")]);
        assert_eq!(texts(LEVEL), [None, None, some("Reward"), None]);
        let reward = found.numbers("Reward").unwrap();
        assert!((reward[2].unwrap() - 1.1).abs() < 1e-12);
        assert_eq!(found.numbers("KL").unwrap()[0], None);
    }

    #[test]
    fn columns_that_are_nowhere_or_in_two_tables_are_errors() {
        let both = || table("Mean", &[("sft", &[1.0])]);
        let tables = [("x".to_owned(), both()), ("y".to_owned(), both())];
        let message = |columns: &str| {
            let error = ranking(columns).table(&tables).unwrap_err();
            let StageError::Failed { message, .. } = error else {
                panic!("interrupted")
            };
            message
        };
        assert_eq!(
            message(r#"{ "column": "Mean" }"#),
            "more than one table of x, y has the column `Mean`"
        );
        assert_eq!(
            message(r#"{ "column": "Median" }"#),
            "no table of x, y has the column `Median`"
        );
        assert!(
            ranking(r#"{ "from": "x", "column": "Mean" }"#)
                .table(&tables)
                .is_ok()
        );
        let twice = ranking(r#"{ "column": "Mean" }, { "from": "x", "column": "Mean" }"#);
        assert_eq!(twice.validate().len(), 1);
    }
}
