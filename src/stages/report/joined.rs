//! The points of all tables, joined by the axes that the tables show.

use std::collections::BTreeSet;

use indexmap::{IndexMap, IndexSet};

use super::groups::STAGE;
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::{Input, Labels, RunContext};
use crate::engine::diagnostic::did_you_mean;
use crate::engine::facts::Known;
use crate::engine::stage::{Port, Problem, StageError};
use crate::excerpt::listed;

/// One run of a point.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Point {
    pub(super) series: String,
    /// Its values of the axes of `along`.
    pub(super) along: Vec<String>,
    pub(super) run: String,
    /// Series and values, for messages.
    pub(super) name: String,
    /// The finite values of each column that is read.
    pub(super) values: IndexMap<String, Option<f64>>,
}

impl Point {
    pub(super) fn is_complete(&self) -> bool {
        self.values.values().all(Option::is_some)
    }

    pub(super) fn value(&self, column: &str) -> Option<f64> {
        self.values.get(column).copied().flatten()
    }
}

/// The runs of each point, in order.
pub(super) fn by_point(points: &[Point]) -> impl Iterator<Item = &[Point]> + Clone {
    points.chunk_by(|a, b| a.series == b.series && a.along == b.along)
}

/// The values of a column in all runs that have one.
pub(super) fn values(runs: &[Point], column: &str) -> Vec<f64> {
    runs.iter().filter_map(|run| run.value(column)).collect()
}

/// Names the points that lack a value of a column.
pub(super) fn tell_incomplete(ctx: &mut RunContext, points: &[Point]) {
    let incomplete = points.iter().filter(|point| !point.is_complete());
    let incomplete: BTreeSet<&str> = incomplete.map(|point| point.name.as_str()).collect();
    if !incomplete.is_empty() {
        ctx.note(&format!(
            "some columns have no value for {}",
            listed(incomplete)
        ));
    }
}

/// The stage that made a table.
fn stage_of(labels: &Labels) -> &str {
    labels.get(STAGE).map_or("", String::as_str)
}

/// A table with what it shows of the axes in each row: nothing for an axis that it lacks.
struct Shown<'a> {
    stage: &'a str,
    table: &'a Table,
    rows: Vec<Vec<Option<String>>>,
}

/// Tables with a row for each run, and which of their columns say what a row is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Join<'a> {
    /// The axis whose values are compared.
    pub(super) series: &'a String,
    /// The axes whose values are the points of a series, and the param that names them.
    pub(super) along: &'a [String],
    pub(super) param: &'static str,
    /// The axis whose values are the runs of a point.
    pub(super) aggregate: &'a String,
}

impl Join<'_> {
    /// The port of the tables.
    pub(super) fn port() -> Port {
        Port::many(
            "points",
            &[TABLE],
            "tables with a row for each run, such as `per_seed`; one that lacks an axis holds for all its values",
        )
        .labelled()
    }

    /// `series`, `along` and `aggregate`.
    fn axes(&self) -> Vec<&String> {
        let along = self.along.iter();
        std::iter::once(self.series)
            .chain(along)
            .chain([self.aggregate])
            .collect()
    }

    /// Refuses what no table of the port `points` can have, where their columns are known; `wanted` are columns, each with
    /// the param that names it.
    pub(super) fn check(&self, known: &mut Known<'_>, wanted: &[(&str, &str)]) {
        let Some(tables) = known.columns("points") else {
            return;
        };
        let tables = tables.into_iter().map(|(labels, columns)| {
            let columns = columns.iter().map(String::as_str).collect();
            (stage_of(labels), columns)
        });
        if let Some(problem) = self.lacking(&tables.collect::<Vec<_>>(), wanted) {
            known.refuse(problem);
        }
    }

    /// Reads the tables of the port `points`, each with the stage that made it.
    pub(super) fn read(ctx: &RunContext) -> Result<Vec<(String, Table)>, StageError> {
        let tables = ctx.inputs("points").iter();
        let read = |input: &Input| {
            Ok((
                stage_of(&input.labels).to_owned(),
                Table::read(&input.path)?,
            ))
        };
        tables.map(read).collect()
    }

    /// Says which column all tables lack, or one of them; of each are given the stage and the columns that it can have.
    fn lacking(
        &self,
        tables: &[(&str, BTreeSet<&str>)],
        wanted: &[(&str, &str)],
    ) -> Option<Problem> {
        for (stage, columns) in tables {
            if !columns.contains(self.series.as_str()) {
                let text = format!("the table of `{stage}` has no column `{}`", self.series);
                return Some(Problem::new("series", text).hint(format!(
                    "`series` names the axis that is compared; the columns are: {}",
                    listed(columns.iter().copied())
                )));
            }
        }
        let axes = self.axes();
        let lacks = |columns: &BTreeSet<&str>| -> Vec<&str> {
            let axes = axes.iter().map(|axis| axis.as_str());
            axes.filter(|axis| !columns.contains(axis)).collect()
        };
        if tables.iter().all(|(_, columns)| !lacks(columns).is_empty()) {
            let named = axes.iter().map(|axis| axis.as_str());
            let text = format!(
                "no table of `points` has rows with all of {}",
                listed(named)
            );
            let lacking = tables
                .iter()
                .map(|(stage, columns)| format!("`{stage}` lacks {}", listed(lacks(columns))));
            let lacking: Vec<String> = lacking.collect();
            return Some(Problem::new(self.param, text).hint(lacking.join("; ")));
        }
        let lacked = wanted
            .iter()
            .find(|(_, column)| tables.iter().all(|(_, columns)| !columns.contains(column)));
        lacked.map(|(param, column)| {
            let all = tables
                .iter()
                .flat_map(|(_, columns)| columns.iter().copied());
            let all: IndexSet<&str> = all
                .filter(|name| axes.iter().all(|axis| axis != name))
                .collect();
            let listed = || format!("the columns are: {}", listed(all.iter().copied()));
            let hint = did_you_mean(column, all.iter().copied()).unwrap_or_else(listed);
            let text = format!("no table of `points` has a column `{column}`");
            Problem::new(param, text).hint(hint)
        })
    }

    /// Joins the tables: a value belongs to every point that agrees with its row in all axes that its table shows.
    pub(super) fn points(
        &self,
        tables: &[(String, Table)],
        wanted: &[(&str, &str)],
    ) -> Result<Vec<Point>, StageError> {
        let axes = self.axes();
        let columns = tables.iter().map(|(stage, table)| {
            let columns = table.columns.iter().map(|column| column.name.as_str());
            (stage.as_str(), columns.collect())
        });
        if let Some(problem) = self.lacking(&columns.collect::<Vec<_>>(), wanted) {
            return Err(problem.into());
        }
        let shown = tables
            .iter()
            .map(|(stage, table)| self.shown(stage, table))
            .collect::<Result<Vec<_>, _>>()?;
        let mut keys: IndexSet<Vec<String>> = IndexSet::new();
        for table in &shown {
            let whole = table
                .rows
                .iter()
                .cloned()
                .map(|row| row.into_iter().collect::<Option<Vec<String>>>());
            keys.extend(whole.flatten());
        }
        if keys.is_empty() {
            let named = axes.iter().map(|axis| axis.as_str());
            return Err(StageError::new(format!(
                "no row of any table of `points` has a value of all of {}",
                listed(named)
            )));
        }
        let columns: IndexSet<&str> = wanted.iter().map(|(_, column)| *column).collect();
        for column in &columns {
            if shown
                .iter()
                .all(|table| table.table.numbers(column).is_err())
            {
                return Err(StageError::new(format!(
                    "the column `{column}` has no numbers"
                )));
            }
        }
        let mut points = Vec::with_capacity(keys.len());
        for key in keys {
            let mut values = IndexMap::new();
            let name = key[..key.len() - 1].join(", ");
            for column in &columns {
                let found = value_of(&key, column, &shown).map_err(|(first, second)| {
                    StageError::new(format!(
                        "`{column}` of {name}, {} {} is {} in `{}` and {} in `{}`",
                        self.aggregate,
                        key[key.len() - 1],
                        first.1,
                        first.0,
                        second.1,
                        second.0
                    ))
                    .hint(format!("name the further axis in `{}`, or connect tables that have one value of it", self.param))
                })?;
                values.insert((*column).to_owned(), found.map(|(_, value)| value));
            }
            points.push(Point {
                series: key[0].clone(),
                along: key[1..key.len() - 1].to_vec(),
                run: key[key.len() - 1].clone(),
                name,
                values,
            });
        }
        for column in columns {
            if points.iter().all(|point| point.value(column).is_none()) {
                return Err(StageError::new(format!("`{column}` has no value for any point"))
                    .hint("the tables must name series and axis values alike: `row_names` must be the same"));
            }
        }
        Ok(self.sorted(points))
    }

    fn shown<'a>(&self, stage: &'a str, table: &'a Table) -> Result<Shown<'a>, StageError> {
        let mut rows = vec![Vec::new(); table.height()];
        for axis in self.axes() {
            let texts = if table.has(axis) {
                table.labels(axis)?
            } else {
                vec![None; rows.len()]
            };
            rows.iter_mut()
                .zip(texts)
                .for_each(|(row, text)| row.push(text));
        }
        Ok(Shown { stage, table, rows })
    }

    /// Series in their order; along each, numbers ascend and words keep the order of the tables.
    fn sorted(&self, mut points: Vec<Point>) -> Vec<Point> {
        let ordered = |all: IndexSet<String>| -> Vec<String> {
            let numbers: Option<Vec<(f64, String)>> = all
                .iter()
                .map(|text| Some((text.parse::<f64>().ok()?, text.clone())))
                .collect();
            match numbers {
                Some(mut numbers) => {
                    numbers.sort_by(|a, b| a.0.total_cmp(&b.0));
                    numbers.into_iter().map(|(_, text)| text).collect()
                }
                None => all.into_iter().collect(),
            }
        };
        let series: IndexSet<String> = points.iter().map(|point| point.series.clone()).collect();
        let along: Vec<Vec<String>> = (0..self.along.len())
            .map(|axis| {
                ordered(
                    points
                        .iter()
                        .map(|point| point.along[axis].clone())
                        .collect(),
                )
            })
            .collect();
        points.sort_by_cached_key(|point| {
            let places = point.along.iter().zip(&along);
            let places: Vec<Option<usize>> = places
                .map(|(value, order)| order.iter().position(|other| other == value))
                .collect();
            (series.get_index_of(&point.series), places)
        });
        points
    }
}

/// A value, and the stage that has it.
type Found<'a> = (&'a str, f64);

/// Finds the value of a column; two different ones are returned as an error.
fn value_of<'a>(
    key: &[String],
    column: &str,
    shown: &[Shown<'a>],
) -> Result<Option<Found<'a>>, (Found<'a>, Found<'a>)> {
    let mut found: Option<Found> = None;
    for table in shown {
        let Ok(values) = table.table.numbers(column) else {
            continue;
        };
        for (row, value) in table.rows.iter().zip(values) {
            let agrees = row
                .iter()
                .zip(key)
                .all(|(shown, own)| shown.as_ref().is_none_or(|text| text == own));
            let Some(value) = value.filter(|value| agrees && value.is_finite()) else {
                continue;
            };
            match found {
                Some(first) if first.1 != value => return Err((first, (table.stage, value))),
                _ => found = Some((table.stage, value)),
            }
        }
    }
    Ok(found)
}
