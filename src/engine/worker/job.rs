//! What a worker is told, as one line of JSON.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use serde_json::value::RawValue;

use crate::engine::artifact::{Artifact, Digest};
use crate::engine::fingerprint::Manifest;
use crate::engine::machine::DeviceChoice;
use crate::engine::store::Store;

/// One stage to run, with everything that the worker needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// What to do.
    pub task: Task,
    /// The store's folder.
    pub store: PathBuf,
    /// The folder that stages work in, if it is not the store's own: a node's disk may be nearer.
    pub staging: Option<PathBuf>,
    /// The folder of the store that holds the inputs, if that is another: an audit writes to one of its own.
    pub inputs_from: Option<PathBuf>,
    /// Name of the pipeline.
    pub pipeline: String,
    /// Name of the stage.
    pub stage: String,
    /// The stage kind.
    pub kind: String,
    /// Params as written, as JSON text.
    pub params: Box<RawValue>,
    /// Its inputs.
    pub inputs: Vec<JobInput>,
    /// The folder that relative paths start from.
    pub base_folder: PathBuf,
    /// Where the run is asked to compute.
    pub device: DeviceChoice,
    /// Ids of the GPUs that the stage was given.
    pub gpus: Vec<String>,
    /// How many it asks for.
    pub gpus_asked_for: usize,
    /// Bytes of memory that it declares; 0 if it declares none.
    pub memory: u64,
    /// Bytes that each GPU must have; 0 if any will do.
    pub gpu_memory: u64,
    /// Threads that may be used.
    pub threads: usize,
}

impl Job {
    /// Returns the folder that the tries of a fingerprint are made in.
    pub(in crate::engine) fn tries_folder(&self, fingerprint: &Digest) -> PathBuf {
        match &self.staging {
            Some(staging) => staging.join(fingerprint.to_string()),
            None => Store::new(&self.store).scratch_path(fingerprint),
        }
    }
}

/// What a worker is asked to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "task", rename_all = "snake_case")]
pub enum Task {
    /// Run the stage.
    Run {
        /// What determines its bytes.
        manifest: Manifest,
        /// The manifest's fingerprint.
        fingerprint: Digest,
        /// Run even if there is a record.
        rerun: bool,
        /// Run even if there is a record of another numerics class.
        exact: bool,
    },
    /// Fetch the stage's unpinned sources, so that its manifest can be known.
    Fetch,
}

/// One input of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobInput {
    /// The port.
    pub port: String,
    /// Labels, as pairs in order.
    pub labels: Vec<(String, String)>,
    /// The artifact.
    pub artifact: Artifact,
    /// What its maker hands on beside it.
    pub handed_on: Json,
}
