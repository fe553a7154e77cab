//! Signals that ask a run to stop, and readers that do not read.

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::space::{Space, processes_in, wait_until};

const LONG: &str = r#"
name: long
stages:
  a: { kind: command, params: { run: "trap 'echo asked > {here}/asked; exit 1' TERM; echo 1 > {here}/started; while true; do sleep 0.02; done", outputs: { o: out } } }
"#;

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id() as i32).unwrap(), signal).unwrap();
}

fn nothing_is_left(space: &Space) {
    wait_until("all processes are gone", || {
        processes_in(&space.path("")).is_empty().then_some(())
    });
}

#[test]
fn a_hangup_asks_stages_to_stop() {
    let space = Space::new(LONG);
    // Where the tests themselves are to outlive their terminal, the program would be, too.
    let heeds = ["env", "--default-signal=HUP"];
    let mut child = space
        .under(&heeds, &["run", "p.yaml", "--quiet"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    space.wait_for("started");
    signal(&child, Signal::HUP);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    space.wait_for("asked");
    nothing_is_left(&space);
}

#[test]
fn a_hangup_that_was_ignored_stays_ignored() {
    let space = Space::new(LONG);
    let mut child = space
        .under(&["nohup"], &["run", "p.yaml", "--quiet"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    space.wait_for("started");
    let mut all = processes_in(&space.path(""));
    all.retain(|id| {
        let arguments = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        arguments.windows(9).any(|word| word == b"flowgraph")
    });
    // The program and its worker.
    assert_eq!(all.len(), 2);
    for id in all {
        kill_process(Pid::from_raw(id).unwrap(), Signal::HUP).unwrap();
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(!space.path("asked").exists());
    assert!(child.try_wait().unwrap().is_none());
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    nothing_is_left(&space);
}

/// Stages whose events fill any pipe, and one that goes on after them.
fn talkative() -> Space {
    let mut text = "name: n\nstages:\n".to_owned();
    for stage in 0..60 {
        let words = "x".repeat(4000);
        text.push_str(&format!(
            "  s{stage}: {{ kind: command, params: {{ run: \"true\", outputs: {{ o: \"{stage}{words}\" }} }} }}\n"
        ));
    }
    text.push_str("  z: { kind: command, params: { run: \"trap 'exit 1' TERM; echo 1 > {here}/started; while true; do sleep 0.02; done\", outputs: { o: o } } }\n");
    Space::new(&text)
}

/// Starts a run whose standard output nobody reads, and waits until the pipe is full.
fn stuck(space: &Space) -> Child {
    let mut program = space.program(&["run", "p.yaml", "--json", "--jobs", "2"]);
    let child = program
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    space.wait_for("started");
    std::thread::sleep(Duration::from_millis(500));
    child
}

#[test]
fn a_run_goes_on_while_nobody_reads_and_stops_when_it_is_asked_to() {
    let space = talkative();
    let mut child = stuck(&space);
    // The stage after all those whose events fill the pipe has started.
    let start = Instant::now();
    signal(&child, Signal::TERM);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(20));
    nothing_is_left(&space);
}

#[test]
fn a_second_signal_ends_a_run_that_nobody_reads() {
    let space = talkative();
    let mut child = stuck(&space);
    signal(&child, Signal::TERM);
    signal(&child, Signal::TERM);
    let start = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(start.elapsed() < Duration::from_secs(10));
    nothing_is_left(&space);
}

#[test]
fn a_late_reader_gets_everything() {
    let space = talkative();
    let mut program = space.program(&["run", "p.yaml", "--json", "--only", "s*"]);
    let mut child = program
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let mut text = String::new();
    child
        .stdout
        .take()
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    assert_eq!(text.matches("\"event\":\"stage_failed\"").count(), 60);
    assert_eq!(text.matches("\"event\":\"report\"").count(), 1);
}
