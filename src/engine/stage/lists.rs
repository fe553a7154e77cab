//! Lists where maps belong. serde takes a list for a map and gives its items to the fields in turn, which nobody means.

use serde_json::Value as Json;

use super::defaults::{resolved, variants};
use crate::engine::diagnostic::Path;
use crate::engine::problem::Problem;

/// Deeper than any params; a schema may refer to itself.
const DEEPEST: usize = 16;

/// Whether there is a list anywhere: most params hold none, and need no look.
pub(super) fn holds_list(value: &Json) -> bool {
    match value {
        Json::Array(_) => true,
        Json::Object(map) => map.values().any(holds_list),
        _ => false,
    }
}

/// Finds the lists in `params` of which the schema says that they are maps.
pub(super) fn find(params: &Json, schema: &Json) -> Vec<Problem> {
    let mut problems = Vec::new();
    look(
        params,
        &[schema],
        schema,
        &Path::default(),
        DEEPEST,
        &mut problems,
    );
    problems
}

/// Looks into a value that fits one of some schemas.
fn look(
    value: &Json,
    schemas: &[&Json],
    root: &Json,
    path: &Path,
    depth: usize,
    problems: &mut Vec<Problem>,
) {
    let Some(depth) = depth.checked_sub(1) else {
        return;
    };
    let mut forms = Vec::new();
    schemas
        .iter()
        .for_each(|schema| add_forms(schema, root, DEEPEST, &mut forms));
    match value {
        Json::Array(items) => {
            let takes = |name: &str| forms.iter().any(|form| is_type(form, name));
            if takes("object") && !takes("array") {
                let place = if path.0.is_empty() {
                    String::new()
                } else {
                    format!("`{path}`: ")
                };
                problems.push(Problem::at(
                    path.clone(),
                    format!("{place}expected a map, found a list"),
                ));
                return;
            }
            let of_items: Vec<&Json> = forms.iter().filter_map(|form| form.get("items")).collect();
            for (at, item) in items.iter().enumerate() {
                look(item, &of_items, root, &path.index(at), depth, problems);
            }
        }
        Json::Object(map) => {
            for (key, value) in map {
                let of_key = forms.iter().filter_map(|form| {
                    let own = form.get("properties").and_then(|all| all.get(key));
                    own.or_else(|| form.get("additionalProperties"))
                });
                let of_key: Vec<&Json> = of_key.collect();
                look(value, &of_key, root, &path.key(key), depth, problems);
            }
        }
        _ => {}
    }
}

/// Adds a schema and all of which a value must fit one.
fn add_forms<'a>(schema: &'a Json, root: &'a Json, depth: usize, forms: &mut Vec<&'a Json>) {
    let schema = resolved(schema, root);
    forms.push(schema);
    if let Some(depth) = depth.checked_sub(1) {
        variants(schema).for_each(|variant| add_forms(variant, root, depth, forms));
    }
}

/// Whether a schema takes values of a type; one that says nothing of types and has no forms takes all.
fn is_type(schema: &Json, name: &str) -> bool {
    match schema.get("type") {
        Some(Json::Array(types)) => types.iter().any(|one| one == name),
        Some(one) => one == name,
        None => {
            let says = ["anyOf", "oneOf", "const", "enum", "$ref", "properties"];
            !says.iter().any(|key| schema.get(key).is_some())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::stage::find_kind;
    use crate::registry::REGISTRY;

    fn found(kind: &str, params: Json) -> Vec<String> {
        let kind = find_kind(REGISTRY, kind).unwrap();
        let problems = find(&params, (kind.schema)().as_value());
        problems
            .into_iter()
            .map(|problem| problem.message)
            .collect()
    }

    #[test]
    fn a_list_for_a_map_is_found_wherever_it_is() {
        let none: [&str; 0] = [];
        assert_eq!(
            found("train_sft", json!({ "optimizer": [0.01], "steps": 3 })),
            ["`optimizer`: expected a map, found a list"]
        );
        assert_eq!(
            found("train_sft", json!({ "adapter": [2, 4, "all-linear"] })),
            ["`adapter`: expected a map, found a list"]
        );
        assert_eq!(found("plot_curves", json!({ "figure": [] })).len(), 1);
        assert_eq!(
            found("metric_table", json!([])),
            ["expected a map, found a list"]
        );
        for (kind, params) in [
            (
                "train_sft",
                json!({ "adapter": { "target_modules": ["q_proj"] }, "checkpoints": [1] }),
            ),
            (
                "plot_curves",
                json!({ "figure": { "palette": ["a", ["b", "c"]] } }),
            ),
            ("command", json!({ "outputs": { "a": "b" }, "code": ["x"] })),
        ] {
            assert_eq!(found(kind, params), none, "{kind}");
        }
    }

    #[test]
    fn examples_hold_none() {
        for kind in REGISTRY {
            let params: Json = serde_yaml::from_str(kind.example).unwrap();
            let none: [&str; 0] = [];
            assert_eq!(found(kind.name, params), none, "{}", kind.name);
        }
    }
}
