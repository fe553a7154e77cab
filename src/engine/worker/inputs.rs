//! What the stage reads: artifacts of other stages, and sources from outside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use super::held::Held;
use super::{Failure, Task, Worker};
use crate::engine::artifact::Digest;
use crate::engine::context::{Input, Labels, Progress, Reporter, input_folder};
use crate::engine::fingerprint::Manifest;
use crate::engine::plan::local_path;
use crate::engine::stage::{SourceParam, Stage, StageError};
use crate::engine::store::ObjectStat;
use crate::sources::{self, FetchOptions, Source, SourceError};

pub(super) type Inputs = BTreeMap<String, Vec<Input>>;

/// A file of an input, as it was when the stage started.
pub(super) struct Watched {
    port: String,
    digest: Digest,
    stat: ObjectStat,
}

/// The local sources of a stage, by key.
pub(super) type HeldSources = BTreeMap<String, Held>;

/// Returns where the stage finds its local sources.
pub(super) fn paths_of(held: &HeldSources) -> BTreeMap<String, PathBuf> {
    let paths = held.iter();
    paths
        .map(|(key, held)| (key.clone(), held.path().to_owned()))
        .collect()
}

/// Returns where sources lie on this machine, with how the pipeline names them.
pub(super) fn source_names(
    stage: &dyn Stage,
    base_folder: &Path,
    paths: &BTreeMap<String, PathBuf>,
) -> Vec<(String, String)> {
    let sources = stage.sources().into_iter();
    sources
        .filter_map(|param| {
            let path = paths.get(&param.key)?.display().to_string();
            let name = param.source.to_string();
            let own = local_path(&param.source, base_folder).ok().flatten();
            let own = own.map(|own| own.display().to_string());
            // The path of a folder goes with those of the files in it.
            let shown = own.filter(|own| name.ends_with(own.trim_start_matches("./")));
            Some((path, shown.unwrap_or(name)))
        })
        .collect()
}

/// Returns the folders of inputs within that of a try, with what people call them.
pub(super) fn input_names(inputs: &Inputs) -> Vec<(String, String)> {
    let mut names = Vec::new();
    for (port, inputs) in inputs {
        for index in 0..inputs.len() {
            let name = if inputs.len() == 1 {
                format!("input `{port}`")
            } else {
                format!("input {} of `{port}`", index + 1)
            };
            names.push((input_folder(port, index), name));
        }
    }
    // `data.1` begins `data.12`.
    names.sort_by_key(|(folder, _)| std::cmp::Reverse(folder.len()));
    names
}

fn source_changed(key: &str, how: &str) -> StageError {
    StageError::new(format!("source `{key}` {how}")).hint("give the same command again")
}

impl Worker<'_> {
    /// Compares what the stage is given with what its fingerprint was made of.
    pub(super) fn check_inputs(&self, manifest: &Manifest) -> Result<(), StageError> {
        for (port, planned) in &manifest.inputs {
            let given = self.job.inputs.iter().filter(|input| input.port == *port);
            let given = given.map(|input| Some(input.artifact.digest));
            if !given.eq(planned.iter().map(|input| input.digest)) {
                return Err(StageError::new(format!(
                    "BUG: input `{port}` is not what the stage was planned with"
                )));
            }
        }
        Ok(())
    }

    /// Lays out the inputs, every byte of them checked, and returns them with what to watch.
    pub(super) fn lay_out_inputs(
        &self,
        try_folder: &Path,
    ) -> Result<(Inputs, Vec<Watched>), Failure> {
        /// Bytes that take a moment to check, so that people want to know.
        const MANY: u64 = 1 << 28;
        let mut inputs = Inputs::new();
        let mut watched = Vec::new();
        let files = self
            .job
            .inputs
            .iter()
            .flat_map(|input| &input.artifact.files);
        let total: u64 = files.map(|file| file.size).sum();
        let mut checked = 0;
        for input in &self.job.inputs {
            for file in &input.artifact.files {
                if self.cancelled.load(Ordering::Relaxed) {
                    return Err(StageError::Interrupted.into());
                }
                if total >= MANY {
                    self.events.clone().progress(Progress {
                        step: checked,
                        total,
                        unit: "bytes".to_owned(),
                        ..Progress::default()
                    });
                }
                checked += file.size;
                let stat = self
                    .inputs_from
                    .check_object(&file.digest)
                    .map_err(|damage| Failure::Damaged {
                        artifact: input.artifact.digest,
                        message: damage.to_string(),
                    })?;
                watched.push(Watched {
                    port: input.port.clone(),
                    digest: file.digest,
                    stat,
                });
            }
            let port = inputs.entry(input.port.clone()).or_default();
            let folder = try_folder.join(input_folder(&input.port, port.len()));
            self.inputs_from.lay_out(&input.artifact, &folder)?;
            port.push(Input {
                kind: input.artifact.kind.clone(),
                digest: input.artifact.digest,
                path: fs_err::canonicalize(&folder)?,
                files: input
                    .artifact
                    .files
                    .iter()
                    .map(|file| file.path.clone())
                    .collect(),
                labels: input.labels.iter().cloned().collect::<Labels>(),
                handed_on: input.handed_on.clone(),
            });
        }
        Ok((inputs, watched))
    }

    /// A result made from inputs that changed meanwhile would be a wrong one.
    pub(super) fn check_inputs_unchanged(&self, watched: &[Watched]) -> Result<(), StageError> {
        for input in watched {
            let glance = self
                .inputs_from
                .glance_at_object(&input.digest, Some(&input.stat));
            if let Err(damage) = glance {
                return Err(StageError::new(format!(
                    "input `{}` changed while the stage ran: {damage}",
                    input.port
                ))
                .hint("inputs belong to the store: a stage must not write to them"));
            }
        }
        Ok(())
    }

    /// Opens the local files that the stage reads.
    pub(super) fn hold_sources(
        &self,
        stage: &dyn Stage,
        try_folder: &Path,
    ) -> Result<HeldSources, StageError> {
        let mut held = HeldSources::new();
        for (index, param) in stage.sources().into_iter().enumerate() {
            if let Some(path) = local_path(&param.source, &self.job.base_folder)? {
                // The names of outputs and ports begin with a letter.
                let folder = try_folder.join(format!(".sources/{index}"));
                held.insert(param.key, Held::open(&path, &folder)?);
            }
        }
        Ok(held)
    }

    /// A result made from files that changed meanwhile would be a wrong one, even if they are now what they were.
    pub(super) fn check_sources_unchanged(
        &self,
        manifest: &Manifest,
        held: &HeldSources,
    ) -> Result<(), StageError> {
        const HOW: &str = "changed while the stage ran";
        for (key, source) in held {
            if !source.is_unchanged()? {
                return Err(source_changed(key, HOW));
            }
        }
        self.check_held(manifest, held, HOW)
    }

    /// Compares the local files that the stage reads with what its fingerprint was made of.
    pub(super) fn check_held(
        &self,
        manifest: &Manifest,
        held: &HeldSources,
        how: &str,
    ) -> Result<(), StageError> {
        for (key, source) in held {
            let digest = self.store.digest_outside(source.path(), false)?;
            let planned = manifest.sources.get(key).and_then(Option::as_ref);
            if planned != Some(&format!("blake3:{digest}")) {
                return Err(source_changed(key, how));
            }
        }
        Ok(())
    }

    /// Makes the sources available; those of a run are exactly what its manifest says.
    pub(super) fn fetch_sources(
        &self,
        stage: &dyn Stage,
        manifest: Option<&Manifest>,
        held: &HeldSources,
    ) -> Result<BTreeMap<String, PathBuf>, StageError> {
        let mut paths = BTreeMap::new();
        for mut param in stage.sources() {
            let local = match held.get(&param.key) {
                Some(held) => Some(held.path().to_owned()),
                None => local_path(&param.source, &self.job.base_folder)?,
            };
            let planned = manifest.and_then(|manifest| manifest.sources.get(&param.key)?.as_ref());
            let path = match local {
                Some(folder) if folder.is_dir() => folder,
                Some(file) => self.fetch(&Source::File(file), &param)?,
                None => {
                    let pinned = planned.and_then(|digest| digest.strip_prefix("sha256:"));
                    if let Some(pinned) = pinned {
                        param.sha256 = Some(pinned.parse()?);
                    }
                    self.fetch(&param.source, &param)?
                }
            };
            paths.insert(param.key, path);
        }
        Ok(paths)
    }

    pub(super) fn fetch(
        &self,
        source: &Source,
        param: &SourceParam,
    ) -> Result<PathBuf, StageError> {
        let progress = |progress: sources::Progress| {
            self.events.clone().progress(Progress {
                step: progress.bytes,
                total: progress.total.unwrap_or(0),
                unit: "bytes".to_owned(),
                ..Progress::default()
            });
        };
        let cancelled = || self.cancelled.load(Ordering::Relaxed);
        let mut options = FetchOptions::new(self.store.sources_path());
        options.progress = Some(&progress);
        options.cancelled = Some(&cancelled);
        // An unpinned source is fetched by a task of its own, which looks again if that was asked for.
        options.refresh = matches!(self.job.task, Task::Fetch);
        let fetched = match sources::fetch(source, param.sha256, &options) {
            Err(SourceError::Cancelled) => return Err(StageError::Interrupted),
            other => other?,
        };
        if matches!(self.job.task, Task::Fetch) && param.sha256.is_none() {
            let name = param.source.to_string();
            self.store
                .remember_fetched(&name, &fetched.sha256.to_string())?;
        }
        Ok(fetched.path)
    }
}
