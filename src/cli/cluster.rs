//! `--executor`: this machine, or a cluster.

use clap::ValueEnum;
use serde_json::{Value as Json, json};

use super::output::{Output, counted};
use super::{Failure, exit_code, user_file};
use crate::engine::launch::ClusterSettings;
use crate::engine::launch::slurm::{ClusterError, Request, partitions};
use crate::engine::machine::DeviceChoice;
use crate::engine::spec::Pipeline;
use crate::engine::stage::StageError;

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
    let Some(file) = user_file("cluster.yaml").filter(|file| file.exists()) else {
        return Ok(own);
    };
    let text = fs_err::read_to_string(&file)?;
    let of_user: ClusterSettings = serde_yaml::from_str(&text)
        .map_err(|error| Failure::usage(format!("{}: {error}", file.display())))?;
    Ok(own.or(of_user))
}

/// Says what the cluster offers, and which stages ask for what it would not give.
pub(super) fn check(pipeline: &Pipeline, output: &Output) -> Result<u8, Failure> {
    let offered = partitions().map_err(|error| {
        StageError::new(error.to_string())
            .hint("`--executor slurm` is for a machine where `sbatch` and `sinfo` work")
    })?;
    for of in &offered {
        let line = format!(
            "{}: {} nodes of {} cores, {} MB, {}; at most {} a job; {}",
            of.name, of.nodes, of.cores, of.memory, of.gres, of.limit, of.state
        );
        output.line(&line);
    }
    let settings = settings(pipeline)?;
    let mut requests: Vec<(Request, Vec<&str>)> = Vec::new();
    for stage in &pipeline.stages {
        let gpus = DeviceChoice::Auto.gpus(stage.stage.gpu_use(), stage.resources.gpus);
        let request = Request {
            resources: stage.resources.clone(),
            gpus,
            limit: stage.timeout,
        };
        match requests.iter_mut().find(|(known, _)| *known == request) {
            Some((_, stages)) => stages.push(&stage.name),
            None => requests.push((request, vec![&stage.name])),
        }
    }
    let mut refused: Vec<Json> = Vec::new();
    for (request, stages) in requests {
        let Err(error) = request.check(&settings) else {
            continue;
        };
        if !matches!(error, ClusterError::Refused(..)) {
            output.warning(
                &error.to_string(),
                "nodes may be away for a while: jobs would wait for them",
            );
            continue;
        }
        refused.push(json!({ "stages": stages, "message": error.to_string() }));
        if output.json {
            continue;
        }
        let named = match stages.as_slice() {
            [only] => format!("stage `{only}`"),
            [first, ..] => format!("{} like `{first}`", counted(stages.len(), "stage")),
            [] => continue,
        };
        output.error(
            &format!("{named}: {error}"),
            Some("`resources` and `timeout` of the stage, and `cluster:`, say what is asked for"),
        );
    }
    let is_refused = !refused.is_empty();
    if output.json {
        output.json(&json!({ "partitions": offered, "refused": refused }));
    }
    if is_refused {
        return Ok(exit_code::INVALID_PIPELINE);
    }
    let count = counted(pipeline.stages.len(), "stage");
    output.line(&format!("the cluster would take the jobs of {count}"));
    Ok(exit_code::OK)
}
