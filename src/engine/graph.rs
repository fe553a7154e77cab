//! The DAG of stage instances.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use petgraph::Direction;
use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};

/// Which stage needs which; nodes are positions in the pipeline's list of stages.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    graph: DiGraph<(), ()>,
}

impl Graph {
    /// Makes a graph of `stages` nodes; an edge `(a, b)` says that `b` needs `a`.
    pub fn new(stages: usize, edges: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let mut graph = DiGraph::with_capacity(stages, stages);
        for _ in 0..stages {
            graph.add_node(());
        }
        for (from, to) in edges {
            graph.update_edge(NodeIndex::new(from), NodeIndex::new(to), ());
        }
        Self { graph }
    }

    /// Returns what `stage` needs, in order.
    pub fn needs(&self, stage: usize) -> Vec<usize> {
        self.neighbours(stage, Direction::Incoming)
    }

    /// Returns what needs `stage`, in order.
    pub fn needed_by(&self, stage: usize) -> Vec<usize> {
        self.neighbours(stage, Direction::Outgoing)
    }

    fn neighbours(&self, stage: usize, direction: Direction) -> Vec<usize> {
        let mut found: Vec<usize> = self
            .graph
            .neighbors_directed(NodeIndex::new(stage), direction)
            .map(NodeIndex::index)
            .collect();
        found.sort_unstable();
        found
    }

    /// Returns the stages such that each comes after what it needs, as near to file order as that allows.
    ///
    /// # Errors
    /// The stages of a ring, each needing the one before it and the first needing the last.
    pub fn order(&self) -> Result<Vec<usize>, Vec<usize>> {
        let count = self.graph.node_count();
        let mut open: Vec<usize> = (0..count)
            .map(|stage| {
                self.graph
                    .neighbors_directed(NodeIndex::new(stage), Direction::Incoming)
                    .count()
            })
            .collect();
        let mut ready: BinaryHeap<Reverse<usize>> = (0..count)
            .filter(|stage| open[*stage] == 0)
            .map(Reverse)
            .collect();
        let mut order = Vec::with_capacity(count);
        while let Some(Reverse(stage)) = ready.pop() {
            order.push(stage);
            for next in self
                .graph
                .neighbors_directed(NodeIndex::new(stage), Direction::Outgoing)
            {
                open[next.index()] -= 1;
                if open[next.index()] == 0 {
                    ready.push(Reverse(next.index()));
                }
            }
        }
        if order.len() == count {
            Ok(order)
        } else {
            Err(self.ring())
        }
    }

    fn ring(&self) -> Vec<usize> {
        let component = tarjan_scc(&self.graph)
            .into_iter()
            .find(|component| {
                component.len() > 1 || self.graph.contains_edge(component[0], component[0])
            })
            .unwrap_or_default();
        let members: Vec<usize> = component.iter().map(|node| node.index()).collect();
        let Some(start) = members.iter().copied().min() else {
            return Vec::new();
        };
        // Walking along edges inside the component must come back to a stage already walked.
        let mut walked = vec![start];
        loop {
            let last = walked[walked.len() - 1];
            let Some(next) = self
                .needed_by(last)
                .into_iter()
                .find(|next| members.contains(next))
            else {
                return walked;
            };
            if let Some(at) = walked.iter().position(|stage| *stage == next) {
                return walked.split_off(at);
            }
            walked.push(next);
        }
    }

    /// Returns the stages that `targets` need, themselves included.
    pub fn upstream(&self, targets: impl IntoIterator<Item = usize>) -> Vec<bool> {
        self.reach(targets, Direction::Incoming)
    }

    /// Returns the stages that need `sources`, themselves included.
    pub fn downstream(&self, sources: impl IntoIterator<Item = usize>) -> Vec<bool> {
        self.reach(sources, Direction::Outgoing)
    }

    fn reach(&self, from: impl IntoIterator<Item = usize>, direction: Direction) -> Vec<bool> {
        let mut reached = vec![false; self.graph.node_count()];
        let mut open: Vec<usize> = from.into_iter().collect();
        while let Some(stage) = open.pop() {
            if !std::mem::replace(&mut reached[stage], true) {
                open.extend(self.neighbours(stage, direction));
            }
        }
        reached
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_respects_needs_and_otherwise_the_file() {
        let graph = Graph::new(5, [(3, 0), (0, 2), (1, 2)]);
        assert_eq!(graph.order(), Ok(vec![1, 3, 0, 2, 4]));
        assert_eq!(graph.needs(2), [0, 1]);
        assert_eq!(graph.upstream([0]), [true, false, false, true, false]);
        assert_eq!(graph.downstream([3]), [true, false, true, true, false]);
    }

    #[test]
    fn a_ring_is_returned_as_a_ring() {
        assert_eq!(
            Graph::new(5, [(0, 1), (1, 2), (2, 3), (3, 1), (3, 4)]).order(),
            Err(vec![1, 2, 3])
        );
        assert_eq!(Graph::new(2, [(1, 1)]).order(), Err(vec![1]));
    }

    #[test]
    fn a_chain_of_ten_thousand_does_not_overflow_the_stack() {
        let n = 10_000;
        let graph = Graph::new(n, (1..n).map(|stage| (stage - 1, stage)));
        assert_eq!(graph.order().unwrap().len(), n);
        assert!(graph.upstream([n - 1]).iter().all(|reached| *reached));
    }
}
