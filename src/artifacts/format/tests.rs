use serde_json::Value as Json;

use super::*;
use crate::artifacts::completions::{CompletionRow, to_table};
use crate::artifacts::dataset::{Dataset, Example};
use crate::artifacts::judgements::{self, Judgement, Order, Verdict};
use crate::artifacts::labelled_texts::{self, LabelledText};
use crate::artifacts::table::Table;
use crate::registry::REGISTRY;

/// Reads rows of a kind out of a file with a text.
fn read(kind: &str, text: &str) -> Result<Rows, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows");
    fs_err::write(&path, text).unwrap();
    let format = find(kind).unwrap();
    read_rows(format, &format.rows.unwrap(), &path, "rows").map_err(|error| {
        let (message, hint) = crate::hint::told(&error);
        hint.map_or(message.clone(), |hint| format!("{message} | {hint}"))
    })
}

fn table(kind: &str, text: &str) -> Table {
    match read(kind, text) {
        Ok(Rows::Table(table)) => table,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_kind_of_artifact_that_a_stage_makes_has_a_format() {
    for kind in REGISTRY {
        let params: Json = serde_yaml::from_str(kind.example).unwrap();
        let stage = (kind.parse)(&params).unwrap();
        let ports = stage.ports();
        let taken = ports.iter().flat_map(|port| port.accepts.iter().copied());
        let made: Vec<_> = stage.outputs().into_iter().map(|made| made.kind).collect();
        for artifact in taken.chain(made.iter().map(|made| &**made)) {
            assert!(find(artifact).is_some(), "{artifact} of {}", kind.name);
        }
    }
}

#[test]
fn the_example_row_of_every_kind_is_one() {
    for format in FORMATS.iter().filter(|format| format.rows.is_some()) {
        let Some(example) = format.example() else {
            continue;
        };
        let count = read(format.kind, &example).map(|rows| rows.count());
        assert_eq!(count, Ok(1), "{}: {example}", format.kind);
    }
}

/// What our own stages write is what the table says, and what is read of it is the same.
#[test]
fn what_stages_write_has_the_format_that_is_documented() {
    let completion = CompletionRow {
        question_id: 3,
        sample: 1,
        question: "q".to_owned(),
        prompt: "p".to_owned(),
        token_ids: Some(vec![1, 70_000]),
        truncated: true,
        log_prob: Some(-0.1),
        ..CompletionRow::default()
    };
    let mut scores = to_table("", std::slice::from_ref(&completion));
    scores.number_column("reward", 3, [Some(0.1 + 0.2)]);
    scores.text_column("answer", [None]);
    let judgement = Judgement {
        question_id: 1,
        sample: 0,
        order: Order::Either,
        verdict: Verdict::Tie,
        rewards: Some((0.5, 0.25)),
        request: None,
    };
    let example = Example {
        prompt: "p".to_owned(),
        rejected: Some(String::new()),
        ..Example::default()
    };
    let data = Dataset {
        title: String::new(),
        examples: vec![example],
    };
    let labelled = LabelledText {
        text: "t".to_owned(),
        label: "7".to_owned(),
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    type Write<'a> = &'a dyn Fn() -> Result<(), crate::artifacts::table::TableError>;
    let all: [(&str, Write); 5] = [
        ("completions", &|| {
            to_table("", std::slice::from_ref(&completion)).write_data(folder)
        }),
        ("scores", &|| scores.write_data(folder)),
        ("judgements", &|| {
            judgements::write(folder, "", std::slice::from_ref(&judgement))
        }),
        ("dataset", &|| data.write(folder)),
        ("labelled_texts", &|| {
            labelled_texts::write(folder, "", std::slice::from_ref(&labelled))
        }),
    ];
    for (kind, write) in all {
        write().unwrap();
        let format = find(kind).unwrap();
        let path = folder.join("table.parquet");
        let read = read_rows(format, &format.rows.unwrap(), &path, "rows").unwrap();
        let Rows::Table(read) = read else { panic!() };
        let own = Table::read(folder).unwrap();
        assert_eq!(read.rows_json(), own.rows_json(), "{kind}");
        // As lines of JSON as well.
        let lines = own.rows_json().as_array().unwrap()[0].to_string();
        assert_eq!(table(kind, &lines).rows_json(), own.rows_json(), "{kind}");
    }
}

#[test]
fn faults_say_row_column_what_is_there_and_what_was_expected() {
    let row = |text: &str| format!("{{\"text\": \"a\", \"label\": \"b\"}}\n{text}");
    let of_scores = |cells: &str| {
        let row = r#""question_id": 1, "sample": 0, "question": "q", "prompt": "p", "completion": "c", "tokens": 1, "truncated": false, "log_prob": -1"#;
        format!("{{{row}{cells}}}")
    };
    for (kind, text, expected) in [
        (
            "labelled_texts",
            row(r#"{"text": 3, "label": "b"}"#),
            "rows, row 2: `text` is 3, expected text",
        ),
        (
            "labelled_texts",
            row(r#"{"label": "b"}"#),
            "rows, row 2: `text` is null, expected text",
        ),
        (
            "labelled_texts",
            row(r#"{"text": "a", "label": "b", "lable": 1}"#),
            "rows: `labelled_texts` has no column `lable`; expected text, label | did you mean `label`?",
        ),
        (
            "labelled_texts",
            row(r#"{"text": "a","#),
            "rows, row 2: EOF while parsing a value at column 13",
        ),
        (
            "labelled_texts",
            "text\na\n".to_owned(),
            "rows: no column `label`; found: text",
        ),
        (
            "curve",
            "{\"step\": 1, \"loss\": NaN}".to_owned(),
            "rows, row 1: `loss` is NaN, expected a finite number or null (expected value at column 21)",
        ),
        (
            "curve",
            "step,loss\n1,0.5\n2,nan\n".to_owned(),
            "rows, row 2: `loss` is nan, expected a finite number",
        ),
        (
            "curve",
            "{\"step\": 1.5}".to_owned(),
            "rows, row 1: `step` is 1.5, expected a whole number from 0",
        ),
        (
            "judgements",
            r#"{"question_id": 1, "sample": 0, "order": "either", "verdict": "won"}"#.to_owned(),
            "rows, row 1: `verdict` is \"won\", expected one of win, tie, loss, unparsable",
        ),
        (
            "embeddings",
            "{\"embedding\": [1, 2]}\n{\"embedding\": [1]}".to_owned(),
            "rows, row 2: `embedding` is a list of 1 numbers, expected 2, as in the first row",
        ),
        (
            "embeddings",
            "{\"embedding\": [1e39, 2]}".to_owned(),
            "rows, row 1: `embedding` is [1e39, 2], expected a list of finite numbers, as long in every row",
        ),
        (
            "scores",
            of_scores(""),
            "rows: no column `reward`; found: question_id, sample, question, prompt, completion, tokens, truncated, log_prob",
        ),
        (
            "scores",
            format!("{}\n{}", of_scores(", \"reward\": 1"), of_scores("")),
            "rows, row 2: `reward` is null, expected a finite number",
        ),
        (
            "scores",
            of_scores(", \"reward\": \"0.5\""),
            "rows, row 1: `reward` is \"0.5\", expected a finite number",
        ),
        (
            "scores",
            of_scores(", \"reward\": 1, \"token_ids\": [-1]"),
            "rows, row 1: `token_ids` is [-1], expected a list of token ids",
        ),
        (
            "scores",
            format!(
                "{}\n{}",
                of_scores(", \"a\": 1"),
                of_scores(", \"a\": \"x\"")
            ),
            "rows, row 2: `a` is \"x\", expected a finite number",
        ),
    ] {
        assert_eq!(read(kind, &text).unwrap_err(), expected);
    }
}

#[test]
fn columns_of_csv_are_what_their_text_can_be() {
    let read = table(
        "table",
        "name,n,x,is_done,empty,mixed\na,1,0.5,true,,1\n\"b, c\",2,,FALSE,,y\n",
    );
    let rows = serde_json::json!([
        { "name": "a", "n": 1, "x": 0.5, "is_done": true, "empty": null, "mixed": "1" },
        { "name": "b, c", "n": 2, "x": null, "is_done": false, "empty": null, "mixed": "y" },
    ]);
    assert_eq!(read.rows_json(), rows);
    // An empty completion is one.
    let csv = "question_id,sample,question,prompt,completion,tokens,truncated,log_prob\n1,0,q,p,,1,false,-1\n";
    let read = table("completions", csv);
    assert_eq!(read.texts("completion").unwrap(), [Some(String::new())]);
}

#[test]
fn further_columns_of_a_dataset_are_text_and_columns_that_may_be_null_may_be_left_out() {
    let line = r#"{"question_id": 0, "question": "q", "prompt": "p", "key": {"a": [1, 2]}, "n": 4, "word": "w"}"#;
    let read = table("dataset", line);
    let folder = tempfile::tempdir().unwrap();
    read.write_data(folder.path()).unwrap();
    let data = Dataset::read(folder.path()).unwrap();
    assert_eq!(data.examples[0].chosen, None);
    let kept: Vec<(&str, &str)> = data.examples[0]
        .kept
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    assert_eq!(
        kept,
        [("key", r#"{"a": [1, 2]}"#), ("n", "4"), ("word", "w")]
    );
}
