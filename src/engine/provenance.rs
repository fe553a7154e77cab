//! Where results come from, in the formats that other tools read.
//!
//! - W3C PROV, as PROV-JSON (member submission of 24 April 2013): entities are artifacts, activities are stages;
//! - RO-Crate 1.1 with the profile Process Run Crate 0.5: one `CreateAction` a stage;
//! - in-toto: one Statement v1 a stage, with the predicate SLSA Provenance v1.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json, json};

use super::artifact::Artifact;
use super::artifact::Digest;
use super::plan::StagePlan;
use super::spec::Pipeline;
use super::store::{Record, Store};

/// A stage with its record and what it read.
struct Step<'a> {
    name: &'a str,
    record: Record,
    /// Port and artifact, in the order of the references.
    inputs: Vec<(&'a str, &'a Artifact)>,
}

/// What is known of how a pipeline's results were made.
pub struct Provenance<'a> {
    pipeline: &'a Pipeline,
    steps: Vec<Step<'a>>,
}

impl<'a> Provenance<'a> {
    /// Takes the stages marked in `wanted` that have results.
    pub fn of(
        pipeline: &'a Pipeline,
        store: &Store,
        plans: &'a [StagePlan],
        wanted: &[bool],
    ) -> Self {
        let outputs = |stage: usize| plans[stage].outputs.as_ref();
        let steps = pipeline.order.iter().filter(|stage| wanted[**stage]);
        let steps = steps.filter_map(|stage| {
            let instance = &pipeline.stages[*stage];
            let inputs = instance.inputs.iter().flat_map(|input| {
                input.items.iter().filter_map(|item| {
                    let artifact = outputs(item.producer)?.get(&item.output)?;
                    Some((input.port.as_str(), artifact))
                })
            });
            outputs(*stage)?;
            let fingerprint = plans[*stage].fingerprint?;
            Some(Step {
                name: &instance.name,
                record: store
                    .read_record(&fingerprint, plans[*stage].beside.as_deref())
                    .ok()??,
                inputs: inputs.collect(),
            })
        });
        Self {
            pipeline,
            steps: steps.collect(),
        }
    }

    /// Returns how many stages it speaks of.
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether no stage has a result.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Returns the stages with their records, in the order in which they can run.
    pub fn records(&self) -> impl Iterator<Item = (&str, &Record)> {
        self.steps.iter().map(|step| (step.name, &step.record))
    }

    /// Writes W3C PROV as PROV-JSON.
    pub fn prov(&self) -> Json {
        let mut entities = Map::new();
        let (mut activities, mut used) = (Map::new(), Map::new());
        let (mut generated, mut associated) = (Map::new(), Map::new());
        let entity = |entities: &mut Map<String, Json>, artifact: &Artifact| {
            let id = format!("fg:artifact-{}", artifact.digest);
            let bytes: u64 = artifact.files.iter().map(|file| file.size).sum();
            let about = json!({ "prov:type": artifact.kind, "fg:bytes": bytes });
            entities.entry(id.clone()).or_insert(about);
            id
        };
        for step in &self.steps {
            let made = &step.record.provenance;
            let stage = format!("fg:stage-{}", step.record.fingerprint);
            let params = step.record.manifest.params.to_string();
            let (start, end) = times(&step.record);
            activities.insert(
                stage.clone(),
                json!({
                    "prov:label": step.name, "prov:startTime": start, "prov:endTime": end, "fg:params": params,
                    "fg:kind": format!("{} version {}", step.record.manifest.kind, step.record.manifest.version),
                    "fg:host": made.host, "fg:device": made.device, "fg:numerics": made.numerics,
                }),
            );
            for (port, artifact) in &step.inputs {
                let id = entity(&mut entities, artifact);
                let link = json!({ "prov:activity": stage, "prov:entity": id, "prov:role": port });
                used.insert(format!("_:u{}", used.len()), link);
            }
            for (name, artifact) in &step.record.outputs {
                let id = entity(&mut entities, artifact);
                let link = json!({ "prov:activity": stage, "prov:entity": id, "prov:role": name });
                generated.insert(format!("_:g{}", generated.len()), link);
            }
            for (key, digest) in &step.record.manifest.sources {
                let digest = digest.clone().unwrap_or_default();
                let id = format!("fg:source-{}", digest.replace(':', "-"));
                let about = json!({ "prov:type": "source", "fg:digest": digest });
                entities.entry(id.clone()).or_insert(about);
                let link = json!({ "prov:activity": stage, "prov:entity": id, "prov:role": key });
                used.insert(format!("_:u{}", used.len()), link);
            }
            let link = json!({ "prov:activity": stage, "prov:agent": "fg:flowgraph" });
            associated.insert(format!("_:a{}", associated.len()), link);
        }
        let agent = json!({
            "prov:type": { "$": "prov:SoftwareAgent", "type": "prov:QUALIFIED_NAME" },
            "prov:label": "flowgraph", "fg:version": env!("CARGO_PKG_VERSION"),
        });
        json!({
            "prefix": { "fg": "urn:flowgraph:" },
            "entity": entities, "activity": activities, "agent": { "fg:flowgraph": agent },
            "used": used, "wasGeneratedBy": generated, "wasAssociatedWith": associated,
        })
    }

    /// Writes an in-toto statement for each stage: what it made, of what, by which params.
    pub fn in_toto(&self) -> Vec<Json> {
        let files = |prefix: &str, artifact: &Artifact| -> Vec<Json> {
            let files = artifact.files.iter();
            files
                .map(|file| {
                    let name = format!("{prefix}/{}", file.path);
                    json!({ "name": name, "digest": { "blake3": file.digest } })
                })
                .collect()
        };
        let statement = |step: &Step<'_>| {
            let manifest = &step.record.manifest;
            let outputs = step.record.outputs.iter();
            let subject: Vec<Json> = outputs
                .flat_map(|(name, artifact)| files(&format!("{}/{name}", step.name), artifact))
                .collect();
            let mut dependencies: Vec<Json> = step
                .inputs
                .iter()
                .flat_map(|(port, artifact)| files(port, artifact))
                .collect();
            for (key, digest) in &manifest.sources {
                let digest = digest.as_deref().and_then(|digest| digest.split_once(':'));
                if let Some((algorithm, value)) = digest {
                    let digest = BTreeMap::from([(algorithm, value)]);
                    dependencies.push(json!({ "name": key, "digest": digest }));
                }
            }
            let (start, end) = times(&step.record);
            json!({
                "_type": "https://in-toto.io/Statement/v1",
                "subject": subject,
                "predicateType": "https://slsa.dev/provenance/v1",
                "predicate": {
                    "buildDefinition": {
                        "buildType": "urn:flowgraph:stage:v1",
                        "externalParameters": {
                            "kind": manifest.kind, "version": manifest.version, "params": manifest.params,
                            "environment": manifest.environment,
                        },
                        "resolvedDependencies": dependencies,
                    },
                    "runDetails": {
                        "builder": {
                            "id": "urn:flowgraph:worker",
                            "version": { "flowgraph": step.record.provenance.flowgraph },
                        },
                        "metadata": {
                            "invocationId": step.record.fingerprint, "startedOn": start, "finishedOn": end,
                        },
                    },
                },
            })
        };
        self.steps.iter().map(statement).collect()
    }

    /// Writes the metadata of an RO-Crate, and says which files belong into it beside: path in the crate and
    /// artifact. They are the pipeline's tables and figures.
    pub fn ro_crate(&self) -> (Json, Vec<(String, &Artifact)>) {
        const PROFILE: &str = "https://w3id.org/ro/wfrun/process/0.5";
        let reference = |id: &str| json!({ "@id": id });
        let mut entities: BTreeMap<String, Json> = BTreeMap::new();
        let mut payload: Vec<(String, &Artifact)> = Vec::new();
        let mut parts: BTreeSet<String> = BTreeSet::from(["pipeline.yaml".to_owned()]);
        // What is carried is a folder of the crate; of the rest there is only the digest.
        let mut ids: BTreeMap<String, String> = BTreeMap::new();
        for step in &self.steps {
            for (name, artifact) in &step.record.outputs {
                let carried = ["table", "figure"].contains(&artifact.kind.as_str());
                let id = if carried {
                    format!("{}/{name}/", folder_name(step.name))
                } else {
                    format!("#artifact-{}", artifact.digest)
                };
                if ids.contains_key(&artifact.digest.to_string()) {
                    continue;
                }
                ids.insert(artifact.digest.to_string(), id.clone());
                let bytes: u64 = artifact.files.iter().map(|file| file.size).sum();
                entities.insert(
                    id.clone(),
                    json!({
                        "@id": id, "@type": if carried { "Dataset" } else { "CreativeWork" },
                        "name": format!("{} of {}", name, step.name),
                        "description": format!("artifact of kind {}", artifact.kind),
                        "identifier": format!("blake3:{}", artifact.digest),
                        "contentSize": bytes.to_string(),
                    }),
                );
                if carried {
                    parts.insert(id.clone());
                    payload.push((id, artifact));
                }
            }
        }
        let mut actions = Vec::new();
        for step in &self.steps {
            let action = format!("#stage-{}", step.record.fingerprint);
            let mut object = Vec::new();
            for (_, artifact) in &step.inputs {
                object.extend(
                    ids.get(&artifact.digest.to_string())
                        .map(|id| reference(id)),
                );
            }
            let params = step
                .record
                .manifest
                .params
                .as_object()
                .into_iter()
                .flatten();
            for (key, value) in params.filter(|(_, value)| !value.is_null()) {
                let id = format!("{action}-{key}");
                let value = value
                    .as_str()
                    .map_or_else(|| value.to_string(), str::to_owned);
                object.push(reference(&id));
                let about =
                    json!({ "@id": id, "@type": "PropertyValue", "name": key, "value": value });
                entities.insert(id, about);
            }
            let outputs = step.record.outputs.values();
            let result = outputs.filter_map(|artifact| ids.get(&artifact.digest.to_string()));
            let result: Vec<Json> = result.map(|id| reference(id)).collect();
            let (start, end) = times(&step.record);
            actions.push(reference(&action));
            let manifest = &step.record.manifest;
            let about = json!({
                "@id": action, "@type": "CreateAction", "name": step.name,
                "description": format!("stage of kind {}, version {}", manifest.kind, manifest.version),
                "instrument": reference("#flowgraph"), "object": object, "result": result,
                "startTime": start, "endTime": end,
                "actionStatus": "http://schema.org/CompletedActionStatus",
            });
            entities.insert(action, about);
        }
        let ends = self.steps.iter().map(|step| times(&step.record).1).max();
        let published = ends.unwrap_or_default();
        let root = json!({
            "@id": "./", "@type": "Dataset", "name": self.pipeline.name,
            "description": if self.pipeline.description.is_empty() {
                format!("Results of the flowgraph pipeline {}", self.pipeline.name)
            } else {
                self.pipeline.description.clone()
            },
            "datePublished": published, "license": "unspecified: that of the data and models it was made of",
            "conformsTo": reference(PROFILE),
            "hasPart": parts.iter().map(|part| reference(part)).collect::<Vec<_>>(),
            "mentions": actions,
        });
        let mut graph = vec![
            json!({
                "@id": "ro-crate-metadata.json", "@type": "CreativeWork", "about": reference("./"),
                "conformsTo": reference("https://w3id.org/ro/crate/1.1"),
            }),
            root,
            json!({ "@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5" }),
            json!({
                "@id": "#flowgraph", "@type": "SoftwareApplication", "name": "flowgraph",
                "softwareVersion": env!("CARGO_PKG_VERSION"), "version": env!("CARGO_PKG_VERSION"),
            }),
            json!({
                "@id": "pipeline.yaml", "@type": "File", "name": "the pipeline", "encodingFormat": "application/yaml",
            }),
        ];
        graph.extend(entities.into_values());
        let metadata =
            json!({ "@context": "https://w3id.org/ro/crate/1.1/context", "@graph": graph });
        (metadata, payload)
    }
}

/// Returns when a stage began and ended, as RFC 3339 in UTC.
fn times(record: &Record) -> (String, String) {
    let start = record.provenance.started.clone();
    let length = jiff::SignedDuration::from_secs_f64(record.provenance.seconds.clamp(0.0, 1e9));
    let end = start.parse::<jiff::Timestamp>().ok();
    let end = end.and_then(|start| start.checked_add(length).ok());
    let end = end.map_or_else(|| start.clone(), |end| end.to_string());
    (start, end)
}

/// Names a folder after a stage or its axis values; what cannot stand in a name, or is too long, is told by its digest.
pub fn folder_name(stage: &str) -> String {
    const LONGEST: usize = 150;
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-=.,".contains(c);
    if stage.chars().all(is_plain) && stage.len() <= LONGEST {
        return stage.to_owned();
    }
    let plain = stage.chars().map(|c| if is_plain(c) { c } else { '_' });
    let plain: String = plain.take(LONGEST).collect();
    let digest = Digest::of(stage.as_bytes());
    format!("{}-{}", plain.trim_end_matches('_'), digest.short())
}
