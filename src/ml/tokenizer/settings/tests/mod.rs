//! What stands beside a document, against `transformers` 4.57.6: `AutoTokenizer.from_pretrained(folder)` gave these ids.

mod carried;
mod overruled;
mod special_tokens;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::super::Tokenizer;

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
