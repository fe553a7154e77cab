//! `flowgraph attach` and `cancel`: runs that others started.

use std::io::IsTerminal;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};

use super::output::{Output, counted};
use super::{Failure, exit_code, watch};
use crate::engine::launch::slurm;
use crate::engine::machine::host_name;
use crate::engine::runs::Run;
use crate::engine::store::Store;

#[derive(Debug, Args)]
pub(super) struct AttachArgs {
    /// The run: `last`, `last-1`, an id or its beginning (default: the last)
    run: Option<String>,
}

/// Shows a run that goes on; one that does not is gone on with, by the command that began it.
pub(super) fn attach(args: &AttachArgs, store: &Store, output: &Output) -> Result<u8, Failure> {
    let found = Run::find(store, args.run.as_deref().unwrap_or("last"));
    let waits = args.run.is_none() && !found.as_ref().is_ok_and(goes_on);
    if waits && watch::tell_of_waiting(store, output) {
        return Ok(exit_code::OK);
    }
    let run = found.map_err(Failure::usage)?;
    if goes_on(&run) {
        let args = watch::WatchArgs::of(&run.description.run);
        // Where no screen can be drawn, it is waited for.
        while !std::io::stdout().is_terminal() && goes_on(&run) {
            std::thread::sleep(Duration::from_secs(1));
        }
        return watch::run(&args, store, output);
    }
    let began = &run.description.began;
    if run.end().is_some() {
        return Err(Failure::usage(format!(
            "the run {} has ended; `flowgraph runs` says how",
            run.description.run
        )));
    }
    if began.arguments.is_empty() {
        return Err(Failure::usage(
            "the run does not say by which command it was begun: give that again",
        ));
    }
    let words = began.arguments.join(" ");
    output.line(&format!(
        "its process is gone: goes on with `flowgraph {words}`"
    ));
    let error = Command::new(std::env::current_exe()?)
        .args(&began.arguments)
        .envs(&began.variables)
        .current_dir(&began.folder)
        .exec();
    Err(error.into())
}

/// Whether the process of a run is there, as far as anybody can tell, or will be once more.
fn goes_on(run: &Run) -> bool {
    let job = run.description.began.job.as_ref();
    let in_queue = job.and_then(|job| slurm::state_in_queue(job));
    let in_queue = in_queue.map(|state| !state.is_empty());
    // Where only its lease tells, that outlives it by a while.
    in_queue.unwrap_or_else(|| run.is_under_way() != Some(false)) && run.end().is_none()
}

#[derive(Debug, Args)]
pub(super) struct CancelArgs {
    /// The run: `last`, `last-1`, an id or its beginning (default: the last, and those that wait in the queue)
    run: Option<String>,
}

/// Asks a run to stop, and waits until it has; of one whose process is gone, the jobs are cancelled that live on.
pub(super) fn cancel(args: &CancelArgs, store: &Store, output: &Output) -> Result<u8, Failure> {
    const EVERY: Duration = Duration::from_secs(1);
    const PATIENCE: Duration = Duration::from_mins(2);
    let found = Run::find(store, args.run.as_deref().unwrap_or("last"));
    // One that waits in the queue has no folder yet, and so no name.
    let waits = args.run.is_none() && !found.as_ref().is_ok_and(goes_on);
    let waiting = if waits {
        slurm::cancel_waiting(store)?
    } else {
        0
    };
    if waiting > 0 {
        let runs = counted(waiting, "run");
        output.line(&format!("cancelled {runs} in the queue"));
        return Ok(exit_code::OK);
    }
    let run = found.map_err(Failure::usage)?;
    let name = &run.description.run;
    if !goes_on(&run) {
        let count = slurm::cancel_jobs(store, run.folder())?;
        output.line(&match count {
            0 => format!("the run {name} does not go on"),
            count => {
                let jobs = counted(count, "job");
                format!("the process of the run {name} is gone: cancelled {jobs}")
            }
        });
        return Ok(exit_code::OK);
    }
    let began = &run.description.began;
    match &began.job {
        Some(job) => slurm::interrupt(job)?,
        None if run.description.host == host_name() => {
            let process = i32::try_from(began.process_id).ok().and_then(Pid::from_raw);
            let asked = process.map(|process| kill_process(process, Signal::INT));
            asked.transpose().map_err(std::io::Error::from)?;
        }
        None => {
            return Err(Failure::usage(format!(
                "it runs on {}, as process {}: give the command there",
                run.description.host, began.process_id
            )));
        }
    }
    let asked = Instant::now();
    while goes_on(&run) {
        if asked.elapsed() > PATIENCE {
            return Err(Failure::usage(format!(
                "the run {name} was asked to stop, and goes on still"
            )));
        }
        std::thread::sleep(EVERY);
    }
    // One that was cancelled in the queue can stop nothing itself.
    slurm::cancel_jobs(store, run.folder())?;
    output.line(&format!("the run {name} has stopped"));
    Ok(exit_code::OK)
}
