//! `objective_table`: how far each objective is from its own target, after how many updates.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::scored::Scored;
use crate::artifacts::completions::SCORES;
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::{Input, RunContext};
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stats::{mean, sample_std, softmax, total_variation};

/// Sums of probabilities may miss 1 by the rounding of single-precision log-probabilities.
const ROUNDING: f64 = 1e-3;

/// What an objective samples at its optimum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TargetName {
    /// R(y) / Z.
    #[default]
    Reward,
    /// prior(y) R(y) / Z.
    Posterior,
    /// Not R(y) / Z but something else; the distance to prior(y) R(y) / Z shows by how much.
    ShiftedPosterior,
}

/// Holds policies against the targets of their objectives, over every completion of a tree (`generate_tree`).
///
/// `scores` hold every completion with its log-probability under a policy (`score_policy`), labelled by objective,
/// `updates`, seed and whatever else a row is. The distance is the total variation, half the sum of |pi - target|, its
/// mean over prompts; then mean and sample standard deviation (±) over seeds. A mode is one of the `modes` completions
/// of a prompt that the target gives the most; it is found if the policy gives it at least half of that.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ObjectiveTable {
    /// The axes that tell the rows apart; the first is the objective.
    rows: Vec<String>,
    /// The axis of the columns: how many updates were made.
    #[serde(default = "updates")]
    updates: String,
    /// Targets by objective; that of the reward if absent.
    #[serde(default)]
    targets: BTreeMap<String, TargetName>,
    /// What rewards are multiplied by.
    #[serde(default = "one")]
    scale: f64,
    /// Completions of a prompt that count as modes.
    #[serde(default = "ten")]
    modes: usize,
    /// Names shown instead of objectives.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// Names shown instead of values of `updates`.
    #[serde(default)]
    column_names: BTreeMap<String, String>,
    /// The title.
    #[serde(default = "title")]
    title: String,
}

fn updates() -> String {
    "updates".to_owned()
}

fn one() -> f64 {
    1.0
}

fn ten() -> usize {
    10
}

fn title() -> String {
    "Total variation to the target of each objective, by updates".to_owned()
}

/// The numbers of one policy.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measured {
    distance: f64,
    /// Share of the modes that were found.
    found: f64,
}

impl Kind for ObjectiveTable {
    const NAME: &'static str = "objective_table";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str =
        "{ rows: [objective, on_policy], targets: { tba: posterior }, modes: 10 }";

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::many("scores", &[SCORES], "every completion, under each policy").labelled(),
            Port::optional(
                "prior",
                &[SCORES],
                "every completion, under the model that trainings start from",
            ),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("table", TABLE)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.rows.is_empty() {
            problems.push(Problem::new("rows", "`rows` must name at least one axis"));
        }
        crate::stages::ranges::at_least_one("modes", self.modes as u64, &mut problems);
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let prior = ctx
            .optional_input("prior")
            .map(|input| Scored::new(Table::read(&input.path)?))
            .transpose()?;
        let mut columns: Vec<String> = Vec::new();
        // Row labels, then column, to the numbers of each seed.
        let mut rows: IndexMap<Vec<String>, BTreeMap<String, Vec<Measured>>> = IndexMap::new();
        for input in ctx.inputs("scores") {
            let row: Vec<String> = self
                .rows
                .iter()
                .map(|axis| label(input, axis))
                .collect::<Result<_, _>>()?;
            let column = label(input, &self.updates)?;
            let target = self.targets.get(&row[0]).copied().unwrap_or_default();
            let scored = Scored::new(Table::read(&input.path)?)?;
            let measured = self.measure(&scored, prior.as_ref(), target)?;
            if !columns.contains(&column) {
                columns.push(column.clone());
            }
            rows.entry(row)
                .or_default()
                .entry(column)
                .or_default()
                .push(measured);
        }
        Ok(self.table(&columns, &rows)?.write(&ctx.output("table")?)?)
    }
}

fn label(input: &Input, axis: &str) -> Result<String, StageError> {
    input.labels.get(axis).cloned().ok_or_else(|| {
        StageError::new(format!("an input of `scores` has no axis `{axis}`"))
            .hint("name the axes of the stages that `scores` come from")
    })
}

impl ObjectiveTable {
    fn measure(
        &self,
        scored: &Scored,
        prior: Option<&Scored>,
        target: TargetName,
    ) -> Result<Measured, StageError> {
        let (log_probs, rewards) = (scored.column("log_prob")?, scored.column("reward")?);
        let prior = match (target, prior) {
            (TargetName::Reward, _) => None,
            (_, Some(prior)) if prior.answers_the_same(scored)? => Some(prior.column("log_prob")?),
            (_, Some(_)) => {
                return Err(StageError::new(
                    "`prior` holds other completions than `scores`",
                ));
            }
            (_, None) => {
                return Err(StageError::new(
                    "a target with the prior needs the port `prior`",
                ));
            }
        };
        let (mut distance, mut found) = (0.0, 0.0);
        for places in &scored.questions {
            let policy: Vec<f64> = places.iter().map(|at| libm::exp(log_probs[*at])).collect();
            let sum: f64 = policy.iter().sum();
            if (sum - 1.0).abs() > ROUNDING {
                let (question, _) = scored.identities[places[0]];
                return Err(StageError::new(format!(
                    "the completions of prompt {question} have the probability {sum:.4} together, expected 1"
                ))
                .hint("`scores` must hold every completion once: see `generate_tree`, then `score_policy`"));
            }
            let log_weights: Vec<f64> = places
                .iter()
                .map(|at| {
                    self.scale * rewards[*at] + prior.as_ref().map_or(0.0, |prior| prior[*at])
                })
                .collect();
            let wanted = softmax(&log_weights)?;
            distance += total_variation(&policy, &wanted)?;
            let mut order: Vec<usize> = (0..wanted.len()).collect();
            order.sort_by(|a, b| wanted[*b].total_cmp(&wanted[*a]));
            let modes = &order[..self.modes.min(order.len())];
            let hits = modes.iter().filter(|at| policy[**at] >= wanted[**at] / 2.0);
            found += hits.count() as f64 / modes.len() as f64;
        }
        let prompts = scored.questions.len() as f64;
        Ok(Measured {
            distance: distance / prompts,
            found: found / prompts,
        })
    }

    fn table(
        &self,
        columns: &[String],
        rows: &IndexMap<Vec<String>, BTreeMap<String, Vec<Measured>>>,
    ) -> Result<Table, StageError> {
        let mut table = Table::new(&self.title);
        for (at, axis) in self.rows.iter().enumerate() {
            table.text_column(
                axis,
                rows.keys().map(|row| {
                    let shown = self.row_names.get(&row[at]).filter(|_| at == 0);
                    Some(shown.unwrap_or(&row[at]).clone())
                }),
            );
        }
        table.text_column(
            "Target",
            rows.keys().map(|row| {
                Some(
                    match self.targets.get(&row[0]).copied().unwrap_or_default() {
                        TargetName::Reward => "R/Z",
                        TargetName::Posterior => "prior R/Z",
                        TargetName::ShiftedPosterior => "(prior R/Z, shifted)",
                    }
                    .to_owned(),
                )
            }),
        );
        let runs = rows.values().map(|row| row.values().map(Vec::len).max());
        table.whole_column("Runs", runs.map(|runs| runs.map(|runs| runs as f64)));
        let several = rows
            .values()
            .flat_map(BTreeMap::values)
            .any(|runs| runs.len() > 1);
        let mut add = |heading: &str, column: &String, value: fn(&Measured) -> f64| {
            let values: Vec<Option<Vec<f64>>> = rows
                .values()
                .map(|row| row.get(column).map(|runs| runs.iter().map(value).collect()))
                .collect();
            let means = values
                .iter()
                .map(|runs| runs.as_ref().and_then(|runs| mean(runs).ok()));
            table.number_column(heading, 3, means);
            if several {
                let spread = values
                    .iter()
                    .map(|runs| runs.as_ref().and_then(|runs| sample_std(runs).ok()));
                table.spread_of_last("sd", spread);
            }
        };
        let name = |column: &'_ String| -> String {
            self.column_names.get(column).unwrap_or(column).clone()
        };
        for column in columns {
            add(&format!("TV after {}", name(column)), column, |measured| {
                measured.distance
            });
        }
        if let Some(last) = columns.last() {
            add("Modes found", last, |measured| measured.found);
        }
        table.notes = vec![
            "TV: total variation between the policy and its target over every completion, mean over prompts; 0 is the \
             target itself."
                .to_owned(),
            format!(
                "Modes found: share of the {} completions of a prompt that the target gives the most which the policy \
                 gives at least half as much, after {}.",
                self.modes,
                columns.last().map_or_else(|| "training".to_owned(), name)
            ),
        ];
        Ok(table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scored(log_probs: [f64; 4], rewards: [f64; 4]) -> Scored {
        let mut table = Table::new("scores");
        table.whole_column("question_id", [0.0, 0.0, 1.0, 1.0].map(Some));
        table.whole_column("sample", [0.0, 1.0, 0.0, 1.0].map(Some));
        table.number_column("log_prob", 3, log_probs.map(|p: f64| Some(p.ln())));
        table.number_column("reward", 3, rewards.map(Some));
        Scored::new(table).unwrap()
    }

    fn kind() -> ObjectiveTable {
        serde_yaml::from_str("{ rows: [objective], modes: 1 }").unwrap()
    }

    #[test]
    fn distances_and_modes_are_those_of_the_target() {
        let three = 3f64.ln();
        // Targets: 1/4, 3/4 of the first prompt, 1/2, 1/2 of the second.
        let policy = scored([0.25, 0.75, 0.2, 0.8], [0.0, three, 1.0, 1.0]);
        let found = kind().measure(&policy, None, TargetName::Reward).unwrap();
        assert!((found.distance - 0.15).abs() < 1e-12, "{found:?}");
        // The mode of the second prompt, the first of two equals, has 0.2 of the wanted 0.5.
        assert_eq!(found.found, 0.5);
    }

    #[test]
    fn a_posterior_needs_the_prior_and_counts_it() {
        let policy = scored([0.1, 0.9, 0.5, 0.5], [0.0, 3f64.ln(), 1.0, 1.0]);
        let prior = scored([0.25, 0.75, 0.5, 0.5], [0.0; 4]);
        let posterior = TargetName::Posterior;
        let found = kind().measure(&policy, Some(&prior), posterior).unwrap();
        assert!(found.distance < 1e-12, "{found:?}");
        assert!(kind().measure(&policy, None, posterior).is_err());
    }

    #[test]
    fn completions_that_are_not_all_there_are_an_error() {
        let policy = scored([0.25, 0.7, 0.5, 0.5], [0.0; 4]);
        let error = kind()
            .measure(&policy, None, TargetName::Reward)
            .unwrap_err();
        let StageError::Failed { message, .. } = error else {
            panic!("interrupted")
        };
        assert!(message.contains("0.9500"), "{message}");
    }
}
