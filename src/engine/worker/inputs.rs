//! What the stage reads: artifacts of other stages, and sources from outside.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

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

/// Of each local source, its files with what the file system says of them.
pub(super) type SourceTimes = BTreeMap<String, Vec<(PathBuf, [i64; 4])>>;

/// Adds the files at `path`. Whoever swaps one for another and back cannot keep its change time.
fn add_times(path: PathBuf, times: &mut Vec<(PathBuf, [i64; 4])>) -> std::io::Result<()> {
    let metadata = fs_err::metadata(&path)?;
    if metadata.is_dir() {
        let entries = fs_err::read_dir(&path)?.map(|entry| Ok(entry?.path()));
        let mut entries: Vec<PathBuf> = entries.collect::<std::io::Result<_>>()?;
        entries.sort_unstable();
        return entries
            .into_iter()
            .try_for_each(|entry| add_times(entry, times));
    }
    let stat = ObjectStat::of(&metadata);
    let told = [
        stat.size as i64,
        stat.inode as i64,
        stat.mtime_ns,
        stat.ctime_ns,
    ];
    times.push((path, told));
    Ok(())
}

/// Returns where sources lie on this machine, with how the pipeline names them.
pub(super) fn source_names(
    stage: &dyn Stage,
    paths: &BTreeMap<String, PathBuf>,
) -> Vec<(String, String)> {
    let sources = stage.sources().into_iter();
    sources
        .filter_map(|param| {
            let path = paths.get(&param.key)?.display().to_string();
            Some((path, param.source.to_string()))
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

    /// Returns what the file system says of the local files that the stage reads.
    pub(super) fn source_times(&self, stage: &dyn Stage) -> Result<SourceTimes, StageError> {
        let mut all = SourceTimes::new();
        for param in stage.sources() {
            if let Some(path) = local_path(&param.source, &self.job.base_folder)? {
                let mut times = Vec::new();
                add_times(path, &mut times)?;
                all.insert(param.key, times);
            }
        }
        Ok(all)
    }

    /// A result made from files that changed meanwhile would be a wrong one, even if they are now what they were.
    pub(super) fn check_sources_unchanged(
        &self,
        stage: &dyn Stage,
        manifest: &Manifest,
        before: &SourceTimes,
    ) -> Result<(), StageError> {
        const HOW: &str = "changed while the stage ran";
        let after = self.source_times(stage)?;
        let changed = after
            .iter()
            .find(|(key, times)| before.get(*key) != Some(times));
        if let Some((key, _)) = changed {
            return Err(source_changed(key, HOW));
        }
        self.check_local_sources(stage, manifest, HOW)
    }

    /// Compares the local files that the stage reads with what its fingerprint was made of.
    fn check_local_sources(
        &self,
        stage: &dyn Stage,
        manifest: &Manifest,
        how: &str,
    ) -> Result<(), StageError> {
        for param in stage.sources() {
            let Some(path) = local_path(&param.source, &self.job.base_folder)? else {
                continue;
            };
            let digest = format!("blake3:{}", self.store.digest_outside(&path, false)?);
            let planned = manifest.sources.get(&param.key).and_then(Option::as_ref);
            if planned != Some(&digest) {
                return Err(source_changed(&param.key, how));
            }
        }
        Ok(())
    }

    /// Makes the sources available; those of a run are exactly what its manifest says.
    pub(super) fn fetch_sources(
        &self,
        stage: &dyn Stage,
        manifest: Option<&Manifest>,
    ) -> Result<BTreeMap<String, PathBuf>, StageError> {
        if let Some(manifest) = manifest {
            self.check_local_sources(stage, manifest, "changed since the stage was planned")?;
        }
        let mut paths = BTreeMap::new();
        for mut param in stage.sources() {
            let planned = manifest.and_then(|manifest| manifest.sources.get(&param.key)?.as_ref());
            let path = match local_path(&param.source, &self.job.base_folder)? {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_another_meanwhile_shows_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("model/weights");
        fs_err::create_dir(folder.path().join("model")).unwrap();
        fs_err::write(&file, "A").unwrap();
        let times = || {
            let mut times = Vec::new();
            add_times(folder.path().to_owned(), &mut times).unwrap();
            times
        };
        let before = times();
        assert_eq!(fs_err::read_to_string(&file).unwrap(), "A");
        assert_eq!(times(), before);
        // Longer than a tick of the file system's clock.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let modified = fs_err::metadata(&file).unwrap().modified().unwrap();
        fs_err::write(&file, "B").unwrap();
        fs_err::write(&file, "A").unwrap();
        let opened = std::fs::File::options().write(true).open(&file);
        opened.unwrap().set_modified(modified).unwrap();
        assert_ne!(times(), before);
    }
}
