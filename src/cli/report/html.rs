//! The HTML file: everything in it, and nothing that it would have to fetch.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use minijinja::{AutoEscape, Environment, Value};
use serde::Serialize;
use serde_json::json;

use super::super::results::Results;
use super::super::{Failure, exit_code};
use super::audit::Audit;
use super::embed::{in_script, policy_hash, readable};
use super::facts::{self, Fact};
use super::figures::{self, FigureView};
use super::graph::{self, Drawing};
use super::logs::Logs;
use super::tables::{self, TableView};
use super::{completions, stages};
use crate::artifacts::table::TABLE;
use crate::engine::outline;
use crate::engine::plan::{Decision, StagePlan};
use crate::engine::provenance::Provenance;
use crate::engine::spec::Pipeline;
use crate::engine::stage::StageError;
use crate::engine::store::Store;
use crate::excerpt::excerpt;

const TEMPLATE: &str = include_str!("template.html");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Bytes of the file: what everything else leaves of them is for completions.
const MOST_BYTES: usize = 4_500_000;

/// Bytes of why a stage failed, where that is told in passing.
const REASON: usize = 300;

/// What the template shows.
#[derive(Debug, Serialize)]
struct Page<'a> {
    name: &'a str,
    description: &'a str,
    facts: Vec<Fact>,
    missing: Vec<Missing<'a>>,
    stages: usize,
    claims: Vec<TableView>,
    tables: Vec<TableView>,
    figures: Vec<FigureView>,
    graph: Option<Drawing>,
    /// The only line that another file of the same store does not share.
    written: String,
}

/// The stages of a matrix that have no result.
#[derive(Debug, Serialize)]
struct Missing<'a> {
    template: &'a str,
    missing: usize,
    all: usize,
    /// Whether tables are missing with it.
    is_table: bool,
    /// Why the first of them that failed did.
    failure: Option<String>,
}

/// Writes the report of a pipeline, of which something may be missing.
pub(super) fn report(
    pipeline: &Pipeline,
    store: &Store,
    results: &Results,
    audit: &Audit,
) -> Result<String, Failure> {
    let plans = &results.plans;
    let everything = vec![true; plans.len()];
    let provenance = Provenance::of(pipeline, store, plans, &everything);
    let (claims, tables) = tables::read(pipeline, store, results, audit)?;
    let logs = Logs::find(store);
    let page = Page {
        name: &pipeline.name,
        description: &pipeline.description,
        facts: facts(pipeline, &provenance),
        missing: missing(pipeline, plans, &logs),
        stages: plans.len(),
        claims,
        tables,
        figures: figures::read(pipeline, store, results)?,
        graph: graph::draw(pipeline, plans),
        written: format!(
            "Written {} by flowgraph {} on a machine with the processor {}",
            jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC"),
            env!("CARGO_PKG_VERSION"),
            facts::processor()
        ),
    };
    let shown = page.claims.iter().chain(&page.tables);
    let names: BTreeMap<&str, _> = shown
        .map(|table| (table.name.as_str(), &table.names))
        .collect();
    let mut data = json!({
        "names": readable(&names).map_err(StageError::from)?,
        "stages": stages::read(pipeline, plans, &provenance, &logs, audit)?,
        "order": pipeline.order,
        "completions": {},
    });
    let without = fill(&page, &in_script(&data))?.len();
    data["completions"] =
        completions::read(pipeline, store, results, MOST_BYTES.saturating_sub(without))?;
    fill(&page, &in_script(&data))
}

/// Tells of the results and of where they were computed.
fn facts(pipeline: &Pipeline, provenance: &Provenance<'_>) -> Vec<Fact> {
    let mut facts = facts::of(pipeline, provenance, &outline::making(pipeline, TABLE));
    facts.push(facts::all("host", provenance, |made| &made.host));
    let started = || facts::made(provenance).map(|made| made.started.as_str());
    // To the second.
    let short = |time: &str| {
        time.split_once('.')
            .map_or_else(|| time.to_owned(), |(time, _)| format!("{time}Z"))
    };
    if let (Some(first), Some(last)) = (started().min(), started().max()) {
        facts.push(Fact::new("first stage started", [short(first)]));
        facts.push(Fact::new("last stage started", [short(last)]));
    }
    facts
}

/// Lists the stages without a result, those of a matrix together.
fn missing<'a>(pipeline: &'a Pipeline, plans: &[StagePlan], logs: &Logs) -> Vec<Missing<'a>> {
    let mut templates: IndexMap<&str, Missing<'a>> = IndexMap::new();
    for (stage, plan) in pipeline.stages.iter().zip(plans) {
        let one = templates.entry(&stage.template).or_insert_with(|| Missing {
            template: &stage.template,
            missing: 0,
            all: 0,
            failure: None,
            is_table: stage
                .stage
                .outputs()
                .iter()
                .any(|output| output.kind == TABLE),
        });
        one.all += 1;
        if plan.decision != Decision::Cached {
            one.missing += 1;
            let failure = plan.fingerprint.as_ref().and_then(|own| logs.failure(own));
            let failure = failure.map(|reason| excerpt(reason, REASON).into_owned());
            one.failure = one.failure.take().or(failure);
        }
    }
    templates
        .into_values()
        .filter(|one| one.missing > 0)
        .collect()
}

/// Fills the template. Every text in it is escaped; style, script and data are the only ones that are put in as they are.
fn fill(page: &Page<'_>, data: &str) -> Result<String, Failure> {
    let broken = |error: minijinja::Error| Failure::Other {
        message: format!("the template of the report is broken: {error:#}"),
        hint: Some("this is a bug in flowgraph".to_owned()),
        code: exit_code::STAGE_FAILED,
    };
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.set_undefined_behavior(minijinja::UndefinedBehavior::Strict);
    // Browsers encode whatever else a link cannot hold.
    environment.add_filter("fragment", |name: String| name.replace('%', "%25"));
    environment
        .add_template("report", TEMPLATE)
        .map_err(broken)?;
    let page = readable(page).map_err(StageError::from)?;
    let values = minijinja::context! {
        page => Value::from_serialize(page),
        style => Value::from_safe_string(STYLE.to_owned()),
        script => Value::from_safe_string(SCRIPT.to_owned()),
        style_hash => Value::from_safe_string(policy_hash(STYLE)),
        script_hash => Value::from_safe_string(policy_hash(SCRIPT)),
        data => Value::from_safe_string(data.to_owned()),
    };
    let template = environment.get_template("report").map_err(broken)?;
    template.render(values).map_err(broken)
}
