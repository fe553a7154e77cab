//! Limits of the operating system are named where they are met.

use std::process::Command;

use crate::space::Space;

const PIPELINE: &str = r#"
name: n
stages:
  a: { kind: command, params: { run: "head -c 3000000 /dev/zero > o", outputs: { o: o } } }
"#;

/// Runs the pipeline after a shell did `before`.
fn run_after(space: &Space, before: &str, words: &[&str]) -> (i32, String) {
    let script = format!("{before}; exec \"$@\"");
    let starter = [words, &["/bin/bash", "-c", &script, "sh"]].concat();
    let mut command = space.under(&starter, &["run", "p.yaml", "--quiet"]);
    let outcome = space.outcome(command.output().unwrap());
    (outcome.code, outcome.stderr)
}

#[test]
fn a_file_larger_than_may_be_is_explained() {
    let space = Space::new(PIPELINE);
    let (code, said) = run_after(&space, "ulimit -f 1000", &["env"]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("the limit on bytes of a file is 1024000 (`ulimit -f`)"),
        "{said}"
    );
}

#[test]
fn a_process_that_cannot_be_had_is_explained() {
    let space = Space::new(PIPELINE);
    let all = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    std::fs::set_permissions(space.path(""), all).unwrap();
    // The limit counts for users other than root.
    let nobody = [
        "setpriv",
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
    ];
    let can = Command::new(nobody[0])
        .args(&nobody[1..])
        .arg("true")
        .status();
    if !can.is_ok_and(|status| status.success()) {
        eprintln!("skipped: only root can become another user");
        return;
    }
    for limit in 1..8 {
        let (code, said) = run_after(&space, &format!("ulimit -u {limit}"), &nobody);
        assert!(!said.contains("panicked"), "{limit}: {said}");
        // The shells before and in the command say it in their own words.
        let in_words = ["(`ulimit -u`)", "annot fork", "retry: Resource"];
        let shell = code == 126 || in_words.iter().any(|words| said.contains(words));
        assert!(code == 0 || shell, "{limit}: {code}: {said}");
    }
}
