//! Rows of completions, with and without tokens and prompts.

use serde_json::{Value as Json, json};

use super::*;
use crate::artifacts::completions::read;
use crate::artifacts::dataset::{Dataset, Example};
use crate::ml::tokenizer::{Tokenizer, TokenizerAlgorithm, train_tokenizer};
use crate::stages::tryout::{Tried, attempt};

/// Beside what completions are read.
#[derive(Default)]
struct Beside {
    prompts: Vec<Example>,
    tokenizer: Option<Tokenizer>,
}

fn tried(folder: &std::path::Path, params: Json, data: &str, beside: &Beside) -> Tried {
    let [file, prompts, model] = ["data", "prompts", "model"].map(|name| folder.join(name));
    fs_err::write(&file, data).unwrap();
    let mut inputs: Vec<(&str, &str, &std::path::Path)> = vec![("data", "file", &file)];
    if !beside.prompts.is_empty() {
        fs_err::create_dir_all(&prompts).unwrap();
        let dataset = Dataset {
            title: String::new(),
            examples: beside.prompts.clone(),
        };
        dataset.write(&prompts).unwrap();
        inputs.push(("prompts", DATASET, &prompts));
    }
    if let Some(tokenizer) = &beside.tokenizer {
        fs_err::create_dir_all(&model).unwrap();
        tokenizer.save(&model).unwrap();
        inputs.push(("model", "tokenizer", &model));
    }
    attempt::<LoadCompletions>(folder, params, &inputs, None)
}

fn loaded(params: Json, data: &str, beside: &Beside) -> (Vec<CompletionRow>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let tried = tried(folder.path(), params, data, beside);
    tried.outcome.as_ref().unwrap();
    (
        read(&tried.output("completions")).unwrap(),
        tried.told.notes,
    )
}

fn message(params: Json, data: &str, beside: &Beside) -> String {
    let folder = tempfile::tempdir().unwrap();
    let tried = tried(folder.path(), params, data, beside);
    tried.message().to_owned()
}

fn lines(rows: &[Json]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

fn row(question_id: u64, sample: u64, prompt: &str, completion: &str) -> CompletionRow {
    CompletionRow {
        question_id,
        sample,
        question: prompt.to_owned(),
        prompt: prompt.to_owned(),
        completion: completion.to_owned(),
        ..CompletionRow::default()
    }
}

fn tokenizer() -> Tokenizer {
    train_tokenizer(TokenizerAlgorithm::Bpe, ["that that that"], 270, &[]).unwrap()
}

#[test]
fn questions_are_told_by_their_prompts_and_samples_are_counted() {
    let data = lines(&[
        json!({ "prompt": "p", "response": " a" }),
        json!({ "prompt": "q", "response": "" }),
        json!({ "prompt": null, "response": "a" }),
        json!({ "prompt": "p", "response": null }),
        json!({ "prompt": "p", "response": 3 }),
        json!({ "prompt": "p", "response": " b" }),
    ]);
    let params = json!({ "columns": { "completion": "response" } });
    let (rows, notes) = loaded(params, &data, &Beside::default());
    let expected = [
        row(0, 0, "p", " a"),
        row(1, 0, "q", ""),
        row(0, 1, "p", " b"),
    ];
    assert_eq!(rows, expected);
    assert_eq!(
        notes,
        [
            "3 of 6 rows were left out: input `data`, row 3: `prompt` is empty, and others",
            "3 of 3 completions do not say whether they were cut off, and were taken for ended: a column `truncated` or \
             `finish_reason` would say it"
        ]
    );
    let csv = "prompt,completion,question_id,sample,truncated,log_prob,tokens\np,a,7,2,True,-1.5,4\np,,7,3,0,,\n";
    let (rows, notes) = loaded(json!({}), csv, &Beside::default());
    let said = CompletionRow {
        truncated: true,
        log_prob: Some(-1.5),
        tokens: Some(4),
        ..row(7, 2, "p", "a")
    };
    assert_eq!((rows, notes.len()), (vec![said, row(7, 3, "p", "")], 0));
}

#[test]
fn several_completions_are_a_list_with_lists_beside_it() {
    let data = lines(&[
        json!({ "prompt": "p", "completions": ["a", "b"], "finish_reason": ["stop", "length"], "log_prob": [-1, -2] }),
        json!({ "prompt": "q", "completions": ["a"], "finish_reason": "stop", "log_prob": null }),
        json!({ "prompt": "q", "completions": ["c"], "finish_reason": ["stop"], "log_prob": null }),
        json!({ "prompt": "q", "completions": [], "finish_reason": [], "log_prob": [] }),
    ]);
    let (rows, notes) = loaded(json!({}), &data, &Beside::default());
    let with = |log_prob, truncated, row| CompletionRow {
        truncated,
        log_prob,
        ..row
    };
    let expected = [
        with(Some(-1.0), false, row(0, 0, "p", "a")),
        with(Some(-2.0), true, row(0, 1, "p", "b")),
        with(None, false, row(1, 0, "q", "c")),
    ];
    assert_eq!(rows, expected);
    assert_eq!(
        notes,
        [
            "2 of 4 rows were left out: input `data`, row 2: `finish_reason` is \"stop\", expected a list of 1, one for \
          each completion, and others"
        ]
    );
}

#[test]
fn token_ids_are_spelt_checked_and_ended() {
    let tokenizer = tokenizer();
    let (that, end) = (tokenizer.encode("that").unwrap(), tokenizer.end_ids()[0]);
    let ended = |pad: usize| [that.clone(), vec![end; 1 + pad]].concat();
    let beyond = [ended(0), that.clone()].concat();
    let data = lines(&[
        json!({ "prompt_token_ids": tokenizer.encode_prompt("why").unwrap(), "completion_token_ids": [ended(3), that] }),
        json!({ "prompt": "why", "completion_token_ids": that, "finish_reason": "stop" }),
        json!({ "prompt": "why", "completion": " that ", "completion_token_ids": ended(0) }),
        json!({ "prompt": "why", "completion": "what", "completion_token_ids": ended(0) }),
        json!({ "prompt": "why", "completion_token_ids": [999_999] }),
        json!({ "prompt": "why", "completion_token_ids": beyond }),
        json!({ "prompt": "why", "completion_token_ids": ended(0), "finish_reason": "length" }),
        json!({ "prompt": "why", "completion_token_ids": [1.5] }),
    ]);
    let beside = Beside {
        tokenizer: Some(tokenizer.clone()),
        ..Beside::default()
    };
    // Without texts: a column that some rows have is one that all must have.
    let ids_only: String = data
        .lines()
        .filter(|line| !line.contains("\"completion\""))
        .map(|line| format!("{line}\n"))
        .collect();
    let (rows, notes) = loaded(json!({}), &ids_only, &beside);
    let whole = |sample, ids: Vec<u32>, truncated| CompletionRow {
        tokens: Some(ids.len() as u64),
        token_ids: Some(ids),
        truncated,
        ..row(0, sample, "why", "that")
    };
    let expected = [
        whole(0, ended(0), false),
        whole(1, that.clone(), true),
        whole(2, ended(0), false),
    ];
    assert_eq!(rows, expected);
    assert_eq!(
        notes,
        [
            "4 of 6 rows were left out: input `data`, row 3: `token_ids` has 999999, which is no token of `model`, and others"
        ]
    );
    let both: String = data
        .lines()
        .skip(2)
        .take(2)
        .map(|line| format!("{line}\n"))
        .collect();
    let (rows, notes) = loaded(json!({}), &both, &beside);
    assert_eq!(rows, [whole(0, ended(0), false)]);
    assert_eq!(
        notes,
        [
            "1 of 2 rows were left out: input `data`, row 2: `token_ids` spell \"that\" in the tokens of `model`, `completion` \
          is \"what\""
        ]
    );
    for line in ids_only.lines().skip(2) {
        let message = message(json!({}), line, &beside);
        assert!(message.contains("no row can be used"), "{message}");
    }
    // Texts alone are counted in tokens.
    let text = lines(&[json!({ "prompt": "why", "completion": "that", "truncated": true })]);
    let (rows, _) = loaded(json!({}), &text, &beside);
    assert_eq!(
        (rows[0].tokens, &rows[0].token_ids),
        (Some(that.len() as u64), &None)
    );
    let message = message(json!({}), &ids_only, &Beside::default());
    assert_eq!(
        message,
        "input `data`: of `token_ids` nobody says what they spell"
    );
}

#[test]
fn questions_are_those_of_the_data_set_whose_prompts_were_completed() {
    let example = |question_id, question: &str, prompt: &str| Example {
        question_id,
        question: question.to_owned(),
        prompt: prompt.to_owned(),
        ..Example::default()
    };
    let beside = Beside {
        prompts: vec![
            example(5, "why", "Q: why A:"),
            example(9, "how", "Q: how A:"),
        ],
        ..Beside::default()
    };
    let asked = |id, sample, question: &str, completion: &str| CompletionRow {
        question: question.to_owned(),
        ..row(id, sample, &format!("Q: {question} A:"), completion)
    };
    let data = lines(&[
        json!({ "prompt": "Q: how A:", "completion": "a" }),
        json!({ "prompt": "why", "completion": "b" }),
        json!({ "prompt": "what", "completion": "c" }),
        json!({ "prompt": null, "completion": "c" }),
    ]);
    let (rows, notes) = loaded(json!({}), &data, &beside);
    assert_eq!(rows, [asked(9, 0, "how", "a"), asked(5, 0, "why", "b")]);
    assert_eq!(
        notes[0],
        "2 of 4 rows were left out: input `data`, row 3: \"what\" is no prompt or question of `prompts`, and others"
    );
    let data = lines(&[
        json!({ "question_id": 9, "completion": "a" }),
        json!({ "question_id": 9, "completion": "b" }),
        json!({ "question_id": 7, "completion": "b" }),
    ]);
    let (rows, notes) = loaded(json!({}), &data, &beside);
    assert_eq!(rows, [asked(9, 0, "how", "a"), asked(9, 1, "how", "b")]);
    assert!(
        notes[0].ends_with("row 3: `prompts` has no question 7"),
        "{notes:?}"
    );
    let data = lines(&[json!({ "question_id": 9, "prompt": "Q: why A:", "completion": "a" })]);
    assert!(message(json!({}), &data, &beside).ends_with("is not that of question 9 in `prompts`"));
    let data = lines(&[json!({ "question_id": 9, "completion": "a" })]);
    assert_eq!(
        message(json!({}), &data, &Beside::default()),
        "input `data`: no column `prompt` or `prompt_ids`; found: completion, question_id"
    );
}

#[test]
fn a_cut_prompt_keeps_its_tokens() {
    let tokenizer = tokenizer();
    // Cut within a word: the text read again has other tokens.
    let ids: Vec<u32> = ["h", "a", "t"]
        .iter()
        .flat_map(|text| tokenizer.encode(text).unwrap())
        .collect();
    let data = lines(&[
        json!({ "prompt": "hat", "prompt_ids": ids, "completion": "a", "truncated": true }),
        json!({ "prompt": "that", "prompt_ids": ids, "completion": "b", "truncated": true }),
        json!({ "prompt": "that", "prompt_ids": null, "completion": "b", "truncated": true }),
    ]);
    let beside = Beside {
        tokenizer: Some(tokenizer),
        prompts: vec![Example {
            prompt: "that".to_owned(),
            ..Example::default()
        }],
    };
    let only_model = Beside {
        tokenizer: beside.tokenizer.clone(),
        ..Beside::default()
    };
    let (rows, notes) = loaded(json!({}), &data, &only_model);
    let prompts: Vec<(&str, Option<&Vec<u32>>)> = rows
        .iter()
        .map(|row| (row.prompt.as_str(), row.prompt_ids.as_ref()))
        .collect();
    assert_eq!(prompts, [("hat", Some(&ids)), ("that", None)]);
    assert!(
        notes[0].contains("row 2: `prompt_ids` spell \"hat\""),
        "{notes:?}"
    );
    let numbered = data.replace("{\"completion\"", "{\"question_id\":0,\"completion\"");
    assert_ne!(numbered, data);
    let (rows, _) = loaded(json!({}), &numbered, &beside);
    assert_eq!(rows[0].prompt_ids, Some(ids));
    assert_eq!(rows.len(), 2);
}

#[test]
fn samples_are_there_once_and_columns_have_known_names() {
    let data = lines(&[
        json!({ "prompt": "p", "completion": "a", "question_id": 1, "sample": 0, "truncated": false }),
        json!({ "prompt": "p", "completion": "b", "question_id": 1, "sample": 0, "truncated": false }),
        json!({ "prompt": "p", "completion": "b", "question_id": null, "sample": 1, "truncated": false }),
        json!({ "prompt": "p", "completion": "b", "question_id": -1, "sample": 1, "truncated": false }),
    ]);
    let (rows, notes) = loaded(json!({}), &data, &Beside::default());
    assert_eq!(rows.len(), 1);
    assert_eq!(
        notes,
        [
            "3 of 4 rows were left out: input `data`, row 2: sample 0 of question 1 is there already, and others"
        ]
    );
    assert_eq!(
        message(json!({}), "prompt,text\np,a\n", &Beside::default()),
        "input `data`: no column `completion` or `token_ids`; found: prompt, text"
    );
    let params = json!({ "columns": { "completion": "reply" } });
    assert_eq!(
        message(params, "prompt,text\np,a\n", &Beside::default()),
        "input `data`: no column `reply`; found: prompt, text"
    );
    let kind: LoadCompletions =
        serde_json::from_value(json!({ "columns": { "reply": "completion" }, "max_rows": 0 }))
            .unwrap();
    assert_eq!(kind.validate().len(), 2);
}

/// A row without question, tokens and all that may be said beside the texts.
fn said(more: Json) -> Json {
    let mut row = json!({ "prompt": "p", "completion": "a" });
    row.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    row
}

/// The message and the hint of a load that must fail.
fn refused(rows: &[Json], params: Json, beside: &Beside) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let tried = tried(folder.path(), params, &lines(rows), beside);
    match &tried.outcome {
        Err(StageError::Failed { message, hint }) => {
            (message.clone(), hint.clone().unwrap_or_default())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn reasons_of_public_servers_are_understood_and_others_are_not_guessed() {
    for (reason, truncated) in [
        ("stop", false),
        ("eos_token", false),
        ("end_turn", false),
        ("STOP", false),
        ("COMPLETE", false),
        ("length", true),
        ("LENGTH", true),
        ("max_tokens", true),
        ("MAX_TOKENS", true),
        ("max-new-tokens", true),
    ] {
        let rows = lines(&[said(json!({ "finish_reason": reason }))]);
        let (rows, notes) = loaded(json!({}), &rows, &Beside::default());
        assert_eq!((rows[0].truncated, notes.len()), (truncated, 0), "{reason}");
    }
    let data = [
        said(json!({ "finish_reason": "" })),
        said(json!({ "finish_reason": null })),
        said(json!({ "finish_reason": "content_filter" })),
    ];
    let (rows, notes) = loaded(json!({}), &lines(&data), &Beside::default());
    assert_eq!(rows.len(), 2);
    assert_eq!(
        notes[0],
        "1 of 3 rows were left out: input `data`, row 3: `finish_reason` is content_filter: it was broken off"
    );
    assert!(
        notes[1].starts_with("2 of 2 completions do not say"),
        "{notes:?}"
    );
    let rows = [said(json!({})), said(json!({ "finish_reason": "cut" }))];
    let (message, hint) = refused(&rows, json!({}), &Beside::default());
    assert_eq!(
        message,
        "input `data`, row 2: `finish_reason` is \"cut\", of which nobody knows whether it was cut off"
    );
    assert!(hint.contains("`length`"), "{hint}");
    let rows = [said(
        json!({ "finish_reason": "length", "truncated": false }),
    )];
    assert_eq!(
        refused(&rows, json!({}), &Beside::default()).0,
        "input `data`, row 1: `truncated` is false, but `finish_reason` is length"
    );
}

#[test]
fn a_question_has_one_prompt() {
    let rows = [
        said(json!({ "question_id": 1 })),
        said(json!({ "question_id": 2, "prompt": "r" })),
        said(json!({ "question_id": 1, "prompt": "q" })),
    ];
    let (message, hint) = refused(&rows, json!({}), &Beside::default());
    assert_eq!(
        message,
        "input `data`, row 3: question 1 has the prompt \"q\", another one than in input `data`, row 1"
    );
    assert!(hint.contains("`question_id`"), "{hint}");
    // A data set may ask a question in several ways.
    let example = |question_id, prompt: &str| Example {
        question_id,
        question: "q".to_owned(),
        prompt: prompt.to_owned(),
        ..Example::default()
    };
    let beside = Beside {
        prompts: vec![example(1, "p"), example(1, "q"), example(2, "r")],
        ..Beside::default()
    };
    let (rows, _) = loaded(json!({}), &lines(&rows), &beside);
    assert_eq!(rows.len(), 3);
    let rows = [json!({ "question_id": 1, "question": "why", "completion": "a" })];
    assert_eq!(
        message_of(&rows, &beside),
        "input `data`: no row can be used; 1 of 1 rows were left out: input `data`, row 1: the question \"why\" is not that \
         of number 1 in `prompts`"
    );
}

fn message_of(rows: &[Json], beside: &Beside) -> String {
    refused(rows, json!({}), beside).0
}

#[test]
fn numbers_that_cannot_be_are_refused() {
    let greatest =
        json!({ "question_id": 1u64 << 53, "sample": (1u64 << 53) - 1, "log_prob": 1e-5 });
    let (rows, _) = loaded(json!({}), &lines(&[said(greatest)]), &Beside::default());
    assert_eq!(
        (rows[0].question_id, rows[0].sample),
        (1 << 53, (1 << 53) - 1)
    );
    for (wrong, expected) in [
        (
            json!({ "question_id": (1u64 << 53) + 1 }),
            "`question_id` is 9007199254740993, expected a whole number of at most 9007199254740992",
        ),
        (
            json!({ "sample": u64::MAX }),
            "`sample` is 18446744073709551615, expected a whole number of at most 9007199254740992",
        ),
        (
            json!({ "log_prob": 0.5 }),
            "`log_prob` is 0.5, expected at most 0",
        ),
        (
            json!({ "tokens": 0 }),
            "`tokens` is 0, but the completion is not empty",
        ),
        (
            json!({ "tokens": 4, "token_ids": [1, 2] }),
            "`tokens` is 4, but `token_ids` are 2",
        ),
    ] {
        let message = message_of(&[said(wrong)], &Beside::default());
        assert_eq!(message, format!("input `data`, row 1: {expected}"));
    }
}

#[test]
fn tokens_are_those_of_the_model() {
    let tokenizer = tokenizer();
    let (that, end) = (tokenizer.encode("that").unwrap(), tokenizer.end_ids()[0]);
    let count = that.len() as u64;
    let beside = Beside {
        tokenizer: Some(tokenizer),
        ..Beside::default()
    };
    let row = |tokens: u64, ids: Option<&[u32]>, reason: &str| {
        let mut row = json!({ "prompt": "p", "completion": "that", "tokens": tokens, "finish_reason": reason });
        if let Some(ids) = ids {
            row["token_ids"] = json!(ids);
        }
        row
    };
    let ended = [that.clone(), vec![end]].concat();
    let padded = [that.clone(), vec![end; 3]].concat();
    for (row, expected) in [
        (row(count + 1, None, "stop"), count + 1),
        // Counted without the end token.
        (row(count, None, "stop"), count + 1),
        (row(count, None, "length"), count),
        (row(count + 1, Some(&ended), "stop"), count + 1),
        (row(count, Some(&padded), "stop"), count + 1),
        (row(count, Some(&that), "length"), count),
    ] {
        let (rows, _) = loaded(json!({}), &lines(std::slice::from_ref(&row)), &beside);
        assert_eq!(rows[0].tokens, Some(expected), "{row}");
    }
    for row in [
        row(count + 4, None, "stop"),
        row(count + 1, None, "length"),
        row(count + 2, Some(&padded), "stop"),
        row(count + 1, Some(&that), "length"),
    ] {
        let message = message_of(std::slice::from_ref(&row), &beside);
        let tokens = &row["tokens"];
        let expected = format!(
            "input `data`, row 1: `tokens` is {tokens}, but the completion has {count} tokens of `model` before its end"
        );
        assert_eq!(message, expected);
    }
}

#[test]
fn texts_that_spell_special_tokens_are_told_left_out_or_refused() {
    let tokenizer = tokenizer();
    let eos = tokenizer.special_tokens().eos.clone().unwrap();
    let ids = [
        tokenizer.encode("that").unwrap(),
        tokenizer.end_ids()[..1].to_vec(),
    ]
    .concat();
    let beside = Beside {
        tokenizer: Some(tokenizer),
        ..Beside::default()
    };
    let spelt = format!("that{eos}");
    let data = [
        json!({ "prompt": "p", "completion": spelt, "finish_reason": "stop" }),
        json!({ "prompt": "p", "completion": "that", "finish_reason": "stop" }),
    ];
    let (rows, notes) = loaded(json!({}), &lines(&data), &beside);
    assert_eq!(rows.len(), 2);
    assert!(
        notes[0].starts_with("warning: 1 rows spell a special token"),
        "{notes:?}"
    );
    let params = json!({ "special_tokens": "leave_out" });
    let (rows, notes) = loaded(params, &lines(&data), &beside);
    assert_eq!((rows.len(), rows[0].completion.as_str()), (1, "that"));
    let expected = format!("1 of 2 rows were left out: input `data`, row 1: it spells {eos:?}");
    assert_eq!(notes, [expected]);
    let params = json!({ "special_tokens": "refuse" });
    let (message, _) = refused(&data, params.clone(), &beside);
    let expected = format!("input `data`, row 1: it spells the special token {eos:?}");
    assert_eq!(message, expected);
    // Where there are ids, these say what it is.
    let data = [json!({ "prompt": "p", "completion": spelt, "token_ids": ids })];
    let (rows, notes) = loaded(params, &lines(&data), &beside);
    assert_eq!((rows[0].completion.as_str(), notes.len()), ("that", 0));
}
