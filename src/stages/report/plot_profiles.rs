//! `plot_profiles`: which share of runs and questions reaches a reward.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bootstrap_params::check_bootstrap;
use super::figure_params::FigureParams;
use super::groups::{Grouping, Row, refuse_ungrouped, rows_named, within};
use super::questions::compare;
use super::repeats::once;
use super::resample::Questions;
use super::scored::{self, Scored};
use crate::artifacts::figure::{self, FIGURE};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::random::Stream;
use crate::stages::defaults;
use crate::stats::figure::{LineChart, Look, Series};
use crate::stats::{Bootstrap, even_edges};

/// The fewest runs whose profile has a band.
const RUNS_OF_BAND: usize = 5;

/// Draws performance profiles of several policies (Agarwal et al. 2021), as `figure.svg`.
///
/// Each run has for each question a value, the mean `column` of its completions. A line says which share of these values,
/// those of all runs of a row together, is at least tau. A mean hides where a policy gains: here one that is better
/// everywhere lies above the other, and one that gains at easy questions and loses at hard ones crosses it. A line at
/// one half is at the median. The band is a bootstrap interval at each tau, which resamples runs and, once for all of
/// them, questions; a row of fewer than five runs has none. The legend says how many runs there are.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlotProfiles {
    /// The axis whose values are the lines.
    #[serde(default = "defaults::policy")]
    row: String,
    /// The axis whose values are the runs of a row.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// The rows drawn, in this order; all if empty.
    #[serde(default)]
    rows: Vec<String>,
    /// The numeric column of `scores` that is compared with tau.
    #[serde(default = "defaults::reward")]
    column: String,
    /// In how many steps tau goes from the least to the greatest value.
    #[serde(default = "steps")]
    steps: usize,
    /// Names shown instead of values of `row`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// The title.
    #[serde(default = "title")]
    title: String,
    /// The name of the horizontal axis; if empty, that of the column and tau.
    #[serde(default)]
    x_label: String,
    /// Coverage of the bands.
    #[serde(default = "defaults::level")]
    level: f64,
    /// Bootstrap replicates.
    #[serde(default = "defaults::replicates")]
    replicates: usize,
    /// Seed of the bootstrap.
    #[serde(default)]
    seed: u64,
    /// Colours, size and words.
    #[serde(default)]
    figure: FigureParams,
}

fn steps() -> usize {
    100
}

fn title() -> String {
    "Performance profiles".to_owned()
}

/// A value of one run at one question.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cell {
    run: usize,
    /// The place of the question among those of the row.
    question: usize,
    value: f64,
}

/// The values of a row.
#[derive(Debug)]
struct Cells {
    label: String,
    name: String,
    runs: usize,
    questions: usize,
    values: Vec<Cell>,
}

impl Kind for PlotProfiles {
    const NAME: &'static str = "plot_profiles";
    const VERSION: u32 = 4;
    const EXAMPLE: &'static str = "{ rows: [sft, ppo, flowhf.late], column: exact_reward }";

    fn ports(&self) -> Vec<Port> {
        vec![scored::scores_port()]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("figure", FIGURE)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if !(2..=1000).contains(&self.steps) {
            problems.push(Problem::new("steps", "`steps` must be from 2 to 1000"));
        }
        check_bootstrap(self.level, self.replicates, &mut problems);
        self.figure.check(&mut problems);
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        let grouping = self.grouping();
        refuse_ungrouped(known, "scores", grouping, false, ("rows", &self.rows));
        scored::needs_column(known, (&self.row, &self.rows), "column", &self.column);
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let rows = scored::load_scores(ctx, self.grouping())?;
        let chosen = rows_named(&rows, &self.rows)?;
        let asked = compare(chosen, &self.aggregate, Scored::known_questions)?;
        for note in once(&rows, &self.aggregate).1.iter().chain(&asked.notes) {
            ctx.note(note);
        }
        let chart = self.chart(&rows)?;
        for series in chart.series.iter().filter(|series| series.band.is_none()) {
            ctx.note(&format!(
                "`{}` has no band: it takes {RUNS_OF_BAND} runs to show how runs differ",
                series.label
            ));
        }
        figure::write(&ctx.output("figure")?, "figure", &chart.to_svg()?)?;
        Ok(())
    }
}

impl PlotProfiles {
    fn grouping(&self) -> Grouping<'_> {
        Grouping {
            row: std::slice::from_ref(&self.row),
            aggregate: &self.aggregate,
            names: &self.row_names,
        }
    }

    fn chart(&self, rows: &[Row<Scored>]) -> Result<LineChart, StageError> {
        let looks = self.figure.looks_of(rows);
        let (rows, _) = once(rows, &self.aggregate);
        let chosen = rows_named(&rows, &self.rows)?;
        let cells = chosen
            .into_iter()
            .map(|row| self.cells(row))
            .collect::<Result<Vec<_>, _>>()?;
        let values = cells.iter().flat_map(|row| &row.values);
        let values: Vec<f64> = values.map(|cell| cell.value).collect();
        // One tau for all rows, so that their lines can be compared.
        let taus = even_edges(&values, self.steps)?;
        let series = cells
            .iter()
            .map(|row| self.series(row, &taus, looks[row.label.as_str()]));
        Ok(LineChart {
            title: self.title.clone(),
            x_label: if self.x_label.is_empty() {
                format!("tau ({} of a question)", self.column)
            } else {
                self.x_label.clone()
            },
            y_label: "share of runs and questions at tau or above".to_owned(),
            series: series.collect::<Result<_, _>>()?,
            legend_title: self.row.clone(),
            band_label: format!("{}% interval over runs and questions", 100.0 * self.level),
            size: self.figure.size(),
            ..LineChart::default()
        })
    }

    fn cells(&self, row: &Row<&Scored>) -> Result<Cells, StageError> {
        let mut questions = Questions::new();
        let mut values = Vec::new();
        for (number, run) in row.runs.iter().enumerate() {
            let place = row.describe(run, &self.aggregate);
            let means = run.content.question_means(&self.column);
            let means = means.map_err(|error| within(&place, error))?;
            for (key, value) in run.content.question_keys()?.into_iter().zip(means) {
                values.push(Cell {
                    run: number,
                    question: questions.place(key),
                    value,
                });
            }
        }
        Ok(Cells {
            label: row.label.clone(),
            name: row.name.clone(),
            runs: row.runs.len(),
            questions: questions.count(),
            values,
        })
    }

    fn series(&self, row: &Cells, taus: &[f64], look: Look) -> Result<Series, StageError> {
        // How many taus each value reaches.
        let reached: Vec<usize> = row
            .values
            .iter()
            .map(|cell| taus.partition_point(|tau| *tau <= cell.value))
            .collect();
        let shares = |weight: &dyn Fn(&Cell) -> u32| -> Vec<f64> {
            let mut ends = vec![0u64; taus.len() + 1];
            for (cell, reached) in row.values.iter().zip(&reached) {
                ends[*reached] += u64::from(weight(cell));
            }
            let total = ends.iter().sum::<u64>().max(1) as f64;
            let mut above = 0;
            let mut shares: Vec<f64> = (1..ends.len())
                .rev()
                .map(|end| {
                    above += ends[end];
                    above as f64 / total
                })
                .collect();
            shares.reverse();
            shares
        };
        let measured = shares(&|_| 1);
        let band = if row.runs < RUNS_OF_BAND {
            None
        } else {
            let stream = Stream::new(self.seed, "plot_profiles").child(&row.label);
            let bootstrap = Bootstrap::new(self.replicates, self.level, stream)?;
            let replicates = bootstrap.crossed(&[row.runs, row.questions], |drawn| {
                shares(&|cell| drawn[0][cell.run] * drawn[1][cell.question])
            });
            let at = |tau: usize| replicates.iter().map(|shares| shares[tau]).collect();
            let intervals = measured.iter().enumerate().map(|(tau, share)| {
                let interval = bootstrap.interval_of(*share, at(tau))?;
                Ok((interval.low, interval.high))
            });
            Some(intervals.collect::<Result<Vec<_>, StageError>>()?)
        };
        let runs = if row.runs == 1 { "run" } else { "runs" };
        Ok(Series {
            look,
            label: format!("{} ({} {runs})", row.name, row.runs),
            points: taus.iter().copied().zip(measured).collect(),
            band,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::context::Labels;
    use crate::stages::report::fixture::{rows, scored, with_rewards};
    use crate::stages::report::groups::tests::labels;
    use crate::stages::report::repeats::tests::repeat;

    fn kind(params: serde_json::Value) -> PlotProfiles {
        serde_json::from_value(params).unwrap()
    }

    fn run(policy: &str, seed: u64, rewards: &[f64]) -> (Labels, Scored) {
        let texts: Vec<String> = (0..rewards.len()).map(|at| at.to_string()).collect();
        let labels = labels(&[("policy", policy), ("seed", &seed.to_string())]);
        (labels, with_rewards(rewards, &texts))
    }

    #[test]
    fn a_line_is_the_share_of_values_at_tau_or_above() {
        let rows = rows(vec![
            run("ppo", 1, &[0.0, 1.0]),
            run("tb", 1, &[4.0, 4.0]),
            run("ppo", 2, &[2.0, 3.0]),
        ]);
        let kind = kind(json!({ "steps": 4 }));
        let chart = kind.chart(&rows).unwrap();
        assert_eq!(chart.series[0].label, "ppo (2 runs)");
        let shares = [(0.0, 1.0), (1.0, 0.75), (2.0, 0.5), (3.0, 0.25), (4.0, 0.0)];
        assert_eq!(chart.series[0].points, shares);
        assert_eq!(chart.series[1].label, "tb (1 run)");
        assert!(chart.series[1].points.iter().all(|point| point.1 == 1.0));
        assert!(chart.series.iter().all(|series| series.band.is_none()));
        chart.to_svg().unwrap();
        let one = self::kind(json!({ "rows": ["tb"], "steps": 4 }));
        assert_eq!(one.chart(&rows).unwrap().series.len(), 1);
    }

    #[test]
    fn bands_draw_runs_and_questions() {
        let band = |of: &dyn Fn(usize, usize) -> f64| {
            let runs = (1..=6).map(|seed| {
                let rewards: Vec<f64> = (0..40).map(|at| of(seed as usize, at)).collect();
                run("ppo", seed, &rewards)
            });
            let kind = kind(json!({ "steps": 2, "replicates": 2000 }));
            let chart = kind.chart(&rows(runs.collect())).unwrap();
            let series = &chart.series[0];
            // At half of the range, where one half of the values lies above.
            assert_eq!(series.points[1], (0.5, 0.5));
            let (low, high) = series.band.as_ref().unwrap()[1];
            assert!(low <= 0.5 && 0.5 <= high);
            high - low
        };
        let of_runs = band(&|run, _| (run % 2) as f64);
        let of_questions = band(&|_, question| (question % 2) as f64);
        let of_both = band(&|run, question| ((run + question) % 2) as f64);
        // 2 x 1.96 x sqrt(1 / 4 / n), of 6 runs and of 40 questions.
        assert!((of_runs - 0.8).abs() < 0.15, "{of_runs}");
        assert!((of_questions - 0.31).abs() < 0.05, "{of_questions}");
        assert!(of_both < of_questions, "{of_both}");
    }

    #[test]
    fn a_run_that_is_there_again_is_one_run() {
        let runs = (1..=5).map(|seed| run("ppo", seed, &[0.0, seed as f64]));
        let mut rows = rows(runs.collect());
        let chart = |rows: &[Row<Scored>]| kind(json!({})).chart(rows).unwrap();
        assert!(chart(&rows).series[0].band.is_some());
        repeat(&mut rows[0]);
        assert_eq!(chart(&rows).series[0].label, "ppo (1 run)");
        assert!(chart(&rows).series[0].band.is_none());
    }

    #[test]
    fn what_cannot_be_drawn_is_named() {
        let rows = rows(vec![scored("ppo", 1, 1.0, 9)]);
        let message = |params| match kind(params).chart(&rows) {
            Err(StageError::Failed { message, .. }) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            message(json!({ "rows": ["tb"] })),
            "no input is the row `tb`"
        );
        let found = message(json!({ "column": "exact" }));
        assert!(found.starts_with("ppo, seed 1: "), "{found}");
        let wrong = json!({ "steps": 1, "level": 2, "replicates": 1 });
        assert_eq!(kind(wrong).validate().len(), 3);
    }
}
