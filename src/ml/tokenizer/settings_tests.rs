//! What stands beside a document, against `transformers` 4.57.6: `AutoTokenizer.from_pretrained(folder)` gave these ids.

use serde_json::{Value, json};
use tempfile::TempDir;

use super::Tokenizer;

const WORDS: [&str; 8] = ["<unk>", "<s>", "</s>", "a", "b", "A", "\u{120}a", "<turn>"];

/// A document of whole words whose first three tokens are special.
fn document(changes: &Value) -> Value {
    let vocabulary: serde_json::Map<_, _> = WORDS
        .iter()
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), json!(id)))
        .collect();
    let added = (0..3).map(|id| {
        json!({ "id": id, "content": WORDS[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    });
    let mut document = json!({
        "version": "1.0",
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" },
    });
    for (key, value) in changes.as_object().unwrap() {
        document[key] = value.clone();
    }
    document
}

/// Writes a folder; a file that is null is not there.
fn folder(document_changes: &Value, files: &[(&str, Value)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: &Value| {
        fs_err::write(folder.path().join(name), value.to_string()).unwrap();
    };
    write("tokenizer.json", &document(document_changes));
    write("config.json", &json!({ "model_type": "llama" }));
    for (name, value) in files {
        write(name, value);
    }
    folder
}

fn loaded(changes: &Value, config: &Value) -> Result<Tokenizer, String> {
    let folder = folder(changes, &[("tokenizer_config.json", config.clone())]);
    Tokenizer::load(folder.path()).map_err(|error| error.to_string())
}

fn begins_with_s() -> Value {
    let single = json!([{ "SpecialToken": { "id": "<s>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }]);
    json!({ "post_processor": {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
        "special_tokens": { "<s>": { "id": "<s>", "ids": [1], "tokens": ["<s>"] } },
    } })
}

fn bytes(add_prefix_space: bool) -> Value {
    json!({ "pre_tokenizer": {
        "type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": true,
    } })
}

fn bert(lowercase: bool) -> Value {
    json!({ "normalizer": {
        "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null,
        "lowercase": lowercase,
    } })
}

#[test]
fn flags_of_the_documents_own_tokens_win_over_those_of_a_role() {
    let replaced = json!({ "normalizer": { "type": "Replace", "pattern": { "String": "</s>" }, "content": "b" } });
    // Were `</s>` found in what was replaced, `b` would be it.
    let token = json!({ "__type": "AddedToken", "content": "</s>", "lstrip": false, "rstrip": false,
                        "normalized": true, "single_word": false });
    let config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": token });
    let tokenizer = loaded(&replaced, &config).unwrap();
    assert_eq!(tokenizer.encode("b").unwrap(), [4]);
    assert_eq!(tokenizer.encode("</s>").unwrap(), [2]);
}

#[test]
fn settings_overrule_the_document_as_in_transformers() {
    let none = json!({});
    for (what, changes, config, text, ids) in [
        (
            "llama",
            &none,
            json!({ "tokenizer_class": "LlamaTokenizer" }),
            "A a",
            &[1, 5, 3][..],
        ),
        (
            "llama, no begin token",
            &begins_with_s(),
            json!({ "tokenizer_class": "LlamaTokenizerFast", "add_bos_token": false }),
            "A a",
            &[5, 3],
        ),
        (
            "llama, null is false",
            &begins_with_s(),
            json!({ "tokenizer_class": "LlamaTokenizer", "add_bos_token": null }),
            "A a",
            &[5, 3],
        ),
        (
            "llama, end token",
            &none,
            json!({ "tokenizer_class": "LlamaTokenizer", "add_eos_token": true }),
            "A a",
            &[1, 5, 3, 2],
        ),
        (
            "a template without a named begin token",
            &begins_with_s(),
            json!({ "tokenizer_class": "PreTrainedTokenizerFast" }),
            "A a",
            &[1, 5, 3],
        ),
        (
            "prefix space by default",
            &bytes(true),
            json!({ "tokenizer_class": "PreTrainedTokenizerFast" }),
            "a a",
            &[3, 6],
        ),
        (
            "prefix space",
            &bytes(false),
            json!({ "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true }),
            "a a",
            &[6, 6],
        ),
        (
            "prefix space of a llama",
            &bytes(true),
            json!({ "tokenizer_class": "LlamaTokenizer" }),
            "a a",
            &[1, 6, 6],
        ),
        (
            "lower case by default",
            &bert(false),
            json!({ "tokenizer_class": "BertTokenizer" }),
            "A a",
            &[3, 3],
        ),
        (
            "case kept",
            &bert(true),
            json!({ "tokenizer_class": "BertTokenizerFast", "do_lower_case": false }),
            "A a",
            &[5, 3],
        ),
        (
            "an end token that the document has as a word",
            &none,
            json!({ "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<turn>" }),
            "a<turn>a",
            &[3, 7, 3],
        ),
        (
            "one more special token",
            &none,
            json!({ "tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<turn>"] }),
            "a<turn>a",
            &[3, 7, 3],
        ),
        (
            "an added token",
            &none,
            json!({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "added_tokens_decoder": { "7": { "content": "<turn>", "special": false } },
            }),
            "a<turn>a",
            &[3, 7, 3],
        ),
    ] {
        let tokenizer = loaded(changes, &config).unwrap();
        let found = tokenizer.encode_with_special_tokens(text).unwrap();
        assert_eq!(found, ids, "{what}");
        // What a folder of ours says, once written, is the same.
        let copy = tempfile::tempdir().unwrap();
        tokenizer.save(copy.path()).unwrap();
        let again = Tokenizer::load(copy.path()).unwrap();
        assert_eq!(
            again.encode_with_special_tokens(text).unwrap(),
            ids,
            "{what}, written"
        );
        assert_eq!(
            again.to_json().unwrap(),
            tokenizer.to_json().unwrap(),
            "{what}"
        );
    }
}

#[test]
fn what_is_made_special_is_left_out_of_decoded_text() {
    let turn = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<turn>" });
    let plain = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
    let decoded = |config| {
        let tokenizer = loaded(&json!({}), &config).unwrap();
        tokenizer.decode(&[1, 3, 2, 7]).unwrap()
    };
    assert_eq!(
        (decoded(plain).as_str(), decoded(turn).as_str()),
        ("a <turn>", "a")
    );
}

#[test]
fn settings_that_the_class_passes_over_are_refused() {
    let none = json!({});
    for (changes, config, reason) in [
        (
            &none,
            json!({ "add_bos_token": true, "bos_token": "<s>" }),
            "`add_bos_token` is true, but `tokenizer.json` puts no token before a text",
        ),
        (
            &begins_with_s(),
            json!({ "add_bos_token": false }),
            "`add_bos_token` is false, but `tokenizer.json` puts a token before a text",
        ),
        (
            &none,
            json!({ "add_eos_token": true }),
            "`add_eos_token` is true, but `tokenizer.json` puts no token after a text",
        ),
        (
            &none,
            json!({ "do_lower_case": true }),
            "`do_lower_case` is true, but `tokenizer.json` does not do so",
        ),
        (
            &none,
            json!({ "add_prefix_space": true }),
            "`add_prefix_space` is true, but `tokenizer.json` puts no space before a text",
        ),
        (
            &none,
            json!({ "split_special_tokens": true }),
            "`split_special_tokens` is true, but special tokens in texts are recognised",
        ),
        (
            &none,
            json!({ "auto_map": { "AutoTokenizer": ["a.B", null] } }),
            "`auto_map` names code that comes with the model, but no code of a model is run",
        ),
    ] {
        let mut config = config;
        config["tokenizer_class"] = json!("PreTrainedTokenizerFast");
        assert_eq!(
            loaded(changes, &config).unwrap_err(),
            format!(
                "tokenizer_config.json: {reason}; make the two agree (its class is `PreTrainedTokenizer`)"
            )
        );
    }
    let error = loaded(&none, &json!({ "bos_token": 3 })).unwrap_err();
    assert_eq!(
        error,
        "invalid tokenizer: tokenizer_config.json: `bos_token` is not a token"
    );
    let moved = json!({ "added_tokens_decoder": { "9": { "content": "<turn>" } } });
    let error = loaded(&none, &moved).unwrap_err();
    assert!(error.contains("gives `<turn>` the id 9"), "{error}");
}

#[test]
fn special_tokens_are_found_wherever_they_are_named() {
    let named = |files: &[(&str, Value)]| {
        let tokenizer = Tokenizer::load(folder(&json!({}), files).path()).unwrap();
        (tokenizer.bos_id(), tokenizer.eos_id())
    };
    let plain = |more: Value| {
        let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast" });
        config
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        ("tokenizer_config.json", config)
    };
    // Without a word, a vocabulary of LLaMA's is a LLaMA's.
    assert_eq!(named(&[]), (Some(1), Some(2)));
    // An empty token is none.
    let empty = plain(json!({ "bos_token": "", "eos_token": { "content": "</s>" } }));
    assert_eq!(named(&[empty]), (None, Some(2)));
    let map = ("special_tokens_map.json", json!({ "eos_token": "</s>" }));
    assert_eq!(
        named(&[plain(json!({ "eos_token": "a" })), map.clone()]),
        (None, Some(2))
    );
    let newer = plain(json!({
        "eos_token": "a",
        "added_tokens_decoder": { "1": { "content": "<s>", "special": true } },
    }));
    assert_eq!(named(&[newer, map]), (None, Some(3)));
    // Other vocabularies have the model name them.
    let ids = json!({ "model_type": "llama", "bos_token_id": 3, "eos_token_id": [4, 5] });
    let vocabulary = json!({ "a": 0, "b": 1, "c": 2, "begin": 3, "end": 4, "turn": 5 });
    let model = json!({ "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "a" }, "added_tokens": [] });
    let folder = folder(&model, &[("config.json", ids)]);
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(3), Some(4)));
    assert_eq!(tokenizer.special_tokens().eos.as_deref(), Some("end"));
}

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
fn special_tokens_are_texts_objects_or_nothing() {
    let plain = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "b", "additional_special_tokens": ["a"] });
    let loaded = |map: Value| {
        let files = [
            ("tokenizer_config.json", plain.clone()),
            ("special_tokens_map.json", map),
        ];
        Tokenizer::load(folder(&json!({}), &files).path()).unwrap()
    };
    let object = json!({ "content": "<turn>", "lstrip": true, "normalized": false, "rstrip": false, "single_word": false });
    for map in [
        json!({ "eos_token": "<turn>" }),
        json!({ "eos_token": object }),
    ] {
        let tokenizer = loaded(map.clone());
        assert_eq!(tokenizer.eos_id(), Some(7), "{map}");
        assert_eq!(tokenizer.decode(&[7, 4]).unwrap(), "b", "{map}");
        // The space before it belongs to the token of the object alone.
        let ids = tokenizer.encode("b <turn>").unwrap();
        assert_eq!(ids, [4, 7]);
    }
    for nothing in [json!({ "eos_token": null }), json!({ "eos_token": "" })] {
        assert_eq!(loaded(nothing).eos_id(), None);
    }
    // Those of both files are special.
    let both = loaded(
        json!({ "additional_special_tokens": ["<turn>", { "content": "A", "lstrip": false }] }),
    );
    assert_eq!(both.decode(&[3, 7, 5, 4]).unwrap(), "");
}

#[test]
fn tokens_of_older_folders_are_added() {
    let plain = (
        "tokenizer_config.json",
        json!({ "tokenizer_class": "PreTrainedTokenizerFast" }),
    );
    let map = ("special_tokens_map.json", json!({ "pad_token": "<pad>" }));
    let loaded = |added: Value| {
        let files = [plain.clone(), map.clone(), ("added_tokens.json", added)];
        Tokenizer::load(folder(&json!({}), &files).path()).map_err(|error| error.to_string())
    };
    let tokenizer = loaded(json!({ "<more>": 9, "<pad>": 8, "<s>": 1 })).unwrap();
    assert_eq!(tokenizer.encode("a<more><pad>").unwrap(), [3, 9, 8]);
    assert_eq!(tokenizer.decode(&[3, 9, 8]).unwrap(), "a <more>");
    assert_eq!(
        loaded(json!({ "<s>": 4 })).unwrap_err(),
        "invalid tokenizer: added_tokens.json: `<s>` is 4, expected 1, which it is in `tokenizer.json`"
    );
    assert_eq!(
        loaded(json!({ "<pad>": 8, "<more>": 10 })).unwrap_err(),
        "invalid tokenizer: its `added_tokens` give `<more>` the id 10, expected 9: tokens that the vocabulary lacks are \
         numbered after it without a gap"
    );
    assert_eq!(
        loaded(json!({ "<pad>": "8" })).unwrap_err(),
        "invalid tokenizer: added_tokens.json: `<pad>` is \"8\", expected a token's id"
    );
}

#[test]
fn special_tokens_that_are_normalised_are_left_out_of_decoded_text() {
    let end = json!({ "id": 7, "content": "<turn>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": true, "special": true });
    let changes = json!({
        "normalizer": { "type": "Prepend", "prepend": "_" },
        "added_tokens": [end],
    });
    let tokenizer = loaded(
        &changes,
        &json!({ "tokenizer_class": "PreTrainedTokenizerFast" }),
    )
    .unwrap();
    assert_eq!(tokenizer.decode(&[3, 7]).unwrap(), "a");
    assert_eq!(
        tokenizer.decode_with_special_tokens(&[3, 7]).unwrap(),
        "a <turn>"
    );
}

/// A folder whose model has so many ids, and what becomes of its tokens.
fn with_room(size: Option<u64>, config: &str) -> Result<Tokenizer, String> {
    let mut model = json!({ "model_type": "llama" });
    if let Some(size) = size {
        model["vocab_size"] = size.into();
    }
    let folder = folder(&json!({}), &[("config.json", model)]);
    let config = format!(r#"{{"tokenizer_class": "PreTrainedTokenizerFast", {config}}}"#);
    fs_err::write(folder.path().join("tokenizer_config.json"), config).unwrap();
    Tokenizer::load(folder.path()).map_err(|error| error.to_string())
}

#[test]
fn special_tokens_that_the_vocabulary_lacks_get_the_next_ids() {
    let config = r#"
        "extra_special_tokens": { "z": "<z>", "image": { "content": "<image>" }, "known": "<turn>" },
        "additional_special_tokens": ["<turn>", "<more>"],
        "mask_token": "<mask>",
        "eos_token": "<end>""#;
    let tokenizer = with_room(Some(13), config).unwrap();
    let ids = tokenizer
        .encode("a<end><mask>a<more><z><image><turn>")
        .unwrap();
    assert_eq!(ids, [3, 8, 9, 3, 10, 11, 12, 7]);
    assert_eq!(tokenizer.eos_id(), Some(8));
    assert_eq!(tokenizer.decode(&ids).unwrap(), "a a");
    let copy = tempfile::tempdir().unwrap();
    tokenizer.save(copy.path()).unwrap();
    let again = Tokenizer::load(copy.path()).unwrap();
    assert_eq!(again.to_json().unwrap(), tokenizer.to_json().unwrap());
    let newer = r#""extra_special_tokens": ["<z>"]"#;
    let ids = with_room(Some(9), newer).unwrap().encode("<z>").unwrap();
    assert_eq!(ids, [8]);
}

#[test]
fn special_tokens_beyond_the_model_get_the_next_ids_too() {
    // Whoever loads the model gives it rows for them.
    for size in [Some(8), None] {
        let tokenizer = with_room(size, r#""mask_token": "<mask>""#).unwrap();
        assert_eq!(tokenizer.token_to_id("<mask>"), Some(8));
        assert_eq!(tokenizer.vocab_size(), 9);
    }
}

#[test]
fn lists_of_tokens_are_checked() {
    let start = "invalid tokenizer: tokenizer_config.json: ";
    for (config, reason) in [
        (
            r#""additional_special_tokens": "<a>""#,
            "is no list of tokens",
        ),
        (r#""additional_special_tokens": [3]"#, "is not a token"),
    ] {
        let error = with_room(Some(9), config).unwrap_err();
        assert_eq!(
            error,
            format!("{start}`additional_special_tokens` {reason}")
        );
    }
}

#[test]
fn many_tokens_are_found_in_little_time() {
    let many = 60_000;
    let vocabulary: Vec<Value> = (0..many)
        .map(|id| json!([format!("{id:x}"), 0.0]))
        .collect();
    let model = json!({ "type": "Unigram", "unk_id": 0, "vocab": vocabulary });
    let mut document = json!({ "model": model });
    let more: Vec<String> = (0..many).map(|id| format!("{id:x}")).collect();
    let decoder: serde_json::Map<_, _> = (0..many)
        .map(|id| {
            (
                format!("{}", many + id),
                json!({ "content": format!("<{id:x}>") }),
            )
        })
        .collect();
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": more,
        "added_tokens_decoder": decoder,
    });
    let folder = folder(&json!({}), &[("tokenizer_config.json", config)]);
    let start = std::time::Instant::now();
    let mut settings = super::Settings::read(folder.path()).unwrap();
    settings.apply(&mut document).unwrap();
    assert_eq!(document["added_tokens"].as_array().unwrap().len(), 2 * many);
    assert!(start.elapsed().as_secs() < 10);
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
