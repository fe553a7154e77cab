//! `metric_table`: reward, diversity and novelty of several policies.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attempts::{Rightness, right};
use super::axes::Axes;
use super::groups::{Grouping, Row, add_axes, training_of, within};
use super::measure::Metric;
use super::scored::{self, Scored};
use super::trainings::{curves_port, ended, load_curves};
use crate::artifacts::completions::ROWS_PER_PROMPT;
use crate::artifacts::curve::Curve;
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::RunContext;
use crate::engine::diagnostic::did_you_mean;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::random::Stream;
use crate::stages::defaults;
use crate::stats::{Bootstrap, Interval, MAJORITY_DRAWS, mean, sample_std};

/// Shows reward, diversity and novelty of the completions of several policies, beside a paper's numbers.
///
/// One row for each value of the axis `row`, or of each combination of several (named `gdpo, 0.7`). Over the axis `aggregate` it shows the mean and the sample
/// standard deviation (`sd`), and for `Mean` a bootstrap interval that resamples runs, then questions within
/// each run. The output `per_seed` has one row for each run.
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

/// A column of the table.
#[derive(Debug, Clone, PartialEq)]
enum Shown {
    Metric(Metric),
    MeanOf(String),
    EntropyOf(String),
}

impl Shown {
    fn key(&self) -> Cow<'_, str> {
        match self {
            Self::Metric(metric) => metric.key(),
            Self::MeanOf(column) | Self::EntropyOf(column) => Cow::Borrowed(column),
        }
    }

    /// Whether it has an interval over questions and runs.
    fn has_interval(&self) -> bool {
        matches!(self, Self::Metric(metric) if *metric == Metric::Mean || metric.is_of_attempts())
    }

    fn heading(&self, k: usize) -> String {
        match self {
            Self::Metric(metric) => metric.heading(k),
            Self::MeanOf(column) => column.clone(),
            Self::EntropyOf(column) => format!("Entropy of {column}"),
        }
    }
}

/// The metrics of one run, in the order of the columns.
#[derive(Debug)]
struct Measured {
    n: usize,
    values: Vec<f64>,
    /// For each column that has an interval its value for each question.
    questions: Vec<Option<Vec<f64>>>,
}

impl Kind for MetricTable {
    const NAME: &'static str = "metric_table";
    const VERSION: u32 = 4;
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
                    .hint("add `pass_at_1`, say, to `columns`"),
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

/// Checks the params of a bootstrap.
pub(super) fn check_bootstrap(level: f64, replicates: usize, problems: &mut Vec<Problem>) {
    if !(level > 0.0 && level < 1.0) {
        problems.push(Problem::new(
            "level",
            "`level` must be between 0 and 1, such as 0.95",
        ));
    }
    if replicates < 100 {
        problems.push(Problem::new(
            "replicates",
            "`replicates` must be at least 100",
        ));
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

    fn keys(&self) -> Vec<Cow<'_, str>> {
        let mut keys: Vec<Cow<'_, str>> = Vec::new();
        for metric in self.metrics() {
            keys.push(metric.key());
        }
        let further = self.extra.iter().chain(&self.entropy);
        keys.extend(further.map(|column| Cow::Borrowed(column.as_str())));
        keys
    }

    /// Every metric that can be named.
    fn metrics(&self) -> Vec<Metric> {
        let drawn = [Metric::PassAt, Metric::MaxAt, Metric::MajorityAt];
        let drawn = drawn
            .iter()
            .flat_map(|metric| self.k.iter().map(|k| metric(*k)));
        let metrics = Metric::ALL.into_iter().chain(drawn);
        metrics.chain([Metric::DistinctRight]).collect()
    }

    /// The metrics of right answers that are shown: those of `k`, or those named.
    fn attempts(&self) -> Vec<Metric> {
        let mut metrics = self.metrics();
        metrics.retain(|metric| metric.is_of_attempts() && self.shows(*metric));
        metrics
    }

    fn shows(&self, metric: Metric) -> bool {
        if self.columns.is_empty() {
            return !metric.is_of_attempts() || !self.k.is_empty();
        }
        self.columns.iter().any(|key| *key == metric.key())
    }

    /// Returns the columns that the inputs allow and the params want.
    fn shown(&self, rows: &[Row<Scored>]) -> Vec<Shown> {
        let metrics = self.metrics().into_iter();
        let metrics = metrics.filter(|metric| self.shows(*metric));
        let metrics = metrics.map(Shown::Metric);
        let further = self.extra.iter().cloned().map(Shown::MeanOf);
        let all = metrics
            .chain(further)
            .chain(self.entropy.iter().cloned().map(Shown::EntropyOf));
        if self.columns.is_empty() {
            let runs = || rows.iter().flat_map(|row| &row.runs);
            let possible = |shown: &Shown| match shown {
                Shown::Metric(metric) => runs().all(|run| run.content.has(*metric)),
                _ => true,
            };
            return all.filter(possible).collect();
        }
        let all: Vec<Shown> = all.collect();
        let chosen = self
            .columns
            .iter()
            .filter_map(|key| all.iter().find(|shown| shown.key() == **key));
        let rest = all.iter().filter(|shown| {
            let asked_for = !matches!(shown, Shown::Metric(_));
            asked_for && !self.columns.iter().any(|key| *key == shown.key())
        });
        chosen.chain(rest).cloned().collect()
    }

    fn measure(&self, scored: &Scored, shown: &[Shown]) -> Result<Measured, StageError> {
        let once = vec![1; scored.table.height()];
        let rightness = Rightness {
            least: self.right,
            answer: self.answer.as_deref(),
        };
        let mut values = Vec::with_capacity(shown.len());
        let mut questions = Vec::with_capacity(shown.len());
        for column in shown {
            let of_questions = match column {
                Shown::Metric(Metric::Mean) => Some(scored.question_means(&self.column)?),
                Shown::Metric(metric) if metric.is_of_attempts() => {
                    Some(scored.attempts(*metric, &self.column, rightness)?)
                }
                _ => None,
            };
            let measurement = match (column, &of_questions) {
                (Shown::Metric(metric), Some(of_questions)) if metric.is_of_attempts() => {
                    values.push(mean(of_questions)?);
                    questions.push(Some(of_questions.clone()));
                    continue;
                }
                (Shown::Metric(metric), _) => {
                    scored.measure(*metric, &self.column, self.top_k, rightness)?
                }
                (Shown::MeanOf(column), _) => scored.mean_of(column)?,
                (Shown::EntropyOf(column), _) => scored.entropy_of(column)?,
            };
            values.push(measurement.of(&once));
            questions.push(of_questions);
        }
        Ok(Measured {
            n: scored.table.height(),
            values,
            questions,
        })
    }

    /// Makes the table of rows and the table of runs.
    fn tables(
        &self,
        rows: Vec<Row<Scored>>,
        curves: &[Row<Curve>],
    ) -> Result<(Table, Table), StageError> {
        let shown = self.shown(&rows);
        let mut measured = Vec::with_capacity(rows.len());
        for row in rows {
            // Runs are dropped as they are measured: their vectors are large.
            measured.push(row.try_map(&self.aggregate, |run| self.measure(&run.content, &shown))?);
        }
        let per_seed = self.per_seed(&measured, &shown, curves);
        Ok((self.aggregated(&measured, &shown, curves)?, per_seed))
    }

    fn aggregated(
        &self,
        rows: &[Row<Measured>],
        shown: &[Shown],
        curves: &[Row<Curve>],
    ) -> Result<Table, StageError> {
        let several = rows.iter().any(|row| row.runs.len() > 1);
        let mut table = Table::new(&self.title);
        add_axes(&mut table, self.row.names(), rows.iter());
        table.whole_column(
            "n",
            rows.iter()
                .map(|row| Some(row.runs.iter().map(|run| run.content.n).sum::<usize>() as f64)),
        );
        if several {
            table.whole_column("Runs", rows.iter().map(|row| Some(row.runs.len() as f64)));
        }
        for (at, column) in shown.iter().enumerate() {
            let heading = column.heading(self.top_k);
            let runs = |row: &Row<Measured>| -> Vec<f64> {
                row.runs.iter().map(|run| run.content.values[at]).collect()
            };
            let means = rows.iter().map(|row| Ok(Some(mean(&runs(row))?)));
            table.number_column(&heading, 3, means.collect::<Result<Vec<_>, StageError>>()?);
            if several {
                // One run has no spread.
                table.spread_of_last("sd", rows.iter().map(|row| sample_std(&runs(row)).ok()));
            }
            if column.has_interval() {
                let intervals = rows
                    .iter()
                    .map(|row| self.interval(row, column, at))
                    .collect::<Result<Vec<_>, _>>()?;
                let bounds = |interval: &Interval| (Some(interval.low), Some(interval.high));
                table.interval_of_last(intervals.iter().map(bounds));
            }
            if rows.iter().any(|row| self.reported(row, column).is_some()) {
                let reported = rows.iter().map(|row| self.reported(row, column));
                table.number_column(format!("{heading} (paper)"), 3, reported);
            }
        }
        if !curves.is_empty() {
            table.text_column(
                "Training",
                rows.iter().map(|row| {
                    ended(
                        &row.runs
                            .iter()
                            .filter_map(|run| training_of(curves, &row.values[0], &run.label))
                            .collect::<Vec<_>>(),
                    )
                }),
            );
        }
        table.notes.extend(self.standard_notes(shown, several));
        Ok(table)
    }

    fn per_seed(&self, rows: &[Row<Measured>], shown: &[Shown], curves: &[Row<Curve>]) -> Table {
        let mut table = Table::new(format!("{}, run by run", self.title));
        let runs = || {
            rows.iter()
                .flat_map(|row| row.runs.iter().map(move |run| (row, run)))
        };
        add_axes(&mut table, self.row.names(), runs().map(|(row, _)| row));
        table.label_column(
            &self.aggregate,
            runs().map(|(_, run)| Some(run.label.clone())),
        );
        table.whole_column("n", runs().map(|(_, run)| Some(run.content.n as f64)));
        for (at, column) in shown.iter().enumerate() {
            let values = runs().map(|(_, run)| Some(run.content.values[at]));
            table.number_column(column.heading(self.top_k), 3, values);
        }
        if !curves.is_empty() {
            let training = |row: &Row<Measured>, run: &str| {
                ended(&[training_of(curves, &row.values[0], run)?])
            };
            table.text_column(
                "Training",
                runs().map(|(row, run)| training(row, &run.label)),
            );
        }
        table
    }

    fn reported(&self, row: &Row<Measured>, column: &Shown) -> Option<f64> {
        self.reference_values
            .get(&row.label)?
            .get(column.key().as_ref())
            .copied()
    }

    fn interval(
        &self,
        row: &Row<Measured>,
        column: &Shown,
        at: usize,
    ) -> Result<Interval, StageError> {
        let mut stream = Stream::new(self.seed, "metric_table").child(&row.label);
        if *column != Shown::Metric(Metric::Mean) {
            stream = stream.child(&column.key());
        }
        let runs = row.runs.iter();
        let questions: Vec<Vec<f64>> = runs
            .filter_map(|run| run.content.questions[at].clone())
            .collect();
        let bootstrap = Bootstrap::new(self.replicates, self.level, stream)?;
        bootstrap
            .mean_of_runs(&questions)
            .map_err(|error| within(&row.label, error))
    }

    fn standard_notes(&self, shown: &[Shown], several: bool) -> Vec<String> {
        let mut notes = self.notes.clone();
        let has = |metrics: &[Metric]| {
            shown
                .iter()
                .any(|shown| matches!(shown, Shown::Metric(metric) if metrics.contains(metric)))
        };
        notes.push(format!(
            "Std divides by n. Top-{0} are the {0} completions of a run with the greatest {1}.",
            self.top_k, self.column
        ));
        if shown.iter().any(Shown::has_interval) {
            let percent = self.level * 100.0;
            let (runs, caution) = if several {
                (
                    format!("runs ({}), then questions", self.aggregate),
                    "; with few runs it is too narrow",
                )
            } else {
                (
                    "questions alone: one run does not show how runs differ".to_owned(),
                    "",
                )
            };
            notes.push(format!(
                "[low, high]: {percent}% bootstrap interval over {runs}{caution}."
            ));
        }
        if several {
            notes.push(format!(
                "±: sample standard deviation over the runs ({}).",
                self.aggregate
            ));
        }
        let attempts = |wanted: fn(Metric) -> bool| {
            let shown = shown.iter();
            shown
                .filter_map(|shown| match shown {
                    Shown::Metric(metric) => Some(*metric),
                    _ => None,
                })
                .any(wanted)
        };
        if attempts(|metric| metric.drawn().is_some()) {
            notes.push(format!(
                "pass@k, max@k, majority@k: whether one of k completions of a question is right, the greatest {0}, \
                 and whether their most frequent answer is right; means over all ways of drawing k of the completions \
                 that there are (majority@k of some hundreds: {MAJORITY_DRAWS} draws), then over questions. Right: {0} \
                 of at least {1}.",
                self.column, self.right
            ));
        }
        if attempts(|metric| metric == Metric::DistinctRight) {
            notes.push(format!(
                "Distinct right: answers of {} of at least {} to a question that differ, of all its completions; it \
                 grows with their number.",
                self.column, self.right
            ));
        }
        if has(&[
            Metric::Diversity,
            Metric::DiversityAll,
            Metric::Novelty,
            Metric::NoveltyAll,
        ]) {
            notes.push(format!(
                "Diversity: mean cosine distance of pairs, novelty: mean cosine distance to the nearest completion \
                 trained on; of the top {}, unless the heading says otherwise.",
                self.top_k
            ));
        }
        if shown
            .iter()
            .any(|shown| matches!(shown, Shown::Metric(metric) if metric.is_tfidf()))
        {
            notes.push(
                "TF-IDF weights are fitted on all completions and reference completions together."
                    .to_owned(),
            );
        }
        notes
    }
}

#[cfg(test)]
mod tests;
