//! However long what they are about is, messages can be read.

use crate::space::Space;

/// Bytes of all that a command may say of one mistake.
const MOST: usize = 20_000;

fn assert_short(text: &str, beginning: &str) {
    assert!(text.len() < MOST, "{} bytes", text.len());
    // Long words begin a line of their own.
    let words: Vec<&str> = text
        .split_whitespace()
        .filter(|word| *word != "│")
        .collect();
    let words = words.join(" ");
    assert!(words.contains(beginning), "{text}");
    assert!(words.contains(" bytes ...] "), "{text}");
}

#[test]
fn a_long_header_gives_a_short_message_everywhere() {
    let space = Space::new(
        "name: n\nstages:\n  s: { kind: load_preferences, params: { source: d.csv, layout: stack_exchange_paired } }\n",
    );
    space.write("d.csv", &format!("{},b\n1,2\n", "z".repeat(1_000_000)));
    let outcome = space.flowgraph(&["run", "p.yaml", "-q"]);
    assert_eq!(outcome.code, 1);
    assert_short(&outcome.stderr, "no column");
    let outcome = space.flowgraph(&["run", "p.yaml", "--json"]);
    assert_short(&outcome.stdout, "no column");
    let runs = std::fs::read_dir(space.path(".flowgraph/runs")).unwrap();
    for run in runs {
        let events = run.unwrap().path().join("events.jsonl");
        assert_short(&std::fs::read_to_string(events).unwrap(), "no column");
    }
}

#[test]
fn a_long_log_line_is_shown_short() {
    let space = Space::new(
        "name: n\nstages:\n  s: { kind: command, params: { run: \"head -c 3000000 /dev/zero | tr '\\\\0' x >&2; echo >&2; echo the end >&2; exit 1\", outputs: { o: o } } }\n",
    );
    let outcome = space.flowgraph(&["run", "p.yaml", "-q"]);
    assert_short(&outcome.stderr, "| the end");
}

#[test]
fn long_names_in_a_pipeline_give_short_messages() {
    let long = "x".repeat(100_000);
    for (text, beginning) in [
        (
            format!("name: n\n? {long}\n: 1\nstages: {{}}\n"),
            "unknown key `xxx",
        ),
        (
            format!("name: n\nstages:\n  s: {{ kind: {long} }}\n"),
            "unknown stage kind `xxx",
        ),
        (
            format!(
                "name: n\nstages:\n  ? {long}\n  : {{ kind: command, params: {{ run: x, outputs: {{ o: o }} }} }}\n  t: {{ kind: command, inputs: {{ x: {long}y }}, params: {{ run: x, outputs: {{ o: o }} }} }}\n"
            ),
            "no stage `xxx",
        ),
        (
            format!(
                "name: n\nstages:\n  s: {{ kind: command, params: {{ run: '${{{long}}}', outputs: {{ o: o }} }} }}\n"
            ),
            "`${xxx",
        ),
    ] {
        let space = Space::new(&text);
        let outcome = space.flowgraph(&["check", "p.yaml"]);
        assert_eq!(outcome.code, 3);
        assert_short(&outcome.stderr, beginning);
    }
}

#[test]
fn a_long_value_that_changed_is_shown_short() {
    let text = "name: n\nstages:\n  s: { kind: command, params: { run: \"true > o; echo LONG >> o\", outputs: { o: o } } }\n";
    let space = Space::new(&text.replace("LONG", &"x".repeat(100_000)));
    assert_eq!(space.run(&[]).code, 0);
    space.write("p.yaml", &text.replace("LONG", &"y".repeat(100_000)));
    for args in [["plan", "p.yaml"].as_slice(), &["why", "p.yaml", "s"]] {
        let outcome = space.flowgraph(args);
        assert_short(&outcome.stdout, "true > o; echo yyy");
    }
}
