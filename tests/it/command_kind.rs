//! What a command sees, and what it does not.

use crate::space::Space;

/// Runs one command that writes `out` with the given environment, and returns what it wrote.
fn output_of(yaml: &str, environment: &[(&str, &str)]) -> String {
    let space = Space::new(&format!(
        "name: one\nparams: {{ word: value }}\nstages:\n  seed: {{ kind: command, params: {{ run: 'echo 1 > one; mkdir two; echo a > two/a; echo b > two/b', outputs: {{ one: one, two: two }} }} }}\n  a: {{ kind: command, {yaml} }}\n"
    ));
    space.write("code/lib.sh", "greeting=hello\n");
    space.write("main.sh", ". code/lib.sh\necho $greeting\n");
    let mut program = space.program(&["run", "p.yaml", "--json"]);
    program.envs(environment.iter().copied());
    let report = space.report(&program.output().unwrap());
    assert_eq!(report.code, 0, "{:#?}\n{}", report.events, report.stderr);
    std::fs::read_to_string(space.object("a")).unwrap()
}

#[test]
fn the_environment_is_cleared_but_for_what_is_listed() {
    let found = output_of(
        "inputs: { one: seed, both: [seed, seed.two] }, params: { run: 'env | cut -d= -f1 | sort > out', outputs: { o: out }, env: [STYLE, UNSET], secret_env: [TOKEN] }",
        &[
            ("STYLE", "x"),
            ("TOKEN", "y"),
            ("OTHER", "z"),
            ("LANG", "C"),
            ("LD_LIBRARY_PATH", "/nowhere"),
        ],
    );
    // The shell itself sets PWD.
    assert_eq!(
        found,
        "CUDA_VISIBLE_DEVICES\nHOME\nLANG\nPATH\nPWD\nSTYLE\nTOKEN\nboth\none\n"
    );
}

#[test]
fn ports_are_relative_paths_of_files_or_folders() {
    let found = output_of(
        "inputs: { one: seed, both: [seed.two, seed.one] }, params: { run: 'echo $one > out; echo $both >> out; cat $one >> out; for p in $both; do ls $p | sed s,.*/,, >> out; done', outputs: { o: out } }",
        &[],
    );
    assert_eq!(
        found,
        "../one.0/one\n../both.0 ../both.1/one\n1\na\nb\none\n"
    );
}

#[test]
fn the_shell_has_its_variables_and_flowgraph_its_own() {
    let found = output_of(
        r#"params: { run: 'x=shell; echo "$x ${word} $${x} $${x:-y} $$(( 1 + 1 ))" | sed "s/[0-9]*((/((/" > out', outputs: { o: out } }"#,
        &[],
    );
    assert_eq!(found, "shell value shell shell (( 1 + 1 ))\n");
}

#[test]
fn code_is_copied_under_its_relative_path_and_nothing_else_is_there() {
    let found = output_of(
        "params: { run: 'find . -type f | sort > /dev/null; sh main.sh > out; find . -type f | sort >> out', outputs: { o: out }, code: [main.sh, code/lib.sh] }",
        &[],
    );
    assert_eq!(found, "hello\n./code/lib.sh\n./main.sh\n./out\n");
}

#[test]
fn the_working_directory_is_new_for_every_try() {
    let space = Space::new(
        r#"
name: fresh
stages:
  a: { kind: command, params: { run: "test ! -e left; echo 1 > left; test -e {here}/go; echo 1 > out", outputs: { out: out } } }
"#,
    );
    assert_eq!(space.run(&[]).outcomes(), "a failed");
    space.write("go", "");
    assert_eq!(space.run(&[]).outcomes(), "a done");
}

#[test]
fn outputs_may_be_files_and_folders_and_inputs_cannot_be_reached_through_them() {
    let space = Space::new(
        r#"
name: outputs
stages:
  a: { kind: command, params: { run: "mkdir -p d/e; echo 1 > d/e/f; echo 2 > d/g; echo 3 > h; chmod 600 h", outputs: { folder: d, single: d2/../h } } }
"#,
    );
    let check = space.flowgraph(&["check", "p.yaml"]);
    assert_eq!(check.code, 3);
    assert!(
        check
            .stderr
            .contains("`d2/../h` leaves the working directory"),
        "{}",
        check.stderr
    );
    let report = space.run(&["--set", "stages.a.params.outputs.single=h"]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    let record = space.record("a");
    let files: Vec<&str> = record.outputs["folder"]
        .files
        .iter()
        .map(|file| file.path.as_str())
        .collect();
    assert_eq!(files, ["e/f", "g"]);
    assert_eq!(record.outputs["single"].files[0].path, "h");
    assert_eq!(record.outputs["single"].files[0].size, 2);
}

#[test]
fn links_out_of_the_store_are_no_outputs() {
    let space = Space::new(
        r#"
name: links
stages:
  seed: { kind: command, params: { run: "echo 1 > out", outputs: { out: out } } }
  inside: { kind: command, inputs: { x: seed }, params: { run: "mkdir d; ln -s $(readlink $x) d/shared; echo 2 > d/own", outputs: { out: d } } }
  outside: { kind: command, params: { run: "mkdir d; ln -s /etc/passwd d/link", outputs: { out: d } } }
"#,
    );
    let report = space.run(&[]);
    assert_eq!(report.outcomes(), "inside done, outside failed, seed done");
    assert_eq!(
        space.record("inside").outputs["out"].files[1].digest,
        space.record("seed").outputs["out"].files[0].digest
    );
}

#[test]
fn hard_links_to_inputs_stay_whole() {
    let space = Space::new(
        r#"
name: hard
stages:
  seed: { kind: command, params: { run: "echo 1 > out", outputs: { out: out } } }
  a: { kind: command, inputs: { x: seed }, params: { run: "ln -L $x out", outputs: { out: out } } }
"#,
    );
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    assert_eq!(space.run(&[]).outcomes(), "a cached, seed cached");
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
}
