//! Rows of every layout, right ones and wrong ones.

use serde_json::{Value as Json, json};

use super::*;
use crate::artifacts::dataset::{Dataset, Example};
use crate::stages::tryout::{Tried, attempt};

pub(super) fn load(file: &str, text: &str, params: Json) -> (Tried, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(file);
    fs_err::write(&path, text).unwrap();
    let inputs = [("data", "file", path.as_path())];
    let tried = attempt::<LoadDataset>(folder.path(), params, &inputs, None);
    (tried, folder)
}

pub(super) fn lines(rows: &[Json]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Prompt, chosen and rejected of each example.
pub(super) fn examples(rows: &[Json], params: Json) -> Vec<[String; 3]> {
    let (tried, _folder) = load("data.jsonl", &lines(rows), params);
    tried.outcome.as_ref().unwrap();
    let data = Dataset::read(&tried.output("data")).unwrap();
    let shown = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = data.examples.into_iter();
    rows.map(|row| [row.prompt, shown(row.chosen), shown(row.rejected)])
        .collect()
}

pub(super) fn user(text: &str) -> Json {
    json!({ "role": "user", "content": text })
}

pub(super) fn assistant(text: &str) -> Json {
    json!({ "role": "assistant", "content": text })
}

#[test]
fn every_layout_is_told_by_its_columns_and_read() {
    let system = json!({ "role": "system", "content": "S" });
    for (rows, layout, expected) in [
        (
            vec![json!({ "prompt": "p", "chosen": " c", "rejected": " r", "source": 7 })],
            "prompt_chosen_rejected",
            vec![["p", " c", " r"]],
        ),
        (
            vec![json!({ "chosen": "The sky is blue", "rejected": "The sky is black" })],
            "prompt_chosen_rejected",
            vec![["The sky is", " blue", " black"]],
        ),
        (
            vec![
                json!({ "prompt": [system, user("u")], "chosen": [assistant("c")], "rejected": [assistant("r")] }),
            ],
            "prompt_chosen_rejected",
            vec![["S\n\nHuman: u\n\nAssistant:", " c", " r"]],
        ),
        (
            vec![
                json!({ "chosen": [user("u"), assistant("c")], "rejected": [user("u"), assistant("r")] }),
            ],
            "prompt_chosen_rejected",
            vec![["\n\nHuman: u\n\nAssistant:", " c", " r"]],
        ),
        // `HuggingFaceH4/ultrafeedback_binarized`.
        (
            vec![
                json!({ "prompt": "u", "chosen": [user("u"), assistant("c")], "rejected": [user("u"), assistant("r")] }),
            ],
            "prompt_chosen_rejected",
            vec![["\n\nHuman: u\n\nAssistant:", " c", " r"]],
        ),
        (
            vec![json!({ "prompt": "p", "completion": " c" })],
            "prompt_completion",
            vec![["p", " c", "-"]],
        ),
        (
            vec![
                json!({ "prompt": "p", "completion": "good", "label": true }),
                json!({ "prompt": "q", "completion": "lone", "label": true }),
                json!({ "prompt": "p", "completion": "better", "label": 1.0 }),
                json!({ "prompt": "p", "completion": "bad", "label": "False" }),
                json!({ "prompt": "p", "completion": "worse", "label": "0.0" }),
            ],
            "prompt_completion_label",
            vec![["p", "good", "bad"], ["p", "better", "worse"]],
        ),
        (
            vec![
                json!({ "messages": [user("a"), assistant("b"), user("c"), assistant("d")] }),
                json!({ "messages": [user("a")] }),
            ],
            "messages",
            vec![
                [
                    "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
                    " d",
                    "-",
                ],
                ["\n\nHuman: a\n\nAssistant:", "-", "-"],
            ],
        ),
        (
            vec![json!({ "prompt": "p", "completions": ["x", "y", "z"], "scores": [0, 2, -1] })],
            "ranked",
            vec![["p", " y", " z"]],
        ),
        (
            vec![json!({ "instruction": "p", "completions": [
                { "response": "x", "overall_score": 7.5 }, { "response": "y", "overall_score": "9" },
            ] })],
            "ultrafeedback",
            vec![["p", " y", " x"]],
        ),
        (
            vec![
                json!({ "prompt": "p", "response": "x", "helpfulness": 1, "verbosity": 2 }),
                json!({ "prompt": "p", "response": "y", "helpfulness": 4, "verbosity": 2 }),
            ],
            "helpsteer",
            vec![["p", " y", " x"]],
        ),
        (
            vec![
                json!({ "history": "p", "human_ref_A": "x", "human_ref_B": "y", "labels": 1 }),
                json!({ "history": "p", "human_ref_A": "x", "human_ref_B": "y", "labels": 0 }),
            ],
            "shp",
            vec![["p", " x", " y"], ["p", " y", " x"]],
        ),
        (
            vec![
                json!({ "prompt": "p", "response_0": "x", "response_1": "y", "better_response_id": 1 }),
            ],
            "pku_safe_rlhf",
            vec![["p", " y", " x"]],
        ),
        (
            vec![
                json!({ "info": { "post": "p", "article": null }, "summaries": [{ "text": " x" }, { "text": " y" }], "choice": 1 }),
            ],
            "summarize_from_feedback",
            vec![["p", " y", " x"]],
        ),
        (
            vec![json!({ "text": "once upon a time" })],
            "text",
            vec![["once", " upon a time", "-"]],
        ),
        (
            vec![json!({ "prompt": "p" })],
            "prompt",
            vec![["p", "-", "-"]],
        ),
    ] {
        let expected: Vec<[String; 3]> = expected
            .into_iter()
            .map(|row| row.map(str::to_owned))
            .collect();
        assert_eq!(examples(&rows, json!({})), expected, "{layout}");
        assert_eq!(examples(&rows, json!({ "layout": layout })), expected);
    }
}

#[test]
fn columns_have_other_names_and_further_ones_are_kept() {
    let rows = [
        json!({ "question": "q", "good": "c", "bad": "r", "answer": 4, "tests": ["a"] }),
        json!({ "question": "q", "good": "d", "bad": "r", "answer": null, "tests": ["b"] }),
    ];
    let params = json!({
        "columns": { "prompt": "question", "chosen": "good", "rejected": "bad" }, "keep": ["answer", "tests"],
        "template": "chatml",
    });
    for (file, text) in [
        ("data.jsonl", lines(&rows)),
        ("data.json", json!(rows).to_string()),
        (
            "data.csv",
            "question,good,bad,answer,tests\nq,c,r,4,\"[\"\"a\"\"]\"\nq,d,r,,\"[\"\"b\"\"]\"\n"
                .to_owned(),
        ),
    ] {
        let (tried, _folder) = load(file, &text, params.clone());
        tried.outcome.as_ref().unwrap();
        let data = Dataset::read(&tried.output("data")).unwrap();
        let [first, second] = &data.examples[..] else {
            panic!("{file}");
        };
        assert_eq!(
            first.prompt,
            "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(
            (&first.question[..], first.chosen.as_deref()),
            ("q", Some("c"))
        );
        assert_eq!(first.question_id, second.question_id);
        let kept = |row: &Example| {
            let kept = row.kept.iter();
            kept.map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(kept(first), ["answer=4", "tests=[\"a\"]"], "{file}");
        assert_eq!(kept(second), ["tests=[\"b\"]"], "{file}");
    }
}

#[test]
fn rows_that_cannot_be_used_are_counted_and_the_first_is_told() {
    let good = json!({ "prompt": "p", "chosen": "c", "rejected": "r" });
    for (bad, fault) in [
        (
            json!({ "prompt": " ", "chosen": "c", "rejected": "r" }),
            "the prompt is empty",
        ),
        (
            json!({ "prompt": "p", "chosen": null, "rejected": "r" }),
            "`chosen` is neither text nor a list of messages but nothing",
        ),
        (
            json!({ "prompt": "p", "chosen": "", "rejected": "r" }),
            "a completion is empty",
        ),
        (
            json!({ "prompt": "p", "chosen": "c", "rejected": "c" }),
            "both completions are the same",
        ),
        (
            json!({ "prompt": "p", "chosen": [user("u")], "rejected": "r" }),
            "a completion is not one message of the assistant",
        ),
        (
            json!({ "prompt": [assistant("a")], "chosen": "c", "rejected": "r" }),
            "does not end with a message of the user",
        ),
        (
            json!({ "prompt": [{ "role": "tool", "content": "x" }], "chosen": "c", "rejected": "r" }),
            "has a message of the role \"tool\", expected system, user, assistant",
        ),
        (
            json!({ "prompt": "v", "chosen": [user("u"), assistant("c")], "rejected": [user("u"), assistant("r")] }),
            "no message of the user that",
        ),
        (
            json!({ "prompt": { "a": 1 }, "chosen": "c", "rejected": "r" }),
            "but a map",
        ),
    ] {
        let params = json!({ "layout": "prompt_chosen_rejected" });
        let (tried, _folder) = load(
            "data.jsonl",
            &lines(&[good.clone(), bad.clone(), bad.clone()]),
            params.clone(),
        );
        tried.outcome.as_ref().unwrap();
        let notes = &tried.told.notes;
        let told = notes.iter().any(|note| {
            note.starts_with("2 of 3 rows were left out: ")
                && note.contains("row 2")
                && note.contains(fault)
                && note.ends_with(", and others")
        });
        assert!(told, "{fault}: {notes:?}");
        let (tried, _folder) = load("data.jsonl", &lines(&[bad]), params);
        assert!(
            tried.message().contains("no row can be used; 1 of 1 rows"),
            "{}",
            tried.message()
        );
    }
}

#[test]
fn columns_of_no_layout_are_listed_with_what_the_nearest_lacks() {
    let row = json!({ "question": "q", "chosen": "c" });
    let fails = |rows: &[Json], params: Json| {
        let (tried, _folder) = load("data.jsonl", &lines(rows), params);
        match &tried.outcome {
            Err(StageError::Failed { message, hint }) => {
                (message.clone(), hint.clone().unwrap_or_default())
            }
            other => panic!("{other:?}"),
        }
    };
    let (message, hint) = fails(std::slice::from_ref(&row), json!({}));
    assert!(
        message.ends_with("its columns are those of no layout; found: chosen, question"),
        "{message}"
    );
    assert!(
        hint.contains("`layout: prompt_chosen_rejected`, for which it lacks `rejected`"),
        "{hint}"
    );
    let (message, hint) = fails(
        std::slice::from_ref(&row),
        json!({ "layout": "prompt_completion" }),
    );
    assert!(
        message.ends_with(
            "`prompt_completion` needs the columns `prompt`, `completion`; found: chosen, question"
        ),
        "{message}"
    );
    assert!(hint.contains("columns: { prompt: question }"), "{hint}");
    let (message, _) = fails(
        &[json!({ "text": "a b", "messages": [user("u")] })],
        json!({}),
    );
    assert!(
        message.contains("those of several layouts: `messages`, `text`"),
        "{message}"
    );
    let labelled = json!({ "prompt": "p", "completion": "c", "label": true });
    let (message, hint) = fails(
        std::slice::from_ref(&labelled),
        json!({ "columns": { "label": "labl" } }),
    );
    assert!(
        message.ends_with(
            "`columns` names the column `labl`, which it has not; found: completion, label, prompt"
        ),
        "{message}"
    );
    assert_eq!(hint, "did you mean `label`?");
    // What is named is not passed over.
    let row = json!({ "prompt": "p", "completion": "c", "body": "t" });
    let (message, _) = fails(&[row], json!({ "columns": { "label": "body" } }));
    assert!(message.contains("`label` is \"t\""), "{message}");
    let row = json!({ "messages": [user("u")], "body": "t" });
    let (message, hint) = fails(&[row], json!({ "columns": { "chosen": "body" } }));
    assert!(message.contains("those of no layout"), "{message}");
    assert!(hint.contains("lacks `rejected`"), "{hint}");
    let (message, _) = fails(&[json!({ "text": "a b" })], json!({ "keep": ["key"] }));
    assert!(
        message.contains("`keep` names the column `key`, which it has not"),
        "{message}"
    );
}

#[test]
fn params_that_mean_nothing_are_refused() {
    for (params, path) in [
        (
            json!({ "layout": "text", "columns": { "prompt": "q" } }),
            "columns.prompt",
        ),
        (json!({ "columns": { "promt": "prompt" } }), "columns.promt"),
        (json!({ "keep": ["chosen"] }), "keep"),
        (json!({ "sha256": "0".repeat(64) }), "sha256"),
        (json!({ "max_rows": 0 }), "max_rows"),
        (json!({ "template": "{" }), "template"),
        (json!({ "special_tokens": "refuse" }), "special_tokens"),
    ] {
        let stage: LoadDataset = serde_json::from_value(params).unwrap();
        let found: Vec<String> = stage
            .validate()
            .iter()
            .map(|p| p.path.to_string())
            .collect();
        assert_eq!(found, [path]);
    }
}

#[test]
fn a_file_is_read_no_further_than_wanted() {
    let rows = vec![json!({ "text": "a b c" }); 3];
    let text = lines(&rows) + "{ broken";
    let (tried, _folder) = load(
        "data.jsonl",
        &text,
        json!({ "layout": "text", "max_rows": 2 }),
    );
    // Looking for columns stops at the first rows, too, but they are more here.
    assert!(tried.message().contains("row 4"), "{}", tried.message());
    let whole = lines(&vec![json!({ "text": "a b c" }); LOOKED_AT]) + "{ broken";
    let (tried, _folder) = load(
        "data.jsonl",
        &whole,
        json!({ "layout": "text", "max_rows": 2 }),
    );
    tried.outcome.as_ref().unwrap();
    assert_eq!(
        Dataset::read(&tried.output("data")).unwrap().examples.len(),
        2
    );
}

#[test]
fn a_cell_that_cannot_be_read_leaves_its_row_out() {
    let deep = format!("{}1{}", "[".repeat(20), "]".repeat(20));
    let rows = format!(
        "{{\"prompt\": \"p\", \"completion\": {deep}}}\n{{\"prompt\": \"p\", \"completion\": \"c\"}}\n"
    );
    let (tried, _folder) = load("data.jsonl", &rows, json!({}));
    tried.outcome.as_ref().unwrap();
    let notes = &tried.told.notes;
    let told = |note: &String| note.contains("1 of 2 rows were left out") && note.contains("row 1");
    assert!(notes.iter().any(told), "{notes:?}");
}

#[test]
fn kept_numbers_keep_their_digits() {
    let row = r#"{"text": "a b", "key": 12345678901234567890123, "list": [1.50, 2]}"#;
    let (tried, _folder) = load("data.jsonl", row, json!({ "keep": ["key", "list"] }));
    tried.outcome.as_ref().unwrap();
    let data = Dataset::read(&tried.output("data")).unwrap();
    let kept: Vec<&str> = data.examples[0].kept.values().map(String::as_str).collect();
    assert_eq!(kept, ["12345678901234567890123", "[1.50, 2]"]);
}

/// Loads a fixture with classes.
fn classes(params: Json) -> Tried {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = path.join("tests/fixtures/rows/classes.parquet");
    let folder = tempfile::tempdir().unwrap().keep();
    attempt::<LoadDataset>(&folder, params, &[("data", "file", &path)], None)
}

#[test]
fn labels_are_what_the_names_of_their_classes_say() {
    let tried = classes(json!({ "keep": ["topic", "tags"] }));
    tried.outcome.as_ref().unwrap();
    let data = Dataset::read(&tried.output("data")).unwrap();
    let [example] = &data.examples[..] else {
        panic!("{data:?}");
    };
    // Class 0 is `good`.
    assert_eq!(example.chosen.as_deref(), Some("c"));
    assert_eq!(example.rejected.as_deref(), Some("d"));
    assert_eq!(example.kept["topic"], "helpful");
    let notes = &tried.told.notes;
    let told = |note: &String| note.ends_with("its pair has that of the last of them: tags, topic");
    assert!(notes.iter().any(told), "{notes:?}");
    let tried = classes(json!({ "columns": { "label": "topic" } }));
    let message = tried.message();
    assert!(
        message
            .contains("`label` is \"harmful\", neither true nor false: no word of true, yes, good"),
        "{message}"
    );
    let tried = classes(json!({ "layout": "text", "columns": { "text": "topic" } }));
    assert!(
        tried.message().contains("it is one word or none"),
        "{}",
        tried.message()
    );
}

#[test]
fn what_is_no_object_is_left_out_and_what_is_no_json_is_an_error() {
    let good = "{\"text\": \"a b\"}\n";
    let (tried, _folder) = load(
        "data.jsonl",
        &format!("{good}\n7\nnull\n[{{}}]\n"),
        json!({}),
    );
    tried.outcome.as_ref().unwrap();
    let notes = &tried.told.notes;
    let told = |note: &String| {
        note.contains("3 of 4 rows were left out: input `data`, row 3: `text` is not there")
    };
    assert!(notes.iter().any(told), "{notes:?}");
    let (tried, _folder) = load(
        "data.jsonl",
        &format!("{good}{{\"text\": \"a\"\n{good}"),
        json!({}),
    );
    assert_eq!(
        tried.message(),
        "input `data`, row 2: EOF while parsing an object at column 12"
    );
    let (tried, _folder) = load(
        "data.jsonl",
        &format!("{good}{{\"text\": 1e999}}\n"),
        json!({ "layout": "text" }),
    );
    let notes = &tried.told.notes;
    assert!(
        notes
            .iter()
            .any(|note| note.contains("`text` cannot be read: number out of range")),
        "{notes:?}"
    );
}
