//! `flowgraph show`: print a result.
//!
//! Rows are shown as rows, those of several instances together; where an object of the store lies is nobody's business.

use clap::Args;
use serde_json::json;

use super::output::{Output, counted};
use super::results::{self, Found, Results, Where};
use super::{Failure, PipelineOptions, costs, exit_code};
use crate::artifacts::curve::{CURVE, SUMMARY, Status, TrainingSummary};
use crate::artifacts::embeddings::{EMBEDDINGS_FILE, EmbeddingMatrix};
use crate::artifacts::format;
use crate::artifacts::table::{TABLE, Table, Values};
use crate::engine::artifact::{Artifact, ArtifactFile};
use crate::engine::diagnostic::did_you_mean;
use crate::engine::reference::Reference;
use crate::engine::runs::Run;
use crate::engine::stage::{Registry, StageError, find_kind};
use crate::engine::store::Store;
use crate::excerpt::listed;

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    options: PipelineOptions,
    /// Stage, or `stage.output`, or `stage[axis=value].output`
    result: String,
    /// That of a past run: its id, the beginning of one, `last`, or `last-1` for the one before
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
    /// Show the first N rows (default: 10 of data and curves, all of a table; with `--json` all)
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// Only instances with this axis value, or rows with this value in a column; repeatable
    #[arg(long = "where", value_name = "KEY=VALUE")]
    wheres: Vec<Where>,
}

/// Rows that are shown unless somebody asks for more.
const FIRST_ROWS: usize = 10;
/// Characters of a cell that people see.
const WIDEST: usize = 48;

pub(super) fn run(
    args: &ShowArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    if let Some(run) = &args.run {
        let artifact = find_in_run(store, run, &args.result, registry)?;
        return match rows(store, &artifact)? {
            Some(table) if artifact.kind != TABLE => {
                print_rows(args, &[artifact], table, &args.wheres, output)
            }
            _ => print(args, store, &artifact, output, None),
        };
    }
    let pipeline = args.options.load(registry)?;
    let Results { found, plans } =
        results::find(&pipeline, store, &args.result, &args.wheres, is_rows)?;
    if let [
        Found {
            artifact, stage, ..
        },
    ] = found.as_slice()
        && (artifact.kind == TABLE || args.rows.is_none() && rows_file(artifact).is_none())
    {
        let costs = costs::table(&pipeline, store, *stage, |at| plans[at].fingerprint);
        return print(args, store, artifact, output, costs);
    }
    let mut parts = Vec::new();
    for one in &found {
        let Some(table) = rows(store, &one.artifact)? else {
            return Err(Failure::usage(format!(
                "`{}` has no rows, it is {}: leave `--rows` out",
                args.result, one.artifact.kind
            )));
        };
        parts.push((one.axes.clone(), table));
    }
    let axes: Vec<String> = found
        .iter()
        .flat_map(|found| found.axes.keys().cloned())
        .collect();
    let wheres: Vec<Where> = args
        .wheres
        .iter()
        .filter(|asked| !axes.contains(&asked.key))
        .cloned()
        .collect();
    let title = parts.first().map(|(_, table)| table.title.clone());
    let table = match parts.len() {
        1 => parts.remove(0).1,
        _ => Table::joined(&title.unwrap_or_default(), &parts),
    };
    let artifacts: Vec<Artifact> = found.into_iter().map(|found| found.artifact).collect();
    print_rows(args, &artifacts, table, &wheres, output)
}

/// Prints rows, those that are asked for.
fn print_rows(
    args: &ShowArgs,
    artifacts: &[Artifact],
    mut table: Table,
    wheres: &[Where],
    output: &Output,
) -> Result<u8, Failure> {
    keep_asked(&mut table, wheres)?;
    let all = table.height();
    let most = match args.rows {
        Some(rows) => rows,
        // Programs get all of them.
        None if output.json => all,
        None => FIRST_ROWS,
    };
    table.keep_first(most);
    let kind = artifacts.first().map_or("", |first| first.kind.as_str());
    if output.json {
        let digests: Vec<_> = artifacts.iter().map(|artifact| artifact.digest).collect();
        let mut value = json!({
            "result": args.result, "kind": kind, "rows": table.rows_json(), "all_rows": all, "title": table.title,
            "notes": table.notes,
        });
        match artifacts {
            [artifact] => {
                value["digest"] = json!(artifact.digest);
                value["files"] = json!(artifact.files);
            }
            _ => value["digests"] = json!(digests),
        }
        output.json(&value);
        return Ok(exit_code::OK);
    }
    let shown = table.height();
    for_people(&mut table);
    output.data(&output.drawn(&table));
    let more = if shown < all {
        "; `--rows N` shows more, `--where COLUMN=VALUE` others"
    } else {
        ""
    };
    output.line(&format!("{kind}: {shown} of {}{more}", counted(all, "row")));
    Ok(exit_code::OK)
}

/// Keeps the rows whose columns are as asked for.
fn keep_asked(table: &mut Table, wheres: &[Where]) -> Result<(), Failure> {
    for asked in wheres {
        let kept = table.rows_where(&asked.key, &asked.value).map_err(|_| {
            let names = table.columns.iter().map(|column| column.name.as_str());
            let message = format!("`--where {}=...`: neither an axis nor a column", asked.key);
            let known = format!("the columns are {}", listed(names.clone()));
            Failure::Other {
                message,
                hint: Some(did_you_mean(&asked.key, names).unwrap_or(known)),
                code: exit_code::USAGE,
            }
        })?;
        table.keep_rows(&kept);
    }
    Ok(())
}

/// Makes each cell one short line.
fn for_people(table: &mut Table) {
    let short = |text: &str| {
        let line = text.replace('\n', "\\n").replace('\r', "\\r");
        match line.char_indices().nth(WIDEST) {
            Some((at, _)) => format!("{}…", &line[..at]),
            None => line,
        }
    };
    for column in &mut table.columns {
        let height = match &column.values {
            Values::Numbers(_) => continue,
            Values::Text(values) => values.len(),
            Values::Ids(values) => values.len(),
        };
        let texts = (0..height).map(|row| column.cell(row).as_deref().map(short));
        column.values = Values::Text(texts.collect());
    }
}

/// Whether artifacts of a kind are rows.
fn is_rows(kind: &str) -> bool {
    format::find(kind).is_some_and(|format| format.rows.is_some())
}

/// Returns the file that holds an artifact's rows, if it is a kind of rows.
fn rows_file(artifact: &Artifact) -> Option<&ArtifactFile> {
    let names = ["table.parquet", EMBEDDINGS_FILE];
    let mut files = artifact.files.iter();
    files.find(|file| is_rows(&artifact.kind) && names.contains(&&*file.path))
}

/// Whether an artifact is a kind of rows.
pub(super) fn has_rows(artifact: &Artifact) -> bool {
    rows_file(artifact).is_some()
}

/// Reads the rows of an artifact, if it is a kind of rows.
pub(super) fn rows(store: &Store, artifact: &Artifact) -> Result<Option<Table>, Failure> {
    let Some(file) = rows_file(artifact) else {
        return Ok(None);
    };
    check_objects(store, artifact)?;
    if file.path != EMBEDDINGS_FILE {
        let mut table = read_table(store, artifact)?;
        table.notes.extend(ending(store, artifact)?);
        return Ok(Some(table));
    }
    let matrix = EmbeddingMatrix::read_file(&store.object_path(&file.digest));
    Ok(Some(matrix.map_err(StageError::from)?.to_table()))
}

/// Says how a training ended, of its curve.
fn ending(store: &Store, artifact: &Artifact) -> Result<Option<String>, Failure> {
    let mut files = artifact.files.iter();
    let Some(file) = files.find(|file| artifact.kind == CURVE && file.path == SUMMARY) else {
        return Ok(None);
    };
    let text = fs_err::read(store.object_path(&file.digest))?;
    let summary: TrainingSummary = serde_json::from_slice(&text).map_err(StageError::from)?;
    let reason = summary.reason.map(|reason| format!(" ({reason})"));
    Ok(Some(format!(
        "{}{} after {}",
        match summary.status {
            Status::Completed => "completed",
            Status::Diverged => "diverged",
        },
        reason.unwrap_or_default(),
        counted(usize::try_from(summary.steps).unwrap_or(usize::MAX), "step")
    )))
}

/// Checks that the bytes of an artifact are those that were stored.
pub(super) fn check_objects(store: &Store, artifact: &Artifact) -> Result<(), Failure> {
    for file in &artifact.files {
        store
            .check_object(&file.digest)
            .map_err(|damage| Failure::Other {
                message: damage.to_string(),
                hint: Some("`flowgraph run` makes it again".to_owned()),
                code: exit_code::STORE_DAMAGED,
            })?;
    }
    Ok(())
}

/// Prints an artifact, and what its table's inputs cost.
fn print(
    args: &ShowArgs,
    store: &Store,
    artifact: &Artifact,
    output: &Output,
    costs: Option<Table>,
) -> Result<u8, Failure> {
    check_objects(store, artifact)?;
    let table = if artifact.kind == TABLE {
        let mut table = read_table(store, artifact)?;
        keep_asked(&mut table, &args.wheres)?;
        if let Some(rows) = args.rows {
            table.keep_first(rows);
        }
        Some(table)
    } else {
        None
    };
    if output.json {
        let mut value = json!({
            "result": args.result, "kind": artifact.kind, "digest": artifact.digest, "files": artifact.files,
        });
        if let Some(table) = &table {
            value["rows"] = table.rows_json();
            value["title"] = json!(table.title);
            value["notes"] = json!(table.notes);
        }
        output.json(&value);
        return Ok(exit_code::OK);
    }
    if let Some(table) = &table {
        output.data(&output.drawn(table));
        if let Some(costs) = costs {
            output.data(&format!("\n{}", output.drawn(&costs)));
        }
        return Ok(exit_code::OK);
    }
    if let [file] = artifact.files.as_slice()
        && is_short_text(&file.path, file.size)
    {
        output.content(&fs_err::read(store.object_path(&file.digest))?);
        return Ok(exit_code::OK);
    }
    for file in &artifact.files {
        output.data(&format!(
            "{:>10}  {}",
            super::output::bytes(file.size),
            file.path
        ));
    }
    output.line(&format!(
        "{}: `flowgraph export` copies {} out",
        artifact.kind,
        counted(artifact.files.len(), "file")
    ));
    Ok(exit_code::OK)
}

fn is_short_text(path: &str, size: u64) -> bool {
    const LONG: u64 = 1 << 20;
    let text = [
        ".json", ".txt", ".md", ".csv", ".svg", ".yaml", ".jsonl", ".log", ".tsv",
    ];
    size < LONG && (text.iter().any(|suffix| path.ends_with(suffix)) || !path.contains('.'))
}

/// Finds the artifact that a stage had in a past run.
fn find_in_run(
    store: &Store,
    run: &str,
    text: &str,
    registry: &Registry,
) -> Result<Artifact, Failure> {
    let run = Run::find(store, run).map_err(Failure::usage)?;
    let id = &run.description.run;
    let stages = run
        .stages()
        .ok_or_else(|| Failure::usage(format!("run {id} has no end: {}", run.why_no_end())))?;
    let mut reference = Reference::parse(text).map_err(Failure::usage)?;
    let output = reference.output.take();
    let stage = reference.to_string();
    let found = stages.iter().find(|found| found.stage == stage);
    let found = found.ok_or_else(|| {
        let names = stages.iter().map(|found| found.stage.as_str());
        let hint = did_you_mean(&stage, names).unwrap_or_default();
        Failure::usage(format!("run {id} has no stage `{stage}`; {hint}"))
    })?;
    let missing = |why: &str| Failure::Other {
        message: format!("stage `{stage}` of run {id} {why}"),
        hint: None,
        code: exit_code::STAGE_FAILED,
    };
    let fingerprint = found.fingerprint.ok_or_else(|| missing("has no result"))?;
    let record = store
        .read_record(&fingerprint, found.beside.as_deref())
        .map_err(|error| missing(&error.to_string()))?
        .ok_or_else(|| missing("was evicted"))?;
    let default = || {
        let parsed = find_kind(registry, &record.manifest.kind)
            .and_then(|kind| (kind.parse)(&record.manifest.params).ok());
        let first = parsed.and_then(|stage| Some(stage.outputs().first()?.name.clone()));
        first.or_else(|| record.outputs.keys().next().cloned())
    };
    let output = output.or_else(default);
    let artifact = output
        .as_ref()
        .and_then(|output| record.outputs.get(output));
    artifact.cloned().ok_or_else(|| {
        let known: Vec<&str> = record.outputs.keys().map(String::as_str).collect();
        missing(&format!("has the outputs {}", known.join(", ")))
    })
}

/// Reads a table artifact.
pub(super) fn read_table(store: &Store, artifact: &Artifact) -> Result<Table, Failure> {
    Ok(Table::of_artifact(store, artifact).map_err(StageError::from)?)
}
