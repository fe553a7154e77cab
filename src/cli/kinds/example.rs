//! The example of a kind as a stage that can be pasted into a pipeline.

use serde_json::Value as Json;

use crate::engine::document::Document;
use crate::engine::overrides::Overrides;
use crate::engine::spec::Pipeline;
use crate::engine::stage::{Port, Registry, StageKind};

/// How often other stages are tried as inputs.
const TRIES: usize = 3;

/// Writes the example of a kind as a stage, the last of the list, behind the stages that it refers to.
///
/// Stages are named after their kind, so that the examples of all kinds make one pipeline.
pub(super) fn stages(registry: &Registry, kind: &StageKind) -> Vec<String> {
    let all = (0..TRIES).map(|shift| {
        let mut written = Written {
            registry,
            shift,
            done: Vec::new(),
            open: Vec::new(),
            stages: Vec::new(),
        };
        written.add(kind, true);
        written.stages
    });
    let all: Vec<Vec<String>> = all.collect();
    let valid = all.iter().find(|stages| is_valid(registry, stages));
    valid.or(all.first()).cloned().unwrap_or_default()
}

fn is_valid(registry: &Registry, stages: &[String]) -> bool {
    let document = Document {
        file: "example".into(),
        text: format!("name: example\nstages:\n{}", stages.concat()),
    };
    Pipeline::from_document(document, &Overrides::default(), registry).is_ok()
}

struct Written<'a> {
    registry: &'a Registry,
    /// Which of the kinds that would do is taken as an input.
    shift: usize,
    /// Kinds whose stages are written.
    done: Vec<&'static str>,
    /// Kinds whose inputs are being written.
    open: Vec<&'static str>,
    stages: Vec<String>,
}

impl Written<'_> {
    fn add(&mut self, kind: &StageKind, shifted: bool) {
        if self.done.contains(&kind.name) {
            return;
        }
        self.open.push(kind.name);
        let params: Json = serde_yaml::from_str(kind.example).unwrap_or_default();
        let ports = (kind.parse)(&params).map(|stage| stage.ports());
        let mut inputs = Vec::new();
        for port in ports.unwrap_or_default() {
            if let Some((maker, reference)) = self.made_by(kind, &port, shifted) {
                self.add(&maker, false);
                inputs.push(format!("{}: {reference}", port.name));
            }
        }
        let mut text = format!("  {0}:\n    kind: {0}\n", kind.name);
        if !inputs.is_empty() {
            text.push_str(&format!("    inputs: {{ {} }}\n", inputs.join(", ")));
        }
        let example = kind.example.trim();
        if example.starts_with('{') {
            text.push_str(&format!("    params: {example}\n"));
        } else {
            text.push_str("    params:\n");
            for line in example.lines() {
                text.push_str(&format!("      {line}\n"));
            }
        }
        self.stages.push(text);
        self.open.pop();
        self.done.push(kind.name);
    }

    /// Returns a kind that makes what a port takes, and how its output is referred to.
    fn made_by(&self, kind: &StageKind, port: &Port, shifted: bool) -> Option<(StageKind, String)> {
        if port.arity.is_optional() {
            return None;
        }
        let makers = self.registry.iter().filter_map(|maker| {
            let params: Json = serde_yaml::from_str(maker.example).ok()?;
            let outputs = (maker.parse)(&params).ok()?.outputs();
            let fits = |kind: &str| port.accepts.is_empty() || port.accepts.contains(&kind);
            let at = outputs.iter().position(|output| fits(&output.kind))?;
            let reference = if at == 0 {
                maker.name.to_owned()
            } else {
                format!("{}.{}", maker.name, outputs[at].name)
            };
            // No stage needs itself.
            let is_open = self.open.contains(&maker.name) || maker.name == kind.name;
            (!is_open).then_some((*maker, reference))
        });
        let makers: Vec<_> = makers.collect();
        let at = if shifted { self.shift } else { 0 };
        makers.get(at).or(makers.last()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::REGISTRY;

    #[test]
    fn the_example_of_every_kind_is_a_stage_of_a_valid_pipeline() {
        for kind in REGISTRY {
            let stages = stages(REGISTRY, kind);
            let document = Document {
                file: "example".into(),
                text: format!("name: example\nstages:\n{}", stages.concat()),
            };
            let pipeline = Pipeline::from_document(document, &Overrides::default(), REGISTRY);
            let problem = pipeline.err().map(|problem| problem.to_string());
            // Claims compare rows by an axis, which the smallest pipeline has not.
            let expected = (kind.name == "claims").then(|| {
                "example is not a valid pipeline: stage `claims`: an input has no axis `policy`; it is [stage=score]".to_owned()
            });
            assert_eq!(problem, expected, "{}", stages.concat());
        }
    }
}
