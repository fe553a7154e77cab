//! `flowgraph gc`: take away what no pipeline and no recent run needs.

use std::collections::BTreeSet;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::output::{Output, bytes, counted};
use super::{Failure, exit_code};
use crate::engine::document::Document;
use crate::engine::overrides::Overrides;
use crate::engine::plan::{PlanOptions, Planner};
use crate::engine::runs::Run;
use crate::engine::spec::Pipeline;
use crate::engine::stage::Registry;
use crate::engine::store::{LockState, Store};

#[derive(Debug, Args)]
pub(super) struct GcArgs {
    /// Pipeline files whose results stay, with each of their profiles
    pipelines: Vec<PathBuf>,
    /// Keep the results of so many latest runs
    #[arg(long, default_value_t = 10, value_name = "N")]
    keep: usize,
    /// Say what would go, and take nothing away
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(
    args: &GcArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    let runs = Run::all(store);
    let recent = &runs[runs.len().saturating_sub(args.keep)..];
    if args.pipelines.is_empty() && recent.is_empty() {
        // Without this a slip would empty the store.
        return Err(Failure::Other {
            message: "nothing says what to keep".to_owned(),
            hint: Some("name the pipelines whose results stay".to_owned()),
            code: exit_code::USAGE,
        });
    }
    let _alone = match store.lock_alone()? {
        LockState::Held(lock) => lock,
        LockState::Busy { .. } => {
            return Err(Failure::Other {
                message: format!("a run is at work on {}", store.root().display()),
                hint: Some("wait until it has ended".to_owned()),
                code: exit_code::USAGE,
            });
        }
    };
    let mut kept: BTreeSet<_> = recent
        .iter()
        .filter_map(Run::stages)
        .flatten()
        .filter_map(|stage| stage.fingerprint)
        .collect();
    for file in &args.pipelines {
        let profiles = Document::read(file).map(|document| Pipeline::profiles(&document))?;
        for profile in std::iter::once(None).chain(profiles.into_iter().map(Some)) {
            let overrides = Overrides {
                profiles: profile.into_iter().collect(),
                set: Vec::new(),
            };
            let pipeline = Pipeline::load(file, &overrides, registry)?;
            let plans = Planner::new(&pipeline, store, PlanOptions::default()).plan()?;
            // The scratch of a stage that will run has its checkpoints.
            kept.extend(plans.iter().filter_map(|plan| plan.fingerprint));
        }
    }
    let garbage = store.garbage(&kept)?;
    if !args.dry_run {
        store.collect(&garbage)?;
    }
    if output.json {
        let results: Vec<_> = garbage
            .results
            .iter()
            .map(|(record, bytes)| {
                json!({
                    "stage": record.provenance.stage, "pipeline": record.provenance.pipeline,
                    "fingerprint": record.fingerprint, "started": record.provenance.started, "bytes": bytes,
                    "seconds": record.provenance.seconds,
                })
            })
            .collect();
        output.json(&json!({
            "dry_run": args.dry_run, "results": results, "strays": garbage.strays, "folders": garbage.folders,
            "bytes": garbage.bytes,
        }));
        return Ok(exit_code::OK);
    }
    if !output.quiet {
        for (record, size) in &garbage.results {
            let made = &record.provenance;
            output.line(&format!(
                "{:>10}  {}  of {}, {}: in no pipeline given and none of the last {}; `run` would take about {}",
                bytes(*size),
                made.stage,
                made.pipeline,
                made.started,
                counted(recent.len(), "run"),
                super::output::duration(made.seconds),
            ));
        }
        for folder in &garbage.folders {
            output.line(&format!("            {}: unfinished", folder.display()));
        }
    }
    output.line(&format!(
        "{}: {}, {}, {}; {}",
        if args.dry_run {
            "would remove"
        } else {
            "removed"
        },
        counted(garbage.results.len(), "result"),
        counted(garbage.strays.len(), "stray object"),
        counted(garbage.folders.len(), "unfinished folder"),
        bytes(garbage.bytes),
    ));
    if !garbage.results.is_empty() && !args.dry_run {
        output.line("their records stay as evicted; the same pipeline and params make them again");
    }
    Ok(exit_code::OK)
}
