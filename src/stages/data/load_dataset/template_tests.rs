//! Rows that are put together by templates.

use serde_json::{Value as Json, json};

use super::tests::{assistant, examples, lines, load, user};
use super::*;
use crate::artifacts::dataset::Dataset;
use crate::engine::artifact::Digest;
use crate::ml::tokenizer::{TokenizerAlgorithm, train_tokenizer};
use crate::stages::tryout::{Tried, attempt};

const BOS: &str = "<bos>";
const EOS: &str = "<eos>";

fn with_template(rows: &[Json], template: Option<&str>) -> Tried {
    with_params(&lines(rows), template, json!({ "template": "model" }))
}

/// Loads rows with a chat template and a tokenizer that begins prompts itself.
fn with_params(rows: &str, template: Option<&str>, params: Json) -> Tried {
    let folder = tempfile::tempdir().unwrap();
    let (path, model) = (
        folder.path().join("data.jsonl"),
        folder.path().join("model"),
    );
    fs_err::write(&path, rows).unwrap();
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
fn texts_that_spell_special_tokens_are_left_out_or_refused() {
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    // The fill token, which neither begins nor ends a text.
    let rows = [
        json!({ "messages": [user("a"), assistant("b")] }),
        json!({ "messages": [user("a"), assistant("b <pad>")] }),
    ];
    let load_with = |special: &str| {
        let params = json!({ "template": "model", "special_tokens": special });
        with_params(&lines(&rows), Some(template), params)
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

#[test]
fn all_that_messages_hold_reaches_the_template_or_is_told() {
    let call = json!([{ "function": { "name": "f", "arguments": { "z": 1, "a": 2 } } }]);
    let thought = json!({ "role": "assistant", "content": "b", "reasoning_content": "hm", "thinking": null, "name": "" });
    let rows = [
        json!({ "messages": [user("a"), thought, user("c"), assistant("d")] }),
        json!({ "messages": [user("a"), { "role": "assistant", "content": null, "tool_calls": call }], "tools": [] }),
        json!({ "messages": [user("a"), { "role": "assistant", "content": null }] }),
    ];
    let calls = "{% if m.tool_calls %}{{ m.tool_calls[0].function | tojson }}{% endif %}";
    let thoughts = "{% if m.reasoning_content %}<{{ m.reasoning_content }}>{% endif %}";
    let template = |wrote: &str| {
        format!(
            "{{% for m in messages %}}[{{{{ m.role }}}}]{{{{ m.content or '' }}}}{wrote}{{% endfor %}}{{% if add_generation_prompt %}}[assistant]{{% endif %}}"
        )
    };
    let read = |tried: &Tried| {
        tried.outcome.as_ref().unwrap();
        let rows = Dataset::read(&tried.output("data")).unwrap().examples;
        let rows = rows
            .into_iter()
            .map(|row| (row.prompt, row.chosen.unwrap()));
        rows.collect::<Vec<_>>()
    };
    let example = |prompt: &str, chosen: &str| (prompt.to_owned(), chosen.to_owned());
    let called = example(
        "[user]a[assistant]",
        r#"{"arguments": {"z": 1, "a": 2}, "name": "f"}"#,
    );
    let lost = |tried: &Tried| -> Vec<String> {
        let notes = tried.told.notes.iter();
        notes
            .filter(|note| note.contains("it is lost"))
            .cloned()
            .collect()
    };

    // Keys in the order of the file.
    let text = lines(&rows).replace(r#"{"a":2,"z":1}"#, r#"{"z":1,"a":2}"#);
    let both = template(&format!("{thoughts}{calls}"));
    let tried = with_params(&text, Some(&both), json!({ "template": "model" }));
    let thought = example("[user]a[assistant]b<hm>[user]c[assistant]", "d");
    assert_eq!(read(&tried), [thought, called.clone()]);
    assert_eq!(lost(&tried), [""; 0]);
    let notes = &tried.told.notes;
    let told = |says: &str| notes.iter().any(|note| note.contains(says));
    assert!(
        told("1 of 3 rows were left out")
            && told("row 3: `messages` is no list of messages: missing field `content`"),
        "{notes:?}"
    );
    assert!(told("is not given the column `tools`"), "{notes:?}");

    let tried = with_params(
        &text,
        Some(&template(calls)),
        json!({ "template": "model" }),
    );
    let plain = example("[user]a[assistant]b[user]c[assistant]", "d");
    assert_eq!(read(&tried), [plain, called]);
    let warning = |name: &str| {
        format!(
            "warning: messages of 1 rows hold {name:?}, which the template does not write: it is lost"
        )
    };
    assert_eq!(lost(&tried), [warning("reasoning_content")]);

    let (tried, _folder) = load("data.jsonl", &lines(&rows), json!({ "template": "chatml" }));
    assert_eq!(read(&tried).len(), 1);
    assert_eq!(lost(&tried), [warning("reasoning_content")]);
    let notes = &tried.told.notes;
    assert!(
        notes
            .iter()
            .any(|note| note.contains("row 2: a message has no `content`")),
        "{notes:?}"
    );

    // What only a model's template writes may spell its tokens, too.
    let spelt = json!({ "messages": [user("a"), { "role": "assistant", "content": "b", "reasoning_content": EOS }] });
    let params = json!({ "template": "model", "special_tokens": "refuse" });
    let tried = with_params(&lines(&[spelt]), Some(&template(thoughts)), params);
    assert!(
        tried.message().contains("spells the special token"),
        "{}",
        tried.message()
    );
}
