//! Rows of every layout, right ones and wrong ones.

use serde_json::json;

use super::*;
use crate::artifacts::dataset::{Dataset, Example};
use crate::engine::artifact::Digest;
use crate::ml::tokenizer::{TokenizerAlgorithm, train_tokenizer};
use crate::stages::tryout::{Tried, attempt};

fn load(file: &str, text: &str, params: Json) -> (Tried, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(file);
    fs_err::write(&path, text).unwrap();
    let inputs = [("data", "file", path.as_path())];
    let tried = attempt::<LoadDataset>(folder.path(), params, &inputs, None);
    (tried, folder)
}

fn lines(rows: &[Json]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

/// Prompt, chosen and rejected of each example.
fn examples(rows: &[Json], params: Json) -> Vec<[String; 3]> {
    let (tried, _folder) = load("data.jsonl", &lines(rows), params);
    tried.outcome.as_ref().unwrap();
    let data = Dataset::read(&tried.output("data")).unwrap();
    let shown = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let rows = data.examples.into_iter();
    rows.map(|row| [row.prompt, shown(row.chosen), shown(row.rejected)])
        .collect()
}

fn user(text: &str) -> Json {
    json!({ "role": "user", "content": text })
}

fn assistant(text: &str) -> Json {
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
        (
            vec![json!({ "prompt": "p", "completion": " c" })],
            "prompt_completion",
            vec![["p", " c", "-"]],
        ),
        (
            vec![
                json!({ "prompt": "p", "completion": "good", "label": true }),
                json!({ "prompt": "q", "completion": "lone", "label": true }),
                json!({ "prompt": "p", "completion": "better", "label": 1 }),
                json!({ "prompt": "p", "completion": "bad", "label": "False" }),
            ],
            "prompt_completion_label",
            vec![["p", "good", "bad"]],
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
            "unknown variant `tool`",
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

const BOS: &str = "<bos>";
const EOS: &str = "<eos>";

fn with_template(rows: &[Json], template: Option<&str>) -> Tried {
    with_params(rows, template, json!({ "template": "model" }))
}

/// Loads rows with a chat template and a tokenizer that begins prompts itself.
fn with_params(rows: &[Json], template: Option<&str>, params: Json) -> Tried {
    let folder = tempfile::tempdir().unwrap();
    let (path, model) = (
        folder.path().join("data.jsonl"),
        folder.path().join("model"),
    );
    fs_err::write(&path, lines(rows)).unwrap();
    let tokenizer = train_tokenizer(TokenizerAlgorithm::WordLevel, ["a b"; 2], 16, &[]).unwrap();
    let tokens = tokenizer.special_tokens();
    let (bos, eos) = (tokens.bos.clone().unwrap(), tokens.eos.clone().unwrap());
    assert_eq!([&*bos, &*eos], [BOS, EOS]);
    let tokenizer = match template {
        Some(template) => tokenizer.with_chat_template(template),
        None => tokenizer,
    };
    fs_err::create_dir_all(&model).unwrap();
    tokenizer.save(&model).unwrap();
    let inputs = [
        ("data", "file", path.as_path()),
        ("model", "tokenizer", model.as_path()),
    ];
    let kept = tempfile::tempdir().unwrap().keep();
    attempt::<LoadDataset>(&kept, params, &inputs, None)
}

#[test]
fn conversations_are_put_together_by_the_template_of_a_model() {
    let system = json!({ "role": "system", "content": "S" });
    let rows =
        [json!({ "messages": [system, user("a"), assistant("b"), user("c"), assistant("d")] })];
    let template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}\n{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}";
    let tried = with_template(&rows, Some(template));
    tried.outcome.as_ref().unwrap();
    let data = Dataset::read(&tried.output("data")).unwrap();
    let expected = format!("[system]S[user]a[assistant]b{EOS}\n[user]c[assistant]");
    assert_eq!(data.examples[0].prompt, expected);
    assert_eq!(data.examples[0].chosen.as_deref(), Some("d"));
    let notes = &tried.told.notes;
    assert!(
        notes
            .iter()
            .any(|note| note.contains("begins 1 prompts with the begin token")),
        "{notes:?}"
    );

    let refusing = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ m.content }}{% endfor %}";
    let good = json!({ "messages": [user("a"), assistant("b")] });
    let tried = with_template(&[rows[0].clone(), good.clone()], Some(refusing));
    tried.outcome.as_ref().unwrap();
    let notes = &tried.told.notes;
    assert!(
        notes
            .iter()
            .any(|note| note.contains("1 of 2 rows") && note.contains("no system")),
        "{notes:?}"
    );

    let apart = "{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}";
    let tried = with_template(std::slice::from_ref(&good), Some(apart));
    assert!(
        tried.message().contains("right behind"),
        "{}",
        tried.message()
    );

    let spelt = json!({ "messages": [user(&format!("a {EOS}")), assistant("b")] });
    let tried = with_template(&[spelt], Some(template));
    let notes = &tried.told.notes;
    assert!(
        notes
            .iter()
            .any(|note| note.contains("1 rows spell a special token")),
        "{notes:?}"
    );
    let table = tried.output("data").join("table.json");
    let digest = Digest::of(template.as_bytes()).to_string();
    assert!(fs_err::read_to_string(table).unwrap().contains(&digest));
    let tried = with_template(&[good], None);
    assert!(
        tried.message().contains("no chat template"),
        "{}",
        tried.message()
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

#[test]
fn texts_that_spell_special_tokens_are_left_out_or_refused() {
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    // The fill token, which neither begins nor ends a text.
    let rows = [
        json!({ "messages": [user("a"), assistant("b")] }),
        json!({ "messages": [user("a"), assistant("b <pad>")] }),
    ];
    let load_with = |special: &str| {
        let params = json!({ "template": "model", "special_tokens": special });
        with_params(&rows, Some(template), params)
    };
    let tried = load_with("leave_out");
    tried.outcome.as_ref().unwrap();
    let data = Dataset::read(&tried.output("data")).unwrap();
    assert_eq!(data.examples.len(), 1);
    let notes = &tried.told.notes;
    let told = |says: &str| notes.iter().any(|note| note.contains(says));
    assert!(told("1 of 2 rows") && told("spells \"<pad>\""), "{notes:?}");
    let tried = load_with("refuse");
    let message = tried.message();
    let place = "row 2: it spells the special token \"<pad>\"";
    assert!(message.contains(place), "{message}");

    let rows = [
        json!({ "prompt": "a <|im_end|>", "completion": "b" }),
        json!({ "prompt": "a", "completion": "b" }),
    ];
    for (template, expected) in [("chatml", 1), ("smollm2", 1)] {
        let params = json!({ "template": template, "special_tokens": "leave_out" });
        assert_eq!(examples(&rows, params).len(), expected);
    }
}
