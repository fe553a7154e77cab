//! `plot_metric`: a metric over an axis, such as a reward over learning rates.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::figure_params::{FigureParams, Scale, file_name, off_log_axis};
use super::joined::{Join, Point as Measured, by_point, tell_incomplete, values};
use crate::artifacts::figure::{self, FIGURE};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stages::defaults;
use crate::stats::figure::{Point, PointChart, PointSeries};
use crate::stats::{SampleMean, mean};

/// Draws metrics over an axis of numbers, such as a strength, a learning rate or a temperature, one SVG file for each
/// metric.
///
/// The numbers come from tables with a row for each run, such as the outputs `per_seed` of `metric_table`, `win_rate` and
/// `semantic_diversity`. A point is the mean over the runs of a series at a value of the axis; its bar is the interval of
/// Student's t over them, which one run does not have.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PlotMetric {
    /// The axis along the figure; its values are numbers.
    x: String,
    /// The columns drawn, a figure each.
    values: Vec<String>,
    /// How values of `x` are laid out.
    #[serde(default)]
    scale: Scale,
    /// The axis whose values are the lines.
    #[serde(default = "defaults::policy")]
    series: String,
    /// The axis whose values are the runs of a point.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// Coverage of the intervals.
    #[serde(default = "defaults::level")]
    level: f64,
    /// The title; may be empty.
    #[serde(default)]
    title: String,
    /// Colours, size and words.
    #[serde(default)]
    figure: FigureParams,
}

impl Kind for PlotMetric {
    const NAME: &'static str = "plot_metric";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = "{ x: lr, scale: log, values: [Mean, exact_reward] }";

    fn ports(&self) -> Vec<Port> {
        vec![Join::port()]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("figures", FIGURE)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let axes: BTreeSet<&String> = [&self.x, &self.series, &self.aggregate].into();
        if axes.len() < 3 {
            let text = "`x`, `series` and `aggregate` must be different axes";
            problems.push(Problem::new("x", text));
        }
        if self.values.is_empty() {
            let problem = Problem::new("values", "`values` must name at least one column");
            problems.push(problem.hint("such as `values: [Mean]`"));
        }
        let mut names = BTreeSet::new();
        for name in self.values.iter().map(|column| file_name(column)) {
            if !names.insert(name.clone()) {
                let text = format!("two figures would be `{name}.svg`");
                problems.push(Problem::new("values", text));
            }
        }
        if !(self.level > 0.0 && self.level < 1.0) {
            problems.push(Problem::new("level", "`level` must be between 0 and 1"));
        }
        self.figure.check(&mut problems);
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        self.join().check(known, &self.wanted());
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let points = self.join().points(&Join::read(ctx)?, &self.wanted())?;
        tell_incomplete(ctx, &points);
        if let Some(note) = self.check_log_axis(&points)? {
            ctx.note(&note);
        }
        let folder = ctx.output("figures")?;
        for value in &self.values {
            let chart = self.chart(&points, value)?;
            figure::write(&folder, &file_name(value), &chart.to_svg()?)?;
        }
        Ok(())
    }
}

impl PlotMetric {
    fn join(&self) -> Join<'_> {
        Join {
            series: &self.series,
            along: std::slice::from_ref(&self.x),
            param: "x",
            aggregate: &self.aggregate,
        }
    }

    fn wanted(&self) -> Vec<(&'static str, &str)> {
        let values = self.values.iter();
        values.map(|column| ("values", column.as_str())).collect()
    }

    /// Where a point stands.
    fn place(&self, point: &Measured) -> Result<f64, StageError> {
        let text = &point.along[0];
        let number = text.parse().ok().filter(|number: &f64| number.is_finite());
        number.ok_or_else(|| {
            let error = format!("`{}` of {} is no number: `{text}`", self.x, point.series);
            StageError::new(error).hint("`x` names an axis of numbers, such as `lr`")
        })
    }

    /// Says what has no place on a logarithmic axis; that nothing has one is an error.
    fn check_log_axis(&self, points: &[Measured]) -> Result<Option<String>, StageError> {
        if self.scale != Scale::Log {
            return Ok(None);
        }
        let mut drawn = 0;
        let mut left_out = Vec::new();
        for runs in by_point(points) {
            if self.place(&runs[0])? > 0.0 {
                drawn += 1;
            } else {
                left_out.push(runs[0].name.clone());
            }
        }
        let hint = "`scale: sqrt` has a place for them";
        off_log_axis(&self.x, left_out, drawn, hint)
    }

    fn chart(&self, points: &[Measured], value: &str) -> Result<PointChart, StageError> {
        let by_series = || points.chunk_by(|a, b| a.series == b.series);
        let looks = self
            .figure
            .looks_by_name(points.iter().map(|point| &point.series));
        let series = by_series().map(|of_series| {
            let name = &of_series[0].series;
            let drawn = by_point(of_series).filter_map(|runs| {
                let values = values(runs, value);
                let interval = SampleMean::of(&values).ok();
                let interval = interval.map(|known| known.interval(1.0 - self.level));
                // What has no value in any run is not drawn.
                let height = mean(&values).ok()?;
                Some(self.place(&runs[0]).map(|place| Point {
                    at: (place, height),
                    y_range: interval.map(|interval| (interval.low, interval.high)),
                    ..Point::default()
                }))
            });
            Ok(PointSeries {
                label: name.clone(),
                look: looks[name.as_str()],
                points: drawn.collect::<Result<_, StageError>>()?,
            })
        });
        Ok(PointChart {
            title: self.title.clone(),
            x_label: self.scale.label(&self.x),
            x_scale: self.scale.into(),
            y_label: value.to_owned(),
            legend_title: self.series.clone(),
            bar_label: format!("{}% interval over {}", 100.0 * self.level, self.aggregate),
            series: series.collect::<Result<_, StageError>>()?,
            size: self.figure.size(),
            ..PointChart::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::artifacts::table::Table;

    fn kind(params: serde_json::Value) -> PlotMetric {
        let kind: PlotMetric = serde_json::from_value(params).unwrap();
        assert_eq!(kind.validate(), []);
        kind
    }

    /// Two policies over learning rates, with two runs and one.
    fn points(kind: &PlotMetric) -> Result<Vec<Measured>, StageError> {
        let rows = [
            ("ppo", "1e-3", "1", 3.0),
            ("ppo", "1e-3", "2", 5.0),
            ("ppo", "1e-4", "1", 1.0),
            ("ppo", "1e-4", "2", 1.0),
            ("tb", "1e-4", "1", 2.0),
        ];
        let mut table = Table::new("runs");
        table.label_column("policy", rows.iter().map(|row| Some(row.0.to_owned())));
        table.label_column("lr", rows.iter().map(|row| Some(row.1.to_owned())));
        table.label_column("seed", rows.iter().map(|row| Some(row.2.to_owned())));
        table.number_column("Mean", 3, rows.iter().map(|row| Some(row.3)));
        kind.join()
            .points(&[("runs".to_owned(), table)], &kind.wanted())
    }

    #[test]
    fn points_are_means_with_the_interval_over_runs() {
        let kind = kind(json!({
            "x": "lr", "scale": "log", "values": ["Mean"], "figure": { "palette": ["tb", "ppo"] }
        }));
        let chart = kind.chart(&points(&kind).unwrap(), "Mean").unwrap();
        let ppo = &chart.series[0];
        let at: Vec<(f64, f64)> = ppo.points.iter().map(|point| point.at).collect();
        assert_eq!(at, [(1e-4, 1.0), (1e-3, 4.0)]);
        assert_eq!(ppo.points[0].y_range, Some((1.0, 1.0)));
        // One degree of freedom: 4 -+ 12.7062 x 1.
        let (low, high) = ppo.points[1].y_range.unwrap();
        assert!((low - (4.0 - 12.706_204_736)).abs() < 1e-6, "{low}");
        assert!((high - (4.0 + 12.706_204_736)).abs() < 1e-6, "{high}");
        let tb = &chart.series[1];
        assert_eq!((tb.points[0].y_range, tb.look < ppo.look), (None, true));
        assert!(chart.to_svg().unwrap().contains("95% interval over seed"));
    }

    #[test]
    fn what_is_no_axis_of_numbers_is_an_error() {
        let words = kind(json!({ "x": "seed", "aggregate": "lr", "values": ["Mean"] }));
        assert!(words.chart(&points(&words).unwrap(), "Mean").is_ok());
        let words = kind(json!({ "x": "policy", "series": "lr", "values": ["Mean"] }));
        let Err(StageError::Failed { message, .. }) = words.chart(&points(&words).unwrap(), "Mean")
        else {
            panic!("words have no place");
        };
        assert_eq!(message, "`policy` of 1e-3 is no number: `ppo`");
        let unknown = kind(json!({ "x": "lr", "values": ["Maen"] }));
        assert!(points(&unknown).is_err());
        for wrong in [
            json!({ "x": "seed", "values": ["Mean"] }),
            json!({ "x": "lr", "values": [] }),
            json!({ "x": "lr", "values": ["a.b", "a/b"] }),
            json!({ "x": "lr", "values": ["Mean"], "level": 1.0 }),
        ] {
            let kind: PlotMetric = serde_json::from_value(wrong).unwrap();
            assert_eq!(kind.validate().len(), 1);
        }
    }
}
