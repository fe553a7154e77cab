//! The drawing of a pipeline: a node for each stage of the file, its matrix folded, from left to right in layers.
//!
//! A node stands in the layer of the longest way to any of its stages. Within a layer nodes stand where what they are
//! connected with is, on average (Sugiyama, Tagawa and Toda 1981), so that few lines cross.

use std::collections::BTreeMap;

use serde::Serialize;

use super::super::graph::{Edges, drawn, folded_name};
use crate::engine::plan::{Decision, StagePlan};
use crate::engine::spec::Pipeline;

/// More nodes are not drawn: nobody could read them.
const MOST_NODES: usize = 400;
/// How often the layers are put in order.
const SWEEPS: usize = 8;
/// The size of a node, and the room between nodes, in pixels.
const WIDTH: f64 = 184.0;
const HEIGHT: f64 = 42.0;
const BETWEEN_LAYERS: f64 = 52.0;
const BETWEEN_NODES: f64 = 12.0;
const MARGIN: f64 = 8.0;
/// Characters of a node's name that have room in it.
const WIDEST: usize = 22;

/// What is drawn.
#[derive(Debug, Serialize)]
pub(super) struct Drawing {
    width: f64,
    height: f64,
    nodes: Vec<Node>,
    edges: Vec<Edge>,
}

#[derive(Debug, Serialize)]
struct Node {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    /// The stage of the file.
    template: String,
    /// Its name with its axes, whole, and as far as there is room.
    name: String,
    label: String,
    kind: &'static str,
    /// How many of its stages have a result, and how many there are.
    there: usize,
    all: usize,
}

/// From the right side of one node to the left side of another, by position.
#[derive(Debug, Serialize)]
struct Edge {
    from: usize,
    to: usize,
    /// As the path of an SVG.
    path: String,
}

/// Draws a pipeline, unless it is too large to be read.
pub(super) fn draw(pipeline: &Pipeline, plans: &[StagePlan]) -> Option<Drawing> {
    let (names, edges) = drawn(pipeline, false);
    if names.len() > MOST_NODES {
        return None;
    }
    let at: BTreeMap<&str, usize> = names
        .iter()
        .enumerate()
        .map(|(at, (name, _))| (&**name, at))
        .collect();
    let mut nodes: Vec<Node> = names.iter().map(node).collect();
    for (stage, plan) in pipeline.stages.iter().zip(plans) {
        let node = &mut nodes[at[folded_name(stage).as_str()]];
        node.template.clone_from(&stage.template);
        node.all += 1;
        node.there += usize::from(plan.decision == Decision::Cached);
    }
    let mut edges = edges_of(&edges, &at);
    edges.retain(|edge| edge.from != edge.to);
    let layers = layers(pipeline, &at, &edges);
    let tallest = layers.iter().map(Vec::len).max().unwrap_or(0) as f64;
    let tallest = tallest * (HEIGHT + BETWEEN_NODES) - BETWEEN_NODES;
    for (layer, members) in layers.iter().enumerate() {
        let height = members.len() as f64 * (HEIGHT + BETWEEN_NODES) - BETWEEN_NODES;
        for (place, member) in members.iter().enumerate() {
            let node = &mut nodes[*member];
            node.x = MARGIN + layer as f64 * (WIDTH + BETWEEN_LAYERS);
            node.y = MARGIN + (tallest - height) / 2.0 + place as f64 * (HEIGHT + BETWEEN_NODES);
        }
    }
    for edge in &mut edges {
        let (from, to) = (&nodes[edge.from], &nodes[edge.to]);
        let (x1, y1) = (from.x + WIDTH, from.y + HEIGHT / 2.0);
        let (x2, y2) = (to.x, to.y + HEIGHT / 2.0);
        let bend = (x2 - x1).abs().max(BETWEEN_LAYERS) / 2.0;
        edge.path = format!("M{x1} {y1}C{} {y1} {} {y2} {x2} {y2}", x1 + bend, x2 - bend);
    }
    Some(Drawing {
        width: 2.0 * MARGIN + layers.len() as f64 * (WIDTH + BETWEEN_LAYERS) - BETWEEN_LAYERS,
        height: 2.0 * MARGIN + tallest,
        nodes,
        edges,
    })
}

fn node((name, kind): &(String, &'static str)) -> Node {
    let label = match name.char_indices().nth(WIDEST) {
        Some((at, _)) => format!("{}…", &name[..at]),
        None => name.clone(),
    };
    Node {
        x: 0.0,
        y: 0.0,
        width: WIDTH,
        height: HEIGHT,
        template: String::new(),
        name: name.clone(),
        label,
        kind,
        there: 0,
        all: 0,
    }
}

fn edges_of(edges: &Edges, at: &BTreeMap<&str, usize>) -> Vec<Edge> {
    let edges = edges.iter().map(|(from, to)| Edge {
        from: at[from.as_str()],
        to: at[to.as_str()],
        path: String::new(),
    });
    edges.collect()
}

/// Puts the nodes in layers, each from top to bottom.
fn layers(pipeline: &Pipeline, at: &BTreeMap<&str, usize>, edges: &[Edge]) -> Vec<Vec<usize>> {
    let mut depth_of_stage = vec![0; pipeline.stages.len()];
    let mut depth = vec![0; at.len()];
    for stage in &pipeline.order {
        let needs = pipeline.graph.needs(*stage).into_iter();
        let own = needs
            .map(|need| depth_of_stage[need] + 1)
            .max()
            .unwrap_or(0);
        depth_of_stage[*stage] = own;
        let node = &mut depth[at[folded_name(&pipeline.stages[*stage]).as_str()]];
        *node = own.max(*node);
    }
    let mut layers: Vec<Vec<usize>> =
        vec![Vec::new(); depth.iter().max().map_or(0, |most| most + 1)];
    for (node, depth) in depth.iter().enumerate() {
        layers[*depth].push(node);
    }
    layers.retain(|layer| !layer.is_empty());
    for sweep in 0..SWEEPS {
        let places = places(&layers, at.len());
        let from_left = sweep % 2 == 0;
        for layer in &mut layers {
            let mean = |node: usize| {
                let connected = edges.iter().filter_map(|edge| match (edge.from, edge.to) {
                    (from, to) if from_left && to == node => Some(places[from]),
                    (from, to) if !from_left && from == node => Some(places[to]),
                    _ => None,
                });
                let connected: Vec<f64> = connected.collect();
                if connected.is_empty() {
                    return places[node];
                }
                connected.iter().sum::<f64>() / connected.len() as f64
            };
            let mut placed: Vec<(f64, usize)> =
                layer.iter().map(|node| (mean(*node), *node)).collect();
            placed.sort_by(|a, b| a.0.total_cmp(&b.0));
            *layer = placed.into_iter().map(|(_, node)| node).collect();
        }
    }
    layers
}

/// How far from the middle of its layer each node stands.
fn places(layers: &[Vec<usize>], nodes: usize) -> Vec<f64> {
    let mut places = vec![0.0; nodes];
    for layer in layers {
        for (place, node) in layer.iter().enumerate() {
            places[*node] = place as f64 - (layer.len() - 1) as f64 / 2.0;
        }
    }
    places
}
