//! What serde says in words of Rust, in those of pipeline files.

use crate::engine::diagnostic::did_you_mean;

/// Says what was expected and what was found, with a hint if there is one to give.
pub(super) fn in_words(said: &str) -> (String, Option<String>) {
    let wrong = said
        .strip_prefix("invalid type: ")
        .or_else(|| said.strip_prefix("invalid value: "))
        .and_then(|rest| rest.rsplit_once(", expected "));
    if let Some((found, expected)) = wrong {
        let message = format!("expected {}, found {}", wanted(expected), given(found));
        return (message, spelling(found, expected));
    }
    for (beginning, what) in [("unknown variant ", "value"), ("unknown field ", "key")] {
        let rest = said.strip_prefix(beginning);
        if let Some((found, expected)) = rest.and_then(|rest| rest.split_once(", ")) {
            let found = found.trim_matches('`');
            // Between backticks; commas and words between them.
            let known = expected.split('`').skip(1).step_by(2);
            return (
                format!("unknown {what} `{found}`"),
                did_you_mean(found, known),
            );
        }
    }
    if let Some(field) = said.strip_prefix("missing field ") {
        return (format!("missing key {field}"), None);
    }
    if said.starts_with("data did not match any variant") {
        return ("it has none of the possible forms".to_owned(), None);
    }
    (said.to_owned(), None)
}

fn wanted(expected: &str) -> String {
    match expected {
        "u8" | "u16" => "a small whole number of at least 0".to_owned(),
        "u32" => "a whole number from 0 to 4294967295".to_owned(),
        "u64" | "usize" => "a whole number of at least 0".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        "a sequence" => "a list".to_owned(),
        "map with a single key" => "a map with one key".to_owned(),
        _ if expected.contains("struct ") || expected.contains("tagged enum ") => {
            "a map".to_owned()
        }
        other => other.to_owned(),
    }
}

fn given(found: &str) -> String {
    match found {
        "sequence" => "a list".to_owned(),
        "map" => "a map".to_owned(),
        "null" | "unit value" => "nothing".to_owned(),
        _ => match found.split_once(' ') {
            Some(("integer" | "boolean", value)) => value.to_owned(),
            Some(("floating", value)) => value.trim_start_matches("point ").to_owned(),
            Some(("string", value)) => format!("the text {value}"),
            _ => found.to_owned(),
        },
    }
}

/// How a value is spelled that was probably meant.
fn spelling(found: &str, expected: &str) -> Option<String> {
    let text = found
        .strip_prefix("string ")
        .map(|text| text.trim_matches('"'));
    let is_whole = matches!(wanted(expected).as_str(), text if text.contains("whole number"));
    if is_whole && let Some(value) = found.strip_prefix("floating point ") {
        let whole = value.trim_matches('`').strip_suffix(".0")?;
        return Some(format!("write `{whole}`"));
    }
    match (wanted(expected).as_str(), text?) {
        ("`true` or `false`", "yes" | "on" | "Yes" | "On" | "YES") => {
            Some("write `true`".to_owned())
        }
        ("`true` or `false`", "no" | "off" | "No" | "Off" | "NO") => {
            Some("write `false`".to_owned())
        }
        ("a list", text) => Some(format!("a list of one is `[{text}]`")),
        ("a number", text) if text.parse::<f64>().is_ok() => {
            Some(format!("write `{text}`, without quotes"))
        }
        (_, text) if is_whole && text.parse::<i64>().is_ok() => {
            Some(format!("write `{text}`, without quotes"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_about_pipeline_files_and_not_about_rust() {
        for (said, message, hint) in [
            (
                "invalid type: floating point `1000.0`, expected usize",
                "expected a whole number of at least 0, found `1000.0`",
                Some("write `1000`"),
            ),
            (
                "invalid type: string \"1e-3\", expected f64",
                "expected a number, found the text \"1e-3\"",
                Some("write `1e-3`, without quotes"),
            ),
            (
                "invalid value: integer `-3`, expected u64",
                "expected a whole number of at least 0, found `-3`",
                None,
            ),
            (
                "invalid type: string \"yes\", expected a boolean",
                "expected `true` or `false`, found the text \"yes\"",
                Some("write `true`"),
            ),
            (
                "invalid type: string \"main.py\", expected a sequence",
                "expected a list, found the text \"main.py\"",
                Some("a list of one is `[main.py]`"),
            ),
            (
                "invalid type: string \"dpo\", expected internally tagged enum PreferenceLoss",
                "expected a map, found the text \"dpo\"",
                None,
            ),
            (
                "unknown variant `adaptve`, expected `fixed` or `adaptive`",
                "unknown value `adaptve`",
                Some("did you mean `adaptive`?"),
            ),
            (
                "unknown field `momentum`, expected one of `lr`, `beta1`, `beta2`",
                "unknown key `momentum`",
                Some("expected one of: lr, beta1, beta2"),
            ),
            ("missing field `lr`", "missing key `lr`", None),
            ("something else", "something else", None),
        ] {
            let (told, hinted) = in_words(said);
            assert_eq!((told.as_str(), hinted.as_deref()), (message, hint));
        }
    }
}
