//! `flowgraph kinds`: what can be written in a pipeline.

use std::fmt::Write;

use clap::Args;
use serde_json::{Value as Json, json};

use super::output::Output;
use super::{Failure, exit_code};
use crate::engine::stage::forms::description;
use crate::engine::stage::{Arity, Port, Registry, StageKind, Wires, find_kind, kind_meant, wires};
use crate::excerpt::{NAME, excerpt};

mod artifacts;
mod example;
mod params;

#[derive(Debug, Args)]
pub(super) struct KindsArgs {
    /// Describe this kind: params, ports, outputs, an example. Another word is searched for in names, descriptions, ports
    /// and params
    #[arg(value_name = "KIND|WORD")]
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
            output.data(&list(registry));
        }
        return Ok(exit_code::OK);
    };
    let Some(kind) = find_kind(registry, &name.to_lowercase()) else {
        return search(registry, name, output);
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

/// Lists all kinds, by groups.
fn list(registry: &Registry) -> String {
    let width = widest(registry.iter());
    let mut text = String::new();
    for kind in registry {
        if let Some(group) = kind.group {
            let gap = if text.is_empty() { "" } else { "\n" };
            let _ = writeln!(text, "{gap}{group}:");
        }
        let _ = writeln!(text, "  {:width$}  {}", kind.name, kind.about());
    }
    text.push_str("\n`flowgraph kinds KIND` describes one, `flowgraph kinds WORD` finds those that have to do with a word");
    text
}

fn widest<'a>(kinds: impl Iterator<Item = &'a StageKind>) -> usize {
    kinds.map(|kind| kind.name.len()).max().unwrap_or(0)
}

/// Lines of the description of a kind that a search shows, at most.
const FOUND: usize = 4;

/// Lists the kinds that have a word in their names or descriptions, with the lines where it stands.
fn search(registry: &Registry, word: &str, output: &Output) -> Result<u8, Failure> {
    let wanted = word.to_lowercase();
    // At the beginning of a word: `kl` is not in StackLLaMA.
    let holds = |text: &str| {
        let text = text.to_lowercase();
        let mut found = text.match_indices(&wanted);
        found.any(|(at, _)| !text[..at].ends_with(char::is_alphanumeric))
    };
    let found = registry.iter().filter_map(|kind| {
        let schema = (kind.schema)();
        let params = params::describe(schema.as_value());
        let ports = wires(kind).ports;
        let ports: Vec<String> = ports
            .iter()
            .map(|(port, with)| port_line(port, with))
            .collect();
        let lines = ports.iter().map(String::as_str).chain(params.lines());
        let lines = lines.filter(|line| holds(line));
        let lines: Vec<String> = lines
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let is_found =
            !lines.is_empty() || holds(kind.name) || holds(description(schema.as_value()));
        is_found.then_some((kind, lines))
    });
    let found: Vec<(&StageKind, Vec<String>)> = found.collect();
    if wanted.trim().is_empty() || found.is_empty() {
        return Err(Failure::Other {
            message: format!("unknown stage kind `{word}`, and no kind says this word"),
            hint: kind_meant(registry, word)
                .or_else(|| Some("`flowgraph kinds` lists all".to_owned())),
            code: exit_code::USAGE,
        });
    }
    if output.json {
        let rows = found.iter().map(
            |(kind, lines)| json!({ "kind": kind.name, "about": kind.about(), "params": lines }),
        );
        output.json(&rows.collect::<Json>());
        return Ok(exit_code::OK);
    }
    let width = widest(found.iter().map(|(kind, _)| *kind));
    let mut text = String::new();
    for (kind, lines) in &found {
        let _ = writeln!(text, "{:width$}  {}", kind.name, kind.about());
        for line in lines.iter().take(FOUND) {
            let _ = writeln!(text, "{:width$}    {}", "", excerpt(line, 2 * NAME));
        }
        if lines.len() > FOUND {
            let _ = writeln!(text, "{:width$}    and {} more", "", lines.len() - FOUND);
        }
    }
    output.data(text.trim_end());
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
    let (name, about, with) = (&port.name, port.about, bracketed(with));
    format!("  {name:<14} {}: {about}{with}", takes(port))
}

/// Says what a port takes.
pub(super) fn takes(port: &Port) -> String {
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
    format!("{accepts}{arity}")
}
