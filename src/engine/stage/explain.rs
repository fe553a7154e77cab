//! What is wrong with params that could not be read: all of it, and not only what serde stopped at.

use serde_json::Value as Json;

use super::words::in_words;
use super::{Kind, Problem, schema};
use crate::engine::diagnostic::{Path, Segment, did_you_mean};
use crate::excerpt::{NAME, excerpt};

/// Finds every problem of params that do not parse: serde stops at the first.
pub(super) fn explain<K: Kind>(params: &Json) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut params = match params {
        Json::Object(map) => map.clone(),
        other => {
            return vec![Problem {
                path: Path::default(),
                at_key: false,
                message: format!(
                    "expected a map of params, found {}",
                    excerpt(&other.to_string(), NAME)
                ),
                hint: None,
            }];
        }
    };
    let schema = schema::<K>();
    let empty = serde_json::Map::new();
    let properties = schema
        .get("properties")
        .and_then(Json::as_object)
        .unwrap_or(&empty);
    let known: Vec<&str> = properties.keys().map(String::as_str).collect();
    let unknown: Vec<String> = params
        .keys()
        .filter(|key| !known.contains(&key.as_str()))
        .cloned()
        .collect();
    for key in unknown {
        params.remove(&key);
        problems.push(Problem {
            path: Path::of([key.as_str()]),
            at_key: true,
            message: format!("unknown param `{key}` of `{}`", K::NAME),
            hint: called(&schema, properties, &key)
                .map(|path| format!("it is called `{path}` here"))
                .or_else(|| did_you_mean(&key, known.iter().copied()))
                .or_else(|| Some(format!("`flowgraph kinds {}` lists its params", K::NAME))),
        });
    }
    let required = schema
        .get("required")
        .and_then(Json::as_array)
        .cloned()
        .unwrap_or_default();
    let missing: Vec<String> = required
        .iter()
        .filter_map(Json::as_str)
        .filter(|key| !params.contains_key(*key))
        .map(str::to_owned)
        .collect();
    for key in &missing {
        problems.push(Problem {
            path: Path::default(),
            at_key: false,
            message: format!("missing param `{key}` of `{}`", K::NAME),
            hint: about(&schema, key),
        });
    }
    // Each round removes the value that serde stopped at, so that it goes on to the next.
    let mut trial = params.clone();
    for _ in 0..params.len() {
        let Err(error) = serde_path_to_error::deserialize::<_, K>(Json::Object(trial.clone()))
        else {
            break;
        };
        let path = json_path(error.path());
        let Some(Segment::Key(top)) = path.0.first().cloned() else {
            if problems.is_empty() {
                problems.push(Problem {
                    path: Path::default(),
                    at_key: false,
                    message: in_words(&error.into_inner().to_string()).0,
                    hint: None,
                });
            }
            break;
        };
        let (message, hint) = in_words(&error.into_inner().to_string());
        let unknown = message.strip_prefix("unknown key `");
        let unknown = unknown.and_then(|rest| rest.strip_suffix('`'));
        let called = unknown.and_then(|name| {
            let within = schema.get("properties")?.get(&*top)?;
            let (inner, _) = members(&schema, within)?
                .iter()
                .find(|(_, param)| is_called(param, name))?;
            Some(format!("it is called `{inner}` here"))
        });
        problems.push(Problem {
            hint: called.or(hint).or_else(|| about(&schema, &top)),
            ..Problem::at(path.clone(), format!("`{path}`: {message}"))
        });
        if trial.remove(&*top).is_none() {
            break;
        }
    }
    problems
}

/// Finds the param that a name means: another program's name of it, which its schema has under `also`, or the name of one
/// within a param.
fn called(
    schema: &schemars::Schema,
    properties: &serde_json::Map<String, Json>,
    name: &str,
) -> Option<String> {
    let own = properties.iter().find(|(_, param)| is_called(param, name));
    own.map(|(key, _)| key.clone()).or_else(|| {
        properties.iter().find_map(|(key, param)| {
            let mut within = members(schema, param)?.iter();
            let found = within.find(|(inner, param)| *inner == name || is_called(param, name));
            found.map(|(inner, _)| format!("{key}.{inner}"))
        })
    })
}

/// Whether other programs have a name for a param.
fn is_called(param: &Json, name: &str) -> bool {
    let also = param.get("also").and_then(Json::as_array);
    also.is_some_and(|also| also.iter().any(|other| other == name))
}

/// The params within a param that is a map.
fn members<'a>(
    schema: &'a schemars::Schema,
    param: &Json,
) -> Option<&'a serde_json::Map<String, Json>> {
    let within = defined(schema, param).or_else(|| {
        // Of a param that may be absent.
        let forms = param.get("anyOf")?.as_array()?;
        forms.iter().find_map(|form| defined(schema, form))
    });
    within?.get("properties")?.as_object()
}

/// Returns the definition that a part of a schema refers to, if it is a reference.
fn defined<'a>(schema: &'a schemars::Schema, part: &Json) -> Option<&'a Json> {
    schema.pointer(part.get("$ref")?.as_str()?.strip_prefix('#')?)
}

/// Returns what a param is, as the first paragraph of its documentation says, with the names of its forms.
fn about(schema: &schemars::Schema, key: &str) -> Option<String> {
    let param = schema.get("properties")?.get(key)?;
    let description = param.get("description")?.as_str()?;
    let paragraph = description.split("\n\n").next()?;
    let words: Vec<&str> = paragraph.split_whitespace().collect();
    let forms = defined(schema, param).unwrap_or(param).get("oneOf");
    let forms = forms.and_then(Json::as_array);
    let names: Vec<&str> = forms
        .into_iter()
        .flatten()
        .filter_map(|form| form.get("required")?.as_array())
        .filter_map(|required| match required.as_slice() {
            [Json::String(name)] => Some(name.as_str()),
            _ => None,
        })
        .collect();
    let forms = if names.len() > 1 {
        format!(" One of `{}`.", names.join("`, `"))
    } else {
        String::new()
    };
    Some(format!("`{key}`: {}{forms}", words.join(" ")))
}

fn json_path(path: &serde_path_to_error::Path) -> Path {
    use serde_path_to_error::Segment as Step;
    Path(
        path.iter()
            .filter_map(|step| match step {
                Step::Seq { index } => Some(Segment::Index(*index)),
                Step::Map { key } => Some(Segment::Key(key.as_str().into())),
                Step::Enum { .. } | Step::Unknown => None,
            })
            .collect(),
    )
}
