//! `target_distance`: how far policies are from R(y) / Z, computed over every legal answer.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::groups::{Grouping, Row, row_named, within};
use super::scored::{self, Scored};
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stages::defaults;
use crate::stats::{mean, sample_std, softmax, total_variation};

/// Sums of probabilities may pass 1 by the rounding of single-precision log-probabilities.
const ROUNDING: f64 = 1e-3;

/// Computes how far each policy is from sampling in proportion to the reward.
///
/// `scores` hold every legal answer to each question, with its log-probability under the policy (`enumerate_answers`,
/// then `score_policy`). A target is R(y) / Z over the legal answers with R = exp(scale * reward); with `prior` there
/// are further targets prior(y) R(y) / Z, where the prior is the policy of that row, over the legal answers. The
/// distance is the total variation, half the sum of |pi - target|; mass that the policy gives to other strings counts
/// as missed. All numbers are means over questions, then over the axis `aggregate`, with its sample standard deviation
/// (±); nothing is sampled.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TargetDistance {
    /// The axis whose values are the rows.
    #[serde(default = "defaults::policy")]
    row: String,
    /// The axis whose values are the runs of a row.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// The column of the true reward.
    #[serde(default = "exact_reward")]
    exact: String,
    /// The column of the learned reward.
    #[serde(default = "defaults::reward")]
    learned: String,
    /// What rewards are multiplied by in the targets.
    #[serde(default = "scales")]
    scales: Vec<f64>,
    /// The row whose distribution is the prior of further targets.
    #[serde(default)]
    prior: Option<String>,
    /// What rewards are multiplied by in the targets with the prior.
    #[serde(default)]
    prior_scales: Vec<f64>,
    /// What single rows aim at, such as `{ rtb: { scale: 5, prior: true } }`: each is compared with its own target, in a
    /// column by itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    own: BTreeMap<String, OwnTarget>,
    /// Names shown instead of values of `row`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// The title.
    #[serde(default = "title")]
    title: String,
}

/// What a policy was trained to sample: R(y) / Z with R = exp(scale * learned reward), or prior(y) R(y) / Z.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OwnTarget {
    /// What learned rewards are multiplied by.
    scale: f64,
    /// Whether the distribution of the row `prior` is part of it.
    #[serde(default)]
    prior: bool,
}

fn exact_reward() -> String {
    "exact_reward".to_owned()
}

fn scales() -> Vec<f64> {
    vec![1.0, 10.0, 100.0]
}

fn title() -> String {
    "Distance to R/Z over all legal answers".to_owned()
}

/// What a policy is compared with.
#[derive(Debug, Clone, Copy)]
struct Target<'a> {
    reward: &'a str,
    /// What the reward is called in headings.
    name: &'static str,
    scale: f64,
    prior: bool,
}

impl Kind for TargetDistance {
    const NAME: &'static str = "target_distance";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = "{ scales: [1, 10, 100], prior: sft, prior_scales: [5] }";

    fn ports(&self) -> Vec<Port> {
        vec![scored::scores_port()]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("table", TABLE), Output::new("per_seed", TABLE)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (key, values) in [
            ("scales", &self.scales),
            ("prior_scales", &self.prior_scales),
        ] {
            if values.iter().any(|scale| !scale.is_finite()) {
                problems.push(Problem::new(key, format!("`{key}` must be finite numbers")));
            }
        }
        for (row, own) in &self.own {
            if !own.scale.is_finite() {
                let text = "`scale` must be a finite number";
                problems.push(Problem::new(&format!("own.{row}.scale"), text));
            }
        }
        let own_prior = self.own.values().any(|own| own.prior);
        let wants_prior = !self.prior_scales.is_empty() || own_prior;
        if self.prior.is_some() != wants_prior {
            problems.push(
                Problem::new(
                    "prior",
                    "`prior` and targets with it, in `prior_scales` or `own`, need each other",
                )
                .hint("such as `prior: sft, prior_scales: [5]`"),
            );
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        for (param, column) in [("exact", &self.exact), ("learned", &self.learned)] {
            scored::needs_column(known, ("", &[]), param, column);
        }
        known.says_columns("per_seed", self.grouping().columns_with(self.headings()));
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let rows = scored::load_scores(ctx, self.grouping())?;
        let (table, per_seed) = self.tables(&rows)?;
        table.write(&ctx.output("table")?)?;
        per_seed.write(&ctx.output("per_seed")?)?;
        Ok(())
    }
}

impl TargetDistance {
    fn grouping(&self) -> Grouping<'_> {
        Grouping {
            row: std::slice::from_ref(&self.row),
            aggregate: &self.aggregate,
            names: &self.row_names,
        }
    }

    fn targets(&self) -> Vec<Target<'_>> {
        let mut targets = Vec::new();
        for (scales, prior) in [(&self.scales, false), (&self.prior_scales, true)] {
            for (reward, name) in [(&self.exact, "exact"), (&self.learned, "learned")] {
                targets.extend(scales.iter().map(|scale| Target {
                    reward,
                    name,
                    scale: *scale,
                    prior,
                }));
            }
        }
        targets
    }

    fn headings(&self) -> Vec<String> {
        let targets = self.targets();
        let distance = targets.iter().map(|target| {
            let prior = if target.prior { "prior, " } else { "" };
            format!("TV {prior}{} x{}", target.name, target.scale)
        });
        ["Mass outside", "Exact reward", "Learned reward", "Error"]
            .map(str::to_owned)
            .into_iter()
            .chain(distance)
            .chain((!self.own.is_empty()).then(|| "TV own target".to_owned()))
            .collect()
    }

    /// Makes the table of rows and the table of runs.
    fn tables(&self, rows: &[Row<Scored>]) -> Result<(Table, Table), StageError> {
        let prior = match &self.prior {
            Some(label) => Some(row_named(rows, label)?),
            None => None,
        };
        for label in self.own.keys() {
            row_named(rows, label)?;
        }
        let mut measured: Vec<Vec<Vec<f64>>> = Vec::with_capacity(rows.len());
        for row in rows {
            let own = self.own.get(&row.label).copied();
            let runs = row.runs.iter().map(|run| {
                let failed = |error: StageError| within(&row.describe(run, &self.aggregate), error);
                let prior = match prior {
                    None => None,
                    Some(prior) => {
                        let same = prior.runs.iter().find(|other| other.label == run.label);
                        let same = same.map(|other| &other.content);
                        let asked_the_same = same.map(|other| other.answers_the_same(&run.content));
                        let is_same = asked_the_same.transpose().map_err(failed)?;
                        Some(same.filter(|_| is_same == Some(true)).ok_or_else(|| {
                            failed(StageError::new(format!(
                                "the row `{}` of the prior has no such run over the same answers",
                                prior.label
                            )))
                        })?)
                    }
                };
                self.measure(&run.content, prior, own).map_err(failed)
            });
            measured.push(runs.collect::<Result<_, _>>()?);
        }
        let (mut table, mut per_seed) = (
            Table::new(&self.title),
            Table::new(format!("{}, run by run", self.title)),
        );
        let several = rows.iter().any(|row| row.runs.len() > 1);
        table.text_column(&self.row, rows.iter().map(|row| Some(row.name.clone())));
        let questions = |row: &Row<Scored>| {
            let runs = row.runs.iter().map(|run| run.content.questions.len());
            Some(runs.sum::<usize>() as f64)
        };
        table.whole_column("Questions", rows.iter().map(questions));
        let runs = || {
            rows.iter()
                .flat_map(|row| row.runs.iter().map(move |run| (row, run)))
        };
        per_seed.text_column(&self.row, runs().map(|(row, _)| Some(row.name.clone())));
        let label = runs().map(|(_, run)| Some(run.label.clone()));
        per_seed.label_column(&self.aggregate, label);
        for (at, heading) in self.headings().iter().enumerate() {
            // A row without a target of its own has no distance to it.
            let of_row = |runs: &Vec<Vec<f64>>| -> Vec<f64> {
                runs.iter().filter_map(|run| run.get(at).copied()).collect()
            };
            let means: Vec<Option<f64>> = measured
                .iter()
                .map(|runs| mean(&of_row(runs)).ok())
                .collect();
            table.number_column(heading, 3, means);
            if several {
                // One run has no spread.
                let spread = measured.iter().map(|runs| sample_std(&of_row(runs)).ok());
                table.spread_of_last("sd", spread);
            }
            let all = measured.iter().flatten().map(|run| run.get(at).copied());
            per_seed.number_column(heading, 3, all);
        }
        table.notes = vec![
            "TV: total variation between the policy and R(y) / Z over the legal answers, R = exp(scale x reward); \
             0 is the target itself, 1 nothing in common. Mass outside: the policy's probability of all other strings, \
             a part of each TV."
                .to_owned(),
            "Exact, learned reward: means under the policy given a legal answer; Error: root mean square of their \
             difference."
                .to_owned(),
        ];
        if !self.own.is_empty() {
            table.notes.push(format!(
                "Own target, by the learned reward: {}.",
                self.describe_own(rows)
            ));
        }
        if let Some(prior) = prior {
            table.notes.push(format!(
                "Prior: the target is prior(y) R(y) / Z, with the distribution of {} over the legal answers.",
                prior.name
            ));
        }
        Ok((table, per_seed))
    }

    /// Says what each row's own target is.
    fn describe_own(&self, rows: &[Row<Scored>]) -> String {
        let of = |row: &Row<Scored>| {
            let own = self.own.get(&row.label)?;
            let prior = if own.prior { "prior, " } else { "" };
            Some(format!("{} {prior}x{}", row.name, own.scale))
        };
        rows.iter().filter_map(of).collect::<Vec<_>>().join("; ")
    }

    /// Returns the values of one run, in the order of the headings, as means over its questions; the last one is left out
    /// where the row has no target of its own.
    fn measure(
        &self,
        answers: &Scored,
        prior: Option<&Scored>,
        own: Option<OwnTarget>,
    ) -> Result<Vec<f64>, StageError> {
        let log_probs = answers.column("log_prob")?;
        let (exact, learned) = (answers.column(&self.exact)?, answers.column(&self.learned)?);
        let prior = prior.map(|prior| prior.column("log_prob")).transpose()?;
        let mut targets = self.targets();
        targets.extend(own.map(|own| Target {
            reward: &self.learned,
            name: "learned",
            scale: own.scale,
            prior: own.prior,
        }));
        let mut sums = vec![0.0; 4 + targets.len()];
        for places in &answers.questions {
            let mut probabilities: Vec<f64> =
                places.iter().map(|at| libm::exp(log_probs[*at])).collect();
            let inside: f64 = probabilities.iter().sum();
            if inside > 1.0 + ROUNDING {
                let (question, _) = answers.identities[places[0]];
                return Err(StageError::new(format!(
                    "the answers to question {question} have the probability {inside:.4} together"
                ))
                .hint("`log_prob` must be that of distinct answers under one policy: see `score_policy`"));
            }
            let under_policy = |value: &dyn Fn(usize) -> f64| {
                let weighted = places.iter().zip(&probabilities);
                weighted.map(|(at, p)| p * value(*at)).sum::<f64>() / inside
            };
            let error = under_policy(&|at| (learned[at] - exact[at]).powi(2)).sqrt();
            let outside = (1.0 - inside).max(0.0);
            let mut values = vec![
                outside,
                under_policy(&|at| exact[at]),
                under_policy(&|at| learned[at]),
                error,
            ];
            // The strings outside are one category more, of which no target has any.
            probabilities.push(outside);
            for target in &targets {
                let rewards = if target.reward == self.exact {
                    &exact
                } else {
                    &learned
                };
                let prior = prior.as_ref().filter(|_| target.prior);
                let log_weights: Vec<f64> = places
                    .iter()
                    .map(|at| target.scale * rewards[*at] + prior.map_or(0.0, |prior| prior[*at]))
                    .collect();
                let mut wanted = softmax(&log_weights)?;
                wanted.push(0.0);
                values.push(total_variation(&probabilities, &wanted)?);
            }
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value / answers.questions.len() as f64;
            }
        }
        Ok(sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::completions::{CompletionRow, to_table};
    use crate::engine::context::Labels;
    use crate::stages::report::fixture::rows;
    use crate::stages::report::groups::tests::labels;

    const EXACT: [f64; 3] = [0.0, 1.0, 2.0];
    const LEARNED: [f64; 3] = [0.5, 1.0, 1.0];

    fn kind() -> TargetDistance {
        serde_json::from_str(r#"{ "scales": [1, 10], "prior": "sft", "prior_scales": [2] }"#)
            .unwrap()
    }

    /// A policy that answers each of two questions in three ways.
    fn run_of(policy: &str, seed: u64, probabilities: [f64; 3]) -> (Labels, Scored) {
        let answers: Vec<CompletionRow> = (0..6)
            .map(|at| CompletionRow {
                question_id: at / 3,
                sample: at % 3,
                log_prob: Some(probabilities[at as usize % 3].ln()),
                ..CompletionRow::default()
            })
            .collect();
        let mut table = to_table("answers", &answers);
        for (name, values) in [("exact_reward", EXACT), ("reward", LEARNED)] {
            table.number_column(name, 3, (0..6).map(|at| Some(values[at % 3])));
        }
        let labels = labels(&[("policy", policy), ("seed", &seed.to_string())]);
        (labels, Scored::new(table).unwrap())
    }

    fn boltzmann(scale: f64, rewards: [f64; 3]) -> [f64; 3] {
        let weights = rewards.map(|reward| (scale * reward).exp());
        weights.map(|weight| weight / weights.iter().sum::<f64>())
    }

    #[test]
    fn a_policy_is_at_its_own_target_and_away_from_the_others() {
        let sft = [0.5, 0.3, 0.2];
        let tilted: [f64; 3] = std::array::from_fn(|at| sft[at] * (2.0 * EXACT[at]).exp());
        let tilted = tilted.map(|weight| weight / tilted.iter().sum::<f64>());
        let (table, per_seed) = kind()
            .tables(&rows(vec![
                run_of("sft", 1, sft),
                run_of("tb", 1, boltzmann(1.0, EXACT)),
                run_of("prior", 1, tilted),
                run_of("leaky", 1, [0.25, 0.25, 1e-15]),
            ]))
            .unwrap();
        let column = |name: &str| table.all_numbers(name).unwrap();
        assert!(column("TV exact x1")[1] < 1e-12);
        assert!(column("TV prior, exact x2")[2] < 1e-12);
        let sharp = boltzmann(10.0, EXACT);
        let by_hand = (0..3).map(|at| (sft[at] - sharp[at]).abs()).sum::<f64>() / 2.0;
        assert!((column("TV exact x10")[0] - by_hand).abs() < 1e-12);
        // The mass outside is missing mass, and not normalised away.
        assert!((column("Mass outside")[3] - 0.5).abs() < 1e-12);
        assert!(
            (column("TV learned x1")[3] - {
                let target = boltzmann(1.0, LEARNED);
                ((0.25 - target[0]).abs() + (0.25 - target[1]).abs() + target[2] + 0.5) / 2.0
            })
            .abs()
                < 1e-12
        );
        // Given one of the two answers: rewards 0 and 1, learned 0.5 and 1.
        assert!((column("Exact reward")[3] - 0.5).abs() < 1e-12);
        assert!((column("Error")[3] - (0.25f64 / 2.0).sqrt()).abs() < 1e-12);
        assert_eq!(per_seed.height(), 4);
        assert_eq!(column("Questions"), [2.0; 4]);
    }

    #[test]
    fn rows_are_compared_with_what_they_aim_at() {
        let sft = [0.5, 0.3, 0.2];
        let tilted: [f64; 3] = std::array::from_fn(|at| sft[at] * (3.0 * LEARNED[at]).exp());
        let tilted = tilted.map(|weight| weight / tilted.iter().sum::<f64>());
        let text = r#"{ "scales": [1], "prior": "sft",
            "own": { "rtb": { "scale": 3, "prior": true }, "tb": { "scale": 1 } } }"#;
        let kind: TargetDistance = serde_json::from_str(text).unwrap();
        assert!(kind.validate().is_empty());
        let items = vec![
            run_of("sft", 1, sft),
            run_of("rtb", 1, tilted),
            run_of("tb", 1, boltzmann(1.0, EXACT)),
        ];
        let (table, _) = kind.tables(&rows(items)).unwrap();
        let own = table.numbers("TV own target").unwrap();
        assert_eq!(own[0], None);
        assert!(own[1].unwrap() < 1e-12);
        let learned = table.all_numbers("TV learned x1").unwrap();
        assert!(own[2].unwrap() > 0.1 && own[2] == Some(learned[2]));
        let note = "Own target, by the learned reward: rtb prior, x3; tb x1.";
        assert!(
            table.notes.iter().any(|found| found == note),
            "{:?}",
            table.notes
        );
        // A row that is not there, and a prior that nothing wants.
        let missing: TargetDistance =
            serde_json::from_str(r#"{ "scales": [1], "own": { "ppo": { "scale": 1 } } }"#).unwrap();
        assert!(missing.tables(&rows(vec![run_of("sft", 1, sft)])).is_err());
        let unasked: TargetDistance =
            serde_json::from_str(r#"{ "prior": "sft", "own": { "tb": { "scale": 1 } } }"#).unwrap();
        assert_eq!(unasked.validate().len(), 1);
    }

    #[test]
    fn what_is_no_distribution_and_a_prior_that_lacks_a_run_are_errors() {
        let message = |items| {
            let StageError::Failed { message, .. } = kind().tables(&rows(items)).unwrap_err()
            else {
                panic!("interrupted");
            };
            message
        };
        let sum = message(vec![run_of("sft", 1, [0.5, 0.5, 0.5])]);
        assert_eq!(
            sum,
            "sft, seed 1: the answers to question 0 have the probability 1.5000 together"
        );
        let prior = message(vec![
            run_of("sft", 1, [0.5, 0.3, 0.2]),
            run_of("tb", 2, [0.5, 0.3, 0.2]),
        ]);
        assert_eq!(
            prior,
            "tb, seed 2: the row `sft` of the prior has no such run over the same answers"
        );
    }
}
