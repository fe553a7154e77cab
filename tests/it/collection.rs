//! Collections take away nothing that the last runs needed, however they ended, and others wait for them.

use std::fs::File;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;

use crate::space::{Space, wait_until};
use crate::tiny;

fn lost(space: &Space, args: &[&str]) -> Json {
    let outcome = space.flowgraph(&[&["gc", "--json"], args].concat());
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    serde_json::from_str(&outcome.stdout).unwrap()
}

fn stages_lost(report: &Json) -> Vec<&str> {
    let results = report["results"].as_array().unwrap();
    let mut stages: Vec<&str> = results
        .iter()
        .map(|result| result["stage"].as_str().unwrap())
        .collect();
    stages.sort_unstable();
    stages
}

#[test]
fn what_a_killed_run_had_and_used_is_kept() {
    let space = Space::new(
        r#"
name: n
params: { k: 1 }
stages:
  a: { kind: command, params: { run: "echo a > o", outputs: { o: o } } }
  t: { kind: command, inputs: { x: a }, params: { run: "echo ${k} > o", outputs: { o: o } } }
  early: { kind: command, inputs: { x: t }, params: { run: "wc -l < $x > o", outputs: { o: o } } }
  v: { kind: command, inputs: { x: early }, params: { run: "cat $x > o", outputs: { o: o } } }
  u: { kind: command, inputs: { x: t }, params: { run: "echo > {here}/begun; sleep 60; cat $x > o", outputs: { o: o } } }
"#,
    );
    assert_eq!(space.run(&["--only", "v"]).code, 0);
    let mut run = space.program(&["run", "p.yaml", "--set", "k=2", "-q"]);
    let mut child = run.stderr(Stdio::null()).spawn().unwrap();
    space.wait_for("begun");
    wait_until("`v` is found in the store", || {
        let report = space.files(".flowgraph/runs");
        let needs = report.iter().find(|file| file.ends_with("needs"))?;
        (std::fs::read_to_string(needs).unwrap().lines().count() == 2).then_some(())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the run's lock is gone", || {
        (space.flowgraph(&["gc", "--dry-run", "--keep", "1"]).code == 0).then_some(())
    });
    // Of the run before, `t` and `early` are in no later one; `a` and `v` were used by the one that was killed.
    assert_eq!(stages_lost(&lost(&space, &["--keep", "1"])), ["early", "t"]);
    let plan = space.plan(&["--set", "k=2"]);
    let decisions: Vec<&str> = plan.iter().map(|stage| stage.decision.as_str()).collect();
    assert_eq!(decisions, ["cached", "cached", "cached", "cached", "run"]);
}

#[test]
fn a_run_that_was_killed_before_it_knew_its_needs_counts_as_none() {
    let space = Space::new(
        "name: n\nstages:\n  s: { kind: command, params: { run: 'echo > o', outputs: { o: o } } }\n",
    );
    assert_eq!(space.run(&[]).code, 0);
    let run = space.files(".flowgraph/runs");
    let folder = run[0].parent().unwrap();
    let killed = folder.with_file_name("29991231-235959");
    std::fs::create_dir(&killed).unwrap();
    std::fs::copy(folder.join("run.json"), killed.join("run.json")).unwrap();
    assert_eq!(stages_lost(&lost(&space, &["--keep", "1"])), [""; 0]);
}

#[test]
fn what_would_be_a_hit_once_something_upstream_is_back_is_kept() {
    let space = Space::new(
        r#"
name: n
stages:
  base: { kind: command, params: { run: "sh b.sh > o", outputs: { o: o }, code: [b.sh] } }
  hours: { kind: command, inputs: { x: base }, params: { run: "cat $x > o; echo hours >> {here}/ran", outputs: { o: o } } }
  after: { kind: command, inputs: { x: hours }, params: { run: "cat $x > o; echo after >> {here}/ran", outputs: { o: o } } }
"#,
    );
    space.write("b.sh", "echo base\n");
    assert_eq!(space.run(&[]).code, 0);
    assert_eq!(space.ran(), ["after", "hours"]);
    // A comment, damage, and a source that is away for a while.
    space.write("b.sh", "echo base\n# a comment\n");
    lost(&space, &["p.yaml", "--keep", "0"]);
    assert_eq!(
        space.run(&[]).outcomes(),
        "after cached, base done, hours cached"
    );
    std::fs::remove_file(space.object("base")).unwrap();
    lost(&space, &["p.yaml", "--keep", "0"]);
    assert_eq!(
        space.run(&[]).outcomes(),
        "after cached, base done, hours cached"
    );
    std::fs::remove_file(space.path("b.sh")).unwrap();
    lost(&space, &["p.yaml", "--keep", "0"]);
    space.write("b.sh", "echo base\n# a comment\n");
    assert_eq!(
        space.run(&[]).outcomes(),
        "after cached, base cached, hours cached"
    );
    assert_eq!(space.ran(), [""; 0]);
}

/// Runs until the training `sft` is under way, then asks it to stop.
fn interrupted(space: &Space, args: &[&str]) {
    let mut program = space.program(&[&["run", "p.yaml", "--json"], args].concat());
    let mut child = program
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let stdout = std::io::BufReader::new(child.stdout.take().unwrap());
    for line in std::io::BufRead::lines(stdout) {
        let event: Json = serde_json::from_str(&line.unwrap()).unwrap();
        if event["event"] == "stage_progress" && event["stage"] == "sft" {
            kill_process(Pid::from_child(&child), Signal::INT).ok();
        }
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

const SFT: &str = r"
  sft:
    kind: train_sft
    inputs: { model: random_model, data: world.finetune }
    params: { steps: '${steps}', batch_size: 8, optimizer: { lr: 1e-2 }, seed: 1 }
";

fn checkpoints(space: &Space) -> usize {
    let files = space.files(".flowgraph/scratch");
    files
        .iter()
        .filter(|file| file.ends_with("values.json"))
        .count()
}

#[test]
fn checkpoints_of_an_interrupted_training_outlive_a_collection() {
    let space = Space::new(&tiny::pipeline("params: { steps: 100000 }", SFT));
    interrupted(&space, &["--only", "sft"]);
    assert_eq!(checkpoints(&space), 1);
    let kept = lost(&space, &[]);
    assert_eq!(kept["folders"].as_array().unwrap().len(), 0);
    assert_eq!(checkpoints(&space), 1);
    // Once it is in none of the last runs, it goes, and that is said.
    space.write("other.yaml", "name: o\nstages:\n  s: { kind: command, params: { run: 'echo > o', outputs: { o: o } } }\n");
    assert_eq!(space.flowgraph(&["run", "other.yaml"]).code, 0);
    let said = space.flowgraph(&["gc", "--keep", "1", "--dry-run"]);
    assert!(
        said.stderr.contains("unfinished work on `sft`"),
        "{}",
        said.stderr
    );
    assert_eq!(checkpoints(&space), 1);
    space.flowgraph(&["gc", "--keep", "1"]);
    assert_eq!(checkpoints(&space), 0);
}

#[test]
fn a_rerun_that_was_interrupted_goes_on_and_begins_with_nothing_of_the_time_before() {
    let space = Space::new(&tiny::pipeline("params: { steps: 40 }", SFT));
    let first = space.run(&["--only", "sft"]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    let notes = |report: &crate::space::Report| {
        let notes = report.events.iter().filter(|event| event["stage"] == "sft");
        let texts: Vec<String> = notes
            .flat_map(|event| [event["text"].to_string(), event["notes"].to_string()])
            .filter(|text| text.contains("continues"))
            .collect();
        texts.join(", ")
    };
    // The end state of the first time would make a rerun of it that does nothing.
    let whole = space.run(&["--only", "sft", "--rerun", "sft"]);
    assert_eq!(
        (
            notes(&whole).as_str(),
            whole.outcomes().contains("sft done")
        ),
        ("", true)
    );
    assert_eq!(whole.digests(), first.digests());
    for args in [["--rerun", "sft"], ["--from", "sft"]] {
        let long = Space::new(&tiny::pipeline("params: { steps: 1500 }", SFT));
        assert_eq!(long.run(&["--only", "sft"]).code, 0);
        let args = [&["--only", "sft"][..], &args].concat();
        interrupted(&long, &args);
        assert_eq!(checkpoints(&long), 1, "{args:?}");
        // Neither a run that does not ask for it again nor a collection takes it away.
        assert_eq!(long.run(&["--only", "sft"]).stages["sft"].0, "cached");
        lost(&long, &[]);
        let rest = long.run(&args);
        assert!(notes(&rest).contains("of 1500"), "{}", notes(&rest));
        assert_eq!(checkpoints(&long), 0);
    }
}

#[test]
fn whoever_needs_the_store_waits_for_a_collection_says_so_and_can_be_stopped() {
    let space = Space::new(
        "name: n\nstages:\n  s: { kind: command, params: { run: 'echo > o', outputs: { o: o } } }\n",
    );
    assert_eq!(space.run(&[]).code, 0);
    let collection = File::open(space.path(".flowgraph/locks/store")).unwrap();
    collection.lock().unwrap();
    let start = |args: &[&str], said: &str| {
        let said = File::create(space.path(said)).unwrap();
        space
            .program(args)
            .stderr(said)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut run = start(&["run", "p.yaml"], "run");
    let mut verify = start(&["verify"], "verify");
    for said in ["run", "verify"] {
        wait_until("it says for whom it waits", || {
            space.read(said).contains("for a collection").then_some(())
        });
    }
    kill_process(Pid::from_child(&run), Signal::INT).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(130));
    drop(collection);
    assert_eq!(verify.wait().unwrap().code(), Some(0));
    assert_eq!(space.run(&[]).code, 0);
}
