//! SentencePiece files against `transformers` 4.57.6: `tests/fixtures/sentencepiece/make.py` says how they were made.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::super::{SpecialTokens, Tokenizer};
use super::{PieceClass, SentencePieceModel, document};

#[derive(Deserialize)]
struct Case {
    name: String,
    model: String,
    stored: String,
    files: Map<String, Value>,
    length: usize,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    parts: Map<String, Value>,
    texts: Vec<Expected>,
}

#[derive(Deserialize)]
struct Expected {
    text: String,
    ids: Vec<u32>,
    bare: Vec<u32>,
    decoded: String,
    whole: String,
}

fn fixtures() -> &'static Path {
    Path::new(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/sentencepiece"
    ))
}

fn folder(model: &str, stored: &str, files: &Map<String, Value>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs_err::copy(fixtures().join(model), folder.path().join(stored)).unwrap();
    for (name, content) in files {
        fs_err::write(folder.path().join(name), content.to_string()).unwrap();
    }
    folder
}

fn without_table(mut part: Value) -> Value {
    if part.to_string().contains("precompiled_charsmap") {
        part = "too long".into();
    }
    part
}

fn assert_as_recorded(case: &Case, tokenizer: &Tokenizer, what: &str) {
    for expected in &case.texts {
        let what = format!("{}{what}: {:?}", case.name, expected.text);
        let ids = tokenizer
            .encode_with_special_tokens(&expected.text)
            .unwrap();
        assert_eq!(ids, expected.ids, "{what}");
        assert_eq!(
            tokenizer.encode(&expected.text).unwrap(),
            expected.bare,
            "{what}"
        );
        assert_eq!(tokenizer.decode(&ids).unwrap(), expected.decoded, "{what}");
        let whole = tokenizer.decode_with_special_tokens(&ids).unwrap();
        assert_eq!(whole, expected.whole, "{what}");
    }
}

#[test]
fn pieces_make_the_tokenizer_that_transformers_makes_of_them() {
    let mut seen = 0;
    for model in ["bpe", "unigram", "gemma", "t5", "xlmr"] {
        let cases = fs_err::read(fixtures().join(format!("{model}.json"))).unwrap();
        let cases: Vec<Case> = serde_json::from_slice(&cases).unwrap();
        for case in cases {
            let folder = folder(&case.model, &case.stored, &case.files);
            let tokenizer = Tokenizer::load(folder.path()).unwrap();
            assert_eq!(tokenizer.vocab_size(), case.length, "{}", case.name);
            let ids = (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad);
            assert_eq!(ids, (case.bos, case.eos, case.pad), "{}", case.name);
            assert_as_recorded(&case, &tokenizer, "");
            let document: Value = serde_json::from_str(&tokenizer.to_json().unwrap()).unwrap();
            for (part, expected) in &case.parts {
                // Two texts are never put together here, and for LLaMA's class two templates say the same.
                if part != "post_processor" {
                    let found = without_table(document[part].clone());
                    assert_eq!(found, *expected, "{}, {part}", case.name);
                }
            }
            let copy = tempfile::tempdir().unwrap();
            tokenizer.save(copy.path()).unwrap();
            let again = Tokenizer::load(copy.path()).unwrap();
            assert_as_recorded(&case, &again, ", written");
            seen += 1;
        }
    }
    assert_eq!(seen, 19);
}

/// A field of bytes.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut length = bytes.len();
    let mut field = vec![number << 3 | 2];
    while length > 127 {
        field.push(length as u8 & 127 | 128);
        length >>= 7;
    }
    field.push(length as u8);
    [&field, bytes].concat()
}

fn piece(text: &[u8], score: f32) -> Vec<u8> {
    let score = [&[0x15][..], &score.to_le_bytes()].concat();
    field(1, &[field(1, text), score].concat())
}

fn reason(bytes: &[u8]) -> String {
    let class = PieceClass::Llama;
    let built = SentencePieceModel::parse(bytes)
        .and_then(|model| document(&model, class, &mut Map::new()))
        .unwrap_err();
    let error = built.to_string();
    let reason = error.strip_prefix("invalid tokenizer: not a SentencePiece model: ");
    reason.unwrap_or(&error).to_owned()
}

#[test]
fn files_that_are_no_models_are_refused_by_what_is_wrong() {
    let bpe = field(2, &[0x18, 2]);
    let a = piece(b"a", 0.0);
    for (bytes, expected) in [
        (vec![], "it has no pieces"),
        (
            b"IQ== 0\nIg== 1\n".to_vec(),
            "it is a list of tiktoken's, which has the same name and is not read here; \
             `AutoTokenizer.from_pretrained(folder).save_pretrained(folder)` writes a `tokenizer.json`",
        ),
        (b"<unk> 0".to_vec(), "a field of the wire type 4"),
        // A length that the file does not have.
        (
            [0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f].to_vec(),
            "a field of 9223372036854775807 bytes, where 0 are left in the file",
        ),
        (
            vec![0x08],
            "a field of 1 bytes, where 0 are left in the file",
        ),
        ([0x80].repeat(40), "a number of more than ten bytes"),
        (piece(b"\xff", 0.0), "a text in it is not UTF-8"),
        (
            piece(b"a", f32::NAN),
            "piece `a` has the score NaN, expected a number",
        ),
        ([a.clone(), piece(b"", 0.0)].concat(), "a piece is empty"),
        (
            [a.clone(), a.clone()].concat(),
            "it has the piece `a` twice",
        ),
        (
            [a.clone(), field(2, &[0x18, 3])].concat(),
            "its `trainer_spec.model_type` is 3 (word), expected 1 (unigram) or 2 (bpe)",
        ),
        (
            [
                (1..4000)
                    .flat_map(|length| piece(&b"a".repeat(length), 0.0))
                    .collect(),
                bpe,
            ]
            .concat(),
            "invalid tokenizer: its pieces split into more than 64 MiB of merges",
        ),
    ] {
        assert_eq!(reason(&bytes), expected);
    }
}

#[test]
fn damaged_files_are_errors() {
    for (name, class) in [
        ("bpe", PieceClass::Llama),
        ("gemma", PieceClass::Gemma),
        ("t5", PieceClass::T5),
        ("xlmr", PieceClass::XlmRoberta),
    ] {
        let whole = fs_err::read(fixtures().join(format!("{name}.model"))).unwrap();
        let attempt = |bytes: &[u8]| {
            let model = SentencePieceModel::parse(bytes);
            let built = model.and_then(|model| document(&model, class, &mut Map::new()));
            let built = built
                .and_then(|document| Tokenizer::from_document(document, SpecialTokens::default()));
            if let Ok(tokenizer) = &built {
                let ids = tokenizer.encode("ab \u{fb01} a").unwrap_or_default();
                let _ = tokenizer.decode(&ids);
            }
            built.is_ok()
        };
        assert!(attempt(&whole), "{name}");
        for step in 0..150 {
            // Places all over the file, more of them where pieces end and settings begin.
            let position = step * 7919 % whole.len();
            attempt(&whole[..position]);
            for replacement in [0, 0x7f, 0x80, 0xff] {
                let mut damaged = whole.clone();
                damaged[position] = replacement;
                attempt(&damaged);
            }
        }
    }
}

#[test]
fn classes_that_are_made_otherwise_are_named() {
    let error = |file: &str, config: Value| {
        let files = json!({ "config.json": config });
        let folder = folder("bpe.model", file, files.as_object().unwrap());
        Tokenizer::load(folder.path()).unwrap_err().to_string()
    };
    for (file, config, found) in [
        (
            "tokenizer.model",
            json!({ "model_type": "qwen2" }),
            "PreTrainedTokenizer",
        ),
        (
            "tokenizer.model",
            json!({ "tokenizer_class": "AlbertTokenizer" }),
            "AlbertTokenizer",
        ),
        (
            "spiece.model",
            json!({ "model_type": "llama" }),
            "LlamaTokenizer",
        ),
    ] {
        let error = error(file, config);
        let start = format!("{file}: the tokenizer's class is `{found}`, which is not made of");
        assert!(error.starts_with(&start), "{error}");
        assert!(error.contains("save_pretrained(folder)` writes a `tokenizer.json`"));
    }
}

#[test]
fn settings_that_do_not_fit_the_pieces_are_named() {
    let error = |model: &str, stored: &str, settings: Value| {
        let files = json!({ "config.json": {}, "tokenizer_config.json": settings });
        let folder = folder(model, stored, files.as_object().unwrap());
        let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
        error
            .strip_prefix("invalid tokenizer: ")
            .unwrap_or(&error)
            .to_owned()
    };
    let llama = |more: Value| {
        let mut settings = json!({ "tokenizer_class": "LlamaTokenizer" });
        settings
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        error("bpe.model", "tokenizer.model", settings)
    };
    assert_eq!(
        llama(json!({ "legacy": 1 })),
        "tokenizer.model: tokenizer_config.json: `legacy` is 1, expected true or false"
    );
    assert_eq!(
        llama(json!({ "added_tokens_decoder": { "7": { "content": "<s>" } } })),
        "tokenizer_config.json: `added_tokens_decoder` gives `<s>` the id 7, expected 1, which it has in `tokenizer.model`"
    );
    assert_eq!(
        llama(json!({ "added_tokens_decoder": { "500": { "content": "<late>" } } })),
        "its `added_tokens` give `<late>` the id 500, expected 420: tokens that the vocabulary lacks are numbered after it \
         without a gap"
    );
    assert_eq!(
        error(
            "t5.model",
            "spiece.model",
            json!({
                "tokenizer_class": "T5Tokenizer", "extra_ids": 2, "additional_special_tokens": ["<extra_id_0>"],
            })
        ),
        "spiece.model: tokenizer_config.json: `additional_special_tokens` names 1 tokens `<extra_id_...>`, expected 2, \
         which is `extra_ids` (100 if it is absent)"
    );
    assert_eq!(
        error(
            "gemma.model",
            "tokenizer.model",
            json!({ "tokenizer_class": "GemmaTokenizer", "pad_token": null })
        ),
        "tokenizer.model: not a SentencePiece model: tokenizer_config.json: `pad_token` names no token, which a Gemma must \
         have"
    );
}

#[test]
fn a_stated_prefix_space_overrules_a_document_of_its_own_as_in_transformers() {
    let cases = fs_err::read(fixtures().join("bpe.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_slice(&cases).unwrap();
    let of = |name: &str| cases.iter().find(|case| case.name == name).unwrap();
    let case = of("a space, not legacy, an end token");
    let made = folder(&case.model, &case.stored, &case.files);
    let own = Tokenizer::load(made.path()).unwrap().to_json().unwrap();
    for other in ["llama 1", "a space, not legacy, an end token"] {
        // The document of other settings, or of these.
        let other = of(other);
        let source = folder(&other.model, &other.stored, &other.files);
        let document = Tokenizer::load(source.path()).unwrap().to_json().unwrap();
        fs_err::write(made.path().join("tokenizer.json"), document).unwrap();
        let read = Tokenizer::load(made.path()).unwrap();
        assert_as_recorded(case, &read, ", with a document");
        assert_eq!(read.to_json().unwrap(), own);
    }
}
