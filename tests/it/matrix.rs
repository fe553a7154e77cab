//! Matrices, references with axes, profiles, `--set`, `--only`.

use crate::space::{Space, lines};

const MATRIX: &str = r#"
name: matrix
params: { seeds: [1, 2], word: w }
profiles:
  more: { params: { seeds: [1, 2, 3] } }
  bare: { stages: { report: null, pick: null } }
  other: { stages: { base: { kind: command, params: { run: "echo other > out", outputs: { o: out } } } } }
stages:
  base: { kind: command, params: { run: "echo base > out", outputs: { o: out } } }
  train:
    matrix: { seed: "${seeds}" }
    kind: command
    inputs: { x: base }
    params: { run: "cat $x > early; echo train ${matrix.seed} ${word} | tee -a early > late", outputs: { early: early, late: late } }
  sample:
    matrix:
      policy: [base, train.early, train.late]
      seed: "${seeds}"
      exclude: [{ policy: base, seed: 2 }]
    kind: command
    inputs: { x: "${matrix.policy}" }
    params: { run: "cat $x > out; echo sample ${matrix.policy} ${matrix.seed} >> out", outputs: { o: out } }
  report: { kind: command, inputs: { x: "sample[*]" }, params: { run: "cat $x > out", outputs: { o: out } } }
  pick: { kind: command, inputs: { x: "sample[policy=train.late,seed=2].o", y: "train[seed=1].late" }, params: { run: "cat $x $y > out", outputs: { o: out } } }
"#;

fn text(space: &Space, stage: &str) -> String {
    std::fs::read_to_string(space.object(stage)).unwrap()
}

#[test]
fn axes_multiply_stages_and_references_follow_them() {
    let space = Space::new(MATRIX);
    let report = space.run(&[]);
    assert_eq!(
        report.code,
        0,
        "{:?} {}",
        report.events.last(),
        report.stderr
    );
    let names: Vec<&String> = report.stages.keys().collect();
    assert_eq!(
        names,
        [
            "base",
            "pick",
            "report",
            "sample[policy=base,seed=1]",
            "sample[policy=train.early,seed=1]",
            "sample[policy=train.early,seed=2]",
            "sample[policy=train.late,seed=1]",
            "sample[policy=train.late,seed=2]",
            "train[seed=1]",
            "train[seed=2]",
        ]
    );
    // Lists are in axis order, the last axis fastest; a consumer takes the equal value of an axis it shares.
    assert_eq!(
        text(&space, "report"),
        "base\nsample base 1\nbase\ntrain 1 w\nsample train.early 1\nbase\ntrain 2 w\nsample train.early 2\n\
         train 1 w\nsample train.late 1\ntrain 2 w\nsample train.late 2\n"
    );
    assert_eq!(
        text(&space, "pick"),
        "train 2 w\nsample train.late 2\ntrain 1 w\n"
    );
}

#[test]
fn a_wider_axis_runs_only_what_is_new() {
    let space = Space::new(MATRIX);
    space.run(&[]);
    let plan = lines(&space.plan(&["--profile", "more"]));
    let running: Vec<&str> = plan
        .iter()
        .filter(|line| !line.ends_with(": cached"))
        .map(|line| line.split(" (").next().unwrap())
        .collect();
    assert_eq!(
        running,
        [
            "train[seed=3]: run",
            "sample[policy=base,seed=3]: run",
            "sample[policy=train.early,seed=3]: run",
            "sample[policy=train.late,seed=3]: run",
            "report: run",
        ]
    );
}

#[test]
fn profiles_remove_and_replace_stages() {
    let space = Space::new(MATRIX);
    space.run(&[]);
    let bare = space.run(&["--profile", "bare"]);
    assert!(!bare.stages.contains_key("report") && !bare.stages.contains_key("pick"));
    assert!(bare.stages.values().all(|(outcome, _)| outcome == "cached"));
    let plan = space.plan(&["--profile", "other"]);
    assert_eq!(
        plan[0].text(),
        "base: run (base: params.run echo base > out -> echo other > out)"
    );
    // Later profiles win, and `--set` wins over them.
    let plan = space.plan(&[
        "-p",
        "other",
        "-p",
        "bare",
        "--set",
        "stages.base.params.run=echo base > out",
    ]);
    assert_eq!(plan[0].text(), "base: cached");
}

#[test]
fn settings_reach_params_and_templates_of_matrices() {
    let space = Space::new(MATRIX);
    space.run(&[]);
    for (setting, changed) in [
        ("word=v", 2),
        ("params.word=v", 2),
        ("seeds=[1, 2]", 0),
        ("stages.train.params.run=cp $x early; cp $x late", 2),
        ("stages.train.matrix.seed=[2, 1]", 0),
        ("base.run=echo new > out", 1),
    ] {
        let plan = space.plan(&["--set", setting]);
        let runs = plan
            .iter()
            .filter(|stage| stage.decision == "run" && stage.name != "report")
            .count();
        assert_eq!(runs, changed, "{setting}: {:?}", lines(&plan));
    }
}

#[test]
fn only_takes_what_matches_and_what_that_needs() {
    let space = Space::new(MATRIX);
    let names =
        |report: crate::space::Report| report.stages.into_keys().collect::<Vec<_>>().join(" ");
    assert_eq!(
        names(space.run(&["--only", "sample[policy=train.late,seed=2]"])),
        "base sample[policy=train.late,seed=2] train[seed=2]"
    );
    assert_eq!(
        names(space.run(&["--only", "train"])),
        "base train[seed=1] train[seed=2]"
    );
    assert_eq!(
        names(space.run(&["--only", "*seed=1]", "--only", "base"])),
        "base sample[policy=base,seed=1] sample[policy=train.early,seed=1] sample[policy=train.late,seed=1] train[seed=1]"
    );
    let none = space.flowgraph(&["run", "p.yaml", "--only", "trian"]);
    assert_eq!(
        (none.code, none.stderr.as_str()),
        (2, "error: `--only trian` matches no stage\n")
    );
    assert!(space.run(&[]).stages.contains_key("report"));
}

#[test]
fn a_number_is_the_same_value_however_it_is_spelt() {
    let space = Space::new(
        r#"
name: n
stages:
  a: { kind: command, matrix: { lr: [1e-2, 3e-3], seed: [1, 2] }, params: { run: "echo ${matrix.lr} > o", outputs: { o: o } } }
  some: { kind: command, inputs: { x: "a[lr=1e-2,seed=*]" }, params: { run: "cat $x > o", outputs: { o: o } } }
  same: { kind: command, matrix: { lr: ["0.010"] }, inputs: { x: "a[seed=2.0]" }, params: { run: "cat $x > o", outputs: { o: o } } }
"#,
    );
    let report = space.run(&["--only", "a[seed=1.0,lr=3e-3]"]);
    assert_eq!(report.outcomes(), "a[lr=0.003,seed=1] done");
    assert_eq!(space.run(&[]).code, 0);
    let shown = |result: &str| space.flowgraph(&["show", "p.yaml", result]).stdout;
    assert_eq!(shown("some"), "0.01\n0.01\n");
    assert_eq!(shown("same"), "0.01\n");
    assert_eq!(shown("a[seed=1,lr=3.0e-3].o"), "0.003\n");
    let why = space.flowgraph(&["why", "p.yaml", "a[lr=1e-2,seed=1]"]);
    assert_eq!(why.code, 0, "{}", why.stderr);
}

#[test]
fn rerun_of_a_template_means_all_its_instances() {
    let space = Space::new(MATRIX);
    space.run(&[]);
    let done = |args: &[&str]| {
        let report = space.run(args);
        let done: Vec<String> = report
            .stages
            .into_iter()
            .filter(|(_, (outcome, _))| outcome == "done")
            .map(|(name, _)| name)
            .collect();
        done.join(" ")
    };
    assert_eq!(done(&["--rerun", "train"]), "train[seed=1] train[seed=2]");
    assert_eq!(done(&["--rerun", "train[seed=2]"]), "train[seed=2]");
    assert_eq!(
        done(&["--from", "sample[policy=base,seed=1]"]),
        "report sample[policy=base,seed=1]"
    );
    let unknown = space.flowgraph(&["run", "p.yaml", "--rerun", "tran"]);
    assert_eq!(
        (unknown.code, unknown.stderr.as_str()),
        (
            2,
            "error: the pipeline has no stage `tran`; did you mean `train[seed=1]`?\n"
        )
    );
}

#[test]
fn include_adds_a_combination() {
    let space = Space::new(
        r#"
name: include
stages:
  a:
    matrix: { x: [1, 2], y: [p, q], exclude: [{ x: 1 }], include: [{ x: 7, y: z }] }
    kind: command
    params: { run: "echo ${matrix.x} ${matrix.y} > out", outputs: { o: out } }
  all: { kind: command, inputs: { i: "a[*]" }, params: { run: "cat $i > out", outputs: { o: out } } }
  some: { kind: command, inputs: { i: "a[x=2,y=*]" }, params: { run: "cat $i > out", outputs: { o: out } } }
"#,
    );
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    assert_eq!(text(&space, "all"), "2 p\n2 q\n7 z\n");
    assert_eq!(text(&space, "some"), "2 p\n2 q\n");
}

#[test]
fn odd_axis_values_stay_inside_the_store() {
    let space = Space::new(&format!(
        r#"
name: odd
stages:
  a:
    matrix: {{ x: ["../../../../escaped", "with space", "a/b", "{}"] }}
    kind: command
    params: {{ run: "echo '${{matrix.x}}' > out", outputs: {{ o: out }} }}
"#,
        "long".repeat(100)
    ));
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{:?}", report.events);
    let names: Vec<String> = std::fs::read_dir(space.path(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let logs = space
        .files(".flowgraph/runs")
        .into_iter()
        .filter(|file| file.extension().is_some_and(|e| e == "log"));
    assert_eq!(logs.count(), 4);
}
