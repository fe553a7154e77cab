//! `flowgraph show`: print a result.

use clap::Args;
use serde_json::json;

use super::output::Output;
use super::{Failure, PipelineOptions, costs, exit_code};
use crate::artifacts::table::Table;
use crate::engine::artifact::Artifact;
use crate::engine::diagnostic::did_you_mean;
use crate::engine::plan::{PlanOptions, Planner, StagePlan};
use crate::engine::reference::{Reference, Selection};
use crate::engine::runs::Run;
use crate::engine::spec::Pipeline;
use crate::engine::stage::{Registry, StageError, find_kind};
use crate::engine::store::Store;

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    options: PipelineOptions,
    /// Stage, or `stage.output`, or `stage[axis=value].output`
    result: String,
    /// That of a past run: its id, the beginning of one, `last`, or `last-1` for the one before
    #[arg(long, value_name = "RUN")]
    run: Option<String>,
}

pub(super) fn run(
    args: &ShowArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    if let Some(run) = &args.run {
        let artifact = find_in_run(store, run, &args.result, registry)?;
        return print(&args.result, store, &artifact, output, None);
    }
    let pipeline = args.options.load(registry)?;
    let Found {
        artifact,
        stage,
        plans,
    } = find(&pipeline, store, &args.result)?;
    let costs = costs::table(&pipeline, store, stage, |at| plans[at].fingerprint);
    print(&args.result, store, &artifact, output, costs)
}

/// Prints an artifact, and what its table's inputs cost.
fn print(
    name: &str,
    store: &Store,
    artifact: &Artifact,
    output: &Output,
    costs: Option<Table>,
) -> Result<u8, Failure> {
    for file in &artifact.files {
        store
            .check_object(&file.digest)
            .map_err(|damage| Failure::Other {
                message: damage.to_string(),
                hint: Some("`flowgraph run` makes it again".to_owned()),
                code: exit_code::STORE_DAMAGED,
            })?;
    }
    if output.json {
        let mut value = json!({
            "result": name, "kind": artifact.kind, "digest": artifact.digest, "files": artifact.files,
        });
        if artifact.kind == "table" {
            let table = read_table(store, artifact)?;
            value["rows"] = table.rows_json();
            value["title"] = json!(table.title);
            value["notes"] = json!(table.notes);
        }
        output.json(&value);
        return Ok(exit_code::OK);
    }
    if artifact.kind == "table" {
        output.data(&output.drawn(&read_table(store, artifact)?));
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
            "{:>10}  {}  {}",
            super::output::bytes(file.size),
            file.path,
            store.object_path(&file.digest).display()
        ));
    }
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
        .ok_or_else(|| Failure::usage(format!("run {id} has no end: it was killed, or goes on")))?;
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

/// A result that a user named.
pub(super) struct Found {
    pub(super) artifact: Artifact,
    /// The position of its stage.
    stage: usize,
    /// Those of the whole pipeline.
    plans: Vec<StagePlan>,
}

/// Finds the artifact that `text` names, as the pipeline stands now.
pub(super) fn find(pipeline: &Pipeline, store: &Store, text: &str) -> Result<Found, Failure> {
    let reference = Reference::parse(text).map_err(Failure::usage)?;
    let matches: Vec<usize> = (0..pipeline.stages.len())
        .filter(|at| {
            let stage = &pipeline.stages[*at];
            stage.template == reference.stage
                && reference
                    .axes
                    .iter()
                    .all(|(axis, selection)| match selection {
                        Selection::Value(value) => stage.axes.get(axis) == Some(value),
                        Selection::All => true,
                    })
        })
        .collect();
    let stage = match matches.as_slice() {
        [stage] => *stage,
        [] => {
            return Err(Failure::usage(
                pipeline
                    .find(&reference.stage)
                    .err()
                    .unwrap_or_else(|| format!("no instance `{text}`")),
            ));
        }
        [first, ..] => {
            return Err(Failure::usage(format!(
                "`{text}` means {} stages; name one, such as `{}`",
                matches.len(),
                pipeline.stages[*first].name
            )));
        }
    };
    let instance = &pipeline.stages[stage];
    let outputs = instance.stage.outputs();
    let name = match &reference.output {
        Some(name) => name.clone(),
        None => outputs
            .first()
            .map(|output| output.name.clone())
            .unwrap_or_default(),
    };
    if outputs.iter().all(|output| output.name != name) {
        let known: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
        return Err(Failure::usage(format!(
            "stage `{}` has no output `{name}`; it has {}",
            instance.name,
            known.join(", ")
        )));
    }
    let plans = Planner::new(pipeline, store, PlanOptions::default()).plan()?;
    let artifact = plans[stage]
        .outputs
        .as_ref()
        .and_then(|outputs| outputs.get(&name));
    let artifact = artifact.cloned().ok_or_else(|| Failure::Other {
        message: format!(
            "stage `{}` has no result as the pipeline stands now",
            instance.name
        ),
        hint: Some(format!(
            "`flowgraph run {} --only '{}'` makes it",
            pipeline.document.file.display(),
            instance.name
        )),
        code: exit_code::STAGE_FAILED,
    })?;
    Ok(Found {
        artifact,
        stage,
        plans,
    })
}

/// Reads a table artifact.
pub(super) fn read_table(store: &Store, artifact: &Artifact) -> Result<Table, Failure> {
    Ok(Table::of_artifact(store, artifact).map_err(StageError::from)?)
}
