//! Stages as jobs of a Slurm cluster. `.ci/slurm/test` starts a cluster of three nodes on this machine and runs these in it,
//! one after the other: some of them kill its daemons.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use crate::space::{Outcome, Report, Space};

const NEEDED: &str = "a Slurm cluster is needed: .ci/slurm/test starts one";

/// The folder of the cluster.
fn folder() -> PathBuf {
    PathBuf::from(std::env::var_os("SLURM_FOLDER").expect(NEEDED))
}

fn run(space: &Space, args: &[&str]) -> Report {
    space.run(&[&["--executor", "slurm"], args].concat())
}

/// Starts a run that goes on in the background.
fn start(space: &Space, args: &[&str]) -> Child {
    let args = [&["run", "p.yaml", "--executor", "slurm", "--json"], args].concat();
    let mut command = space.program(&args);
    let log = fs::File::create(space.path("started")).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log);
    command.spawn().unwrap()
}

fn shell(text: &str) -> String {
    let output = Command::new("bash").args(["-c", text]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(crate) fn queue() -> String {
    shell("squeue -h -o '%i %T %r %k'")
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(
            begun.elapsed() < Duration::from_mins(1),
            "{what} within 60 s; the queue: {}",
            queue()
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn notes(report: &Report) -> Vec<String> {
    let notes = report
        .events
        .iter()
        .filter(|event| event["event"] == "stage_note");
    notes
        .map(|note| note["text"].as_str().unwrap().to_owned())
        .collect()
}

#[track_caller]
fn failure(report: &Report) -> (String, String) {
    assert_eq!(report.code, 1, "{}", report.stderr);
    let text = |event: &Json, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let mut failed = report
        .events
        .iter()
        .filter(|event| event["event"] == "stage_failed");
    let event = failed.next().unwrap();
    (text(event, "message"), text(event, "hint"))
}

#[track_caller]
fn ok(outcome: &Outcome) {
    assert_eq!(outcome.code, 0, "{outcome:?}");
}

/// A command that says when it begins and ends, in a file that all of them share.
const SLOW: &str = "name: n
stages:
  first: { kind: command, params: { run: \"echo first >> {here}/ran; sleep 4; echo a > out\", outputs: { out: out } } }
  second: { kind: command, inputs: { in: first.out }, params: { run: \"echo second >> {here}/ran; cp $in out\", outputs: { out: out } } }
";

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn stages_run_as_jobs_and_leave_nothing_behind() {
    let space = Space::new(SLOW);
    let report = run(&space, &[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    assert_eq!(space.ran(), ["first", "second"]);
    let queued = report
        .events
        .iter()
        .filter(|event| event["event"] == "stage_queued");
    let on = queued.filter(|event| event["state"] == "RUNNING");
    assert!(on.count() >= 2, "{:?}", report.events);
    let left = fs::read_dir(space.path(".flowgraph/cluster")).unwrap();
    assert_eq!(left.count(), 0);
    assert_eq!(run(&space, &[]).stages["first"].0, "cached");
    // The same store, without a cluster.
    assert_eq!(space.run(&[]).stages["second"].0, "cached");
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn a_run_whose_submitter_was_killed_is_gone_on_with() {
    let space = Space::new(SLOW);
    let mut child = start(&space, &[]);
    until("the first stage begins", || space.path("ran").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    let report = run(&space, &[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    // Its job lived on, and nothing was done twice.
    assert_eq!(space.ran(), ["first", "second"]);
    assert!(
        notes(&report).contains(&"goes on with the job of an earlier run".to_owned()),
        "{:?}",
        notes(&report)
    );
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn the_first_signal_lets_stages_stop_and_empties_the_queue() {
    let stages: String = (0..12)
        .map(|at| format!("  s{at}: {{ kind: command, params: {{ run: \"echo {at} >> {{here}}/ran; sleep 60; echo > out\", outputs: {{ out: out }} }} }}\n"))
        .collect();
    let space = Space::new(&format!("name: n\nstages:\n{stages}"));
    let mut child = start(&space, &[]);
    // Six of them fit, the others wait.
    until("stages begin", || {
        let ran = fs::read_to_string(space.path("ran")).unwrap_or_default();
        ran.lines().count() >= 6
    });
    shell(&format!("kill -INT {}", child.id()));
    let begun = Instant::now();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(begun.elapsed() < Duration::from_secs(20));
    until("the queue is empty", || queue().is_empty());
    assert_eq!(space.ran().len(), 6);
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn short_stages_share_jobs() {
    let stages: String = (0..150)
        .map(|at| format!("  s{at}: {{ kind: command, timeout: 2, params: {{ run: \"echo $HOME {at} > out\", outputs: {{ out: out }} }} }}\n"))
        .collect();
    let space = Space::new(&format!("name: n\nstages:\n{stages}"));
    let report = run(&space, &[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    assert_eq!(report.stages.len(), 150);
    let queued = report
        .events
        .iter()
        .filter(|event| event["event"] == "stage_queued");
    let jobs: BTreeSet<String> = queued.map(|event| event["job"].to_string()).collect();
    assert_eq!(jobs.len(), 2, "{jobs:?}");
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn two_stages_of_a_node_have_different_gpus() {
    let stage = |name: &str| {
        format!(
            "  {name}: {{ kind: command, resources: {{ gpus: 1 }}, params: {{ run: \"echo $CUDA_VISIBLE_DEVICES >> {{here}}/ran; sleep 8; echo {name} > out\", outputs: {{ out: out }} }} }}\n"
        )
    };
    let stages = stage("a") + &stage("b");
    let space = Space::new(&format!(
        "name: n\ncluster: {{ options: [--nodelist=n1] }}\nstages:\n{stages}"
    ));
    let begun = Instant::now();
    let report = run(&space, &[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "they ran at once"
    );
    assert_eq!(space.ran(), ["0", "1"]);
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn what_the_cluster_cannot_give_is_told() {
    let space = Space::new(&SLOW.replace(
        "first: { kind: command,",
        "first: { kind: command, resources: { cpus: 64 },",
    ));
    let (message, hint) = failure(&run(&space, &[]));
    assert!(message.starts_with("`sbatch` refuses: "), "{message}");
    assert!(hint.contains("check --executor slurm"), "{hint}");
    let check = space.flowgraph(&["check", "p.yaml", "--executor", "slurm"]);
    assert_eq!(check.code, 3);
    assert!(
        check.stderr.contains("main*: 3 nodes of 2 cores"),
        "{}",
        check.stderr
    );
    assert!(check.stderr.contains("stage `first`: "), "{}", check.stderr);
    assert!(!check.stderr.contains("`second`"), "{}", check.stderr);
    space.write("p.yaml", SLOW);
    ok(&space.flowgraph(&["check", "p.yaml", "--executor", "slurm"]));
    space.write(
        "p.yaml",
        &SLOW.replace("name: n\n", "name: n\ncluster: { partition: nowhere }\n"),
    );
    let (message, _) = failure(&run(&space, &[]));
    assert!(message.contains("invalid partition"), "{message}");
    space.write(
        "p.yaml",
        &SLOW.replace("name: n\n", "name: n\ncluster: { partitoin: main }\n"),
    );
    let check = space.flowgraph(&["check", "p.yaml"]);
    assert_eq!(check.code, 3);
    assert!(check.stderr.contains("`partitoin`"), "{}", check.stderr);
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn a_job_of_a_lost_node_runs_on_another() {
    let space = Space::new(&SLOW.replace("sleep 4", "sleep 8"));
    let mut child = start(&space, &[]);
    until("the first stage begins", || space.path("ran").exists());
    let node = shell("squeue -h -t RUNNING -o %N");
    // With its node, all that runs there: in APART=1 it has processes of its own.
    lose(&node);
    let status = child.wait().unwrap();
    let said = space.read("started");
    assert!(status.success(), "{said}");
    // Begun on each, done on one.
    assert_eq!(space.ran(), ["first", "first", "second"]);
    recover(&node);
}

/// Starts a run that goes on in the background; what it says is in the file `started`.
pub(crate) fn begin_submitter(space: &Space) -> Child {
    start(space, &[])
}

/// Kills the controller and starts it again; its memory of jobs may be lost with it, whose processes live on.
pub(crate) fn kill_controller(forgets: bool) {
    let folder = folder().display().to_string();
    let forget = if forgets {
        format!("rm -f {folder}/state/job_state*;")
    } else {
        String::new()
    };
    shell(&format!(
        "kill -KILL $(cat {folder}/slurmctld.pid); sleep 1; {forget} slurmctld"
    ));
    until("the controller is back", || {
        shell("scontrol ping").contains("UP")
    });
}

/// Kills the daemon of a node and what runs there.
pub(crate) fn lose(node: &str) {
    let folder = folder().display().to_string();
    let kill = match std::env::var_os("APART") {
        // With its first process all of a node's end.
        Some(_) => format!("pkill -KILL -f '[s]lurmd -D -N {node}'"),
        None => format!(
            "kill -KILL $(cat {folder}/{node}.pid); pkill -KILL slurmstepd; pkill -KILL -f '[f]lowgraph agent'"
        ),
    };
    shell(&kill);
}

/// Starts the daemon of a node again.
pub(crate) fn recover(node: &str) {
    let folder = folder().display().to_string();
    Command::new(format!("{folder}/node"))
        .arg(node)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    until("the node is back", || {
        // What could not be killed there in time drains it.
        let state = shell(&format!("sinfo -h -N -n {node} -p main -o %T"));
        if state.contains("drain") || state.contains("down") {
            shell(&format!("scontrol update NodeName={node} State=RESUME"));
        }
        ["idle", "mixed", "allocated"].contains(&&*state)
    });
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn what_the_controller_forgets_is_submitted_again_and_done_once() {
    let space = Space::new(SLOW);
    let mut child = start(&space, &[]);
    until("the first stage begins", || space.path("ran").exists());
    kill_controller(true);
    let status = child.wait().unwrap();
    assert!(status.success(), "{}", space.read("started"));
    let mut ran = space.ran();
    ran.dedup();
    assert_eq!(ran, ["first", "second"], "{}", space.read("started"));
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn a_run_that_is_a_job_is_looked_at_followed_and_cancelled() {
    let space = Space::new(&SLOW.replace("sleep 4", "echo at work; sleep 60"));
    let detached = space.flowgraph(&["run", "p.yaml", "--executor", "slurm", "--detach"]);
    ok(&detached);
    assert!(
        detached.stderr.contains("flowgraph status"),
        "{}",
        detached.stderr
    );
    until("the first stage begins", || space.path("ran").exists());
    until("it is seen at work", || {
        let status = space.flowgraph(&["status"]).stdout;
        status.contains("1 at work") && status.contains("first  job ")
    });
    until("it says so", || {
        space
            .flowgraph(&["logs", "first"])
            .stdout
            .contains("at work")
    });
    ok(&space.flowgraph(&["cancel"]));
    until("the queue is empty", || queue().is_empty());
    let status = space.flowgraph(&["status"]);
    assert!(status.stdout.contains("1 interrupted"), "{status:?}");
    // One whose process is killed is gone on with by the command that began it.
    space.write("p.yaml", SLOW);
    let _ = space.ran();
    ok(&space.flowgraph(&["run", "p.yaml", "--executor", "slurm", "--detach"]));
    until("the first stage begins", || space.path("ran").exists());
    shell("scancel --signal=KILL --batch $(squeue -h -n flowgraph-run -o %A)");
    until("it is gone", || {
        shell("squeue -h -n flowgraph-run").is_empty()
    });
    let attached = space.flowgraph(&["attach"]);
    ok(&attached);
    assert!(
        attached
            .stderr
            .contains("goes on with `flowgraph run p.yaml"),
        "{}",
        attached.stderr
    );
    assert_eq!(space.ran(), ["first", "second"]);
}

/// A training that reports many steps a second.
const TRAINING: &str = "name: n
stages:
  world: { kind: generate_world, params: { seed: 1, pretraining_documents: 100, finetune_pairs: 60, reward_pairs: 20, rl_questions: 10, evaluation_pairs: 10 } }
  tokenizer: { kind: train_tokenizer, inputs: { data: [world.pretrain, world.evaluation] }, params: { algorithm: word_level, vocab_size: 256 } }
  base: { kind: init_model, inputs: { tokenizer: tokenizer }, params: { hidden_size: 16, num_layers: 2, num_heads: 2, intermediate_size: 32, max_position_embeddings: 64, seed: 1 } }
  sft:
    kind: train_sft
    inputs: { model: base, data: world.finetune }
    retries: 2
    params: { steps: STEPS, batch_size: 4, optimizer: { lr: 1e-3 }, seed: 1 }
";

/// Steps of about so many seconds with this build.
fn training(space: &Space, seconds: f64) -> String {
    let pipeline = |steps: u64| TRAINING.replace("STEPS", &steps.to_string());
    let begun = Instant::now();
    space.write("p.yaml", &pipeline(200));
    assert_eq!(space.run(&[]).code, 0);
    let steps = (200.0 * seconds / begun.elapsed().as_secs_f64().max(0.5)) as u64;
    pipeline(steps.max(400))
}

/// What the training gave.
fn trained(space: &Space, args: &[&str]) -> String {
    let report = space.run(args);
    assert_eq!(report.code, 0, "{}", report.stderr);
    report.stages["sft"].1.clone()
}

#[track_caller]
fn until_trained_a_while(space: &Space) {
    until("it trains", || {
        let said = space.read("started");
        said.contains("\"unit\":\"steps\"")
    });
    std::thread::sleep(Duration::from_secs(2));
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn a_training_that_talks_much_hears_that_it_is_to_stop() {
    let space = Space::new("");
    let pipeline = training(&space, 30.0);
    space.write("p.yaml", &pipeline);
    let mut child = start(&space, &[]);
    until_trained_a_while(&space);
    let begun = Instant::now();
    shell(&format!("kill -INT {}", child.id()));
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "{:?}",
        begun.elapsed()
    );
    let report = run(&space, &[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    // It went on where it was, to where it would have come undisturbed.
    assert!(
        notes(&report)
            .iter()
            .any(|note| note.contains("continues from step")),
        "{:?}",
        notes(&report)
    );
    let alone = trained(&space, &["--store", "alone"]);
    assert_eq!(report.stages["sft"].1, alone);
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn a_preempted_training_goes_on_to_the_same_bytes() {
    let space = Space::new("");
    let pipeline = training(&space, 10.0);
    space.write(
        "p.yaml",
        &pipeline.replace(
            "name: n\n",
            "name: n\ncluster: { options: [--nodelist=n1] }\n",
        ),
    );
    let mut child = start(&space, &[]);
    until_trained_a_while(&space);
    // All of its node, for somebody who goes before.
    shell(
        "sbatch --output=/dev/null --partition=urgent --nodelist=n1 --exclusive --wrap='sleep 3'",
    );
    until("it gives way", || queue().contains("PENDING"));
    let status = child.wait().unwrap();
    let said = space.read("started");
    assert!(status.success(), "{said}");
    assert!(said.contains("continues from step"), "{said}");
    let alone = trained(&space, &["--store", "alone"]);
    assert_eq!(trained(&space, &[]), alone);
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one; two minutes"]
fn a_training_that_runs_into_a_time_limit_goes_on_to_the_same_bytes() {
    let space = Space::new("");
    let pipeline = training(&space, 40.0);
    // Told 50 s ahead of the end of its minute, again and again.
    let limit = "name: n\ncluster: { time: \"1\", notice: 50 }\n";
    space.write("p.yaml", &pipeline.replace("name: n\n", limit));
    let report = run(&space, &[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    let retried = report
        .events
        .iter()
        .filter(|event| event["event"] == "stage_retried");
    let retried: Vec<&str> = retried
        .map(|event| event["message"].as_str().unwrap())
        .collect();
    assert!(
        !retried.is_empty() && retried[0].contains("asked to stop by the cluster"),
        "{retried:?}"
    );
    let alone = trained(&space, &["--store", "alone"]);
    assert_eq!(report.stages["sft"].1, alone);
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn one_of_a_shared_job_that_fails_takes_none_with_it() {
    let stages: String = (0..6)
        .map(|at| {
            let run = match at {
                1 => "exit 3",
                2 => "sleep 30",
                _ => "echo > out",
            };
            format!("  s{at}: {{ kind: command, timeout: 2, params: {{ run: \"{run}\", outputs: {{ out: out }} }} }}\n")
        })
        .collect();
    let space = Space::new(&format!("name: n\nstages:\n{stages}"));
    let report = run(&space, &[]);
    assert_eq!(report.code, 1, "{}", report.stderr);
    let failed = report
        .events
        .iter()
        .filter(|event| event["event"] == "stage_failed");
    let failed: Vec<(&str, &str)> = failed
        .map(|event| {
            (
                event["stage"].as_str().unwrap(),
                event["message"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(failed.len(), 2, "{failed:?}");
    assert_eq!(failed[0].0, "s1");
    assert_eq!(failed[1], ("s2", "ended after its timeout of 2 s"));
    assert!(
        (3..6).all(|at| report.stages[&format!("s{at}")].0 == "done"),
        "{:?}",
        report.stages
    );
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn two_runs_at_once_do_the_work_once_and_both_have_it() {
    let space = Space::new(SLOW);
    let mut first = start(&space, &[]);
    until("the first stage begins", || space.path("ran").exists());
    let second = run(&space, &[]);
    assert_eq!(second.code, 0, "{}", second.stderr);
    assert!(first.wait().unwrap().success(), "{}", space.read("started"));
    assert_eq!(space.ran(), ["first", "second"]);
    let left = fs::read_dir(space.path(".flowgraph/cluster")).unwrap();
    assert_eq!(left.count(), 0);
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn what_a_command_is_told_by_variables_is_the_same_on_the_node() {
    let env = "env: [STYLE], run:";
    let space = Space::new(
        &SLOW
            .replace("run: \"echo first", &format!("{env} \"echo first"))
            .replace(
                "name: n\n",
                "name: n\ncluster: { before: [export STYLE=other] }\n",
            ),
    );
    let mut command = space.program(&["run", "p.yaml", "--executor", "slurm", "--json"]);
    let report = space.report(&command.env("STYLE", "mine").output().unwrap());
    let (message, _) = failure(&report);
    assert!(
        message.contains("`STYLE` has another value on "),
        "{message}"
    );
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn a_node_that_cannot_begin_is_told() {
    for (setting, expected) in [
        ("program: /nowhere/flowgraph", "exit code 127"),
        (
            "before: [\"echo no such module >&2; false\"]",
            "no such module",
        ),
    ] {
        let space =
            Space::new(&SLOW.replace("name: n\n", &format!("name: n\ncluster: {{ {setting} }}\n")));
        let (message, hint) = failure(&run(&space, &[]));
        assert!(
            message.contains("ended as FAILED") && message.contains(expected),
            "{message}"
        );
        assert!(hint.contains("`program`"), "{hint}");
    }
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn another_version_on_the_nodes_is_told_before_anything_is_submitted() {
    let space = Space::new(&SLOW.replace(
        "name: n\n",
        "name: n\ncluster: { program: \"{here}/older\" }\n",
    ));
    space.write("older", "#!/bin/sh\necho flowgraph 0.0.1\n");
    shell(&format!("chmod +x {}", space.path("older").display()));
    let outcome = space.flowgraph(&["run", "p.yaml", "--executor", "slurm"]);
    assert_eq!(outcome.code, 1);
    assert!(
        outcome
            .stderr
            .contains("is flowgraph 0.0.1, and this is flowgraph "),
        "{}",
        outcome.stderr
    );
}

#[test]
#[ignore = "a Slurm cluster is needed: .ci/slurm/test starts one"]
fn stages_are_steps_of_an_allocation() {
    let space = Space::new(SLOW);
    let report = run(&space, &["--allocation"]);
    assert_eq!(report.code, 2);
    assert!(report.stderr.contains("salloc"), "{}", report.stderr);
    let salloc = ["salloc", "--quiet", "-N2", "-n2"];
    let args = [
        "run",
        "p.yaml",
        "--executor",
        "slurm",
        "--allocation",
        "--json",
    ];
    let report = space.report(&space.under(&salloc, &args).output().unwrap());
    assert_eq!(report.code, 0, "{}", report.stderr);
    assert_eq!(space.ran(), ["first", "second"]);
}
