//! What a kind takes and makes, with other params than those of its example, too.

use std::collections::BTreeSet;

use serde_json::{Map, Value as Json, json};

use super::forms::{Form, description, form_of, forms_of, properties, required};
use super::{Output, Port, Stage, StageKind, resolved};
use crate::engine::reference::is_name;

/// A text where any will do.
const ANY: &str = "x";

/// Params within params, at most.
const DEEPEST: usize = 4;

/// What a kind takes and makes, each with what brings it where the example does not.
pub struct Wires {
    pub ports: Vec<(Port, String)>,
    /// Ports that need an input whatever the params, as far as those that were tried tell.
    pub needed: Vec<Port>,
    pub has_free_ports: bool,
    pub outputs: Vec<(Output, String)>,
}

/// Returns what a kind takes and makes.
pub fn wires(kind: &StageKind) -> Wires {
    let stages = tried(kind);
    let needs = |stage: &dyn Stage| -> Vec<Port> {
        let ports = stage.ports().into_iter();
        ports.filter(|port| !port.arity.is_optional()).collect()
    };
    let mut needed = stages
        .first()
        .map_or_else(Vec::new, |(stage, _)| needs(stage.as_ref()));
    for (stage, _) in &stages {
        let of_this = needs(stage.as_ref());
        needed.retain(|port| of_this.iter().any(|other| other.name == port.name));
    }
    Wires {
        ports: listed(&stages, |stage| stage.ports(), |port| &port.name),
        needed,
        has_free_ports: stages
            .first()
            .is_some_and(|(stage, _)| stage.has_free_ports()),
        outputs: listed(&stages, |stage| stage.outputs(), |output| &output.name),
    }
}

/// Returns what `list` says of stages, each with what brings it.
fn listed<T>(
    stages: &[(Box<dyn Stage>, String)],
    list: impl Fn(&dyn Stage) -> Vec<T>,
    name: impl Fn(&T) -> &str,
) -> Vec<(T, String)> {
    let mut known = BTreeSet::from([ANY.to_owned()]);
    let mut found = Vec::new();
    for (stage, with) in stages {
        for item in list(stage.as_ref()) {
            if known.insert(name(&item).to_owned()) {
                found.push((item, with.clone()));
            }
        }
    }
    found
}

/// Returns the example of a kind, with nothing, then stages whose params differ in one from the example or from the least
/// that the kind takes, each with what the difference is.
fn tried(kind: &StageKind) -> Vec<(Box<dyn Stage>, String)> {
    let schema = (kind.schema)().to_value();
    let required = required(&schema);
    let example: Map<String, Json> = serde_yaml::from_str(kind.example).unwrap_or_default();
    let mut least = example.clone();
    least.retain(|key, _| required.contains(&key.as_str()));
    let mut stages = Vec::new();
    let mut add = |params: &Map<String, Json>, with: &str| {
        let stage = (kind.parse)(&Json::Object(params.clone())).ok();
        stages.extend(stage.map(|stage| (stage, with.to_owned())));
    };
    for (base, with) in [
        (&example, ""),
        (&least, "with no more params than are required"),
    ] {
        add(base, with);
        for (key, property) in properties(&schema) {
            if base.contains_key(key) && !required.contains(&key) {
                let mut params = base.clone();
                params.remove(key);
                add(&params, &format!("without `{key}`"));
            }
            for (form, value) in values(property, &schema, 0) {
                let mut params = base.clone();
                params.insert(key.to_owned(), value);
                add(&params, &format!("with `{key}{form}`"));
            }
        }
    }
    stages
}

/// Returns values that a param can have, at least one of each form, with how that is written behind the param's name.
fn values(value: &Json, root: &Json, depth: usize) -> Vec<(String, Json)> {
    if depth > DEEPEST {
        return Vec::new();
    }
    let said = description(value);
    let value = resolved(value, root);
    let forms = forms_of(value);
    if !forms.is_empty() {
        let all = forms.iter().flat_map(|form| values(form, root, depth + 1));
        return all.collect();
    }
    let map = || -> Map<String, Json> {
        let required = required(value);
        let needed = properties(value).filter(|(key, _)| required.contains(key));
        let first = |of| values(of, root, depth + 1).into_iter().next();
        let given = needed.filter_map(|(key, of)| Some((key.to_owned(), first(of)?.1)));
        given.collect()
    };
    match form_of(value, root) {
        Form::Names(names) => {
            let names = names.into_iter();
            return names
                .map(|name| (format!(": {name}"), json!(name)))
                .collect();
        }
        Form::Tagged(key, name, _) => return vec![(format!(".{key}: {name}"), json!(map()))],
        Form::Keyed(key, _) => return vec![(format!(".{key}"), json!(map()))],
        Form::Other(_) => {}
    }
    let types = value.get("type");
    let is = |name: &str| match types {
        Some(Json::Array(types)) => types.iter().any(|one| one == name),
        types => types.is_some_and(|one| one == name),
    };
    let plain = |value: Json| vec![(String::new(), value)];
    if is("boolean") {
        let both = [true, false].into_iter();
        both.map(|value| (format!(": {value}"), json!(value)))
            .collect()
    } else if is("object") {
        plain(json!(map()))
    } else if is("array") {
        let item = value
            .get("items")
            .map(|items| values(items, root, depth + 1));
        let item = item.and_then(|items| items.into_iter().next());
        plain(item.into_iter().map(|(_, item)| item).collect())
    } else if is("integer") {
        plain(json!(1))
    } else if is("number") {
        plain(json!(0.5))
    } else if is("string") {
        // Those with a meaning of their own stand in the documentation.
        let words = said
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| is_name(word));
        let words = words.map(|word| (format!(": {word}"), json!(word)));
        words.chain(plain(json!(ANY))).collect()
    } else {
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::stage::find_kind;
    use crate::registry::REGISTRY;

    #[test]
    fn ports_and_outputs_are_found_with_the_param_that_brings_them() {
        for (kind, expected) in [
            ("reward_command", "data with `columns`"),
            (
                "load_dataset",
                "data without `source`, model with `template: model`",
            ),
            ("sample", ""),
        ] {
            let kind = find_kind(REGISTRY, kind).unwrap();
            let found = wires(kind).ports;
            let found: Vec<String> = found
                .iter()
                .filter(|(_, with)| !with.is_empty())
                .map(|(port, with)| format!("{} {with}", port.name))
                .collect();
            assert_eq!(found.join(", "), expected, "{}", kind.name);
        }
        let choose = find_kind(REGISTRY, "choose").unwrap();
        let found = wires(choose).outputs;
        let found: Vec<&str> = found.iter().map(|(_, with)| with.as_str()).collect();
        assert_eq!(found, ["", "with `hand_on: true`"]);
    }
}
