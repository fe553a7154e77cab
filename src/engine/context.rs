//! What a running stage sees: its inputs, where to write, and whom to tell of progress.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::artifact::Digest;
use super::stage::StageError;

/// Axis values and stage name of an input, in axis order.
pub type Labels = IndexMap<String, String>;

/// An input artifact, laid out as a folder.
#[derive(Debug, Clone)]
pub struct Input {
    /// The artifact kind.
    pub kind: String,
    /// Digest of the content.
    pub digest: Digest,
    /// A folder that holds the artifact's files (as links; never to be written to).
    pub path: PathBuf,
    /// Relative paths of the files.
    pub files: Vec<String>,
    /// Where it comes from; empty unless the port is labelled.
    pub labels: Labels,
}

impl Input {
    /// Returns the artifact's file if it is one, its folder otherwise.
    pub fn file_or_folder(&self) -> PathBuf {
        match self.files.as_slice() {
            [file] => self.path.join(file),
            _ => self.path.clone(),
        }
    }
}

/// How far a stage is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Units done.
    pub step: u64,
    /// Units in all; 0 if unknown.
    pub total: u64,
    /// What a unit is, such as `steps`.
    pub unit: String,
    /// What is shown beside the bar: loss, reward, tokens/s.
    pub metrics: IndexMap<String, f64>,
}

/// Takes what a stage reports while it runs.
pub trait Reporter: Send {
    /// Reports how far the stage is.
    fn progress(&mut self, progress: Progress);
    /// Reports something people should read.
    fn note(&mut self, text: &str);
    /// Reports the process group of a command, so that it can be ended with the stage.
    fn command_group(&mut self, _group: i32) {}
    /// Prepares a command whose process group is its own, so that it ends with the stage however that ends.
    fn before_command(&mut self, _command: &mut std::process::Command) {}
}

/// Names the folder of an input within that of a try, beside the outputs, whose names have no dot.
///
/// Few folders, none within another: on a busy disk they cost more than all else that a small stage does.
pub fn input_folder(port: &str, index: usize) -> String {
    format!("{port}.{index}")
}

/// Names what is kept of a step among checkpoints.
pub(super) fn kept_name(step: u64) -> String {
    format!("at-{step:012}")
}

/// What a running stage sees.
pub struct RunContext {
    pub(super) inputs: BTreeMap<String, Vec<Input>>,
    pub(super) sources: BTreeMap<String, PathBuf>,
    pub(super) try_folder: PathBuf,
    pub(super) checkpoints: PathBuf,
    pub(super) continues: bool,
    pub(super) keeps_end_state: bool,
    pub(super) source_cache: PathBuf,
    pub(super) base_folder: PathBuf,
    pub(super) threads: usize,
    pub(super) cancelled: Arc<AtomicBool>,
    pub(super) reporter: Box<dyn Reporter>,
}

impl RunContext {
    /// Returns the artifact of a port that takes exactly one.
    pub fn input(&self, port: &str) -> Result<&Input, StageError> {
        self.optional_input(port)
            .ok_or_else(|| StageError::new(format!("BUG: port `{port}` has no input")))
    }

    /// Returns the artifact of a port that takes none or one.
    pub fn optional_input(&self, port: &str) -> Option<&Input> {
        self.inputs.get(port).and_then(|inputs| inputs.first())
    }

    /// Returns the artifacts of a port, in the order of its references.
    pub fn inputs(&self, port: &str) -> &[Input] {
        self.inputs.get(port).map_or(&[], Vec::as_slice)
    }

    /// Returns all ports with their artifacts.
    pub fn all_inputs(&self) -> &BTreeMap<String, Vec<Input>> {
        &self.inputs
    }

    /// Makes the folder of an output and returns it; what is written there becomes the artifact.
    pub fn output(&self, name: &str) -> Result<PathBuf, StageError> {
        let folder = self.try_folder.join(name);
        fs_err::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Makes an empty folder that is thrown away after the stage.
    pub fn scratch(&self, name: &str) -> Result<PathBuf, StageError> {
        let folder = self.try_folder.join(format!("scratch.{name}"));
        fs_err::create_dir_all(&folder)?;
        Ok(folder)
    }

    /// Returns the local file of a source that the kind declared.
    pub fn source(&self, key: &str) -> Result<&Path, StageError> {
        self.sources
            .get(key)
            .map(PathBuf::as_path)
            .ok_or_else(|| StageError::new(format!("BUG: no source `{key}`")))
    }

    /// Returns the folder of this fingerprint's checkpoints, which outlives a killed try.
    ///
    /// Publish a checkpoint by writing it under another name and renaming it; the folder is removed once
    /// the stage is done.
    pub fn checkpoints(&self) -> Result<&Path, StageError> {
        fs_err::create_dir_all(&self.checkpoints)?;
        Ok(&self.checkpoints)
    }

    /// Returns where, below [`Self::checkpoints`], what is kept of a step belongs.
    pub fn kept_at(&self, step: u64) -> PathBuf {
        self.checkpoints.join(kept_name(step))
    }

    /// Whether a longer run may continue from the end of this one; see [`Kind::continuation`](super::stage::Kind).
    pub fn continues(&self) -> bool {
        self.continues
    }

    /// Says that the checkpoints hold the end of a whole training, from which a longer one may continue.
    pub fn keep_end_state(&mut self) {
        self.keeps_end_state = true;
    }

    /// Returns the folder that relative paths of the pipeline start from.
    pub fn base_folder(&self) -> &Path {
        &self.base_folder
    }

    /// Returns where downloads are kept.
    pub fn source_cache(&self) -> &Path {
        &self.source_cache
    }

    /// Returns the number of threads that the stage may use.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Whether the stage has been asked to stop: it should checkpoint and return
    /// [`StageError::Interrupted`].
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Returns the flag behind [`Self::is_cancelled`], for callbacks.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.cancelled)
    }

    /// Reports how far the stage is.
    pub fn progress(&mut self, progress: Progress) {
        self.reporter.progress(progress);
    }

    /// Reports something people should read.
    pub fn note(&mut self, text: &str) {
        self.reporter.note(text);
    }

    /// Prepares a command that the stage will start in a process group of its own.
    pub fn before_command(&mut self, command: &mut std::process::Command) {
        self.reporter.before_command(command);
    }

    /// Reports the process group of a command that the stage started.
    pub fn command_group(&mut self, group: i32) {
        self.reporter.command_group(group);
    }
}
