//! The page of a finished pipeline's results, as Markdown: what made them, and every table.

use super::super::results::Results;
use super::super::show::{check_objects, read_table};
use super::super::{Failure, exit_code};
use super::facts::{self, Fact};
use super::{CLAIMS, RUN_BY_RUN};
use crate::artifacts::table::TABLE;
use crate::artifacts::table::markdown::{cell, plain};
use crate::engine::outline;
use crate::engine::provenance::Provenance;
use crate::engine::spec::Pipeline;
use crate::engine::store::Store;

/// Writes the page of a pipeline of which every table is there.
pub(super) fn page(
    pipeline: &Pipeline,
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
                "a page shows every table: `flowgraph run {}` makes them; `--format html` shows what is there",
                pipeline.document.file.display()
            )),
            code: exit_code::STAGE_FAILED,
        });
    }
    let mut text = header(pipeline, store, results, &stages);
    let is_claims = |at: &usize| pipeline.stages[*at].kind.name == CLAIMS;
    let (verdicts, others): (Vec<usize>, Vec<usize>) = stages.iter().partition(|at| is_claims(at));
    for at in verdicts.into_iter().chain(others) {
        let tables = results.found.iter().filter(|found| {
            found.stage == at && found.artifact.kind == TABLE && found.output != RUN_BY_RUN
        });
        for found in tables {
            check_objects(store, &found.artifact)?;
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
fn header(pipeline: &Pipeline, store: &Store, results: &Results, stages: &[usize]) -> String {
    let wanted = pipeline.graph.upstream(stages.iter().copied());
    let provenance = Provenance::of(pipeline, store, &results.plans, &wanted);
    let mut facts = facts::of(pipeline, &provenance, stages);
    facts.push(Fact::new(
        "processor of the machine that wrote this page",
        [facts::processor()],
    ));
    let rows = facts.iter().map(|fact| {
        let values = fact.values.iter().map(|value| {
            if fact.is_code {
                format!("`{value}`")
            } else {
                value.clone()
            }
        });
        let values = values.collect::<Vec<_>>().join(", ");
        format!("| {} | {} |\n", fact.key, cell(&values))
    });
    format!(
        "# {}\n\n{}\n\nWritten by `flowgraph report --format markdown` from the results of the pipeline whose digest is \
         `plan`.\n\n| | |\n| --- | --- |\n{}",
        plain(&pipeline.name),
        plain(&pipeline.description),
        rows.collect::<String>()
    )
}
