//! `flowgraph plan`: what `run` would do, and why.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use clap::Args;
use owo_colors::Style;
use serde_json::{Value as Json, json};

use super::cluster::Executor;
use super::output::{Output, bytes, counted, duration};
use super::text::Text;
use super::{Failure, PipelineOptions, exit_code, remote};
use crate::engine::machine::{DeviceChoice, Machine};
use crate::engine::plan::{Cause, Decision, PlanError, PlanOptions, Planner, StagePlan};
use crate::engine::stage::{Registry, StageError};
use crate::engine::store::Store;
use crate::excerpt::{NAME, excerpt};

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    options: PipelineOptions,
    /// Exit with 10 if something would run
    #[arg(long)]
    exit_code: bool,
    /// Hash every object and source instead of trusting file times, which do not tell of bytes that a disk lost, nor of
    /// what another user's program writes through a memory map
    #[arg(long)]
    paranoid: bool,
    /// Treat results of another kind of processor as missing; what is computed in their place stands beside them
    #[arg(long, value_parser = ["reuse", "exact"], default_value = "reuse")]
    numerics: String,
    /// What would run the stages; see `run`
    #[arg(long, value_enum, default_value = "local", env = "FLOWGRAPH_EXECUTOR")]
    executor: Executor,
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        let hint = hints(error.failures.iter().map(|(_, failure)| failure));
        let messages: Vec<String> = error
            .failures
            .into_iter()
            .map(|(stage, failure)| match failure {
                StageError::Failed { message, .. } => format!("stage `{stage}`: {message}"),
                StageError::Interrupted => format!("stage `{stage}`: interrupted"),
            })
            .collect();
        Self::Other {
            message: messages.join("\n"),
            hint: (!hint.is_empty()).then_some(hint),
            code: exit_code::STAGE_FAILED,
        }
    }
}

pub(super) fn run(
    args: &PlanArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    let pipeline = args.options.load(registry)?;
    let options = PlanOptions {
        paranoid: args.paranoid,
        exact_numerics: args.numerics == "exact",
        machine: Arc::new(match args.executor {
            Executor::Local => Machine::default(),
            Executor::Slurm => Machine::cluster(DeviceChoice::Auto),
        }),
        ..PlanOptions::default()
    };
    let planner = Planner::new(&pipeline, store, options);
    // Left as they are at the end, like the pipeline.
    let plans = ManuallyDrop::new(planner.plan()?);
    let runs = plans
        .iter()
        .filter(|plan| plan.decision != Decision::Cached)
        .count();
    if output.json {
        let rows: Vec<Json> = pipeline
            .stages
            .iter()
            .zip(plans.iter())
            .map(|(stage, plan)| {
                json!({
                    "name": stage.name,
                    "kind": stage.kind.name,
                    "decision": plan.decision,
                    "fingerprint": plan.fingerprint,
                    "causes": plan.causes,
                    "notes": plan.notes,
                    "estimate": plan.estimate,
                })
            })
            .collect();
        output.json(&json!({ "stages": rows }));
    } else {
        let mut text = Text::default();
        for &stage in &pipeline.order {
            let (instance, plan) = (&pipeline.stages[stage], &plans[stage]);
            if plan.decision == Decision::Cached && output.quiet {
                continue;
            }
            push_decision(&mut text, plan.decision, 12);
            text.push_str(" ");
            text.push_str(&instance.name);
            if plan.decision != Decision::Cached {
                text.push_str(&format!("  {}", causes(&plan.causes, &instance.name)));
                let estimate = plan.estimate;
                let parts: Vec<String> = [
                    estimate
                        .seconds
                        .map(|seconds| format!("about {}", duration(seconds))),
                    estimate.memory_bytes.map(bytes),
                    estimate.flops.map(|flops| format!("{flops:.1e} FLOPs")),
                ]
                .into_iter()
                .flatten()
                .collect();
                if !parts.is_empty() {
                    text.push_str(&format!(" ({})", parts.join(", ")));
                }
            }
            text.push_str("\n");
            for note in &plan.notes {
                text.push_str(&format!("{:>12} {note}\n", ""));
            }
        }
        let would = plans
            .iter()
            .filter(|plan| plan.decision == Decision::Run)
            .count();
        text.push_str(&format!(
            "{:>12} {}: {} cached, {would} to run, {} to run if an input changes{}\n",
            "Plan",
            counted(plans.len(), "stage"),
            plans.len() - runs,
            runs - would,
            in_all(&plans)
        ));
        output.text(&text);
        if let (Some(address), 1..) = (remote::address_of_run(), would) {
            output.hint(&format!(
                "{address} was not asked: `run` looks there first, `pull` brings what it has"
            ));
        }
    }
    warn_of_obstacles(&plans, output);
    Ok(if args.exit_code && runs > 0 {
        exit_code::WOULD_RUN
    } else {
        exit_code::OK
    })
}

/// Writes a decision, filled up on the left to `width`.
pub(super) fn push_decision(text: &mut Text, decision: Decision, width: usize) {
    let (word, style) = match decision {
        Decision::Cached => ("CACHED", Style::new().green()),
        Decision::Run => ("RUN", Style::new().yellow()),
        Decision::RunIf => ("RUN IF", Style::new().cyan()),
    };
    text.push_styled(&format!("{word:>width$}"), style);
}

/// Says what would stop a run at once, such as data that were not given.
fn warn_of_obstacles(plans: &[StagePlan], output: &Output) {
    let obstacles = || plans.iter().filter_map(|plan| plan.obstacle.as_ref());
    let count = obstacles().count();
    if count == 0 {
        return;
    }
    output.warning(
        &format!(
            "{} would fail when run, for lack of a source",
            counted(count, "stage")
        ),
        &hints(obstacles()),
    );
}

/// Writes the hints of errors below each other, each once.
fn hints<'a>(errors: impl Iterator<Item = &'a StageError>) -> String {
    let mut hints: Vec<&str> = Vec::new();
    for error in errors {
        if let StageError::Failed {
            hint: Some(hint), ..
        } = error
            && !hints.contains(&hint.as_str())
        {
            hints.push(hint);
        }
    }
    hints.join("\n")
}

/// Writes the cost of all that runs, as far as estimates tell.
fn in_all(plans: &[StagePlan]) -> String {
    let estimates = || {
        let run = plans
            .iter()
            .filter(|plan| plan.decision != Decision::Cached);
        run.map(|plan| plan.estimate)
    };
    let seconds: f64 = estimates().filter_map(|estimate| estimate.seconds).sum();
    let flops: f64 = estimates().filter_map(|estimate| estimate.flops).sum();
    let mut text = String::new();
    if seconds > 0.0 {
        text.push_str(&format!(" (about {} of work", duration(seconds)));
        if flops > 0.0 {
            text.push_str(&format!(", {flops:.1e} FLOPs"));
        }
        text.push(')');
    }
    text
}

/// Writes causes in one line: `lr 1e-5 -> 2e-5`, or `needs ppo (lr 1e-5 -> 2e-5)`.
pub(super) fn causes(causes: &[Cause], stage: &str) -> String {
    const SHOWN: usize = 3;
    let mut parts: Vec<String> = causes
        .iter()
        .take(SHOWN)
        .map(|cause| {
            let key = cause.key.strip_prefix("params.").unwrap_or(&cause.key);
            let text = match (&cause.old, &cause.new) {
                (None, None) => key.to_owned(),
                (old, new) => format!("{key} {} -> {}", value(old.as_ref()), value(new.as_ref())),
            };
            if cause.stage == stage {
                text
            } else {
                format!("{}: {text}", cause.stage)
            }
        })
        .collect();
    if causes.len() > SHOWN {
        parts.push(format!("and {} more", causes.len() - SHOWN));
    }
    parts.join("; ")
}

/// Writes a component of a manifest for people; digests and long texts are shortened.
pub(super) fn value(value: Option<&Json>) -> String {
    match value {
        None => "(none)".to_owned(),
        Some(Json::String(text))
            if text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()) =>
        {
            text[..12].to_owned()
        }
        Some(Json::String(text)) => excerpt(text, 2 * NAME).into_owned(),
        Some(other) => excerpt(&other.to_string(), 2 * NAME).into_owned(),
    }
}
