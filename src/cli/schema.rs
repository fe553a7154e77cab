//! `flowgraph schema`: the JSON schema of pipeline files.

use serde_json::{Value as Json, json};

use super::output::Output;
use super::{Failure, exit_code};
use crate::engine::stage::Registry;

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
        conditions.push(json!({
            "if": { "properties": { "kind": { "const": kind.name } } },
            "then": { "properties": { "params": { "$ref": format!("#/$defs/{}", kind.name) } } },
        }));
    }
    let stage = json!({
        "type": "object",
        "required": ["kind"],
        "additionalProperties": false,
        "properties": {
            "kind": { "enum": kinds, "description": "What the stage does." },
            "description": { "type": "string" },
            "inputs": { "type": "object", "description": "For each port a reference, or a list of references." },
            "params": { "type": "object" },
            "matrix": { "type": "object", "description": "Axes with their values; one instance for each combination." },
            "resources": {
                "type": "object",
                "additionalProperties": false,
                "properties": {
                    "cpus": { "type": ["integer", "string"] },
                    "memory": { "type": ["integer", "string"], "description": "Bytes, or text such as 4GB." },
                    "gpus": { "type": ["integer", "string"] },
                    "tokens": { "type": "object", "description": "Of each token, how many; `run --tokens NAME=N` says how many there are." },
                },
            },
            "retries": { "type": ["integer", "string"], "description": "How often a failed run is tried again." },
            "timeout": { "type": ["number", "string"], "description": "Seconds after which a run is ended." },
        },
        "allOf": conditions,
    });
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
                "type": "object",
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
            "params": { "type": "object", "description": "Values for `${}`." },
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

/// Lets a `${}` stand wherever a value is expected.
fn allow_references(schema: &mut Json) {
    let Some(properties) = schema.get_mut("properties").and_then(Json::as_object_mut) else {
        return;
    };
    for property in properties.values_mut() {
        let (description, default) = (
            property.get("description").cloned(),
            property.get("default").cloned(),
        );
        let mut wrapped =
            json!({ "anyOf": [property.take(), { "type": "string", "pattern": "\\$\\{" }] });
        if let Some(description) = description {
            wrapped["description"] = description;
        }
        if let Some(default) = default {
            wrapped["default"] = default;
        }
        *property = wrapped;
    }
}
