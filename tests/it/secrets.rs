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

/// Completions that a reward program with a secret scores.
const REWARDED: &str = r#"
name: n
stages:
  t: { kind: generate_tree, params: { symbols: 2, horizon: 2, prompts: 2, spread: 1.5, hidden_size: 16, num_layers: 1, seed: 1 } }
  r: { kind: reward_command, params: { run: "RUN", secret_env: [TOKEN], batch_size: 1000 } }
  a: { kind: score, inputs: { completions: t.completions, reward: r } }
"#;

/// Gives each completion 1 if the secret is known, and shows it.
const KNOWING: &str = r#"set -x; : $TOKEN; set +x; test $(printf %s $TOKEN | wc -c) = 18; while read -r line; do python3 -c 'import json,sys; print(json.dumps(dict(rewards=[1]*len(json.loads(sys.argv[1])[\"completions\"]))))' \"$line\"; done"#;

#[test]
fn a_reward_program_is_given_a_secret_that_is_written_nowhere() {
    let space = Space::new(&REWARDED.replace("RUN", KNOWING));
    let output = run(&space, &["--only", "a"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(leaks(&space), [""; 0]);
    let text = fs::read_to_string(log(&space)).unwrap();
    assert!(text.contains("+ : ***\n"), "{text}");
    // Its value does not count: nothing runs again.
    let mut program = space.program(&["run", "p.yaml", "--only", "a", "--json"]);
    let output = program.env("TOKEN", "another").output().unwrap();
    assert_eq!(
        space.report(&output).outcomes(),
        "a cached, r cached, t cached"
    );
}

#[test]
fn a_reward_program_whose_secret_is_missing_or_told_says_so() {
    let space = Space::new(&REWARDED.replace("RUN", "read -r line; echo \\\"$TOKEN\\\""));
    let report = space.run(&["--only", "a"]);
    let failed = report
        .events
        .iter()
        .find(|event| event["event"] == "stage_failed")
        .unwrap();
    assert_eq!(failed["stage"], "a");
    assert_eq!(
        failed["message"],
        "the environment variable `TOKEN`, which `secret_env` names, is not set"
    );
    let output = run(&space, &["--only", "a"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("answered \"***") && !said.contains(SECRET),
        "{said}"
    );
    assert_eq!(leaks(&space), [""; 0]);
}

#[test]
fn a_secret_is_masked_however_a_reward_program_spells_it() {
    let secret = "k\"e\\y\u{7}'ä, forty-two";
    let python = r"import json,os,sys; t=os.environ['TOKEN']; SAY";
    for say in [
        "print(t)",
        "print(json.dumps({t: 1}))",
        "print(json.dumps({'rewards': [t]}, ensure_ascii=False))",
        "print(json.dumps('x' * 120 + t + 'y' * 500))",
        "sys.stderr.write(repr(t) + json.dumps([t]) + '\\\\n'); sys.exit(1)",
        "sys.stderr.write('x' * (2 ** 20 - 8) + t + '\\\\n'); sys.exit(1)",
    ] {
        let code = python.replace("SAY", say);
        let run = format!("read -r line; python3 -c \\\"{code}\\\"");
        let space = Space::new(&REWARDED.replace("RUN", &run));
        let mut program = space.program(&["run", "p.yaml", "--only", "a"]);
        let output = program.env("TOKEN", secret).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
        for file in space.files(".flowgraph/runs") {
            said.push_str(&String::from_utf8_lossy(&fs::read(file).unwrap()));
        }
        assert!(said.contains("***"), "{say}: {said}");
        for part in ["k\"e", "k\\\"e", "forty", "u00e4, "] {
            let shown = said.lines().find(|line| line.contains(part));
            assert_eq!(shown, None, "{say}: {part}");
        }
    }
}
