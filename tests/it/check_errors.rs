//! What `check` says of broken pipelines: everything at once, with place and hint.

use crate::space::Space;

/// The diagnostics of `check --json`, one line each: `line:column severity: message | hint`.
fn diagnostics(pipeline: &str) -> String {
    diagnostics_with(pipeline, &[])
}

fn diagnostics_with(pipeline: &str, args: &[&str]) -> String {
    let space = Space::new(pipeline);
    let outcome = space.flowgraph(&[&["check", "p.yaml", "--json"], args].concat());
    assert_eq!(outcome.code, 3, "{}{}", outcome.stdout, outcome.stderr);
    assert_eq!(outcome.stderr, "");
    assert!(!space.path(".flowgraph").exists(), "`check` touched the store");
    let found: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let rows = found["diagnostics"].as_array().unwrap();
    let lines: Vec<String> = rows
        .iter()
        .map(|row| {
            assert_eq!(row["file"], "p.yaml");
            let place = match (row["line"].as_u64(), row["column"].as_u64()) {
                (Some(line), Some(column)) => format!("{line}:{column}"),
                _ => "-".to_owned(),
            };
            let text = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            let hint = if row["hint"].is_null() { String::new() } else { format!("\n    {}", text("hint")) };
            format!("{place} {}: {}{hint}", text("severity"), text("message"))
        })
        .collect();
    lines.join("\n")
}

#[test]
fn every_mistake_is_found_at_once_with_its_place_and_a_hint() {
    insta::assert_snapshot!(diagnostics(
        r#"name: many
parmas: {}
params: { word: w, unused: 1, ring_a: "${ring_b}", ring_b: "${ring_a}" }
stages:
  good: { kind: command, params: { run: "echo ${word}", outputs: { out: out } } }
  Bad: { kind: command, params: { run: "echo", outputs: { out: out } } }
  kindless: { params: {} }
  misspelt: { kind: comand }
  key: { kind: command, input: { x: good }, params: { run: "echo", outputs: { out: out } } }
  param: { kind: command, params: { rum: "echo", outputs: [out], code: main.py } }
  reference: { kind: command, inputs: { x: goood, y: good.oot, z: "good[seed=1]", Port: good, w: "go od", v: [good, { a: 1 }] }, params: { run: "echo", outputs: { out: out } } }
  undefined: { kind: command, params: { run: "echo ${wrd} ${matrix.seed} ${word", outputs: { out: out } } }
  axis: { matrix: { seed: [1, 2, 2], "no!": [1], one: 3, exclude: [{ sed: 1 }] }, kind: command, params: { run: "echo", outputs: { out: out } } }
  numbers: { kind: command, retries: -1, timeout: soon, resources: { cpus: 0, memory: lots, gpu: 1 }, params: { run: "echo", outputs: { out: out } } }
  values: { kind: command, params: { run: " ", outputs: { Out: ../x }, code: [/etc/passwd], env: [PATH] } }
  list: [1]
"#
    ), @"");
}

#[test]
fn references_that_cannot_be_wired_are_named() {
    insta::assert_snapshot!(diagnostics(
        r#"name: wires
stages:
  base: { kind: command, params: { run: "echo", outputs: { out: out, log: log } } }
  many: { matrix: { seed: [1, 2], lr: [0.1] }, kind: command, params: { run: "echo", outputs: { out: out } } }
  output: { kind: command, inputs: { x: base.lag }, params: { run: "echo", outputs: { out: out } } }
  axis: { kind: command, inputs: { x: many }, params: { run: "echo", outputs: { out: out } } }
  value: { kind: command, inputs: { x: "many[seed=3,lr=0.1]" }, params: { run: "echo", outputs: { out: out } } }
  unknown: { kind: command, inputs: { x: "many[sead=1,lr=0.1]" }, params: { run: "echo", outputs: { out: out } } }
  empty: { kind: command, inputs: { x: [] }, params: { run: "echo", outputs: { out: out } } }
"#
    ), @"");
}

#[test]
fn rings_are_shown_as_rings() {
    insta::assert_snapshot!(diagnostics(
        r#"name: ring
stages:
  before: { kind: command, inputs: { x: b }, params: { run: "echo", outputs: { out: out } } }
  a: { kind: command, inputs: { x: c }, params: { run: "echo", outputs: { out: out } } }
  b: { kind: command, inputs: { x: a }, params: { run: "echo", outputs: { out: out } } }
  c: { kind: command, inputs: { x: b }, params: { run: "echo", outputs: { out: out } } }
"#
    ), @"");
    insta::assert_snapshot!(diagnostics(
        "name: self\nstages:\n  a: { kind: command, inputs: { x: a }, params: { run: echo, outputs: { out: out } } }\n"
    ), @"");
}

#[test]
fn syntax_errors_and_duplicate_keys_have_places() {
    insta::assert_snapshot!(diagnostics("name: x\nstages:\n  a: { kind: command\n  b: {}\n"), @"");
    insta::assert_snapshot!(diagnostics("name: x\nname: y\nstages:\n  a: { kind: command, kind: command }\n  a: {}\n"), @"");
    insta::assert_snapshot!(diagnostics("name: x\nstages:\n\ta: {}\n"), @"");
    insta::assert_snapshot!(diagnostics("- a\n- b\n"), @"");
    insta::assert_snapshot!(diagnostics(""), @"");
    insta::assert_snapshot!(diagnostics("name: x\nparams: { a: .nan }\nstages: {}\n"), @"");
    insta::assert_snapshot!(diagnostics("name: x\n"), @"");
    insta::assert_snapshot!(diagnostics("name: [x]\nstages: [a]\n"), @"");
}

const PROFILES: &str = r#"name: profiles
params: { word: w, seeds: [1] }
profiles:
  good: { params: { seeds: [1, 2] } }
  bad_value: { params: { seeds: 7 } }
  bad_patch: { stages: { a: { params: { rum: x } }, c: { inputs: { x: b } } } }
  bad_kind: { stages: { a: { kind: comand } } }
  replaced: { stages: { b: { kind: command, inputs: { y: zzz }, params: { run: "echo" } } } }
  removed: { stages: { a: null } }
  bad_key: { parms: {} }
  misspelt: { params: { wurd: x } }
stages:
  a:
    matrix: { seed: "${seeds}" }
    kind: command
    params: { run: "echo ${word} ${matrix.seed}", outputs: { out: out } }
  b: { kind: command, inputs: { x: "a[*]" }, params: { run: "echo", outputs: { out: out } } }
"#;

#[test]
fn mistakes_of_profiles_are_shown_in_the_profile() {
    insta::assert_snapshot!(diagnostics(PROFILES), @"");
    insta::assert_snapshot!(diagnostics_with(PROFILES, &["--profile", "gud"]), @"");
}

#[test]
fn mistakes_of_settings_are_named() {
    const PIPELINE: &str = r#"name: settings
params: { word: w, data: { n: 1 } }
stages:
  a: { kind: command, params: { run: "echo ${word} ${data.n}", outputs: { out: out } } }
"#;
    let set = |setting: &str| diagnostics_with(PIPELINE, &["--set", setting]);
    insta::assert_snapshot!(set("wrd=x"), @"");
    insta::assert_snapshot!(set("word"), @"");
    insta::assert_snapshot!(set("data.m=2"), @"");
    insta::assert_snapshot!(set("word.x=2"), @"");
    insta::assert_snapshot!(set("stages.b.params.run=x"), @"");
    insta::assert_snapshot!(set("stages.a.params.rum=x"), @"");
    insta::assert_snapshot!(set("word={"), @"");
    insta::assert_snapshot!(set("a.run=[1]"), @"");
}

#[test]
fn unused_params_are_warnings() {
    let space = Space::new(
        r#"name: unused
params: { used: 1, indirect: 2, alias: "${indirect}", left: 3 }
profiles: { big: { params: { lfet: 4 } } }
stages:
  a: { kind: command, params: { run: "echo ${used} ${alias}", outputs: { out: out } } }
"#,
    );
    let outcome = space.flowgraph(&["check", "p.yaml"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, ""));
    insta::assert_snapshot!(outcome.stderr, @"");
    let json = space.flowgraph(&["check", "p.yaml", "--json"]);
    assert_eq!(
        json.stdout,
        "{\"profiles\":[{\"profile\":\"default\",\"stages\":1},{\"profile\":\"big\",\"stages\":1}],\"valid\":true}\n"
    );
    // A run says it, too, and goes on.
    let run = space.flowgraph(&["run", "p.yaml"]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("param `left` is not used by any stage"), "{}", run.stderr);
}

#[test]
fn people_see_the_line_with_a_mark_under_it() {
    let space = Space::new(
        r#"name: shown
stages:
  corpus: { kind: command, params: { run: "echo", outputs: { text: out } } }
  sft:
    kind: command
    inputs: { data: korpus }
    params: { run: "echo", outputs: { out: out }, cod: [a] }
"#,
    );
    let outcome = space.flowgraph(&["check", "p.yaml"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (3, ""));
    insta::assert_snapshot!(outcome.stderr, @"");
    // The same for every command that reads a pipeline.
    for command in ["run", "plan", "graph"] {
        let other = space.flowgraph(&[command, "p.yaml"]);
        assert_eq!((other.code, other.stderr.as_str()), (3, outcome.stderr.as_str()), "{command}");
    }
}
