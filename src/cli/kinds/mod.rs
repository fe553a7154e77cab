//! `flowgraph kinds`: what can be written in a pipeline.

use std::fmt::Write;

use clap::Args;
use schemars::Schema;
use serde_json::{Value as Json, json};

use super::output::Output;
use super::{Failure, exit_code};
use crate::engine::diagnostic::did_you_mean;
use crate::engine::stage::{Arity, Registry, StageKind, defined, find_kind};

mod artifacts;
mod example;

#[derive(Debug, Args)]
pub(super) struct KindsArgs {
    /// Describe this kind: params, ports, outputs, an example
    kind: Option<String>,
    /// Artifact kinds instead: their files, columns with types and meaning, an example row
    #[arg(long)]
    artifacts: bool,
}

pub(super) fn run(args: &KindsArgs, registry: &Registry, output: &Output) -> Result<u8, Failure> {
    if args.artifacts {
        return artifacts::run(args.kind.as_deref(), output);
    }
    let Some(name) = &args.kind else {
        if output.json {
            let rows: Vec<Json> = registry
                .iter()
                .map(|kind| json!({ "kind": kind.name, "version": kind.version, "about": kind.about() }))
                .collect();
            output.json(&rows);
        } else {
            let width = registry
                .iter()
                .map(|kind| kind.name.len())
                .max()
                .unwrap_or(0);
            let lines: Vec<String> = registry
                .iter()
                .map(|kind| format!("{:width$}  {}", kind.name, kind.about()))
                .collect();
            output.data(&lines.join("\n"));
        }
        return Ok(exit_code::OK);
    };
    let Some(kind) = find_kind(registry, name) else {
        return Err(Failure::Other {
            message: format!("unknown stage kind `{name}`"),
            hint: did_you_mean(name, registry.iter().map(|kind| kind.name)),
            code: exit_code::USAGE,
        });
    };
    if output.json {
        output.json(
            &json!({ "kind": kind.name, "version": kind.version, "schema": (kind.schema)() }),
        );
    } else {
        output.data(&describe(registry, kind));
    }
    Ok(exit_code::OK)
}

fn describe(registry: &Registry, kind: &StageKind) -> String {
    let schema = (kind.schema)();
    let about = schema
        .get("description")
        .and_then(Json::as_str)
        .unwrap_or_default();
    let mut text = format!("{} (version {})\n\n{about}\n", kind.name, kind.version);
    let example: Json = serde_yaml::from_str(kind.example).unwrap_or_default();
    if let Ok(stage) = (kind.parse)(&example) {
        let ports = stage.ports();
        if !ports.is_empty() {
            text.push_str("\ninputs:\n");
        }
        for port in ports {
            let arity = match port.arity {
                Arity::One => "",
                Arity::Optional => ", optional",
                Arity::Many => ", a list",
                Arity::OptionalMany => ", a list, optional",
            };
            let accepts = if port.accepts.is_empty() {
                "any".to_owned()
            } else {
                port.accepts.join(" or ")
            };
            let _ = writeln!(text, "  {:<14} {accepts}{arity}: {}", port.name, port.about);
        }
        text.push_str("\noutputs (of the example below):\n");
        for output in stage.outputs() {
            let _ = writeln!(text, "  {:<14} {}", output.name, output.kind);
        }
    }
    text.push_str("\nparams:\n");
    let empty = serde_json::Map::new();
    let properties = schema
        .get("properties")
        .and_then(Json::as_object)
        .unwrap_or(&empty);
    let required: Vec<&str> = schema
        .get("required")
        .and_then(Json::as_array)
        .map(|list| list.iter().filter_map(Json::as_str).collect())
        .unwrap_or_default();
    for (name, property) in properties {
        let default = match property.get("default") {
            _ if required.contains(&name.as_str()) => "required".to_owned(),
            Some(default) => format!("default {default}"),
            None => "optional".to_owned(),
        };
        let about = property
            .get("description")
            .and_then(Json::as_str)
            .unwrap_or_default()
            .replace('\n', " ");
        let _ = writeln!(text, "  {name:<22} {about} ({default})");
        for (choice, about) in choices(&schema, property) {
            let _ = writeln!(text, "    {choice}: {}", about.replace('\n', " "));
        }
    }
    let stages = example::stages(registry, kind);
    let own = stages.last().map(String::as_str).unwrap_or_default();
    let _ = write!(text, "\nexample, a stage of `stages`:\n\n{own}");
    text
}

/// Lists the values or forms that a param can have, each with what it stands for, where its schema says so.
fn choices<'a>(schema: &'a Schema, property: &'a Json) -> Vec<(String, &'a str)> {
    let named = |property: &'a Json| defined(schema, property);
    // One that may be left out is it or null.
    let or_null = property.get("anyOf").and_then(Json::as_array);
    let or_null = or_null.and_then(|any| any.iter().find_map(named));
    let property = named(property).or(or_null).unwrap_or(property);
    let listed = property.get("oneOf").and_then(Json::as_array);
    let of = |choice: &Json| -> Option<String> {
        if let Some(name) = choice.get("const").and_then(Json::as_str) {
            return Some(name.to_owned());
        }
        let names = choice.get("enum").or_else(|| choice.get("required"))?;
        let names: Vec<&str> = names.as_array()?.iter().filter_map(Json::as_str).collect();
        Some(names.join(" or "))
    };
    listed
        .into_iter()
        .flatten()
        .filter_map(|choice| Some((of(choice)?, choice.get("description")?.as_str()?)))
        .collect()
}
