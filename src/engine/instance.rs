//! Stages of a pipeline, one for each combination of a matrix.

use std::path::Path as FilePath;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::context::Labels;
use super::diagnostic::Path;
use super::stage::{Resources, Stage, StageKind};
use super::value::Map;

/// One stage to run.
pub struct Instance {
    /// Name with axis values: `samples[policy=ppo,seed=1]`.
    pub name: String,
    /// Name of the stage in the file.
    pub template: String,
    /// The folder that relative paths start from: that of the file it stands in.
    pub base_folder: Arc<FilePath>,
    /// Axis values as text, in axis order.
    pub axes: Labels,
    /// Its kind.
    pub kind: StageKind,
    /// Its params as written, `${}` replaced, as JSON text: what a worker parses again.
    pub raw_params: Box<RawValue>,
    /// Its params, typed.
    pub stage: Box<dyn Stage>,
    /// What it reads.
    pub inputs: Vec<PortInput>,
    /// What it needs while running.
    pub resources: Resources,
    /// How often a failed run is tried again.
    pub retries: u32,
    /// Seconds after which a run is ended.
    pub timeout: Option<f64>,
    /// What it is for.
    pub description: String,
}

/// The artifacts wired to one port.
#[derive(Debug, Clone, PartialEq)]
pub struct PortInput {
    /// The port's name.
    pub port: String,
    /// Whether labels count.
    pub labelled: bool,
    /// In order.
    pub items: Vec<InputItem>,
}

/// One artifact wired to a port.
#[derive(Debug, Clone, PartialEq)]
pub struct InputItem {
    /// Position of the producer in the pipeline's stages.
    pub producer: usize,
    /// The producer's output.
    pub output: String,
    /// Axis values and stage name.
    pub labels: Labels,
}

/// A stage of the file before its matrix is expanded into instances.
pub(super) struct Template {
    pub(super) axes: IndexMap<String, Vec<String>>,
    /// Positions of its instances in the pipeline, with their axis values.
    pub(super) instances: Vec<(Labels, usize)>,
}

/// An instance whose references are still text.
pub(super) struct Draft {
    pub(super) instance: Instance,
    pub(super) path: Path,
    pub(super) inputs: Map,
}
