//! `flowgraph diff`: two runs side by side.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use indexmap::{IndexMap, IndexSet};
use owo_colors::Style;
use serde_json::{Value as Json, json};

use super::output::{Output, counted};
use super::plan::value;
use super::text::{Text, styled};
use super::{Failure, exit_code, show, table_rows};
use crate::artifacts::table::Table;
use crate::engine::artifact::Artifact;
use crate::engine::fingerprint::{Difference, flatten};
use crate::engine::runs::{Run, RunStage};
use crate::engine::store::{Record, Store};

#[derive(Debug, Args)]
pub(super) struct DiffArgs {
    /// A run's id, the beginning of one, `last`, or `last-1` for the one before
    #[arg(default_value = "last-1")]
    a: String,
    /// The other run
    #[arg(default_value = "last")]
    b: String,
}

/// A stage that both runs have, with other results.
struct Changed {
    stage: String,
    differences: Vec<Difference>,
    tables: Vec<ChangedTable>,
}

/// What differs in a table of both runs.
struct ChangedTable {
    output: String,
    title: String,
    cells: Vec<Cell>,
}

/// A cell of a table that differs.
struct Cell {
    row: String,
    column: String,
    a: String,
    b: String,
}

pub(super) fn run(args: &DiffArgs, store: &Store, output: &Output) -> Result<u8, Failure> {
    let (a, b) = (load(store, &args.a)?, load(store, &args.b)?);
    let params = param_differences(&a.0, &b.0);
    let (stages_a, stages_b) = (by_name(&a.1), by_name(&b.1));
    let only = |these: &BTreeMap<&str, &RunStage>, those: &BTreeMap<&str, &RunStage>| {
        let missing = these.keys().filter(|name| !those.contains_key(*name));
        missing.map(|name| (*name).to_owned()).collect::<Vec<_>>()
    };
    let (only_a, only_b) = (only(&stages_a, &stages_b), only(&stages_b, &stages_a));
    let mut changed = Vec::new();
    // In the order of the second run's file: causes come before what they cause.
    for stage in &b.1 {
        let Some(other) = stages_a.get(stage.stage.as_str()) else {
            continue;
        };
        if (other.fingerprint, &other.beside) != (stage.fingerprint, &stage.beside) {
            changed.push(compare(store, other, stage)?);
        }
    }
    if output.json {
        let changed: Vec<Json> = changed
            .iter()
            .map(|changed| {
                let cells = changed.tables.iter().flat_map(|table| {
                    table.cells.iter().map(|cell| {
                        json!({ "output": table.output, "row": cell.row, "column": cell.column, "a": cell.a, "b": cell.b })
                    })
                });
                let cells: Vec<Json> = cells.collect();
                json!({ "stage": changed.stage, "differences": changed.differences, "cells": cells })
            })
            .collect();
        output.json(&json!({
            "a": a.0.description, "b": b.0.description, "params": params,
            "only_a": only_a, "only_b": only_b, "changed": changed,
        }));
        return Ok(exit_code::OK);
    }
    let bold = Style::new().bold();
    let mut text = styled(&a.0.description.run, bold).and(" -> ");
    text.push_styled(&b.0.description.run, bold);
    text.push_str("\n");
    for difference in &params {
        push_line(&mut text, "", difference);
    }
    for (run, stages) in [(&a.0, &only_a), (&b.0, &only_b)] {
        if !stages.is_empty() {
            text.push_str(&format!(
                "{} only in {}: {}\n",
                counted(stages.len(), "stage"),
                run.description.run,
                stages.join(", ")
            ));
        }
    }
    for changed in &changed {
        text.push_styled(&changed.stage, bold);
        text.push_str("\n");
        for difference in &changed.differences {
            push_line(&mut text, "  ", difference);
        }
        for table in &changed.tables {
            text.push_str(&cells_table(table, &a.0, &b.0, output));
        }
    }
    text.push_str(&format!(
        "{} with other results, {} the same\n",
        counted(changed.len(), "stage"),
        b.1.len() - changed.len() - only_b.len()
    ));
    output.text(&text);
    Ok(exit_code::OK)
}

/// Finds a run that ended.
pub(super) fn load(store: &Store, name: &str) -> Result<(Run, Vec<RunStage>), Failure> {
    let run = Run::find(store, name).map_err(Failure::usage)?;
    let stages = run.stages().ok_or_else(|| Failure::Other {
        message: format!(
            "run {} has no end: {}",
            run.description.run,
            run.why_no_end()
        ),
        hint: Some("`flowgraph runs` lists those that ended".to_owned()),
        code: exit_code::USAGE,
    })?;
    Ok((run, stages))
}

fn by_name(stages: &[RunStage]) -> BTreeMap<&str, &RunStage> {
    stages
        .iter()
        .map(|stage| (stage.stage.as_str(), stage))
        .collect()
}

fn param_differences(a: &Run, b: &Run) -> Vec<Difference> {
    let flat = |run: &Run| {
        let mut components = BTreeMap::new();
        flatten("params", &run.description.params, &mut components);
        components
    };
    let (a, b) = (flat(a), flat(b));
    let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
    keys.into_iter()
        .filter(|key| a.get(*key) != b.get(*key))
        .map(|key| Difference {
            key: key.clone(),
            old: a.get(key).cloned(),
            new: b.get(key).cloned(),
        })
        .collect()
}

fn push_line(text: &mut Text, indent: &str, difference: &Difference) {
    text.push_str(indent);
    text.push_styled(&difference.key, Style::new().yellow());
    text.push_str(&format!(
        " {} -> {}\n",
        value(difference.old.as_ref()),
        value(difference.new.as_ref())
    ));
}

fn compare(store: &Store, a: &RunStage, b: &RunStage) -> Result<Changed, Failure> {
    let record = |stage: &RunStage| -> Option<Record> {
        let fingerprint = stage.fingerprint.as_ref()?;
        store
            .read_record(fingerprint, stage.beside.as_deref())
            .ok()?
    };
    let mut changed = Changed {
        stage: b.stage.clone(),
        differences: Vec::new(),
        tables: Vec::new(),
    };
    let (Some(first), Some(second)) = (record(a), record(b)) else {
        let state = |stage: &RunStage| {
            Some(match (stage.fingerprint, stage.outcome) {
                (Some(_), _) => Json::from("a result"),
                (None, Some(outcome)) => json!(outcome),
                (None, None) => Json::from("not wanted"),
            })
        };
        changed.differences.push(Difference {
            key: "outcome".to_owned(),
            old: state(a),
            new: state(b),
        });
        return Ok(changed);
    };
    changed.differences = first.manifest.differences(&second.manifest);
    for (name, artifact) in &second.outputs {
        let other = first.outputs.get(name);
        if let Some(other) = other.filter(|other| other.digest != artifact.digest)
            && artifact.kind == "table"
            && other.kind == "table"
        {
            changed
                .tables
                .push(table_cells(store, name, other, artifact)?);
        }
    }
    Ok(changed)
}

/// Returns the cells that differ between two tables.
fn table_cells(
    store: &Store,
    output: &str,
    a: &Artifact,
    b: &Artifact,
) -> Result<ChangedTable, Failure> {
    let (a, b) = (show::read_table(store, a)?, show::read_table(store, b)?);
    let axes = table_rows::axes(&a).max(table_rows::axes(&b));
    let (keys_a, keys_b) = (table_rows::named(&a, axes), table_rows::named(&b, axes));
    let mut cells = Vec::new();
    let columns: BTreeSet<&str> = a
        .columns
        .iter()
        .chain(&b.columns)
        .map(|c| &*c.name)
        .collect();
    let rows: IndexSet<&String> = keys_a.keys().chain(keys_b.keys()).collect();
    for row in rows {
        for column in &columns {
            let cell = |table: &Table, keys: &IndexMap<String, usize>| {
                let at = *keys.get(row)?;
                let column = table.columns.iter().find(|other| other.name == **column)?;
                column.cell(at)
            };
            let (old, new) = (cell(&a, &keys_a), cell(&b, &keys_b));
            if old != new {
                cells.push(Cell {
                    row: row.clone(),
                    column: (*column).to_owned(),
                    a: old.unwrap_or_default(),
                    b: new.unwrap_or_default(),
                });
            }
        }
    }
    Ok(ChangedTable {
        output: output.to_owned(),
        title: b.title,
        cells,
    })
}

fn cells_table(changed: &ChangedTable, a: &Run, b: &Run, output: &Output) -> String {
    let cells = &changed.cells;
    let mut table = Table::new(format!("{}: {}", changed.output, changed.title));
    let mut column = |heading: &str, value: &dyn Fn(&Cell) -> &String| {
        table.text_column(heading, cells.iter().map(|cell| Some(value(cell).clone())));
    };
    column("Row", &|cell| &cell.row);
    column("Column", &|cell| &cell.column);
    column(&a.description.run, &|cell| &cell.a);
    column(&b.description.run, &|cell| &cell.b);
    output.drawn(&table)
}
