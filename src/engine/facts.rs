//! What is known of artifacts before anything runs.
//!
//! A stage that asks for more than its input can have fails, perhaps after the hours in which the input was made. Kinds
//! say what their params tell of their outputs, [`Known`] carries it along the graph, and a pipeline that cannot work is
//! refused when it is read. A fact is an upper bound, so that it holds whatever a stage leaves out; where nothing is
//! known nothing is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::context::Labels;
use super::diagnostic::Path;
use super::problem::Problem;
use crate::excerpt::listed;

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

/// What is known of one artifact.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Of each noun in the plural, such as `completions`, the most.
    most: BTreeMap<&'static str, Most>,
    /// All columns that a table can have.
    columns: Option<BTreeSet<String>>,
}

/// An artifact of a port.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item<'a> {
    pub(super) facts: &'a Facts,
    pub(super) labels: &'a Labels,
}

/// What a stage knows of its inputs before anything runs, and what it says of its outputs.
pub struct Known<'a> {
    stage: Arc<str>,
    /// For each port its artifacts.
    inputs: BTreeMap<&'a str, Vec<Item<'a>>>,
    passed_on: BTreeMap<&'static str, Most>,
    said: BTreeMap<String, Facts>,
    problems: Vec<Problem>,
}

impl<'a> Known<'a> {
    pub(super) fn new(stage: Arc<str>, inputs: BTreeMap<&'a str, Vec<Item<'a>>>) -> Self {
        Self {
            stage,
            inputs,
            passed_on: BTreeMap::new(),
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
            .most
            .insert(what, most);
    }

    /// Says that the table of an output has no other columns.
    pub fn says_columns<T: Into<String>>(
        &mut self,
        output: &str,
        columns: impl IntoIterator<Item = T>,
    ) {
        let columns = columns.into_iter().map(Into::into).collect();
        self.said.entry(output.to_owned()).or_default().columns = Some(columns);
    }

    /// Says that the table of an output has the columns of a port's artifact, less and more some.
    pub fn passes_on_columns(
        &mut self,
        (port, output): (&str, &str),
        removed: &[&str],
        added: &[&str],
    ) {
        if let Some([item]) = self.inputs.get(port).map(Vec::as_slice)
            && let Some(columns) = &item.facts.columns
        {
            let kept = columns.iter().map(String::as_str);
            let kept = kept.filter(|column| !removed.contains(column));
            let columns = kept.chain(added.iter().copied());
            let columns = columns.map(str::to_owned).collect();
            self.said.entry(output.to_owned()).or_default().columns = Some(columns);
        }
    }

    /// Whether a port has any artifact.
    pub fn is_connected(&self, port: &str) -> bool {
        self.inputs.get(port).is_some_and(|items| !items.is_empty())
    }

    /// The labels of the artifacts of a port.
    pub fn labels(&self, port: &str) -> Vec<&'a Labels> {
        let items = self.inputs.get(port).into_iter().flatten();
        items.map(|item| item.labels).collect()
    }

    /// The columns that the tables of a port can have, each with its labels; nothing if those of one are not known.
    pub fn columns(&self, port: &str) -> Option<Vec<(&'a Labels, &'a BTreeSet<String>)>> {
        let items = self.inputs.get(port).into_iter().flatten();
        items
            .map(|item| Some((item.labels, item.facts.columns.as_ref()?)))
            .collect()
    }

    /// Refuses a stage.
    pub fn refuse(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Refuses a param that asks for a column which an artifact of a port cannot have; of those with such labels.
    pub fn needs_column(
        &mut self,
        port: &str,
        column: &str,
        of: impl Fn(&Labels) -> bool,
        (param, asks): (&str, &str),
    ) {
        let items = self.inputs.get(port).into_iter().flatten();
        let mut items = items.filter(|item| of(item.labels));
        let lacking = items.find_map(|item| {
            let columns = item.facts.columns.as_ref()?;
            (!columns.contains(column)).then_some((item.labels, columns))
        });
        let Some((labels, columns)) = lacking else {
            return;
        };
        let stage = labels.get("stage").map_or(port, String::as_str);
        let columns = columns.iter().map(String::as_str);
        self.problems.push(
            Problem::new(
                param,
                format!("{asks} the column `{column}`, but `{stage}` writes none of that name"),
            )
            .hint(format!("its columns are: {}", listed(columns))),
        );
    }

    /// Says that every output has what the artifact of a port has, unless [`Self::says`] says otherwise.
    pub fn passes_on(&mut self, port: &str) {
        if let Some([item]) = self.inputs.get(port).map(Vec::as_slice) {
            let facts = item.facts.most.iter();
            self.passed_on
                .extend(facts.map(|(what, most)| (*what, most.clone())));
        }
    }

    /// Says that an output has of `what` no more than the artifact of the stage's only input, if there is one alone.
    pub fn passes_on_of_only_input(&mut self, output: &str, what: &[&'static str]) {
        let mut all = self.inputs.values().flatten();
        if let (Some(item), None) = (all.next(), all.next()) {
            let known = what
                .iter()
                .filter_map(|what| Some((*what, item.facts.most.get(what)?.clone())));
            self.said
                .entry(output.to_owned())
                .or_default()
                .most
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

    /// Returns of each artifact of a port the most that it has of `what`, where that is known.
    pub fn most(&self, port: &str, what: &str) -> Vec<Option<&'a Most>> {
        let items = self.inputs.get(port).into_iter().flatten();
        items.map(|item| item.facts.most.get(what)).collect()
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
        let said = self.said.remove(output).unwrap_or_default();
        let mut most = self.passed_on.clone();
        most.extend(said.most);
        Facts {
            most,
            columns: said.columns,
        }
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
        Facts {
            most: BTreeMap::from([("completions", most)]),
            columns: None,
        }
    }

    fn items<'a>(facts: &[&'a Facts], labels: &'a Labels) -> Vec<Item<'a>> {
        let item = |facts: &&'a Facts| Item { facts, labels };
        facts.iter().map(item).collect()
    }

    #[test]
    fn only_what_is_known_to_fail_is_refused() {
        let (eight, twenty, nothing) = (most(8), most(20), Facts::default());
        let labels = Labels::new();
        let refused = |items: &[&'static str], some: bool| {
            let facts = items.iter().map(|item| match *item {
                "8" => &eight,
                "20" => &twenty,
                _ => &nothing,
            });
            let facts: Vec<&Facts> = facts.collect();
            let inputs = BTreeMap::from([("scores", self::items(&facts, &labels))]);
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
        let (eight, nothing) = (most(8), Facts::default());
        let labels = Labels::new();
        let of = |inputs: Vec<(&'static str, Vec<&Facts>)>, output: &str| {
            let inputs = inputs.iter();
            let inputs = inputs.map(|(port, facts)| (*port, items(facts, &labels)));
            let mut known = Known::new("t".into(), inputs.collect());
            known.passes_on_of_only_input("out", &["completions"]);
            known.of(output)
        };
        assert_eq!(of(vec![("one", vec![&eight])], "out"), eight);
        assert_eq!(of(vec![("one", vec![&eight])], "other"), nothing);
        assert_eq!(of(vec![("one", vec![&eight, &nothing])], "out"), nothing);
        let two = vec![("one", vec![&eight]), ("two", vec![&nothing])];
        assert_eq!(of(two, "out"), nothing);
    }

    #[test]
    fn outputs_have_what_is_passed_on_and_what_is_said() {
        let eight = most(8);
        let labels = Labels::new();
        let inputs = BTreeMap::from([
            ("one", items(&[&eight], &labels)),
            ("several", items(&[&eight, &eight], &labels)),
        ]);
        let mut known = Known::new("t".into(), inputs);
        known.passes_on("several");
        assert_eq!(known.of("out"), Facts::default(), "of which is not said");
        known.passes_on("one");
        known.says("out", "prompts", 3, ("n", 3));
        assert_eq!(known.of("out").most.len(), 2);
        assert_eq!(known.of("other"), eight);
    }

    #[test]
    fn columns_are_passed_on_with_what_a_stage_adds_and_asked_for() {
        let mut sampled = Known::new("sample".into(), BTreeMap::new());
        sampled.says_columns("completions", ["question", "kl"]);
        let sampled = sampled.of("completions");
        let labels = |policy: &str| -> Labels {
            let pairs = [("policy", policy), ("stage", "scored")];
            let pairs = pairs.map(|(axis, value)| (axis.to_owned(), value.to_owned()));
            pairs.into_iter().collect()
        };
        let (ppo, other, unknown) = (labels("ppo"), labels("other"), Facts::default());
        let scores = |facts: &Facts| {
            let inputs = BTreeMap::from([("completions", items(&[facts], &ppo))]);
            let mut known = Known::new("scored".into(), inputs);
            known.passes_on("completions");
            known.passes_on_columns(("completions", "scores"), &["kl"], &["reward"]);
            known.of("scores")
        };
        let (scored, open) = (scores(&sampled), scores(&unknown));
        assert_eq!(open, unknown);
        let refused = |column: &str, policy: &str| {
            let (facts, labels) = ([&scored, &open], [&ppo, &other]);
            let items = facts.into_iter().zip(labels);
            let items = items.map(|(facts, labels)| Item { facts, labels });
            let inputs = BTreeMap::from([("scores", items.collect())]);
            let mut known = Known::new("claims".into(), inputs);
            let of = |labels: &Labels| labels["policy"] == policy;
            known.needs_column("scores", column, of, ("claims", "the gate needs"));
            let problems = known.problems();
            problems.first().map(|problem| problem.message.clone())
        };
        assert_eq!(refused("reward", "ppo"), None);
        assert_eq!(
            refused("kl", "ppo").unwrap(),
            "the gate needs the column `kl`, but `scored` writes none of that name"
        );
        assert_eq!(refused("kl", "other"), None);
    }
}
