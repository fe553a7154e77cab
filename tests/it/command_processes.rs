//! Whatever a command starts ends with it, in whatever session it is.

use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::space::{Space, is_alive, processes_in, wait_until};

fn stray(space: &Space) -> i32 {
    space.wait_for("stray").trim().parse().unwrap()
}

/// Starts something in a session of its own and writes its id; it leaves the working directory, too.
const STRAY: &str = "setsid sh -c 'cd /; echo $$ > {here}/stray.new; mv {here}/stray.new {here}/stray; exec sleep 300' &";

fn space(params: &str, rest: &str) -> Space {
    let stray = STRAY.replace('\'', "''");
    Space::new(&format!(
        "name: n\nstages:\n  a: {{ kind: command, {params} params: {{ outputs: {{ o: out }}, run: '{stray} {rest}' }} }}\n"
    ))
}

fn is_gone(space: &Space) {
    let id = stray(space);
    wait_until("what left the session is gone", || {
        (!is_alive(id)).then_some(())
    });
}

#[test]
fn a_timeout_ends_what_left_the_session() {
    let space = space("timeout: 1,", "sleep 300");
    let report = space.run(&[]);
    assert_eq!(report.outcomes(), "a failed");
    is_gone(&space);
}

#[test]
fn a_command_that_ends_ends_what_it_left_and_says_so() {
    let space = space(
        "",
        "while test ! -e {here}/stray; do sleep 0.01; done; echo 1 > out",
    );
    let report = space.run(&[]);
    assert_eq!(report.outcomes(), "a done");
    let mut notes = report
        .events
        .iter()
        .filter(|event| event["event"] == "stage_note");
    let text = notes.next().unwrap()["text"].as_str().unwrap();
    assert_eq!(
        text,
        "the command left processes running, which were ended: sleep"
    );
    is_gone(&space);
}

#[test]
fn what_is_about_to_end_is_waited_for_without_a_word() {
    let space = Space::new(
        r#"
name: n
stages:
  a: { kind: command, params: { run: "(sleep 0.05; echo last >> out) & echo first > out", outputs: { o: out } } }
"#,
    );
    let report = space.run(&[]);
    assert_eq!(report.outcomes(), "a done");
    assert!(
        report
            .events
            .iter()
            .all(|event| event["event"] != "stage_note"),
        "{:#?}",
        report.events
    );
    assert_eq!(
        space.flowgraph(&["show", "p.yaml", "a"]).stdout,
        "first\nlast\n"
    );
}

#[test]
fn a_failing_command_ends_what_left_the_session() {
    let space = space(
        "",
        "while test ! -e {here}/stray; do sleep 0.01; done; exit 3",
    );
    assert_eq!(space.run(&[]).outcomes(), "a failed");
    is_gone(&space);
}

#[test]
fn killed_executors_and_workers_take_what_left_the_session_with_them() {
    for victim in ["executor", "worker"] {
        let space = space("", "sleep 300");
        let mut program = space.program(&["run", "p.yaml", "--quiet"]);
        let mut executor = program
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        stray(&space);
        let id = if victim == "executor" {
            executor.id() as i32
        } else {
            let mut all = processes_in(&space.path("")).into_iter();
            let is_worker = |id: &i32| {
                let arguments = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
                arguments.ends_with(b"\0worker\0")
            };
            all.find(is_worker).unwrap()
        };
        kill_process(Pid::from_raw(id).unwrap(), Signal::KILL).unwrap();
        executor.wait().unwrap();
        is_gone(&space);
    }
}

#[test]
fn a_timeout_is_called_a_timeout_whatever_ends_first() {
    const STAGES: usize = 20;
    let mut text = "name: n\nstages:\n".to_owned();
    for stage in 0..STAGES {
        text.push_str(&format!(
            "  s{stage}: {{ kind: command, timeout: 0.1, params: {{ run: \"echo {stage}; sleep 60\", outputs: {{ o: o }} }} }}\n"
        ));
    }
    let space = Space::new(&text);
    let start = Instant::now();
    let report = space.run(&["--jobs", "8"]);
    assert!(
        start.elapsed() < Duration::from_secs(50),
        "the timeouts were not enforced"
    );
    let failed = report
        .events
        .iter()
        .filter(|event| event["event"] == "stage_failed");
    let messages: Vec<&str> = failed
        .map(|event| event["message"].as_str().unwrap())
        .collect();
    assert_eq!(messages, ["ended after its timeout of 0.1 s"; STAGES]);
}

#[test]
fn a_stage_that_runs_again_tells_its_own_time_and_not_that_of_its_record() {
    let space = Space::new(
        r#"
name: n
stages:
  a: { kind: command, params: { run: "test -e {here}/quick || sleep 1.2; echo 1 > out", outputs: { o: out } } }
"#,
    );
    let seconds = |args: &[&str]| {
        let report = space.run(args);
        let mut events = report.events.iter();
        let done = events.find(|event| event["event"] == "stage_done").unwrap();
        done["seconds"].as_f64().unwrap()
    };
    assert!(seconds(&[]) > 1.2);
    space.write("quick", "");
    assert!(seconds(&["--rerun", "a"]) < 1.2);
}
