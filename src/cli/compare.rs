//! `flowgraph compare`: several runs, a row each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use clap::Args;
use indexmap::IndexMap;
use serde_json::{Value as Json, json};

use super::output::Output;
use super::plan::value;
use super::run::CLAIMS;
use super::{Failure, diff, exit_code, show, table_rows};
use crate::artifacts::table::{Column, TABLE, Table, Values};
use crate::engine::fingerprint::flatten;
use crate::engine::reference::Reference;
use crate::engine::runs::{Run, RunStage};
use crate::engine::store::Store;

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// Runs: ids or their beginnings, `last`, `last-1`; all that ended if none is named
    runs: Vec<String>,
    /// A cell of a table, as in `--metric table1:PPO:Mean`, or of another output than the first, as in
    /// `--metric "table1.per_seed:policy PPO, seed 1:Mean"`; without any the verdicts on claims
    #[arg(long, short, value_name = "STAGE[.OUTPUT]:ROW:COLUMN")]
    metric: Vec<String>,
}

/// A cell that is compared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Metric {
    stage: String,
    /// The table of the stage; the first if it is not said.
    output: Option<String>,
    row: String,
    column: String,
}

/// The column of the verdicts on claims.
const VERDICT: &str = "Verdict";

pub(super) fn run(args: &CompareArgs, store: &Store, output: &Output) -> Result<u8, Failure> {
    let runs = runs(args, store)?;
    let asked = args.metric.iter().map(|text| Metric::parse(text));
    let asked = asked.collect::<Result<Vec<_>, _>>()?;
    let mut tables = Vec::with_capacity(runs.len());
    for (_, stages) in &runs {
        tables.push(read_tables(store, stages, &asked)?);
    }
    let metrics = if asked.is_empty() {
        verdicts(&tables)
    } else {
        check(&asked, &tables)?;
        asked
    };
    let mut table = Table::new(format!("Runs of {}", store.root().display()));
    let column = |of: &dyn Fn(&Run) -> String| -> Vec<Option<String>> {
        runs.iter().map(|(run, _)| Some(of(run))).collect()
    };
    table.text_column("Run", column(&|run| run.description.run.clone()));
    table.text_column("Pipeline", column(&|run| run.description.pipeline.clone()));
    for (key, values) in changed_params(&runs) {
        table.text_column(key, values);
    }
    let headings: Vec<String> = metrics.iter().map(Metric::heading).collect();
    for (metric, heading) in metrics.iter().zip(&headings) {
        let cells = tables.iter().map(|tables| metric.cell(tables));
        let is_one = headings.iter().filter(|other| *other == heading).count() == 1;
        let heading = if is_one {
            heading.clone()
        } else {
            metric.to_string()
        };
        table.text_column(heading, cells);
    }
    if output.json {
        let rows = runs.iter().zip(&tables).map(|((run, _), tables)| {
            let values = metrics
                .iter()
                .map(|metric| (metric.to_string(), metric.value(tables)));
            json!({
                "run": run.description.run,
                "pipeline": run.description.pipeline,
                "params": run.description.params,
                "metrics": values.collect::<serde_json::Map<String, Json>>(),
            })
        });
        output.json(&json!({ "runs": rows.collect::<Json>() }));
    } else {
        output.data(&output.drawn(&table));
    }
    Ok(exit_code::OK)
}

/// The tables of a run, by stage and output, each with the names of its rows.
type Tables = BTreeMap<(String, Option<String>), (Table, IndexMap<String, usize>)>;

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.stage)?;
        if let Some(output) = &self.output {
            write!(f, ".{output}")?;
        }
        write!(f, ":{}:{}", self.row, self.column)
    }
}

/// The name of an instance with its axes in alphabetical order, however somebody gave them.
fn in_order(mut stage: Reference) -> String {
    stage.axes.sort_keys();
    stage.to_string()
}

impl Metric {
    fn parse(text: &str) -> Result<Self, Failure> {
        // Names of rows may hold colons, as may the values of axes; those of columns seldom do.
        let parts = text.rsplit_once(':').and_then(|(rest, column)| {
            let colon = rest.match_indices(':').map(|(at, _)| at).find(|at| {
                let before = &rest[..*at];
                before.matches('[').count() == before.matches(']').count()
            })?;
            Some((&rest[..colon], &rest[colon + 1..], column))
        });
        let Some((stage, row, column)) = parts else {
            return Err(Failure::usage(format!(
                "`--metric {text}`: expected STAGE:ROW:COLUMN, such as `table1:PPO:Mean`"
            )));
        };
        let mut stage = Reference::parse(stage).map_err(Failure::usage)?;
        let output = stage.output.take();
        Ok(Self {
            stage: in_order(stage),
            output,
            row: row.to_owned(),
            column: column.to_owned(),
        })
    }

    fn column<'a>(&self, tables: &'a Tables) -> Option<(&'a Column, usize)> {
        let (table, rows) = tables.get(&(self.stage.clone(), self.output.clone()))?;
        let row = *rows.get(&self.row)?;
        let mut columns = table.columns.iter();
        Some((columns.find(|column| column.name == self.column)?, row))
    }

    /// The cell as people see it.
    fn cell(&self, tables: &Tables) -> Option<String> {
        let (column, row) = self.column(tables)?;
        column.cell(row)
    }

    /// The cell in full.
    fn value(&self, tables: &Tables) -> Json {
        match self.column(tables) {
            Some((
                Column {
                    values: Values::Numbers(values),
                    ..
                },
                row,
            )) => values[row].into(),
            Some((column, row)) => column.cell(row).into(),
            None => Json::Null,
        }
    }

    fn heading(&self) -> String {
        if self.column == VERDICT {
            self.row.clone()
        } else {
            format!("{} {}", self.row, self.column)
        }
    }
}

/// Finds the runs, with how their stages ended.
fn runs(args: &CompareArgs, store: &Store) -> Result<Vec<(Run, Vec<RunStage>)>, Failure> {
    let mut found = Vec::new();
    if args.runs.is_empty() {
        let all = Run::all(store)?.into_iter();
        found.extend(all.filter_map(|run| {
            let stages = run.stages()?;
            Some((run, stages))
        }));
    }
    for name in &args.runs {
        found.push(diff::load(store, name)?);
    }
    if found.is_empty() {
        return Err(Failure::usage(format!(
            "{} has no run that ended",
            store.root().display()
        )));
    }
    Ok(found)
}

/// Reads the tables that are asked for, or the first of the stages that decide claims.
fn read_tables(store: &Store, stages: &[RunStage], asked: &[Metric]) -> Result<Tables, Failure> {
    let mut tables = Tables::new();
    for stage in stages {
        let name = Reference::parse(&stage.stage).map_or_else(|_| stage.stage.clone(), in_order);
        let of_stage = asked.iter().filter(|metric| metric.stage == name);
        let mut wanted: BTreeSet<Option<String>> =
            of_stage.map(|metric| metric.output.clone()).collect();
        if asked.is_empty() && stage.kind == CLAIMS {
            wanted.insert(None);
        }
        if wanted.is_empty() {
            continue;
        }
        let Some(record) = stage.fingerprint.and_then(|fingerprint| {
            store
                .read_record(&fingerprint, stage.beside.as_deref())
                .ok()
                .flatten()
        }) else {
            continue;
        };
        let outputs = record.outputs.iter();
        let mut outputs: Vec<_> = outputs
            .filter(|(_, artifact)| artifact.kind == TABLE)
            .collect();
        // `table` is the first output of kinds that have several.
        outputs.sort_by_key(|(name, _)| name.as_str() != TABLE);
        for output in wanted {
            let is_it = |name: &String| output.as_ref().is_none_or(|output| output == name);
            if let Some((_, artifact)) = outputs.iter().find(|(name, _)| is_it(name)) {
                let table = show::read_table(store, artifact)?;
                let rows = table_rows::named(&table, table_rows::axes(&table));
                tables.insert((name.clone(), output), (table, rows));
            }
        }
    }
    Ok(tables)
}

/// The verdicts of all claims, in the order of the tables.
fn verdicts(tables: &[Tables]) -> Vec<Metric> {
    let mut metrics: Vec<Metric> = Vec::new();
    for ((stage, output), (_, rows)) in tables.iter().flatten() {
        for row in rows.keys() {
            let metric = Metric {
                stage: stage.clone(),
                output: output.clone(),
                row: row.clone(),
                column: VERDICT.to_owned(),
            };
            if !metrics.contains(&metric) {
                metrics.push(metric);
            }
        }
    }
    metrics
}

/// Refuses a cell that no run has.
fn check(asked: &[Metric], tables: &[Tables]) -> Result<(), Failure> {
    for metric in asked {
        if tables.iter().any(|tables| metric.cell(tables).is_some()) {
            continue;
        }
        let of = (metric.stage.clone(), metric.output.clone());
        let known = tables.iter().find_map(|tables| tables.get(&of));
        let Metric {
            stage, row, column, ..
        } = metric;
        let hint = known.map(|(table, rows)| {
            let rows: Vec<&str> = rows.keys().map(String::as_str).collect();
            let columns: Vec<&str> = table.columns.iter().map(|column| &*column.name).collect();
            format!("rows: {}; columns: {}", rows.join(", "), columns.join(", "))
        });
        return Err(Failure::Other {
            message: format!(
                "no run has a table of `{stage}` with a row `{row}` and a column `{column}`"
            ),
            hint,
            code: exit_code::USAGE,
        });
    }
    Ok(())
}

/// The params in which the runs differ, with the value in each.
fn changed_params(runs: &[(Run, Vec<RunStage>)]) -> BTreeMap<String, Vec<Option<String>>> {
    let flat = |run: &Run| -> BTreeMap<String, Json> {
        let mut components = BTreeMap::new();
        flatten("params", &run.description.params, &mut components);
        components
    };
    let all: Vec<BTreeMap<String, Json>> = runs.iter().map(|(run, _)| flat(run)).collect();
    let keys: BTreeSet<&String> = all.iter().flat_map(BTreeMap::keys).collect();
    let differs = |key: &&&String| {
        all.iter()
            .any(|params| params.get(**key) != all[0].get(**key))
    };
    keys.iter()
        .filter(differs)
        .map(|key| {
            let values = all
                .iter()
                .map(|params| params.get(*key).map(|found| value(Some(found))));
            let name = key.strip_prefix("params.").unwrap_or(key);
            (name.to_owned(), values.collect())
        })
        .collect()
}
