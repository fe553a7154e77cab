//! Auditing: stored results are computed again from their recorded inputs, in a store of their own.
//!
//! A copy of the store that shares its objects is made, and the stages run there again. The executor keeps the earlier
//! record of a stage that runs again, so that every stage reads what its record says and not what the audit made of
//! the stages before it. The audited store is only read.

use std::collections::BTreeMap;
use std::path::Path;

use super::artifact::Outputs;
use super::event::{Observer, Outcome};
use super::executor::{self, RunOptions};
use super::plan::StagePlan;
use super::spec::Pipeline;
use super::stage::StageError;
use super::store::{Lock, Store};

/// What came of a stage when it was computed again.
#[derive(Debug)]
pub enum Reexecuted {
    /// The same bytes.
    Same,
    /// Other bytes: the artifacts, which are in the audit's store.
    Other(Outputs),
    /// It did not end.
    Failed(String),
}

/// A copy of a store, removed when the audit ends.
#[derive(Debug)]
pub struct AuditStore {
    /// Where the stages run.
    pub store: Store,
    /// Says that the audit is alive.
    _in_use: Lock,
}

impl AuditStore {
    /// Makes a copy of the results that `plans` found, in the store's own folder: objects are hard links.
    ///
    /// # Errors
    /// A file system that refuses.
    pub fn of(store: &Store, plans: &[StagePlan]) -> Result<Self, StageError> {
        let folder = store
            .root()
            .join("audit")
            .join(std::process::id().to_string());
        store.sweep_leftovers();
        let copy = Store::new(&folder);
        let copy = Self {
            _in_use: copy.share()?,
            store: copy,
        };
        let cached = plans.iter().filter(|plan| plan.outputs.is_some());
        for fingerprint in cached.filter_map(|plan| plan.fingerprint) {
            let record = store.read_record(&fingerprint);
            let record = record.map_err(|error| StageError::new(error.to_string()))?;
            // One that is gone meanwhile is no result any more.
            let Some(record) = record else { continue };
            for file in record.outputs.values().flat_map(|artifact| &artifact.files) {
                link(
                    &store.object_path(&file.digest),
                    &copy.store.object_path(&file.digest),
                )?;
            }
            copy.store.write_record(&record)?;
        }
        let sources = fs_err::canonicalize(store.root())?.join("sources");
        if sources.exists() {
            fs_err::os::unix::fs::symlink(sources, copy.store.sources_path())?;
        }
        Ok(copy)
    }

    /// Runs the stages marked in `selected` again and says what came of each, by position.
    ///
    /// # Errors
    /// A run that could not begin.
    pub fn run(
        &self,
        pipeline: &Pipeline,
        selected: &[bool],
        mut options: RunOptions,
        observer: &mut dyn Observer,
    ) -> Result<BTreeMap<usize, Reexecuted>, StageError> {
        options.plan.rerun = selected.to_vec();
        options.wanted = selected.to_vec();
        let report = executor::run(pipeline, &self.store, options, observer)?;
        if report.interrupted {
            return Err(StageError::Interrupted);
        }
        let selected = (0..pipeline.stages.len()).filter(|stage| selected[*stage]);
        Ok(selected
            .map(|stage| {
                let name = &pipeline.stages[stage].name;
                let result = match (report.outcomes[stage], report.reruns.get(&stage)) {
                    (Some(Outcome::Done), None) => Reexecuted::Same,
                    (Some(Outcome::Done), Some(other)) => Reexecuted::Other(other.clone()),
                    _ => {
                        let failure = report.failures.iter().find(|found| found.stage == *name);
                        let message = failure.map(|failure| failure.message.clone());
                        Reexecuted::Failed(message.unwrap_or_else(|| "it did not run".to_owned()))
                    }
                };
                (stage, result)
            })
            .collect())
    }
}

impl Drop for AuditStore {
    fn drop(&mut self) {
        let _ = fs_err::remove_dir_all(self.store.root());
    }
}

fn link(from: &Path, to: &Path) -> std::io::Result<()> {
    if let Some(parent) = to.parent() {
        fs_err::create_dir_all(parent)?;
    }
    match std::fs::hard_link(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        // A file system without hard links.
        Err(_) => fs_err::copy(from, to).map(|_| ()),
        Ok(()) => Ok(()),
    }
}
