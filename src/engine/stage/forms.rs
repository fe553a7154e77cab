//! What the value of a param can be, as its JSON schema says it.

use serde_json::Value as Json;

use super::{resolved, variants};

/// Lists and options within each other, at most.
const DEEPEST: usize = 8;

/// A form of a value that has several.
pub enum Form<'a> {
    /// One of these texts.
    Names(Vec<&'a str>),
    /// A map of which this key has this text, with its other keys.
    Tagged(&'a str, &'a str, &'a Json),
    /// A map with this only key, and what belongs there.
    Keyed(&'a str, &'a Json),
    /// Anything else.
    Other(&'a Json),
}

/// Follows references, options, lists and maps to what they hold.
pub fn inside<'a>(value: &'a Json, root: &'a Json) -> &'a Json {
    let mut value = resolved(value, root);
    for _ in 0..DEEPEST {
        let option = value.get("anyOf").and_then(|_| match forms_of(value)[..] {
            [only] => Some(only),
            _ => None,
        });
        let held = ["items", "additionalProperties"].into_iter();
        let held = held
            .filter_map(|key| value.get(key))
            .find(|of| of.is_object());
        match option.or(held) {
            Some(next) => value = resolved(next, root),
            None => break,
        }
    }
    value
}

/// Returns the forms of a value; that it may be null is none.
pub fn forms_of(value: &Json) -> Vec<&Json> {
    let is_null = |form: &&Json| form.get("type").is_some_and(|of| of == "null");
    variants(value).filter(|form| !is_null(form)).collect()
}

/// Says what a form is.
pub fn form_of<'a>(form: &'a Json, root: &'a Json) -> Form<'a> {
    let form = resolved(form, root);
    if let Some(name) = form.get("const").and_then(Json::as_str) {
        return Form::Names(vec![name]);
    }
    if let Some(names) = form.get("enum").and_then(Json::as_array) {
        return Form::Names(names.iter().filter_map(Json::as_str).collect());
    }
    let mut tags = properties(form).filter_map(|(key, of)| Some((key, of.get("const")?.as_str()?)));
    if let Some((key, name)) = tags.next() {
        return Form::Tagged(key, name, form);
    }
    let mut keys = properties(form);
    match (keys.next(), keys.next(), required(form).as_slice()) {
        (Some((key, of)), None, [only]) if key == *only => Form::Keyed(key, of),
        _ => Form::Other(form),
    }
}

/// Returns the keys of a map with what belongs there.
pub fn properties(of: &Json) -> impl Iterator<Item = (&str, &Json)> {
    let properties = of.get("properties").and_then(Json::as_object);
    let properties = properties.into_iter().flatten();
    properties.map(|(key, of)| (key.as_str(), of))
}

/// Returns the keys that a map must have.
pub fn required(of: &Json) -> Vec<&str> {
    let required = of.get("required").and_then(Json::as_array);
    let required = required.into_iter().flatten();
    required.filter_map(Json::as_str).collect()
}

/// Returns what a part of a schema says of itself.
pub fn description(of: &Json) -> &str {
    of.get("description")
        .and_then(Json::as_str)
        .unwrap_or_default()
}
