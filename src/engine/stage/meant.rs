//! Which kind is meant by a name that none has, such as that of a method which is a param of another kind.

use serde_json::Value as Json;

use super::{Registry, StageKind, resolved, variants};
use crate::engine::diagnostic::did_you_mean;

/// Kinds that a hint names.
const NAMED: usize = 4;
/// Deeper than any params; a schema may refer to itself.
const DEEPEST: usize = 8;

/// Says which kinds may be meant: those of whose params the name, or what follows its verb (`train_dpo`), is a value, those
/// whose names hold it, those whose descriptions do, or the one that is spelt most alike.
pub fn kind_meant(registry: &Registry, name: &str) -> Option<String> {
    let word = name.to_lowercase().replace('-', "_");
    let behind_verb = word.split_once('_').map(|(_, rest)| rest);
    for word in [Some(word.as_str()), behind_verb].into_iter().flatten() {
        let values = registry.iter().filter_map(|kind| {
            let schema = (kind.schema)().to_value();
            let found = value_in(&schema, &schema, word, "", 0)?;
            Some(format!("`{}` with `{found}`", kind.name))
        });
        let held = |kind: &&StageKind| format!("_{}_", kind.name).contains(&format!("_{word}_"));
        let named = registry.iter().filter(held);
        let mut found: Vec<String> = values
            .chain(named.map(|kind| format!("`{}`", kind.name)))
            .collect();
        if found.is_empty() {
            let said = registry.iter().filter(|kind| is_said(kind, word));
            found = said.map(|kind| format!("`{}`", kind.name)).collect();
        }
        if !found.is_empty() {
            found.truncate(NAMED);
            return Some(format!("did you mean {}?", found.join(" or ")));
        }
    }
    did_you_mean(name, registry.iter().map(|kind| kind.name))
}

/// Whether the first paragraph of a kind's documentation has the word.
fn is_said(kind: &StageKind, word: &str) -> bool {
    let about = kind.about();
    let mut words = about.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.any(|said| said.eq_ignore_ascii_case(word))
}

/// Finds a param that has a value of this name, and writes both as people would.
fn value_in(root: &Json, schema: &Json, word: &str, path: &str, depth: usize) -> Option<String> {
    if depth > DEEPEST {
        return None;
    }
    let schema = resolved(schema, root);
    let list = |key: &str| schema.get(key).and_then(Json::as_array);
    let is_word = |value: &Json| value.as_str().is_some_and(|value| value == word);
    if schema.get("const").is_some_and(is_word)
        || list("enum").is_some_and(|values| values.iter().any(is_word))
    {
        return Some(format!("{path}: {word}"));
    }
    let below = |path: &str, schema| value_in(root, schema, word, path, depth + 1);
    let properties = schema.get("properties").and_then(Json::as_object);
    let found = properties.into_iter().flatten().find_map(|(key, of)| {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        // A form that is named by its only key.
        let is_form =
            depth > 0 && key == word && list("required").is_some_and(|all| all.len() == 1);
        let form = || format!("{path}: {{ ... }}");
        is_form.then(form).or_else(|| below(&path, of))
    });
    found
        .or_else(|| below(path, schema.get("items")?))
        .or_else(|| below(path, schema.get("additionalProperties")?))
        .or_else(|| variants(schema).find_map(|variant| below(path, variant)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::REGISTRY;

    #[test]
    fn names_of_methods_lead_to_the_kinds_that_have_them() {
        for (name, expected) in [
            (
                "dpo",
                "`train_preference` with `objective.loss: dpo` or `train_gflownet_dpo`",
            ),
            (
                "train_dpo",
                "`train_preference` with `objective.loss: dpo` or `train_gflownet_dpo`",
            ),
            ("train_kto", "`train_preference` with `objective.loss: kto`"),
            ("IPO", "`train_preference` with `objective.loss: ipo`"),
            ("grpo", "`train_policy_gradient` with `objective: grpo`"),
            ("rloo", "`train_policy_gradient` with `objective: rloo`"),
            ("gdpo", "`train_gflownet_dpo`"),
            ("sft", "`train_sft`"),
            ("ppo", "`train_ppo`"),
            ("comand", "`command`"),
            ("train_pp", "`train_ppo`"),
        ] {
            let meant = kind_meant(REGISTRY, name);
            assert_eq!(meant, Some(format!("did you mean {expected}?")), "{name}");
        }
        assert_eq!(kind_meant(REGISTRY, "zzz"), None);
    }
}
