//! `choose`: the best of several candidates, by a score of their completions.

mod decide;
mod design;
mod frozen;
mod shown;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::frozen::Frozen;
use super::axes::Axes;
use super::axis_value::AxisValue;
use super::ranking::Best;
use super::scored::{self, Scored};
use crate::artifacts::completions::SCORES;
use crate::artifacts::curve::{CURVE, Curve};
use crate::artifacts::language_model::LANGUAGE_MODEL;
use crate::artifacts::table::{TABLE, Table};
use crate::engine::artifact::Digest;
use crate::engine::context::{Input, Labels, RunContext};
use crate::engine::diagnostic::Path;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stages::defaults;

/// Chooses the best of several candidates, such as learning rates, by a score of their completions, and shows every try.
///
/// The candidate with the best mean of `column` wins: the mean of its runs, of each the mean over completions; runs of the
/// same bytes count once. One that
/// breaks a limit of `within`, or of which a training in `curves` diverged, is shown and cannot win. Of equals the first of
/// the inputs wins. With `method` every value of that axis has a winner of its own.
///
/// The choice must be fair, or the stage is refused, before anything runs where labels and params tell: every method has
/// as many candidates, every candidate the same runs and prompts and, where `curves` are connected, as many samples. How
/// many those are the params of a training stage tell; the curve of a `command` does not, so that such budgets are not
/// compared: the table has their steps, and says where they differ, within a method and, if a curve calls its first step 1
/// as no training stage's does, between methods.
/// `frozen` holds what the trainings use whose results are reported: the stage fails when the tries choose otherwise. With
/// trainings over `matrix: { policy: [ppo, flowhf], lr: [6e-5, 3e-4], seed: [101, 102] }` that is
/// `{ candidate: lr, method: policy, within: { kl: { at_most: 6 } }, reported: [1, 2, 3], frozen: { ppo: { lr: 3e-4 }, flowhf: { lr: 6e-5 } } }`.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Choose {
    /// The axis whose values are tried, or a list of axes; methods may have different ones of them.
    candidate: Axes,
    /// The axis of which each value has a winner, such as `policy`; without it there is one winner.
    #[serde(default)]
    method: Option<String>,
    /// The axis whose values are the runs of a candidate.
    #[serde(default = "defaults::seed_axis")]
    run: String,
    /// The column of `scores` that is compared.
    #[serde(default = "defaults::reward")]
    column: String,
    /// Which mean of it is best.
    #[serde(default)]
    best: Best,
    /// Limits to the means of columns of `scores`; a candidate that breaks one cannot win.
    #[serde(default)]
    within: BTreeMap<String, Limit>,
    /// Values of `run` that results are reported for; a try with one of them is an error.
    #[serde(default)]
    reported: Vec<AxisValue>,
    /// What the reported trainings use: values of the axes, or for each method a map of them. Anything else that wins is an
    /// error; a method that is not named chooses freely.
    #[serde(default)]
    frozen: BTreeMap<String, Frozen>,
    /// How far the mean of the frozen choice may be from the best one.
    #[serde(default)]
    tie: f64,
    /// Whether methods must have as many candidates, and candidates the same runs and as many samples; else the table says
    /// how they differ.
    #[serde(default = "yes")]
    equal_budget: bool,
    /// Whether the model of the winner is the output `best`: of `candidates` that of its first run in the order of the
    /// inputs. Not with `method`.
    #[serde(default)]
    hand_on: bool,
    /// Names shown instead of values of `method`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// The title.
    #[serde(default = "title")]
    title: String,
    /// What else must be known to read the table.
    #[serde(default)]
    notes: Vec<String>,
}

/// Bounds of a mean.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Limit {
    /// The least that is allowed.
    #[serde(default)]
    at_least: Option<f64>,
    /// The most that is allowed.
    #[serde(default)]
    at_most: Option<f64>,
}

fn title() -> String {
    "Tries".to_owned()
}

fn yes() -> bool {
    true
}

/// The output with the model of the winner.
const BEST: &str = "best";

impl Kind for Choose {
    const NAME: &'static str = "choose";
    const VERSION: u32 = 2;
    // Of any scores: `stage` is an axis that every input has.
    const EXAMPLE: &'static str = "{ candidate: stage, column: reward, best: greatest }";

    fn ports(&self) -> Vec<Port> {
        let mut ports = vec![
            Port::many(
                "scores",
                &[SCORES],
                "scored completions of every try, of validation prompts",
            )
            .labelled(),
            Port::optional_many(
                "curves",
                &[CURVE],
                "curves of the trainings, which say what diverged and what it cost",
            )
            .labelled(),
        ];
        if self.hand_on {
            let about = "the models of the tries, of which the best is handed on";
            ports.push(Port::many("candidates", &[LANGUAGE_MODEL], about).labelled());
        }
        ports
    }

    fn outputs(&self) -> Vec<Output> {
        let best = self.hand_on.then(|| Output::new(BEST, LANGUAGE_MODEL));
        std::iter::once(Output::new("table", TABLE))
            .chain(best)
            .collect()
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let own = [Some(&self.run), self.method.as_ref()];
        for axis in self.candidate.names() {
            if own.contains(&Some(axis)) {
                let text =
                    format!("`{axis}` cannot be an axis of candidates and `method` or `run`, too");
                problems.push(Problem::new("candidate", text));
            }
        }
        if self.method.as_ref() == Some(&self.run) {
            problems.push(Problem::new(
                "method",
                "`method` and `run` must be different axes",
            ));
        }
        for (column, limit) in &self.within {
            let path = Path::of(["within", column.as_str()]);
            let bounds = [limit.at_least, limit.at_most];
            if bounds == [None, None] {
                let problem = Problem::at(path, format!("`{column}` has no limit"));
                problems.push(problem.hint("give `at_least`, `at_most` or both"));
            } else if matches!(bounds, [Some(least), Some(most)] if least > most) {
                problems.push(Problem::at(path, "`at_least` is above `at_most`"));
            }
        }
        if !(self.tie.is_finite() && self.tie >= 0.0) {
            problems.push(Problem::new("tie", "`tie` must be a number of at least 0"));
        } else if self.tie > 0.0 && self.frozen.is_empty() {
            let problem = Problem::new("tie", "`tie` has no effect without `frozen`");
            problems.push(problem.hint(
                "of equals the first wins; `tie` is how far `frozen` may be from the winner",
            ));
        }
        for (key, frozen) in &self.frozen {
            let path = Path::of(["frozen", key.as_str()]);
            match (&self.method, frozen) {
                (Some(method), Frozen::Value(value)) => {
                    let axes = self.candidate.names();
                    let problem = if axes.contains(key) {
                        let text = format!("`frozen` does not say which {method} has this `{key}`");
                        Problem::at(path, text).hint(format!(
                            "write the {method} first, as in `frozen: {{ NAME: {{ {key}: {value} }} }}`; what it does not \
                             name is chosen freely"
                        ))
                    } else {
                        let text =
                            format!("`frozen` of {key} is `{value}`, expected values of axes");
                        Problem::at(path, text).hint(format!(
                            "as in `frozen: {{ {key}: {{ {}: {value} }} }}`",
                            axes[0]
                        ))
                    };
                    problems.push(problem);
                }
                (None, Frozen::Method(_)) => problems.push(
                    Problem::at(
                        path,
                        format!("`{key}` must be a value: there is one choice"),
                    )
                    .hint("name the axis of the methods as `method`"),
                ),
                (None, Frozen::Value(_)) if !self.candidate.names().contains(key) => {
                    problems.push(Problem::at(
                        path,
                        format!("`{key}` is no axis of `candidate`"),
                    ));
                }
                _ => {}
            }
        }
        if self.hand_on && self.method.is_some() {
            problems.push(
                Problem::new(
                    "hand_on",
                    "with `method` there are several winners, and one `best`",
                )
                .hint("select one method, or leave `hand_on` out"),
            );
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        self.refuse_unfair(known);
        scored::needs_column(known, ("", &[]), "column", &self.column);
        for column in self.within.keys() {
            scored::needs_column(known, ("", &[]), "within", column);
        }
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let scores = ctx.inputs("scores");
        let labels: Vec<&Labels> = scores.iter().map(|input| &input.labels).collect();
        let read = |input: &Input| Scored::new(Table::read(&input.path)?);
        let scored = scores.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let mut curves = Vec::new();
        for input in ctx.inputs("curves") {
            curves.push((&input.labels, Curve::read(&input.path)?));
        }
        let digests: Vec<Digest> = scores.iter().map(|input| input.digest).collect();
        let decided = self.decide(&labels, (&scored, &digests), &curves)?;
        if self.hand_on {
            let winner = decided.iter().find(|one| one.is_chosen);
            let first = winner.and_then(|one| one.candidate.runs.first());
            let first = first.ok_or_else(|| StageError::new("BUG: nothing was chosen"))?;
            let models = ctx.inputs("candidates");
            let of: Vec<&Labels> = models.iter().map(|input| &input.labels).collect();
            let found = self.belonging(&labels, first.1, ("candidates", &of));
            let model = &models[found?];
            hand_on(model, &ctx.output(BEST)?)?;
        }
        self.table(&decided).write(&ctx.output("table")?)?;
        Ok(())
    }
}

/// Makes the files of an artifact those of an output: links, so that the store keeps them once.
fn hand_on(input: &Input, folder: &std::path::Path) -> Result<(), StageError> {
    for file in &input.files {
        let link = folder.join(file);
        if let Some(parent) = link.parent() {
            fs_err::create_dir_all(parent)?;
        }
        fs_err::os::unix::fs::symlink(fs_err::canonicalize(input.path.join(file))?, link)?;
    }
    Ok(())
}
