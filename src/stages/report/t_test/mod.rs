//! `t_test`: are the mean rewards of two policies different?

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bootstrap_params::check_bootstrap;
use super::groups::{Grouping, Row, refuse_ungrouped, row_named, within};
use super::repeats::{Repeats, are_one, once};
use super::resample::{Measured, Questions, mean_of_drawn};
use super::scored::{self, Scored};
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::random::Stream;
use crate::stages::defaults;
use crate::stats::{
    self, Bootstrap, Interval, StatsError, Summary, Variances, cohens_d, holm, paired_t_test,
    two_sample_t_test,
};
use published::{Published, recomputed};

/// Tests whether the mean rewards of pairs of policies differ, run by run, pooled, and over runs.
///
/// `pooled` takes all completions of all runs as one sample, as papers do; completions of one run are not
/// independent, which `runs` respects: a paired t-test of the runs' means. Holm's p adjusts for the number of
/// pairs within each of these. Welch's test is the one adjusted, Student's stands beside it. The interval of the
/// difference resamples runs and, once for all runs of both policies, questions; runs are drawn together where both
/// policies have the same ones.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TTest {
    /// The pairs of rows to compare.
    pairs: Vec<Pair>,
    /// The axis whose values are the rows.
    #[serde(default = "defaults::policy")]
    row: String,
    /// The axis whose values are the runs of a row.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// The column of `scores` that is compared.
    #[serde(default = "defaults::reward")]
    column: String,
    /// What counts against equal means.
    #[serde(default)]
    alternative: Alternative,
    /// Tests that a paper reports, recomputed from its table.
    #[serde(default)]
    published: Vec<Published>,
    /// Whether the stage fails where a recomputed p differs from the published one.
    #[serde(default)]
    require: bool,
    /// Names shown instead of values of `row`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// The title.
    #[serde(default = "title")]
    title: String,
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

/// Two rows to compare.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pair {
    /// The first row, a value of the axis.
    a: String,
    /// The second row.
    b: String,
    /// What a small p would show.
    #[serde(default)]
    claim: Option<String>,
}

/// What counts against equal means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Alternative {
    /// The mean of `a` is greater.
    #[default]
    Greater,
    /// The mean of `a` is less.
    Less,
    /// The means differ.
    TwoSided,
}

impl From<Alternative> for stats::Alternative {
    fn from(alternative: Alternative) -> Self {
        match alternative {
            Alternative::Greater => Self::Greater,
            Alternative::Less => Self::Less,
            Alternative::TwoSided => Self::TwoSided,
        }
    }
}

fn title() -> String {
    "t-tests of the mean reward".to_owned()
}

impl Kind for TTest {
    const NAME: &'static str = "t_test";
    const VERSION: u32 = 5;
    const EXAMPLE: &'static str = r"{ pairs: [{ a: flowhf.late, b: ppo, claim: FlowHF beats PPO }],
      published: [{ name: FlowHF 17500 > PPO, n: 200, a: { mean: 1.024, std: 0.914 }, b: { mean: 0.872, std: 0.796 },
                    std: population, expected_p: 0.039 }] }";

    fn ports(&self) -> Vec<Port> {
        vec![scored::scores_port()]
    }

    fn outputs(&self) -> Vec<Output> {
        let mut outputs = vec![Output::new("table", TABLE)];
        if !self.published.is_empty() {
            outputs.push(Output::new("published", TABLE));
        }
        outputs
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.pairs.is_empty() {
            problems.push(
                Problem::new("pairs", "`pairs` is empty")
                    .hint("for example `pairs: [{ a: flowhf, b: ppo }]`"),
            );
        }
        if self.pairs.iter().any(|pair| pair.a == pair.b) {
            problems.push(Problem::new("pairs", "a pair compares a row with itself"));
        }
        check_bootstrap(self.level, self.replicates, &mut problems);
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        let named = self.pairs.iter().flat_map(|pair| [&pair.a, &pair.b]);
        let named: Vec<String> = named.cloned().collect();
        refuse_ungrouped(known, "scores", self.grouping(), false, ("pairs", &named));
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let rows = scored::load_scores(ctx, self.grouping())?;
        self.table(&rows)?.write(&ctx.output("table")?)?;
        if !self.published.is_empty() {
            let (table, differing) = recomputed(&self.published, self.alternative)?;
            for name in &differing {
                ctx.note(&format!(
                    "the recomputed p of `{name}` differs from the published one"
                ));
            }
            if self.require && !differing.is_empty() {
                return Err(StageError::new(format!(
                    "published tests that do not follow from their numbers:\n{}",
                    table.text()
                ))
                .hint("`require: false` only notes it"));
            }
            table.write(&ctx.output("published")?)?;
        }
        Ok(())
    }
}

/// One line of the table.
struct Line {
    pair: usize,
    runs: String,
    test: &'static str,
    n: (usize, usize),
    means: (f64, f64),
    interval: Option<Interval>,
    effect_size: Option<f64>,
    main: Option<stats::TTest>,
    student: Option<stats::TTest>,
}

/// An undefined test (no variance at all) is an empty cell, not a failed table.
fn defined<T>(result: Result<T, StatsError>) -> Result<Option<T>, StatsError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(StatsError::NoVariance { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

impl TTest {
    fn grouping(&self) -> Grouping<'_> {
        Grouping {
            row: std::slice::from_ref(&self.row),
            aggregate: &self.aggregate,
            names: &self.row_names,
        }
    }

    fn table(&self, rows: &[Row<Scored>]) -> Result<Table, StageError> {
        let mut lines = Vec::new();
        for (number, pair) in self.pairs.iter().enumerate() {
            let (a, b) = (row_named(rows, &pair.a)?, row_named(rows, &pair.b)?);
            let place = format!("{} and {}", pair.a, pair.b);
            lines.extend(
                self.lines(number, a, b)
                    .map_err(|error| within(&place, error))?,
            );
        }
        let adjusted = adjust(&lines)?;
        let name = |label: &str| {
            self.row_names
                .get(label)
                .map_or(label, String::as_str)
                .to_owned()
        };
        let mut table = Table::new(&self.title);
        if self.pairs.iter().any(|pair| pair.claim.is_some()) {
            table.text_column(
                "Claim",
                lines.iter().map(|line| self.pairs[line.pair].claim.clone()),
            );
        }
        table.text_column(
            "a",
            lines
                .iter()
                .map(|line| Some(name(&self.pairs[line.pair].a))),
        );
        table.text_column(
            "b",
            lines
                .iter()
                .map(|line| Some(name(&self.pairs[line.pair].b))),
        );
        table.text_column("Runs", lines.iter().map(|line| Some(line.runs.clone())));
        table.text_column("Test", lines.iter().map(|line| Some(line.test.to_owned())));
        let mut numbers = |heading: &str, decimals: usize, value: &dyn Fn(&Line) -> Option<f64>| {
            table.number_column(heading, decimals, lines.iter().map(value));
        };
        numbers("n a", 0, &|line| Some(line.n.0 as f64));
        numbers("n b", 0, &|line| Some(line.n.1 as f64));
        numbers("Mean a", 3, &|line| Some(line.means.0));
        numbers("Mean b", 3, &|line| Some(line.means.1));
        numbers("Difference", 3, &|line| Some(line.means.0 - line.means.1));
        let bounds = |line: &Line| line.interval.map(|found| (found.low, found.high)).unzip();
        table.interval_of_last(lines.iter().map(bounds));
        let mut numbers = |heading: &str, decimals: usize, value: &dyn Fn(&Line) -> Option<f64>| {
            table.number_column(heading, decimals, lines.iter().map(value));
        };
        numbers("Cohen's d", 2, &|line| line.effect_size);
        numbers("t", 3, &|line| line.main.map(|test| test.t));
        numbers("df", 1, &|line| {
            line.main.map(|test| test.degrees_of_freedom)
        });
        numbers("p", 5, &|line| line.main.map(|test| test.p));
        table.number_column("Holm p", 5, adjusted);
        let mut numbers = |heading: &str, decimals: usize, value: &dyn Fn(&Line) -> Option<f64>| {
            table.number_column(heading, decimals, lines.iter().map(value));
        };
        numbers("Student t", 3, &|line| line.student.map(|test| test.t));
        numbers("Student p", 5, &|line| line.student.map(|test| test.p));
        table.notes = self.notes();
        table.notes.extend(once(rows, &self.aggregate).1);
        Ok(table)
    }

    fn notes(&self) -> Vec<String> {
        let alternative = match self.alternative {
            Alternative::Greater => "One-sided: p is small where the mean of a is greater.",
            Alternative::Less => "One-sided: p is small where the mean of a is less.",
            Alternative::TwoSided => "Two-sided.",
        };
        vec![
            format!("{alternative} Holm p adjusts p for the {} pairs, among lines of equal `Runs`.", self.pairs.len()),
            format!(
                "[low, high]: {}% interval of the difference; over runs it is that of the paired t-test, else a \
                 bootstrap that resamples runs and, once for all of them, questions.",
                self.level * 100.0
            ),
            "`pooled` takes the completions of all runs as independent, as papers do, which they are not; `runs` \
             compares the means of the runs with each other."
                .to_owned(),
            "An empty cell: the test is undefined, because the values do not vary.".to_owned(),
        ]
    }

    /// The lines of one pair: pooled, over runs, and run by run.
    fn lines(
        &self,
        pair: usize,
        a: &Row<Scored>,
        b: &Row<Scored>,
    ) -> Result<Vec<Line>, StageError> {
        let runs_of = |row: &Row<Scored>| -> Result<Vec<(String, Vec<f64>)>, StageError> {
            row.runs
                .iter()
                .map(|run| Ok((run.label.clone(), run.content.column(&self.column)?)))
                .collect()
        };
        let (runs_a, runs_b) = (runs_of(a)?, runs_of(b)?);
        let several = runs_a.len() > 1 || runs_b.len() > 1;
        let pool = |runs: &[(String, Vec<f64>)], places: &[usize]| -> Vec<f64> {
            let runs = places.iter().map(|at| &runs[*at].1);
            runs.flat_map(|run| run.iter().copied()).collect()
        };
        let (all, all_b) = (Repeats::of_row(a).distinct(), Repeats::of_row(b).distinct());
        let name = if several {
            "pooled".to_owned()
        } else {
            Some(runs_a[0].0.clone())
                .filter(|label| !label.is_empty())
                .unwrap_or_else(|| "all".to_owned())
        };
        let (pool_a, pool_b) = (pool(&runs_a, &all), pool(&runs_b, &all_b));
        let mut pooled = self.line(pair, name, &pool_a, &pool_b)?;
        pooled.interval = Some(self.interval(a, &all, b, &all_b)?);
        let mut lines = vec![pooled];
        let common: Vec<(usize, usize)> = runs_a
            .iter()
            .enumerate()
            .filter_map(|(at, (label, _))| {
                Some((at, runs_b.iter().position(|(other, _)| other == label)?))
            })
            .collect();
        let repeats = Repeats::among(common.len(), |one, other| {
            let ((one_a, one_b), (other_a, other_b)) = (common[one], common[other]);
            are_one(&a.runs[one_a], &a.runs[other_a]) && are_one(&b.runs[one_b], &b.runs[other_b])
        });
        let distinct = repeats.distinct().into_iter();
        let common: Vec<(usize, usize)> = distinct.map(|at| common[at]).collect();
        if several && common.len() > 1 {
            lines.push(self.over_runs(pair, &runs_a, &runs_b, &common)?);
        }
        for (at_a, at_b) in common.iter().copied().filter(|_| several) {
            let mut line = self.line(
                pair,
                format!("{} {}", self.aggregate, runs_a[at_a].0),
                &runs_a[at_a].1,
                &runs_b[at_b].1,
            )?;
            line.interval = Some(self.interval(a, &[at_a], b, &[at_b])?);
            lines.push(line);
        }
        Ok(lines)
    }

    fn line(&self, pair: usize, runs: String, a: &[f64], b: &[f64]) -> Result<Line, StageError> {
        let (summary_a, summary_b) = (Summary::of(a)?, Summary::of(b)?);
        let test = |variances| {
            defined(two_sample_t_test(
                &summary_a,
                &summary_b,
                variances,
                self.alternative.into(),
            ))
        };
        Ok(Line {
            pair,
            runs,
            test: "Welch",
            n: (a.len(), b.len()),
            means: (summary_a.mean(), summary_b.mean()),
            interval: None,
            effect_size: defined(cohens_d(a, b, self.level))?.map(|d| d.estimate),
            main: test(Variances::Unequal)?,
            student: test(Variances::Equal)?,
        })
    }

    fn over_runs(
        &self,
        pair: usize,
        a: &[(String, Vec<f64>)],
        b: &[(String, Vec<f64>)],
        common: &[(usize, usize)],
    ) -> Result<Line, StageError> {
        let means_a = common
            .iter()
            .map(|(at, _)| stats::mean(&a[*at].1))
            .collect::<Result<Vec<f64>, _>>()?;
        let means_b = common
            .iter()
            .map(|(_, at)| stats::mean(&b[*at].1))
            .collect::<Result<Vec<f64>, _>>()?;
        let test = defined(paired_t_test(&means_a, &means_b, self.alternative.into()))?;
        Ok(Line {
            pair,
            runs: "runs".to_owned(),
            test: "paired",
            n: (common.len(), common.len()),
            means: (stats::mean(&means_a)?, stats::mean(&means_b)?),
            interval: test.map(|test| test.interval(self.level)).transpose()?,
            effect_size: None,
            main: test,
            student: None,
        })
    }

    /// The bootstrap interval of the difference between some runs of two rows.
    fn interval(
        &self,
        a: &Row<Scored>,
        runs_a: &[usize],
        b: &Row<Scored>,
        runs_b: &[usize],
    ) -> Result<Interval, StageError> {
        let mut questions = Questions::new();
        let mut measured =
            |row: &Row<Scored>, runs: &[usize]| -> Result<Vec<Measured>, StageError> {
                let runs = runs.iter().map(|at| &row.runs[*at].content);
                runs.map(|run| {
                    let keys = run.question_keys()?.into_iter();
                    let places = keys.map(|key| questions.place(key)).collect::<Vec<_>>();
                    Ok(Measured::mean_of(
                        &run.question_means(&self.column)?,
                        places,
                    ))
                })
                .collect()
            };
        let (measured_a, measured_b) = (measured(a, runs_a)?, measured(b, runs_b)?);
        let label = |row: &Row<Scored>, at: &usize| row.runs[*at].label.clone();
        let labels_a = runs_a.iter().map(|at| label(a, at));
        let paired = labels_a.eq(runs_b.iter().map(|at| label(b, at)));
        let name = format!("{} {runs_a:?} {} {runs_b:?}", a.label, b.label);
        let stream = Stream::new(self.seed, "t_test").child(&name);
        let bootstrap = Bootstrap::new(self.replicates, self.level, stream)?;
        let sizes = [runs_a.len(), runs_b.len(), questions.count()];
        let difference = |drawn_a: &[u32], drawn_b: &[u32], questions: &[u32]| {
            mean_of_drawn(drawn_a, |run| measured_a[run].at(questions))
                - mean_of_drawn(drawn_b, |run| measured_b[run].at(questions))
        };
        let replicates = if paired {
            bootstrap.crossed(&[sizes[0], sizes[2]], |drawn| {
                difference(&drawn[0], &drawn[0], &drawn[1])
            })
        } else {
            bootstrap.crossed(&sizes, |drawn| difference(&drawn[0], &drawn[1], &drawn[2]))
        };
        let once = sizes.map(|size| vec![1; size]);
        Ok(bootstrap.interval_of(difference(&once[0], &once[1], &once[2]), replicates)?)
    }
}

/// Holm's p among the lines of equal runs; undefined tests do not count.
fn adjust(lines: &[Line]) -> Result<Vec<Option<f64>>, StatsError> {
    let mut adjusted = vec![None; lines.len()];
    let mut families: BTreeMap<&str, Vec<(usize, f64)>> = BTreeMap::new();
    for (at, line) in lines.iter().enumerate() {
        if let Some(test) = line.main {
            families.entry(&line.runs).or_default().push((at, test.p));
        }
    }
    for family in families.values() {
        let p_values: Vec<f64> = family.iter().map(|(_, p)| *p).collect();
        for ((at, _), p) in family.iter().zip(holm(&p_values)?) {
            adjusted[*at] = Some(p);
        }
    }
    Ok(adjusted)
}

mod published;
#[cfg(test)]
mod tests;
