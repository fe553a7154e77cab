//! From a pipeline file to a checked graph of stage instances.
//!
//! Everything that can be known to be wrong before running is found here, all of it at once.

mod cluster;
mod draft;
mod execution;
mod shown;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path as FilePath;
use std::sync::Arc;

use indexmap::IndexMap;
use serde_json::Value as Json;

use super::diagnostic::{Diagnostic, Path, Severity, did_you_mean};
use super::document::{Document, Invalid, Located, folder_of};
use super::facts::{Facts, Item, Known as KnownFacts};
use super::graph::Graph;
use super::import::{self, Imported, Reader};
use super::instance::Instance;
use super::interpolate::{Account, Scope};
use super::launch::ClusterSettings;
use super::overrides::{self, Overrides};
use super::reference::{Reference, Selection, is_same_value, namespace};
use super::stage::{Registry, find_kind};
use super::value::{Map, Value, json_of};
use super::wiring::{self, Known};

/// A pipeline whose every stage is typed, wired and checked.
pub struct Pipeline {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// The file it came from.
    pub document: Document,
    /// The profiles and settings that were applied to it.
    pub overrides: Overrides,
    /// Its params, with these applied.
    pub params: Json,
    /// One entry for each combination of a stage's matrix, in file order.
    pub stages: Vec<Instance>,
    /// Which needs which.
    pub graph: Graph,
    /// Positions of `stages`, each after what it needs.
    pub order: Vec<usize>,
    /// The stages whose tables a run prints, as the file names them.
    pub show: Vec<String>,
    /// How jobs of a cluster are submitted.
    pub cluster: ClusterSettings,
    /// What has no effect.
    pub warnings: Vec<Located>,
}

/// Why a pipeline could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read the pipeline: {0}")]
    Read(#[from] std::io::Error),
    /// The file is not a valid pipeline.
    #[error(transparent)]
    Invalid(#[from] Box<Invalid>),
}

const ROOT_KEYS: [&str; 8] = [
    "name",
    "description",
    "import",
    "params",
    "profiles",
    "show",
    "cluster",
    "stages",
];
const STAGE_KEYS: [&str; 8] = [
    "kind",
    "inputs",
    "params",
    "matrix",
    "resources",
    "retries",
    "timeout",
    "description",
];

impl Pipeline {
    /// Reads, expands and checks a pipeline file.
    pub fn load(
        file: &FilePath,
        overrides: &Overrides,
        registry: &Registry,
    ) -> Result<Self, LoadError> {
        let document = Document::read(file)?;
        Ok(Self::from_document(document, overrides, registry)?)
    }

    /// Expands and checks a pipeline that was read.
    pub fn from_document(
        document: Document,
        overrides: &Overrides,
        registry: &Registry,
    ) -> Result<Self, Box<Invalid>> {
        let Value::Map(mut root) = document.parse().map_err(Box::new)? else {
            unreachable!("`parse` returns maps only");
        };
        let mut errors = Vec::new();
        let mut imports =
            Reader::new(registry, Self::problems).read(&mut root, &document, &mut errors)?;
        imports.adopt_changed(&mut root, overrides, &[]);
        let written = shown::written(&root);
        overrides::apply(&mut root, overrides, &mut errors);
        let imported = imports.adopt_needed(&mut root);
        let imported = imported.map_err(|wrong| Box::new(document.invalid(vec![wrong])))?;
        let mut builder = Builder {
            registry,
            imported: &imported,
            written,
            errors,
            warnings: Vec::new(),
        };
        let pipeline = builder.build(&document, *root);
        overrides::name_settings(&document, overrides, &mut builder.errors);
        let located =
            overrides::relocate_to_profiles(&document, &overrides.profiles, builder.errors);
        match pipeline {
            Some(mut pipeline) if located.is_empty() => {
                let warnings = overrides::relocate_to_profiles(
                    &document,
                    &overrides.profiles,
                    builder.warnings,
                );
                pipeline.warnings = document.locate(warnings);
                pipeline.overrides = overrides.clone();
                Ok(pipeline)
            }
            _ => Err(Box::new(document.invalid(located))),
        }
    }

    /// Says what is wrong with a file that another one imports.
    fn problems(
        document: &Document,
        root: Map,
        imported: &Imported,
        registry: &Registry,
    ) -> Vec<Diagnostic> {
        let mut builder = Builder {
            registry,
            imported,
            written: BTreeSet::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
        };
        builder.build(document, root);
        builder.errors.append(&mut builder.warnings);
        builder.errors
    }

    /// Names of the profiles of a pipeline file.
    pub fn profiles(document: &Document) -> Vec<String> {
        match document.parse() {
            Ok(root) => root
                .get(["profiles"])
                .and_then(Value::as_map)
                .map(|profiles| profiles.keys().cloned().collect())
                .unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    /// Returns the instances that a reference means by itself, in file order.
    pub fn named(&self, reference: &Reference) -> Vec<usize> {
        let those = |is_value: fn(&str, &str) -> bool| -> Vec<usize> {
            let is_meant = |stage: &Instance| {
                let mut chosen = reference.axes.iter();
                stage.template == reference.stage
                    && chosen.all(|(axis, selection)| match selection {
                        Selection::Value(value) => {
                            let own = stage.axes.get(axis);
                            own.is_some_and(|own| is_value(own, value))
                        }
                        Selection::All => true,
                    })
            };
            let all = 0..self.stages.len();
            all.filter(|at| is_meant(&self.stages[*at])).collect()
        };
        let spelt_so = those(|own, value| own == value);
        if spelt_so.is_empty() {
            those(is_same_value)
        } else {
            spelt_so
        }
    }

    /// Finds the stage instance of a full name, or those that a reference without an output means.
    pub fn find_all(&self, name: &str) -> Vec<usize> {
        if let Some(found) = self.stages.iter().position(|stage| stage.name == name) {
            return vec![found];
        }
        let reference = Reference::parse(name).ok();
        let reference = reference.filter(|reference| reference.output.is_none());
        reference.map_or_else(Vec::new, |reference| self.named(&reference))
    }

    /// Finds one stage instance; see [`Self::find_all`].
    ///
    /// # Errors
    /// A message with a hint, if there is no such stage or more than one.
    pub fn find(&self, name: &str) -> Result<usize, String> {
        match self.find_all(name).as_slice() {
            [one] => Ok(*one),
            [] => {
                let known = self.stages.iter().map(|stage| stage.name.as_str());
                let hint = did_you_mean(name, known)
                    .map(|hint| format!("; {hint}"))
                    .unwrap_or_default();
                Err(format!("the pipeline has no stage `{name}`{hint}"))
            }
            several @ [first, ..] => Err(format!(
                "stage `{name}` has {} instances; name one of them, such as `{}`",
                several.len(),
                self.stages[*first].name
            )),
        }
    }
}

struct Builder<'a> {
    registry: &'a Registry,
    /// The namespaces that other files' stages are in.
    imported: &'a Imported,
    /// The stages of the file before profiles changed it, if it names any to show.
    written: BTreeSet<String>,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

impl Builder<'_> {
    fn build(&mut self, document: &Document, mut root: Map) -> Option<Pipeline> {
        let stages = root.get_mut("stages").map(std::mem::take);
        for key in root.keys().filter(|key| !ROOT_KEYS.contains(&key.as_str())) {
            self.errors.push(
                Diagnostic::error(Path::of([key.as_str()]), format!("unknown key `{key}`"))
                    .at_key()
                    .maybe_hint(if key.starts_with(char::is_whitespace) {
                        Some("its line begins with a space that is none for YAML, as word processors and web pages have: indent with plain spaces".to_owned())
                    } else {
                        did_you_mean(key, ROOT_KEYS)
                    }),
            );
        }
        let empty = Map::new();
        let params = self
            .map(root.get("params"), &Path::of(["params"]), "params")
            .unwrap_or(&empty);
        let account = Account::default();
        let scope = Scope::new(params, &account);
        let text = |builder: &mut Self, key: &str| match root.get(key) {
            None => String::new(),
            Some(value) => builder.text(value, &Path::of([key]), key),
        };
        let name = text(self, "name");
        if name.is_empty() && !root.contains_key("name") {
            self.errors.push(
                Diagnostic::error(Path::default(), "missing key `name`")
                    .hint("give the pipeline a name"),
            );
        }
        let description = text(self, "description");
        let Some(mut stages) = stages else {
            self.errors.push(
                Diagnostic::error(Path::default(), "missing key `stages`")
                    .hint("a pipeline without stages does nothing"),
            );
            return None;
        };
        let stages = match &mut stages {
            Value::Map(stages) => stages,
            other => {
                self.map(Some(other), &Path::of(["stages"]), "stages");
                return None;
            }
        };
        let mut broken = Vec::new();
        let mut templates = IndexMap::new();
        let mut drafts = Vec::new();
        for (name, body) in stages.iter_mut() {
            // Thousands of stages as text beside the same stages drafted would take twice the memory.
            let body = std::mem::take(body);
            let path = Path::of(["stages", name]);
            let drafted = drafts.len();
            if let Some(template) = self.template(name, &body, path.clone(), &scope, &mut drafts) {
                templates.insert(name.clone(), template);
            } else if drafts.len() == drafted {
                let none = Value::Map(Box::default());
                let inputs = body.get(["inputs"]).unwrap_or(&none);
                // What `${}` gives here is reported by the stage itself, if it came so far.
                let path = path.key("inputs");
                let inputs = scope.resolve(inputs, &path, &mut Vec::new());
                let kind = body.get(["kind"]).and_then(Value::as_str);
                let kind = kind.and_then(|kind| find_kind(self.registry, kind));
                broken.push((name.clone(), kind, inputs, path));
            }
        }
        let known = Known {
            names: &*stages,
            near: &self.imported.near,
        };
        for (name, kind, inputs, path) in broken {
            if let Some(kind) = kind {
                wiring::check_ports(&name, kind, &inputs, &path, &mut self.errors);
            }
            wiring::check_names(&name, &inputs, &path, known, &mut self.errors);
        }
        self.unused_params(params, &scope, &account.used());
        let folder: Arc<FilePath> = folder_of(&document.file).into();
        for draft in &mut drafts {
            let prefix = namespace(&draft.instance.template);
            let imported = self.imported.folders.get(prefix);
            draft.instance.base_folder = Arc::clone(imported.unwrap_or(&folder));
        }
        let mut stages = wiring::wire(drafts, &templates, known, &mut self.errors);
        if !self.imported.folders.is_empty() {
            stages = import::needed_by_own(stages);
        }
        let edges: Vec<(usize, usize)> = stages
            .iter()
            .enumerate()
            .flat_map(|(consumer, stage)| {
                let items = stage.inputs.iter().flat_map(|input| &input.items);
                items.map(move |item| (item.producer, consumer))
            })
            .collect();
        let graph = Graph::new(stages.len(), edges);
        let order = match graph.order() {
            Ok(order) => order,
            Err(ring) => {
                self.errors.push(ring_error(&ring, &stages));
                return None;
            }
        };
        self.facts(&stages, &order);
        let cluster = cluster::read(root.get("cluster"), &mut self.errors);
        let show = shown::read(root.get("show"), &self.written, &stages, &mut self.errors);
        Some(Pipeline {
            name,
            description,
            document: document.clone(),
            overrides: Overrides::default(),
            params: json_of(params),
            stages,
            graph,
            order,
            show,
            cluster,
            warnings: Vec::new(),
        })
    }

    /// Checks params against what is known of the inputs before they are made.
    fn facts(&mut self, stages: &[Instance], order: &[usize]) {
        let mut facts: Vec<BTreeMap<String, Facts>> = vec![BTreeMap::new(); stages.len()];
        let nothing = Facts::default();
        for &at in order {
            let instance = &stages[at];
            let inputs = instance.inputs.iter().map(|input| {
                let items = input.items.iter().map(|item| Item {
                    facts: facts[item.producer].get(&item.output).unwrap_or(&nothing),
                    labels: &item.labels,
                });
                (input.port.as_str(), items.collect())
            });
            let mut known = KnownFacts::new(instance.template.as_str().into(), inputs.collect());
            instance.stage.facts(&mut known);
            for problem in known.problems() {
                let path = Path::of(["stages", &instance.template, "params"]);
                self.stage_problem(&instance.template, &path, problem);
            }
            let mut said = BTreeMap::new();
            if known.says_something() {
                for output in instance.stage.outputs() {
                    let facts = known.of(&output.name);
                    said.insert(output.name, facts);
                }
            }
            drop(known);
            facts[at] = said;
        }
    }

    fn map<'a>(&mut self, value: Option<&'a Value>, path: &Path, what: &str) -> Option<&'a Map> {
        match value? {
            Value::Map(map) => Some(map),
            Value::Null if what == "params" => None,
            other => {
                let message = format!("{what} must be a map, found {}", other.type_name());
                self.errors.push(
                    Diagnostic::error(path.clone(), message).maybe_hint(match what {
                        "stages" => Some("each stage stands under its name, as in `stages: { sft: { kind: train_sft, ... } }`".to_owned()),
                        "a stage" => Some("a stage has a `kind`, as in `sft: { kind: train_sft, ... }`".to_owned()),
                        _ => None,
                    }),
                );
                None
            }
        }
    }

    fn text(&mut self, value: &Value, path: &Path, what: &str) -> String {
        value.as_str().map_or_else(
            || {
                self.errors.push(Diagnostic::error(
                    path.clone(),
                    format!("`{what}` must be text, found {}", value.type_name()),
                ));
                String::new()
            },
            str::to_owned,
        )
    }

    /// Warns of params that nothing refers to, not even a param that is itself in use.
    fn unused_params(&mut self, params: &Map, scope: &Scope<'_>, seen: &BTreeSet<String>) {
        let mut ignored = Vec::new();
        for (name, value) in params {
            // Resolving checks `${}` inside params that no stage uses, too.
            scope.resolve(value, &Path::of(["params", name]), &mut ignored);
            // What an imported file does not need here it needs there.
            if !seen.contains(name) && namespace(name).is_empty() {
                self.warnings.push(
                    Diagnostic::warning(
                        Path::of(["params", name]),
                        format!("param `{name}` is not used by any stage"),
                    )
                    .hint(format!("refer to it as `${{{name}}}`, or remove it")),
                );
            }
        }
        self.errors.extend(ignored);
    }
}

fn ring_error(ring: &[usize], stages: &[Instance]) -> Diagnostic {
    let names: Vec<&str> = ring
        .iter()
        .map(|stage| stages[*stage].name.as_str())
        .collect();
    let first = names.first().copied().unwrap_or_default();
    let message = if names.len() == 1 {
        format!("stage `{first}` needs itself")
    } else {
        format!(
            "stages need each other in a ring: {} -> {first}",
            names.join(" -> ")
        )
    };
    let template = ring
        .first()
        .map_or("", |stage| stages[*stage].template.as_str());
    Diagnostic::error(Path::of(["stages", template, "inputs"]), message)
        .hint("an arrow points from a stage to one that reads its output; remove one of them")
}

/// Whether any of `diagnostics` is an error.
pub fn has_errors(diagnostics: &[Located]) -> bool {
    diagnostics
        .iter()
        .any(|located| located.diagnostic.severity == Severity::Error)
}
