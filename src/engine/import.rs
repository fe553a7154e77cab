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

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path as FilePath, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use indexmap::IndexMap;

use super::diagnostic::{Diagnostic, Path, Segment, Severity, did_you_mean};
use super::document::{Document, Invalid};
use super::interpolate::{Account, Scope};
use super::matrix;
use super::overrides::{self, Overrides};
use super::reference::{Reference, SEPARATOR, is_name, namespace};
use super::spec::{Instance, Pipeline};
use super::stage::Registry;
use super::value::{Map, Value, json_of};

/// Stages that the imports of a file may bring. Two files that each import the next one twice are four copies of it;
/// twenty of them would be a million.
const MOST: usize = 20_000;

/// How deep files may import each other.
const DEEPEST: usize = 64;

/// What a file's imports brought.
#[derive(Debug, Default)]
pub(super) struct Imported {
    /// The namespaces of the stages, such as `base/`, with the folder that relative paths start from there.
    pub(super) folders: BTreeMap<String, Arc<FilePath>>,
    /// Names of stages that may have been meant where a reference names none.
    pub(super) near: Vec<String>,
}

/// A pipeline file with the overrides of its import applied, as every file that imports it so shares it.
struct Library {
    file: PathBuf,
    params: Map,
    stages: Map,
    imports: Imports,
    /// Params that the import gives and nothing uses.
    unused: BTreeSet<String>,
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
pub(super) struct Imports {
    files: IndexMap<String, Rc<Library>>,
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
    pub(super) fn adopt_changed(&mut self, root: &mut Map, overrides: &Overrides, given: &[&str]) {
        if self.files.is_empty() {
            return;
        }
        let mut names: Vec<String> = given.iter().map(ToString::to_string).collect();
        for profile in &overrides.profiles {
            for section in ["params", "stages"] {
                let patch = root
                    .get("profiles")
                    .and_then(|all| all.get([profile, section]));
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
    pub(super) fn adopt_needed(&mut self, root: &mut Map) -> Result<Imported, Diagnostic> {
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

/// Reads pipeline files that are imported, each once.
pub(super) struct Reader<'a> {
    registry: &'a Registry,
    /// The files that are being read, each imported by the one before.
    open: Vec<PathBuf>,
    /// Documents with their roots, by canonical path.
    documents: BTreeMap<PathBuf, (Document, Map)>,
    /// By canonical path and what changes them.
    libraries: BTreeMap<(PathBuf, String), Rc<Library>>,
}

impl<'a> Reader<'a> {
    /// Makes a reader for the kinds of `registry`.
    pub(super) fn new(registry: &'a Registry) -> Self {
        Self {
            registry,
            open: Vec::new(),
            documents: BTreeMap::new(),
            libraries: BTreeMap::new(),
        }
    }

    /// Takes `import` out of a pipeline's root and reads what it names.
    ///
    /// # Errors
    /// The first imported file that is not valid. What is wrong with `import` itself goes to `errors`.
    pub(super) fn read(
        &mut self,
        root: &mut Map,
        document: &Document,
        errors: &mut Vec<Diagnostic>,
    ) -> Result<Imports, Box<Invalid>> {
        let path = Path::of(["import"]);
        let mut found = Imports::default();
        let imports = match root.shift_remove("import") {
            None | Some(Value::Null) => return Ok(found),
            Some(Value::Map(imports)) => imports,
            Some(other) => {
                errors.push(
                    Diagnostic::error(
                        path,
                        format!("`import` must be a map, found {}", other.type_name()),
                    )
                    .hint("for example `import: { base: flowhf.yaml }`"),
                );
                return Ok(found);
            }
        };
        let own = document.file.canonicalize();
        self.open
            .push(own.unwrap_or_else(|_| document.file.clone()));
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
            let canonical = file.canonicalize().unwrap_or_else(|_| file.clone());
            if self.open.contains(&canonical) {
                errors.push(
                    Diagnostic::error(path, format!("{} imports itself", file.display()))
                        .hint("pipelines cannot import each other in a ring"),
                );
                continue;
            }
            if self.open.len() > DEEPEST {
                errors.push(Diagnostic::error(
                    path,
                    format!("more than {DEEPEST} files import each other in a row"),
                ));
                continue;
            }
            let params = import.get(["params"]).and_then(Value::as_map);
            let empty = Map::new();
            let params = params.unwrap_or(&empty);
            let key = (
                canonical.clone(),
                format!("{:?}{}", overrides.profiles, json_of(params)),
            );
            let library = match self.libraries.get(&key) {
                Some(library) => Rc::clone(library),
                None => {
                    if let Err(error) = self.parse(&file, &canonical)? {
                        errors.push(Diagnostic::error(
                            path,
                            format!("cannot read the pipeline: {error}"),
                        ));
                        continue;
                    }
                    let library = Rc::new(self.library(&canonical, &overrides, params)?);
                    self.libraries.insert(key, Rc::clone(&library));
                    library
                }
            };
            for param in &library.unused {
                errors.push(
                    Diagnostic::error(
                        path.key("params").key(param),
                        format!("no stage of {} uses a param `{param}`", file.display()),
                    )
                    .at_key()
                    .maybe_hint(did_you_mean(
                        param,
                        library
                            .params
                            .keys()
                            .map(String::as_str)
                            .filter(|name| *name != param),
                    )),
                );
            }
            found.files.insert(name.clone(), library);
        }
        self.open.pop();
        Ok(found)
    }

    /// Reads and parses a file, unless that was done.
    fn parse(
        &mut self,
        file: &FilePath,
        canonical: &FilePath,
    ) -> Result<std::io::Result<()>, Box<Invalid>> {
        if self.documents.contains_key(canonical) {
            return Ok(Ok(()));
        }
        let document = match Document::read(file) {
            Ok(document) => document,
            Err(error) => return Ok(Err(error)),
        };
        let Value::Map(root) = document.parse().map_err(Box::new)? else {
            unreachable!("`parse` returns maps only");
        };
        self.documents
            .insert(canonical.to_owned(), (document, *root));
        Ok(Ok(()))
    }

    /// Applies overrides to a file that was parsed, and checks it by itself.
    fn library(
        &mut self,
        canonical: &FilePath,
        overrides: &Overrides,
        given: &Map,
    ) -> Result<Library, Box<Invalid>> {
        let (document, mut root) = self.documents[canonical].clone();
        let mut wrong = Vec::new();
        let mut imports = self.read(&mut root, &document, &mut wrong)?;
        if wrong.iter().any(|wrong| wrong.severity == Severity::Error) {
            return Err(Box::new(document.invalid(wrong)));
        }
        let names: Vec<&str> = given.keys().map(String::as_str).collect();
        imports.adopt_changed(&mut root, overrides, &names);
        overrides::apply(&mut root, overrides, &mut wrong);
        let known: BTreeSet<String> = match root.get("params") {
            Some(Value::Map(params)) => params.keys().cloned().collect(),
            _ => BTreeSet::new(),
        };
        if !given.is_empty() {
            let params = root.entry("params".to_owned());
            let params = params.or_insert_with(|| Value::Map(Box::default()));
            params.merge(&Value::Map(Box::new(given.clone())));
        }
        let library = Library {
            file: document.file.clone(),
            params: entries(&root, "params"),
            stages: entries(&root, "stages"),
            imports,
            unused: BTreeSet::new(),
        };
        let imported = library.imports.clone().adopt_needed(&mut root);
        let imported = imported.map_err(|wrong| Box::new(document.invalid(vec![wrong])))?;
        wrong.extend(Pipeline::problems(
            &document,
            root,
            &imported,
            self.registry,
        ));
        let unused = wrong
            .iter()
            .filter(|wrong| wrong.severity == Severity::Warning);
        let unused = unused.filter_map(|wrong| match wrong.path.0.as_slice() {
            [Segment::Key(params), Segment::Key(name)] if **params == *"params" => {
                Some(name.to_string())
            }
            _ => None,
        });
        let given = |name: &String| given.contains_key(name) && !known.contains(name);
        let unused: BTreeSet<String> = unused.filter(given).collect();
        wrong.retain(|wrong| wrong.severity == Severity::Error);
        if wrong.is_empty() {
            Ok(Library { unused, ..library })
        } else {
            Err(Box::new(document.invalid(wrong)))
        }
    }
}

fn entries(root: &Map, section: &str) -> Map {
    let entries = root.get(section).and_then(Value::as_map);
    entries.cloned().unwrap_or_default()
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
}
