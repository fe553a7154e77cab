//! What is known of artifacts before anything runs.
//!
//! A stage that asks for more than its input can have fails, perhaps after the hours in which the input was made. Kinds
//! say what their params tell of their outputs, [`Known`] carries it along the graph, and a pipeline that cannot work is
//! refused when it is read. A fact is an upper bound, so that it holds whatever a stage leaves out; where nothing is
//! known nothing is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::context::Labels;
use super::diagnostic::Path;
use super::problem::Problem;

/// The most of something that an artifact has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Most {
    /// How many.
    pub count: u64,
    /// The stage whose param says so.
    pub stage: Arc<str>,
    /// That param.
    pub param: &'static str,
    /// Its value.
    pub value: u64,
}

/// What is known of one artifact: of each noun in the plural, such as `completions`, the most.
pub type Facts = BTreeMap<&'static str, Most>;

/// What is known of one artifact of a port.
#[derive(Debug, Clone, Copy)]
pub(super) struct KnownInput<'a> {
    /// Axis values and stage name.
    pub(super) labels: &'a Labels,
    /// What it has.
    pub(super) facts: &'a Facts,
}

/// What a stage knows of its inputs before anything runs, and what it says of its outputs.
pub struct Known<'a> {
    stage: Arc<str>,
    /// For each port, what is known of its artifacts.
    inputs: BTreeMap<&'a str, Vec<KnownInput<'a>>>,
    passed_on: Facts,
    said: BTreeMap<String, Facts>,
    problems: Vec<Problem>,
}

impl<'a> Known<'a> {
    pub(super) fn new(stage: Arc<str>, inputs: BTreeMap<&'a str, Vec<KnownInput<'a>>>) -> Self {
        Self {
            stage,
            inputs,
            passed_on: Facts::new(),
            said: BTreeMap::new(),
            problems: Vec::new(),
        }
    }

    /// Says that an output has at most `count` of `what`, because of a param and its value.
    pub fn says(
        &mut self,
        output: &str,
        what: &'static str,
        count: usize,
        (param, value): (&'static str, usize),
    ) {
        let most = Most {
            count: count as u64,
            stage: Arc::clone(&self.stage),
            param,
            value: value as u64,
        };
        self.said
            .entry(output.to_owned())
            .or_default()
            .insert(what, most);
    }

    /// Says that every output has what the artifact of a port has, unless [`Self::says`] says otherwise.
    pub fn passes_on(&mut self, port: &str) {
        if let Some([input]) = self.inputs.get(port).map(Vec::as_slice) {
            let facts = input.facts.iter();
            let facts = facts.map(|(what, most)| (*what, most.clone()));
            self.passed_on.extend(facts);
        }
    }

    /// Says that an output has of `what` no more than the artifact of the stage's only input, if there is one alone.
    pub fn passes_on_of_only_input(&mut self, output: &str, what: &[&'static str]) {
        let mut all = self.inputs.values().flatten();
        if let (Some(input), None) = (all.next(), all.next()) {
            let known = what
                .iter()
                .filter_map(|what| Some((*what, input.facts.get(what)?.clone())));
            self.said
                .entry(output.to_owned())
                .or_default()
                .extend(known);
        }
    }

    /// Refuses a param whose value asks for more of `what` than an artifact of a port can have.
    pub fn needs(
        &mut self,
        port: &str,
        what: &'static str,
        least: usize,
        param: (&'static str, usize),
        hint: &str,
    ) {
        let fewest = self.fewest(port, what);
        self.refuse_above(fewest, what, least, Some(param), hint);
    }

    /// Refuses a stage that needs more of `what` than an artifact of a port can have, whatever its params.
    pub fn needs_always(&mut self, port: &str, what: &'static str, least: usize, hint: &str) {
        let fewest = self.fewest(port, what);
        self.refuse_above(fewest, what, least, None, hint);
    }

    /// Refuses a param whose value asks for more of `what` than every artifact of a port can have.
    pub fn needs_of_some(
        &mut self,
        port: &str,
        what: &'static str,
        least: usize,
        param: (&'static str, usize),
        hint: &str,
    ) {
        let all: Option<Vec<&Most>> = self.most(port, what).into_iter().collect();
        let greatest = all.into_iter().flatten().max_by_key(|most| most.count);
        self.refuse_above(greatest.cloned(), what, least, Some(param), hint);
    }

    /// Returns axis values and stage name of each artifact of a port.
    pub fn labels(&self, port: &str) -> Vec<&'a Labels> {
        let inputs = self.inputs.get(port).into_iter().flatten();
        inputs.map(|input| input.labels).collect()
    }

    /// Returns of each artifact of a port the most that it has of `what`, where that is known.
    pub fn most(&self, port: &str, what: &str) -> Vec<Option<&'a Most>> {
        let inputs = self.inputs.get(port).into_iter().flatten();
        inputs.map(|input| input.facts.get(what)).collect()
    }

    /// Refuses the stage for a problem that its kind found in what is known.
    pub fn refuses(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    fn fewest(&self, port: &str, what: &str) -> Option<Most> {
        let known = self.most(port, what).into_iter().flatten();
        known.min_by_key(|most| most.count).cloned()
    }

    fn refuse_above(
        &mut self,
        most: Option<Most>,
        what: &str,
        least: usize,
        param: Option<(&str, usize)>,
        hint: &str,
    ) {
        let Some(most) = most.filter(|most| most.count < least as u64) else {
            return;
        };
        let asks = param.map_or_else(
            || format!("it needs {least} {what}"),
            |(param, value)| format!("`{param}` is {value}"),
        );
        let message = format!(
            "{asks}, but `{}` of stage `{}` is {}: what it reads has at most {} {what}",
            most.param, most.stage, most.value, most.count
        );
        let path = param.map_or_else(Path::default, |(param, _)| Path::of([param]));
        self.problems.push(Problem::at(path, message).hint(hint));
    }

    pub(super) fn says_something(&self) -> bool {
        !self.said.is_empty() || !self.passed_on.is_empty()
    }

    /// Returns the facts of an output.
    pub(super) fn of(&mut self, output: &str) -> Facts {
        let mut facts = self.passed_on.clone();
        facts.extend(self.said.remove(output).unwrap_or_default());
        facts
    }

    pub(super) fn problems(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.problems)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn most(count: u64) -> Facts {
        let most = Most {
            count,
            stage: "s".into(),
            param: "n",
            value: count,
        };
        Facts::from([("completions", most)])
    }

    #[test]
    fn only_what_is_known_to_fail_is_refused() {
        let (eight, twenty, nothing) = (most(8), most(20), Facts::new());
        let labels = Labels::new();
        let refused = |items: &[&'static str], some: bool| {
            let facts = items.iter().map(|item| match *item {
                "8" => &eight,
                "20" => &twenty,
                _ => &nothing,
            });
            let facts = facts.map(|facts| KnownInput {
                labels: &labels,
                facts,
            });
            let inputs = BTreeMap::from([("scores", facts.collect())]);
            let mut known = Known::new("t".into(), inputs);
            let param = ("top_k", 20);
            if some {
                known.needs_of_some("scores", "completions", 20, param, "");
            } else {
                known.needs("scores", "completions", 20, param, "");
            }
            known.problems().len()
        };
        for (items, each, some) in [
            (vec!["8"], 1, 1),
            (vec!["20"], 0, 0),
            (vec!["?"], 0, 0),
            (vec!["8", "20"], 1, 0),
            (vec!["8", "?"], 1, 0),
            (vec![], 0, 0),
        ] {
            assert_eq!(refused(&items, false), each, "{items:?}");
            assert_eq!(refused(&items, true), some, "{items:?}");
        }
    }

    #[test]
    fn what_the_only_input_has_is_passed_on_to_one_output() {
        let (eight, nothing, labels) = (most(8), Facts::new(), Labels::new());
        let of = |inputs: Vec<(&'static str, Vec<&Facts>)>, output: &str| {
            let inputs = inputs.into_iter().map(|(port, all)| {
                let all = all.into_iter().map(|facts| KnownInput {
                    labels: &labels,
                    facts,
                });
                (port, all.collect())
            });
            let mut known = Known::new("t".into(), inputs.collect());
            known.passes_on_of_only_input("out", &["completions"]);
            known.of(output)
        };
        assert_eq!(of(vec![("one", vec![&eight])], "out"), eight);
        assert!(of(vec![("one", vec![&eight])], "other").is_empty());
        assert!(of(vec![("one", vec![&eight, &nothing])], "out").is_empty());
        let two = vec![("one", vec![&eight]), ("two", vec![&nothing])];
        assert!(of(two, "out").is_empty());
    }

    #[test]
    fn outputs_have_what_is_passed_on_and_what_is_said() {
        let (eight, labels) = (most(8), Labels::new());
        let input = KnownInput {
            labels: &labels,
            facts: &eight,
        };
        let inputs = BTreeMap::from([("one", vec![input]), ("several", vec![input, input])]);
        let mut known = Known::new("t".into(), inputs);
        known.passes_on("several");
        assert!(known.of("out").is_empty(), "of which of them is not said");
        known.passes_on("one");
        known.says("out", "prompts", 3, ("n", 3));
        assert_eq!(known.of("out").len(), 2);
        assert_eq!(known.of("other"), eight);
    }
}
