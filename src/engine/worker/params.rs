//! The params of a stage, as its worker reads them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;
use serde_json::value::RawValue;

use crate::engine::fingerprint::{Manifest, canonical_json, flatten};
use crate::engine::machine::host_name;
use crate::engine::stage::{Stage, StageError, StageKind};

/// Types the params of a job.
pub(super) fn read(kind: &StageKind, text: &RawValue) -> Result<Box<dyn Stage>, StageError> {
    let params = serde_json::from_str(text.get())
        .map_err(|error| StageError::new(format!("cannot read the params: {error}")))?;
    (kind.parse)(&params).map_err(|problems| {
        let text: Vec<String> = problems
            .into_iter()
            .map(|problem| problem.message)
            .collect();
        StageError::new(text.join("; "))
    })
}

/// Refuses to run a stage whose kind or params are not those of its manifest: its outputs would be stored under a
/// fingerprint that says something else.
pub(super) fn check(
    kind: &StageKind,
    stage: &dyn Stage,
    manifest: &Manifest,
) -> Result<(), StageError> {
    let differs = |what: String| {
        let message = format!("the worker read other params than the manifest has: {what}");
        Err(StageError::new(message)
            .hint("if the program was exchanged during the run, give the same command again"))
    };
    if (kind.name, kind.version) != (manifest.kind.as_str(), manifest.version) {
        return differs(format!(
            "they are of `{}` version {}, expected `{}` version {}",
            kind.name, kind.version, manifest.kind, manifest.version
        ));
    }
    let found = stage.environment();
    let mut changed = manifest
        .environment
        .iter()
        .filter(|entry| !found.contains(entry));
    if let Some(entry) = changed.next() {
        let name = entry.split('=').next().unwrap_or_default();
        return Err(StageError::new(format!(
            "the variable `{name}` has another value on {} than where the stage was planned",
            host_name()
        ))
        .hint("its value counts, for `env` names it; `secret_env` passes on one that does not"));
    }
    let read = stage.params();
    if canonical_json(&read) == canonical_json(&manifest.params) {
        return Ok(());
    }
    differs(first_difference(&read, &manifest.params))
}

fn first_difference(read: &Json, expected: &Json) -> String {
    let leaves = |params: &Json| {
        let mut leaves = BTreeMap::new();
        flatten("params", params, &mut leaves);
        leaves
    };
    let (read, expected) = (leaves(read), leaves(expected));
    let paths: BTreeSet<&String> = read.keys().chain(expected.keys()).collect();
    let said = |value: Option<&Json>| value.map_or("left out".to_owned(), Json::to_string);
    let mut differences = paths.into_iter().filter_map(|path| {
        let (read, expected) = (read.get(path), expected.get(path));
        (read != expected)
            .then(|| format!("`{path}` is {}, expected {}", said(read), said(expected)))
    });
    // Null and left out are the same to people, and not to the fingerprint.
    let first = differences.next();
    first.unwrap_or_else(|| "a param is null and not left out, or the other way round".to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI32;
    use std::sync::{Arc, Mutex};

    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};
    use serde_json::json;

    use super::super::events::Events;
    use super::super::{Failure, Job, Task, Worker};
    use crate::engine::context::RunContext;
    use crate::engine::fingerprint::{MANIFEST_FORMAT, Manifest};
    use crate::engine::machine::{DeviceChoice, Place};
    use crate::engine::stage::{Kind, Output, Port, StageError, StageKind};
    use crate::engine::store::Store;

    /// Fails with words of its own when it runs.
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Train {
        lr: f64,
        #[serde(default)]
        seed: u64,
    }

    impl Kind for Train {
        const NAME: &'static str = "train";
        const VERSION: u32 = 2;
        const EXAMPLE: &'static str = "{ lr: 0.1 }";

        fn ports(&self) -> Vec<Port> {
            Vec::new()
        }

        fn outputs(&self) -> Vec<Output> {
            Vec::new()
        }

        fn run(&self, _: &mut RunContext) -> Result<(), StageError> {
            Err(StageError::new("it ran"))
        }
    }

    /// How a worker fails that is given these params, and a manifest with those.
    fn failure(given: &serde_json::Value, manifest: serde_json::Value, version: u32) -> String {
        let manifest = Manifest {
            format: MANIFEST_FORMAT,
            kind: "train".to_owned(),
            version,
            params: manifest,
            inputs: std::collections::BTreeMap::new(),
            sources: std::collections::BTreeMap::new(),
            environment: Vec::new(),
        };
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new(folder.path().join("store"));
        let job = Job {
            task: Task::Run {
                fingerprint: manifest.fingerprint().unwrap(),
                manifest,
                rerun: false,
                exact: false,
            },
            store: store.root().to_owned(),
            inputs_from: None,
            pipeline: "p".to_owned(),
            stage: "s".to_owned(),
            kind: "train".to_owned(),
            params: serde_json::value::to_raw_value(given).unwrap(),
            inputs: Vec::new(),
            base_folder: folder.path().to_owned(),
            device: DeviceChoice::Cpu,
            gpus: Vec::new(),
            staging: None,
            gpus_asked_for: 0,
            memory: 0,
            gpu_memory: 0,
            threads: 1,
        };
        let events = Events(
            Arc::new(Mutex::new(std::io::stdout())),
            Arc::new(AtomicI32::new(0)),
        );
        let worker = Worker {
            inputs_from: store.clone(),
            store,
            job: &job,
            place: &Place::Processor,
            events: &events,
            cancelled: Arc::default(),
            signalled: Arc::default(),
        };
        match worker.perform(&[StageKind::of::<Train>()]) {
            Err(Failure::Stage(StageError::Failed { message, .. })) => message,
            _ => panic!("it did not fail"),
        }
    }

    #[test]
    fn a_stage_with_other_params_than_its_manifest_does_not_run() {
        let given = json!({ "lr": 0.1, "seed": 7 });
        for (manifest, version, expected) in [
            (json!({ "lr": 0.1, "seed": 7 }), 2, "it ran"),
            (
                json!({ "lr": 0.2, "seed": 7 }),
                2,
                "`params.lr` is 0.1, expected 0.2",
            ),
            (
                json!({ "lr": 0.1 }),
                2,
                "`params.seed` is 7, expected left out",
            ),
            (
                json!({ "lr": 0.1, "seed": 7, "steps": 3 }),
                2,
                "`params.steps` is left out, expected 3",
            ),
            (
                json!({ "lr": 0.1, "seed": 7, "note": null }),
                2,
                "a param is null",
            ),
            (
                json!({ "lr": 0.1, "seed": 7 }),
                1,
                "they are of `train` version 2, expected `train` version 1",
            ),
        ] {
            let message = failure(&given, manifest, version);
            assert!(message.contains(expected), "{message}");
        }
        // The same params, otherwise written.
        let spelt_out = json!({ "seed": 0, "lr": 1e-1 });
        assert_eq!(failure(&spelt_out, json!({ "lr": 0.1 }), 2), "it ran");
    }
}
