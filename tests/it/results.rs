//! What comes out: rows that are shown, and results that are copied out in other forms.

use serde_json::Value as Json;

use super::space::Space;

/// Scores of two policies, a curve, vectors and a table, by commands.
const PIPELINE: &str = r"name: results
stages:
  samples:
    matrix: { policy: [sft, ppo] }
    kind: command
    params: { run: 'sh rows.sh ${matrix.policy} > rows', code: [rows.sh], outputs: { rows: { path: rows, kind: scores }, text: log } }
  curve: { kind: command, params: { run: 'cp curve.csv c', code: [curve.csv], outputs: { out: { path: c, kind: curve } } } }
  vectors: { kind: command, params: { run: 'cp vectors.jsonl v', code: [vectors.jsonl], outputs: { out: { path: v, kind: embeddings } } } }
  means: { kind: command, params: { run: 'cp means.csv m', code: [means.csv], outputs: { out: { path: m, kind: table } } } }
  broken: { kind: command, params: { run: 'false', outputs: { out: o } } }
";

const ROWS: &str = r#"
echo "$1" > log
for n in 0 1 2 3 4 5 6 7 8 9 10 11; do
  printf '%s\n' "{\"question_id\": $n, \"sample\": 0, \"question\": \"q\", \"prompt\": \"p\", \"completion\": \"$1 wrote\\nline $n\", \"tokens\": 3, \"truncated\": false, \"log_prob\": -1, \"reward\": $n.5}"
done
"#;

fn space() -> Space {
    let space = Space::new(PIPELINE);
    space.write("rows.sh", ROWS);
    space.write("curve.csv", "step,loss\n10,0.5\n20,0.25\n");
    space.write(
        "vectors.jsonl",
        "{\"embedding\": [1, 0.1]}\n{\"embedding\": [0, -2]}\n",
    );
    space.write("means.csv", "policy,Mean\nsft,0.5\nppo,1.5\n");
    assert_eq!(space.run(&[]).code, 1);
    space
}

#[test]
fn rows_are_shown_as_rows_and_no_path_of_an_object_is() {
    let space = space();
    let show = |args: &[&str]| {
        let outcome = space.flowgraph(&[&["show", "p.yaml"], args].concat());
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        assert!(!outcome.stdout.contains("objects"), "{}", outcome.stdout);
        (outcome.stdout, outcome.stderr)
    };
    let (text, told) = show(&["samples[policy=ppo]"]);
    assert!(text.contains(r"ppo wrote\nline 9"), "{text}");
    assert!(!text.contains("line 10"), "{text}");
    assert_eq!(
        told,
        "scores: 10 of 12 rows; `--rows N` shows more, `--where COLUMN=VALUE` others\n"
    );
    // All instances, each row with where it comes from.
    let (text, told) = show(&["samples", "--rows", "20"]);
    assert!(
        text.contains("sft wrote") && text.contains("ppo wrote"),
        "{text}"
    );
    assert!(told.starts_with("scores: 20 of 24 rows"), "{told}");
    let (text, _) = show(&[
        "samples",
        "--where",
        "policy=ppo",
        "--where",
        "reward=11.5",
        "--json",
    ]);
    let found: Json = serde_json::from_str(&text).unwrap();
    assert_eq!(found["rows"].as_array().unwrap().len(), 1, "{found}");
    assert_eq!(found["rows"][0]["completion"], "ppo wrote\nline 11");
    let (text, _) = show(&["samples", "--json"]);
    let found: Json = serde_json::from_str(&text).unwrap();
    assert_eq!(found["rows"].as_array().unwrap().len(), 24);
    assert_eq!(found["rows"][0]["policy"], "sft");
    let (text, _) = show(&["curve"]);
    assert!(
        text.contains("0.250") && text.contains("completed after 20 steps"),
        "{text}"
    );
    let (text, _) = show(&["vectors", "--rows", "1"]);
    assert!(
        text.contains("[1.0, 0.1]") && !text.contains("-2.0"),
        "{text}"
    );
    let (text, _) = show(&["means", "--where", "policy=ppo"]);
    assert!(text.contains("1.500") && !text.contains("0.500"), "{text}");
    let (text, _) = show(&["samples[policy=ppo].text"]);
    assert_eq!(text, "ppo\n");
}

#[test]
fn what_cannot_be_shown_so_says_what_can() {
    let space = space();
    for (args, expected) in [
        (
            ["samples", "--where", "policy=dpo"],
            "no instance of `samples` is as `--where` says; there are samples[policy=sft], samples[policy=ppo]",
        ),
        (["samples", "--where", "rewrad=1"], "did you mean `reward`?"),
        (
            ["samples", "--where", "reward"],
            "expected KEY=VALUE, such as `policy=ppo`",
        ),
        (
            ["samples.text", "--rows", "3"],
            "`samples.text` means 2 stages; name one, such as `samples[policy=sft]`",
        ),
        (
            ["samples[policy=sft].text", "--rows", "3"],
            "has no rows, it is file: leave `--rows` out",
        ),
    ] {
        let outcome = space.flowgraph(&[&["show", "p.yaml"], args.as_slice()].concat());
        assert_eq!(outcome.code, 2, "{args:?}");
        assert!(
            outcome.stderr.contains(expected),
            "{args:?}: {}",
            outcome.stderr
        );
    }
}

#[test]
fn rows_come_out_in_every_format_and_several_instances_each_into_a_folder() {
    let space = space();
    let export = |args: &[&str]| space.flowgraph(&[&["export", "p.yaml"], args].concat());
    let formats = [
        "--format", "jsonl", "--format", "csv", "--format", "markdown", "--format", "latex",
        "--format", "parquet",
    ];
    let outcome = export(&[&["samples", "out"], formats.as_slice()].concat());
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    for policy in ["sft", "ppo"] {
        let folder = format!("out/policy={policy}");
        assert_eq!(space.files(&folder).len(), 5);
        let lines = space.read(&format!("{folder}/table.jsonl"));
        let rows: Vec<Json> = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(rows.len(), 12);
        assert_eq!(rows[3]["completion"], format!("{policy} wrote\nline 3"));
        assert_eq!(rows[3]["reward"], 3.5);
    }
    // What was written is what the same kind reads.
    let csv = space.read("out/policy=sft/table.csv");
    space.write("again.csv", &csv);
    space.write("again.yaml", "name: again\nstages:\n  again: { kind: command, params: { run: 'cp again.csv rows', code: [again.csv], outputs: { rows: { path: rows, kind: scores } } } }\n");
    let again = space.flowgraph(&["run", "again.yaml"]);
    assert_eq!(again.code, 0, "{}", again.stderr);
    let digest = |pipeline: &str, result: &str| {
        let shown = space
            .flowgraph(&["show", pipeline, result, "--json"])
            .stdout;
        serde_json::from_str::<Json>(&shown).unwrap()["digest"].clone()
    };
    assert_eq!(
        digest("again.yaml", "again"),
        digest("p.yaml", "samples[policy=sft]")
    );
    assert_eq!(export(&["vectors", "v", "--format", "jsonl"]).code, 0);
    assert_eq!(
        space.read("v/table.jsonl"),
        "{\"embedding\":[1.0, 0.1]}\n{\"embedding\":[0.0, -2.0]}\n"
    );
    let parquet = export(&["vectors", "v", "--format", "parquet"]);
    assert_eq!(parquet.code, 2);
    assert!(
        parquet.stderr.contains("`--format jsonl` writes them"),
        "{}",
        parquet.stderr
    );
}

#[test]
fn everything_comes_out_into_a_folder_for_each_stage() {
    let space = space();
    let export =
        |args: &[&str]| space.flowgraph(&[&["export", "p.yaml", "--all", "out"], args].concat());
    let outcome = export(&["--format", "jsonl"]);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(
        outcome
            .stderr
            .contains("without a result, and left out: 1 stage"),
        "{}",
        outcome.stderr
    );
    let here = space.path("out");
    let files = space.files("out");
    let mut files: Vec<&str> = files
        .iter()
        .map(|path| path.strip_prefix(&here).unwrap().to_str().unwrap())
        .collect();
    files.sort_unstable();
    assert_eq!(
        files,
        [
            "curve/table.jsonl",
            "means/table.jsonl",
            "samples/policy=ppo/rows/table.jsonl",
            "samples/policy=ppo/text/log",
            "samples/policy=sft/rows/table.jsonl",
            "samples/policy=sft/text/log",
            "vectors/table.jsonl",
        ]
    );
    // Nothing is overwritten, and where something would be nothing is written.
    std::fs::remove_file(space.path("out/curve/table.jsonl")).unwrap();
    assert_eq!(export(&["--format", "jsonl"]).code, 2);
    assert!(!space.path("out/curve/table.jsonl").exists());
    assert_eq!(export(&["--format", "jsonl", "--force"]).code, 0);
    assert!(space.path("out/curve/table.jsonl").exists());
    assert_eq!(
        space
            .flowgraph(&["export", "p.yaml", "curve", "x", "--all", "out"])
            .code,
        2
    );
    assert_eq!(space.flowgraph(&["export", "p.yaml", "curve"]).code, 2);
}

#[test]
fn a_run_prints_the_tables_that_its_file_names() {
    let named = |show: &str| {
        let table = |name: &str| {
            format!(
                "  {name}: {{ kind: command, params: {{ run: 'printf \"{name} heading\\n1\\n\" > t', outputs: {{ out: {{ path: t, kind: table }} }} }} }}\n"
            )
        };
        let names = ["one", "two", "three"].map(table).concat();
        Space::new(&format!("name: shown\n{show}stages:\n{names}"))
    };
    let printed = |space: &Space, args: &[&str]| {
        let outcome = space.flowgraph(&[&["run", "p.yaml"], args].concat());
        assert_eq!(outcome.code, 0, "{}", outcome.stderr);
        let of = |name: &&str| outcome.stdout.contains(&format!("{name} heading"));
        let shown: Vec<&str> = ["one", "two", "three"].into_iter().filter(of).collect();
        (shown.join(" "), outcome.stderr)
    };
    let all = named("");
    assert_eq!(printed(&all, &[]).0, "one two three");
    let some = named("show: [three, one]\n");
    let (shown, told) = printed(&some, &[]);
    assert_eq!(shown, "one three");
    assert!(
        told.contains("further tables, for `flowgraph show p.yaml STAGE`: two"),
        "{told}"
    );
    // Who asks for a stage sees it.
    assert_eq!(printed(&some, &["--only", "two"]).0, "two");
    for (wrong, message) in [
        ("show: [on]\n", "`show` has `on`, which is no stage"),
        ("show: one\n", "`show` must be a list, found a string"),
        ("show: [1]\n", "`show` names stages, found a whole number"),
    ] {
        let outcome = named(wrong).flowgraph(&["check", "p.yaml"]);
        assert_eq!(outcome.code, 3);
        assert!(
            outcome.stdout.contains(message) || outcome.stderr.contains(message),
            "{}{}",
            outcome.stdout,
            outcome.stderr
        );
    }
    let taken = named("show: [two]\nprofiles: { less: { stages: { two: null } } }\n");
    assert_eq!(printed(&taken, &["--profile", "less"]).0, "one three");
}
