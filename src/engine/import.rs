//! `import:` brings the stages of another pipeline file under a namespace, so that shared stages are written once.
//!
//! ```yaml
//! import:
//!   base: flowhf.yaml                                             # its stages are base/sft, base/reward_model, ...
//!   real: { pipeline: flowhf.yaml, profiles: [smollm2], params: { seeds: [1] } }
//! ```
//!
//! The imported file is checked by itself, so that what is wrong with it is shown in its own lines. Then its stages and
//! params become the importing file's under `base/...`, where profiles and `--set` reach them. Among themselves its
//! stages keep their names, and so their fingerprints: results are shared with the file run by itself.

use std::path::{Path as FilePath, PathBuf};

use super::diagnostic::{Diagnostic, Path, Severity};
use super::document::{Document, Invalid};
use super::overrides::{self, Overrides};
use super::reference::is_name;
use super::spec::{Instance, Pipeline};
use super::stage::Registry;
use super::value::{Map, Value};

/// What stands between a namespace and a name.
pub(super) const SEPARATOR: char = '/';

/// Where the stages of a namespace come from.
#[derive(Debug, Clone)]
pub(super) struct Imported {
    /// The namespace with its separator, such as `base/`.
    pub(super) prefix: String,
    /// The folder that relative paths of its stages start from.
    pub(super) folder: PathBuf,
}

/// Returns the namespace of a name with its separator; empty for the file's own.
pub(super) fn namespace(name: &str) -> &str {
    name.rfind(SEPARATOR).map_or("", |at| &name[..=at])
}

/// Whether `text` can name a stage, the namespaces before it included.
pub(super) fn is_qualified_name(text: &str) -> bool {
    text.split(SEPARATOR).all(is_name)
}

/// Replaces `import` of a pipeline's root by what it brings.
///
/// # Errors
/// The first imported file that is not valid. What is wrong with `import` itself goes to `errors`.
pub(super) fn expand(
    root: &mut Map,
    document: &Document,
    registry: &Registry,
    errors: &mut Vec<Diagnostic>,
) -> Result<Vec<Imported>, Box<Invalid>> {
    expand_below(root, document, registry, errors, &mut Vec::new())
}

fn expand_below(
    root: &mut Map,
    document: &Document,
    registry: &Registry,
    errors: &mut Vec<Diagnostic>,
    open: &mut Vec<PathBuf>,
) -> Result<Vec<Imported>, Box<Invalid>> {
    let path = Path::of(["import"]);
    let imports = match root.shift_remove("import") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Map(imports)) => imports,
        Some(other) => {
            errors.push(
                Diagnostic::error(
                    path,
                    format!("`import` must be a map, found {}", other.type_name()),
                )
                .hint("for example `import: { base: flowhf.yaml }`"),
            );
            return Ok(Vec::new());
        }
    };
    let own = document
        .file
        .canonicalize()
        .unwrap_or_else(|_| document.file.clone());
    open.push(own);
    let mut found = Vec::new();
    for (name, import) in &*imports {
        let path = path.key(name);
        if !is_name(name) {
            errors.push(
                Diagnostic::error(path.clone(), format!("`{name}` cannot name an import"))
                    .at_key()
                    .hint("names match [a-z][a-z0-9_]*"),
            );
            continue;
        }
        let Some((file, overrides)) = read(import, &path, document, errors) else {
            continue;
        };
        let target = match Document::read(&file) {
            Ok(target) => target,
            Err(error) => {
                errors.push(Diagnostic::error(
                    path,
                    format!("cannot read the pipeline: {error}"),
                ));
                continue;
            }
        };
        let canonical = file.canonicalize().unwrap_or_else(|_| file.clone());
        if open.contains(&canonical) {
            errors.push(
                Diagnostic::error(path, format!("{} imports itself", file.display()))
                    .hint("pipelines cannot import each other in a ring"),
            );
            continue;
        }
        let Value::Map(mut imported) = target.parse().map_err(Box::new)? else {
            unreachable!("`parse` returns maps only");
        };
        let mut wrong = Vec::new();
        let below = expand_below(&mut imported, &target, registry, &mut wrong, open)?;
        if wrong.iter().any(|wrong| wrong.severity == Severity::Error) {
            return Err(Box::new(target.invalid(wrong)));
        }
        overrides::apply(&mut imported, &overrides, &mut wrong);
        if let Some(Value::Map(params)) = import.get(["params"]) {
            let own = imported
                .entry("params".to_owned())
                .or_insert_with(|| Value::Map(Box::default()));
            own.merge(&Value::Map(params.clone()));
        }
        wrong.extend(Pipeline::problems(
            &target,
            (*imported).clone(),
            &below,
            registry,
        ));
        wrong.retain(|wrong| wrong.severity == Severity::Error);
        if !wrong.is_empty() {
            return Err(Box::new(target.invalid(wrong)));
        }
        let prefix = format!("{name}{SEPARATOR}");
        found.extend(below.into_iter().map(|below| Imported {
            prefix: format!("{prefix}{}", below.prefix),
            ..below
        }));
        found.push(Imported {
            folder: folder_of(&file),
            prefix: prefix.clone(),
        });
        adopt(root, &imported, &prefix);
    }
    open.pop();
    Ok(found)
}

/// Reads one entry of `import`: the file and the profiles to apply.
fn read(
    import: &Value,
    path: &Path,
    document: &Document,
    errors: &mut Vec<Diagnostic>,
) -> Option<(PathBuf, Overrides)> {
    const KEYS: [&str; 3] = ["pipeline", "profiles", "params"];
    let known = errors.len();
    let mut overrides = Overrides::default();
    let file = match import {
        Value::String(file) => file.clone(),
        Value::Map(map) => {
            for key in map.keys().filter(|key| !KEYS.contains(&key.as_str())) {
                errors.push(
                    Diagnostic::error(path.key(key), format!("unknown key `{key}` of an import"))
                        .at_key()
                        .hint("an import holds `pipeline`, `profiles` and `params`"),
                );
            }
            match map.get("profiles") {
                None | Some(Value::Null) => {}
                Some(Value::List(profiles))
                    if profiles.iter().all(|profile| profile.as_str().is_some()) =>
                {
                    let names = profiles.iter().filter_map(Value::as_str);
                    overrides.profiles = names.map(str::to_owned).collect();
                }
                Some(_) => errors.push(
                    Diagnostic::error(path.key("profiles"), "`profiles` must be a list of names")
                        .hint("for example `profiles: [smollm2]`"),
                ),
            }
            if let Some(params) = map.get("params")
                && params.as_map().is_none()
            {
                errors.push(Diagnostic::error(
                    path.key("params"),
                    "`params` must be a map",
                ));
            }
            match map.get("pipeline").and_then(Value::as_str) {
                Some(file) => file.to_owned(),
                None => {
                    errors.push(
                        Diagnostic::error(path.clone(), "an import needs its `pipeline`")
                            .hint("for example `base: { pipeline: flowhf.yaml }`"),
                    );
                    return None;
                }
            }
        }
        other => {
            errors.push(Diagnostic::error(
                path.clone(),
                format!("expected a pipeline file, found {}", other.type_name()),
            ));
            return None;
        }
    };
    (errors.len() == known).then(|| (folder_of(&document.file).join(file), overrides))
}

pub(super) fn folder_of(file: &FilePath) -> PathBuf {
    let folder = file.parent().unwrap_or(FilePath::new(""));
    if folder.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        folder.to_owned()
    }
}

/// Puts the params and stages of an imported file into the importing one, under `prefix`.
fn adopt(root: &mut Map, imported: &Map, prefix: &str) {
    for section in ["params", "stages"] {
        let Some(Value::Map(entries)) = imported.get(section) else {
            continue;
        };
        let target = root
            .entry(section.to_owned())
            .or_insert_with(|| Value::Map(Box::default()));
        let Value::Map(target) = target else { continue };
        // Before the file's own: what is imported is needed by them.
        let mut merged: Map = entries
            .iter()
            .map(|(name, value)| (format!("{prefix}{name}"), qualified(value, prefix)))
            .collect();
        merged.extend(std::mem::take(&mut **target));
        **target = merged;
    }
}

/// Makes `${}` of an imported file refer to its own params, wherever it was imported.
fn qualified(value: &Value, prefix: &str) -> Value {
    match value {
        Value::String(text) if text.contains("${") => {
            let mut result = String::new();
            let mut rest = text.as_str();
            while let Some(at) = rest.find("${") {
                let escaped = rest[..at].ends_with('$');
                result.push_str(&rest[..at + 2]);
                rest = &rest[at + 2..];
                let name = rest.trim_start();
                if !escaped && !name.starts_with("matrix.") {
                    result.push_str(prefix);
                    rest = name;
                }
            }
            result.push_str(rest);
            Value::String(result)
        }
        Value::List(items) => {
            Value::List(items.iter().map(|item| qualified(item, prefix)).collect())
        }
        Value::Map(map) => map
            .iter()
            .map(|(key, item)| (key.clone(), qualified(item, prefix)))
            .collect(),
        other => other.clone(),
    }
}

/// Leaves out imported stages that no stage of the file itself needs.
pub(super) fn needed_by_own(stages: Vec<Instance>) -> Vec<Instance> {
    let mut needed = vec![false; stages.len()];
    let own = (0..stages.len()).filter(|at| namespace(&stages[*at].template).is_empty());
    let mut open: Vec<usize> = own.collect();
    while let Some(stage) = open.pop() {
        if !std::mem::replace(&mut needed[stage], true) {
            let items = stages[stage].inputs.iter().flat_map(|input| &input.items);
            open.extend(items.map(|item| item.producer));
        }
    }
    let mut places = vec![0; stages.len()];
    let mut kept: Vec<Instance> = Vec::new();
    for (at, stage) in stages.into_iter().enumerate() {
        if needed[at] {
            places[at] = kept.len();
            kept.push(stage);
        }
    }
    for item in kept
        .iter_mut()
        .flat_map(|stage| &mut stage.inputs)
        .flat_map(|input| &mut input.items)
    {
        item.producer = places[item.producer];
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_params_are_qualified_and_nothing_else_is() {
        let text = |text: &str| Value::String(text.to_owned());
        for (given, expected) in [
            ("${seed}", "${base/seed}"),
            ("a ${ x.y } b ${z}", "a ${base/x.y } b ${base/z}"),
            (
                "${matrix.seed} $x $${literal}",
                "${matrix.seed} $x $${literal}",
            ),
        ] {
            assert_eq!(qualified(&text(given), "base/"), text(expected));
        }
    }

    #[test]
    fn a_namespace_is_all_before_the_last_separator() {
        assert_eq!(namespace("sft"), "");
        assert_eq!(namespace("a/b/sft"), "a/b/");
        assert!(
            is_qualified_name("a/sft")
                && !is_qualified_name("a//sft")
                && !is_qualified_name("/sft")
        );
    }
}
