//! The normalizer and the pre-tokenizer of a document, and their members.

use serde_json::{Value, json};

/// Whether texts are lowered.
pub(super) fn lowers_case(document: &Value) -> bool {
    any_part(document, &|part| match part["type"].as_str() {
        Some("Lowercase") => true,
        Some("BertNormalizer") => part["lowercase"] != false,
        _ => false,
    })
}

/// Has a document lower texts before anything else, unless it does so already.
pub(super) fn lower(document: &mut Value) {
    if lowers_case(document) {
        return;
    }
    let lower = json!({ "type": "Lowercase" });
    let before = document["normalizer"].take();
    document["normalizer"] = match before {
        Value::Null => lower,
        before => json!({ "type": "Sequence", "normalizers": [lower, before] }),
    };
}

/// Tells whether normalizer or pre-tokenizer, or a member of theirs, is what is looked for.
pub(super) fn any_part(document: &Value, wanted: &dyn Fn(&Value) -> bool) -> bool {
    fn within(part: &Value, wanted: &dyn Fn(&Value) -> bool) -> bool {
        let members = ["normalizers", "pretokenizers"]
            .iter()
            .filter_map(|key| part.get(*key)?.as_array());
        wanted(part) || members.flatten().any(|member| within(member, wanted))
    }
    ["normalizer", "pre_tokenizer"]
        .iter()
        .filter_map(|key| document.get(*key))
        .any(|part| within(part, wanted))
}
