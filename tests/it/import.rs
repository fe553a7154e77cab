//! `import`: stages of another file under a namespace.

use crate::space::Space;

const BASE: &str = r#"
name: base
params: { word: one, seeds: [1, 2] }
profiles:
  loud: { params: { word: ONE } }
stages:
  start: { kind: command, params: { run: "cat f > out; echo ${word} >> out", outputs: { out: out }, code: [f] } }
  each:
    matrix: { seed: "${seeds}", source: [start] }
    kind: command
    inputs: { x: "${matrix.source}" }
    params: { run: "cat $x > out; echo ${matrix.seed} >> out", outputs: { out: out } }
  unneeded: { kind: command, params: { run: "echo > out; echo unneeded >> {here}/ran", outputs: { out: out } } }
"#;

const MAIN: &str = r#"
name: main
import: { base: sub/base.yaml }
stages:
  last: { kind: command, inputs: { x: "base/each[*]" }, params: { run: "cat $x > out", outputs: { out: out } } }
"#;

fn space() -> Space {
    let space = Space::new(MAIN);
    space.write("sub/base.yaml", BASE);
    space.write("sub/f", "file\n");
    space
}

#[test]
fn imported_stages_share_their_results_with_the_file_they_stand_in() {
    let space = space();
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    assert_eq!(
        report.outcomes(),
        "base/each[seed=1,source=start] done, base/each[seed=2,source=start] done, base/start done, last done"
    );
    assert_eq!(space.ran(), [""; 0], "what nobody here needs does not run");
    let alone = space.flowgraph(&["plan", "sub/base.yaml"]);
    assert!(
        alone.stdout.contains("3 cached, 1 to run"),
        "{}",
        alone.stdout
    );
    assert_eq!(
        space.flowgraph(&["show", "p.yaml", "last"]).stdout,
        "file\none\n1\nfile\none\n2\n"
    );
}

#[test]
fn params_and_profiles_reach_an_imported_file() {
    let space = space();
    let shown = |args: &[&str]| {
        let report = space.run(args);
        assert_eq!(report.code, 0, "{}", report.stderr);
        space
            .flowgraph(&[&["show", "p.yaml", "last"], args].concat())
            .stdout
    };
    assert_eq!(
        shown(&["--set", "base/word=two", "--set", "base/seeds=[7]"]),
        "file\ntwo\n7\n"
    );
    let with = |import: &str| {
        let text = MAIN.replace("{ base: sub/base.yaml }", import);
        space.write("p.yaml", &text);
    };
    with("{ base: { pipeline: sub/base.yaml, profiles: [loud], params: { seeds: [3] } } }");
    assert_eq!(shown(&[]), "file\nONE\n3\n");
}

#[test]
fn what_is_wrong_with_an_import_is_shown_where_it_is() {
    let space = space();
    let check = |import: &str| {
        space.write("p.yaml", &MAIN.replace("{ base: sub/base.yaml }", import));
        let outcome = space.flowgraph(&["check", "p.yaml", "--json"]);
        assert_eq!(outcome.code, 3, "{}", outcome.stdout);
        outcome.stdout
    };
    let has = |text: &str, part: &str| assert!(text.contains(part), "{part}: {text}");
    has(&check("{ base: nowhere.yaml }"), "cannot read the pipeline");
    has(
        &check("{ base: { profiles: [loud] } }"),
        "an import needs its `pipeline`",
    );
    has(
        &check("{ base: { pipeline: sub/base.yaml, stages: 1 } }"),
        "unknown key `stages` of an import",
    );
    has(
        &check("{ base: { pipeline: sub/base.yaml, profiles: [no] } }"),
        "unknown profile `no`",
    );
    has(&check("{ Base: sub/base.yaml }"), "cannot name an import");
    has(&check("{ base: p.yaml }"), "imports itself");
    has(&check("{ other: sub/base.yaml }"), "no stage `base/each`");

    space.write(
        "sub/base.yaml",
        &BASE.replace("inputs: { x:", "inputs: { y: nobody, x:"),
    );
    let broken = check("{ base: sub/base.yaml }");
    has(&broken, "base.yaml");
    has(&broken, "no stage `nobody`");
}

/// Files that each import the next one twice: `a` and `b`.
fn diamond(levels: usize, stages: &str) -> Space {
    let space = Space::new(
        "name: n\nimport: { a: i1.yaml, b: i1.yaml }\nstages: { top: { kind: command, inputs: { x: a/s }, params: { run: \"cat $x > o\", outputs: { o: o } } } }\n",
    );
    for level in 1..levels {
        let next = level + 1;
        space.write(
            &format!("i{level}.yaml"),
            &format!("name: n\nimport: {{ a: i{next}.yaml, b: i{next}.yaml }}\nstages:\n{stages}"),
        );
    }
    space.write(
        &format!("i{levels}.yaml"),
        "name: n\nparams: { word: w }\nstages:\n  s: { kind: command, params: { run: \"echo ${word} > o\", outputs: { o: o } } }\n  t: { kind: command, params: { run: \"echo t > o\", outputs: { o: o } } }\n",
    );
    space
}

const COPIES: &str = r#"
  s: { kind: command, inputs: { x: a/s }, params: { run: "cat $x > o", outputs: { o: o } } }
  t: { kind: command, inputs: { x: b/t }, params: { run: "cat $x > o", outputs: { o: o } } }
"#;

#[test]
fn only_what_is_needed_of_files_that_import_each_other_again_and_again_is_brought() {
    let space = diamond(40, COPIES);
    let begin = std::time::Instant::now();
    let plan = space.plan(&[]);
    assert!(begin.elapsed().as_secs() < 5, "{:?}", begin.elapsed());
    assert_eq!(plan.len(), 41);
    let deepest = format!("{}s", "a/".repeat(40));
    assert_eq!(plan[0].name, deepest, "what is imported comes first");
    let word = format!("{}word=other", "a/".repeat(40));
    assert_eq!(space.run(&["--set", &word]).code, 0);
    assert_eq!(
        space
            .flowgraph(&["show", "p.yaml", "top", "--set", &word])
            .stdout,
        "other\n"
    );
    // The same stages under another way to them.
    assert_eq!(
        space
            .flowgraph(&[
                "plan",
                "p.yaml",
                "--set",
                "stages.top.inputs.x=b/s",
                "--set",
                &word.replacen('a', "b", 1)
            ])
            .code,
        0
    );
}

#[test]
fn files_that_need_all_copies_of_each_other_are_an_error_that_names_them() {
    let both = r#"
  s: { kind: command, inputs: { x: a/s, y: b/s }, params: { run: "cat $x $y > o", outputs: { o: o } } }
"#;
    let space = diamond(30, both);
    let begin = std::time::Instant::now();
    let outcome = space.flowgraph(&["check", "p.yaml", "--json"]);
    assert!(begin.elapsed().as_secs() < 30, "{:?}", begin.elapsed());
    assert_eq!(outcome.code, 3);
    for part in [
        "imports bring more than 20000 stages",
        "i30.yaml",
        "import it once",
    ] {
        assert!(outcome.stdout.contains(part), "{part}: {}", outcome.stdout);
    }
    // What fits is no error.
    assert_eq!(diamond(8, both).flowgraph(&["check", "p.yaml"]).code, 0);
}

#[test]
fn what_overrides_name_of_an_import_of_an_import_is_reached() {
    let space = diamond(2, COPIES);
    space.write(
        "p.yaml",
        "name: n\nimport: { a: { pipeline: i1.yaml, params: { a/word: given } } }\nprofiles: { p: { params: { a/a/word: patched }, stages: { a/a/t: null } } }\nstages: { top: { kind: command, inputs: { x: [a/s, a/a/s] }, params: { run: \"cat $x > o\", outputs: { o: o } } } }\n",
    );
    let shown = |args: &[&str]| {
        let run = space.run(args);
        assert_eq!(run.code, 0, "{:?}: {}", run.events, run.stderr);
        let show = [&["show", "p.yaml", "a/s"], args].concat();
        space.flowgraph(&show).stdout
    };
    assert_eq!(shown(&[]), "given\n");
    assert_eq!(shown(&["--profile", "p"]), "patched\n");
    assert_eq!(shown(&["--profile", "p", "--set", "a/a/word=set"]), "set\n");
    assert_eq!(
        shown(&["--set", "stages.a/a/s.params.run=echo stage > o"]),
        "stage\n"
    );
    // A stage that was removed is not brought back.
    let set = "stages.top.inputs.x=a/a/t";
    assert_eq!(space.flowgraph(&["plan", "p.yaml", "--set", set]).code, 0);
    let removed = space.flowgraph(&["plan", "p.yaml", "--profile", "p", "--set", set]);
    assert!(
        removed.stderr.contains("no stage `a/a/t`"),
        "{}",
        removed.stderr
    );
}

#[test]
fn mistakes_about_an_import_have_hints() {
    let space = space();
    let check = |text: &str| {
        space.write("p.yaml", text);
        let outcome = space.flowgraph(&["check", "p.yaml", "--json"]);
        assert_eq!(outcome.code, 3, "{}", outcome.stdout);
        outcome.stdout
    };
    let has = |text: &str, part: &str| assert!(text.contains(part), "{part}: {text}");
    has(
        &check(&MAIN.replace("base/each[*]", "each[*]")),
        "did you mean `base/each`, of an imported file?",
    );
    has(
        &check(&MAIN.replace("base/each[*]", "base/eech[*]")),
        "did you mean `base/each`?",
    );
    has(
        &check(&MAIN.replace("base/each[*]", "bse/each[*]")),
        "did you mean `base/each`?",
    );
    let given = "{ base: { pipeline: sub/base.yaml, params: { wrod: two } } }";
    let said = check(&MAIN.replace("{ base: sub/base.yaml }", given));
    has(&said, "base.yaml uses a param `wrod`");
    has(&said, "did you mean `word`?");
    has(&said, "\"line\":3");
}

#[test]
fn a_byte_order_mark_before_a_file_is_no_part_of_it() {
    let space = space();
    space.write("p.yaml", &format!("\u{feff}{MAIN}"));
    space.write("sub/base.yaml", &format!("\u{feff}{}", BASE.trim_start()));
    let outcome = space.flowgraph(&["check", "p.yaml"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    // Places are those that an editor shows.
    space.write("p.yaml", "\u{feff}name: n\nstage: {}\nstages: {}\n");
    let outcome = space.flowgraph(&["check", "p.yaml", "--json"]);
    assert!(
        outcome.stdout.contains("\"column\":1,"),
        "{}",
        outcome.stdout
    );
    assert!(outcome.stdout.contains("\"line\":2,"), "{}", outcome.stdout);
    std::fs::write(space.path("p.yaml"), b"\xff\xfen\0a\0m\0e\0").unwrap();
    let outcome = space.flowgraph(&["check", "p.yaml"]);
    assert!(
        outcome.stderr.contains("is UTF-16: save it as UTF-8"),
        "{}",
        outcome.stderr
    );
}
