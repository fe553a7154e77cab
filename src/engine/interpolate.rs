//! `${}` references to params, the pipeline's own and a matrix's.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use indexmap::IndexMap;

use super::diagnostic::{Diagnostic, Path, SHOWN, did_you_mean};
use super::value::{Map, Value};

/// Values and bytes of text that one resolved value may have. A dozen params that each refer to the one before
/// twice could ask for more than any machine has.
const LARGEST: usize = 1 << 20;

/// How many params may refer to each other in a row.
const DEEPEST: usize = 64;

/// Bytes of memory that `${}` may bring to all the values of a file together: thousands of lines may refer to one large
/// param.
const LARGEST_TOGETHER: usize = 1 << 27;

/// What was done for all the values of a file.
#[derive(Default)]
pub(super) struct Account {
    /// The first names that were referred to.
    used: RefCell<BTreeSet<String>>,
    memory: Cell<usize>,
}

impl Account {
    /// Returns the first names that were referred to so far.
    pub(super) fn used(&self) -> BTreeSet<String> {
        self.used.borrow().clone()
    }
}

/// What a name stands for, so that no name is resolved twice: each may refer to two others, and they to two others.
struct Resolved {
    value: Value,
    size: usize,
    memory: usize,
    /// How many params refer to each other in a row, from this one on.
    depth: usize,
    failure: Option<Diagnostic>,
}

/// What `${}` can refer to.
pub(super) struct Scope<'a> {
    params: &'a Map,
    matrix: Option<&'a IndexMap<String, Value>>,
    account: &'a Account,
    resolved: RefCell<BTreeMap<String, Resolved>>,
    /// How large the value that is being resolved is by now.
    size: Cell<usize>,
    /// The most params that were open at once.
    deepest: Cell<usize>,
}

impl<'a> Scope<'a> {
    /// Makes the scope of a pipeline's params.
    pub(super) fn new(params: &'a Map, account: &'a Account) -> Self {
        Self {
            params,
            matrix: None,
            account,
            resolved: RefCell::default(),
            size: Cell::new(0),
            deepest: Cell::new(0),
        }
    }

    /// Adds the axis values of one matrix instance.
    pub(super) fn with_matrix(&self, axes: &'a IndexMap<String, Value>) -> Self {
        Self {
            matrix: Some(axes),
            ..Self::new(self.params, self.account)
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
        let too_large = if self.size.get() > LARGEST {
            format!("with its `${{}}` replaced it is larger than {LARGEST} bytes")
        } else if self.account.memory.get() > LARGEST_TOGETHER {
            format!(
                "with its `${{}}` replaced the file is larger than {LARGEST_TOGETHER} bytes from here on"
            )
        } else {
            return resolved;
        };
        errors.push(
            Diagnostic::error(path.clone(), too_large)
                .hint("params that refer to others several times multiply"),
        );
        Value::Null
    }

    /// Notes that what is being resolved grows; whether it may.
    fn grows(&self, by: usize) -> bool {
        self.size.set(self.size.get().saturating_add(by));
        self.may_grow()
    }

    /// Notes that a `${}` brings so much; whether it may.
    fn brings(&self, memory: usize) -> bool {
        let all = &self.account.memory;
        all.set(all.get().saturating_add(memory));
        self.may_grow()
    }

    fn may_grow(&self) -> bool {
        self.size.get() <= LARGEST && self.account.memory.get() <= LARGEST_TOGETHER
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
        self.account.used.borrow_mut().insert(keys[0].to_owned());
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
                } else if errors.len() >= SHOWN {
                    None
                } else {
                    did_you_mean(missing, level.keys().map(String::as_str))
                }),
            );
            return Value::Null;
        };
        if let Some(known) = self.resolved.borrow().get(name) {
            errors.extend(known.failure.as_ref().map(|failure| Diagnostic {
                path: path.clone(),
                ..failure.clone()
            }));
            let depth = open.len() + known.depth;
            self.deepest.set(self.deepest.get().max(depth));
            if depth > DEEPEST {
                errors.push(too_deep(path));
            } else if self.grows(known.size) && self.brings(known.memory) {
                return known.value.clone();
            }
            return Value::Null;
        }
        if open.iter().any(|other| other == name) {
            let ring = [open.as_slice(), &[name.to_owned()]].concat().join(" -> ");
            errors.push(Diagnostic::error(
                path.clone(),
                format!("params refer to each other in a ring: {ring}"),
            ));
            return Value::Null;
        }
        if open.len() == DEEPEST {
            errors.push(too_deep(path));
            return Value::Null;
        }
        let failed = errors.len();
        open.push(name.to_owned());
        let deepest = self.deepest.replace(open.len());
        let value = self.value(value, path, errors, open);
        open.pop();
        let memory = size(&value, size_of::<Value>());
        if self.brings(memory) {
            let resolved = Resolved {
                size: size(&value, 1),
                memory,
                value: value.clone(),
                depth: self.deepest.get() - open.len(),
                failure: errors.get(failed).cloned(),
            };
            self.resolved.borrow_mut().insert(name.to_owned(), resolved);
        }
        self.deepest.set(self.deepest.get().max(deepest));
        value
    }
}

fn too_deep(path: &Path) -> Diagnostic {
    Diagnostic::error(
        path.clone(),
        format!("more than {DEEPEST} params refer to each other in a row"),
    )
}

/// Whether a byte is one of those that names of environment variables are made of.
fn is_of_environment(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_'
}

/// Returns the size of a value that holds no `$`.
fn literal_size(value: &Value) -> Option<usize> {
    is_literal(value).then(|| size(value, 1))
}

fn is_literal(value: &Value) -> bool {
    match value {
        Value::String(text) => !text.contains('$'),
        Value::List(items) => items.iter().all(is_literal),
        Value::Map(map) => map.values().all(is_literal),
        _ => true,
    }
}

/// Returns the size of a value: its bytes of text, and `each` for every value in it.
fn size(value: &Value, each: usize) -> usize {
    each + match value {
        Value::String(text) => text.len(),
        Value::List(items) => items.iter().map(|item| size(item, each)).sum(),
        Value::Map(map) => {
            let items = map.iter();
            items.map(|(key, item)| key.len() + size(item, each)).sum()
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(params: &str, text: &str) -> (Value, Vec<String>) {
        let params: Value = serde_yaml::from_str(params).unwrap();
        let account = Account::default();
        let mut errors = Vec::new();
        let value = Scope::new(params.as_map().unwrap(), &account).resolve(
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

    /// Without what is known of names these would take hours.
    #[test]
    fn params_that_multiply_without_growing_are_resolved_once_each() {
        for (last, double) in [("''", "'${p#}${p#}'"), ("'${no}'", "'${p#}${p#}'")] {
            let lines =
                (0..40).map(|n| format!("p{n}: {}\n", double.replace('#', &(n + 1).to_string())));
            let params = lines.collect::<String>() + &format!("p40: {last}\n");
            let (value, errors) = resolve(&params, "${p0}");
            if last == "''" {
                assert_eq!((value, errors), (Value::String(String::new()), Vec::new()));
            } else {
                assert_eq!(errors[0], "`${no}` is not defined in `params`");
                assert!(errors.len() < 100, "{} errors", errors.len());
            }
        }
    }

    #[test]
    fn how_deep_params_refer_to_each_other_does_not_depend_on_what_was_resolved_before() {
        let lines = (0..100).map(|n| format!("p{n}: '${{p{}}}'\n", n + 1));
        let params = lines.collect::<String>() + "p100: x\n";
        let (_, errors) = resolve(&params, "${p50} ${p37} ${p36}");
        assert_eq!(errors, ["more than 64 params refer to each other in a row"]);
    }

    #[test]
    fn all_that_names_bring_to_a_file_has_a_limit_together() {
        let items = "[x], ".repeat(1 << 16);
        let params = format!("large: [{items}]\n");
        let params: Value = serde_yaml::from_str(&params).unwrap();
        let account = Account::default();
        let scope = Scope::new(params.as_map().unwrap(), &account);
        let value = Value::String("${large}".to_owned());
        let mut errors = Vec::new();
        // A value takes more memory than a byte of text.
        let mut lines = 0;
        while errors.is_empty() && lines < LARGEST_TOGETHER >> 20 {
            scope.resolve(&value, &Path::default(), &mut errors);
            lines += 1;
        }
        let messages: Vec<&str> = errors.iter().map(|error| error.message.as_str()).collect();
        assert_eq!(
            messages,
            ["with its `${}` replaced the file is larger than 134217728 bytes from here on"]
        );
    }
}
