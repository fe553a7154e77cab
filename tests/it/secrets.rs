//! Values of `secret_env` are written nowhere.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use crate::space::Space;

const SECRET: &str = "sup3r-s3cret/value";

fn run(space: &Space, args: &[&str]) -> Output {
    let mut program = space.program(&[&["run", "p.yaml"], args].concat());
    program.env("TOKEN", SECRET).output().unwrap()
}

/// The files of the store that hold the secret.
fn leaks(space: &Space) -> Vec<String> {
    let mut files = space.files(".flowgraph");
    files.retain(|file| {
        let bytes = fs::read(file).unwrap();
        bytes
            .windows(SECRET.len())
            .any(|window| window == SECRET.as_bytes())
    });
    files
        .iter()
        .map(|file| file.display().to_string())
        .collect()
}

fn log(space: &Space) -> std::path::PathBuf {
    let mut files = space.files(".flowgraph/runs").into_iter();
    files.find(|file| file.ends_with("logs/a.log")).unwrap()
}

#[test]
fn a_secret_reaches_neither_log_nor_message_nor_terminal() {
    let space = Space::new(
        r#"
name: n
stages:
  a: { kind: command, params: { run: "set -x; : $TOKEN; set +x; printf '%s' $TOKEN | cut -c 1-9 | tr -d '\\n' >&2; sleep 0.1; printf '%s' $TOKEN | cut -c 10- >&2; exit 1", outputs: { o: o }, secret_env: [TOKEN] } }
"#,
    );
    let output = run(&space, &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains(SECRET), "{said}");
    assert_eq!(leaks(&space), [""; 0]);
    let text = fs::read_to_string(log(&space)).unwrap();
    // Shown by the shell; and written in two pieces.
    assert!(
        text.contains("+ : ***\n") && text.lines().any(|line| line == "***"),
        "{text}"
    );
    let mode = fs::metadata(log(&space)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn an_output_that_holds_a_secret_is_kept_with_a_warning() {
    let space = Space::new(
        r#"
name: n
stages:
  a: { kind: command, params: { run: "mkdir d; echo key=$TOKEN > d/config; echo 1 > d/other; echo 2 > p", outputs: { o: d, p: p }, secret_env: [TOKEN] } }
"#,
    );
    let output = run(&space, &["--quiet"]);
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("warning: output `o/config` holds the value of `TOKEN`"),
        "{said}"
    );
    assert_eq!(said.matches("warning").count(), 1, "{said}");
}

#[test]
fn a_value_too_short_to_be_masked_is_told() {
    let space = Space::new(
        r#"
name: n
stages:
  a: { kind: command, params: { run: "echo 1 > o", outputs: { o: o }, secret_env: [TOKEN] } }
"#,
    );
    let mut program = space.program(&["run", "p.yaml", "--quiet"]);
    let output = program.env("TOKEN", "abc").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("warning: the value of `TOKEN` has fewer than 4 bytes"),
        "{said}"
    );
}

#[test]
fn the_log_of_a_stage_with_secrets_is_whole_when_it_fails_or_is_ended() {
    for (timeout, end) in [("", "exit 1"), ("timeout: 1,", "sleep 60")] {
        let space = Space::new(&format!(
            "name: n\nstages:\n  a: {{ kind: command, {timeout} params: {{ run: 'seq 1 20000; printf \"%s\" \"the very end sup3r-s\"; {end}', outputs: {{ o: o }}, secret_env: [TOKEN] }} }}\n"
        ));
        run(&space, &[]);
        let text = fs::read_to_string(log(&space)).unwrap();
        assert!(
            text.ends_with("20000\nthe very end sup3r-s"),
            "{}",
            &text[text.len() - 50..]
        );
    }
}

#[test]
fn what_cannot_be_stored_is_refused_before_it_is_searched() {
    for (made, what) in [
        ("mkfifo o/x", "x is neither a file nor a folder"),
        (
            "ln -s /dev/zero o/x",
            "x is a link that leads outside the store",
        ),
    ] {
        let space = Space::new(&format!(
            "name: n\nstages:\n  a: {{ kind: command, params: {{ run: 'mkdir o; {made}', outputs: {{ o: o }}, secret_env: [TOKEN] }} }}\n",
        ));
        let output = run(&space, &[]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("output `o`: {what}")), "{said}");
    }
}

#[test]
fn a_process_that_is_left_is_not_named_where_its_name_may_be_a_secret() {
    let space = Space::new(
        "name: n\nstages:\n  a: { kind: command, params: { run: 'cp /bin/sleep ./$TOKEN; ./$TOKEN 60 & echo 1 > o', outputs: { o: o }, secret_env: [TOKEN] } }\n",
    );
    let secret = "a-secret-longer-than-the-kernel-keeps";
    let mut program = space.program(&["run", "p.yaml", "--json"]);
    let output = program.env("TOKEN", secret).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        said.contains("the command left processes running, which were ended: 1\""),
        "{said}"
    );
    assert!(!said.contains(&secret[..15]), "{said}");
}
