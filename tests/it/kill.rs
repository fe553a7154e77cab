//! Killed anywhere, the next run continues where it was and gives the same bytes.

use std::io::{BufRead, BufReader, Lines};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::space::{Space, processes_in, wait_until};

/// Six stages of several files, each with a child of its own, done in about half a second.
const PIPELINE: &str = r#"
name: work
stages:
  a: { kind: command, params: { run: "sh work.sh a > a; sh work.sh b > b", outputs: { one: a, two: b }, code: [work.sh] } }
  b: { kind: command, params: { run: "sh work.sh c > c", outputs: { one: c }, code: [work.sh] } }
  c: { kind: command, inputs: { x: a, y: b }, params: { run: "mkdir d; cat $x $y > d/1; sh work.sh d > d/2", outputs: { one: d }, code: [work.sh] } }
  d: { kind: command, inputs: { x: c, y: a.two }, params: { run: "cat $x/* $y > e; sh work.sh e >> e", outputs: { one: e }, code: [work.sh] } }
  e: { kind: command, inputs: { x: d }, params: { run: "cp $x f", outputs: { one: f } } }
  f: { kind: command, inputs: { x: [d, e] }, params: { run: "cat $x > g", outputs: { one: g } } }
"#;

const WORK: &str = "for i in 1 2 3; do echo $1 $i; sleep 0.01; done\n";

fn space() -> Space {
    let space = Space::new(PIPELINE);
    space.write("work.sh", WORK);
    space
}

fn start(space: &Space) -> Child {
    space
        .program(&["run", "p.yaml", "--quiet"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap()
}

fn pid(id: i32) -> Pid {
    Pid::from_raw(id).unwrap()
}

/// The program's own processes in the space: the executor and its workers.
fn workers(space: &Space, executor: i32) -> Vec<i32> {
    processes_in(&space.path(""))
        .into_iter()
        .filter(|id| {
            let arguments = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            *id != executor && arguments.ends_with(b"\0worker\0")
        })
        .collect()
}

/// A cheap generator, so that each round kills at another moment.
fn moments(count: u64) -> impl Iterator<Item = Duration> {
    (0..count).map(|round| {
        let mixed = (round + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        Duration::from_micros(mixed % 350_000)
    })
}

#[test]
fn killed_at_any_moment_the_next_run_gives_the_same_bytes() {
    let space = space();
    let undisturbed = space.run(&["--store", "calm"]);
    assert_eq!(undisturbed.code, 0, "{}", undisturbed.stderr);
    for (round, moment) in moments(20).enumerate() {
        let mut executor = start(&space);
        let id = executor.id() as i32;
        std::thread::sleep(moment);
        match round % 3 {
            0 => {
                let _ = kill_process(pid(id), Signal::KILL);
            }
            1 => {
                for worker in workers(&space, id) {
                    let _ = kill_process(pid(worker), Signal::KILL);
                }
                std::thread::sleep(Duration::from_millis(20));
                let _ = kill_process(pid(id), Signal::KILL);
            }
            _ => {
                let all = workers(&space, id);
                let _ = kill_process_group(pid(id), Signal::KILL);
                for worker in all {
                    let _ = kill_process_group(pid(worker), Signal::KILL);
                }
            }
        }
        executor.wait().unwrap();
        // At once: what is left of the killed run must not disturb this one.
        let report = space.run(&[]);
        assert_eq!(
            report.code, 0,
            "round {round}, {moment:?}: {}",
            report.stderr
        );
        assert_eq!(
            report.digests(),
            undisturbed.digests(),
            "round {round}, {moment:?}"
        );
        let verified = space.flowgraph(&["verify"]);
        assert_eq!(verified.code, 0, "round {round}: {}", verified.stderr);
        // A worker that was still dying then, between its record and its end, leaves its scratch to the next run.
        wait_until("the killed are gone", || {
            processes_in(&space.path("")).is_empty().then_some(())
        });
        assert_eq!(space.run(&[]).code, 0, "round {round}");
        assert_eq!(scratch(&space), [""; 0], "round {round}: scratch was left");
        // The next round starts anew, in a store that went through a kill.
        std::fs::remove_dir_all(space.path(".flowgraph/records")).unwrap();
    }
}

fn scratch(space: &Space) -> Vec<String> {
    let files = space.files(".flowgraph/scratch");
    files
        .iter()
        .map(|file| file.display().to_string())
        .collect()
}

const LONG: &str = r#"
name: long
stages:
  a: { kind: command, params: { run: "(sleep 300 & echo $! > {here}/inner; wait) & echo $! > {here}/outer; wait; echo 1 > out", outputs: { out: out } } }
"#;

#[test]
fn a_killed_executor_takes_its_workers_and_their_commands_with_it() {
    let space = Space::new(LONG);
    let mut executor = start(&space);
    space.wait_for("inner");
    space.wait_for("outer");
    assert!(processes_in(&space.path("")).len() >= 5);
    executor.kill().unwrap();
    executor.wait().unwrap();
    wait_until("all processes are gone", || {
        processes_in(&space.path("")).is_empty().then_some(())
    });
}

#[test]
fn a_killed_worker_takes_its_command_with_it() {
    let space = Space::new(LONG);
    let mut executor = start(&space);
    space.wait_for("inner");
    let worker = workers(&space, executor.id() as i32)[0];
    kill_process(pid(worker), Signal::KILL).unwrap();
    assert_eq!(executor.wait().unwrap().code(), Some(1));
    wait_until("all processes are gone", || {
        processes_in(&space.path("")).is_empty().then_some(())
    });
}

#[test]
fn what_a_command_leaves_in_the_background_ends_with_it() {
    let space = Space::new(
        r#"
name: background
stages:
  a: { kind: command, params: { run: "(sleep 300; echo late > out) & echo 1 > out", outputs: { out: out } } }
"#,
    );
    assert_eq!(space.run(&[]).outcomes(), "a done");
    wait_until("all processes are gone", || {
        processes_in(&space.path("")).is_empty().then_some(())
    });
}

#[test]
fn an_interrupted_run_exits_with_130_and_the_next_one_continues() {
    for signal in [Signal::INT, Signal::TERM] {
        let space = Space::new(
            r#"
name: interrupted
stages:
  quick: { kind: command, params: { run: "echo quick >> {here}/ran; echo 1 > out", outputs: { out: out } } }
  slow:
    kind: command
    inputs: { x: quick }
    params: { run: "echo slow >> {here}/ran; echo half > out; test -e {here}/go || { echo 1 > {here}/started; sleep 300; }; echo whole > out", outputs: { out: out } }
  after: { kind: command, inputs: { x: slow }, params: { run: "echo after >> {here}/ran; cp $x out", outputs: { out: out } } }
"#,
        );
        let executor = space
            .program(&["run", "p.yaml"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        space.wait_for("started");
        kill_process(pid(executor.id() as i32), signal).unwrap();
        let outcome = space.outcome(executor.wait_with_output().unwrap());
        assert_eq!(outcome.code, 130);
        assert_eq!(
            outcome.stderr,
            "         RUN quick  no earlier result
        DONE (1/3) quick  TIME
         RUN slow  no earlier result
 INTERRUPTED slow
     Summary [TIME] 3 stages: 0 cached, 1 done, 1 interrupted
interrupted; the same command continues where this run stopped
"
        );
        // Killed, but perhaps not yet buried.
        wait_until("all processes are gone", || {
            processes_in(&space.path("")).is_empty().then_some(())
        });
        assert_eq!(space.files(".flowgraph/records").len(), 1);
        assert_eq!(space.files(".flowgraph/objects").len(), 1);
        assert_eq!(scratch(&space), [""; 0]);
        space.write("go", "");
        let report = space.run(&[]);
        assert_eq!(report.outcomes(), "after done, quick cached, slow done");
        assert_eq!(
            std::fs::read_to_string(space.object("after")).unwrap(),
            "whole\n"
        );
        assert_eq!(space.ran(), ["after", "quick", "slow", "slow"]);
    }
}

#[test]
fn a_second_interrupt_ends_a_stage_that_does_not_listen() {
    let space = Space::new(
        r#"
name: deaf
stages:
  a: { kind: command, params: { run: "trap '' TERM; echo 1 > {here}/started; while true; do sleep 0.05; done", outputs: { out: out } } }
"#,
    );
    let mut executor = start(&space);
    space.wait_for("started");
    let id = pid(executor.id() as i32);
    kill_process(id, Signal::INT).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    kill_process(id, Signal::INT).unwrap();
    assert_eq!(executor.wait().unwrap().code(), Some(130));
    wait_until("all processes are gone", || {
        processes_in(&space.path("")).is_empty().then_some(())
    });
}

/// Starts a run; returns the first line that it tells, and those to come.
fn begun(space: &Space) -> (Child, String, Lines<BufReader<ChildStderr>>) {
    let mut run = space
        .program(&["run", "p.yaml"])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines();
    let line = lines.next().unwrap().unwrap();
    (run, line, lines)
}

#[test]
fn a_large_file_is_announced_and_reading_it_ends_with_the_first_signal() {
    let space = Space::new(
        r#"
name: large
stages:
  a: { kind: command, params: { run: "wc -c < large > out", code: [large], outputs: { out: out } } }
"#,
    );
    let file = std::fs::File::create(space.path("large")).unwrap();
    // Nobody waits until so much is read; it takes no room.
    file.set_len(8 << 40).unwrap();
    let (mut run, line, lines) = begun(&space);
    assert!(
        line.starts_with("reading ") && line.ends_with("large (8.00 TiB)"),
        "{line}"
    );
    kill_process(pid(run.id() as i32), Signal::INT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(
        rest.iter().any(|line| line.starts_with("interrupted")) && !rest.concat().contains("fail"),
        "{rest:?}"
    );
}

#[test]
fn a_kind_that_never_looks_for_signals_is_ended_as_well() {
    let space = Space::new(
        r"
name: unheeding
stages:
  world: { kind: generate_world, params: { seed: 1, finetune_pairs: 2, reward_pairs: 2, rl_questions: 2, pretraining_documents: 20000000 } }
",
    );
    let (mut run, line, lines) = begun(&space);
    assert!(line.contains(" RUN world"), "{line}");
    std::thread::sleep(Duration::from_millis(500));
    kill_process(pid(run.id() as i32), Signal::INT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    let rest: Vec<String> = lines.map(Result::unwrap).collect();
    assert!(
        rest.iter().any(|line| line == " INTERRUPTED world"),
        "{rest:?}"
    );
    assert_eq!(scratch(&space), [""; 0]);
    wait_until("all processes are gone", || {
        processes_in(&space.path("")).is_empty().then_some(())
    });
}
