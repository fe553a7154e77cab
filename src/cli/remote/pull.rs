//! `flowgraph pull`: bring what is there.

use std::collections::BTreeSet;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use serde_json::json;

use super::bar::{Bar, Share};
use super::{RemoteOptions, failure};
use crate::cli::output::{Output, bytes, counted};
use crate::cli::{Failure, PipelineOptions, exit_code, interrupts};
use crate::engine::artifact::Digest;
use crate::engine::plan::{Decision, PlanOptions, Planner};
use crate::engine::stage::Registry;
use crate::engine::store::{Found, Store, in_parallel};

/// Results that are fetched at once.
const AT_ONCE: usize = 16;

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    #[command(flatten)]
    options: PipelineOptions,
    #[command(flatten)]
    remote: RemoteOptions,
    /// Bring results of this kind of processor alone
    #[arg(long, value_parser = ["reuse", "exact"], default_value = "reuse")]
    numerics: String,
}

/// Whatever can be asked for at a time is asked for at once, until that finds nothing more.
pub(crate) fn pull(
    args: &PullArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    let pipeline = args.options.load(registry)?;
    let remote = args.remote.needed()?;
    interrupts::count_interrupts()?;
    let options = PlanOptions {
        exact_numerics: args.numerics == "exact",
        ..PlanOptions::default()
    };
    let mut tried: BTreeSet<Digest> = BTreeSet::new();
    let (mut fetched, mut damaged) = (0, Vec::new());
    let bar = Bar::new(output, 0);
    let open = loop {
        let planner = Planner::new(&pipeline, store, options.clone());
        let plans = planner.plan()?;
        let wanted: Vec<_> = (plans.iter().enumerate())
            .filter(|(_, plan)| plan.decision == Decision::Run)
            .filter_map(|(stage, plan)| Some((plan.fingerprint?, planner.wanted(stage))))
            .filter(|(fingerprint, _)| tried.insert(*fingerprint))
            .collect();
        if wanted.is_empty() {
            let open = plans
                .iter()
                .filter(|plan| plan.decision != Decision::Cached);
            break open.count();
        }
        let given_up = AtomicBool::new(false);
        let found = in_parallel(&wanted, AT_ONCE, |(fingerprint, wanted)| {
            if given_up.load(Ordering::Relaxed) {
                return None;
            }
            let (share, once) = (Share::of(&bar), Once::new());
            let found = remote.fetch(store, fingerprint, wanted, &|done, total| {
                once.call_once(|| bar.expect(total));
                share.tell(done);
            });
            // The next would fail for the same reason.
            if found
                .as_ref()
                .is_err_and(|error| !error.is_of_this_result())
            {
                given_up.store(true, Ordering::Relaxed);
            }
            Some(found)
        });
        let mut broken = None;
        for found in found.into_iter().flatten() {
            match found {
                Ok(Found::Nothing) => {}
                Ok(Found::Result(_)) => fetched += 1,
                Err(error) if error.is_of_this_result() => damaged.push(remote.said(&error)),
                Err(error) => broken = broken.or(Some(error)),
            }
        }
        if let Some(error) = broken {
            let so_far = format!(" ({} brought)", counted(fetched, "result"));
            return Err(failure(&remote, &error, &so_far));
        }
    };
    let came = bytes(bar.done());
    drop(bar);
    let stages = pipeline.stages.len();
    if output.json {
        output.json(&json!({
            "remote": remote.address(), "fetched": fetched, "stages": stages, "cached": stages - open,
            "damaged": damaged,
        }));
    } else {
        for damage in &damaged {
            output.error(damage, Some("a `run` makes it again, and heals it there"));
        }
        output.line(&format!(
            "brought {} ({came}) from {}; {} of {} have theirs here{}",
            counted(fetched, "result"),
            remote.address(),
            stages - open,
            counted(stages, "stage"),
            if open > 0 {
                ", `flowgraph plan` says what would run"
            } else {
                ""
            }
        ));
    }
    Ok(if damaged.is_empty() {
        exit_code::OK
    } else {
        exit_code::STORE_DAMAGED
    })
}
