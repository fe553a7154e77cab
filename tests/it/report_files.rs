//! `flowgraph report` as HTML: what is written, when, and what it says without a browser.

use crate::space::Space;

/// Scores of three policies, one of them named by somebody hostile, and what is reported of them.
const SCORED: &str = r#"
name: scored
description: Three policies </title><script>hacked = 1</script> on the same questions.
params: { policies: [sft, ppo, "</script><script>hacked=1</script>"] }
stages:
  scores:
    matrix: { policy: "${policies}", seed: [1, 2, 3, 4, 5, 6] }
    kind: command
    params: { run: "python3 scores.py '${matrix.policy}' ${matrix.seed} > s.jsonl", code: [scores.py], outputs: { scores: { path: s.jsonl, kind: scores } } }
  table1:
    kind: metric_table
    inputs: { scores: "scores[*]" }
    params: { title: "Table <b>1</b>", columns: [mean, std], row_names: { ppo: PPO }, reference_values: { ppo: { mean: 0.872 } } }
  claims:
    kind: claims
    inputs: { scores: "scores[*]" }
    params:
      claims:
        - { id: better, text: "PPO <i>beats</i> SFT", test: { kind: difference, a: ppo, b: sft, direction: greater } }
        - { id: worse, text: "SFT beats PPO", test: { kind: difference, a: sft, b: ppo, direction: greater } }
  figure:
    kind: command
    params: { run: cp figure.svg f.svg, code: [figure.svg], outputs: { svg: f.svg } }
"#;

const SCORES: &str = r#"
import json, sys
policy, seed = sys.argv[1], int(sys.argv[2])
print("\x1b[2J</script>\u202elog of", seed, file=sys.stderr)
texts = {"sft": "no", "ppo": "yes"}
hostile = "</script><img src=x onerror='hacked=1'>\x1b[31mred\u202etxt.exe\u2028end"
for question in range(12):
    reward = {"sft": 0.1, "ppo": 0.5}.get(policy, 0.3) + seed / 100 + question / 1000
    text = "long " * 1000 if question == 5 else f"{texts.get(policy, hostile)} {question}"
    print(json.dumps({
        "question_id": question, "sample": 0, "question": f"what is {question} ?", "prompt": f"what is {question} ?",
        "completion": text, "truncated": question == 3, "reward": reward,
    }))
"#;

const FIGURE: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"90\" height=\"40\" onload=\"hacked=1\">\
                      <script>parent.hacked = 1; alert(1)</script><text y=\"20\">drawn</text></svg>";

/// A space with [`SCORED`] and stages beside those in it.
pub(crate) fn scored(further: &str) -> Space {
    let space = Space::new(&format!("{SCORED}{further}"));
    space.write("scores.py", SCORES);
    space.write("figure.svg", FIGURE);
    space
}

/// Writes `report.html`, and returns it with what was said.
pub(crate) fn written(space: &Space) -> (String, String) {
    let outcome = space.flowgraph(&["report", "p.yaml", "--force"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    (space.read("report.html"), outcome.stderr)
}

#[test]
fn the_same_store_gives_the_same_bytes_but_for_the_line_that_says_when() {
    let space = scored("");
    assert_eq!(space.flowgraph(&["run", "p.yaml", "-q"]).code, 0);
    let stable = |text: &str| -> Vec<String> {
        let lines = text
            .lines()
            .filter(|line| !line.starts_with("<p id=\"written\">"));
        lines.map(str::to_owned).collect()
    };
    let first = written(&space).0;
    // The line tells seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let second = written(&space).0;
    assert_eq!(stable(&first), stable(&second));
    assert_eq!(stable(&first).len() + 1, first.lines().count());
    assert_ne!(first, second);
}

#[test]
fn tables_and_verdicts_are_read_without_a_script() {
    let space = scored("");
    assert_eq!(space.flowgraph(&["run", "p.yaml", "-q"]).code, 0);
    let (report, said) = written(&space);
    assert_eq!(said, "scored -> report.html\n");
    let read = report.split("<script").next().unwrap();
    for part in [
        "<span class=\"verdict supported\">supported</span>",
        "<span class=\"verdict contradicted\">contradicted</span>",
        "PPO &lt;i&gt;beats&lt;&#x2f;i&gt; SFT",
        "<dt>seeds</dt><dd>1, 2, 3, 4, 5, 6</dd>",
        "Mean (paper)",
        ">0.872</td>",
        "Run by run (18 rows)",
        "<img src=\"data:image/svg+xml;base64,",
    ] {
        assert!(read.contains(part), "{part}");
    }
    assert!(!report.contains("id=\"missing\""), "everything is there");
    assert_eq!(report.matches("<script").count(), 2, "data and our own");
    assert_eq!(report.matches("</script").count(), 2);
    let visible = |c: &char| !c.is_control() || "\n\t".contains(*c);
    assert!(
        report
            .chars()
            .all(|c| visible(&c) && !('\u{2028}'..='\u{202e}').contains(&c))
    );
}

#[test]
fn a_report_of_a_run_that_failed_says_what_is_missing() {
    let space = scored(
        "  broken: { kind: command, params: { run: 'echo why it broke >&2; exit 3', outputs: { t: t } } }\n  \
           after: { kind: command, inputs: { x: broken }, params: { run: 'cp $x t.csv', outputs: { t: { path: t.csv, kind: table } } } }\n",
    );
    let nothing = space.flowgraph(&["report", "p.yaml"]);
    assert_eq!(nothing.code, 1, "{}", nothing.stderr);
    assert!(
        nothing.stderr.contains("no stage has a result"),
        "{}",
        nothing.stderr
    );
    assert!(!space.path("report.html").exists());
    assert_eq!(space.flowgraph(&["run", "p.yaml", "-q"]).code, 1);
    let (report, said) = written(&space);
    assert!(
        said.contains("warning: 2 stages without a result: the report says which"),
        "{said}"
    );
    for part in [
        "2 of the 23 stages have no result as the pipeline stands now",
        "<li><a href=\"#stage=broken\">broken</a> <span class=\"state failed\">failed</span> ",
        "<li><a href=\"#stage=after\">after</a> (makes a table)</li>",
        "why it broke",
        "<span class=\"verdict supported\">",
    ] {
        assert!(report.contains(part), "{part}");
    }
}

#[test]
fn verdicts_of_an_audit_stand_on_the_results_that_they_are_on() {
    let space = scored("");
    assert_eq!(space.flowgraph(&["run", "p.yaml", "-q"]).code, 0);
    let audit = space
        .program(&["audit", "p.yaml", "table1", "figure", "--json"])
        .output()
        .unwrap();
    let audit = String::from_utf8(audit.stdout).unwrap();
    space.write("audit.json", &audit);
    let write =
        |space: &Space| space.flowgraph(&["report", "p.yaml", "--force", "--audit", "audit.json"]);
    let outcome = write(&space);
    assert_eq!(
        (outcome.code, &*outcome.stderr),
        (0, "scored -> report.html\n")
    );
    let table = "Audit: reproduced; 1 of 19 stages behind it compared";
    let report = space.read("report.html");
    assert!(report.contains(table), "{audit}");
    let of_figure =
        "\"audit\":[{\"condition\":\"cpu, 1 thread\",\"reason\":null,\"words\":\"reproduced\"}]";
    assert_eq!(report.matches(of_figure).count(), 2, "figure and table1");
    assert!(!written(&space).0.contains(table), "nobody gave it");
    // Another title makes another result, which nobody audited.
    space.write(
        "p.yaml",
        &space.read("p.yaml").replace("Table <b>1</b>", "Table 1"),
    );
    assert_eq!(space.flowgraph(&["run", "p.yaml", "-q"]).code, 0);
    let outcome = write(&space);
    assert!(
        outcome
            .stderr
            .starts_with("warning: 1 verdict of audit.json not on these results: left out"),
        "{}",
        outcome.stderr
    );
    assert!(!space.read("report.html").contains("Audit: reproduced"));
    space.write("audit.json", "{}");
    let outcome = write(&space);
    assert_eq!(outcome.code, 2, "{}", outcome.stderr);
    assert!(
        outcome
            .stderr
            .contains("audit.json is no audit: missing field `findings`"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_report_tells_of_variables_and_not_of_their_values() {
    let space = Space::new(
        "name: p\nstages:\n  a: { kind: command, params: { run: 'echo $STYLE | wc -c > t; echo $TOKEN >&2', outputs: { t: t }, env: [STYLE], secret_env: [TOKEN] } }\n",
    );
    let with = |args: &[&str]| {
        let mut program = space.program(args);
        program
            .env("STYLE", "bold style")
            .env("TOKEN", "battery horse");
        let output = program.output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    with(&["run", "p.yaml", "-q"]);
    with(&["report", "p.yaml"]);
    let report = space.read("report.html");
    assert!(report.contains("\"environment\":[\"STYLE\""), "{report}");
    assert!(report.contains("\"text\":\"***\\n\""), "the log is masked");
    let entries = space.record("a").manifest.environment;
    let digests = entries.iter().filter_map(|entry| entry.split_once('='));
    for secret in digests
        .map(|(_, digest)| digest)
        .chain(["bold style", "battery horse"])
    {
        assert!(!report.contains(secret), "{secret}");
    }
}

#[test]
fn a_report_goes_where_it_may() {
    let space = scored("");
    assert_eq!(
        space
            .flowgraph(&["run", "p.yaml", "--only", "figure", "-q"])
            .code,
        0
    );
    for (args, part) in [
        (
            &["--out", "p.yaml"][..],
            "the name of a report in HTML must end in `.html`, found `p.yaml`",
        ),
        (
            &["--format", "markdown", "--out", "p.html"],
            "in Markdown must end in `.md`",
        ),
    ] {
        let outcome = space.flowgraph(&[&["report", "p.yaml", "--force"], args].concat());
        assert_eq!(outcome.code, 2, "{}", outcome.stderr);
        assert!(outcome.stderr.contains(part), "{}", outcome.stderr);
    }
    let audit = space.flowgraph(&[
        "report", "p.yaml", "--format", "markdown", "--audit", "a.json",
    ]);
    assert_eq!(audit.code, 2, "{}", audit.stderr);
    space.write("report.html", "mine");
    let there = space.flowgraph(&["report", "p.yaml"]);
    assert_eq!(there.code, 2, "{}", there.stderr);
    assert_eq!(
        there.stderr,
        "error: report.html exists\nhint: choose another file, or give `--force`\n"
    );
    assert_eq!(space.read("report.html"), "mine");
    assert_eq!(
        space
            .flowgraph(&["report", "p.yaml", "--out", "sub/r.html"])
            .code,
        0
    );
    assert!(space.read("sub/r.html").contains("<h1>scored</h1>"));
    let object = space.object("figure");
    let mut permissions = std::fs::metadata(&object).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
    std::fs::set_permissions(&object, permissions).unwrap();
    std::fs::write(&object, FIGURE.replace("drawn", "faked")).unwrap();
    let damaged = space.flowgraph(&["report", "p.yaml", "--force"]);
    assert_ne!(damaged.code, 0, "{}", damaged.stderr);
    assert_eq!(space.read("report.html"), "mine");
}
