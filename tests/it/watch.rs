//! What another process is told of a run.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};

use crate::space::Space;

#[test]
fn a_run_that_goes_on_is_told_from_one_that_was_killed() {
    let space = Space::new(
        "name: n\nstages:\n  long: { kind: command, params: { run: 'echo x > {here}/begun; sleep 60', outputs: { out: out } } }\n",
    );
    let mut run = space.program(&["run", "p.yaml"]);
    let mut run = run.stderr(Stdio::null()).spawn().unwrap();
    space.wait_for("begun");
    let watched = space.flowgraph(&["watch"]).stdout;
    assert!(watched.contains("1 at work of 1 stages"), "{watched}");
    let runs = space.flowgraph(&["runs"]).stdout;
    assert!(runs.contains("no end: it goes on"), "{runs}");
    kill_process(Pid::from_child(&run), Signal::KILL).unwrap();
    run.wait().unwrap();
    let watched = space.flowgraph(&["watch"]).stdout;
    assert!(
        watched.contains("killed: `flowgraph run` goes on"),
        "{watched}"
    );
    let runs = space.flowgraph(&["runs"]).stdout;
    assert!(runs.contains("no end: it was killed"), "{runs}");
    let compared = space.flowgraph(&["diff", "last", "last"]).stderr;
    assert!(compared.contains("has no end: it was killed"), "{compared}");
}
