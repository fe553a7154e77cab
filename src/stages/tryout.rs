//! Stages that run in the process of a test, with contexts that listen and interrupt.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value as Json;

use crate::engine::context::Input;
use crate::engine::context::tests::{Told, context};
use crate::engine::stage::{Kind, StageError};

/// What a try left.
pub(crate) struct Tried {
    pub(crate) outcome: Result<(), StageError>,
    pub(crate) told: Told,
    outputs: PathBuf,
}

impl Tried {
    /// Returns the folder of an output.
    pub(crate) fn output(&self, name: &str) -> PathBuf {
        self.outputs.join(name)
    }

    /// Returns the error of a try that failed.
    pub(crate) fn message(&self) -> &str {
        match &self.outcome {
            Err(StageError::Failed { message, .. }) => message,
            other => panic!("no failure: {other:?}"),
        }
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        matches!(self.outcome, Err(StageError::Interrupted))
    }

    /// Returns the totals of what was reported, by unit.
    pub(crate) fn totals(&self) -> BTreeMap<&str, u64> {
        let progress = self.told.progress.iter();
        progress
            .map(|progress| (progress.unit.as_str(), progress.total))
            .collect()
    }
}

/// Tries a stage in `folder`, where checkpoints of an earlier try may be; see [`context`].
pub(crate) fn attempt<K: Kind>(
    folder: &Path,
    params: Json,
    inputs: &[(&str, &str, &Path)],
    stop_at: Option<&'static str>,
) -> Tried {
    let stage: K = serde_json::from_value(params).unwrap();
    assert_eq!(stage.validate(), []);
    let mut ports: BTreeMap<String, Vec<Input>> = BTreeMap::new();
    for (port, kind, path) in inputs {
        ports.entry((*port).to_owned()).or_default().push(Input {
            kind: (*kind).to_owned(),
            digest: blake3::hash(b"").into(),
            path: (*path).to_owned(),
            files: Vec::new(),
            labels: indexmap::IndexMap::new(),
            handed_on: Json::Null,
        });
    }
    let outputs = folder.join("try");
    let _ = fs_err::remove_dir_all(&outputs);
    let (mut ctx, told) = context(folder, ports, stop_at);
    let outcome = stage.run(&mut ctx);
    drop(ctx);
    let told = Arc::into_inner(told).unwrap().into_inner().unwrap();
    Tried {
        outcome,
        told,
        outputs,
    }
}
