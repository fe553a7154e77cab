//! `metric_table`: reward, diversity and novelty of several policies.

mod measured;
mod notes;
mod shown;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::axes::Axes;
use super::bootstrap_params::check_bootstrap;
use super::groups::{Grouping, refuse_ungrouped};
use super::measure::{Metric, right};
use super::scored;
use super::trainings::{curves_port, load_curves};
use crate::artifacts::completions::ROWS_PER_PROMPT;
use crate::artifacts::table::TABLE;
use crate::engine::context::RunContext;
use crate::engine::diagnostic::did_you_mean;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stages::defaults;

/// Shows reward, diversity and novelty of the completions of several policies, beside a paper's numbers.
///
/// One row for each value of the axis `row`, or of each combination of several (named `gdpo, 0.7`). Over the axis `aggregate` it shows the mean and the sample
/// standard deviation (`sd`), and for `Mean` a bootstrap interval that resamples runs and, once for
/// all of them, questions. The output `per_seed` has one row for each run.
///
/// `iqm` in `columns` shows the interquartile mean of the reward (Agarwal et al. 2021): the mean of the middle half of the
/// questions' values in all runs, which one run or question that fails does not move. It needs five runs.
///
/// With `k` and several completions of each question it shows what the best or the most frequent of k of them gives: `pass_at_k`,
/// `max_at_k`, `majority_at_k` for each k, and `distinct_right`, with such intervals. Of n completions each number is
/// the mean over all ways of drawing k, which is unbiased; a k above n is an error.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricTable {
    /// The axis whose values are the rows, or a list of axes.
    #[serde(default)]
    row: Axes,
    /// The axis whose values are the runs of a row.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// The column of `scores` that is the reward.
    #[serde(default = "defaults::reward")]
    column: String,
    /// How many completions the top-K metrics take, those with the greatest reward.
    #[serde(default = "defaults::twenty")]
    top_k: usize,
    /// Numbers of completions of a question that are drawn for `pass_at_4`, `max_at_4`, `majority_at_4` and the like.
    #[serde(default)]
    k: Vec<usize>,
    /// The least `column` of a right completion, for the metrics of `k` and `distinct_right`.
    #[serde(default = "right")]
    right: f64,
    /// The text column with the answers that `majority_at_k` and `distinct_right` count; if absent `answer`, which
    /// `score` writes with a reward rule, else the completions themselves.
    #[serde(default)]
    answer: Option<String>,
    /// The metrics shown, in this order, `extra` and `entropy` behind them unless they are named here, too; all that the
    /// inputs allow if empty.
    #[serde(default)]
    columns: Vec<String>,
    /// Further numeric columns of `scores`, shown as means.
    #[serde(default)]
    extra: Vec<String>,
    /// Text columns of `scores`, shown as the entropy of their values in nats.
    #[serde(default)]
    entropy: Vec<String>,
    /// Whether to add diversity and novelty with TF-IDF vectors.
    #[serde(default)]
    tfidf: bool,
    /// Names shown instead of values of `row`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// A paper's numbers: for each row, metrics with their values.
    #[serde(default)]
    reference_values: BTreeMap<String, BTreeMap<String, f64>>,
    /// The title.
    #[serde(default = "title")]
    title: String,
    /// What else must be known to read the table.
    #[serde(default)]
    notes: Vec<String>,
    /// Coverage of the interval.
    #[serde(default = "defaults::level")]
    level: f64,
    /// Bootstrap replicates.
    #[serde(default = "defaults::replicates")]
    replicates: usize,
    /// Seed of the bootstrap.
    #[serde(default)]
    seed: u64,
}

fn title() -> String {
    "Reward, diversity and novelty".to_owned()
}

impl Kind for MetricTable {
    const NAME: &'static str = "metric_table";
    const VERSION: u32 = 6;
    const EXAMPLE: &'static str = r"{ row: policy, aggregate: seed, top_k: 20, tfidf: true, extra: [exact_reward],
      row_names: { flowhf.late: FlowHF }, reference_values: { ppo: { mean: 0.872, diversity: 0.292 } } }";

    fn ports(&self) -> Vec<Port> {
        let mut ports = vec![scored::scores_port()];
        ports.extend(scored::embedding_ports());
        ports.push(curves_port());
        ports
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("table", TABLE), Output::new("per_seed", TABLE)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.top_k < 2 {
            problems.push(Problem::new(
                "top_k",
                "`top_k` must be at least 2: diversity is a mean over pairs",
            ));
        }
        check_bootstrap(self.level, self.replicates, &mut problems);
        let known = self.keys();
        let mut check = |path: &str, key: &str| {
            if !known.iter().any(|one| one == key) {
                let mut problem = Problem::new(path, format!("no metric `{key}`"));
                let draws = ["pass_at_", "max_at_", "majority_at_"];
                problem.hint = if draws.iter().any(|start| key.starts_with(start)) {
                    Some(
                        "its number must be in `k`, such as `k: [1, 4]` for `pass_at_4`".to_owned(),
                    )
                } else {
                    did_you_mean(key, known.iter().map(AsRef::as_ref))
                        .or_else(|| Some(format!("the metrics are: {}", known.join(", "))))
                };
                problems.push(problem);
            }
        };
        for key in &self.columns {
            check("columns", key);
        }
        for values in self.reference_values.values() {
            for key in values.keys() {
                check("reference_values", key);
            }
        }
        let named = Metric::ALL
            .iter()
            .filter(|metric| self.columns.iter().any(|key| *key == metric.key()));
        for (at, k) in self.k.iter().enumerate() {
            if *k == 0 {
                problems.push(Problem::new("k", "`k` must be numbers from 1"));
            }
            if self.k[..at].contains(k) {
                problems.push(Problem::new("k", format!("`k` has {k} twice")));
            }
        }
        let attempts = self.attempts();
        if !self.k.is_empty() && attempts.iter().all(|metric| metric.drawn().is_none()) {
            problems.push(
                Problem::new("k", "`k` has no effect: `columns` shows no metric of it")
                    .hint(format!("add `pass_at_{}`, say, to `columns`", self.k[0])),
            );
        }
        if !self.right.is_finite() {
            problems.push(Problem::new("right", "`right` must be a number"));
        }
        for (key, is_set) in [
            ("right", self.right != right()),
            ("answer", self.answer.is_some()),
        ] {
            if is_set && attempts.is_empty() {
                problems.push(
                    Problem::new(
                        key,
                        format!("`{key}` has no effect: no metric of right answers is shown"),
                    )
                    .hint("give `k`, such as `k: [1, 4]`"),
                );
            }
        }
        let with_tfidf = named.clone().any(|metric| metric.is_tfidf());
        if with_tfidf && !self.tfidf {
            problems.push(
                Problem::new("columns", "metrics with TF-IDF vectors need `tfidf: true`")
                    .hint("set it, or leave them out"),
            );
        }
        if self.tfidf && !self.columns.is_empty() && !with_tfidf {
            problems.push(
                Problem::new(
                    "tfidf",
                    "`tfidf: true` has no effect: `columns` shows no metric with TF-IDF vectors",
                )
                .hint("add `tfidf_diversity`, say, to `columns`"),
            );
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        refuse_ungrouped(known, "scores", self.grouping(), false, ("row", &[]));
        for (param, columns) in [("extra", &self.extra), ("entropy", &self.entropy)] {
            for column in columns {
                scored::needs_column(known, ("", &[]), param, column);
            }
        }
        // Without `columns` the mean of the top K is one of them.
        let chosen = Metric::ALL
            .iter()
            .filter(|metric| self.columns.iter().any(|key| *key == metric.key()));
        if self.columns.is_empty() || chosen.copied().any(Metric::is_of_top_k) {
            scored::needs_top_k(known, self.top_k);
        }
        let drawn = self.attempts().into_iter().filter_map(Metric::drawn);
        if let Some(k) = drawn.max() {
            let hint = "lower it, or raise `samples_per_prompt`";
            known.needs("scores", ROWS_PER_PROMPT, k, ("k", k), hint);
        }
        // Without `columns` the inputs decide.
        if !self.columns.is_empty() {
            let shown = self.shown(&[]).into_iter();
            let own = shown.map(|column| column.heading(self.top_k));
            let own = own.chain(["n".to_owned(), "Training".to_owned()]);
            known.says_columns("per_seed", self.grouping().columns_with(own));
        }
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let rows = scored::load(ctx, self.grouping(), self.tfidf)?;
        // A training has the first axis alone: what it was sampled with comes after it.
        let trainings = Grouping {
            row: &self.row.names()[..1],
            ..self.grouping()
        };
        let curves = load_curves(ctx, trainings)?;
        for row in self
            .reference_values
            .keys()
            .filter(|label| rows.iter().all(|row| row.label != **label))
        {
            ctx.note(&format!("`reference_values` has `{row}`, which is no row"));
        }
        let (table, per_seed) = self.tables(rows, &curves)?;
        table.write(&ctx.output("table")?)?;
        per_seed.write(&ctx.output("per_seed")?)?;
        Ok(())
    }
}

impl MetricTable {
    fn grouping(&self) -> Grouping<'_> {
        Grouping {
            row: self.row.names(),
            aggregate: &self.aggregate,
            names: &self.row_names,
        }
    }
}
