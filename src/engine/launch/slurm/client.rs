//! Slurm's own programs: `sbatch`, `squeue`, `scancel`, `sacct`, `scontrol`.
//!
//! What they print for people is read as little as can be: fields that are asked for, one line a job. Their JSON differs from
//! release to release.

use std::process::Command;

use serde::Serialize;

use crate::engine::processes::answer_of;
use crate::excerpt::{MESSAGE, excerpt};

/// A job as the queue shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Queued {
    /// Its number.
    pub(super) job: String,
    /// Such as `PENDING`.
    pub(super) state: String,
    /// Why it waits.
    pub(super) reason: String,
    /// Its comment.
    pub(super) comment: String,
}

/// Why one of the programs did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// It cannot be started.
    #[error("`{0}` cannot be started: {1}")]
    Missing(&'static str, String),
    /// The cluster does not answer now.
    #[error("`{0}`: the cluster does not answer: {1}")]
    Silent(&'static str, String),
    /// It takes no more jobs of this user now.
    #[error("`{0}`: not now: {1}")]
    Full(&'static str, String),
    /// It refuses.
    #[error("`{0}` refuses: {1}")]
    Refused(&'static str, String),
}

/// Words by which a client says that the controller cannot be reached, or has no time.
const SILENT: [&str; 8] = [
    "Unable to contact slurm controller",
    "Socket timed out",
    "Connection refused",
    "Transport endpoint",
    "Zero Bytes were transmitted",
    "Slurm backup controller in standby mode",
    "Resource temporarily unavailable",
    "Munge",
];

/// Words by which it says that there are as many jobs as one may have: `QOSMaxSubmitJobPerUserLimit` and others.
const FULL: [&str; 2] = ["SubmitJob", "Slurm temporarily unable to accept job"];

fn run(program: &'static str, args: &[String]) -> Result<String, ClusterError> {
    let mut command = Command::new(program);
    // What a user likes to see of the queue is not all of it.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SQUEUE_") {
            command.env_remove(name);
        }
    }
    let answer = answer_of(command.args(args))
        .map_err(|error| ClusterError::Missing(program, error.to_string()))?;
    let Some(answer) = answer else {
        return Err(ClusterError::Silent(program, "no answer".to_owned()));
    };
    if answer.status.success() {
        return Ok(String::from_utf8_lossy(&answer.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&answer.stderr);
    let lines = said.lines().map(|line| {
        let line = line.trim();
        line.strip_prefix(program)
            .and_then(|rest| rest.strip_prefix(": error: "))
            .unwrap_or(line)
    });
    let said = lines.collect::<Vec<_>>().join("; ");
    let said = match said.as_str() {
        "" => answer.status.to_string(),
        said => excerpt(said, MESSAGE).into_owned(),
    };
    if FULL.iter().any(|words| said.contains(words)) {
        return Err(ClusterError::Full(program, said));
    }
    if SILENT.iter().any(|words| said.contains(words)) {
        return Err(ClusterError::Silent(program, said));
    }
    Err(ClusterError::Refused(program, said))
}

/// Submits a script; returns the job's number.
pub(super) fn submit(options: &[String], script: &str) -> Result<String, ClusterError> {
    let mut args = vec!["--parsable".to_owned()];
    args.extend_from_slice(options);
    args.push(script.to_owned());
    let printed = run("sbatch", &args)?;
    // `NUMBER;CLUSTER` where there are several.
    let first = printed.lines().last().unwrap_or_default();
    let job = first.split(';').next().unwrap_or_default().trim();
    Ok(job.to_owned())
}

/// Asks whether a job with such options would be taken.
pub(super) fn test(options: &[String]) -> Result<(), ClusterError> {
    let mut args = vec!["--test-only".to_owned(), "--wrap=true".to_owned()];
    args.extend_from_slice(options);
    run("sbatch", &args).map(|_| ())
}

/// A partition of the cluster, as far as its nodes are alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Its name, with a star if it is the default.
    pub name: String,
    /// How many such nodes.
    pub nodes: String,
    /// Cores of each.
    pub cores: String,
    /// Megabytes of each.
    pub memory: String,
    /// Generic resources of each, such as `gpu:2`.
    pub gres: String,
    /// How long a job may take.
    pub limit: String,
    /// Whether jobs are taken: `up` or not.
    pub state: String,
}

/// Lists the partitions.
pub(super) fn partitions() -> Result<Vec<Partition>, ClusterError> {
    let args = ["-h", "-e", "-o", "%P|%D|%c|%m|%G|%l|%a"].map(str::to_owned);
    let printed = run("sinfo", &args)?;
    let partition = |line: &str| {
        let mut fields = line.split('|').map(|field| field.trim().to_owned());
        Some(Partition {
            name: fields.next()?,
            nodes: fields.next()?,
            cores: fields.next()?,
            memory: fields.next()?,
            gres: fields.next()?,
            limit: fields.next()?,
            state: fields.next()?,
        })
    };
    Ok(printed.lines().filter_map(partition).collect())
}

/// What a node has: cores, megabytes and GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) cores: usize,
    pub(super) megabytes: u64,
    pub(super) gpus: usize,
}

/// Lists what nodes have, whatever state they are in.
pub(super) fn nodes() -> Result<Vec<Node>, ClusterError> {
    let args = ["-h", "-N", "-o", "%c|%m|%G"].map(str::to_owned);
    Ok(run("sinfo", &args)?.lines().filter_map(node_in).collect())
}

fn node_in(line: &str) -> Option<Node> {
    let mut fields = line.split('|');
    Some(Node {
        cores: fields.next()?.trim().parse().ok()?,
        megabytes: fields.next()?.trim().parse().ok()?,
        gpus: gpus_in(fields.next()?),
    })
}

/// Counts the GPUs of such a list as `gpu:h100:4(S:0-1),nic:2`.
fn gpus_in(list: &str) -> usize {
    let mut count = 0;
    let mut depth = 0;
    let is_outside = |letter: &char| {
        depth += i32::from(*letter == '(') - i32::from(*letter == ')');
        depth == 0 && *letter != ')'
    };
    let plain: String = list.chars().filter(is_outside).collect();
    for resource in plain
        .split(',')
        .filter(|resource| resource.trim().starts_with("gpu"))
    {
        let number = resource
            .rsplit(':')
            .next()
            .and_then(|last| last.parse().ok());
        count += number.unwrap_or(1);
    }
    count
}

/// Lists the jobs of this user that are not ended.
pub(super) fn queue() -> Result<Vec<Queued>, ClusterError> {
    let args = ["-h", "-a", "--me", "-o", "%i|%T|%r|%k"].map(str::to_owned);
    Ok(run("squeue", &args)?
        .lines()
        .filter_map(queued_in)
        .collect())
}

fn queued_in(line: &str) -> Option<Queued> {
    let mut fields = line.splitn(4, '|');
    let mut next = || fields.next().map(|field| field.trim().to_owned());
    Some(Queued {
        job: next()?,
        state: next()?,
        reason: next()?,
        comment: next()?,
    })
}

/// Cancels jobs.
pub(super) fn cancel(jobs: &[String]) -> Result<(), ClusterError> {
    run("scancel", jobs).map(|_| ())
}

/// The state of a job, of whatever user, in the queue: empty if it is not there; `None` if the cluster does not say.
pub(super) fn state_in_queue(job: &str) -> Option<String> {
    let args = ["-h", "-a", "-o", "%T", "-j", job].map(str::to_owned);
    match run("squeue", &args) {
        Ok(printed) => Some(printed.trim().to_owned()),
        Err(ClusterError::Refused(..)) => Some(String::new()),
        Err(_) => None,
    }
}

/// Sends a job's first process what Ctrl-C sends.
pub(super) fn interrupt(job: &str) -> Result<(), ClusterError> {
    let args = ["--signal=INT", "--batch", job].map(str::to_owned);
    run("scancel", &args).map(|_| ())
}

/// What became of a job that the queue does not show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nobody knows it any more.
    Unknown,
    /// It is there all the same.
    Alive,
    /// It ended in a state, such as `NODE_FAIL`, with an exit code.
    Ended(String, String),
}

/// Says what became of a job.
pub(super) fn fate_of(job: &str, comment: &str) -> Fate {
    const ALIVE: [&str; 7] = [
        "PENDING",
        "RUNNING",
        "SUSPENDED",
        "COMPLETING",
        "CONFIGURING",
        "REQUEUED",
        "STOPPED",
    ];
    let is_alive = |(state, _): &(String, String)| ALIVE.contains(&&**state);
    match remembered(job, comment) {
        // It may know, and is asked later.
        Err(ClusterError::Silent(..)) => Fate::Alive,
        Ok(Some(found)) if is_alive(&found) => Fate::Alive,
        Ok(Some((state, code))) => Fate::Ended(state, code),
        // Accounting may be late, and may believe to be at work what the controller has lost.
        Ok(None) | Err(_) => match accounted(job, comment).filter(|found| !is_alive(found)) {
            Some((state, code)) => Fate::Ended(state, code),
            None => Fate::Unknown,
        },
    }
}

fn accounted(job: &str, comment: &str) -> Option<(String, String)> {
    let args = [
        "-X",
        "-P",
        "-n",
        "-o",
        "JobID,State,ExitCode,Comment",
        "-j",
        job,
    ];
    let printed = run("sacct", &args.map(str::to_owned)).ok()?;
    let mut lines = printed.lines().rev().map(|line| line.split('|'));
    lines.find_map(|mut fields| {
        let (id, state, code) = (fields.next()?, fields.next()?, fields.next()?);
        // Sites may keep no comments.
        let noted = fields.next().unwrap_or_default();
        let is_it = id == job && (noted.is_empty() || noted == comment);
        is_it.then(|| (first_word(state), code.to_owned()))
    })
}

fn remembered(job: &str, comment: &str) -> Result<Option<(String, String)>, ClusterError> {
    let args = ["show", "job", "-o", job].map(str::to_owned);
    let printed = run("scontrol", &args)?;
    let field = |name: &str| {
        let mut words = printed.split_whitespace();
        words.find_map(|word| word.strip_prefix(name))
    };
    if field("Comment=").is_some_and(|noted| noted != comment) {
        return Ok(None);
    }
    let code = field("ExitCode=").unwrap_or_default();
    Ok(field("JobState=").map(|state| (first_word(state), code.to_owned())))
}

/// `CANCELLED by 0` is `CANCELLED`.
fn first_word(state: &str) -> String {
    state
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_queue_are_read_whatever_a_comment_holds() {
        let job = queued_in("68|PENDING|Resources|flowgraph:a|b").unwrap();
        assert_eq!((&*job.job, &*job.reason), ("68", "Resources"));
        assert_eq!(job.comment, "flowgraph:a|b");
        assert_eq!(queued_in("slurm_load_jobs error"), None);
    }

    #[test]
    fn gpus_of_nodes_are_counted() {
        let node = node_in("64|512000|gpu:h100:4(S:0-1),nic:2,gpu:a100:1").unwrap();
        assert_eq!((node.cores, node.megabytes, node.gpus), (64, 512_000, 5));
        assert_eq!(node_in("2|4000|(null)").unwrap().gpus, 0);
        assert_eq!(node_in("2|4000|gpu:2").unwrap().gpus, 2);
        assert_eq!(node_in("n/a"), None);
    }

    #[test]
    fn a_missing_program_is_told_from_one_that_refuses() {
        assert!(matches!(
            run("no-such-program-of-slurm", &[]),
            Err(ClusterError::Missing(..))
        ));
        let refused = run("false", &[]);
        assert!(
            matches!(refused, Err(ClusterError::Refused(..))),
            "{refused:?}"
        );
    }
}
