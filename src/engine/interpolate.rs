//! `${}` references to params, the pipeline's own and a matrix's.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use indexmap::IndexMap;

use super::diagnostic::{Diagnostic, Path, did_you_mean};
use super::value::{Map, Value};

/// Values and bytes of text that one resolved value may have. A dozen params that each refer to the one before
/// twice could ask for more than any machine has.
const LARGEST: usize = 1 << 20;

/// How many params may refer to each other in a row.
const DEEPEST: usize = 64;

/// What `${}` can refer to.
pub(super) struct Scope<'a> {
    params: &'a Map,
    matrix: Option<&'a IndexMap<String, Value>>,
    used: &'a RefCell<BTreeSet<String>>,
    /// How large the value that is being resolved is by now.
    size: Cell<usize>,
}

impl<'a> Scope<'a> {
    /// Makes the scope of a pipeline's params; `used` collects the first names that were referred to.
    pub(super) fn new(params: &'a Map, used: &'a RefCell<BTreeSet<String>>) -> Self {
        Self {
            params,
            matrix: None,
            used,
            size: Cell::new(0),
        }
    }

    /// Adds the axis values of one matrix instance.
    pub(super) fn with_matrix(&self, axes: &'a IndexMap<String, Value>) -> Self {
        Self {
            params: self.params,
            matrix: Some(axes),
            used: self.used,
            size: Cell::new(0),
        }
    }

    /// Replaces every `${}` in `value`, which stands at `path`.
    pub(super) fn resolve(
        &self,
        value: &Value,
        path: &Path,
        errors: &mut Vec<Diagnostic>,
    ) -> Value {
        self.size.set(0);
        let resolved = self.value(value, path, errors, &mut Vec::new());
        if self.size.get() <= LARGEST {
            return resolved;
        }
        errors.push(
            Diagnostic::error(
                path.clone(),
                format!("with its `${{}}` replaced it is larger than {LARGEST} bytes"),
            )
            .hint("params that refer to others several times multiply"),
        );
        Value::Null
    }

    /// Notes that what is being resolved grows; whether it may.
    fn grows(&self, by: usize) -> bool {
        self.size.set(self.size.get().saturating_add(by));
        self.size.get() <= LARGEST
    }

    fn value(
        &self,
        value: &Value,
        path: &Path,
        errors: &mut Vec<Diagnostic>,
        open: &mut Vec<String>,
    ) -> Value {
        let literal = literal_size(value);
        if !self.grows(literal.unwrap_or(1)) {
            return Value::Null;
        }
        match value {
            _ if literal.is_some() => value.clone(),
            Value::String(text) => self.text(text, path, errors, open),
            Value::List(items) => Value::List(
                items
                    .iter()
                    .enumerate()
                    .map(|(index, item)| self.value(item, &path.index(index), errors, open))
                    .collect(),
            ),
            Value::Map(map) => map
                .iter()
                .map(|(key, item)| (key.clone(), self.value(item, &path.key(key), errors, open)))
                .collect(),
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
                let value = self.lookup(name.trim(), path, errors, open).to_string();
                if !self.grows(value.len()) {
                    return Value::Null;
                }
                result.push_str(&value);
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
        let mut level = self.params;
        let mut missing = keys[0];
        for key in &keys[1..] {
            let map = found.and_then(Value::as_map);
            found = map.and_then(|map| map.get(*key));
            if let Some(map) = map {
                level = map;
                missing = key;
            }
        }
        let Some(value) = found else {
            errors.push(
                Diagnostic::error(
                    path.clone(),
                    format!("`${{{name}}}` is not defined in `params`"),
                )
                .maybe_hint(if keys.len() == 1 && name.bytes().all(is_of_environment) {
                    Some(format!("a variable of the shell is `${name}`, and `$${{{name}}}` where it needs braces"))
                } else {
                    did_you_mean(missing, level.keys().map(String::as_str))
                }),
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
        if open.len() == DEEPEST {
            errors.push(Diagnostic::error(
                path.clone(),
                format!("more than {DEEPEST} params refer to each other in a row"),
            ));
            return Value::Null;
        }
        open.push(name.to_owned());
        let value = self.value(value, path, errors, open);
        open.pop();
        value
    }
}

/// Whether a byte is one of those that names of environment variables are made of.
fn is_of_environment(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_'
}

/// Returns the size of a value that holds no `$`, in values and bytes of text.
fn literal_size(value: &Value) -> Option<usize> {
    match value {
        Value::String(text) => (!text.contains('$')).then_some(1 + text.len()),
        Value::List(items) => items
            .iter()
            .try_fold(1, |size, item| Some(size + literal_size(item)?)),
        Value::Map(map) => map.iter().try_fold(1, |size, (key, item)| {
            Some(size + key.len() + literal_size(item)?)
        }),
        _ => Some(1),
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

    #[test]
    fn what_lies_below_a_scalar_is_not_defined() {
        assert_eq!(
            resolve("lr: 3\n", "${lr.peak}").1,
            ["`${lr.peak}` is not defined in `params`"]
        );
    }

    #[test]
    fn params_that_multiply_or_go_deep_are_errors() {
        for double in ["'${p#}${p#}'", "['${p#}', '${p#}']"] {
            let lines =
                (0..40).map(|n| format!("p{n}: {}\n", double.replace('#', &(n + 1).to_string())));
            let params = lines.collect::<String>() + "p40: x\n";
            assert_eq!(
                resolve(&params, "${p0}").1,
                ["with its `${}` replaced it is larger than 1048576 bytes"]
            );
        }
        // Text that is referred to as a whole counts, too.
        let (text, items) = ("x".repeat(1 << 14), "'${long}', ".repeat(1 << 7));
        let params = format!("long: {text}\nlist: [{items}]\n");
        assert_eq!(
            resolve(&params, "${list}").1,
            ["with its `${}` replaced it is larger than 1048576 bytes"]
        );
        let lines = (0..100).map(|n| format!("p{n}: '${{p{}}}'\n", n + 1));
        let params = lines.collect::<String>() + "p100: x\n";
        assert_eq!(
            resolve(&params, "${p0}").1,
            ["more than 64 params refer to each other in a row"]
        );
    }
}
