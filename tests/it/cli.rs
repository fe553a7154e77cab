//! The command line itself: usage, exit codes, what goes where.

use crate::space::Space;

const PIPELINE: &str = r#"
name: small
stages:
  a: { kind: command, params: { run: "echo one > out.txt; echo more > extra.bin", outputs: { out: out.txt, sub: extra.bin } } }
  b:
    matrix: { seed: [1, 2] }
    kind: command
    inputs: { x: a }
    params: { run: "mkdir d; cp $x d/x; echo ${matrix.seed} > d/y", outputs: { d: d } }
"#;

#[test]
fn a_missing_pipeline_and_unknown_words_are_usage_errors() {
    let space = Space::new(PIPELINE);
    let missing = space.flowgraph(&["run", "q.yaml"]);
    assert_eq!(missing.code, 2);
    assert_eq!(
        missing.stderr,
        "error: cannot read the pipeline: failed to open file `q.yaml`: No such file or directory (os error 2)\n"
    );
    for args in [
        &["rum", "p.yaml"][..],
        &["run"],
        &["run", "p.yaml", "--jobs", "0"],
        &["run", "p.yaml", "--jobs", "x"],
        &["run", "p.yaml", "--device", "tpu"],
        &["run", "p.yaml", "--only", "zzz"],
        &["run", "p.yaml", "--from", "zzz"],
        &["show", "p.yaml", "zzz"],
        &["show", "p.yaml", "a.zzz"],
        &["show", "p.yaml", "b"],
        &["kinds", "zzz"],
    ] {
        let outcome = space.flowgraph(args);
        assert_eq!(outcome.code, 2, "{args:?}: {}", outcome.stderr);
        assert!(
            outcome.stderr.starts_with("error: "),
            "{args:?}: {}",
            outcome.stderr
        );
        assert_eq!(outcome.stdout, "", "{args:?}");
    }
    assert!(!space.path(".flowgraph").exists());
}

#[test]
fn unknown_profiles_and_settings_are_invalid_pipelines() {
    let space = Space::new(PIPELINE);
    let outcome = space.flowgraph(&[
        "plan",
        "p.yaml",
        "--profile",
        "big",
        "--set",
        "lr=1",
        "--set",
        "stages.a.params.rum=x",
    ]);
    assert_eq!(outcome.code, 3);
    for message in [
        "unknown profile `big`",
        "`--set lr=1`: no param or stage `lr`",
    ] {
        assert!(outcome.stderr.contains(message), "{}", outcome.stderr);
    }
}

#[test]
fn data_goes_to_standard_output_and_the_rest_to_standard_error() {
    let space = Space::new(PIPELINE);
    let run = space.flowgraph(&["run", "p.yaml", "--jobs", "1"]);
    assert_eq!((run.code, run.stdout.as_str()), (0, ""));
    assert_eq!(
        run.stderr,
        "         RUN a  no earlier result
        DONE (1/3) a  TIME
         RUN b[seed=1]  no earlier result
        DONE (2/3) b[seed=1]  TIME
         RUN b[seed=2]  no earlier result
        DONE (3/3) b[seed=2]  TIME
     Summary [TIME] 3 stages: 0 cached, 3 done
"
    );
    let again = space.flowgraph(&["run", "p.yaml"]);
    assert_eq!(again.stderr, "     Summary [TIME] 3 stages: 3 cached\n");
    let verbose = space.flowgraph(&["run", "p.yaml", "-v"]);
    assert_eq!(
        verbose.stderr,
        "      CACHED (1/3) a
      CACHED (2/3) b[seed=1]
      CACHED (3/3) b[seed=2]
     Summary [TIME] 3 stages: 3 cached
"
    );
}

#[test]
fn json_is_one_value_a_line_and_ends_with_a_report() {
    let space = Space::new(PIPELINE);
    let report = space.run(&["--jobs", "1"]);
    assert_eq!(report.stderr, "");
    let kinds: Vec<&str> = report
        .events
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "run_started",
            "stage_started",
            "stage_done",
            "stage_started",
            "stage_done",
            "stage_started",
            "stage_done",
            "run_finished",
            "report",
        ]
    );
    assert_eq!(
        report.events[7]["outcomes"],
        serde_json::json!({ "cached": 0, "done": 3, "failed": 0, "skipped": 0, "interrupted": 0 })
    );
    // The run keeps the same events.
    let log = space
        .files(".flowgraph/runs")
        .into_iter()
        .find(|file| file.ends_with("events.jsonl"))
        .unwrap();
    let logged: Vec<serde_json::Value> = std::fs::read_to_string(log)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let logged: Vec<&str> = logged
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert_eq!(logged, kinds[..8]);
}

#[test]
fn show_prints_text_and_lists_the_rest() {
    let space = Space::new(PIPELINE);
    let early = space.flowgraph(&["show", "p.yaml", "a"]);
    assert_eq!(
        (early.code, early.stderr.as_str()),
        (
            1,
            "error: stage `a` has no result as the pipeline stands now\nhint: `flowgraph run p.yaml --only 'a'` makes it\n"
        )
    );
    space.run(&[]);
    assert_eq!(space.flowgraph(&["show", "p.yaml", "a"]).stdout, "one\n");
    let folder = space.flowgraph(&["show", "p.yaml", "b[seed=2].d"]);
    let names: Vec<&str> = folder
        .stdout
        .lines()
        .map(|line| line.split_whitespace().nth(2).unwrap())
        .collect();
    assert_eq!(names, ["x", "y"]);
    let json: serde_json::Value = serde_json::from_str(
        &space
            .flowgraph(&["show", "p.yaml", "b[seed=2]", "--json"])
            .stdout,
    )
    .unwrap();
    assert_eq!(json["kind"], "file");
    assert_eq!(json["files"][1]["path"], "y");
}

#[test]
fn export_copies_and_does_not_overwrite_unasked() {
    let space = Space::new(PIPELINE);
    space.run(&[]);
    let export = |args: &[&str]| {
        space.flowgraph(&[&["export", "p.yaml", "b[seed=2]", "copy/of"], args].concat())
    };
    let first = export(&[]);
    assert_eq!(
        (first.code, first.stderr.as_str()),
        (0, "b[seed=2] (2 files, 6 B) -> copy/of\n")
    );
    assert_eq!(
        (space.read("copy/of/x"), space.read("copy/of/y")),
        ("one\n".to_owned(), "2\n".to_owned())
    );
    space.write("copy/of/y", "mine");
    let second = export(&[]);
    assert_eq!(
        (second.code, second.stderr.as_str()),
        (
            2,
            "error: copy/of/x exists\nhint: choose another folder, or give `--force`\n"
        )
    );
    assert_eq!(space.read("copy/of/y"), "mine");
    assert_eq!(export(&["--force"]).code, 0);
    assert_eq!(space.read("copy/of/y"), "2\n");
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
}

#[test]
fn graphs_fold_matrices_unless_asked_to_expand() {
    let space = Space::new(PIPELINE);
    assert_eq!(
        space.flowgraph(&["graph", "p.yaml"]).stdout,
        "flowchart TD\n  n0[\"a<br/><small>command</small>\"]\n  n1[\"b × seed<br/><small>command</small>\"]\n  n0 --> n1\n"
    );
    assert_eq!(
        space
            .flowgraph(&["graph", "p.yaml", "--expand", "--format", "dot"])
            .stdout,
        "digraph flowgraph {\n  rankdir=TB;\n  node [shape=box];\n  n0 [label=\"a\\ncommand\"];\n  n1 [label=\"b[seed=1]\\ncommand\"];\n  \
         n2 [label=\"b[seed=2]\\ncommand\"];\n  n0 -> n1;\n  n0 -> n2;\n}\n"
    );
}

#[test]
fn the_store_is_where_the_option_or_the_environment_says() {
    let space = Space::new(PIPELINE);
    let mut program = space.program(&["run", "p.yaml", "--json"]);
    program.env("FLOWGRAPH_STORE", "from-environment");
    assert_eq!(program.output().unwrap().status.code(), Some(0));
    assert!(space.path("from-environment/records").is_dir());
    let mut program = space.program(&["run", "p.yaml", "--json", "--store", "from/option"]);
    program.env("FLOWGRAPH_STORE", "from-environment");
    assert_eq!(program.output().unwrap().status.code(), Some(0));
    assert!(space.path("from/option/records").is_dir());
    assert!(!space.path(".flowgraph").exists());
}

#[test]
fn a_pipeline_is_the_same_from_wherever_it_is_run() {
    let space = Space::new(PIPELINE);
    space.write(
        "deep/er/p.yaml",
        "name: deep\nstages:\n  a: { kind: command, params: { run: 'sh s.sh > out', outputs: { o: out }, code: [s.sh] } }\n",
    );
    space.write("deep/er/s.sh", "echo 1");
    let run = |folder: &str, file: &str| {
        let store = space.path("store");
        let mut program =
            space.program(&["run", file, "--json", "--store", store.to_str().unwrap()]);
        program.current_dir(space.path(folder));
        space.report(&program.output().unwrap()).outcomes()
    };
    assert_eq!(run("", "deep/er/p.yaml"), "a done");
    assert_eq!(run("deep", "er/p.yaml"), "a cached");
    assert_eq!(run("deep/er", "p.yaml"), "a cached");
    assert_eq!(run("deep/er", "../er/p.yaml"), "a cached");
}

#[test]
fn kinds_schema_and_completions_know_the_registry() {
    let space = Space::new(PIPELINE);
    let kinds = space.flowgraph(&["kinds"]).stdout;
    assert!(
        kinds.lines().any(|line| line.starts_with("  command ")
            && line.ends_with("what it writes becomes artifacts.")),
        "{kinds}"
    );
    assert!(
        kinds.starts_with("Data and models:\n  generate_world "),
        "{kinds}"
    );
    assert!(kinds.contains("\n\nTraining:\n  train_sft "), "{kinds}");
    // A word is looked for in names, descriptions and params.
    let found = space.flowgraph(&["kinds", "entropy"]);
    assert_eq!(found.code, 0, "{}", found.stderr);
    let line = |start: &str| found.stdout.lines().any(|line| line.starts_with(start));
    assert!(
        line("metric_table ") && !line("train_tokenizer "),
        "{}",
        found.stdout
    );
    assert!(
        found
            .stdout
            .contains("    entropy Text columns of `scores`"),
        "{}",
        found.stdout
    );
    let methods = space.flowgraph(&["kinds", "train_policy_gradient"]).stdout;
    assert!(
        methods
            .lines()
            .any(|line| line.starts_with("    grpo: GRPO (Shao et al. 2024)")),
        "{methods}"
    );
    for (kind, choice) in [
        ("train_tokenizer", "    word_level: One token a word; "),
        ("reward_rule", "    arithmetic: It is a right derivation"),
        ("reward_rule", "    as_is: What its text is."),
        ("train_preference", "    { loss: dpo }: Direct preference"),
        ("train_preference", "      beta: Strength of the pull"),
        ("claims", "    test: What decides it. (required)"),
        ("claims", "      { kind: difference }: A metric"),
        ("claims", "          pass_at: Probability that one"),
        ("claims", "      not_worse_by: For a column"),
        (
            "reward_command",
            "  data           dataset: whose `columns` it is told, by prompt (with `columns`)",
        ),
        (
            "load_dataset",
            "  model          language_model or tokenizer: ",
        ),
    ] {
        let shown = space.flowgraph(&["kinds", kind]).stdout;
        assert!(
            shown.lines().any(|line| line.starts_with(choice)),
            "{choice}: {shown}"
        );
    }
    let unknown = space.flowgraph(&["kinds", "comand"]);
    assert_eq!(
        unknown.stderr,
        "error: unknown stage kind `comand`, and no kind says this word\nhint: did you mean `command`?\n"
    );
    let loader = space.flowgraph(&["kinds", "load_dataset", "--json"]).stdout;
    let loader: serde_json::Value = serde_json::from_str(&loader).unwrap();
    let of_model = &loader["inputs"][1];
    assert_eq!(
        (&of_model["name"], &of_model["with"]),
        (&"model".into(), &"with `template: model`".into())
    );
    // A method is no kind; the kind that has it is named, in a pipeline too.
    let method = space.flowgraph(&["kinds", "train_dpo"]).stderr;
    let hint = "did you mean `train_preference` with `objective.loss: dpo`";
    assert!(method.contains(hint), "{method}");
    space.write("dpo.yaml", "name: n\nstages:\n  a: { kind: dpo }\n");
    let check = space.flowgraph(&["check", "dpo.yaml"]).stderr;
    assert!(check.contains(hint), "{check}");
    let schema: serde_json::Value =
        serde_json::from_str(&space.flowgraph(&["schema"]).stdout).unwrap();
    assert!(schema["$defs"]["command"]["properties"]["run"].is_object());
    let script = space.flowgraph(&["completions", "bash"]).stdout;
    assert!(script.contains("flowgraph"), "{script}");
}

#[test]
fn data_that_standard_output_does_not_take_is_an_error_and_a_reader_that_goes_is_none() {
    let space = Space::new(
        "name: n\nstages:\n  a: { kind: command, params: { run: 'echo 1 > o', outputs: { o: o } } }\n",
    );
    let full = || std::fs::File::options().write(true).open("/dev/full");
    for (args, code) in [
        (["run", "p.yaml", "--json"].as_slice(), 1),
        (&["show", "p.yaml", "a"], 1),
        (&["plan", "p.yaml", "--json"], 1),
        (&["graph", "p.yaml"], 1),
        (&["kinds"], 1),
        (&["--help"], 1),
        (&["check", "nothing.yaml", "--json"], 2),
    ] {
        let mut program = space.program(args);
        let output = program.stdout(full().unwrap()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        let lost = "cannot write to standard output: No space left on device";
        assert_eq!(said.contains(lost), code == 1, "{args:?}: {said}");
    }
    // The run did its work all the same.
    assert_eq!(space.flowgraph(&["show", "p.yaml", "a"]).stdout, "1\n");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut program = space.program(&["show", "p.yaml", "a"]);
    let output = program.stdout(writer).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_store_that_is_not_there_is_an_error_and_is_not_made() {
    let space = Space::new(PIPELINE);
    space.write("file", "");
    for store in ["nothing", "file"] {
        for command in [
            ["verify"].as_slice(),
            &["runs"],
            &["diff", "last", "last-1"],
            &["gc", "p.yaml"],
        ] {
            let outcome = space.flowgraph(&[&["--store", store], command].concat());
            let said = format!("error: no store at {store}\n");
            assert_eq!(
                (outcome.code, outcome.stdout.as_str()),
                (2, ""),
                "{command:?}"
            );
            assert!(
                outcome.stderr.starts_with(&said),
                "{command:?}: {}",
                outcome.stderr
            );
            assert!(outcome.stderr.contains("FLOWGRAPH_STORE"));
        }
    }
    assert!(!space.path("nothing").exists());
    for command in ["plan", "run"] {
        let outcome = space.flowgraph(&["--store", "nothing", command, "p.yaml"]);
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    }
}
