//! `--executor`: this machine, or a cluster.

use std::path::PathBuf;

use clap::ValueEnum;

use super::Failure;
use crate::engine::launch::ClusterSettings;
use crate::engine::spec::Pipeline;

/// Jobs in a cluster's queue at a time.
pub(super) const JOBS: usize = 100;

/// What runs the workers of stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Executor {
    /// Processes of this machine
    Local,
    /// Jobs of a Slurm cluster, which shares the store's folder
    Slurm,
}

/// Returns how jobs of a pipeline are submitted: as it says, and where it says nothing, as the user's file does.
pub(super) fn settings(pipeline: &Pipeline) -> Result<ClusterSettings, Failure> {
    let own = pipeline.cluster.clone();
    let Some(file) = user_file().filter(|file| file.exists()) else {
        return Ok(own);
    };
    let text = fs_err::read_to_string(&file)?;
    let of_user: ClusterSettings = serde_yaml::from_str(&text)
        .map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
    Ok(own.or(of_user))
}

/// The user's file with settings for all pipelines.
fn user_file() -> Option<PathBuf> {
    let of = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = of("XDG_CONFIG_HOME").map(PathBuf::from);
    let folder = folder.or_else(|| Some(PathBuf::from(of("HOME")?).join(".config")))?;
    Some(folder.join("flowgraph/cluster.yaml"))
}
