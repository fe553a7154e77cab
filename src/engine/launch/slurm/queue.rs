//! Where jobs are put: the cluster's queue, or the allocation that this process has.

use std::collections::BTreeMap;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::ClusterSettings;
use super::batch::BatchFolder;
use super::client::{self, ClusterError, Fate, Queued};
use super::request::Request;

/// Where jobs are put.
pub(super) trait Queue {
    /// Puts a job there; returns its number.
    fn submit(
        &mut self,
        folder: &BatchFolder,
        name: &str,
        request: &Request,
        settings: &ClusterSettings,
    ) -> Result<String, ClusterError>;

    /// Lists the jobs of this user that are not ended.
    fn list(&mut self) -> Result<Vec<Queued>, ClusterError>;

    /// Cancels jobs.
    fn cancel(&mut self, jobs: &[String]) -> Result<(), ClusterError>;

    /// Says what became of a job that is not listed.
    fn fate_of(&mut self, job: &str, comment: &str) -> Fate;

    /// Asks whether such a job would be taken.
    fn check(&mut self, request: &Request, settings: &ClusterSettings) -> Result<(), ClusterError>;
}

/// The queue that `sbatch` submits to.
pub(super) struct Sbatch;

impl Queue for Sbatch {
    fn submit(
        &mut self,
        folder: &BatchFolder,
        name: &str,
        request: &Request,
        settings: &ClusterSettings,
    ) -> Result<String, ClusterError> {
        let mut options = vec![
            format!("--job-name={name}"),
            format!("--comment={}", folder.comment()),
            // Its script says where to, in whose words no sign of a path has another meaning.
            "--output=/dev/null".to_owned(),
            "--requeue".to_owned(),
        ];
        options.extend(request.for_sbatch(settings));
        client::submit(&options, &folder.script().display().to_string())
    }

    fn list(&mut self) -> Result<Vec<Queued>, ClusterError> {
        client::queue()
    }

    fn cancel(&mut self, jobs: &[String]) -> Result<(), ClusterError> {
        client::cancel(jobs)
    }

    fn fate_of(&mut self, job: &str, comment: &str) -> Fate {
        client::fate_of(job, comment)
    }

    fn check(&mut self, request: &Request, settings: &ClusterSettings) -> Result<(), ClusterError> {
        request.check(settings)
    }
}

/// The allocation that this process has: each job is a step of it, which waits until there is room.
#[derive(Default)]
pub(super) struct Allocation {
    steps: Vec<Step>,
    ended: BTreeMap<String, ExitStatus>,
    count: usize,
}

/// The state of a step: whether it waits for room, it alone knows.
pub(super) const STEP: &str = "STEP";

struct Step {
    number: String,
    comment: String,
    child: Child,
}

/// Returns the number of cores of the allocation that this process is in, if it is in one.
pub fn cores_of_allocation() -> Option<usize> {
    std::env::var_os("SLURM_JOB_ID")?;
    let listed = std::env::var("SLURM_JOB_CPUS_PER_NODE").unwrap_or_default();
    Some(cores_in(&listed).unwrap_or(1))
}

/// Adds up such a list as `2(x3),4`: three nodes of two cores, and one of four.
fn cores_in(list: &str) -> Option<usize> {
    let nodes = list.split(',').map(|part| {
        let (cores, times) = part.split_once("(x").unwrap_or((part, "1)"));
        let times: usize = times.strip_suffix(')')?.parse().ok()?;
        Some(cores.parse::<usize>().ok()? * times)
    });
    nodes.sum()
}

impl Queue for Allocation {
    fn submit(
        &mut self,
        folder: &BatchFolder,
        name: &str,
        request: &Request,
        settings: &ClusterSettings,
    ) -> Result<String, ClusterError> {
        let failed = |error: std::io::Error| ClusterError::Missing("srun", error.to_string());
        let output = std::fs::File::options()
            .append(true)
            .create(true)
            .open(folder.output())
            .map_err(failed)?;
        let mut command = Command::new("srun");
        command
            .args(["--exact", "--nodes=1", "--input=none", "--quiet"])
            .arg(format!("--job-name={name}"))
            .args(request.for_srun(settings))
            .arg("bash")
            .arg(folder.script())
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(failed)?)
            .stderr(output)
            // A Ctrl-C on the terminal is for this process, which tells its jobs.
            .process_group(0);
        let child = command.spawn().map_err(failed)?;
        self.count += 1;
        let number = format!("step-{}", self.count);
        self.steps.push(Step {
            number: number.clone(),
            comment: folder.comment(),
            child,
        });
        Ok(number)
    }

    fn list(&mut self) -> Result<Vec<Queued>, ClusterError> {
        self.steps.retain_mut(|step| match step.child.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                self.ended.insert(step.number.clone(), status);
                false
            }
            Err(_) => false,
        });
        let queued = self.steps.iter().map(|step| Queued {
            job: step.number.clone(),
            state: STEP.to_owned(),
            reason: String::new(),
            comment: step.comment.clone(),
        });
        Ok(queued.collect())
    }

    fn cancel(&mut self, jobs: &[String]) -> Result<(), ClusterError> {
        let meant = self.steps.iter().filter(|step| jobs.contains(&step.number));
        for step in meant {
            let process = i32::try_from(step.child.id()).ok().and_then(Pid::from_raw);
            if let Some(process) = process {
                kill_process(process, Signal::TERM).ok();
            }
        }
        Ok(())
    }

    fn fate_of(&mut self, job: &str, _comment: &str) -> Fate {
        let Some(status) = self.ended.get(job) else {
            return Fate::Unknown;
        };
        let state = if status.success() {
            "COMPLETED"
        } else {
            "FAILED"
        };
        Fate::Ended(state.to_owned(), status.to_string())
    }

    fn check(&mut self, _: &Request, _: &ClusterSettings) -> Result<(), ClusterError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_of_nodes_are_added_up() {
        assert_eq!(cores_in("2(x3),4"), Some(10));
        assert_eq!(cores_in("16"), Some(16));
        assert_eq!(cores_in("2(x"), None);
        assert_eq!(cores_in(""), None);
    }
}
