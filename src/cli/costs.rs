//! What the stages behind a table cost when they ran: time and memory, which stand in records and in no artifact.

use std::collections::BTreeSet;

use crate::artifacts::table::Table;
use crate::engine::artifact::Digest;
use crate::engine::machine::Machine;
use crate::engine::plan::class_here;
use crate::engine::spec::Pipeline;
use crate::engine::store::{Provenance, Store};
use crate::stats::mean;

/// Returns a table of what made the inputs of a stage's ports `with_costs`, if it has any: a row for each of their
/// stages, a matrix's instances together.
///
/// `fingerprint` tells that of a stage by its position.
pub(super) fn table(
    pipeline: &Pipeline,
    store: &Store,
    stage: usize,
    fingerprint: impl Fn(usize) -> Option<Digest>,
) -> Option<Table> {
    let instance = &pipeline.stages[stage];
    let ports = instance.stage.ports();
    let mut producers: Vec<usize> = Vec::new();
    for input in &instance.inputs {
        let shown = ports
            .iter()
            .any(|port| port.with_costs && port.name == input.port);
        for item in input.items.iter().filter(|_| shown) {
            if !producers.contains(&item.producer) {
                producers.push(item.producer);
            }
        }
    }
    let machine = Machine::here();
    let mut rows: Vec<(&str, Vec<Provenance>)> = Vec::new();
    for producer in producers {
        let instance = &pipeline.stages[producer];
        let found = store.find_record(&fingerprint(producer)?, &class_here(instance, machine));
        let record = found.ok()??;
        let name = instance.template.as_str();
        match rows.iter_mut().find(|(other, _)| *other == name) {
            Some((_, runs)) => runs.push(record.provenance),
            None => rows.push((name, vec![record.provenance])),
        }
    }
    if rows.is_empty() {
        return None;
    }
    let mut table = Table::new("Time and memory, from the records of the runs");
    table.text_column(
        "Stage",
        rows.iter().map(|(name, _)| Some((*name).to_owned())),
    );
    table.number_column(
        "Runs",
        0,
        rows.iter().map(|(_, runs)| Some(runs.len() as f64)),
    );
    let mut number = |heading: &str, value: &dyn Fn(&Provenance) -> f64| {
        let means = rows.iter().map(|(_, runs)| {
            let values: Vec<f64> = runs.iter().map(value).collect();
            mean(&values).ok()
        });
        table.number_column(heading, 1, means);
    };
    number("Seconds", &|run| run.seconds);
    number("CPU seconds", &|run| run.cpu_seconds);
    number("Peak MiB", &|run| {
        run.peak_memory_bytes as f64 / f64::from(1 << 20)
    });
    let speed = |run: &Provenance| Some(run.work?.tokens as f64 / run.seconds);
    let utilization = |run: &Provenance| Some(100.0 * run.gpu.as_ref()?.utilization?);
    let on_gpu = |run: &Provenance| {
        let bytes = run.gpu.as_ref()?.peak_memory_bytes?;
        Some(bytes as f64 / f64::from(1 << 20))
    };
    let mut known = |heading: &str, value: &dyn Fn(&Provenance) -> Option<f64>| {
        let means = rows.iter().map(|(_, runs)| {
            let values: Vec<f64> = runs.iter().filter_map(value).collect();
            mean(&values).ok()
        });
        let means: Vec<Option<f64>> = means.collect();
        if means.iter().any(Option::is_some) {
            table.number_column(heading, 1, means);
        }
    };
    known("Tokens/s", &speed);
    known("Peak MiB of GPU", &on_gpu);
    known("MFU (%)", &utilization);
    let mut places = |heading: &str, place: &dyn Fn(&Provenance) -> String| {
        let cells = rows.iter().map(|(_, runs)| {
            let places: BTreeSet<String> = runs.iter().map(place).collect();
            Some(places.into_iter().collect::<Vec<_>>().join(", "))
        });
        table.text_column(heading, cells);
    };
    places("Device", &|run| match &run.gpu {
        Some(used) => used.gpu.name.clone(),
        None => run.device.clone(),
    });
    places("Threads", &|run| run.threads.to_string());
    places("Host", &|run| run.host.clone());
    table.notes.push(
        "Means over the runs, each as it was recorded, that of a cached stage by an earlier run: other work on the \
         machine and an interruption count in, or leave out what a killed try had done."
            .to_owned(),
    );
    Some(table)
}
