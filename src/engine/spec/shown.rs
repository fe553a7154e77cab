//! The stages whose tables `run` prints, as the key `show` names them.

use std::collections::BTreeSet;

use super::Instance;
use crate::engine::diagnostic::{Diagnostic, Path, did_you_mean};
use crate::engine::value::{Map, Value};

/// The stages of a file that has `show`, before profiles take some away.
pub(super) fn written(root: &Map) -> BTreeSet<String> {
    let stages = root.get("stages").and_then(Value::as_map);
    let stages = stages.filter(|_| root.contains_key("show"));
    stages.map_or_else(BTreeSet::new, |stages| stages.keys().cloned().collect())
}

/// Reads `show`; `written` are the stages of the file, of which a profile may have taken some away.
pub(super) fn read(
    value: Option<&Value>,
    written: &BTreeSet<String>,
    stages: &[Instance],
    errors: &mut Vec<Diagnostic>,
) -> Vec<String> {
    let path = Path::of(["show"]);
    let Some(value) = value else {
        return Vec::new();
    };
    let Value::List(names) = value else {
        let message = format!("`show` must be a list, found {}", value.type_name());
        errors.push(
            Diagnostic::error(path, message).hint("names of stages, such as `show: [table]`"),
        );
        return Vec::new();
    };
    let known: BTreeSet<&str> = stages.iter().map(|stage| stage.template.as_str()).collect();
    let mut shown = Vec::new();
    for (at, name) in names.iter().enumerate() {
        let path = path.index(at);
        let Some(name) = name.as_str() else {
            let message = format!("`show` names stages, found {}", name.type_name());
            errors.push(Diagnostic::error(path, message));
            continue;
        };
        if known.contains(name) {
            shown.push(name.to_owned());
        } else if !written.contains(name) {
            let message = format!("`show` has `{name}`, which is no stage");
            let hint = did_you_mean(name, known.iter().copied());
            errors.push(Diagnostic::error(path, message).maybe_hint(hint));
        }
    }
    shown
}
