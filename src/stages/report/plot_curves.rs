//! `plot_curves`: metrics of several trainings, step by step.

use std::collections::{BTreeMap, BTreeSet};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::figure_params::{FigureParams, file_name, off_log_axis};
use super::groups::{Grouping, Row, rows_named};
use super::trainings::load_curves;
use crate::artifacts::curve::{CURVE, Curve, Status};
use crate::artifacts::figure::{self, FIGURE};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::excerpt::listed;
use crate::stages::defaults;
use crate::stats::figure::{LineChart, Look, Scale as FigureScale, Series};

/// Draws metrics of several trainings step by step, or by the operations that they took, one SVG file for each metric.
///
/// A line is the mean over the runs of a training that have a value at that step, its band reaches from the least
/// to the greatest of them; it goes straight on where a step has none. The legend says which trainings diverged.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlotCurves {
    /// The metrics drawn, a figure each.
    metrics: Vec<MetricFigure>,
    /// The axis whose values are the lines; a training without it is named after its stage.
    #[serde(default = "defaults::policy")]
    row: String,
    /// The axis whose values are the runs of a line.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// The lines drawn, in this order; all if empty.
    #[serde(default)]
    rows: Vec<String>,
    /// Names shown instead of values of `row`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// Colours, size and words.
    #[serde(default)]
    figure: FigureParams,
}

/// One figure.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MetricFigure {
    /// The metric of the curves.
    metric: String,
    /// The metric taken of curves without it: `reward` of trainings that sample all they learn from is what
    /// `sampled_reward` is of others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fallback: Option<String>,
    /// The horizontal axis.
    #[serde(default, skip_serializing_if = "Against::is_step")]
    against: Against,
    /// The name of the vertical axis; that of the metric if empty.
    #[serde(default)]
    label: String,
    /// The title; may be empty.
    #[serde(default)]
    title: String,
    /// The scale of the vertical axis.
    #[serde(default)]
    scale: Scale,
}

/// What a metric is drawn against.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    /// The step.
    #[default]
    Step,
    /// Floating-point operations up to the step, in units of 1e9; each step is counted as an equal share of the training.
    Gflop,
}

impl Against {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    fn is_step(&self) -> bool {
        *self == Self::Step
    }
}

/// The scale of an axis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Equal differences are equally long.
    #[default]
    Linear,
    /// Equal ratios are equally long; what is not positive is left out, counted in the legend, and the line goes on.
    Log,
}

impl Kind for PlotCurves {
    const NAME: &'static str = "plot_curves";
    const VERSION: u32 = 6;
    const EXAMPLE: &'static str =
        "{ metrics: [{ metric: reward, label: mean reward }, { metric: loss, scale: log }] }";

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::many(
                "curves",
                &[CURVE],
                "training curves of every policy and seed",
            )
            .labelled(),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("figures", FIGURE)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.metrics.is_empty() {
            problems.push(
                Problem::new("metrics", "`metrics` is empty")
                    .hint("for example `metrics: [{ metric: loss }]`"),
            );
        }
        let mut names = BTreeSet::new();
        for wanted in &self.metrics {
            if !names.insert(file_name(&wanted.metric)) {
                problems.push(Problem::new(
                    "metrics",
                    format!("two figures would be `{}.svg`", file_name(&wanted.metric)),
                ));
            }
        }
        self.figure.check(&mut problems);
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let grouping = Grouping {
            row: std::slice::from_ref(&self.row),
            aggregate: &self.aggregate,
            names: &self.row_names,
        };
        let rows = load_curves(ctx, grouping)?;
        let folder = ctx.output("figures")?;
        for wanted in &self.metrics {
            let (chart, without) = self.chart(&rows, wanted)?;
            if let Some(note) = check_log_axis(&chart, &wanted.metric)? {
                ctx.note(&note);
            }
            figure::write(&folder, &file_name(&wanted.metric), &chart.to_svg()?)?;
            if !without.is_empty() {
                ctx.note(&format!(
                    "`{}` is no metric of {}",
                    wanted.metric,
                    listed(without)
                ));
            }
        }
        Ok(())
    }
}

impl PlotCurves {
    /// Returns the chart of a metric, and the rows that do not have it.
    fn chart(
        &self,
        rows: &[Row<Curve>],
        wanted: &MetricFigure,
    ) -> Result<(LineChart, Vec<String>), StageError> {
        let looks = self.figure.looks_of(rows);
        let chosen = rows_named(rows, &self.rows)?;
        let (mut series, mut without) = (Vec::new(), Vec::new());
        for row in chosen {
            match line(row, wanted, looks[row.label.as_str()]) {
                Some(line) => series.push(line),
                None => without.push(row.name.clone()),
            }
        }
        if series.is_empty() {
            let known: BTreeSet<&str> = rows
                .iter()
                .flat_map(|row| &row.runs)
                .flat_map(|run| run.content.metrics.keys().map(String::as_str))
                .collect();
            return Err(
                StageError::new(format!("no curve has the metric `{}`", wanted.metric))
                    .hint(format!("the metrics are: {}", listed(known))),
            );
        }
        let chart = LineChart {
            title: wanted.title.clone(),
            x_label: match wanted.against {
                Against::Step => "step",
                Against::Gflop => "GFLOP",
            }
            .to_owned(),
            y_label: if wanted.label.is_empty() {
                wanted.metric.clone()
            } else {
                wanted.label.clone()
            },
            y_scale: match wanted.scale {
                Scale::Linear => FigureScale::Linear,
                Scale::Log => FigureScale::Log,
            },
            series,
            legend_title: self.row.clone(),
            band_label: format!("least to greatest {}", self.aggregate),
            size: self.figure.size(),
            ..LineChart::default()
        };
        Ok((chart, without))
    }
}

/// Says what has no place on a logarithmic axis; that nothing has one is an error.
fn check_log_axis(chart: &LineChart, metric: &str) -> Result<Option<String>, StageError> {
    if !matches!(chart.y_scale, FigureScale::Log) {
        return Ok(None);
    }
    let has_place = |(_, value): &&(f64, f64)| *value > 0.0;
    let (mut drawn, mut gaps) = (0, Vec::new());
    for series in &chart.series {
        let (all, shown) = (series.points.len(), series.points.iter().filter(has_place));
        let shown = shown.count();
        drawn += shown;
        if shown < all {
            gaps.push(format!(
                "{} at {} of {all} steps",
                series.label,
                all - shown
            ));
        }
    }
    off_log_axis(metric, gaps, drawn, "`scale: linear` has a place for them")
}

/// The mean over runs with its range; `None` if no run has the metric.
fn line(row: &Row<Curve>, wanted: &MetricFigure, look: Look) -> Option<Series> {
    /// Where the runs are at a step, and what they have there.
    #[derive(Default)]
    struct At {
        places: Vec<f64>,
        values: Vec<f64>,
    }
    let mut steps: BTreeMap<u64, At> = BTreeMap::new();
    let mut known = false;
    for run in &row.runs {
        let curve = &run.content;
        let Some(values) = curve.metric(&wanted.metric, wanted.fallback.as_deref()) else {
            continue;
        };
        known = true;
        for (step, value) in curve.steps.iter().zip(values) {
            if let Some(value) = value {
                let at = steps.entry(*step).or_default();
                at.values.push(*value);
                at.places.push(match wanted.against {
                    Against::Step => *step as f64,
                    Against::Gflop => curve.flops_to(*step) / 1e9,
                });
            }
        }
    }
    if !known {
        return None;
    }
    let several = row.runs.len() > 1;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let points = steps.values();
    let points = points.map(|at| (mean(&at.places), mean(&at.values)));
    let points: Vec<(f64, f64)> = points.collect();
    let band = steps.values().map(|At { values, .. }| {
        (
            values.iter().copied().fold(f64::NAN, f64::min),
            values.iter().copied().fold(f64::NAN, f64::max),
        )
    });
    let band: Vec<(f64, f64)> = band.collect();
    let diverged = row
        .runs
        .iter()
        .filter(|run| run.content.summary.status == Status::Diverged)
        .count();
    let label = match diverged {
        0 => row.name.clone(),
        all if all == row.runs.len() => format!("{} (diverged)", row.name),
        some => format!("{} ({some} of {} diverged)", row.name, row.runs.len()),
    };
    Some(Series {
        label,
        look,
        points,
        band: several.then_some(band),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::report::fixture::{curve, rows};

    fn kind(params: serde_json::Value) -> PlotCurves {
        serde_json::from_value(params).unwrap()
    }

    #[test]
    fn a_line_is_the_mean_of_its_runs_within_their_range() {
        let mut short = curve("ppo", 3, Status::Diverged, 1.0);
        short.1.steps.truncate(2);
        short.1.metrics["loss"].truncate(2);
        let rows = rows(vec![
            curve("ppo", 1, Status::Completed, 1.0),
            short,
            curve("tb", 1, Status::Diverged, 1.0),
        ]);
        let kind = kind(serde_json::json!({ "metrics": [{ "metric": "loss" }] }));
        let (chart, without) = kind.chart(&rows, &kind.metrics[0]).unwrap();
        assert_eq!(without, Vec::<String>::new());
        let ppo = &chart.series[0];
        assert_eq!(ppo.label, "ppo (1 of 2 diverged)");
        assert_eq!(ppo.points, [(0.0, 6.0), (1.0, 4.0), (2.0, 1.0), (3.0, 0.0)]);
        assert_eq!(
            ppo.band.as_ref().unwrap()[..3],
            [(3.0, 9.0), (2.0, 6.0), (1.0, 1.0)]
        );
        assert_eq!(
            (chart.series[1].label.as_str(), &chart.series[1].band),
            ("tb (diverged)", &None)
        );
        chart.to_svg().unwrap();
    }

    #[test]
    fn steps_without_a_value_are_passed_over_and_unknown_metrics_errors() {
        let mut odd = curve("ppo", 1, Status::Completed, 1.0);
        odd.1.metrics["loss"][1] = None;
        let rows = rows(vec![odd, curve("tb", 1, Status::Completed, 1.0)]);
        let kind = kind(
            serde_json::json!({ "metrics": [{ "metric": "loss" }, { "metric": "kl" }], "rows": ["ppo"] }),
        );
        let (chart, _) = kind.chart(&rows, &kind.metrics[0]).unwrap();
        assert_eq!(chart.series.len(), 1);
        assert_eq!(chart.series[0].points, [(0.0, 3.0), (2.0, 1.0), (3.0, 0.0)]);
        let error = kind.chart(&rows, &kind.metrics[1]).unwrap_err();
        assert!(
            matches!(error, StageError::Failed { hint: Some(hint), .. } if hint == "the metrics are: loss")
        );
    }

    #[test]
    fn metrics_stand_against_operations_and_may_have_another_name() {
        let mut other = curve("tb", 1, Status::Completed, 8e9);
        let values = other.1.metrics.shift_remove("loss").unwrap();
        other.1.metrics.insert("sampled_loss".to_owned(), values);
        let rows = rows(vec![curve("ppo", 1, Status::Completed, 4e9), other]);
        let kind = kind(serde_json::json!({
            "metrics": [{ "metric": "sampled_loss", "fallback": "loss", "against": "gflop" }]
        }));
        let (chart, without) = kind.chart(&rows, &kind.metrics[0]).unwrap();
        assert_eq!(without, Vec::<String>::new());
        assert_eq!(chart.x_label, "GFLOP");
        let points = |row: usize| chart.series[row].points.clone();
        assert_eq!(points(0), [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0), (4.0, 0.0)]);
        assert_eq!(points(1)[3], (8.0, 0.0));
    }

    #[test]
    fn what_a_logarithmic_axis_cannot_show_is_said() {
        let wanted = serde_json::json!({ "metrics": [{ "metric": "loss", "scale": "log" }] });
        let kind = kind(wanted);
        let checked = |seed| {
            let rows = rows(vec![curve("ppo", seed, Status::Completed, 1.0)]);
            check_log_axis(&kind.chart(&rows, &kind.metrics[0]).unwrap().0, "loss")
        };
        let told = |label: &str| {
            format!("not above 0 and so without a place on the logarithmic axis of `loss`: {label}")
        };
        assert_eq!(checked(1).unwrap(), Some(told("ppo at 1 of 4 steps")));
        assert!(
            matches!(checked(0), Err(StageError::Failed { message, .. }) if message == told("ppo at 4 of 4 steps"))
        );
    }

    #[test]
    fn figures_have_names_of_their_own() {
        assert_eq!(file_name("../kl/policy"), "___kl_policy");
        let twice =
            kind(serde_json::json!({ "metrics": [{ "metric": "a.b" }, { "metric": "a/b" }] }));
        assert_eq!(twice.validate().len(), 1);
    }
}
