//! `flowgraph kinds`: what can be written in a pipeline.

use std::fmt::Write;

use clap::Args;
use serde_json::{Value as Json, json};

use super::output::Output;
use super::{Failure, exit_code};
use crate::engine::stage::{Arity, Port, Registry, StageKind, find_kind, kind_meant};
use wires::{Wires, wires};

mod artifacts;
mod example;
mod forms;
mod params;
mod wires;

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
            hint: kind_meant(registry, name),
            code: exit_code::USAGE,
        });
    };
    if output.json {
        let Wires { ports, outputs, .. } = wires(kind);
        let ports = ports.iter().map(|(port, with)| {
            json!({
                "name": port.name, "accepts": port.accepts, "optional": port.arity.is_optional(),
                "list": port.arity.is_list(), "about": port.about, "with": with,
            })
        });
        let outputs = outputs.iter().map(
            |(output, with)| json!({ "name": output.name, "kind": output.kind, "with": with }),
        );
        output.json(&json!({
            "kind": kind.name, "version": kind.version, "inputs": ports.collect::<Json>(),
            "outputs": outputs.collect::<Json>(), "schema": (kind.schema)(),
        }));
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
    let wires = wires(kind);
    let ports = wires.ports.iter();
    let mut lines: Vec<String> = ports.map(|(port, with)| port_line(port, with)).collect();
    if wires.has_free_ports {
        lines.push("  of any name    any, a list, optional".to_owned());
    }
    if !lines.is_empty() {
        let _ = writeln!(text, "\ninputs:\n{}", lines.join("\n"));
    }
    text.push_str("\noutputs (of the example below):\n");
    for (output, with) in wires.outputs {
        let (name, kind, with) = (output.name, output.kind, bracketed(&with));
        let _ = writeln!(text, "  {name:<14} {kind}{with}");
    }
    text.push_str("\nparams:\n");
    text.push_str(&params::describe(schema.as_value()));
    let stages = example::stages(registry, kind);
    let own = stages.last().map(String::as_str).unwrap_or_default();
    let _ = write!(text, "\nexample, a stage of `stages`:\n\n{own}");
    text
}

fn bracketed(with: &str) -> String {
    if with.is_empty() {
        String::new()
    } else {
        format!(" ({with})")
    }
}

fn port_line(port: &Port, with: &str) -> String {
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
    let (name, about, with) = (&port.name, port.about, bracketed(with));
    format!("  {name:<14} {accepts}{arity}: {about}{with}")
}
