//! What reaches a terminal cannot act on it; what goes elsewhere keeps its bytes.

use std::fs::File;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::process::Stdio;

use serde_json::Value as Json;

use crate::space::Space;

/// Runs the program with standard output and error on a terminal, and returns what reaches that.
fn on_terminal(space: &Space, args: &[&str]) -> String {
    on_terminal_of(space, args, None)
}

/// The same on a terminal that is so many characters wide; else it does not say.
fn on_terminal_of(space: &Space, args: &[&str], columns: Option<u16>) -> String {
    let (mut master, mut slave) = (0, 0);
    let none = std::ptr::null_mut::<libc::c_char>();
    let size = columns.map(|columns| libc::winsize {
        ws_row: 40,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    });
    let size = size
        .as_ref()
        .map_or(std::ptr::null(), std::ptr::from_ref::<libc::winsize>);
    #[expect(unsafe_code, reason = "there is no safe way to open a terminal")]
    let (master, slave) = unsafe {
        assert_eq!(
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                none,
                std::ptr::null(),
                size
            ),
            0
        );
        (OwnedFd::from_raw_fd(master), OwnedFd::from_raw_fd(slave))
    };
    let mut child = space
        .program(args)
        .env_remove("NO_COLOR")
        .env("TERM", "xterm-256color")
        .stdout(Stdio::from(slave.try_clone().unwrap()))
        .stderr(Stdio::from(slave))
        .spawn()
        .unwrap();
    let mut shown = Vec::new();
    // Ends with an error when nobody has the other end open any more.
    let _ = File::from(master).read_to_end(&mut shown);
    child.wait().unwrap();
    String::from_utf8(shown).unwrap()
}

/// Takes out colours, the only sequences that are ours.
fn without_colours(shown: &str) -> String {
    let mut pieces = shown.split("\x1b[");
    let mut plain = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = piece.find(|c: char| !c.is_ascii_digit() && c != ';');
        match end.map(|end| piece.split_at(end)) {
            Some((_, rest)) if rest.starts_with('m') => plain.push_str(&rest[1..]),
            _ => panic!("`{}` acts on the terminal: {shown:?}", piece.escape_debug()),
        }
    }
    let acts = |c: char| c.is_control() && !matches!(c, '\n' | '\r' | '\t');
    assert!(!plain.contains(acts), "{plain:?}");
    assert!(!plain.contains(['\u{202e}', '\u{feff}']), "{plain:?}");
    plain
}

fn command(run: &str) -> String {
    let run = serde_json::to_string(run).unwrap();
    format!(
        "name: n\nstages:\n  s: {{ kind: command, params: {{ run: {run}, outputs: {{ o: o.txt }} }} }}\n"
    )
}

#[test]
fn names_of_a_data_file_cannot_act_on_a_terminal() {
    let space = Space::new(
        "name: n\nstages:\n  s: { kind: load_preferences, params: { source: d.csv, layout: stack_exchange_paired } }\n",
    );
    space.write(
        "d.csv",
        "a\x1b]52;c;cm0gLXJm\x07\u{9b}31m\u{202e}b,c\n1,2\n",
    );
    let shown = without_colours(&on_terminal(&space, &["run", "p.yaml", "-q"]));
    assert!(
        shown.contains("a\\u{1b}]52;c;cm0gLXJm\\u{7}\\u{9b}31m\\u{202e}b"),
        "{shown}"
    );
}

#[test]
fn the_end_of_a_log_cannot_act_on_a_terminal() {
    let space = Space::new(&command(
        "printf '1%%\\r2%%\\r3%% \\033[2Jgone\\n' >&2; exit 1",
    ));
    let shown = without_colours(&on_terminal(&space, &["run", "p.yaml", "-q"]));
    assert!(shown.contains("| 3% \\u{1b}[2Jgone"), "{shown}");
    assert!(
        !shown.contains("1%"),
        "what was written over is not shown: {shown}"
    );
}

#[test]
fn axis_values_and_params_cannot_act_on_a_terminal() {
    let text = "name: n\nstages:\n  s:\n    matrix: { x: [\"a\\e]0;title\\a\"] }\n    kind: command\n    params: { run: \"echo '${matrix.x}' > o.txt\", outputs: { o: o.txt } }\n";
    let space = Space::new(text);
    let name = "s[x=a\\u{1b}]0;title\\u{7}]";
    let shown = without_colours(&on_terminal(&space, &["plan", "p.yaml"]));
    assert!(shown.contains(name), "{shown}");
    let shown = without_colours(&on_terminal(&space, &["run", "p.yaml", "-q"]));
    assert!(!shown.contains("FAILED"), "{shown}");
    space.write("p.yaml", &text.replace("echo", "echo  "));
    for args in [
        &["plan", "p.yaml"][..],
        &["why", "p.yaml", "s"],
        &["graph", "p.yaml", "--expand"],
    ] {
        let shown = without_colours(&on_terminal(&space, args));
        assert!(shown.contains("title\\u{7}"), "{args:?}: {shown}");
    }
}

#[test]
fn snippets_file_names_and_arguments_cannot_act_on_a_terminal() {
    let space = Space::new("");
    let file = "p\x1b]0;title\x07.yaml";
    space.write(
        file,
        "name: n\nstages:\n  s: { kind: comand, description: \"\u{202e}x\" }\n",
    );
    let shown = without_colours(&on_terminal(&space, &["check", file]));
    assert!(shown.contains("p\\u{1b}]0;title\\u{7}.yaml"), "{shown}");
    assert!(shown.contains("description: \"\\u{202e}x\""), "{shown}");
    assert!(shown.contains("unknown stage kind `comand`"), "{shown}");
    let shown = without_colours(&on_terminal(&space, &["check", "p.yaml", "--\x1b[2J"]));
    assert!(
        shown.contains("unexpected argument '--\\u{1b}[2J'"),
        "{shown}"
    );
}

#[test]
fn tables_on_a_terminal_keep_their_columns() {
    let space = Space::new(
        "name: n\nstages:\n  s: { kind: command, params: { run: \"true\", outputs: { o: o.txt } } }\n",
    );
    // A run's settings are cells of a table.
    let set = "stages.s.params.run=\"printf \\e[31m > o.txt\"";
    space.flowgraph(&["run", "p.yaml", "-q", "--set", set]);
    space.flowgraph(&["run", "p.yaml", "-q"]);
    let shown = without_colours(&on_terminal(&space, &["runs"]));
    assert!(shown.contains("--set stages.s.params.run"), "{shown}");
}

#[test]
fn a_text_is_made_visible_on_a_terminal_and_whole_in_a_pipe() {
    let space = Space::new(&command(
        "printf 'a\\033[31mb\\n\\tc\\177\\377 no line end' > o.txt",
    ));
    assert_eq!(space.run(&[]).code, 0);
    let piped = space.program(&["show", "p.yaml", "s"]).output().unwrap();
    assert_eq!(piped.stdout, b"a\x1b[31mb\n\tc\x7f\xff no line end");
    let shown = on_terminal(&space, &["show", "p.yaml", "s"]);
    assert_eq!(shown, "a\\u{1b}[31mb\r\n\tc\\u{7f}\u{fffd} no line end\r\n");
}

#[test]
fn json_is_the_same_value_everywhere_and_does_not_act_on_a_terminal() {
    let space = Space::new(
        "name: n\nstages:\n  s: { kind: command, params: { run: \"echo \\x7f\\x9b\\u202e > o.txt\", outputs: { o: o.txt } } }\n",
    );
    let args = ["why", "p.yaml", "s", "--json"];
    let piped = space.program(&args).output().unwrap().stdout;
    let piped = String::from_utf8(piped).unwrap();
    assert!(piped.contains("echo \u{7f}\u{9b}\u{202e} >"), "{piped:?}");
    let shown = without_colours(&on_terminal(&space, &args));
    assert!(shown.contains("echo \\u007f\\u009b\\u202e >"), "{shown}");
    let value = |text: &str| serde_json::from_str::<Json>(text).unwrap();
    assert_eq!(value(&shown), value(&piped));
}

#[test]
fn columns_that_a_terminal_has_no_room_for_are_named_below() {
    let space = Space::new(
        r"name: wide
stages:
  scores:
    kind: command
    params:
      run: 'cp scores.csv t'
      code: [scores.csv]
      outputs: { out: { path: t, kind: table } }
",
    );
    space.write(
        "scores.csv",
        "policy,Mean,Remarks,Rank\nppo,0.5,a remark that is long,1\n",
    );
    assert_eq!(space.run(&[]).code, 0);
    let shown = |args: &[&str], columns: Option<u16>| {
        without_colours(&on_terminal_of(
            &space,
            &[&["show", "p.yaml", "scores"], args].concat(),
            columns,
        ))
    };
    let narrow = shown(&[], Some(30));
    assert!(
        narrow.contains("shown by `--wide`: Remarks, Rank"),
        "{narrow}"
    );
    assert!(narrow.contains("ppo") && narrow.contains("Mean") && !narrow.contains("a remark"));
    for whole in [
        shown(&["--wide"], Some(30)),
        shown(&[], Some(200)),
        shown(&[], None),
    ] {
        assert!(whole.contains("a remark that is long"), "{whole}");
        assert!(!whole.contains("--wide"), "{whole}");
    }
}
