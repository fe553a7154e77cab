//! What was run, where and by which version, from the pipeline and the records of its results.

use std::collections::BTreeSet;

use indexmap::IndexSet;
use serde::Serialize;

use crate::engine::outline;
use crate::engine::provenance::Provenance;
use crate::engine::spec::Pipeline;
use crate::engine::store::Provenance as Made;

/// The axis whose values are told.
const SEED: &str = "seed";

/// One thing that a reader must know of the results.
#[derive(Debug, Serialize)]
pub(super) struct Fact {
    pub(super) key: &'static str,
    pub(super) values: Vec<String>,
    /// Whether the values are to be read letter by letter.
    pub(super) is_code: bool,
}

impl Fact {
    pub(super) fn new(key: &'static str, values: impl IntoIterator<Item = String>) -> Self {
        Self {
            key,
            values: values.into_iter().collect(),
            is_code: false,
        }
    }

    fn code(self) -> Self {
        Self {
            is_code: true,
            ..self
        }
    }
}

/// Tells of the results in `provenance`; `tables` are the positions of the stages that make the pipeline's tables.
pub(super) fn of(pipeline: &Pipeline, provenance: &Provenance<'_>, tables: &[usize]) -> Vec<Fact> {
    let axes = pipeline
        .stages
        .iter()
        .filter_map(|stage| stage.axes.get(SEED));
    let seeds: IndexSet<String> = axes.cloned().collect();
    let seconds: f64 = made(provenance).map(|made| made.seconds).sum();
    let plan = (!tables.is_empty()).then(|| outline::of(pipeline, tables).to_string());
    let facts = [
        Fact::new("plan", plan).code(),
        Fact::new("profiles", pipeline.overrides.profiles.clone()),
        Fact::new("set", pipeline.overrides.set.clone()).code(),
        Fact::new("seeds", seeds),
        Fact::new("stages", [provenance.len().to_string()]),
        Fact::new(
            "seconds of all stages, each when it ran",
            [format!("{seconds:.0}")],
        ),
        all("flowgraph", provenance, |made| &made.flowgraph),
        all("device", provenance, |made| &made.device),
        all("numerics", provenance, |made| &made.numerics),
    ];
    facts
        .into_iter()
        .filter(|fact| !fact.values.is_empty())
        .collect()
}

/// Returns how the results were made.
pub(super) fn made<'a>(provenance: &'a Provenance<'_>) -> impl Iterator<Item = &'a Made> {
    provenance.records().map(|(_, record)| &record.provenance)
}

/// Lists what records say, each value once, in alphabetical order.
pub(super) fn all(
    key: &'static str,
    provenance: &Provenance<'_>,
    said: impl Fn(&Made) -> &String,
) -> Fact {
    let values: BTreeSet<String> = made(provenance).map(|made| said(made).clone()).collect();
    Fact::new(key, values)
}

/// Returns what the processor of this machine calls itself.
pub(super) fn processor() -> String {
    let text = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.split_once(':'));
    let named = lines.find(|(key, _)| key.trim() == "model name");
    named.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned())
}
