//! `flowgraph gc`: take away what no pipeline and no recent run needs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::output::{Output, bytes, counted};
use super::remote::{self, Collection};
use super::{Failure, exit_code};
use crate::engine::artifact::Digest;
use crate::engine::document::Document;
use crate::engine::overrides::Overrides;
use crate::engine::plan::{PlanOptions, Planner};
use crate::engine::runs::Run;
use crate::engine::spec::{LoadError, Pipeline};
use crate::engine::stage::Registry;
use crate::engine::store::{Garbage, LockState, Store};

#[derive(Debug, Args)]
pub(super) struct GcArgs {
    /// Pipeline files whose results stay, with each of their profiles
    pipelines: Vec<PathBuf>,
    /// Keep what so many latest runs had, used or began to make, however they ended
    #[arg(long, default_value_t = 10, value_name = "N")]
    keep: usize,
    /// Say what would go, and take nothing away
    #[arg(long)]
    dry_run: bool,
    /// Collect the shared store instead: results that the pipelines given do not need and that were sent long ago. Says
    /// what would go, unless `--remove` is given
    #[arg(
        long,
        value_name = "ADDRESS",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "",
        conflicts_with = "keep"
    )]
    pub(super) remote: Option<String>,
    /// Days for which what was sent to the shared store stays, whatever needs it
    #[arg(long, default_value_t = 30, value_name = "N", requires = "remote")]
    days: u32,
    /// Take away what would go from the shared store
    #[arg(long, requires = "remote", conflicts_with = "dry_run")]
    remove: bool,
}

pub(super) fn run(
    args: &GcArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    if let Some(address) = &args.remote {
        let asked = Collection {
            address,
            pipelines: &args.pipelines,
            days: args.days,
            remove: args.remove,
        };
        return remote::collect(&asked, registry, output);
    }
    let _alone = match store.lock_alone()? {
        LockState::Held(lock) => lock,
        LockState::Busy { holder } => {
            return Err(Failure::Other {
                message: format!("{holder} is at work on {}", store.root().display()),
                hint: Some("wait until it has ended".to_owned()),
                code: exit_code::USAGE,
            });
        }
    };
    let runs = Run::every_one(store)?;
    // One that was killed before it knew what it needs does not count as a run.
    let needs = runs.iter().rev().map(Run::needs);
    let recent: Vec<BTreeSet<Digest>> = needs
        .filter_map(std::io::Result::transpose)
        .take(args.keep)
        .collect::<std::io::Result<_>>()?;
    if args.pipelines.is_empty() && recent.is_empty() {
        // Without this a slip would empty the store.
        return Err(Failure::Other {
            message: "nothing says what to keep".to_owned(),
            hint: Some("name the pipelines whose results stay".to_owned()),
            code: exit_code::USAGE,
        });
    }
    let mut kept: BTreeSet<Digest> = recent.iter().flatten().copied().collect();
    kept.extend(reached(
        &args.pipelines,
        registry,
        store,
        &PlanOptions::default(),
    )?);
    let garbage = store.garbage(&kept)?;
    let lost = lost_with_folders(&garbage, store, &runs);
    if !args.dry_run {
        store.collect(&garbage)?;
        store.sweep_leftovers();
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
            "lost": lost, "bytes": garbage.bytes,
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
        for lost in &lost {
            output.line(&format!("            {lost}"));
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
        counted(garbage.folders.len(), "scratch or state folder"),
        bytes(garbage.bytes),
    ));
    if !garbage.results.is_empty() && !args.dry_run {
        output.line("their records stay as evicted; the same pipeline and params make them again");
    }
    Ok(exit_code::OK)
}

/// Finds the results that pipelines have or may have, with each of their profiles.
pub(super) fn reached(
    pipelines: &[PathBuf],
    registry: &Registry,
    store: &Store,
    options: &PlanOptions,
) -> Result<BTreeSet<Digest>, Failure> {
    let mut kept = BTreeSet::new();
    for file in pipelines {
        let document = Document::read(file).map_err(LoadError::from)?;
        let profiles = Pipeline::profiles(&document);
        for profile in std::iter::once(None).chain(profiles.into_iter().map(Some)) {
            let overrides = Overrides {
                profiles: profile.into_iter().collect(),
                set: Vec::new(),
            };
            let pipeline = Pipeline::load(file, &overrides, registry)?;
            let planner = Planner::new(&pipeline, store, options.clone());
            for plan in planner.plan()? {
                match (plan.fingerprint, &plan.manifest) {
                    // The scratch of a stage that will run has its checkpoints.
                    (Some(fingerprint), _) => {
                        kept.insert(fingerprint);
                    }
                    // It may be a hit once what it reads is back.
                    (None, Some(manifest)) => kept.extend(planner.possible_results(manifest)),
                    (None, None) => {}
                }
            }
        }
    }
    Ok(kept)
}

/// Says of each folder what goes with it.
fn lost_with_folders(garbage: &Garbage, store: &Store, runs: &[Run]) -> Vec<String> {
    if garbage.folders.is_empty() {
        return Vec::new();
    }
    let mut names: BTreeMap<Digest, String> = runs.iter().flat_map(Run::started).collect();
    for record in store.read_records().0 {
        let made = record.provenance;
        if let Some(key) = record.manifest.continuation_key(&made.numerics) {
            names.insert(key, made.stage);
        }
    }
    let folders = garbage.folders.iter().map(|folder| {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let stage = name.parse().ok().and_then(|digest| names.get(&digest));
        let stage = stage.map_or_else(
            || "a stage that no run names".to_owned(),
            |stage| format!("`{stage}`"),
        );
        if folder.parent().is_some_and(|parent| parent.ends_with("states")) {
            let ends = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let mut steps: Vec<u64> = ends
                .filter_map(|end| end.file_name().to_str()?.parse().ok())
                .collect();
            steps.sort_unstable();
            let steps: Vec<String> = steps.iter().map(u64::to_string).collect();
            format!(
                "the state of {stage} after {} steps: a longer training would begin at step 0",
                steps.join(", ")
            )
        } else {
            format!("unfinished work on {stage}, with its checkpoints if it has any: it would begin at the beginning")
        }
    });
    folders.collect()
}
