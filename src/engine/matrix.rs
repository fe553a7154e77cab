//! Matrices: one stage template, one instance for each combination of axis values.

use std::collections::BTreeSet;

use indexmap::{IndexMap, IndexSet};

use super::diagnostic::{Diagnostic, Path, did_you_mean};
use super::reference::is_name;
use super::value::{Map, Value};

/// Combinations that one matrix may have: a few long axes would fill the memory.
const MOST: usize = 100_000;

/// Bytes of an axis value, which is part of the names of stages: those stand in every line about them.
const LONGEST_VALUE: usize = 1000;

/// The axis values of one instance, in axis order.
pub(super) type AxisValues = IndexMap<String, Value>;

/// Expands a `matrix:` whose `${}` are resolved; `None` stands for a stage without one.
///
/// The last axis varies fastest. `exclude` removes the combinations that agree with one of its maps (a list stands for
/// any of its values),
/// `include` adds combinations, each giving every axis.
pub(super) fn expand(
    matrix: Option<&Value>,
    path: &Path,
    errors: &mut Vec<Diagnostic>,
) -> Vec<AxisValues> {
    let Some(matrix) = matrix else {
        return vec![AxisValues::new()];
    };
    let Some(map) = matrix.as_map() else {
        errors.push(Diagnostic::error(
            path.clone(),
            format!(
                "`matrix` must be a map of axes, found {}",
                matrix.type_name()
            ),
        ));
        return Vec::new();
    };
    let mut combinations = vec![AxisValues::new()];
    let mut axes = Vec::new();
    for (axis, values) in map {
        if axis == "include" || axis == "exclude" {
            continue;
        }
        let path = path.key(axis);
        if !is_name(axis) {
            errors.push(
                Diagnostic::error(path.clone(), format!("`{axis}` cannot name an axis"))
                    .at_key()
                    .hint("names match [a-z][a-z0-9_]*"),
            );
        }
        let Value::List(values) = values else {
            errors.push(Diagnostic::error(
                path,
                format!(
                    "axis `{axis}` must be a list of values, found {}",
                    values.type_name()
                ),
            ));
            continue;
        };
        if values.is_empty() {
            errors.push(Diagnostic::error(
                path.clone(),
                format!("axis `{axis}` has no values"),
            ));
        }
        let mut spelt = BTreeSet::new();
        for (index, value) in values.iter().enumerate() {
            if matches!(value, Value::List(_) | Value::Map(_) | Value::Null) {
                errors.push(Diagnostic::error(
                    path.index(index),
                    format!(
                        "values of axis `{axis}` must be text, numbers or booleans, found {}",
                        value.type_name()
                    ),
                ));
            } else if !spelt.insert(value.to_string()) {
                // By text, because text names the instance: `1` and `"1"` would be one name.
                errors.push(Diagnostic::error(
                    path.index(index),
                    format!("axis `{axis}` has the value `{value}` twice"),
                ));
            }
        }
        for (index, value) in values.iter().enumerate() {
            check_length(axis, value, &path.index(index), errors);
        }
        axes.push(axis.clone());
        if combinations.len().saturating_mul(values.len()) > MOST {
            errors.push(Diagnostic::error(
                path,
                format!("with axis `{axis}` the matrix has more than {MOST} combinations"),
            ));
            return Vec::new();
        }
        combinations = combinations
            .iter()
            .flat_map(|combination| {
                values.iter().map(|value| {
                    let mut combination = combination.clone();
                    combination.insert(axis.clone(), value.clone());
                    combination
                })
            })
            .collect();
    }
    for (index, exclude) in entries(map, "exclude", path, errors) {
        let path = path.key("exclude").index(index);
        check_axes(exclude, &axes, &path, errors);
        let before = combinations.len();
        combinations.retain(|combination| {
            !exclude
                .iter()
                .all(|(axis, value)| match (combination.get(axis), value) {
                    // Any of several.
                    (Some(found), Value::List(values)) => values.contains(found),
                    (found, value) => found == Some(value),
                })
        });
        let known = exclude.keys().all(|axis| axes.contains(axis));
        if known && combinations.len() == before {
            errors.push(
                Diagnostic::error(path, "this `exclude` matches no combination")
                    .hint("values must be spelled as in the axes"),
            );
        }
    }
    for (index, include) in entries(map, "include", path, errors) {
        let path = path.key("include").index(index);
        check_axes(include, &axes, &path, errors);
        for (axis, value) in include {
            check_length(axis, value, &path.key(axis), errors);
        }
        let combination: AxisValues = axes
            .iter()
            .filter_map(|axis| Some((axis.clone(), include.get(axis)?.clone())))
            .collect();
        if combination.len() < axes.len() {
            errors.push(Diagnostic::error(
                path,
                format!("an `include` gives every axis: {}", axes.join(", ")),
            ));
        } else if combinations.contains(&combination) {
            errors.push(Diagnostic::error(
                path,
                "this `include` is already a combination of the axes",
            ));
        } else {
            combinations.push(combination);
        }
    }
    if combinations.is_empty() && errors.is_empty() {
        errors.push(Diagnostic::error(
            path.clone(),
            "the matrix has no combination left",
        ));
    }
    combinations
}

/// Lists the values that the axes have in `combinations`, as text: in the order of the axes, then what `include` adds.
pub(super) fn axis_values(
    matrix: Option<&Value>,
    combinations: &[AxisValues],
) -> IndexMap<String, Vec<String>> {
    let mut axes: IndexMap<&String, IndexSet<String>> = IndexMap::new();
    for (axis, value) in combinations.iter().flatten() {
        axes.entry(axis).or_default().insert(value.to_string());
    }
    let ordered = axes.into_iter().map(|(axis, mut values)| {
        if let Some(Value::List(order)) = matrix.and_then(|matrix| matrix.get([axis.as_str()])) {
            // Their first combinations may come in another order, when `exclude` has taken some.
            let order: IndexSet<String> = order.iter().map(ToString::to_string).collect();
            let rank = |value: &String| order.get_index_of(value).unwrap_or(usize::MAX);
            values.sort_by(|a, b| rank(a).cmp(&rank(b)));
        }
        (axis.clone(), values.into_iter().collect())
    });
    ordered.collect()
}

fn entries<'a>(
    matrix: &'a Map,
    key: &str,
    path: &Path,
    errors: &mut Vec<Diagnostic>,
) -> Vec<(usize, &'a Map)> {
    let list = match matrix.get(key) {
        None => return Vec::new(),
        Some(Value::List(list)) => list.as_slice(),
        Some(other) => {
            errors.push(Diagnostic::error(
                path.key(key),
                format!(
                    "`{key}` must be a list of maps, found {}",
                    other.type_name()
                ),
            ));
            return Vec::new();
        }
    };
    let mut maps = Vec::new();
    for (index, entry) in list.iter().enumerate() {
        match entry {
            Value::Map(map) => maps.push((index, &**map)),
            other => errors.push(Diagnostic::error(
                path.key(key).index(index),
                format!("expected a map of axis values, found {}", other.type_name()),
            )),
        }
    }
    maps
}

fn check_length(axis: &str, value: &Value, path: &Path, errors: &mut Vec<Diagnostic>) {
    let length = value.to_string().len();
    if length > LONGEST_VALUE {
        let message =
            format!("a value of axis `{axis}` has {length} bytes, more than {LONGEST_VALUE}");
        errors.push(
            Diagnostic::error(path.clone(), message).hint(
                "axis values are part of the names of stages: a long text can stand in a file",
            ),
        );
    }
}

fn check_axes(entry: &Map, axes: &[String], path: &Path, errors: &mut Vec<Diagnostic>) {
    for axis in entry.keys().filter(|axis| !axes.contains(axis)) {
        errors.push(
            Diagnostic::error(path.key(axis), format!("the matrix has no axis `{axis}`"))
                .at_key()
                .maybe_hint(did_you_mean(axis, axes.iter().map(String::as_str))),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> (Vec<String>, Vec<String>) {
        let matrix: Value = serde_yaml::from_str(text).unwrap();
        let mut errors = Vec::new();
        let combinations = expand(Some(&matrix), &Path::default(), &mut errors)
            .iter()
            .map(|combination| {
                combination
                    .values()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect();
        (
            combinations,
            errors.into_iter().map(|error| error.message).collect(),
        )
    }

    #[test]
    fn the_last_axis_varies_fastest_and_include_and_exclude_apply() {
        let (combinations, errors) = expanded(
            "policy: [a, b]\nseed: [1, 2]\nexclude: [{policy: a, seed: 2}]\ninclude: [{policy: c, seed: 9}]\n",
        );
        assert_eq!(combinations, ["a 1", "b 1", "b 2", "c 9"]);
        assert_eq!(errors, Vec::<String>::new());
        // Any of several values.
        let several =
            "policy: [a, b, c]\nseed: [1, 2, 3]\nexclude: [{policy: [a, b], seed: [2, 3]}]\n";
        let (combinations, _) = expanded(several);
        assert_eq!(combinations, ["a 1", "b 1", "c 1", "c 2", "c 3"]);
    }

    #[test]
    fn values_keep_the_order_of_their_axis_whatever_is_excluded() {
        let matrix: Value = serde_yaml::from_str(
            "size: [1, 2]\nheat: [low, mid, high]\nexclude: [{size: 1, heat: [low, high]}]\ninclude: [{size: 3, heat: hot}]\n",
        )
        .unwrap();
        let mut errors = Vec::new();
        let combinations = expand(Some(&matrix), &Path::default(), &mut errors);
        assert_eq!(combinations[0]["heat"], Value::String("mid".to_owned()));
        let values = axis_values(Some(&matrix), &combinations);
        assert_eq!(values["size"], ["1", "2", "3"]);
        assert_eq!(values["heat"], ["low", "mid", "high", "hot"]);
    }

    #[test]
    fn a_matrix_that_would_fill_the_memory_is_an_error() {
        let axis = format!(
            "[{}]",
            (0..1000).map(|n| format!("{n},")).collect::<String>()
        );
        let (combinations, errors) = expanded(&format!("a: {axis}\nb: {axis}\nc: {axis}\n"));
        assert!(combinations.is_empty());
        assert_eq!(
            errors,
            ["with axis `b` the matrix has more than 100000 combinations"]
        );
    }

    #[test]
    fn mistakes_are_named() {
        let (_, errors) =
            expanded("seed: [1, 1]\nA: 3\nexclude: [{sead: 1}, {seed: 5}]\ninclude: [{}]\n");
        assert_eq!(
            errors,
            [
                "axis `seed` has the value `1` twice",
                "`A` cannot name an axis",
                "axis `A` must be a list of values, found a whole number",
                "the matrix has no axis `sead`",
                "this `exclude` matches no combination",
                "an `include` gives every axis: seed",
            ]
        );
    }

    #[test]
    fn values_too_long_for_a_name_are_errors() {
        let (fits, long) = ("x".repeat(LONGEST_VALUE), "x".repeat(LONGEST_VALUE + 1));
        let (combinations, errors) = expanded(&format!("a: [{fits}]\n"));
        assert_eq!((combinations.len(), errors), (1, Vec::new()));
        let (_, errors) = expanded(&format!("a: [{long}]\ninclude: [{{a: {long}y}}]\n"));
        assert_eq!(
            errors,
            [
                "a value of axis `a` has 1001 bytes, more than 1000",
                "a value of axis `a` has 1002 bytes, more than 1000"
            ]
        );
    }
}
