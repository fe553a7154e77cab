//! `--track`: curves and tables of a run for a program that shows them, while it goes on.
//!
//! The one format is that of TensorBoard, which other programs read. MLflow and Weights & Biases import no such files by
//! themselves: MLflow's own file store is in maintenance since 3.13 and its other stores are databases and a server, and
//! `wandb sync` takes the folders that `wandb` wrote. The scripts of `examples/tracking/` hand the curves to either by its
//! own client; a test runs both without a network.

mod event_file;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use event_file::EventFile;

use super::Failure;
use super::output::Output;
use crate::artifacts::curve::{CURVE, Curve};
use crate::artifacts::table::{TABLE, Table};
use crate::engine::event::{Observer, Outcome, RunEvent};
use crate::engine::executor::RunReport;
use crate::engine::machine::host_name;
use crate::engine::provenance::folder_name;
use crate::engine::spec::Pipeline;
use crate::engine::store::Store;

/// The unit of the progress of trainings.
const STEPS: &str = "steps";

/// Where a run is tracked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Track {
    /// Files of events for TensorBoard, below this folder.
    TensorBoard(PathBuf),
}

impl FromStr for Track {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("tensorboard", folder)) if !folder.is_empty() => {
                Ok(Self::TensorBoard(folder.into()))
            }
            _ => Err(format!(
                "`--track {text}`: expected tensorboard:DIR, such as `tensorboard:events`"
            )),
        }
    }
}

/// Writes what happens in a run.
///
/// Below the folder of the run every stage has its own, so that one training is one curve:
/// `DIR/RUN/ppo_seed=1_-1a2b3c4d/events.out.tfevents...`. Numbers of steps are written as they come, those of trainings
/// whose result was there already, and tables, when the run ends.
pub(super) struct Tracker {
    root: PathBuf,
    run: String,
    files: BTreeMap<String, StageFile>,
    /// The first thing that went wrong, after which nothing more is written.
    failed: Option<std::io::Error>,
}

/// The file of a stage.
struct StageFile {
    events: EventFile,
    /// What it has of each step: of the speed of a step, a curve that is kept knows nothing.
    steps: BTreeMap<u64, Vec<(String, f64)>>,
}

impl StageFile {
    fn scalars<'a>(
        &mut self,
        step: u64,
        values: impl IntoIterator<Item = (&'a String, &'a f64)>,
    ) -> std::io::Result<()> {
        let values = values
            .into_iter()
            .map(|(name, value)| (name.clone(), *value));
        let values: Vec<(String, f64)> = values.collect();
        let written = values.iter().map(|(name, value)| (name, value));
        self.events.scalars(now(), step, written)?;
        self.steps.insert(step, values);
        Ok(())
    }

    /// Writes a whole curve, unless all of its steps are there.
    fn curve(&mut self, curve: &Curve) -> std::io::Result<()> {
        if curve.steps.iter().all(|step| self.steps.contains_key(step)) {
            return Ok(());
        }
        if !self.steps.is_empty() {
            // A training that went on where another run had left it: its first steps were that run's.
            self.events.restart(now())?;
        }
        for (at, step) in curve.steps.iter().enumerate() {
            let metrics = curve.metrics.iter();
            let values = metrics.filter_map(|(name, values)| Some((name, values[at]?)));
            let mut values: Vec<(String, f64)> =
                values.map(|(name, value)| (name.clone(), value)).collect();
            let seen = self.steps.remove(step).unwrap_or_default().into_iter();
            values.extend(seen.filter(|(name, _)| !curve.metrics.contains_key(name)));
            self.scalars(*step, values.iter().map(|(name, value)| (name, value)))?;
        }
        Ok(())
    }
}

impl Tracker {
    /// Makes the folder; one that cannot be written is told before anything runs.
    pub(super) fn new(track: &Track) -> Result<Self, Failure> {
        let Track::TensorBoard(root) = track;
        let tried = fs_err::create_dir_all(root).and_then(|()| tempfile::tempfile_in(root));
        tried.map_err(|error| {
            Failure::usage(format!("`--track tensorboard:{}`: {error}", root.display()))
        })?;
        Ok(Self {
            root: root.clone(),
            run: String::new(),
            files: BTreeMap::new(),
            failed: None,
        })
    }

    fn file(&mut self, stage: &str) -> std::io::Result<&mut StageFile> {
        match self.files.entry(stage.to_owned()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(new) => {
                let folder = self.root.join(&self.run).join(folder_name(stage));
                Ok(new.insert(StageFile {
                    events: EventFile::create(&folder, now(), &host_name())?,
                    steps: BTreeMap::new(),
                }))
            }
        }
    }

    /// Does something unless something failed before.
    fn attempt(&mut self, write: impl FnOnce(&mut Self) -> std::io::Result<()>) {
        if self.failed.is_none()
            && let Err(error) = write(self)
        {
            self.failed = Some(error);
        }
    }

    fn event(&mut self, event: &RunEvent) {
        match event {
            RunEvent::RunStarted { run, .. } => self.run.clone_from(run),
            RunEvent::StageProgress { stage, progress }
                if progress.unit == STEPS && !progress.metrics.is_empty() =>
            {
                self.attempt(|tracker| {
                    let file = tracker.file(stage)?;
                    let earlier = progress.earlier.iter();
                    let earlier = earlier.map(|(step, metrics)| (*step, metrics));
                    for (done, metrics) in earlier.chain([(progress.step, &progress.metrics)]) {
                        // Curves call the first step 0.
                        file.scalars(done.saturating_sub(1), metrics)?;
                    }
                    Ok(())
                });
            }
            _ => {}
        }
    }

    /// Writes what is known when a run has ended: curves of which not every step was seen, and tables.
    pub(super) fn finish(
        &mut self,
        pipeline: &Pipeline,
        store: &Store,
        report: &RunReport,
        output: &Output,
    ) {
        for (at, stage) in pipeline.stages.iter().enumerate() {
            if !matches!(report.outcomes[at], Some(Outcome::Cached | Outcome::Done)) {
                continue;
            }
            for (name, artifact) in report.known[at].iter().flatten() {
                match artifact.kind.as_str() {
                    CURVE => self.attempt(|tracker| {
                        let folder = tempfile::tempdir()?;
                        store.lay_out(artifact, folder.path())?;
                        let curve = Curve::read(folder.path()).map_err(std::io::Error::other)?;
                        tracker.file(&stage.name)?.curve(&curve)
                    }),
                    TABLE => self.attempt(|tracker| {
                        let table = Table::of_artifact(store, artifact);
                        let table = table.map_err(std::io::Error::other)?;
                        let tag = format!("{}.{name}", stage.name);
                        tracker
                            .file(TABLES)?
                            .events
                            .text(now(), &tag, &table.markdown())
                    }),
                    _ => {}
                }
            }
        }
        // What somebody took away meanwhile took everything written without a word.
        let gone = self.files.values().find(|file| !file.events.is_there());
        if let Some(gone) = gone.filter(|_| self.failed.is_none()) {
            let path = gone.events.path().display();
            self.failed = Some(std::io::Error::other(format!("{path} is gone")));
        }
        if let Some(error) = &self.failed {
            output.warning(
                &format!("this run is not tracked to its end: {error}"),
                "its results are in the store: the same command tracks them again",
            );
        }
    }
}

/// The folder of all tables of a run.
const TABLES: &str = "tables";

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// Tracks what another observer shows.
pub(super) struct Tracked {
    pub(super) shown: Box<dyn Observer>,
    pub(super) tracker: Rc<RefCell<Tracker>>,
}

impl Observer for Tracked {
    fn event(&mut self, event: &RunEvent) {
        self.tracker.borrow_mut().event(event);
        self.shown.event(event);
    }

    fn pause(&mut self) {
        self.shown.pause();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::curve::{Status, TrainingSummary};

    #[test]
    fn a_training_that_went_on_from_another_run_is_written_whole_in_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = StageFile {
            events: EventFile::create(folder.path(), 0.0, "host").unwrap(),
            steps: BTreeMap::new(),
        };
        let size = |file: &StageFile| fs_err::metadata(file.events.path()).unwrap().len();
        let loss = "loss".to_owned();
        let summary = TrainingSummary {
            status: Status::Completed,
            reason: None,
            steps: 4,
            trained_tokens: 0,
            generated_tokens: 0,
            flops: 0.0,
            trained_parameters: 0,
        };
        let curve = |steps: std::ops::Range<u64>| Curve {
            title: String::new(),
            metrics: [(loss.clone(), steps.clone().map(|_| Some(0.5)).collect())].into(),
            steps: steps.collect(),
            summary: summary.clone(),
        };
        let empty = size(&file);
        file.scalars(2, [(&loss, &0.5)]).unwrap();
        let record = size(&file) - empty;
        file.scalars(3, [(&loss, &0.5)]).unwrap();
        // Nothing is missing of the steps that were seen.
        file.curve(&curve(2..4)).unwrap();
        assert_eq!(size(&file), empty + 2 * record);
        // Of all four steps two are: it begins anew.
        file.curve(&curve(0..4)).unwrap();
        let restart = 16 + 9 + 2 + 4;
        assert_eq!(size(&file), empty + 6 * record + restart);
    }
}
