//! Texts from outside, harmless in HTML: they cannot act on a page, and what would hide in it is seen.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::super::text::visible;

/// Converts to JSON in which no text holds a control character or one that turns the direction of reading, names of
/// keys included: they are written as `\u{202e}`.
///
/// # Errors
/// What has no JSON, such as maps whose keys are no text.
pub(super) fn readable(value: &impl Serialize) -> serde_json::Result<Json> {
    Ok(made_readable(serde_json::to_value(value)?))
}

fn made_readable(value: Json) -> Json {
    match value {
        Json::String(text) => Json::String(visible(&text).into_owned()),
        Json::Array(values) => values.into_iter().map(made_readable).collect(),
        Json::Object(entries) => {
            let entries = entries
                .into_iter()
                .map(|(key, value)| (visible(&key).into_owned(), made_readable(value)));
            Json::Object(entries.collect())
        }
        other => other,
    }
}

/// Writes JSON for a `<script type="application/json">`: nothing in it ends the element or begins a comment.
pub(super) fn in_script(value: &Json) -> String {
    let text = value.to_string();
    text.replace('<', "\\u003c")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// Returns what a Content-Security-Policy calls an inline script or style.
pub(super) fn policy_hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text)))
}

/// Returns an image as a URL that holds it. What a browser shows of it as an `<img>` runs no script and loads nothing.
pub(super) fn image_url(media_type: &str, bytes: &[u8]) -> String {
    format!("data:{media_type};base64,{}", STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_in_a_text_ends_its_script_or_hides() {
        let value = json!({
            "a</script>": ["<!--<script>", "\u{2028}\x1b[31m\u{202e}txt"], "n": 1, "line": "one\n\ttwo",
        });
        let readable = readable(&value).unwrap();
        let text = in_script(&readable);
        assert!(!text.contains('<'), "{text}");
        assert!(text.is_ascii(), "{text}");
        assert_eq!(serde_json::from_str::<Json>(&text).unwrap(), readable);
        assert_eq!(
            readable["a</script>"][1],
            "\\u{2028}\\u{1b}[31m\\u{202e}txt"
        );
        assert_eq!(readable["line"], "one\n\ttwo");
        // Where nobody made it readable first, it still ends no line of a script.
        assert_eq!(in_script(&json!("\u{2028}")), "\"\\u2028\"");
    }

    #[test]
    fn hashes_are_those_of_browsers() {
        // Of the empty text, from the Secure Hash Standard.
        let empty = "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='";
        assert_eq!(policy_hash(""), empty);
        assert_eq!(image_url("image/png", b"ab"), "data:image/png;base64,YWI=");
    }
}
