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
