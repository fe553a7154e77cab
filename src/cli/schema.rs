//! `flowgraph schema`: the JSON schema of pipeline files.

use crate::engine::launch::ClusterSettings;
use serde_json::{Value as Json, json};

use super::kinds::takes;
use super::output::Output;
use super::{Failure, exit_code};
use crate::engine::stage::{Registry, Wires, wires};

pub(super) fn run(registry: &Registry, output: &Output) -> Result<u8, Failure> {
    let text = serde_json::to_string_pretty(&schema(registry))
        .map_err(|error| Failure::usage(error.to_string()))?;
    output.data(&text);
    Ok(exit_code::OK)
}

fn schema(registry: &Registry) -> Json {
    let kinds: Vec<&str> = registry.iter().map(|kind| kind.name).collect();
    let mut definitions = serde_json::Map::new();
    let mut conditions = Vec::new();
    for kind in registry {
        let mut params = (kind.schema)().to_value();
        hoist_definitions(&mut params, kind.name, &mut definitions);
        allow_references(&mut params);
        definitions.insert(kind.name.to_owned(), params);
        let wires = wires(kind);
        let mut of_kind = json!({ "properties": {
            "params": { "$ref": format!("#/$defs/{}", kind.name) },
            "inputs": inputs(&wires),
        } });
        allow_references(&mut of_kind);
        if !wires.needed.is_empty() {
            of_kind["required"] = json!(["inputs"]);
        }
        conditions.push(json!({
            "if": { "properties": { "kind": { "const": kind.name } } },
            "then": of_kind,
        }));
    }
    let mut stage = json!({
        "type": "object",
        "required": ["kind"],
        "additionalProperties": false,
        "properties": {
            "kind": { "enum": kinds, "description": "What the stage does." },
            "description": { "type": "string" },
            "inputs": { "type": "object", "description": "For each port a reference, `stage[axis=value].output`, or a list of references." },
            "params": { "type": "object" },
            "matrix": { "type": "object", "description": "Axes with their values; one instance for each combination." },
            "resources": {
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "cpus": { "type": "integer" },
                    "memory": { "type": ["integer", "string"], "description": "Bytes, or text such as 4GB." },
                    "gpus": { "type": "integer" },
                    "gpu_memory": { "type": ["integer", "string"], "description": "The least that each GPU must have in all, such as 40GB." },
                    "tokens": { "type": "object", "description": "Of each token, how many; `run --tokens NAME=N` says how many there are." },
                },
            },
            "retries": { "type": "integer", "description": "How often a failed run is tried again." },
            "timeout": { "type": "number", "description": "Seconds after which a run is ended." },
        },
    });
    // Which kind it is decides what else is right: it cannot be a reference.
    let kind = stage["properties"]["kind"].clone();
    allow_references(&mut stage);
    stage["properties"]["kind"] = kind;
    stage["allOf"] = Json::Array(conditions);
    let mut schema_of_cluster = schemars::schema_for!(ClusterSettings).to_value();
    if let Some(map) = schema_of_cluster.as_object_mut() {
        map.remove("$schema");
        map.remove("title");
    }
    // A profile patches stages in part, so its stages are checked only once merged.
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "flowgraph pipeline",
        "type": "object",
        "required": ["name", "stages"],
        "additionalProperties": false,
        "properties": {
            "name": { "type": "string" },
            "description": { "type": "string" },
            "import": {
                "type": ["object", "null"],
                "description": "Pipeline files whose stages come in under a namespace, as in `base/sft`.",
                "additionalProperties": {
                    "anyOf": [
                        { "type": "string" },
                        {
                            "type": "object",
                            "required": ["pipeline"],
                            "additionalProperties": false,
                            "properties": {
                                "pipeline": { "type": "string" },
                                "profiles": { "type": "array", "items": { "type": "string" } },
                                "params": { "type": "object" },
                            },
                        },
                    ],
                },
            },
            "params": { "type": ["object", "null"], "description": "Values for `${}`." },
            "profiles": {
                "type": "object",
                "additionalProperties": {
                    "type": ["object", "null"],
                    "additionalProperties": false,
                    "properties": {
                        "description": { "type": "string" },
                        "extends": {
                            "description": "Profiles that come before this one.",
                            "anyOf": [
                                { "type": "string" },
                                { "type": "array", "items": { "type": "string" } },
                            ],
                        },
                        "params": { "type": "object" },
                        "stages": { "type": "object" },
                    },
                },
            },
            "show": {
                "type": "array",
                "items": { "type": "string" },
                "description": "Stages whose tables `run` prints: else those that decide claims, or all.",
            },
            "cluster": schema_of_cluster,
            "stages": { "type": "object", "additionalProperties": stage },
        },
        "$defs": definitions,
    })
}

/// Moves the definitions of one kind's schema to the top, under names of their own.
fn hoist_definitions(
    schema: &mut Json,
    kind: &str,
    definitions: &mut serde_json::Map<String, Json>,
) {
    let Some(Json::Object(inner)) = schema.as_object_mut().and_then(|map| map.remove("$defs"))
    else {
        return;
    };
    rename_references(schema, kind);
    for (name, mut definition) in inner {
        rename_references(&mut definition, kind);
        allow_references(&mut definition);
        definitions.insert(format!("{kind}.{name}"), definition);
    }
}

fn rename_references(value: &mut Json, kind: &str) {
    match value {
        Json::Object(map) => {
            if let Some(Json::String(reference)) = map.get_mut("$ref") {
                *reference = reference.replacen("#/$defs/", &format!("#/$defs/{kind}."), 1);
            }
            map.values_mut()
                .for_each(|value| rename_references(value, kind));
        }
        Json::Array(list) => list
            .iter_mut()
            .for_each(|value| rename_references(value, kind)),
        _ => {}
    }
}

/// The ports of a kind, each with what it takes.
fn inputs(wires: &Wires) -> Json {
    let ports = wires.ports.iter().map(|(port, _)| {
        let about = format!("{}: {}", takes(port), port.about);
        (port.name.to_string(), reference(&about))
    });
    let ports: serde_json::Map<String, Json> = ports.collect();
    let needed: Vec<&str> = wires.needed.iter().map(|port| port.name.as_ref()).collect();
    let further = if wires.has_free_ports {
        reference("A port of its own.")
    } else {
        json!(false)
    };
    json!({ "properties": ports, "required": needed, "additionalProperties": further })
}

fn reference(about: &str) -> Json {
    json!({
        "description": about,
        "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" } }],
    })
}

/// Lets a `${}` stand wherever a value is expected, however deep.
fn allow_references(schema: &mut Json) {
    let Some(map) = schema.as_object_mut() else {
        return;
    };
    // A reference may stand in for more than one of the forms.
    if let Some(forms) = map.remove("oneOf") {
        map.insert("anyOf".to_owned(), forms);
    }
    for key in ["anyOf", "allOf"] {
        let forms = map.get_mut(key).and_then(Json::as_array_mut);
        forms.into_iter().flatten().for_each(allow_references);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key).filter(|inner| inner.is_object()) {
            allow_reference(inner);
        }
    }
    let required = map.get("required").and_then(Json::as_array).cloned();
    let required = required.unwrap_or_default();
    let properties = map.get_mut("properties").and_then(Json::as_object_mut);
    for (key, value) in properties.into_iter().flatten() {
        // What may be left out may be null, as may a map that may be empty.
        let is_needed = required.iter().any(|name| name == key);
        let is_map = value.get("type").is_some_and(|name| name == "object");
        let may_be_null = !is_needed || (is_map && value.get("required").is_none());
        allow_reference(value);
        if may_be_null && let Some(forms) = value["anyOf"].as_array_mut() {
            forms.push(json!({ "type": "null" }));
        }
    }
}

/// Lets a `${}` stand in place of a value, and of what is inside of it.
fn allow_reference(value: &mut Json) {
    allow_references(value);
    let mut wrapped = json!({});
    for key in ["description", "default"] {
        if let Some(said) = value.get(key) {
            wrapped[key] = said.clone();
        }
    }
    wrapped["anyOf"] = json!([value.take(), { "type": "string", "pattern": "\\$\\{" }]);
    *value = wrapped;
}
