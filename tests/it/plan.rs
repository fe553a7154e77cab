//! `plan` says what `run` then does, and why.

use proptest::prelude::*;

use crate::space::{Space, lines};

const CHAIN: &str = r#"
name: chain
params: { a: one, b: two }
stages:
  a: { kind: command, params: { run: "echo ${a} > out", outputs: { out: out } } }
  b: { kind: command, inputs: { x: a }, params: { run: "cat $x > out; echo ${b} >> out", outputs: { out: out } } }
  c: { kind: command, inputs: { x: b }, params: { run: "cp $x out", outputs: { out: out } } }
"#;

#[test]
fn decisions_come_with_their_causes() {
    let space = Space::new(CHAIN);
    assert_eq!(
        lines(&space.plan(&[])),
        [
            "a: run (a: no earlier result)",
            "b: run (b: no earlier result)",
            "c: run (c: no earlier result)",
        ]
    );
    assert!(!space.path(".flowgraph").exists(), "`plan` made a store");
    space.run(&[]);
    assert_eq!(
        lines(&space.plan(&[])),
        ["a: cached", "b: cached", "c: cached"]
    );
    // What is known of `b` and `c` matches their records: they run only if `a` gives other bytes.
    assert_eq!(
        lines(&space.plan(&["--set", "a=three"])),
        [
            "a: run (a: params.run echo one > out -> echo three > out)",
            "b: run_if (a: params.run echo one > out -> echo three > out)",
            "c: run_if (a: params.run echo one > out -> echo three > out)",
        ]
    );
    assert_eq!(
        lines(&space.plan(&["--set", "a=three", "--set", "b=four"])),
        [
            "a: run (a: params.run echo one > out -> echo three > out)",
            "b: run (b: params.run cat $x > out; echo two >> out -> cat $x > out; echo four >> out; \
             a: params.run echo one > out -> echo three > out)",
            "c: run_if (b: params.run cat $x > out; echo two >> out -> cat $x > out; echo four >> out; \
             a: params.run echo one > out -> echo three > out)",
        ]
    );
}

#[test]
fn what_a_person_reads_names_the_change() {
    let space = Space::new(CHAIN);
    space.run(&[]);
    let plan = space.flowgraph(&["plan", "p.yaml", "--set", "b=four"]);
    assert_eq!(plan.code, 0);
    assert_eq!(plan.stderr, "");
    let text: Vec<&str> = plan
        .stdout
        .lines()
        .map(|line| line.split(" (about").next().unwrap())
        .collect();
    assert_eq!(
        text,
        [
            "      CACHED a",
            "         RUN b  run cat $x > out; echo two >> out -> cat $x > out; echo four >> out",
            "      RUN IF c  b: run cat $x > out; echo two >> out -> cat $x > out; echo four >> out",
            "        Plan 3 stages: 1 cached, 1 to run, 1 to run if an input changes",
        ]
    );
    let quiet = space.flowgraph(&["plan", "p.yaml", "--quiet"]);
    assert_eq!(
        quiet.stdout,
        "        Plan 3 stages: 3 cached, 0 to run, 0 to run if an input changes\n"
    );
}

#[test]
fn exit_code_is_10_when_something_would_run() {
    let space = Space::new(CHAIN);
    let code = |args: &[&str]| space.flowgraph(&[&["plan", "p.yaml"], args].concat()).code;
    assert_eq!(code(&["--exit-code"]), 10);
    assert_eq!(code(&[]), 0);
    space.run(&[]);
    assert_eq!(code(&["--exit-code"]), 0);
    assert_eq!(code(&["--exit-code", "--set", "b=four"]), 10);
}

#[test]
fn json_has_the_documented_shape() {
    let space = Space::new(CHAIN);
    space.run(&[]);
    let output = space
        .program(&["plan", "p.yaml", "--json", "--set", "b=four"])
        .output()
        .unwrap();
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let b = &plan["stages"][1];
    let keys: Vec<&String> = b.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "causes",
            "decision",
            "estimate",
            "fingerprint",
            "kind",
            "name",
            "notes"
        ]
    );
    assert_eq!(b["name"], "b");
    assert_eq!(b["kind"], "command");
    assert_eq!(b["decision"], "run");
    assert_eq!(
        b["causes"],
        serde_json::json!([{
            "stage": "b", "key": "params.run",
            "old": "cat $x > out; echo two >> out", "new": "cat $x > out; echo four >> out",
        }])
    );
    let estimate = b["estimate"].as_object().unwrap();
    assert_eq!(
        estimate.keys().collect::<Vec<_>>(),
        ["flops", "memory_bytes", "seconds"]
    );
    assert!(estimate["seconds"].as_f64().unwrap() > 0.0);
    assert!(estimate["memory_bytes"].as_u64().unwrap() > 0);
    // The fingerprint of a stage whose inputs are open is open.
    assert!(plan["stages"][2]["fingerprint"].is_null());
}

#[test]
fn changed_sources_environment_inputs_and_ports_are_causes() {
    let space = Space::new(
        r#"
name: causes
stages:
  a: { kind: command, params: { run: "cat f > out", outputs: { out: out }, code: [f], env: [STYLE] } }
  b: { kind: command, inputs: { x: a }, params: { run: "cat $x > out", outputs: { out: out } } }
"#,
    );
    space.write("f", "1");
    assert_eq!(space.run(&[]).code, 0);
    space.write("f", "2");
    let output = space
        .program(&["plan", "p.yaml"])
        .env("STYLE", "x")
        .output()
        .unwrap();
    let text = space.outcome(output).stdout;
    let first = text.lines().next().unwrap();
    let changes = first.split(" (about").next().unwrap();
    let digests = changes.matches("DIGEST").count();
    assert_eq!(digests, 3, "{changes}");
    assert!(
        changes.starts_with("         RUN a  env.STYLE unset -> "),
        "{changes}"
    );
    assert!(changes.contains("; sources.f blake3:"), "{changes}");
    assert_eq!(
        lines(&space.plan(&["--set", "stages.b.inputs={y: a, x: a}"]))[1],
        "b: run (b: inputs.y null -> not known yet; a: sources.f # -> #)"
    );
}

#[test]
fn a_missing_source_is_named_by_every_stage_that_needs_it() {
    let space = Space::new(
        r#"
name: missing
stages:
  a: { kind: command, params: { run: "sh f", outputs: { out: out }, code: [f] } }
  b: { kind: command, params: { run: "sh g", outputs: { out: out }, code: [g] } }
  c: { kind: command, inputs: { x: a }, params: { run: "cp $x out", outputs: { out: out } } }
"#,
    );
    let plan = space.flowgraph(&["plan", "p.yaml"]);
    assert_eq!(
        (plan.code, plan.stdout.as_str()),
        (
            0,
            "         RUN a  source `file:f` does not exist\n         \
             RUN b  source `file:g` does not exist\n         \
             RUN c  no earlier result\n        \
             Plan 3 stages: 0 cached, 3 to run, 0 to run if an input changes\n"
        )
    );
    assert_eq!(
        plan.stderr,
        "warning: 2 stages would fail when run, for lack of a source\n\
         hint: looked for ./f and f\n      looked for ./g and g\n"
    );
    let run = space.run(&[]);
    assert_eq!(
        (run.code, run.outcomes().as_str()),
        (1, "a failed, b failed, c skipped")
    );
}

/// A random pipeline: for each stage its word and which earlier stages it reads.
#[derive(Debug, Clone)]
struct Dag {
    stages: Vec<(u8, Vec<usize>, bool)>,
}

impl Dag {
    fn text(&self) -> String {
        let mut text = "name: random\nstages:\n".to_owned();
        for (at, (word, needs, constant)) in self.stages.iter().enumerate() {
            let inputs: Vec<String> = needs
                .iter()
                .map(|need| format!("x{need}: s{need}"))
                .collect();
            let reads: Vec<String> = needs.iter().map(|need| format!("$x{need}")).collect();
            // A constant stage runs again when its word changes, and gives the same bytes.
            let body = if *constant {
                format!("true {word} > out")
            } else {
                format!(
                    "cat {} /dev/null > out; echo s{at} {word} >> out",
                    reads.join(" ")
                )
            };
            text.push_str(&format!(
                "  s{at}: {{ kind: command, inputs: {{ {} }}, params: {{ run: '{body}; echo s{at} >> {{here}}/ran', outputs: {{ out: out }} }} }}\n",
                inputs.join(", ")
            ));
        }
        text
    }
}

fn dags() -> impl Strategy<Value = Dag> {
    prop::collection::vec((0_u8..3, any::<u32>(), prop::bool::weighted(0.3)), 1..7).prop_map(
        |stages| Dag {
            stages: stages
                .into_iter()
                .enumerate()
                .map(|(at, (word, bits, constant))| {
                    (
                        word,
                        (0..at)
                            .filter(|need| (bits >> (2 * need)).is_multiple_of(4))
                            .collect(),
                        constant,
                    )
                })
                .collect(),
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 20, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_run_does_what_the_plan_said(dag in dags(), edits in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..3), 3)) {
        let mut dag = dag;
        let space = Space::new(&dag.text());
        for edit in std::iter::once(None).chain(edits.into_iter().map(Some)) {
            if let Some((at, word)) = edit {
                let at = at.index(dag.stages.len());
                dag.stages[at].0 = word;
                space.write("p.yaml", &dag.text());
            }
            let plan = space.plan(&[]);
            let report = space.run(&[]);
            prop_assert_eq!(report.code, 0, "{}", report.stderr);
            let ran = space.ran();
            for (at, planned) in plan.iter().enumerate() {
                let name = format!("s{at}");
                let outcome = report.stages[&name].0.as_str();
                let did = ran.contains(&name);
                match planned.decision.as_str() {
                    "cached" => prop_assert_eq!((outcome, did), ("cached", false), "{}", name),
                    // Another stage of this run may have had the same fingerprint; these stages all differ.
                    "run" => prop_assert_eq!((outcome, did), ("done", true), "{}", name),
                    "run_if" => prop_assert_eq!(outcome == "done", did, "{}", name),
                    other => prop_assert!(false, "{}", other),
                }
                prop_assert_eq!(planned.causes.is_empty(), planned.decision == "cached", "{:?}", planned);
            }
            for planned in space.plan(&[]) {
                prop_assert_eq!(planned.decision, "cached");
            }
            // The results are those of a store that never saw another pipeline.
            let fresh = space.run(&["--store", "fresh"]);
            prop_assert_eq!(report.digests(), fresh.digests());
            std::fs::remove_dir_all(space.path("fresh")).unwrap();
            space.ran();
        }
    }
}
