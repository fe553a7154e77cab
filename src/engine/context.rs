//! What a running stage sees: its inputs, where to write, and whom to tell of progress.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::artifact::Digest;
use super::machine::{Gpu, Products, Work};
use super::stage_error::StageError;
use crate::excerpt::{MESSAGE, excerpt};

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
    /// What its maker hands on beside it, which changes no result; null if nothing.
    pub handed_on: Json,
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
    /// The metrics of the units before, each with its number, that came too soon after the last report to be passed on
    /// by themselves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<(u64, IndexMap<String, f64>)>,
}

/// How much a note matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Importance {
    /// Whoever follows the run may want to know.
    #[default]
    Usual,
    /// People are told even where they asked for little.
    Warning,
}

impl Importance {
    pub(super) fn is_usual(&self) -> bool {
        *self == Self::Usual
    }
}

/// Takes what a stage reports while it runs.
pub trait Reporter: Send {
    /// Reports how far the stage is.
    fn progress(&mut self, progress: Progress);
    /// Reports something people should read.
    fn note(&mut self, importance: Importance, text: &str);
    /// Reports the process group of a command, so that it can be ended with the stage.
    fn command_started(&mut self, _group: i32) {}
    /// Reports that a command has ended; ends what it left running, and returns the names of that.
    fn command_ended(&mut self) -> Vec<String> {
        Vec::new()
    }
    /// Prepares a command: a session of its own, which ends with the stage however that ends, and nothing of this
    /// process but what it is given.
    fn before_command(&mut self, _command: &mut std::process::Command) {}
}

/// How often progress is passed on: more nobody could read.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Names the folder of an input within that of a try, beside the outputs, whose names have no dot.
///
/// Few folders, none within another: on a busy disk they cost more than all else that a small stage does.
pub fn input_folder(port: &str, index: usize) -> String {
    format!("{port}.{index}")
}

/// The file of an output with what a stage was given from outside and need not be given again, such as the answers of a
/// program. An audit hands it to the stage, so that all the rest can be computed again.
pub const RECEIVED: &str = "received.jsonl";

/// Names what is kept of a step among checkpoints.
pub(super) fn kept_name(step: u64) -> String {
    format!("at-{step:012}")
}

/// A file or folder that the stage works on a copy of.
pub(super) struct Code {
    /// Its relative path in the pipeline, and in the copy.
    pub(super) path: String,
    /// Where it lies.
    pub(super) found: PathBuf,
    /// Its digest in the stage's manifest.
    pub(super) planned: Option<String>,
}

/// What a running stage sees.
pub struct RunContext {
    pub(super) inputs: BTreeMap<String, Vec<Input>>,
    pub(super) code: Vec<Code>,
    pub(super) sources: BTreeMap<String, PathBuf>,
    pub(super) try_folder: PathBuf,
    /// For outputs of a result that is computed again, what it received; see [`RECEIVED`].
    pub(super) received: BTreeMap<String, PathBuf>,
    pub(super) checkpoints: PathBuf,
    pub(super) continues: bool,
    pub(super) keeps_end_state: bool,
    pub(super) source_cache: PathBuf,
    pub(super) base_folder: PathBuf,
    pub(super) threads: usize,
    /// The GPU that the stage was given for its tensors.
    pub(super) gpu: Option<Gpu>,
    /// How precise its products are there, if they lie there.
    pub(super) computes_on_gpu: Option<Products>,
    /// What was computed.
    pub(super) work: Work,
    pub(super) cancelled: Arc<AtomicBool>,
    /// Whether the stage ever looked at it.
    pub(super) heeds: Arc<AtomicBool>,
    pub(super) reporter: Box<dyn Reporter>,
    /// Unit and time of the progress that was last passed on.
    pub(super) told: Option<(String, Instant)>,
    /// Metrics that came too soon after it.
    pub(super) untold: Vec<(u64, IndexMap<String, f64>)>,
}

impl RunContext {
    /// Returns whether the stage was given a GPU for its tensors, which its record then says that they lie on.
    pub fn takes_gpu(&mut self, products: Products) -> bool {
        self.computes_on_gpu = self.gpu.is_some().then_some(products);
        self.computes_on_gpu.is_some()
    }

    /// Counts tokens that were trained on or generated, and the operations that took.
    pub fn count(&mut self, tokens: u64, flops: f64) {
        self.work.tokens += tokens;
        self.work.flops += flops;
    }

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

    /// Returns what an output received when the result that is computed again was made; see [`RECEIVED`].
    pub fn received(&self, output: &str) -> Option<&Path> {
        self.received.get(output).map(PathBuf::as_path)
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

    /// Copies the code that the kind declared into `folder`; the copies are exactly what the fingerprint was made of.
    ///
    /// # Errors
    /// Code that has changed since.
    pub fn lay_out_code(&self, folder: &Path) -> Result<(), StageError> {
        for code in &self.code {
            let copied = super::code::copy(&code.found, &folder.join(&code.path))?;
            if code.planned.as_ref() != Some(&copied) {
                return Err(StageError::new(format!(
                    "source `{}` changed since the stage was planned",
                    code.path
                ))
                .hint("give the same command again"));
            }
        }
        Ok(())
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
    /// [`StageError::Interrupted`]. A stage that never asks is ended a second later.
    pub fn is_cancelled(&self) -> bool {
        self.heeds.store(true, Ordering::Relaxed);
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Returns the flag behind [`Self::is_cancelled`], for callbacks.
    pub fn cancel_flag(&self) -> Arc<AtomicBool> {
        self.heeds.store(true, Ordering::Relaxed);
        Arc::clone(&self.cancelled)
    }

    /// Reports how far the stage is. It may be called as often as one likes: what comes too soon after the last report
    /// waits for the next one, unless it is of another unit or the end; of it the metrics alone are passed on.
    pub fn progress(&mut self, mut progress: Progress) {
        let is_end = progress.total > 0 && progress.step >= progress.total;
        let is_due = self
            .told
            .as_ref()
            .is_none_or(|(unit, at)| *unit != progress.unit || at.elapsed() >= PROGRESS_EVERY);
        if is_due || is_end {
            let earlier = std::mem::take(&mut self.untold);
            if let Some((unit, _)) = &self.told
                && *unit == progress.unit
            {
                progress.earlier = earlier;
            }
            self.told = Some((progress.unit.clone(), Instant::now()));
            self.reporter.progress(progress);
        } else if !progress.metrics.is_empty() {
            self.untold.push((progress.step, progress.metrics));
        }
    }

    /// Works through items a part at a time, as an evaluation does: reports how far it is in `unit`, and stops between two
    /// parts when the stage is asked to. Returns what the parts gave, one after the other.
    ///
    /// A part should take seconds at most.
    pub fn pass<T, R: IntoIterator, E>(
        &mut self,
        unit: &str,
        items: &[T],
        part: usize,
        mut work: impl FnMut(&[T]) -> Result<R, E>,
    ) -> Result<Vec<R::Item>, StageError>
    where
        StageError: From<E>,
    {
        let mut found = Vec::with_capacity(items.len());
        let mut done = 0;
        for part in items.chunks(part.max(1)) {
            if self.is_cancelled() {
                return Err(StageError::Interrupted);
            }
            found.extend(work(part)?);
            done += part.len();
            self.progress(Progress {
                step: done as u64,
                total: items.len() as u64,
                unit: unit.to_owned(),
                ..Progress::default()
            });
        }
        Ok(found)
    }

    /// Reports something people should read.
    pub fn note(&mut self, text: &str) {
        self.reporter
            .note(Importance::Usual, &excerpt(text, MESSAGE));
    }

    /// Reports something that people must not miss.
    pub fn warn(&mut self, text: &str) {
        self.reporter
            .note(Importance::Warning, &excerpt(text, MESSAGE));
    }

    /// Prepares a command that the stage will start: it gets a session of its own.
    pub fn before_command(&mut self, command: &mut std::process::Command) {
        self.reporter.before_command(command);
    }

    /// Reports that the stage started a command, whose process group this is.
    pub fn command_started(&mut self, group: i32) {
        self.reporter.command_started(group);
    }

    /// Reports that the command has ended; ends what it left running, and returns the names of that.
    pub fn command_ended(&mut self) -> Vec<String> {
        self.reporter.command_ended()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What a stage under test told.
    #[derive(Default)]
    pub(crate) struct Told {
        pub(crate) progress: Vec<Progress>,
        pub(crate) notes: Vec<String>,
    }

    /// Keeps what it is told, and asks the stage to stop at the first report in a unit.
    struct Listener {
        told: Arc<std::sync::Mutex<Told>>,
        stop_at: Option<&'static str>,
        cancelled: Arc<AtomicBool>,
    }

    impl Reporter for Listener {
        fn progress(&mut self, progress: Progress) {
            if self.stop_at == Some(progress.unit.as_str()) {
                self.cancelled.store(true, Ordering::Relaxed);
            }
            self.told.lock().unwrap().progress.push(progress);
        }

        fn note(&mut self, _: Importance, text: &str) {
            self.told.lock().unwrap().notes.push(text.to_owned());
        }
    }

    /// Makes the context of a try in `folder`; the stage is asked to stop when it first reports progress in `stop_at`.
    pub(crate) fn context(
        folder: &Path,
        inputs: BTreeMap<String, Vec<Input>>,
        stop_at: Option<&'static str>,
    ) -> (RunContext, Arc<std::sync::Mutex<Told>>) {
        let (told, cancelled) = (Arc::default(), Arc::default());
        let ctx = RunContext {
            inputs,
            code: Vec::new(),
            sources: BTreeMap::new(),
            try_folder: folder.join("try"),
            received: BTreeMap::new(),
            checkpoints: folder.join("checkpoints"),
            continues: false,
            keeps_end_state: false,
            source_cache: folder.join("sources"),
            base_folder: folder.to_owned(),
            threads: 1,
            gpu: None,
            computes_on_gpu: None,
            work: Work::default(),
            cancelled: Arc::clone(&cancelled),
            heeds: Arc::default(),
            reporter: Box::new(Listener {
                told: Arc::clone(&told),
                stop_at,
                cancelled,
            }),
            told: None,
            untold: Vec::new(),
        };
        (ctx, told)
    }

    #[test]
    fn a_pass_tells_how_far_it_is_and_stops_between_two_parts() {
        let folder = tempfile::tempdir().unwrap();
        let items: Vec<u32> = (0..10).collect();
        let doubled =
            |part: &[u32]| Ok::<_, StageError>(part.iter().map(|x| 2 * x).collect::<Vec<_>>());
        let (mut ctx, told) = context(folder.path(), BTreeMap::new(), None);
        let found = ctx.pass("rows", &items, 4, doubled).unwrap();
        assert_eq!(found, (0..20).step_by(2).collect::<Vec<_>>());
        // The first report and the last one pass however soon they come.
        let steps = |told: &Told| {
            told.progress
                .iter()
                .map(|p| (p.step, p.total))
                .collect::<Vec<_>>()
        };
        assert_eq!(steps(&told.lock().unwrap()), [(4, 10), (10, 10)]);
        ctx.pass("other rows", &items, 10, doubled).unwrap();
        assert_eq!(told.lock().unwrap().progress[2].unit, "other rows");

        // No metric is lost that came too soon.
        for step in 1..=4 {
            ctx.progress(Progress {
                step,
                total: 4,
                unit: "steps".to_owned(),
                metrics: IndexMap::from([("loss".to_owned(), step as f64)]),
                ..Progress::default()
            });
        }
        let last = told.lock().unwrap().progress.last().unwrap().clone();
        let earlier: Vec<(u64, f64)> = last
            .earlier
            .iter()
            .map(|(step, metrics)| (*step, metrics["loss"]))
            .collect();
        assert_eq!((last.step, earlier), (4, vec![(2, 2.0), (3, 3.0)]));

        let (mut ctx, told) = context(folder.path(), BTreeMap::new(), Some("rows"));
        let mut seen = 0;
        let stopped = ctx.pass("rows", &items, 4, |part| {
            seen += part.len();
            doubled(part)
        });
        assert!(matches!(stopped, Err(StageError::Interrupted)));
        assert_eq!((seen, steps(&told.lock().unwrap())), (4, vec![(4, 10)]));
    }
}
