//! `flowgraph why`: what a result is made of, and what changed since the one before.

use std::borrow::Cow;

use clap::Args;
use owo_colors::Style;
use serde_json::{Value as Json, json};

use super::output::Output;
use super::plan::{push_decision, value};
use super::text::Text;
use super::{Failure, PipelineOptions, exit_code};
use crate::engine::fingerprint::{Difference, Manifest};
use crate::engine::plan::{Decision, PlanOptions, Planner, StagePlan};
use crate::engine::spec::Pipeline;
use crate::engine::stage::Registry;
use crate::engine::store::{Provenance, Record, Store};

#[derive(Debug, Args)]
pub(super) struct WhyArgs {
    #[command(flatten)]
    options: PipelineOptions,
    /// Stage, or `stage[axis=value]`
    stage: String,
}

/// A stage compared with its past.
struct Explained<'a> {
    stage: usize,
    /// How far upstream of the stage that was asked for.
    depth: usize,
    manifest: Cow<'a, Manifest>,
    /// How its result was made, if it is cached.
    made: Option<Provenance>,
    nearest: Option<&'a Record>,
    differences: Vec<Difference>,
}

pub(super) fn run(
    args: &WhyArgs,
    registry: &Registry,
    store: &Store,
    output: &Output,
) -> Result<u8, Failure> {
    let pipeline = args.options.load(registry)?;
    let stage = pipeline.find(&args.stage).map_err(Failure::usage)?;
    let planner = Planner::new(&pipeline, store, PlanOptions::default());
    let plans = planner.plan()?;
    let explained = explain(&pipeline, store, &planner, &plans, stage)?;
    if output.json {
        output.json(&as_json(&pipeline, &plans, &explained));
    } else {
        output.text(&as_text(&pipeline, &plans, &explained));
    }
    Ok(exit_code::OK)
}

/// Compares a stage with its past, then what it needs, as far up as something runs.
fn explain<'a>(
    pipeline: &Pipeline,
    store: &Store,
    planner: &'a Planner<'_>,
    plans: &'a [StagePlan],
    stage: usize,
) -> Result<Vec<Explained<'a>>, Failure> {
    let mut explained: Vec<Explained<'a>> = Vec::new();
    let mut open = vec![(stage, 0)];
    while let Some((stage, depth)) = open.pop() {
        if explained.iter().any(|other| other.stage == stage) {
            continue;
        }
        let plan = &plans[stage];
        let Some((manifest, made)) = known_of(store, plan)? else {
            continue;
        };
        let nearest = planner.nearest(stage, &manifest);
        explained.push(Explained {
            stage,
            depth,
            made,
            nearest,
            differences: nearest
                .map(|record| record.manifest.differences(&manifest))
                .unwrap_or_default(),
            manifest,
        });
        let needs = pipeline.graph.needs(stage).into_iter().rev();
        let running = needs.filter(|need| plans[*need].decision != Decision::Cached);
        open.extend(running.map(|need| (need, depth + 1)));
    }
    Ok(explained)
}

/// Returns a stage's manifest: its plan's, or its record's if it is cached, and then how that was made.
fn known_of<'a>(
    store: &Store,
    plan: &'a StagePlan,
) -> Result<Option<(Cow<'a, Manifest>, Option<Provenance>)>, Failure> {
    if let Some(manifest) = &plan.manifest {
        return Ok(Some((Cow::Borrowed(manifest), None)));
    }
    let Some(fingerprint) = &plan.fingerprint else {
        return Ok(None);
    };
    let record = store.read_record(fingerprint, plan.beside.as_deref());
    let record = record.map_err(|error| Failure::Other {
        message: error.to_string(),
        hint: Some("`flowgraph verify --repair` drops damaged records".to_owned()),
        code: exit_code::STORE_DAMAGED,
    })?;
    Ok(record.map(|record| (Cow::Owned(record.manifest), Some(record.provenance))))
}

fn as_text(pipeline: &Pipeline, plans: &[StagePlan], explained: &[Explained<'_>]) -> Text {
    let mut text = Text::default();
    for one in explained {
        let (instance, plan) = (&pipeline.stages[one.stage], &plans[one.stage]);
        let indent = "  ".repeat(one.depth);
        text.push_str(&indent);
        push_decision(&mut text, plan.decision, 0);
        text.push_str(" ");
        text.push_styled(&instance.name, Style::new().bold());
        text.push_str(&format!(
            "  {} (version {}){}\n",
            one.manifest.kind,
            one.manifest.version,
            plan.fingerprint.map_or_else(
                || ", an input is not known yet".to_owned(),
                |fingerprint| format!(", fingerprint {}", fingerprint.short())
            ),
        ));
        if let Some(made) = &one.made {
            text.push_str(&format!(
                "{indent}  made by {} of {} at {} on {} ({}, {} threads) in {}\n",
                made.stage,
                made.pipeline,
                made.started,
                made.host,
                made.numerics,
                made.threads,
                super::output::duration(made.seconds),
            ));
        }
        if one.depth == 0 {
            for (key, component) in one.manifest.components() {
                text.push_str(&format!("{indent}    {key}: {}\n", value(Some(&component))));
            }
        }
        match one.nearest {
            None => text.push_str(&format!(
                "{indent}  there is no other result to compare with\n"
            )),
            Some(record) => {
                text.push_str(&format!(
                    "{indent}  against the result of {}, fingerprint {}:\n",
                    record.provenance.started,
                    record.fingerprint.short()
                ));
                for difference in &one.differences {
                    text.push_str(&format!("{indent}    "));
                    text.push_styled(&difference.key, Style::new().yellow());
                    text.push_str(&format!(
                        " {} -> {}\n",
                        value(difference.old.as_ref()),
                        value(difference.new.as_ref())
                    ));
                }
                if one.differences.is_empty() {
                    let why = if plan.fingerprint.is_some() {
                        plan.causes
                            .first()
                            .map_or("nothing differs", |cause| &cause.key)
                    } else {
                        "nothing that is known differs; see what it needs"
                    };
                    text.push_str(&format!("{indent}    {why}\n"));
                }
            }
        }
    }
    text
}

fn as_json(pipeline: &Pipeline, plans: &[StagePlan], explained: &[Explained<'_>]) -> Json {
    let rows: Vec<Json> = explained
        .iter()
        .map(|one| {
            let plan = &plans[one.stage];
            json!({
                "name": pipeline.stages[one.stage].name,
                "depth": one.depth,
                "decision": plan.decision,
                "fingerprint": plan.fingerprint,
                "manifest": one.manifest,
                "record": one.made,
                "causes": plan.causes,
                "nearest": one.nearest.map(|record| record.fingerprint),
                "differences": one.differences,
            })
        })
        .collect();
    json!({ "stages": rows })
}
