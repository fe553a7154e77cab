//! From a stage of the file to drafts: one for each combination of its matrix, typed, their references still text.

use std::path::Path as FilePath;

use serde_json::Value as Json;
use serde_json::value::to_raw_value;

use super::{Builder, STAGE_KEYS};
use crate::engine::context::Labels;
use crate::engine::diagnostic::{Diagnostic, Path, SHOWN, did_you_mean};
use crate::engine::instance::{Draft, Instance, Template};
use crate::engine::interpolate::Scope;
use crate::engine::matrix;
use crate::engine::reference::{is_name, namespace};
use crate::engine::stage::{Problem, Stage, StageKind, find_kind, kind_meant};
use crate::engine::value::{Map, Value};

/// Bytes of a stage's name, which stands in every line about it.
const LONGEST_NAME: usize = 200;

/// Proposes a name like one that cannot name a stage.
fn like(name: &str) -> String {
    let mut proposed = String::new();
    for letter in name.chars() {
        let begins_a_word = letter.is_ascii_uppercase() && !proposed.is_empty();
        if begins_a_word && !proposed.ends_with(|c: char| c == '_' || c.is_ascii_uppercase()) {
            proposed.push('_');
        }
        proposed.push(if letter == '-' || letter == ' ' {
            '_'
        } else {
            letter.to_ascii_lowercase()
        });
    }
    if is_name(&proposed) {
        format!(", as `{proposed}` does")
    } else {
        String::new()
    }
}

impl Builder<'_> {
    pub(super) fn template(
        &mut self,
        name: &str,
        body: &Value,
        path: Path,
        scope: &Scope<'_>,
        drafts: &mut Vec<Draft>,
    ) -> Option<Template> {
        let prefix = namespace(name);
        let known = prefix.is_empty() || self.imported.folders.contains_key(prefix);
        if !known || !is_name(&name[prefix.len()..]) {
            self.errors.push(
                Diagnostic::error(path.clone(), format!("`{name}` cannot name a stage"))
                    .at_key()
                    .hint(format!("names match [a-z][a-z0-9_]*{}", like(name))),
            );
        }
        if name.len() > LONGEST_NAME {
            let message = format!(
                "a stage's name has {} bytes, more than {LONGEST_NAME}",
                name.len()
            );
            self.errors.push(
                Diagnostic::error(path.clone(), message)
                    .at_key()
                    .hint("`description` has room for more"),
            );
        }
        let body = self.map(Some(body), &path, "a stage")?;
        for key in body
            .keys()
            .filter(|key| !STAGE_KEYS.contains(&key.as_str()))
        {
            self.errors.push(
                Diagnostic::error(
                    path.key(key),
                    format!("unknown key `{key}` of stage `{name}`"),
                )
                .at_key()
                .maybe_hint(did_you_mean(key, STAGE_KEYS)),
            );
        }
        let known = self.errors.len();
        let kind = self.kind(name, body, &path);
        let matrix_path = path.key("matrix");
        let matrix = body
            .get("matrix")
            .map(|matrix| scope.resolve(matrix, &matrix_path, &mut self.errors));
        let before_matrix = self.errors.len();
        let mut combinations = matrix::expand(matrix.as_ref(), &matrix_path, &mut self.errors);
        if self.errors.len() > before_matrix {
            // Instances of a broken matrix would only report what follows from it.
            combinations.clear();
        }
        let mut template = Template {
            axes: matrix::axis_values(matrix.as_ref(), &combinations),
            instances: Vec::new(),
        };
        for axis_values in combinations {
            let axes: Labels = axis_values
                .iter()
                .map(|(axis, value)| (axis.clone(), value.to_string()))
                .collect();
            let scope = scope.with_matrix(&axis_values);
            let Some(kind) = kind else { continue };
            if let Some(draft) = self.draft(name, kind, &axes, body, &path, &scope) {
                template.instances.push((axes, drafts.len()));
                drafts.push(draft);
            }
        }
        (self.errors.len() == known).then_some(template)
    }

    fn kind(&mut self, name: &str, body: &Map, path: &Path) -> Option<StageKind> {
        let Some(kind) = body.get("kind") else {
            self.errors.push(
                Diagnostic::error(path.clone(), format!("stage `{name}` has no `kind`"))
                    .at_key()
                    .hint("`flowgraph kinds` lists the kinds"),
            );
            return None;
        };
        let text = self.text(kind, &path.key("kind"), "kind");
        if text.is_empty() {
            return None;
        }
        let found = find_kind(self.registry, &text);
        if found.is_none() {
            let is_shown = self.errors.len() < SHOWN;
            let meant = is_shown.then(|| kind_meant(self.registry, &text)).flatten();
            self.errors.push(
                Diagnostic::error(path.key("kind"), format!("unknown stage kind `{text}`"))
                    .hint(meant.unwrap_or_else(|| "`flowgraph kinds` lists the kinds".to_owned())),
            );
        }
        found.copied()
    }

    fn draft(
        &mut self,
        template: &str,
        kind: StageKind,
        axes: &Labels,
        body: &Map,
        path: &Path,
        scope: &Scope<'_>,
    ) -> Option<Draft> {
        let known = self.errors.len();
        let resolved = |builder: &mut Self, key: &str| {
            let value = body.get(key)?;
            let path = path.key(key);
            let value = scope.resolve(value, &path, &mut builder.errors);
            (value != Value::Null).then_some((value, path))
        };
        let params = resolved(self, "params")
            .map_or_else(|| Value::Map(Box::default()), |(params, _)| params);
        let params_are_known = self.errors.len() == known;
        let inputs = match resolved(self, "inputs") {
            None => Map::new(),
            Some((Value::Map(map), _)) => *map,
            Some((other, path)) => {
                self.errors.push(
                    Diagnostic::error(
                        path,
                        format!("`inputs` must be a map, found {}", other.type_name()),
                    )
                    .hint("for example `inputs: { model: sft }`"),
                );
                Map::new()
            }
        };
        let retries = resolved(self, "retries");
        let retries = self.retries(retries);
        let timeout = resolved(self, "timeout");
        let timeout = self.timeout(timeout);
        let description = match body.get("description") {
            None => String::new(),
            Some(value) => self.text(value, &path.key("description"), "description"),
        };
        let params = params.to_json();
        let stage = if params_are_known {
            self.stage(template, kind, &params, &path.key("params"))
        } else {
            None
        };
        let default = stage.as_ref().map(|stage| stage.resources());
        let resources = resolved(self, "resources");
        let resources = self.resources(resources, default.unwrap_or_default());
        if self.errors.len() > known {
            return None;
        }
        let stage = stage?;
        let name = if axes.is_empty() {
            template.to_owned()
        } else {
            let values: Vec<String> = axes
                .iter()
                .map(|(axis, value)| format!("{axis}={value}"))
                .collect();
            format!("{template}[{}]", values.join(","))
        };
        Some(Draft {
            path: path.clone(),
            inputs,
            instance: Instance {
                name,
                template: template.to_owned(),
                base_folder: FilePath::new(".").into(),
                axes: axes.clone(),
                kind,
                raw_params: to_raw_value(&params).ok()?,
                stage,
                inputs: Vec::new(),
                resources,
                retries,
                timeout,
                description,
            },
        })
    }

    fn stage(
        &mut self,
        template: &str,
        kind: StageKind,
        params: &Json,
        path: &Path,
    ) -> Option<Box<dyn Stage>> {
        let problems = match (kind.parse)(params) {
            Ok(stage) => return Some(stage),
            Err(problems) => problems,
        };
        for problem in problems {
            self.stage_problem(template, path, problem);
        }
        None
    }

    /// Reports what is wrong with params, which stand at `path`.
    pub(super) fn stage_problem(&mut self, template: &str, path: &Path, problem: Problem) {
        let message = format!("stage `{template}`: {}", problem.message);
        let error = Diagnostic::error(path.join(&problem.path), message);
        let error = if problem.at_key {
            error.at_key()
        } else {
            error
        };
        self.errors.push(error.maybe_hint(problem.hint));
    }
}
