//! The page of a finished pipeline's results, as Markdown: what made them, and every table.

use std::collections::BTreeSet;

use indexmap::IndexSet;

use super::results::Results;
use super::run::CLAIMS;
use super::show::read_table;
use super::{Failure, exit_code};
use crate::artifacts::table::TABLE;
use crate::artifacts::table::markdown::{cell, plain};
use crate::engine::outline;
use crate::engine::overrides::Overrides;
use crate::engine::provenance::Provenance;
use crate::engine::spec::Pipeline;
use crate::engine::store::Store;

/// The output of tables that show every run, which a page leaves out.
const RUN_BY_RUN: &str = "per_seed";
/// The axis whose values are told.
const SEED: &str = "seed";

/// Writes the page of a pipeline of which every table is there.
pub(super) fn page(
    pipeline: &Pipeline,
    overrides: &Overrides,
    store: &Store,
    results: &Results,
) -> Result<String, Failure> {
    let stages = outline::making(pipeline, TABLE);
    if stages.is_empty() {
        return Err(Failure::usage(
            "no stage of this pipeline makes a table: there is nothing to write on a page",
        ));
    }
    if let Some(missing) = stages
        .iter()
        .find(|at| results.plans[**at].outputs.is_none())
    {
        return Err(Failure::Other {
            message: format!(
                "stage `{}` has no result as the pipeline stands now",
                pipeline.stages[*missing].name
            ),
            hint: Some(format!(
                "a page shows every table: `flowgraph run {}` makes them",
                pipeline.document.file.display()
            )),
            code: exit_code::STAGE_FAILED,
        });
    }
    let mut text = header(pipeline, overrides, store, results, &stages);
    let is_claims = |at: &usize| pipeline.stages[*at].kind.name == CLAIMS;
    let (verdicts, others): (Vec<usize>, Vec<usize>) = stages.iter().partition(|at| is_claims(at));
    for at in verdicts.into_iter().chain(others) {
        let tables = results.found.iter().filter(|found| {
            found.stage == at && found.artifact.kind == TABLE && found.output != RUN_BY_RUN
        });
        for found in tables {
            let table = read_table(store, &found.artifact)?;
            text.push_str(&format!(
                "\n## {}\n\n{}",
                pipeline.stages[at].name,
                table.markdown()
            ));
        }
    }
    Ok(text)
}

/// Title, and what made the results: the only part that another run of the same plan changes.
fn header(
    pipeline: &Pipeline,
    overrides: &Overrides,
    store: &Store,
    results: &Results,
    stages: &[usize],
) -> String {
    let wanted = pipeline.graph.upstream(stages.iter().copied());
    let provenance = Provenance::of(pipeline, store, &results.plans, &wanted);
    let made = || provenance.records().map(|(_, record)| &record.provenance);
    let words = |all: BTreeSet<&str>| all.into_iter().collect::<Vec<_>>().join(", ");
    let seeds: IndexSet<&str> = pipeline
        .stages
        .iter()
        .filter_map(|stage| stage.axes.get(SEED).map(String::as_str))
        .collect();
    let seconds: f64 = made().map(|made| made.seconds).sum();
    let mut rows = vec![("plan", format!("`{}`", outline::of(pipeline, stages)))];
    if !overrides.profiles.is_empty() {
        rows.push(("profiles", overrides.profiles.join(", ")));
    }
    if !overrides.set.is_empty() {
        let set = overrides.set.iter().map(|set| format!("`{set}`"));
        rows.push(("set", set.collect::<Vec<_>>().join(", ")));
    }
    if !seeds.is_empty() {
        rows.push(("seeds", seeds.into_iter().collect::<Vec<_>>().join(", ")));
    }
    rows.extend([
        ("stages", provenance.len().to_string()),
        ("seconds of all stages", format!("{seconds:.0}")),
        (
            "flowgraph",
            words(made().map(|made| made.flowgraph.as_str()).collect()),
        ),
        (
            "device",
            words(made().map(|made| made.device.as_str()).collect()),
        ),
        (
            "numerics",
            words(made().map(|made| made.numerics.as_str()).collect()),
        ),
        ("processor of the machine that wrote this page", processor()),
    ]);
    let rows: String = rows
        .iter()
        .map(|(key, value)| format!("| {key} | {} |\n", cell(value)))
        .collect();
    format!(
        "# {}\n\n{}\n\nWritten by `flowgraph export --page` from the results of the pipeline whose digest is `plan`.\n\n| | |\n| --- | --- |\n{rows}",
        plain(&pipeline.name),
        plain(&pipeline.description)
    )
}

/// What the processor calls itself.
fn processor() -> String {
    let text = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let named = lines.find(|(key, _)| key.trim() == "model name");
    named.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}
