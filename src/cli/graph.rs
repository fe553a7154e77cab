//! `flowgraph graph`: the DAG as Mermaid or Graphviz, matrices folded.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use clap::{Args, ValueEnum};
use indexmap::IndexMap;
use serde_json::json;

use super::output::Output;
use super::{Failure, PipelineOptions, exit_code};
use crate::engine::instance::Instance;
use crate::engine::spec::Pipeline;
use crate::engine::stage::Registry;

#[derive(Debug, Args)]
pub(super) struct GraphArgs {
    #[command(flatten)]
    options: PipelineOptions,
    /// Language of the drawing
    #[arg(long, value_enum, default_value = "mermaid")]
    format: Format,
    /// Draw each instance of a matrix
    #[arg(long)]
    expand: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Mermaid,
    Dot,
}

pub(super) fn run(args: &GraphArgs, registry: &Registry, output: &Output) -> Result<u8, Failure> {
    let pipeline = args.options.load(registry)?;
    let (nodes, edges) = drawn(&pipeline, args.expand);
    if output.json {
        output.json(&json!({ "nodes": nodes, "edges": edges }));
        return Ok(exit_code::OK);
    }
    let mut text = String::new();
    let index: BTreeMap<&str, usize> = nodes
        .iter()
        .enumerate()
        .map(|(at, (name, _))| (name.as_str(), at))
        .collect();
    match args.format {
        Format::Mermaid => {
            text.push_str("flowchart TD\n");
            for (at, (name, kind)) in nodes.iter().enumerate() {
                let _ = writeln!(text, "  n{at}[\"{name}<br/><small>{kind}</small>\"]");
            }
            for (from, to) in &edges {
                let _ = writeln!(
                    text,
                    "  n{} --> n{}",
                    index[from.as_str()],
                    index[to.as_str()]
                );
            }
        }
        Format::Dot => {
            text.push_str("digraph flowgraph {\n  rankdir=TB;\n  node [shape=box];\n");
            for (at, (name, kind)) in nodes.iter().enumerate() {
                let _ = writeln!(text, "  n{at} [label=\"{name}\\n{kind}\"];");
            }
            for (from, to) in &edges {
                let _ = writeln!(
                    text,
                    "  n{} -> n{};",
                    index[from.as_str()],
                    index[to.as_str()]
                );
            }
            text.push_str("}\n");
        }
    }
    output.data(&text);
    Ok(exit_code::OK)
}

type Nodes = Vec<(String, &'static str)>;
pub(super) type Edges = BTreeSet<(String, String)>;

/// Names the node of a stage and all others of its matrix.
pub(super) fn folded_name(stage: &Instance) -> String {
    let axes: Vec<&str> = stage.axes.keys().map(String::as_str).collect();
    if axes.is_empty() {
        stage.template.clone()
    } else {
        format!("{} × {}", stage.template, axes.join(", "))
    }
}

/// Returns the nodes with their kinds, in file order, and the edges between them.
pub(super) fn drawn(pipeline: &Pipeline, expand: bool) -> (Nodes, Edges) {
    let name = |stage: usize| {
        let stage = &pipeline.stages[stage];
        if expand {
            stage.name.clone()
        } else {
            folded_name(stage)
        }
    };
    let mut nodes: IndexMap<String, &'static str> = IndexMap::new();
    let mut edges = Edges::new();
    for (at, stage) in pipeline.stages.iter().enumerate() {
        nodes.entry(name(at)).or_insert(stage.kind.name);
        for need in pipeline.graph.needs(at) {
            edges.insert((name(need), name(at)));
        }
    }
    (nodes.into_iter().collect(), edges)
}
