//! Processes: short-lived ones that are asked something, and those that outlive what started them.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, set_child_subreaper,
};

/// A process, as `/proc` describes it.
struct Process {
    id: i32,
    parent: i32,
    name: String,
}

/// Makes this process the parent of whatever its descendants leave behind, so that none can get away.
pub(super) fn adopt_orphans() {
    // Where the kernel refuses, groups are all that can be ended.
    let _ = set_child_subreaper(Some(getpid()));
}

/// Kills a process group; 0 stands for none.
pub(super) fn kill_group(group: i32) {
    if let Some(group) = Pid::from_raw(group).filter(|group| !group.is_init()) {
        kill_process_group(group, Signal::KILL).ok();
    }
}

/// Waits a moment for the children that are left, then kills them and all that they started. Returns the names of
/// those that had to be killed.
pub(super) fn end_children() -> Vec<String> {
    /// What only finishes its last line is let finish.
    const GRACE: Duration = Duration::from_millis(200);
    const PATIENCE: Duration = Duration::from_secs(5);
    let start = Instant::now();
    let mut killed: Vec<Process> = Vec::new();
    // Without any this is one call.
    while children_are_left() && start.elapsed() < PATIENCE {
        if start.elapsed() < GRACE {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        }
        for process in descendants() {
            kill(process.id);
            if killed.iter().all(|other| other.id != process.id) {
                killed.push(process);
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    killed.into_iter().map(|process| process.name).collect()
}

/// Kills whatever this process started, at once.
pub(super) fn kill_descendants() {
    const PATIENCE: Duration = Duration::from_millis(300);
    let start = Instant::now();
    loop {
        // Until there are no more: one may have started another meanwhile.
        let found = descendants();
        if found.is_empty() || start.elapsed() > PATIENCE {
            return;
        }
        found.iter().for_each(|process| kill(process.id));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Kills the processes whose home is below `folder`, which only what a stage started there has.
pub(super) fn kill_at_home_in(folder: &Path) {
    let Ok(folder) = std::fs::canonicalize(folder) else {
        return;
    };
    let mut home = b"HOME=".to_vec();
    home.extend_from_slice(folder.as_os_str().as_encoded_bytes());
    home.push(b'/');
    for process in all() {
        let environment = std::fs::read(format!("/proc/{}/environ", process.id));
        let mut variables = environment.iter().flat_map(|text| text.split(|b| *b == 0));
        if variables.any(|variable| variable.starts_with(&home)) {
            kill(process.id);
        }
    }
}

/// Buries the children that have ended, and says whether there are others.
fn children_are_left() -> bool {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

fn kill(id: i32) {
    if let Some(id) = Pid::from_raw(id) {
        kill_process(id, Signal::KILL).ok();
    }
}

fn descendants() -> Vec<Process> {
    let mut others = all();
    let mut found: Vec<Process> = Vec::new();
    let mut parents = vec![getpid().as_raw_nonzero().get()];
    while let Some(parent) = parents.pop() {
        let (children, rest) = others
            .into_iter()
            .partition(|process| process.parent == parent);
        others = rest;
        parents.extend(children.iter().map(|child: &Process| child.id));
        found.extend(children);
    }
    found
}

/// Every process that has not ended.
fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    ids.filter_map(|id| {
        let text = std::fs::read(format!("/proc/{id}/stat")).ok()?;
        parse(id, &String::from_utf8_lossy(&text))
    })
    .collect()
}

/// Reads `ID (NAME) STATE PARENT ...`; a name may hold anything.
fn parse(id: i32, stat: &str) -> Option<Process> {
    let (head, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X" | "x") {
        return None;
    }
    Some(Process {
        id,
        parent: fields.next()?.parse().ok()?,
        name: head.split_once('(')?.1.to_owned(),
    })
}

/// How long a short-lived program may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// How much of what it says is read.
const LONGEST: u64 = 1 << 22;

/// What a short-lived program said.
pub(super) struct Answer {
    /// How it ended.
    pub(super) status: ExitStatus,
    /// The beginning of what it printed.
    pub(super) stdout: Vec<u8>,
    /// The beginning of its errors.
    pub(super) stderr: Vec<u8>,
}

/// Runs a program that has little to say; `None` if it does not end in time. It is ended then, and what it started.
pub(super) fn answer_of(command: &mut Command) -> std::io::Result<Option<Answer>> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let stdout = child.stdout.take().map(beginning_of);
    let stderr = child.stderr.take().map(beginning_of);
    let status = within(&mut child, PATIENCE)?;
    if status.is_none() {
        kill_group(i32::try_from(child.id()).unwrap_or(0));
        child.wait()?;
    }
    let said = |of: Option<Receiver<Vec<u8>>>| {
        // What it left running may hold the pipe open.
        let said = of.and_then(|of| of.recv_timeout(Duration::from_secs(1)).ok());
        said.unwrap_or_default()
    };
    Ok(status.map(|status| Answer {
        status,
        stdout: said(stdout),
        stderr: said(stderr),
    }))
}

fn within(child: &mut Child, patience: Duration) -> std::io::Result<Option<ExitStatus>> {
    let begun = Instant::now();
    loop {
        match child.try_wait()? {
            None if begun.elapsed() < patience => std::thread::sleep(Duration::from_millis(5)),
            ended => return Ok(ended),
        }
    }
}

/// Reads the beginning of what a program says, and lets it say the rest.
fn beginning_of(mut pipe: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut said = Vec::new();
        let _ = pipe.by_ref().take(LONGEST).read_to_end(&mut said);
        let _ = std::io::copy(&mut pipe, &mut std::io::sink());
        let _ = sender.send(said);
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_brackets_and_the_dead_are_told_apart() {
        let process = parse(7, "7 (a) R (b) S 3 7 7 0").unwrap();
        assert_eq!((process.name.as_str(), process.parent), ("a) R (b", 3));
        assert!(parse(7, "7 (a) Z 3 7").is_none());
        assert!(parse(7, "7 (a").is_none());
        let own = getpid().as_raw_nonzero().get();
        assert!(all().iter().any(|process| process.id == own));
    }

    #[test]
    fn of_a_long_answer_the_beginning_is_read() {
        let mut command = Command::new("sh");
        command.args(["-c", "head -c 5000000 /dev/zero; echo no >&2; exit 3"]);
        let answer = answer_of(&mut command).unwrap().unwrap();
        assert_eq!(answer.stdout.len() as u64, LONGEST);
        assert_eq!(
            (&*answer.stderr, answer.status.code()),
            (&b"no\n"[..], Some(3))
        );
    }
}
