//! `flowgraph runs`: the runs of a store.

use clap::Args;
use serde_json::json;

use super::output::{Output, duration};
use super::{Failure, exit_code};
use crate::artifacts::table::Table;
use crate::engine::runs::Run;
use crate::engine::store::Store;

#[derive(Debug, Args)]
pub(super) struct RunsArgs {
    /// At most so many, the latest
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: usize,
}

pub(super) fn run(args: &RunsArgs, store: &Store, output: &Output) -> Result<u8, Failure> {
    let all = Run::all(store)?;
    let runs = &all[all.len().saturating_sub(args.limit)..];
    let ends: Vec<_> = runs.iter().map(Run::end).collect();
    if output.json {
        let rows: Vec<_> = runs
            .iter()
            .zip(&ends)
            .map(|(run, end)| {
                json!({
                    "description": run.description,
                    "under_way": if end.is_some() { Some(false) } else { run.is_under_way() },
                    "seconds": end.as_ref().map(|end| end.seconds),
                    "outcomes": end.as_ref().map(|end| &end.outcomes),
                })
            })
            .collect();
        output.json(&json!({ "runs": rows }));
        return Ok(exit_code::OK);
    }
    let text = |value: &dyn Fn(&Run) -> String| -> Vec<Option<String>> {
        runs.iter().map(|run| Some(value(run))).collect()
    };
    let mut table = Table::new(format!("Runs of {}", store.root().display()));
    table.text_column("Run", text(&|run| run.description.run.clone()));
    table.text_column("Pipeline", text(&|run| run.description.pipeline.clone()));
    table.text_column("Changes", text(&changes));
    let took = runs.iter().zip(&ends).map(|(run, end)| {
        let text = end.as_ref().map(|end| duration(end.seconds));
        Some(text.unwrap_or_else(|| format!("no end: {}", run.why_no_end())))
    });
    table.text_column("Time", took);
    for outcome in ["cached", "done", "failed", "skipped", "interrupted"] {
        let counts = ends
            .iter()
            .map(|end| end.as_ref()?.outcomes[outcome].as_f64());
        table.number_column(outcome, 0, counts);
    }
    output.data(&output.drawn(&table));
    Ok(exit_code::OK)
}

/// Writes what was given on the command line to change the pipeline.
fn changes(run: &Run) -> String {
    let profiles = run.description.profiles.iter();
    let set = run.description.set.iter();
    let all: Vec<String> = profiles
        .map(|profile| format!("--profile {profile}"))
        .chain(set.map(|set| format!("--set {set}")))
        .collect();
    all.join(" ")
}
