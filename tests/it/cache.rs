//! What is reused and what runs again.

use crate::space::Space;

/// `a` reads nothing, `b` reads `a`, `c` reads `b`, `side` reads nothing; each says in `ran` that it ran.
const CHAIN: &str = r#"
name: chain
params: { a: one, b: two }
stages:
  a: { kind: command, params: { run: "echo a >> {here}/ran; echo ${a} > out", outputs: { out: out } } }
  b:
    kind: command
    inputs: { x: a }
    params: { run: "echo b >> {here}/ran; cat $x > out; echo ${b} >> out", outputs: { out: out } }
  c: { kind: command, inputs: { x: b }, params: { run: "echo c >> {here}/ran; wc -l < $x > out", outputs: { out: out } } }
  side: { kind: command, params: { run: "echo side >> {here}/ran; echo ${b} > out", outputs: { out: out } } }
"#;

#[test]
fn a_second_run_uses_every_result_and_gives_the_same_digests() {
    let space = Space::new(CHAIN);
    let first = space.run(&[]);
    assert_eq!(first.code, 0, "{}", first.stderr);
    assert_eq!(first.outcomes(), "a done, b done, c done, side done");
    assert_eq!(space.ran(), ["a", "b", "c", "side"]);
    let second = space.run(&[]);
    assert_eq!(
        second.outcomes(),
        "a cached, b cached, c cached, side cached"
    );
    assert_eq!(space.ran(), [""; 0]);
    assert_eq!(second.digests(), first.digests());
    let paranoid = space.run(&["--paranoid"]);
    assert_eq!(
        paranoid.outcomes(),
        "a cached, b cached, c cached, side cached"
    );
}

#[test]
fn layout_comments_order_and_spelling_of_a_pipeline_change_nothing() {
    let space = Space::new(CHAIN);
    space.run(&[]);
    space.ran();
    space.write(
        "p.yaml",
        r#"
# The same pipeline, written otherwise: another order, block style, renamed stages, another name.
stages:
  last:
    inputs:
      x: middle
    params:
      outputs: { "out": 'out' }
      run: >-
        echo c >> {here}/ran; wc -l < $x > out
    kind: command
    description: counts lines
  beside: { params: { outputs: { out: out }, code: [], run: "echo side >> {here}/ran; echo ${words.b} > out" }, kind: command }
  middle:
    kind: command
    retries: 2
    timeout: 100
    resources: { cpus: 2, memory: 1GB }
    inputs: { x: [first] }
    params: { run: "echo b >> {here}/ran; cat $x > out; echo ${words.b} >> out", outputs: { out: out } }
  first: { kind: command, params: { run: "echo a >> {here}/ran; echo one > out", outputs: { out: out } } }
params: { words: { b: "two" } }
name: renamed
"#,
    );
    let report = space.run(&[]);
    assert_eq!(
        report.outcomes(),
        "beside cached, first cached, last cached, middle cached"
    );
    assert_eq!(space.ran(), [""; 0]);
}

#[test]
fn a_changed_param_runs_its_stage_and_what_depends_on_its_bytes() {
    let space = Space::new(CHAIN);
    space.run(&[]);
    space.ran();
    // `c` counts lines: `b` gives other bytes, `c` the same.
    let report = space.run(&["--set", "a=three"]);
    assert_eq!(report.outcomes(), "a done, b done, c done, side cached");
    assert_eq!(space.ran(), ["a", "b", "c"]);
    let report = space.run(&["--set", "b=four"]);
    assert_eq!(report.outcomes(), "a cached, b done, c done, side done");
}

#[test]
fn a_stage_that_gives_the_same_bytes_again_stops_the_wave() {
    let space = Space::new(
        r#"
name: cutoff
params: { word: hello }
stages:
  loud: { kind: command, params: { run: "echo loud >> {here}/ran; echo ${word} | tr a-z A-Z > out", outputs: { out: out } } }
  after: { kind: command, inputs: { x: loud }, params: { run: "echo after >> {here}/ran; cp $x out", outputs: { out: out } } }
"#,
    );
    space.run(&[]);
    space.ran();
    let report = space.run(&["--set", "word=Hello"]);
    assert_eq!(report.outcomes(), "after cached, loud done");
    assert_eq!(space.ran(), ["loud"]);
}

#[test]
fn going_back_to_an_earlier_setting_is_all_hits() {
    let space = Space::new(CHAIN);
    let first = space.run(&[]);
    let other = space.run(&["--set", "a=three"]);
    assert_ne!(first.digests()["a"], other.digests()["a"]);
    space.ran();
    let back = space.run(&[]);
    assert_eq!(back.outcomes(), "a cached, b cached, c cached, side cached");
    assert_eq!(back.digests(), first.digests());
    assert_eq!(space.ran(), [""; 0]);
}

#[test]
fn results_are_shared_by_pipelines_and_by_stages_that_do_the_same() {
    let space = Space::new(CHAIN);
    space.run(&[]);
    space.ran();
    space.write(
        "p.yaml",
        r#"
name: another
stages:
  one: { kind: command, params: { run: "echo a >> {here}/ran; echo one > out", outputs: { out: out } } }
  two: { kind: command, params: { run: "echo a >> {here}/ran; echo one > out", outputs: { out: out } } }
"#,
    );
    assert_eq!(space.run(&[]).outcomes(), "one cached, two cached");
    // Two new stages with one fingerprint: one of them does the work.
    let report = space.run(&[
        "--set",
        "stages.one.params.run=echo x >> ../../../../../ran; echo new > out",
        "--set",
        "stages.two.params.run=echo x >> ../../../../../ran; echo new > out",
    ]);
    assert_eq!(report.outcomes(), "one done, two done");
    assert_eq!(space.ran(), ["x"]);
}

#[test]
fn changed_code_runs_again_and_touched_code_does_not() {
    let space = Space::new(
        r#"
name: code
stages:
  a: { kind: command, params: { run: "echo a >> {here}/ran; sh sub/script.sh > out", outputs: { out: out }, code: [sub/script.sh] } }
"#,
    );
    space.write("sub/script.sh", "echo 1\n");
    let first = space.run(&[]);
    assert_eq!(first.outcomes(), "a done", "{}", first.stderr);
    // Same bytes, other times.
    space.write("sub/script.sh", "echo 1\n");
    assert_eq!(space.run(&[]).outcomes(), "a cached");
    // Same length, written at once: only the bytes tell.
    space.write("sub/script.sh", "echo 2\n");
    let second = space.run(&[]);
    assert_eq!(second.outcomes(), "a done");
    assert_ne!(first.digests(), second.digests());
    space.write("sub/script.sh", "echo 1\n");
    assert_eq!(space.run(&[]).outcomes(), "a cached");
}

#[test]
fn code_that_changes_while_its_stage_runs_does_not_reach_it() {
    let space = Space::new(
        r#"
name: code
stages:
  a:
    kind: command
    params:
      run: "echo started > {here}/started; while [ ! -e {here}/go ]; do sleep 0.01; done; sh script.sh > out"
      outputs: { out: out }
      code: [script.sh]
"#,
    );
    space.write("script.sh", "echo 1\n");
    let child = space.program(&["run", "p.yaml", "--json"]);
    let child = spawn(child);
    space.wait_for("started");
    space.write("script.sh", "echo 2\n");
    space.write("go", "");
    let report = space.report(&child.wait_with_output().unwrap());
    assert_eq!(report.outcomes(), "a done");
    let object = space.object("a");
    assert_eq!(std::fs::read_to_string(object).unwrap(), "1\n");
    assert_eq!(space.run(&[]).outcomes(), "a done");
    let shown = space.flowgraph(&["show", "p.yaml", "a"]);
    assert_eq!(shown.stdout, "2\n");
}

fn spawn(mut command: std::process::Command) -> std::process::Child {
    command
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

const ENVIRONMENT: &str = r#"
name: environment
stages:
  a:
    kind: command
    params: { run: "echo $STYLE > style; echo ran >> {here}/ran", outputs: { style: style }, env: [STYLE], secret_env: [TOKEN] }
"#;

fn run_with(space: &Space, style: Option<&str>, token: &str) -> String {
    let mut program = space.program(&["run", "p.yaml", "--json"]);
    program.env("TOKEN", token).env_remove("STYLE");
    if let Some(style) = style {
        program.env("STYLE", style);
    }
    space.report(&program.output().unwrap()).outcomes()
}

#[test]
fn values_of_env_count_and_values_of_secret_env_do_not() {
    let space = Space::new(ENVIRONMENT);
    assert_eq!(run_with(&space, Some("dark"), "first-token"), "a done");
    assert_eq!(run_with(&space, Some("dark"), "second-token"), "a cached");
    assert_eq!(run_with(&space, Some("light"), "second-token"), "a done");
    assert_eq!(run_with(&space, None, "second-token"), "a done");
    assert_eq!(run_with(&space, Some(""), "second-token"), "a done");
    assert_eq!(run_with(&space, Some("dark"), "first-token"), "a cached");
}

#[test]
fn neither_secrets_nor_plain_values_of_the_environment_reach_the_store() {
    let space = Space::new(ENVIRONMENT);
    space.write(
        "p.yaml",
        r#"
name: environment
stages:
  good:
    kind: command
    params: { run: "case $TOKEN in *horse) ;; *) exit 1;; esac; echo ${#TOKEN} ${#STYLE} > out", outputs: { out: out }, env: [STYLE], secret_env: [TOKEN] }
  bad: { kind: command, params: { run: "exit 3", outputs: { out: out }, secret_env: [TOKEN] } }
"#
        // `${#x}` is the shell's length of x.
        .replace("${#", "$${#")
        .as_str(),
    );
    assert_eq!(
        run_with(&space, Some("battery-staple"), "correct-horse"),
        "bad failed, good done"
    );
    assert_eq!(
        std::fs::read_to_string(space.object("good")).unwrap(),
        "13 14\n"
    );
    let files = space.files(".flowgraph");
    assert!(files.len() > 5, "{files:?}");
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        for secret in ["correct-horse", "battery-staple"] {
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is in {}", file.display());
        }
    }
}

#[test]
fn rerun_and_from_force_stages_and_keep_the_first_result() {
    let space = Space::new(
        r#"
name: forced
stages:
  a: { kind: command, params: { run: "echo a >> {here}/ran; cat {here}/dice > out", outputs: { out: out } } }
  b: { kind: command, inputs: { x: a }, params: { run: "echo b >> {here}/ran; cp $x out", outputs: { out: out } } }
"#,
    );
    space.write("dice", "1");
    let first = space.run(&[]);
    space.ran();
    assert_eq!(space.run(&["--rerun", "a"]).outcomes(), "a done, b cached");
    assert_eq!(space.ran(), ["a"]);
    assert_eq!(space.run(&["--from", "a"]).outcomes(), "a done, b done");
    assert_eq!(space.ran(), ["a", "b"]);
    space.write("dice", "2");
    let again = space.run(&["--rerun", "a"]);
    assert_eq!(again.digests(), first.digests());
    let note = again
        .events
        .iter()
        .find(|event| event["event"] == "stage_note");
    assert_eq!(
        note.unwrap()["text"],
        "gave other bytes than its earlier result, which was kept: it is not reproducible here"
    );
}
