//! Settings that overrule the document, and those that cannot.

use serde_json::{Value, json};

use super::super::super::Tokenizer;
use super::loaded;

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
