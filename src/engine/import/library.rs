//! What imports bring of the files they name: stages and params, as far as they are needed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path as FilePath, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;

use crate::engine::diagnostic::{Diagnostic, Path};
use crate::engine::document::folder_of;
use crate::engine::interpolate::{Account, Scope};
use crate::engine::matrix;
use crate::engine::overrides::Overrides;
use crate::engine::profiles;
use crate::engine::reference::{Reference, SEPARATOR, namespace};
use crate::engine::value::{Map, Value};

/// Stages that the imports of a file may bring. Two files that each import the next one twice are four copies of it;
/// twenty of them would be a million.
const MOST: usize = 20_000;

/// What a file's imports brought.
#[derive(Debug, Default)]
pub(in crate::engine) struct Imported {
    /// The namespaces of the stages, such as `base/`, with the folder that relative paths start from there.
    pub(in crate::engine) folders: BTreeMap<String, Arc<FilePath>>,
    /// Names of stages that may have been meant where a reference names none.
    pub(in crate::engine) near: Vec<String>,
}

/// A pipeline file with the overrides of its import applied, as every file that imports it so shares it.
pub(super) struct Library {
    pub(super) file: PathBuf,
    pub(super) params: Map,
    pub(super) stages: Map,
    pub(super) imports: Imports,
    /// Params that the import gives and nothing uses.
    pub(super) unused: BTreeSet<String>,
}

impl Library {
    fn stage(&self, name: &str) -> Option<Value> {
        if namespace(name).is_empty() || self.imports.stages.contains(name) {
            self.stages.get(name).cloned()
        } else {
            self.imports.stage(name)
        }
    }

    fn params_of(&self, prefix: &str) -> Map {
        if prefix.is_empty() || self.imports.params.contains(prefix) {
            let own = self
                .params
                .iter()
                .filter(|(name, _)| namespace(name) == prefix);
            own.map(|(name, value)| (name.clone(), value.clone()))
                .collect()
        } else {
            self.imports.params_of(prefix)
        }
    }

    /// Returns where a stage stands in the order of stages: what is imported comes before what needs it.
    fn place(&self, name: &str, place: &mut Vec<usize>) {
        if namespace(name).is_empty() {
            place.push(self.imports.files.len());
            place.push(self.stages.get_index_of(name).unwrap_or(usize::MAX));
        } else {
            self.imports.place(name, place);
        }
    }
}

/// The files that a pipeline file imports. Their stages and params become its own only as far as they are needed.
#[derive(Clone, Default)]
pub(in crate::engine) struct Imports {
    pub(super) files: IndexMap<String, Rc<Library>>,
    /// Namespaces whose params are the file's by now, where overrides may have changed them.
    params: BTreeSet<String>,
    /// Stages that are the file's by now, or were until overrides removed them.
    stages: BTreeSet<String>,
}

impl Imports {
    /// Returns a stage, as it is written in the importing file's names.
    fn stage(&self, name: &str) -> Option<Value> {
        let (first, rest) = name.split_once(SEPARATOR)?;
        let body = self.files.get(first)?.stage(rest)?;
        Some(qualified(&body, &format!("{first}{SEPARATOR}")))
    }

    /// Returns the params of a namespace, in the importing file's names.
    fn params_of(&self, prefix: &str) -> Map {
        let Some((first, rest)) = prefix.split_once(SEPARATOR) else {
            return Map::new();
        };
        let first_prefix = format!("{first}{SEPARATOR}");
        let params = self.files.get(first).map(|library| library.params_of(rest));
        let named = params.into_iter().flatten().map(|(name, value)| {
            (
                format!("{first_prefix}{name}"),
                qualified(&value, &first_prefix),
            )
        });
        named.collect()
    }

    fn library(&self, prefix: &str) -> Option<&Library> {
        let (first, rest) = prefix.split_once(SEPARATOR)?;
        let library = self.files.get(first)?;
        if rest.is_empty() {
            Some(library)
        } else {
            library.imports.library(rest)
        }
    }

    fn place(&self, name: &str, place: &mut Vec<usize>) {
        let Some((first, rest)) = name.split_once(SEPARATOR) else {
            return;
        };
        if let Some((at, _, library)) = self.files.get_full(first) {
            place.push(self.files.len() - 1 - at);
            library.place(rest, place);
        }
    }

    /// Brings what `overrides` and the params of an import change, before they do.
    pub(in crate::engine) fn adopt_changed(
        &mut self,
        root: &mut Map,
        overrides: &Overrides,
        given: &[&str],
    ) {
        if self.files.is_empty() {
            return;
        }
        let mut names: Vec<String> = given.iter().map(ToString::to_string).collect();
        let known = root.get("profiles").and_then(Value::as_map);
        for profile in profiles::in_order(known, &overrides.profiles) {
            for section in ["params", "stages"] {
                let patch = root
                    .get("profiles")
                    .and_then(|all| all.get([profile.as_str(), section]));
                let patched = patch.and_then(Value::as_map);
                names.extend(
                    patched
                        .into_iter()
                        .flat_map(|patched| patched.keys().cloned()),
                );
            }
        }
        for setting in &overrides.set {
            let key = setting.split('=').next().unwrap_or_default();
            names.extend(key.trim().split('.').take(2).map(str::to_owned));
        }
        for name in names {
            let prefix = namespace(&name);
            if !prefix.is_empty() {
                self.adopt_params(root, prefix);
                self.adopt_stage(root, &name);
            }
        }
    }

    /// Brings the stages that those of the file need, and the params that these refer to.
    ///
    /// # Errors
    /// When there would be too many.
    pub(in crate::engine) fn adopt_needed(
        &mut self,
        root: &mut Map,
    ) -> Result<Imported, Diagnostic> {
        let mut imported = Imported::default();
        if self.files.is_empty() {
            return Ok(imported);
        }
        if let Some(params) = root.get("params").cloned() {
            self.adopt_params_in(root, &params);
        }
        let stages = root.get("stages").and_then(Value::as_map);
        let mut open: Vec<String> =
            stages.map_or_else(Vec::new, |own| own.keys().cloned().collect());
        let mut near = BTreeSet::new();
        let mut brought = 0;
        while let Some(name) = open.pop() {
            let stages = root.get("stages");
            let Some(body) = stages
                .and_then(|stages| stages.get([name.as_str()]))
                .cloned()
            else {
                continue;
            };
            self.adopt_params_in(root, &body);
            for stage in referenced(root, &body) {
                let needed = format!("{}{stage}", namespace(&name));
                let stages = root.get("stages");
                if stages.is_some_and(|stages| stages.get([needed.as_str()]).is_some()) {
                    continue;
                }
                if self.adopt_stage(root, &needed) {
                    brought += 1;
                    if brought > MOST {
                        return Err(self.too_many(&needed));
                    }
                    open.push(needed);
                } else {
                    near.extend(self.near(&needed));
                }
            }
        }
        imported.near = near.into_iter().collect();
        if let Some(Value::Map(stages)) = root.get_mut("stages") {
            stages.sort_by_cached_key(|name, _| {
                let mut place = Vec::new();
                if namespace(name).is_empty() {
                    // Sorting is stable: the file's own stay as they are.
                    place.push(self.files.len());
                } else {
                    self.place(name, &mut place);
                }
                place
            });
            for name in stages.keys() {
                let prefix = namespace(name);
                if !imported.folders.contains_key(prefix)
                    && let Some(library) = self.library(prefix)
                {
                    let folder = folder_of(&library.file).into();
                    imported.folders.insert(prefix.to_owned(), folder);
                }
            }
        }
        Ok(imported)
    }

    fn too_many(&self, name: &str) -> Diagnostic {
        let library = self.library(namespace(name));
        let file = library.map_or_else(String::new, |library| {
            format!(" of {}", library.file.display())
        });
        let stage = &name[namespace(name).len()..];
        Diagnostic::error(
            Path::of(["import"]),
            format!("imports bring more than {MOST} stages, `{stage}`{file} again and again"),
        )
        .hint("a file that is imported under several names, by files that are, is copied for each way to it: import it once, and refer to it by that name")
    }

    /// Makes a stage the file's; whether there is one.
    fn adopt_stage(&mut self, root: &mut Map, name: &str) -> bool {
        if namespace(name).is_empty() || self.stages.contains(name) {
            return false;
        }
        let Some(body) = self.stage(name) else {
            return false;
        };
        self.stages.insert(name.to_owned());
        section(root, "stages").insert(name.to_owned(), body);
        self.adopt_params(root, namespace(name));
        true
    }

    /// Makes the params of a namespace the file's.
    fn adopt_params(&mut self, root: &mut Map, prefix: &str) {
        if prefix.is_empty() || !self.params.insert(prefix.to_owned()) {
            return;
        }
        for (name, value) in self.params_of(prefix) {
            self.adopt_params_in(root, &value);
            section(root, "params").insert(name, value);
        }
    }

    /// Makes those params the file's that a value refers to.
    fn adopt_params_in(&mut self, root: &mut Map, value: &Value) {
        match value {
            Value::String(text) => {
                for name in text.split("${").skip(1) {
                    let name = name.split(['}', '.']).next().unwrap_or_default();
                    self.adopt_params(root, namespace(name.trim()));
                }
            }
            Value::List(items) => items
                .iter()
                .for_each(|item| self.adopt_params_in(root, item)),
            Value::Map(map) => map
                .values()
                .for_each(|item| self.adopt_params_in(root, item)),
            _ => {}
        }
    }

    /// Names the stages that may be meant by a name that no stage has: those of the namespace, and of each import.
    fn near(&self, name: &str) -> Vec<String> {
        let prefix = namespace(name);
        let direct = self.files.keys().map(|first| format!("{first}{SEPARATOR}"));
        let mut names = Vec::new();
        for prefix in direct.chain([prefix.to_owned()]) {
            let stages = self.library(&prefix).map(|library| library.stages.keys());
            names.extend(
                stages
                    .into_iter()
                    .flatten()
                    .map(|name| format!("{prefix}{name}")),
            );
        }
        names
    }
}

/// Returns a section of the root that holds entries by name.
fn section<'a>(root: &'a mut Map, name: &str) -> &'a mut Map {
    let empty = || Value::Map(Box::default());
    let entry = root.entry(name.to_owned()).or_insert_with(empty);
    if !matches!(entry, Value::Map(_)) {
        // What else stood there was reported where it stands.
        *entry = empty();
    }
    match entry {
        Value::Map(map) => map,
        _ => unreachable!("was made a map"),
    }
}

/// Names the stages that the inputs of a stage refer to, whatever else is wrong with it.
fn referenced(root: &Map, body: &Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let Some(inputs) = body.get(["inputs"]) else {
        return names;
    };
    let empty = Map::new();
    let params = root.get("params").and_then(Value::as_map).unwrap_or(&empty);
    let account = Account::default();
    let scope = Scope::new(params, &account);
    let path = Path::default();
    let ignored = &mut Vec::new();
    let matrix = body
        .get(["matrix"])
        .map(|matrix| scope.resolve(matrix, &path, ignored));
    for axes in matrix::expand(matrix.as_ref(), &path, ignored) {
        let inputs = scope.with_matrix(&axes).resolve(inputs, &path, ignored);
        for reference in inputs
            .as_map()
            .into_iter()
            .flat_map(|inputs| inputs.values())
        {
            let list = match reference {
                Value::List(list) => list.as_slice(),
                one => std::slice::from_ref(one),
            };
            let parsed = list.iter().filter_map(Value::as_str).map(Reference::parse);
            names.extend(
                parsed
                    .filter_map(Result::ok)
                    .map(|reference| reference.stage),
            );
        }
    }
    names
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
}
