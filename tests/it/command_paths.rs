//! What a command is given of the pipeline's files, and what is taken of those that it writes.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;

use crate::space::Space;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Runs one command and returns the message of its failure.
fn failure(space: &Space) -> String {
    let report = space.run(&[]);
    assert_eq!(report.code, 1, "{}", report.stderr);
    let mut failed = report.events.iter();
    let failed = failed.find(|event| event["event"] == "stage_failed");
    failed.unwrap()["message"].as_str().unwrap().to_owned()
}

fn shown(space: &Space, result: &str) -> String {
    let outcome = space.flowgraph(&["show", "p.yaml", result]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    outcome.stdout
}

#[test]
fn outputs_and_code_that_overlap_are_refused_with_their_place() {
    let check = |params: &str| {
        let space = Space::new(&format!(
            "name: n\nstages:\n  a:\n    kind: command\n    params:\n      run: echo\n{params}"
        ));
        let outcome = space.flowgraph(&["check", "p.yaml", "--json"]);
        assert_eq!(outcome.code, 3, "{params}: {}", outcome.stderr);
        let found: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
        let first = &found["diagnostics"][0];
        assert!(!first["hint"].is_null(), "{first}");
        format!("{}: {}", first["line"], first["message"].as_str().unwrap())
    };
    assert_eq!(
        check("      outputs:\n        a: d\n        b: ./d//f\n"),
        "9: stage `a`: output `b` (`d/f`) lies within output `a` (`d`)"
    );
    assert_eq!(
        check("      outputs:\n        x: d/\n        y: d\n"),
        "9: stage `a`: outputs `x` and `y` are the same path, `d`"
    );
    assert_eq!(
        check("      outputs: { x: d }\n      code: [d/f]\n"),
        "7: stage `a`: output `x` (`d`) would hold `d/f`, which is in `code`"
    );
    assert_eq!(
        check("      outputs: { x: o }\n      code: [src, ./src/a.py]\n"),
        "8: stage `a`: `src/a.py` and `src` are both in `code`"
    );
}

#[test]
fn other_spellings_of_a_path_are_the_same_path_and_the_same_key() {
    let pipeline = |z: &str, d: &str, b: &str, code: &str| {
        format!(
            "name: n\nstages:\n  a: {{ kind: command, params: {{ run: 'mkdir -p d a; cp f z; echo 2 > d/x; echo 3 > a/b', outputs: {{ z: {z}, d: {d}, b: {b} }}, code: [{code}] }} }}\n"
        )
    };
    let space = Space::new(&pipeline("./z", "d/", "a//b", "./f"));
    space.write("f", "1\n");
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{:#?}", report.events);
    assert_eq!(shown(&space, "a.b"), "3\n");
    assert_eq!(space.record("a").outputs["z"].files[0].path, "z");
    space.write("p.yaml", &pipeline("z", "d", "a/b", "f"));
    assert_eq!(space.run(&[]).outcomes(), "a cached");
}

#[test]
fn a_folder_of_code_is_copied_whole_and_hashed_whole() {
    let space = Space::new(
        r#"
name: n
stages:
  a: { kind: command, params: { run: "(cd src; find . | sort); sh src/run.sh > out", outputs: { o: out }, code: [src] } }
"#,
    );
    space.write("src/run.sh", ". src/lib/part.sh\n");
    space.write("src/lib/part.sh", "echo one\n");
    space.write("src/__pycache__/x", "");
    assert_eq!(space.flowgraph(&["check", "p.yaml"]).code, 0);
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{:#?}", report.events);
    assert_eq!(shown(&space, "a"), "one\n");
    let logs = space.files(".flowgraph/runs");
    let log = logs.iter().find(|file| file.ends_with("logs/a.log"));
    assert_eq!(
        fs::read_to_string(log.unwrap()).unwrap(),
        ".\n./lib\n./lib/part.sh\n./run.sh\n"
    );
    space.write("src/__pycache__/y", "");
    assert_eq!(space.run(&[]).outcomes(), "a cached");
    space.write("src/lib/part.sh", "echo two\n");
    assert_eq!(space.run(&[]).outcomes(), "a done");
    assert_eq!(shown(&space, "a"), "two\n");
    // A pipe in it would hold whoever opens it.
    rustix::fs::mkfifoat(rustix::fs::CWD, space.path("src/pipe"), 0o600.into()).unwrap();
    let message = failure(&space);
    assert!(
        message.ends_with("src/pipe is neither a file nor a folder"),
        "{message}"
    );
}

#[test]
fn executable_bits_of_code_count_and_those_of_outputs_reach_consumers() {
    let space = Space::new(
        r#"
name: n
stages:
  a: { kind: command, params: { run: "if test -x tool; then ./tool > out; else echo no > out; fi; stat -c %a tool >> out", outputs: { o: out }, code: [tool] } }
  make: { kind: command, params: { run: "mkdir d; printf '#!/bin/sh\\necho made\\n' > d/tool; cp d/tool d/text; chmod 711 d/tool", outputs: { o: d } } }
  one: { kind: command, params: { run: "printf '#!/bin/sh\\necho one\\n' > tool; chmod u+x tool", outputs: { o: tool } } }
  use: { kind: command, inputs: { tools: make, one: one }, params: { run: "$tools/tool > out; $one >> out; test ! -x $tools/text", outputs: { o: out } } }
"#,
    );
    space.write("tool", "#!/bin/sh\necho yes\n");
    set_mode(&space.path("tool"), 0o600);
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{:#?}", report.events);
    assert_eq!(shown(&space, "a"), "no\n644\n");
    assert_eq!(shown(&space, "use"), "made\none\n");
    // Other permissions are not seen, so that they do not count.
    set_mode(&space.path("tool"), 0o644);
    assert!(space.run(&[]).outcomes().starts_with("a cached"));
    set_mode(&space.path("tool"), 0o744);
    assert!(space.run(&[]).outcomes().starts_with("a done"));
    assert_eq!(shown(&space, "a"), "yes\n755\n");
    let exported = space.flowgraph(&["export", "p.yaml", "make", "e"]);
    assert_eq!(exported.code, 0, "{}", exported.stderr);
    let mode = |name: &str| fs::metadata(space.path(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("e/tool"), mode("e/text")), (0o755, 0o644));
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
}

#[test]
fn files_of_the_user_that_are_linked_as_outputs_stay_as_they_are() {
    let space = Space::new(
        r#"
name: n
stages:
  a: { kind: command, params: { run: "ln {here}/precious o; mkdir d; ln {here}/precious d/o; echo x >> d/p", outputs: { o: o, d: d } } }
"#,
    );
    space.write("precious", "mine\n");
    set_mode(&space.path("precious"), 0o664);
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1 << 30);
    let times = fs::FileTimes::new().set_modified(long_ago);
    let file = fs::File::options().write(true).open(space.path("precious"));
    file.unwrap().set_times(times).unwrap();
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{:#?}", report.events);
    let after = fs::metadata(space.path("precious")).unwrap();
    assert_eq!(
        (
            after.mode() & 0o7777,
            after.modified().unwrap(),
            after.nlink()
        ),
        (0o664, long_ago, 1)
    );
    // Nor does the result follow what the user makes of the file.
    space.write("precious", "else\n");
    assert_eq!(shown(&space, "a.o"), "mine\n");
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
}

#[test]
fn a_file_that_is_reached_through_a_link_is_not_taken_away() {
    let space = Space::new(
        r#"
name: n
stages:
  a: { kind: command, params: { run: "ln -s {here}/data e", outputs: { o: e/f } } }
"#,
    );
    space.write("data/f", "mine\n");
    assert_eq!(failure(&space), "output `e/f` is reached through a link");
    assert_eq!(space.read("data/f"), "mine\n");
}

#[test]
fn an_empty_folder_is_an_output_and_an_input() {
    let space = Space::new(
        r#"
name: n
stages:
  a: { kind: command, params: { run: "mkdir d", outputs: { o: d } } }
  b: { kind: command, inputs: { x: a }, params: { run: "test -d $x; ls $x | wc -l > out", outputs: { o: out } } }
"#,
    );
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{:#?}", report.events);
    assert_eq!(shown(&space, "b"), "0\n");
    assert_eq!(space.run(&[]).outcomes(), "a cached, b cached");
    assert_eq!(space.flowgraph(&["export", "p.yaml", "a", "e"]).code, 0);
    assert!(space.path("e").is_dir());
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
}

#[test]
fn code_that_changes_after_its_stage_was_decided_about_gives_no_result() {
    let space = Space::new(
        r#"
name: n
stages:
  first: { kind: command, params: { run: "echo 1 > {here}/started; while test ! -e {here}/go; do sleep 0.01; done; echo > out", outputs: { o: out } } }
  then: { kind: command, params: { run: "cat t.sh > out", outputs: { o: out }, code: [t.sh] } }
"#,
    );
    space.write("t.sh", "A\n");
    let mut program = space.program(&["run", "p.yaml", "--json", "--jobs", "1"]);
    let child = program.stdout(Stdio::piped()).spawn().unwrap();
    space.wait_for("started");
    space.write("t.sh", "B\n");
    space.write("go", "");
    let report = space.report(&child.wait_with_output().unwrap());
    assert_eq!(report.outcomes(), "first done, then failed");
    let mut failed = report.events.iter();
    let failed = failed.find(|event| event["event"] == "stage_failed");
    assert_eq!(
        failed.unwrap()["message"],
        "source `t.sh` changed since the stage was planned"
    );
    assert_eq!(space.run(&[]).outcomes(), "first cached, then done");
    assert_eq!(shown(&space, "then"), "B\n");
}
