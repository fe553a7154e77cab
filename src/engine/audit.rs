//! Auditing: stored results are computed again from what their records say, in a store of the audit's own.
//!
//! Each stage reads the recorded artifacts, which lie in the audited store and of which every byte is checked, and
//! writes to a store that holds nothing: no record, state or checkpoint could answer in place of the computation. The
//! audited store is only read.

use std::collections::BTreeMap;

use super::event::Observer;
use super::executor::{self, RunOptions};
use super::plan::{Known, PlanOptions, Planner};
use super::spec::Pipeline;
use super::stage::StageError;
use super::store::{Lock, Record, Store};

/// What came of a stage when it was computed again.
#[derive(Debug)]
pub enum Recomputed {
    /// What it gave this time; the objects are in the audit's store.
    Made(Box<Record>),
    /// It could not be computed from what its record says.
    Failed(String),
}

/// A store for what an audit makes, within the store that it audits; removed when the audit ends.
#[derive(Debug)]
pub struct AuditStore<'a> {
    /// Where the stages write.
    pub own: Store,
    audited: &'a Store,
    /// Says that the audit is alive.
    _in_use: Lock,
}

impl<'a> AuditStore<'a> {
    /// Makes one, empty but for the downloads, which are checked when they are used.
    ///
    /// # Errors
    /// A file system that refuses.
    pub fn within(audited: &'a Store) -> Result<Self, StageError> {
        audited.sweep_leftovers();
        let (own, in_use) = audited.make_audit_store()?;
        let store = Self {
            own,
            audited,
            _in_use: in_use,
        };
        let sources = fs_err::canonicalize(audited.root())?.join("sources");
        if sources.exists() {
            fs_err::os::unix::fs::symlink(sources, store.own.sources_path())?;
        }
        Ok(store)
    }

    /// Computes the stages of `recorded` again, by position, and says what came of each. `known` are the artifacts of
    /// all stages, as recorded.
    ///
    /// # Errors
    /// A run that could not begin.
    pub fn recompute(
        &self,
        pipeline: &Pipeline,
        recorded: &BTreeMap<usize, Record>,
        known: Known,
        mut options: RunOptions,
        observer: &mut dyn Observer,
    ) -> Result<BTreeMap<usize, Recomputed>, StageError> {
        // Nothing is run because something else needs it.
        options.wanted = vec![false; pipeline.stages.len()];
        let (report, mut made) = executor::recompute(
            pipeline,
            &self.own,
            self.audited,
            recorded,
            known,
            options,
            observer,
        )?;
        if report.interrupted {
            return Err(StageError::Interrupted);
        }
        let results = recorded.keys().map(|&stage| {
            let name = &pipeline.stages[stage].name;
            let failure = report.failures.iter().find(|found| found.stage == *name);
            let result = match (made.remove(&stage), failure) {
                (Some(record), None) => Recomputed::Made(Box::new(record)),
                (_, Some(failure)) => Recomputed::Failed(failure.message.clone()),
                (None, None) => Recomputed::Failed("it did not run".to_owned()),
            };
            (stage, result)
        });
        Ok(results.collect())
    }
}

impl Drop for AuditStore<'_> {
    fn drop(&mut self) {
        let _ = fs_err::remove_dir_all(self.own.root());
    }
}

/// Says which source of a stage is not what is recorded, if one is not.
pub fn changed_source(
    pipeline: &Pipeline,
    store: &Store,
    stage: usize,
    recorded: &Record,
) -> Option<String> {
    let planner = Planner::new(pipeline, store, PlanOptions::default());
    let known = vec![None; pipeline.stages.len()];
    let (manifest, obstacle) = planner.manifest(stage, &known);
    if let Some(StageError::Failed { message, .. }) = obstacle {
        return Some(message);
    }
    let mut sources = recorded.manifest.sources.iter();
    let changed = sources.find(|(key, digest)| manifest.sources.get(*key) != Some(digest));
    changed.map(|(key, _)| format!("source `{key}` is not what is recorded"))
}
