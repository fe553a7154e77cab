//! `tokenizer.json` of other people's models.

use flowgraph::ml::tokenizer::{SpecialTokens, Tokenizer, TokenizerAlgorithm, train_tokenizer};
use serde_json::json;

use crate::watch::Reader;

const TEXTS: [&str; 3] = [
    "how do i sort a list in python ?",
    "sort a list , a table , a list",
    "na\u{ef}ve \u{65e5}\u{672c}",
];

pub(crate) fn tokenizer() -> Reader {
    let trained = |algorithm| {
        let tokenizer = train_tokenizer(algorithm, TEXTS, 290, &["<sep>"]).unwrap();
        tokenizer.to_json().unwrap().into_bytes()
    };
    let unigram = json!({
        "version": "1.0",
        "added_tokens": [{ "id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true }],
        "normalizer": { "type": "Sequence", "normalizers": [{ "type": "NFKC" }, { "type": "Replace", "pattern": { "Regex": " {2,}" }, "content": " " }, { "type": "Lowercase" }] },
        "pre_tokenizer": { "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true },
        "post_processor": null,
        "decoder": { "type": "Sequence", "decoders": [{ "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }, { "type": "ByteFallback" }, { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] },
        "model": { "type": "Unigram", "unk_id": 0, "byte_fallback": false, "vocab": [["<unk>", 0.0], ["\u{2581}a", -1.5], ["list", -2.0], ["l", -3.0], ["i", -3.0], ["s", -3.0], ["t", -3.0]] },
    });
    let word_piece = json!({
        "version": "1.0",
        "added_tokens": [{ "id": 0, "content": "[UNK]", "single_word": false, "lstrip": true, "rstrip": true, "normalized": true, "special": true }],
        "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true },
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [{ "type": "BertPreTokenizer" }, { "type": "Digits", "individual_digits": true }, { "type": "Split", "pattern": { "Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}]+" }, "behavior": "Isolated", "invert": false }] },
        "post_processor": { "type": "TemplateProcessing", "single": [{ "SpecialToken": { "id": "[CLS]", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }], "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }], "special_tokens": { "[CLS]": { "id": "[CLS]", "ids": [1], "tokens": ["[CLS]"] } } },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": { "[UNK]": 0, "[CLS]": 1, "a": 2, "li": 3, "##st": 4, "so": 5, "##rt": 6 } },
    });
    Reader {
        name: "tokenizer",
        corpus: vec![
            trained(TokenizerAlgorithm::WordLevel),
            trained(TokenizerAlgorithm::Bpe),
            unigram.to_string().into_bytes(),
            word_piece.to_string().into_bytes(),
        ],
        words: &[
            "null",
            "true",
            "[]",
            "{}",
            "\"\"",
            "\"type\":",
            "\"Unigram\"",
            "\"BPE\"",
            "\"Regex\"",
            "(a+)+$",
            ",",
            ":",
            "\"unk_id\":",
        ],
        short: 300,
        read: Box::new(|bytes| {
            let Ok(tokenizer) = Tokenizer::from_json(bytes, SpecialTokens::default()) else {
                return Ok(false);
            };
            // Ids and texts may be anything: what counts is that it ends.
            for text in TEXTS {
                if let Ok(ids) = tokenizer.encode(text) {
                    let _ = tokenizer.decode(&ids);
                }
                let _ = tokenizer.encode_prompt(text);
            }
            let _ = tokenizer.decode(&[0, 1, 5, u32::MAX]);
            Ok(true)
        }),
    }
}
