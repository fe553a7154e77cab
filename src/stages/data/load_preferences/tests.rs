//! Pairs in each layout, questions, templates, faults.

use polars::prelude::{Column, DataFrame, IntoSeries, NamedFrom, ParquetWriter, Series};

use super::*;
use crate::ml::tokenizer::chat::Message;

fn kind(params: &str) -> LoadPreferences {
    serde_yaml::from_str(params).unwrap()
}

fn loaded(
    kind: &LoadPreferences,
    data: impl AsRef<[u8]>,
) -> Result<(Vec<Example>, PairsLeftOut), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    fs_err::write(&path, data).unwrap();
    kind.load(&path, "file:d").map_err(|error| match error {
        StageError::Failed { message, .. } => message,
        StageError::Interrupted => unreachable!(),
    })
}

fn examples(kind: &LoadPreferences, data: impl AsRef<[u8]>) -> Vec<Example> {
    loaded(kind, data).unwrap().0
}

const PAIRS: &str = "qid,question,response_j,response_k\n\
    7,why so,because,no idea\n\
    7,why so,because,dunno\n\
    7,why so,same,same\n\
    9,how come,thus,\"a, b\"\n\
    7,what a long question,x,y\n";

#[test]
fn stack_exchange_pairs_become_prompts() {
    let kind = kind(
        "{ source: d, layout: stack_exchange_paired, template: stack_llama, max_question_chars: 9 }",
    );
    let found = examples(&kind, PAIRS);
    let ids: Vec<u64> = found.iter().map(|example| example.question_id).collect();
    assert_eq!(ids, [0, 0, 1]);
    assert_eq!(found[2].prompt, "Question: how come\n\nAnswer: ");
    assert_eq!(found[2].rejected.as_deref(), Some("a, b"));
    assert_eq!(found[0].chosen.as_deref(), Some("because"));
}

#[test]
fn questions_are_limited_whole_and_shuffled_by_seed() {
    let text = "{ source: d, layout: stack_exchange_paired, max_pairs_per_question: 1, max_rows: 2, seed: 1 }";
    let first = examples(&kind(text), PAIRS);
    assert_eq!(first.len(), 2);
    assert_ne!(first[0].question_id, first[1].question_id);
    assert_eq!(examples(&kind(text), PAIRS), first);
    let orders: std::collections::BTreeSet<Vec<u64>> = (0..20)
        .map(|seed| {
            let kind = kind(&text.replace("seed: 1", &format!("seed: {seed}")));
            examples(&kind, PAIRS)
                .iter()
                .map(|example| example.question_id)
                .collect()
        })
        .collect();
    assert!(orders.len() > 2, "{orders:?}");
}

#[test]
fn long_questions_are_cut_at_white_space() {
    let text = "{ source: d, layout: stack_exchange_paired, max_question_chars: 13, long_questions: cut, \
                max_answer_chars: 3, template: 'Q {question} A ' }";
    let found = examples(&kind(text), PAIRS);
    assert_eq!(found.last().unwrap().prompt, "Q what a long A ");
    assert_eq!(found[0].chosen.as_deref(), Some("bec"));
    assert_eq!(found[0].rejected.as_deref(), Some("no"));
}

const DIALOGUES: &str = concat!(
    r#"{"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: So.", "rejected": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: Sorry."}"#,
    "\n",
    r#"{"chosen": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant: A", "rejected": "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"}"#,
    "\n"
);

#[test]
fn dialogues_keep_their_turns() {
    let plain = examples(&kind("{ source: d, layout: anthropic_hh }"), DIALOGUES);
    // The second pair has an empty answer.
    assert_eq!(plain.len(), 1);
    assert_eq!(
        plain[0].prompt,
        "\n\nHuman: Hi?\n\nAssistant: Hello.\n\nHuman: Why?\n\nAssistant:"
    );
    // The space that the file has between `Assistant:` and the answer.
    assert_eq!(plain[0].chosen.as_deref(), Some(" So."));
    assert_eq!(plain[0].rejected.as_deref(), Some(" Sorry."));
    assert_eq!(
        plain[0].question,
        "Human: Hi?\n\nAssistant: Hello.\n\nHuman: Why?"
    );
    let chat = examples(
        &kind("{ source: d, layout: anthropic_hh, template: chatml }"),
        DIALOGUES,
    );
    assert_eq!(chat[0].chosen.as_deref(), Some("So."));
    assert_eq!(
        chat[0].prompt,
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n\
         <|im_start|>assistant\n"
    );
    let cut = "{ source: d, layout: anthropic_hh, max_question_chars: 40, long_questions: cut }";
    assert_eq!(
        examples(&kind(cut), DIALOGUES)[0].prompt,
        "\n\nHuman: Why?\n\nAssistant:"
    );
}

#[test]
fn what_stands_before_the_first_tag_is_not_lost_in_chats() {
    let chat = |before: &str, template: &str| {
        let side = |answer: &str| format!("{before}Human: Hi?\n\nAssistant: {answer}");
        let data = dialogues(&[(&side("Yes."), &side("No."))]);
        let params = format!("{{ source: d, layout: anthropic_hh, template: {template} }}");
        examples(&kind(&params), data)[0].prompt.clone()
    };
    let turns = "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(chat("", "chatml"), turns);
    assert_eq!(chat("\n\n", "chatml"), turns);
    let told = format!("<|im_start|>system\nBe kind.<|im_end|>\n{turns}");
    assert_eq!(chat("Be kind.\n\n", "chatml"), told);
    assert_eq!(chat("Be kind.\n\n", "smollm2"), told);
    assert!(chat("", "smollm2").starts_with("<|im_start|>system\nYou are a helpful"));
}

#[test]
fn many_turns_are_cut() {
    // Work that grew with their square would show: minutes.
    let turn = "\n\nHuman: a\n\nAssistant: b";
    let cut = |question: &mut super::super::question::Question| {
        assert!(question.cut(60));
        assert!(question.length() <= 60 && question.length() > 30);
        assert!(!question.cut(20), "the last turn stays");
    };
    let many = 100_000;
    let whole = format!(
        "Human: first{}\n\nHuman: last\n\nAssistant:",
        turn.repeat(many)
    );
    cut(&mut super::super::question::Question::Dialogue(whole));
    let turns = [Message::new("user", "a"), Message::new("assistant", "b")];
    let turns = turns.iter().cycle().take(2 * many).cloned();
    let turns = turns.chain([Message::new("user", "last")]).collect();
    cut(&mut super::super::question::Question::Turns(turns));
}

fn dialogues(rows: &[(&str, &str)]) -> String {
    let rows = rows.iter().map(|(chosen, rejected)| {
        serde_json::json!({ "chosen": chosen, "rejected": rejected }).to_string() + "\n"
    });
    rows.collect()
}

#[test]
fn dialogues_that_part_early_or_share_nothing_are_left_out_and_counted() {
    let hi = "\n\nHuman: Hi?\n\nAssistant:";
    let long = format!("{hi} Yes.\n\nHuman: Why?\n\nAssistant: So.");
    let (yes, no, loud) = (
        format!("{hi} Yes."),
        format!("{hi} No."),
        format!("{hi}\nYES"),
    );
    let data = dialogues(&[
        (&yes, &no),
        (&long, &no),
        ("a", "b"),
        (&loud, &yes),
        (&no, &no),
    ]);
    let data = data + "{\"chosen\": null, \"rejected\": \"x\"}\n";
    let hh = kind("{ source: d, layout: anthropic_hh }");
    let (found, left_out) = loaded(&hh, data).unwrap();
    let chosen: Vec<&str> = found
        .iter()
        .filter_map(|example| example.chosen.as_deref())
        .collect();
    assert_eq!(chosen, [" Yes.", "\nYES"]);
    let note = left_out.note().unwrap();
    for part in [
        "4 of 6 pairs were left out: 1 with an empty cell or answer, 1 with twice the same answer",
        "1 whose dialogues share no beginning",
        "1 with a further turn in an answer",
        "; the first: file:d, row 2: a pair with a further turn in an answer",
    ] {
        assert!(note.contains(part), "{note}");
    }
}

#[test]
fn a_file_without_a_usable_pair_says_why() {
    let said = |params: &str, data: &str| {
        let (found, left_out) = loaded(&kind(params), data).unwrap();
        assert!(found.is_empty());
        match left_out.nothing_left("file:d") {
            StageError::Failed { message, hint } => format!("{message}; {}", hint.unwrap()),
            StageError::Interrupted => unreachable!(),
        }
    };
    let stack = "{ source: d, layout: stack_exchange_paired, max_question_chars: 3 }";
    let header = "qid,question,response_j,response_k\n";
    assert_eq!(
        said(stack, header),
        "file:d: it has no row; expected a file with at least one pair"
    );
    let long = said(stack, &format!("{header}1,question,a,b\n"));
    assert!(
        long.ends_with("raise `max_question_chars`, or set `long_questions: cut`"),
        "{long}"
    );
    let same = said(stack, &format!("{header}1,q,a,a\n"));
    assert!(
        same.ends_with("1 with twice the same answer; the first: file:d, row 1: a pair with twice the same answer; look at the file: a pair has two different answers"),
        "{same}"
    );
    let hh = said(
        "{ source: d, layout: anthropic_hh }",
        &dialogues(&[("a", "b")]),
    );
    assert!(hh.ends_with("see `layout`"), "{hh}");
}

#[test]
fn no_more_is_read_than_max_rows_wants() {
    // What follows the second row is no CSV.
    let data = "qid,question,response_j,response_k\n1,q,a,b\n2,r,a,b\n3,s,a,b,c\n";
    let limited = "{ source: d, layout: stack_exchange_paired, max_rows: 2 }";
    assert_eq!(examples(&kind(limited), data).len(), 2);
    let shuffled = limited.replace("max_rows: 2", "max_rows: 2, seed: 1");
    let error = loaded(&kind(&shuffled), data).unwrap_err();
    assert!(error.starts_with("file:d, row 3: 5 values"), "{error}");
}

#[test]
fn text_beyond_the_allowance_is_refused() {
    let rows: String = (0..20_000)
        .map(|row| format!("{row},question {row},{},no\n", "a".repeat(40)))
        .collect();
    let data = format!("qid,question,response_j,response_k\n{rows}");
    let text = "{ source: d, layout: stack_exchange_paired, max_text_mb: 1 }";
    let error = loaded(&kind(text), &data).unwrap_err();
    assert!(error.contains("its rows hold more than 1 MiB"), "{error}");
    assert_eq!(
        examples(&kind(&text.replace(": 1 }", ": 90 }")), &data).len(),
        20_000
    );
}

/// The note about what was left out of a file with one good row.
fn note(kind: &LoadPreferences, data: impl AsRef<[u8]>) -> String {
    let (found, left_out) = loaded(kind, data).unwrap();
    assert_eq!(found.len(), 1);
    left_out.note().unwrap()
}

#[test]
fn one_row_that_cannot_be_read_is_left_out_and_named() {
    let stack = kind("{ source: d, layout: stack_exchange_paired }");
    let data = "qid,question,response_j,response_k\n1,a,b,c\nx,a,b,c\n2,a,,c\ny,a,b,c\n";
    assert_eq!(
        note(&stack, data),
        "3 of 4 pairs were left out: 1 with an empty cell or answer, 2 that cannot be read; \
         the first: file:d, row 2: `qid` is x, expected a whole number"
    );
    let hh = kind("{ source: d, layout: anthropic_hh }");
    let side = |answer: &str| format!("\n\nHuman: Hi?\n\nAssistant: {answer}");
    let good = dialogues(&[(&side("Yes."), &side("No."))]);
    for (bad, fault) in [
        ("{\"chosen\": \"a\"}", "`rejected` is missing"),
        (
            "{\"chosen\": null, \"rejected\": \"a\"}",
            "`chosen` is empty",
        ),
        (
            "{\"chosen\": [\"a\"], \"rejected\": \"a\"}",
            "`chosen` is neither text nor a number",
        ),
    ] {
        let note = note(&hh, format!("{bad}\n{good}"));
        let end = format!("; the first: file:d, row 1: {fault}");
        assert!(
            note.starts_with("1 of 2 pairs were left out: 1 ") && note.ends_with(&end),
            "{note}"
        );
    }
    let latin = b"chosen,rejected\ncaf\xe9,b\n";
    let (found, left_out) = loaded(&hh, latin).unwrap();
    assert!(found.is_empty());
    assert!(
        left_out.note().unwrap().ends_with("`chosen` is not UTF-8"),
        "{left_out:?}"
    );
    let kind = kind("{ source: d, layout: anthropic_hh, template: 'no placeholder' }");
    assert_eq!(kind.validate().len(), 1);
}

const TURNS: &str = concat!(
    r#"{"context": [{"role": "human", "text": "Hi?"}, {"role": "assistant", "text": "Hello."}, {"role": "human", "text": "Why?\n\nHuman: no turn"}], "chosen": {"role": "assistant", "text": "So."}, "rejected": {"role": "assistant", "text": "Go."}}"#,
    "\n",
    r#"{"context": [{"role": "human", "text": "Who?"}], "chosen": {"text": "Me."}, "rejected": {"text": " "}}"#,
    "\n",
    r#"{"context": [{"role": "human", "text": "Who?"}], "chosen": {"text": "Me."}, "rejected": {"text": "You."}}"#,
    "\n"
);

/// A list of turns for each row, as polars has it.
fn turns_column(rows: &[&[(&str, &str)]]) -> Column {
    let lists: Vec<Series> = rows
        .iter()
        .map(|turns| {
            let (roles, texts): (Vec<&str>, Vec<&str>) = turns.iter().copied().unzip();
            structures("", &[("role", &roles), ("text", &texts)])
        })
        .collect();
    Series::new("context".into(), lists).into()
}

fn structures(name: &str, fields: &[(&str, &[&str])]) -> Series {
    let columns: Vec<Column> = fields
        .iter()
        .map(|(name, values)| Series::new((*name).into(), *values).into())
        .collect();
    let frame = DataFrame::new(fields[0].1.len(), columns).unwrap();
    frame.into_struct(name.into()).into_series()
}

fn parquet(columns: Vec<Column>) -> Vec<u8> {
    let mut frame = DataFrame::new(columns[0].len(), columns).unwrap();
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).finish(&mut frame).unwrap();
    bytes
}

fn nested_parquet() -> Vec<u8> {
    let first = [
        ("human", "Hi?"),
        ("assistant", "Hello."),
        ("human", "Why?\n\nHuman: no turn"),
    ];
    let who = [("human", "Who?")];
    parquet(vec![
        turns_column(&[&first, &who, &who]),
        structures("chosen", &[("text", &["So.", "Me.", "Me."])]).into(),
        structures(
            "rejected",
            &[
                ("role", &["assistant", "assistant", "assistant"]),
                ("text", &["Go.", " ", "You."]),
            ],
        )
        .into(),
    ])
}

#[test]
fn turns_of_pku_become_prompts_from_json_lines_and_from_parquet() {
    let chat = kind("{ source: d, layout: pku_hh, template: chatml }");
    let found = examples(&chat, TURNS);
    // The second pair has an empty answer.
    assert_eq!(found.len(), 2);
    assert_eq!(
        found[0].prompt,
        "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n\
         <|im_start|>user\nWhy?\n\nHuman: no turn<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(found[0].chosen.as_deref(), Some("So."));
    assert_eq!(found[1].rejected.as_deref(), Some("You."));
    assert_eq!([found[0].question_id, found[1].question_id], [0, 1]);
    assert_eq!(examples(&chat, nested_parquet()), found);

    let plain = examples(&kind("{ source: d, layout: pku_hh }"), TURNS);
    assert_eq!(plain[1].prompt, "\n\nHuman: Who?\n\nAssistant:", "as in HH");
    assert_eq!(plain[1].question, "Human: Who?");
    assert_eq!(plain[1].chosen.as_deref(), Some(" Me."));
    let cut = "{ source: d, layout: pku_hh, max_question_chars: 52, long_questions: cut }";
    let found = examples(&kind(cut), TURNS);
    assert_eq!(
        found[0].prompt, "\n\nHuman: Why?\n\nHuman: no turn\n\nAssistant:",
        "what a turn says is no turn"
    );
    let shorter = cut.replace("52", "40");
    assert_eq!(examples(&kind(&shorter), TURNS).len(), 1);
}

#[test]
fn answers_of_pku_that_are_none_are_left_out_and_counted() {
    let asked = r#""context": [{"role": "human", "text": "Who?"}]"#;
    let row = |asked: &str, chosen: &str| {
        format!("{{{asked}, \"chosen\": {chosen}, \"rejected\": {{\"text\": \"You.\"}}}}\n")
    };
    let data = [
        row(asked, r#"{"role": "assistant", "text": "Me."}"#),
        row(asked, r#"{"role": null, "text": "Him."}"#),
        row(asked, r#"{"role": "human", "text": "Me."}"#),
        row(asked, r#"{"text": "Me.\n\nHuman: Why?"}"#),
        row(asked, r#"{"text": null}"#),
        row(
            r#""context": [{"role": "human", "text": null}]"#,
            r#"{"text": "Me."}"#,
        ),
        row(r#""context": [null]"#, r#"{"text": "Me."}"#),
    ];
    let pku = kind("{ source: d, layout: pku_hh }");
    let (found, left_out) = loaded(&pku, data.concat()).unwrap();
    assert_eq!(found.len(), 2);
    assert_eq!(
        left_out.note().unwrap(),
        "5 of 7 pairs were left out: 3 with an empty cell or answer, 1 with a further turn in an answer, \
         1 with an answer of the role `human`; the first: file:d, row 3: a pair with an answer of the role `human`"
    );
}

#[test]
fn summaries_lose_the_words_that_announce_them() {
    let rows = concat!(
        r#"{"prompt": "POST: a\n\nTL;DR:", "chosen": "TL;DR: one", "rejected": " TL;DR:two "}"#,
        "\n",
        r#"{"prompt": "POST: b", "chosen": "x", "rejected": "TL;DR: x"}"#,
        "\n",
        r#"{"prompt": "POST: b", "chosen": "so TL;DR: y", "rejected": "TL;DR:"}"#,
        "\n",
        r#"{"prompt": "POST: a\n\nTL;DR:", "chosen": "three", "rejected": "four"}"#,
        "\n"
    );
    let layout = "{ source: d, layout: openai_summarize_comparisons, template: chatml }";
    let found = examples(&kind(layout), rows);
    // Of the second question one pair has the same summary twice, the other an empty one.
    let answers = |example: &Example| (example.chosen.clone(), example.rejected.clone());
    let text = |text: &str| Some(text.to_owned());
    assert_eq!(
        found.iter().map(answers).collect::<Vec<_>>(),
        [(text("one"), text("two")), (text("three"), text("four"))]
    );
    assert_eq!([found[0].question_id, found[1].question_id], [0, 0]);
    assert_eq!(
        found[0].prompt,
        "<|im_start|>user\nPOST: a\n\nTL;DR:<|im_end|>\n<|im_start|>assistant\n"
    );
    let one = layout.replace("template: chatml", "max_pairs_per_question: 1");
    let plain = examples(&kind(&one), rows);
    assert_eq!(plain.len(), 1);
    assert_eq!(plain[0].prompt, "POST: a\n\nTL;DR:");
    assert_eq!(plain[0].chosen.as_deref(), Some(" one"));
}

#[test]
fn damaged_nested_rows_are_named() {
    let good = r#""chosen": {"text": "a"}, "rejected": {"text": "b"}}"#;
    let pku = kind("{ source: d, layout: pku_hh }");
    let refused = |data: &[u8]| loaded(&pku, data).unwrap_err();
    let first = |data: &[u8]| {
        let (_, left_out) = loaded(&pku, data).unwrap();
        left_out.rows.first.unwrap()
    };
    for (context, message) in [
        (r"[]", "`context` has no turn"),
        (
            r#""Hi""#,
            "`context`: invalid type: string \"Hi\", expected a sequence",
        ),
        (
            r#"[{"role": "user", "text": "a"}]"#,
            "`context`: unknown variant `user`, expected `human` or `assistant`",
        ),
        (r#"[{"role": "human"}]"#, "`context`: missing field `text`"),
    ] {
        let whole = format!("{{\"context\": [{{\"role\": \"human\", \"text\": \"q\"}}], {good}\n");
        let error = first(format!("{whole}{{\"context\": {context}, {good}\n").as_bytes());
        let expected = format!("file:d, row 2: {message}");
        assert!(error.starts_with(&expected), "{error}");
    }
    let error = first(br#"{"context": [{"role": "human", "text": "q"}], "chosen": {"text": "a"}}"#);
    assert_eq!(error, "file:d, row 1: `rejected` is missing");

    let who = turns_column(&[&[("human", "Who?")]]);
    let text: Column = Series::new("chosen".into(), ["a"]).into();
    let answer: Column = structures("rejected", &[("text", &["b"])]).into();
    let error = first(&parquet(vec![who.clone(), text, answer.clone()]));
    let expected = "file:d, row 1: `chosen`: invalid type: string \"a\", expected struct Reply";
    assert!(error.starts_with(expected), "{error}");
    let other: Column = structures("chosen", &[("words", &["a"])]).into();
    let error = first(&parquet(vec![who.clone(), other, answer.clone()]));
    let expected = "file:d, row 1: `chosen`: missing field `text`";
    assert!(error.starts_with(expected), "{error}");
    let error = refused(&parquet(vec![who, answer]));
    assert!(error.starts_with("file:d: no column `chosen`"), "{error}");

    let whole = nested_parquet();
    for end in [whole.len() / 4, whole.len() / 2, whole.len() - 1] {
        let error = refused(&whole[..end]);
        assert!(error.starts_with("file:d"), "{error}");
    }
    // Nested columns are no text.
    let (_, left_out) = loaded(&kind("{ source: d, layout: anthropic_hh }"), &whole).unwrap();
    assert_eq!(
        left_out.rows.first.unwrap(),
        "file:d, row 1: `chosen` is neither text nor a number"
    );
}
