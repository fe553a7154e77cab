//! Where stages compute, and what records say of it. No GPU is needed: `CUDA_VISIBLE_DEVICES` names some that are not there.

use crate::space::{Report, Space};

const TREE: &str = "tree: { kind: generate_tree, resources: { gpus: 1 }, params: { symbols: 2, horizon: 2, prompts: 2, spread: 1.5, hidden_size: 16, num_layers: 1, seed: 1 } }";
const COMMAND: &str = "seen: { kind: command, resources: { gpus: 1 }, params: { run: 'echo \"<$CUDA_VISIBLE_DEVICES>\" > o', outputs: { o: o } } }";
const PLAIN: &str = "plain: { kind: command, params: { run: 'printf \"<$CUDA_VISIBLE_DEVICES>\" > o', outputs: { o: o } } }";

fn space(stages: &[&str]) -> Space {
    Space::new(&format!("name: n\nstages:\n  {}\n", stages.join("\n  ")))
}

/// Runs on a machine that shows the GPUs 3 and 5.
fn run(space: &Space, args: &[&str]) -> Report {
    let mut program = space.program(&[&["run", "p.yaml", "--json"], args].concat());
    program.env("CUDA_VISIBLE_DEVICES", "3,5");
    space.report(&program.output().unwrap())
}

fn messages(report: &Report, event: &str, key: &str) -> Vec<String> {
    let events = report.events.iter();
    let found = events.filter(|found| found["event"] == event);
    found
        .map(|found| found[key].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn a_stage_that_computes_on_the_processor_says_so_in_its_record() {
    let space = space(&[TREE]);
    let report = run(&space, &[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    let made = space.record("tree").provenance;
    assert_eq!(made.device, "cpu");
    assert_eq!(made.numerics, "cpu/2");
    assert_eq!(
        messages(&report, "stage_note", "text")[0],
        "asks for 1 GPU; `generate_tree` has nothing to compute there"
    );
}

#[test]
fn what_has_nothing_to_compute_on_a_gpu_computes_on_the_processor() {
    let space = space(&[TREE]);
    let report = run(&space, &["--device", "cuda:5"]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    assert_eq!(space.record("tree").provenance.device, "cpu");
}

#[test]
fn a_gpu_that_is_not_there_is_refused() {
    let space = space(&[COMMAND]);
    let report = run(&space, &["--device", "cuda:4"]);
    assert_eq!(report.code, 2);
    assert!(
        report
            .stderr
            .contains("GPU 4 is not visible; visible: 3, 5"),
        "{}",
        report.stderr
    );
    let mut program = space.program(&["run", "p.yaml", "--device", "cuda"]);
    let none = program.env("CUDA_VISIBLE_DEVICES", "").output().unwrap();
    assert_eq!(none.status.code(), Some(2));
}

#[test]
fn a_command_sees_the_gpus_that_it_was_given_and_no_others() {
    let space = space(&[COMMAND, PLAIN]);
    let report = run(&space, &["--device", "cuda:5"]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    let seen = |stage| std::fs::read_to_string(space.object(stage)).unwrap();
    assert_eq!(
        (seen("seen"), seen("plain")),
        ("<5>\n".to_owned(), "<>".to_owned())
    );
    let (with, without) = (
        space.record("seen").provenance,
        space.record("plain").provenance,
    );
    assert_eq!(
        (with.device.as_str(), with.numerics.as_str()),
        ("cuda:0", "cuda")
    );
    assert_eq!(without.device, "cpu");
    // On a machine without GPUs that result is one of another class.
    let notes = |gpus| {
        let mut program = space.program(&["plan", "p.yaml", "--json"]);
        let plan = program.env("CUDA_VISIBLE_DEVICES", gpus).output().unwrap();
        let plan: serde_json::Value = serde_json::from_slice(&plan.stdout).unwrap();
        plan["stages"][0]["notes"].to_string()
    };
    assert_eq!(notes("3"), "[]");
    assert_eq!(notes(""), "[\"reuses a result computed as cuda\"]");
}

#[test]
fn a_command_without_the_gpus_that_it_asks_for_is_told_of() {
    let space = space(&[COMMAND]);
    let report = run(&space, &["--device", "cpu"]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    assert_eq!(space.record("seen").provenance.device, "cpu");
    assert_eq!(
        messages(&report, "stage_note", "text"),
        ["asks for 1 GPU; `--device cpu` gives it 0"]
    );
}
