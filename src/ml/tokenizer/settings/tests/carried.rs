//! What a tokenizer hands on to the folders it is written into.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::super::Tokenizer;
use super::{folder, loaded};

#[test]
fn what_other_programs_need_is_carried_along() {
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "old",
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 512,
        "truncation_side": "left",
    });
    let folder = folder(&json!({}), &[("tokenizer_config.json", config)]);
    fs_err::write(folder.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(tokenizer.max_length(), Some(512));
    let cut = tokenizer.clone().truncated_to(1).unwrap();
    assert_eq!(cut.encode_with_special_tokens("a b").unwrap(), [4]);
    let copy = tempfile::tempdir().unwrap();
    tokenizer.save(copy.path()).unwrap();
    let written = fs_err::read(copy.path().join("tokenizer_config.json")).unwrap();
    let written: Value = serde_json::from_slice(&written).unwrap();
    assert_eq!(written["chat_template"], "{{ messages }}");
    assert_eq!(written["model_max_length"], 512);
    assert_eq!(written["truncation_side"], "left");
    // Every exported folder says so.
    assert!(written.get("model_input_names").is_none());
    let again = tempfile::tempdir().unwrap();
    Tokenizer::load(copy.path())
        .unwrap()
        .save(again.path())
        .unwrap();
    let bytes =
        |folder: &TempDir| fs_err::read(folder.path().join("tokenizer_config.json")).unwrap();
    assert_eq!(bytes(&again), bytes(&copy));
}

#[test]
fn templates_of_chats_are_kept_byte_for_byte() {
    let plain = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    let template = "{%- for m in messages %}\r\n  {{ m['content'] }}\u{e9}\t{% endfor %}\n";
    let named = json!([{ "name": "default", "template": template }, { "name": "tool_use", "template": "t" }]);
    let with = |template: &Value| {
        let mut config = plain.clone();
        config["chat_template"] = template.clone();
        config
    };
    let of_processors = ("chat_template.json", json!({ "chat_template": template }));
    let text = Value::from(template);
    let none: [(&str, &str); 0] = [];
    let jinja = [("chat_template.jinja", template)];
    let additional = [("additional_chat_templates/tool_use.jinja", "t")];
    let both = [jinja[0], additional[0]];
    for (files, written, expected) in [
        (
            vec![("tokenizer_config.json", with(&text))],
            &none[..],
            &text,
        ),
        (
            vec![("tokenizer_config.json", with(&named))],
            &none[..],
            &named,
        ),
        (
            vec![("tokenizer_config.json", with(&"old".into()))],
            &jinja[..],
            &text,
        ),
        (
            vec![("tokenizer_config.json", plain.clone())],
            &both[..],
            &named,
        ),
        (
            vec![
                ("tokenizer_config.json", plain.clone()),
                of_processors.clone(),
            ],
            &none[..],
            &text,
        ),
        (
            vec![
                ("tokenizer_config.json", with(&"own".into())),
                of_processors,
            ],
            &none[..],
            &"own".into(),
        ),
        (
            vec![("tokenizer_config.json", with(&"old".into()))],
            &additional[..],
            &json!([{ "name": "tool_use", "template": "t" }]),
        ),
    ] {
        let folder = folder(&json!({}), &files);
        fs_err::create_dir(folder.path().join("additional_chat_templates")).unwrap();
        for (name, text) in written {
            fs_err::write(folder.path().join(name), text).unwrap();
        }
        let copy = tempfile::tempdir().unwrap();
        Tokenizer::load(folder.path())
            .unwrap()
            .save(copy.path())
            .unwrap();
        let saved = fs_err::read(copy.path().join("tokenizer_config.json")).unwrap();
        let saved: Value = serde_json::from_slice(&saved).unwrap();
        assert_eq!(saved["chat_template"], *expected);
    }
}

#[test]
fn decoded_text_is_cleaned_up_where_the_folder_says_so() {
    let decoder = json!({ "model": {
        "type": "WordLevel", "unk_token": "<unk>",
        "vocab": { "<unk>": 0, "<s>": 1, "</s>": 2, "we": 3, "'re": 4, "n't": 5, ".": 6, "'": 7, "do": 8 },
    } });
    let decoded = |cleans: bool| {
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": cleans,
        });
        let tokenizer = loaded(&decoder, &config).unwrap();
        let copy = tempfile::tempdir().unwrap();
        tokenizer.save(copy.path()).unwrap();
        let again = Tokenizer::load(copy.path()).unwrap();
        let ids = [3, 4, 6, 8, 5, 7, 3, 6];
        assert_eq!(again.decode(&ids).unwrap(), tokenizer.decode(&ids).unwrap());
        // What a model reads is not changed.
        assert!(tokenizer.decode_prompt(&ids).unwrap().contains("we ."));
        tokenizer.decode(&ids).unwrap()
    };
    assert_eq!(decoded(true), "we're. don't'we.");
    assert_eq!(decoded(false), "we 're . do n't ' we .");
}
