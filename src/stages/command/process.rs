//! The process of a command, from its start to its end.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, kill_process_group, pidfd_open};

use crate::engine::context::RunContext;
use crate::engine::limits::{self, explain_signal};
use crate::engine::stage::StageError;

/// Runs shell text in a folder, in an environment that holds `variables` alone.
pub(super) fn run(
    text: &str,
    folder: &Path,
    variables: Vec<(String, OsString)>,
    has_secrets: bool,
    ctx: &mut RunContext,
) -> Result<(), StageError> {
    let mut process = Command::new("/bin/sh");
    process
        .arg("-ec")
        .arg(text)
        .current_dir(folder)
        .env_clear()
        .envs(variables)
        .stdin(Stdio::null())
        // Standard output carries the worker's events.
        .stdout(std::io::stderr());
    ctx.before_command(&mut process);
    let child = process
        .spawn()
        .map_err(|error| limits::explain("cannot start `/bin/sh`", &error))?;
    ctx.command_started(child.id() as i32);
    let status = wait(&child, ctx);
    let left = ctx.command_ended();
    let status = status?;
    if !status.success() {
        let hint = ended_by(status)
            .and_then(explain_signal)
            .unwrap_or_else(|| {
                "its output is in the stage's log; `sh -e` stops at the first failing line"
                    .to_owned()
            });
        return Err(StageError::new(format!("the command failed: {status}")).hint(hint));
    }
    if !left.is_empty() {
        // The kernel cuts names off, so that a secret among them could not be told.
        let names = if has_secrets {
            left.len().to_string()
        } else {
            left.join(", ")
        };
        ctx.note(&format!(
            "the command left processes running, which were ended: {names}"
        ));
    }
    Ok(())
}

/// The signal that ended a command, or the program in it: a shell returns 128 more.
fn ended_by(status: ExitStatus) -> Option<i32> {
    const OF_THE_SHELL: std::ops::RangeInclusive<i32> = 129..=192;
    let code = status.code().filter(|code| OF_THE_SHELL.contains(code));
    status.signal().or(code.map(|code| code - 128))
}

fn wait(child: &Child, ctx: &RunContext) -> Result<ExitStatus, StageError> {
    const PATIENCE: Duration = Duration::from_secs(5);
    const PAUSE: Timespec = Timespec {
        tv_sec: 0,
        tv_nsec: 20_000_000,
    };
    let id = Pid::from_child(child);
    // Where the kernel has none (before 5.3), the waiting below is a pause.
    let process = pidfd_open(id, PidfdFlags::empty()).ok();
    let mut asked: Option<Instant> = None;
    loop {
        // Whatever the command left behind is this process's child, and is buried on the way.
        while let Some((ended, status)) = rustix::process::wait(WaitOptions::NOHANG)? {
            if ended != id {
                continue;
            }
            let status = ExitStatus::from_raw(status.as_raw());
            // The signal may have gone to the command as well as to this process.
            return if asked.is_some() || (ctx.is_cancelled() && !status.success()) {
                Err(StageError::Interrupted)
            } else {
                Ok(status)
            };
        }
        if ctx.is_cancelled() {
            let late = asked.is_some_and(|asked| asked.elapsed() > PATIENCE);
            if asked.is_none() || late {
                let signal = if late { Signal::KILL } else { Signal::TERM };
                kill_process_group(id, signal).ok();
                asked.get_or_insert_with(Instant::now);
            }
        }
        // Until it ends, or it is time to look whether the stage was cancelled.
        let mut ends = process
            .as_ref()
            .map(|process| PollFd::new(process, PollFlags::IN));
        let _ = poll(ends.as_mut_slice(), Some(&PAUSE));
    }
}
