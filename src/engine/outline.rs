//! What a pipeline says of its results, as one digest.
//!
//! A fingerprint holds the digests of inputs, so it is open until they are made. This digest holds what makes the inputs
//! instead: it is known of a pipeline file alone, and tells whether a page of results was made from it as it stands.

use serde_json::{Value as Json, json};

use super::artifact::Digest;
use super::fingerprint::canonical_json;
use super::spec::Pipeline;

/// Returns the positions of the stages that make artifacts of a kind, in the order of the file.
pub fn making(pipeline: &Pipeline, kind: &str) -> Vec<usize> {
    let makes = |at: &usize| {
        let outputs = pipeline.stages[*at].stage.outputs();
        outputs.iter().any(|output| output.kind == kind)
    };
    (0..pipeline.stages.len()).filter(makes).collect()
}

/// Digests names, kinds, versions, params, sources and inputs of some stages, the inputs by what makes them.
pub fn of(pipeline: &Pipeline, stages: &[usize]) -> Digest {
    let mut known: Vec<Option<Digest>> = vec![None; pipeline.stages.len()];
    for at in &pipeline.order {
        let instance = &pipeline.stages[*at];
        let inputs = instance.inputs.iter().map(|input| {
            let items = input.items.iter().map(|item| {
                let labels = input.labelled.then_some(&item.labels);
                let labels = labels.map(|labels| labels.iter().collect::<Vec<_>>());
                json!([known[item.producer], item.output, labels])
            });
            (input.port.clone(), items.collect::<Vec<_>>().into())
        });
        let inputs: serde_json::Map<String, Json> = inputs.collect();
        let sources = instance.stage.sources().into_iter().map(|source| {
            // Pinned bytes are the same wherever they come from.
            let bytes = source.sha256.as_ref().map(ToString::to_string);
            json!([
                source.key,
                bytes.unwrap_or_else(|| source.source.to_string())
            ])
        });
        let said = json!({
            "kind": instance.kind.name, "version": instance.kind.version, "params": instance.stage.params(),
            "inputs": inputs, "sources": sources.collect::<Vec<_>>(),
        });
        known[*at] = Some(Digest::of(canonical_json(&said).as_bytes()));
    }
    let named = stages
        .iter()
        .map(|at| json!([pipeline.stages[*at].name, known[*at]]));
    Digest::of(canonical_json(&named.collect()).as_bytes())
}
