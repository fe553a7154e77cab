//! Reading the files that imports name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path as FilePath, PathBuf};
use std::rc::Rc;

use super::library::{Imported, Imports, Library};
use crate::engine::diagnostic::{Diagnostic, Path, Segment, Severity, did_you_mean};
use crate::engine::document::{Document, Invalid, folder_of};
use crate::engine::overrides::{self, Overrides};
use crate::engine::reference::is_name;
use crate::engine::stage::Registry;
use crate::engine::value::{Map, Value, json_of};

/// How deep files may import each other.
const DEEPEST: usize = 64;

/// Says what is wrong with a file that another one imports.
pub(in crate::engine) type Check = fn(&Document, Map, &Imported, &Registry) -> Vec<Diagnostic>;

/// Reads pipeline files that are imported, each once.
pub(in crate::engine) struct Reader<'a> {
    registry: &'a Registry,
    check: Check,
    /// The files that are being read, each imported by the one before.
    open: Vec<PathBuf>,
    /// Documents with their roots, by canonical path.
    documents: BTreeMap<PathBuf, (Document, Map)>,
    /// By canonical path and what changes them.
    libraries: BTreeMap<(PathBuf, String), Rc<Library>>,
}

impl<'a> Reader<'a> {
    /// Makes a reader for the kinds of `registry`.
    pub(in crate::engine) fn new(registry: &'a Registry, check: Check) -> Self {
        Self {
            registry,
            check,
            open: Vec::new(),
            documents: BTreeMap::new(),
            libraries: BTreeMap::new(),
        }
    }

    /// Takes `import` out of a pipeline's root and reads what it names.
    ///
    /// # Errors
    /// The first imported file that is not valid. What is wrong with `import` itself goes to `errors`.
    pub(in crate::engine) fn read(
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
        wrong.extend((self.check)(&document, root, &imported, self.registry));
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
