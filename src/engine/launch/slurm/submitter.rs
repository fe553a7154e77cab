//! A run that is a job itself, and jobs whose run is gone.

use std::path::{Path, PathBuf};

use super::ClusterSettings;
use super::batch::BatchFolder;
use super::client::{self, ClusterError, Queued};
use super::{job_script, program_of};
use crate::engine::stage::StageError;
use crate::engine::store::Store;

/// The variable by which a run knows that it is a job: a notice of the cluster that its time is up does not stop its stages.
pub const DETACHED: &str = "FLOWGRAPH_DETACHED";
/// The name of such a job.
const NAME: &str = "flowgraph-run";

/// Submits a run as a job of its own; returns the job's number and where it prints.
pub fn detach(
    settings: &ClusterSettings,
    store: &Store,
    arguments: &[String],
) -> Result<(String, PathBuf), StageError> {
    let folder = BatchFolder::make_empty(store)?;
    let mut words = vec![program_of(settings)?];
    words.extend_from_slice(arguments);
    let script = job_script(settings, &folder.output(), &words).replacen(
        '\n',
        &format!("\nexport {DETACHED}=1\n"),
        1,
    );
    fs_err::write(folder.script(), script)?;
    let mut options = vec![
        format!("--job-name={NAME}"),
        format!("--comment={}", folder.comment()),
        "--output=/dev/null".to_owned(),
        "--requeue".to_owned(),
        "--ntasks=1".to_owned(),
    ];
    options.extend(settings.for_sbatch());
    options.extend(settings.run_options.iter().cloned());
    let job = client::submit(&options, &folder.script().display().to_string())
        .map_err(|error| StageError::new(error.to_string()))?;
    Ok((job, folder.output()))
}

/// Asks a run that is a job to stop its stages and end; one that waits in the queue, perhaps once more, is cancelled.
///
/// # Errors
/// If the cluster does not answer, or refuses.
pub fn interrupt(job: &str) -> Result<(), StageError> {
    let asked = match client::state_in_queue(job).as_deref() {
        Some("PENDING") => client::cancel(&[job.to_owned()]),
        _ => client::interrupt(job),
    };
    asked.map_err(|error| StageError::new(error.to_string()))
}

/// The state of a job in the queue: empty if it is not there; `None` if the cluster does not say.
pub fn state_in_queue(job: &str) -> Option<String> {
    client::state_in_queue(job)
}

/// Says where runs of a store wait in the queue: their jobs, each with its state and reason.
pub fn waiting_runs(store: &Store) -> Vec<(String, String, String)> {
    let folders = BatchFolder::all(store);
    let queue = if folders.is_empty() {
        Ok(Vec::new())
    } else {
        client::queue()
    };
    let queue = queue.unwrap_or_default().into_iter();
    let mine = queue.filter(|job| {
        let mut folders = folders.iter();
        folders.any(|folder| folder.comment() == job.comment && folder.told().is_err())
    });
    mine.map(|job| (job.job, job.state, job.reason)).collect()
}

/// Cancels the runs of a store that wait in the queue; returns how many there were.
///
/// # Errors
/// If the cluster does not answer, or refuses.
pub fn cancel_waiting(store: &Store) -> Result<usize, StageError> {
    cancel(store, |folder, job| {
        job.state == "PENDING" && folder.told().is_err()
    })
}

/// Cancels the jobs of the stages of a run, by its folder; returns how many there were.
///
/// # Errors
/// If the cluster does not answer, or refuses.
pub fn cancel_jobs(store: &Store, run: &Path) -> Result<usize, StageError> {
    let run = std::path::absolute(run)?;
    cancel(store, |folder, _| folder.submitter().as_ref() == Some(&run))
}

fn cancel(
    store: &Store,
    is_meant: impl Fn(&BatchFolder, &Queued) -> bool,
) -> Result<usize, StageError> {
    let folders = BatchFolder::all(store);
    if folders.is_empty() {
        return Ok(0);
    }
    let queue = match client::queue() {
        Ok(queue) => queue,
        // Where there is no cluster, nothing waits in its queue.
        Err(ClusterError::Missing(..)) => return Ok(0),
        Err(error) => return Err(StageError::new(error.to_string())),
    };
    let jobs = folders.iter().filter_map(|folder| {
        let comment = folder.comment();
        let job = queue.iter().find(|job| job.comment == comment)?;
        is_meant(folder, job).then(|| job.job.clone())
    });
    let jobs: Vec<String> = jobs.collect();
    if !jobs.is_empty() {
        client::cancel(&jobs).map_err(|error| StageError::new(error.to_string()))?;
    }
    Ok(jobs.len())
}
