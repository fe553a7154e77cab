//! `${}` references to params, the pipeline's own and a matrix's.

use std::cell::RefCell;
use std::collections::BTreeSet;

use indexmap::IndexMap;

use super::diagnostic::{Diagnostic, Path, did_you_mean};
use super::value::{Map, Value};

/// What `${}` can refer to.
pub(super) struct Scope<'a> {
    params: &'a Map,
    matrix: Option<&'a IndexMap<String, Value>>,
    used: &'a RefCell<BTreeSet<String>>,
}

impl<'a> Scope<'a> {
    /// Makes the scope of a pipeline's params; `used` collects the first names that were referred to.
    pub(super) fn new(params: &'a Map, used: &'a RefCell<BTreeSet<String>>) -> Self {
        Self {
            params,
            matrix: None,
            used,
        }
    }

    /// Adds the axis values of one matrix instance.
    pub(super) fn with_matrix(&self, axes: &'a IndexMap<String, Value>) -> Self {
        Self {
            params: self.params,
            matrix: Some(axes),
            used: self.used,
        }
    }

    /// Replaces every `${}` in `value`, which stands at `path`.
    pub(super) fn resolve(
        &self,
        value: &Value,
        path: &Path,
        errors: &mut Vec<Diagnostic>,
    ) -> Value {
        self.value(value, path, errors, &mut Vec::new())
    }

    fn value(
        &self,
        value: &Value,
        path: &Path,
        errors: &mut Vec<Diagnostic>,
        open: &mut Vec<String>,
    ) -> Value {
        match value {
            Value::String(text) if text.contains('$') => self.text(text, path, errors, open),
            Value::List(items) => Value::List(
                items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| self.value(item, &path.index(index), errors, open))
                    .collect(),
            ),
            Value::Map(map) => Value::Map(
                map.iter()
                    .map(|(key, item)| {
                        (key.clone(), self.value(item, &path.key(key), errors, open))
                    })
                    .collect(),
            ),
            other => other.clone(),
        }
    }

    fn text(
        &self,
        text: &str,
        path: &Path,
        errors: &mut Vec<Diagnostic>,
        open: &mut Vec<String>,
    ) -> Value {
        // A whole-value reference keeps the type of what it refers to.
        if let Some(name) = text
            .strip_prefix("${")
            .and_then(|rest| rest.strip_suffix('}'))
            && !name.contains(['$', '{', '}'])
        {
            return self.lookup(name.trim(), path, errors, open);
        }
        let mut result = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            result.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("$${") {
                result.push_str("${");
                rest = after;
            } else if let Some(after) = rest.strip_prefix("${") {
                let Some((name, after)) = after.split_once('}') else {
                    errors.push(
                        Diagnostic::error(path.clone(), "`${` without its `}`")
                            .hint("write `$${` for a literal `${`"),
                    );
                    return Value::Null;
                };
                let value = self.lookup(name.trim(), path, errors, open);
                result.push_str(&value.to_string());
                rest = after;
            } else {
                // A lone `$` belongs to the shell.
                result.push('$');
                rest = &rest[1..];
            }
        }
        result.push_str(rest);
        Value::String(result)
    }

    fn lookup(
        &self,
        name: &str,
        path: &Path,
        errors: &mut Vec<Diagnostic>,
        open: &mut Vec<String>,
    ) -> Value {
        let keys: Vec<&str> = name.split('.').collect();
        if let ("matrix", [_, axis]) = (keys[0], keys.as_slice()) {
            if let Some(value) = self.matrix.and_then(|matrix| matrix.get(*axis)) {
                return value.clone();
            }
            let axes = self.matrix.into_iter().flat_map(|matrix| matrix.keys());
            let hint = did_you_mean(axis, axes.map(String::as_str))
                .unwrap_or_else(|| "this stage has no `matrix`".to_owned());
            errors.push(
                Diagnostic::error(
                    path.clone(),
                    format!("`${{{name}}}` names no axis of this stage"),
                )
                .hint(hint),
            );
            return Value::Null;
        }
        self.used.borrow_mut().insert(keys[0].to_owned());
        let mut found: Option<&Value> = self.params.get(keys[0]);
        let mut level: Vec<&str> = self.params.keys().map(String::as_str).collect();
        let mut missing = keys[0];
        for key in &keys[1..] {
            let Some(map) = found.and_then(Value::as_map) else {
                break;
            };
            level = map.keys().map(String::as_str).collect();
            missing = key;
            found = map.get(*key);
        }
        let Some(value) = found else {
            errors.push(
                Diagnostic::error(
                    path.clone(),
                    format!("`${{{name}}}` is not defined in `params`"),
                )
                .maybe_hint(did_you_mean(missing, level)),
            );
            return Value::Null;
        };
        if open.iter().any(|other| other == name) {
            let ring = [open.as_slice(), &[name.to_owned()]].concat().join(" -> ");
            errors.push(Diagnostic::error(
                path.clone(),
                format!("params refer to each other in a ring: {ring}"),
            ));
            return Value::Null;
        }
        open.push(name.to_owned());
        let value = self.value(value, path, errors, open);
        open.pop();
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(params: &str, text: &str) -> (Value, Vec<String>) {
        let params: Value = serde_yaml::from_str(params).unwrap();
        let used = RefCell::default();
        let mut errors = Vec::new();
        let value = Scope::new(params.as_map().unwrap(), &used).resolve(
            &Value::String(text.to_owned()),
            &Path::default(),
            &mut errors,
        );
        (
            value,
            errors.into_iter().map(|error| error.message).collect(),
        )
    }

    #[test]
    fn whole_values_keep_their_type_and_parts_become_text() {
        let params = "seeds: [1, 2]\ndata: {source: here, n: 3}\nalias: '${data.n}'\n";
        assert_eq!(
            resolve(params, "${seeds}").0,
            Value::List(vec![Value::Integer(1), Value::Integer(2)])
        );
        assert_eq!(resolve(params, "${alias}").0, Value::Integer(3));
        assert_eq!(
            resolve(params, "a ${data.source}/${data.n} $x $${y}").0,
            Value::String("a here/3 $x ${y}".to_owned())
        );
    }

    #[test]
    fn undefined_names_and_rings_are_errors() {
        let params = "a: '${b}'\nb: '${a}'\nseeds: [1]\n";
        assert_eq!(
            resolve(params, "${seed}").1,
            ["`${seed}` is not defined in `params`"]
        );
        assert_eq!(
            resolve(params, "${a}").1,
            ["params refer to each other in a ring: a -> b -> a"]
        );
        assert_eq!(
            resolve(params, "${matrix.seed}").1,
            ["`${matrix.seed}` names no axis of this stage"]
        );
        assert_eq!(resolve(params, "x ${a").1, ["`${` without its `}`"]);
    }
}
