//! Tokens that the settings name or add.

use serde_json::{Value, json};

use super::super::super::Tokenizer;
use super::super::Settings;
use super::{folder, loaded};

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
    let mut settings = Settings::read(folder.path()).unwrap();
    settings.apply(&mut document).unwrap();
    assert_eq!(document["added_tokens"].as_array().unwrap().len(), 2 * many);
    assert!(start.elapsed().as_secs() < 10);
}
