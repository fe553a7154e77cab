//! What a command can see of the machine and of whoever started it: what counts, or nothing.

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;

use crate::space::{Report, Space};

/// Runs `a` with further environment variables, and what it wrote.
fn run(space: &Space, environment: &[(&str, &str)]) -> (Report, String) {
    let mut program = space.program(&["run", "p.yaml", "--json"]);
    program.envs(environment.iter().copied());
    let report = space.report(&program.output().unwrap());
    let shown = space
        .program(&["show", "p.yaml", "a"])
        .envs(environment.iter().copied())
        .output();
    (report, String::from_utf8(shown.unwrap().stdout).unwrap())
}

fn one(params: &str) -> Space {
    Space::new(&format!(
        "name: n\nstages:\n  a: {{ kind: command, params: {{ outputs: {{ o: out }}, {params} }} }}\n"
    ))
}

#[test]
fn language_and_home_are_the_stages_own_unless_they_are_named() {
    let space = one(
        r#"run: "echo $LANG > out; ls -A $HOME | wc -l >> out; cd; test $PWD = $HOME; touch $HOME/x""#,
    );
    let (report, seen) = run(&space, &[("LANG", "C"), ("HOME", "/nowhere")]);
    assert_eq!(report.code, 0, "{:#?}", report.events);
    assert_eq!(seen, "C.UTF-8\n0\n");
    let (report, _) = run(&space, &[("LANG", "de_DE.UTF-8"), ("HOME", "/")]);
    assert_eq!(report.outcomes(), "a cached");

    let space = one(r#"run: "echo $LANG $HOME > out", env: [LANG, HOME]"#);
    let (_, seen) = run(&space, &[("LANG", "C"), ("HOME", "/nowhere")]);
    assert_eq!(seen, "C /nowhere\n");
    let (report, seen) = run(&space, &[("LANG", "de_DE.UTF-8"), ("HOME", "/nowhere")]);
    assert_eq!(
        (report.outcomes().as_str(), seen.as_str()),
        ("a done", "de_DE.UTF-8 /nowhere\n")
    );
}

#[test]
fn the_value_of_path_counts_where_it_is_named() {
    let path = std::env::var("PATH").unwrap();
    let other = format!("{path}:/nowhere");
    for (params, expected) in [
        (r#"run: "echo 1 > out""#, "a cached"),
        (r#"run: "echo 1 > out", env: [PATH]"#, "a done"),
    ] {
        let space = one(params);
        run(&space, &[("PATH", &path)]);
        let (report, _) = run(&space, &[("PATH", &other)]);
        assert_eq!(report.outcomes(), expected, "{params}");
    }
}

#[test]
fn the_umask_of_whoever_starts_the_program_is_not_seen() {
    let space = one(r#"run: "umask > out; touch f; stat -c %a f >> out""#);
    let shell = ["/bin/sh", "-c", "umask 077; exec \"$@\"", "sh"];
    let mut program = space.under(&shell, &["run", "p.yaml", "--json"]);
    let report = space.report(&program.output().unwrap());
    assert_eq!(report.code, 0, "{}", report.stderr);
    let shown = space.flowgraph(&["show", "p.yaml", "a"]);
    assert_eq!(shown.stdout, "0022\n644\n");
}

#[test]
fn open_files_and_the_terminal_stay_with_whoever_starts_the_program() {
    let space = one(
        r#"run: "ls /proc/self/fd | tr '\\n' ' ' > out; if (: < /dev/tty) 2> /dev/null; then echo terminal >> out; fi""#,
    );
    let open = std::fs::File::open(space.path("p.yaml")).unwrap();
    let mut program = space.program(&["run", "p.yaml", "--json"]);
    let file = open.as_raw_fd();
    // Passed on as a shell does with `9< p.yaml`.
    #[expect(unsafe_code, reason = "one call that copies a file descriptor")]
    unsafe {
        program.pre_exec(move || {
            (libc::dup2(file, 9) == 9)
                .then_some(())
                .ok_or_else(std::io::Error::last_os_error)
        });
    }
    let report = space.report(&program.output().unwrap());
    assert_eq!(report.code, 0, "{}", report.stderr);
    // `ls` itself has the folder open.
    assert_eq!(space.flowgraph(&["show", "p.yaml", "a"]).stdout, "0 1 2 3 ");
}

#[test]
fn names_of_secrets_count_and_must_be_set() {
    let with = r#"run: "echo ${TOKEN:-without} | cut -c 1-4 > out", secret_env: [TOKEN]"#
        .replace("${", "$${");
    let without = with.replace(", secret_env: [TOKEN]", "");
    let space = one(&without);
    let (_, seen) = run(&space, &[("TOKEN", "abcdefgh")]);
    assert_eq!(seen, "with\n");
    space.write("p.yaml", &one(&with).read("p.yaml"));
    let (report, _) = run(&space, &[]);
    let failed = report
        .events
        .iter()
        .find(|event| event["event"] == "stage_failed")
        .unwrap();
    assert_eq!(
        failed["message"],
        "the environment variable `TOKEN`, which `secret_env` names, is not set"
    );
    let (report, seen) = run(&space, &[("TOKEN", "abcdefgh")]);
    assert_eq!(
        (report.outcomes().as_str(), seen.as_str()),
        ("a done", "abcd\n")
    );
    // Not its value; and a result needs no secret to be used.
    let (report, _) = run(&space, &[("TOKEN", "ijklmnop")]);
    assert_eq!(report.outcomes(), "a cached");
    let (report, _) = run(&space, &[]);
    assert_eq!(report.outcomes(), "a cached");
    // A result without secrets has the key that it had before there were any.
    space.write("p.yaml", &one(&without).read("p.yaml"));
    let (report, _) = run(&space, &[]);
    assert_eq!(report.outcomes(), "a cached");
}

#[test]
fn names_that_are_not_a_commands_own_are_refused() {
    for (params, expected) in [
        ("env: [LD_PRELOAD]", "`LD_PRELOAD` cannot be passed on"),
        (
            "env: [CUDA_VISIBLE_DEVICES]",
            "`CUDA_VISIBLE_DEVICES` cannot be passed on",
        ),
        ("secret_env: [HOME]", "`HOME` is no secret"),
        ("env: [A], secret_env: [A]", "`A` is named twice"),
    ] {
        let outcome = one(&format!("run: echo, {params}")).flowgraph(&["check", "p.yaml"]);
        assert_eq!(outcome.code, 3);
        assert!(outcome.stderr.contains(expected), "{}", outcome.stderr);
    }
}
