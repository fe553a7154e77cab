//! Which tries there are, and whether they are a fair choice: known from labels, before anything runs.

use std::collections::BTreeSet;

use indexmap::IndexMap;

use super::super::groups::{STAGE, before_dot, show};
use super::Choose;
use super::frozen::{Choice, Frozen};
use crate::artifacts::curve::SAMPLES;
use crate::engine::context::Labels;
use crate::engine::diagnostic::Path;
use crate::engine::facts::{Known, Most};
use crate::engine::stage::Problem;
use crate::excerpt::listed;

/// A candidate: a method with a value of each of its axes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Candidate {
    /// The value of the axis `method`; empty without one.
    pub(super) method: String,
    /// The axes that it has, in the order of `candidate`.
    pub(super) axes: IndexMap<String, String>,
    /// Its runs, and which of the inputs each is.
    pub(super) runs: Vec<(String, usize)>,
}

impl Candidate {
    /// Names it for messages.
    pub(super) fn describe(&self) -> String {
        let method = Some(self.method.clone()).filter(|method| !method.is_empty());
        let axes = self.axes.iter();
        let axes = axes.map(|(axis, value)| format!("{axis} {value}"));
        method
            .into_iter()
            .chain(axes)
            .collect::<Vec<_>>()
            .join(", ")
    }

    /// Whether it is what was chosen before.
    pub(super) fn is(&self, choice: &Choice) -> bool {
        choice.len() == self.axes.len()
            && self.axes.iter().all(|(axis, label)| {
                let value = choice.get(axis);
                value.is_some_and(|value| value.is(label))
            })
    }

    fn run_labels(&self) -> Vec<&str> {
        let mut labels: Vec<&str> = self.runs.iter().map(|(run, _)| run.as_str()).collect();
        labels.sort_unstable();
        labels
    }
}

impl Choose {
    /// Sorts the tries into candidates, in the order of the inputs.
    pub(super) fn candidates(&self, tries: &[&Labels]) -> Result<Vec<Candidate>, Problem> {
        self.one_value_of_other_axes(tries)?;
        let mut candidates: Vec<Candidate> = Vec::new();
        for (at, labels) in tries.iter().enumerate() {
            let method = match &self.method {
                Some(axis) => labels.get(axis).cloned().ok_or_else(|| {
                    Problem::new(
                        "method",
                        format!("an input has no axis `{axis}`; it is {}", show(labels)),
                    )
                })?,
                None => String::new(),
            };
            let axes: IndexMap<String, String> = self
                .candidate
                .names()
                .iter()
                .filter_map(|axis| Some((axis.clone(), labels.get(axis)?.clone())))
                .collect();
            if axes.is_empty() {
                let axes = listed(self.candidate.names().iter().map(String::as_str));
                return Err(Problem::new(
                    "candidate",
                    format!(
                        "an input has none of the axes {axes}; it is {}",
                        show(labels)
                    ),
                )
                .hint("`candidate` names the axes whose values are tried"));
            }
            let run = labels.get(&self.run).cloned().unwrap_or_default();
            let same = |other: &&mut Candidate| other.method == method && other.axes == axes;
            match candidates.iter_mut().find(same) {
                Some(known) => {
                    if let Some((_, other)) = known.runs.iter().find(|(label, _)| *label == run) {
                        return Err(Problem::new(
                            "candidate",
                            format!(
                                "two inputs are {}, {} {run}: {} and {}",
                                known.describe(),
                                self.run,
                                show(tries[*other]),
                                show(labels)
                            ),
                        )
                        .hint("name the further axis in `candidate`, or as `method`, or select one value of it"));
                    }
                    known.runs.push((run, at));
                }
                None => candidates.push(Candidate {
                    method,
                    axes,
                    runs: vec![(run, at)],
                }),
            }
        }
        Ok(candidates)
    }

    /// What is neither tried nor a run must be the same in every try.
    fn one_value_of_other_axes(&self, tries: &[&Labels]) -> Result<(), Problem> {
        let mut seen: IndexMap<&str, &str> = IndexMap::new();
        let own = [Some(&self.run), self.method.as_ref()];
        for (axis, value) in tries.iter().flat_map(|labels| labels.iter()) {
            if axis == STAGE || own.contains(&Some(axis)) || self.candidate.names().contains(axis) {
                continue;
            }
            let first = *seen.entry(axis).or_insert(value);
            if first != value {
                return Err(Problem::new(
                    "candidate",
                    format!(
                        "the inputs have more than one value of the axis `{axis}`: {first}, {value}"
                    ),
                )
                .hint("name it in `candidate`, or as `method`, or select one value of it"));
            }
        }
        Ok(())
    }

    /// Returns the methods, in the order of the inputs.
    pub(super) fn methods(candidates: &[Candidate]) -> Vec<&str> {
        let mut methods: Vec<&str> = Vec::new();
        for candidate in candidates {
            if !methods.contains(&candidate.method.as_str()) {
                methods.push(&candidate.method);
            }
        }
        methods
    }

    /// Returns what makes the choice unfair or impossible, as far as labels tell.
    pub(super) fn faults(&self, candidates: &[Candidate]) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.equal_budget {
            let unequal = self.unequal(candidates).into_iter();
            problems.extend(unequal.map(|text| {
                Problem::new("equal_budget", text)
                    .hint("give every method the same tries and runs, or set `equal_budget: false`")
            }));
        }
        let runs = candidates.iter().flat_map(Candidate::run_labels);
        let mut taken: Vec<&str> = runs
            .filter(|run| self.reported.iter().any(|reported| reported.is(run)))
            .collect();
        taken.sort_unstable();
        taken.dedup();
        if !taken.is_empty() {
            problems.push(
                Problem::new(
                    "reported",
                    format!(
                        "{} {} is a try's and is reported",
                        self.run,
                        taken.join(", ")
                    ),
                )
                .hint(
                    "what a table reports must not have chosen the settings: try with other seeds",
                ),
            );
        }
        problems.extend(self.frozen_faults(candidates));
        problems
    }

    /// Says where methods differ in candidates or runs.
    pub(super) fn unequal(&self, candidates: &[Candidate]) -> Option<String> {
        let count = |method: &str| candidates.iter().filter(|one| one.method == method).count();
        let methods = Self::methods(candidates);
        if methods
            .iter()
            .any(|method| count(method) != count(methods[0]))
        {
            let counts = methods
                .iter()
                .map(|method| format!("{method} {}", count(method)));
            let counts: Vec<String> = counts.collect();
            return Some(format!(
                "methods have different numbers of candidates: {}",
                counts.join(", ")
            ));
        }
        let first = candidates.first()?;
        let other = candidates
            .iter()
            .find(|one| one.run_labels() != first.run_labels())?;
        let runs = |one: &Candidate| {
            format!(
                "{} the runs {}",
                one.describe(),
                one.run_labels().join(", ")
            )
        };
        Some(format!(
            "candidates have different runs ({}): {}; {}",
            self.run,
            runs(first),
            runs(other)
        ))
    }

    /// The choice that is frozen for a method.
    pub(super) fn frozen_for(&self, method: &str) -> Option<Choice> {
        if self.method.is_some() {
            return match self.frozen.get(method)? {
                Frozen::Method(choice) => Some(choice.clone()),
                Frozen::Value(_) => None,
            };
        }
        let values = self.frozen.iter().filter_map(|(axis, value)| match value {
            Frozen::Value(value) => Some((axis.clone(), value.clone())),
            Frozen::Method(_) => None,
        });
        Some(values.collect()).filter(|choice: &Choice| !choice.is_empty())
    }

    fn frozen_faults(&self, candidates: &[Candidate]) -> Vec<Problem> {
        let methods = Self::methods(candidates);
        let mut problems = Vec::new();
        if self.method.is_some() {
            let unknown = self
                .frozen
                .keys()
                .filter(|key| !methods.contains(&key.as_str()));
            problems.extend(unknown.map(|key| {
                let text = format!("`frozen` names the method `{key}`, and no try is of it");
                Problem::at(Path::of(["frozen", key.as_str()]), text).hint(format!(
                    "the methods are: {}",
                    listed(methods.iter().copied())
                ))
            }));
        }
        for method in methods {
            let Some(choice) = self.frozen_for(method) else {
                continue;
            };
            let of_method = candidates.iter().filter(|one| one.method == method);
            let of_method: Vec<&Candidate> = of_method.collect();
            if of_method.iter().all(|one| !one.is(&choice)) {
                let values = choice.iter().map(|(axis, value)| format!("{axis} {value}"));
                let values: Vec<String> = values.collect();
                let tried: Vec<String> = of_method.iter().map(|one| one.describe()).collect();
                let (of, path) = match &self.method {
                    Some(_) => (format!(" of {method}"), Path::of(["frozen", method])),
                    None => (String::new(), Path::of(["frozen"])),
                };
                let values = values.join(", ");
                let text = format!("`frozen`{of} is {values}, which was not tried");
                problems.push(Problem::at(path, text).hint(format!(
                    "tried: {}",
                    listed(tried.iter().map(String::as_str))
                )));
            }
        }
        problems
    }

    /// Finds what belongs to a try among the artifacts of a port: axes that both have agree; and what lacks an axis whose
    /// values name the stages of tries, as `method` may, comes from the stage that the try is named after.
    pub(super) fn belonging(
        &self,
        tries: &[&Labels],
        at: usize,
        (port, others): (&str, &[&Labels]),
    ) -> Result<usize, Problem> {
        let labels = tries[at];
        let stage_of = |other: &Labels| other.get(STAGE).map(|stage| before_dot(stage).to_owned());
        let named_by = |labels: &Labels, axis: &String| {
            labels.get(axis).map(|value| before_dot(value).to_owned())
        };
        let stages: BTreeSet<Option<String>> = others.iter().map(|one| stage_of(one)).collect();
        let names_stages = |axis: &String| {
            let mut tries = tries.iter();
            let names = |one: &Labels| stages.contains(&named_by(one, axis));
            self.method.as_ref() == Some(axis)
                || tries.any(|one| one.contains_key(axis) && names(one))
        };
        let tried = self.candidate.names().iter().chain(&self.method);
        let naming: Vec<&String> = tried.filter(|axis| names_stages(axis)).collect();
        let fits = |other: &Labels| {
            let mut axes = labels.iter().filter(|(axis, _)| *axis != STAGE);
            let agree = axes.all(|(axis, value)| other.get(axis).is_none_or(|own| own == value));
            let of_stage = |axis: &&String| {
                other.contains_key(*axis) || stage_of(other) == named_by(labels, axis)
            };
            agree && naming.iter().all(of_stage)
        };
        let mut found = (0..others.len()).filter(|at| fits(others[*at]));
        let problem = |text: String| {
            let problem = Problem::at(Path::default(), text);
            problem.hint(
                "it must have the axes of the try, or be of the stage that the try is named after",
            )
        };
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(problem(format!(
                "no input of `{port}` belongs to {}",
                show(labels)
            ))),
            (Some(first), Some(second)) => Err(problem(format!(
                "more than one input of `{port}` belongs to {}: {} and {}",
                show(labels),
                show(others[first]),
                show(others[second])
            ))),
        }
    }

    /// Refuses what labels and params of the trainings tell to be unfair.
    pub(super) fn refuse_unfair(&self, known: &mut Known<'_>) {
        let tries = known.labels("scores");
        if tries.is_empty() {
            return;
        }
        let candidates = match self.candidates(&tries) {
            Ok(candidates) => candidates,
            Err(problem) => return known.refuse(problem),
        };
        for problem in self.faults(&candidates) {
            known.refuse(problem);
        }
        let models = known.labels("candidates");
        for candidate in candidates.iter().filter(|_| !models.is_empty()) {
            let first = candidate.runs[0].1;
            if let Err(problem) = self.belonging(&tries, first, ("candidates", &models)) {
                return known.refuse(problem);
            }
        }
        self.refuse_unequal_samples(known, &candidates, &tries);
    }

    fn refuse_unequal_samples(
        &self,
        known: &mut Known<'_>,
        candidates: &[Candidate],
        tries: &[&Labels],
    ) {
        let curves = known.labels("curves");
        if curves.is_empty() {
            return;
        }
        let samples = known.most("curves", SAMPLES);
        let mut first = None;
        for candidate in candidates {
            for (_, at) in &candidate.runs {
                let most = match self.belonging(tries, *at, ("curves", &curves)) {
                    Ok(curve) => samples[curve],
                    Err(problem) => return known.refuse(problem),
                };
                let Some(most) = most.filter(|_| self.equal_budget) else {
                    continue;
                };
                let (other, count) = first.get_or_insert((candidate, most));
                if count.count != most.count {
                    let text = format!(
                        "tries learn from different numbers of samples: {}; {}",
                        learns_from(other, count),
                        learns_from(candidate, most)
                    );
                    let problem = Problem::new("equal_budget", text);
                    return known.refuse(
                        problem.hint(
                            "give every try as many completions, or set `equal_budget: false`",
                        ),
                    );
                }
            }
        }
    }
}

fn learns_from(candidate: &Candidate, most: &Most) -> String {
    format!(
        "{} from {} (`{}` of stage `{}` is {})",
        candidate.describe(),
        most.count,
        most.param,
        most.stage,
        most.value
    )
}
