//! Charts of the points.

use indexmap::IndexMap;

use super::super::figure_params::off_log_axis;
use super::super::joined::{Point as Measured, by_point, values};
use super::{Frontier, Scale, file_name, panel_name};
use crate::engine::stage::StageError;
use crate::stats::figure::{Look, Point, PointChart, PointSeries};
use crate::stats::mean;

impl Frontier {
    /// Makes all charts, each with the name of its file.
    pub(super) fn charts(&self, points: &[Measured]) -> Vec<(String, PointChart)> {
        let by_series = || points.chunk_by(|a, b| a.series == b.series);
        let looks = self
            .figure
            .looks_by_name(points.iter().map(|point| &point.series));
        let mut charts = Vec::new();
        for (over, value) in self.panels() {
            let series = by_series().map(|of_series| PointSeries {
                label: of_series[0].series.clone(),
                look: looks[of_series[0].series.as_str()],
                points: drawn(of_series, over, value, true, self.scale_of(over)),
            });
            charts.push((
                panel_name(value, over),
                self.chart(over, value, series.collect()),
            ));
        }
        let Some(x) = self.x.as_ref().filter(|_| !self.together.is_empty()) else {
            return charts;
        };
        for (number, of_series) in by_series().enumerate() {
            let name = &of_series[0].series;
            let series = self
                .together
                .iter()
                .enumerate()
                .map(|(at, column)| PointSeries {
                    label: column.clone(),
                    look: Look(at),
                    points: drawn(of_series, &x.column, column, at == 0, x.scale),
                });
            let mut chart = self.chart(&x.column, "", series.collect());
            chart.title = format!("{}: {name}", self.title);
            chart.legend_title.clear();
            // Numbered: two names may make one file name.
            let file = format!("together-{}-{}", number + 1, file_name(name));
            charts.push((file, chart));
        }
        charts
    }

    /// The scale of the horizontal axis of a column.
    fn scale_of(&self, column: &str) -> Scale {
        let x = self.x.as_ref().filter(|x| x.column == column);
        x.map(|x| x.scale).unwrap_or_default()
    }

    /// Says what has no place on a logarithmic axis; that nothing has one is an error.
    pub(super) fn check_log_axis(&self, points: &[Measured]) -> Result<Option<String>, StageError> {
        let Some(x) = self.x.as_ref().filter(|x| x.scale == Scale::Log) else {
            return Ok(None);
        };
        let mut drawn = 0;
        let mut left_out = Vec::new();
        for runs in by_point(points) {
            match mean(&values(runs, &x.column)) {
                Ok(value) if value > 0.0 => drawn += 1,
                Ok(_) => left_out.push(runs[0].name.clone()),
                Err(_) => {}
            }
        }
        let hint = "`scale: sqrt` has a place for them";
        off_log_axis(&x.column, left_out, drawn, hint)
    }

    fn chart(&self, over: &str, value: &str, series: Vec<PointSeries>) -> PointChart {
        let scale = self.scale_of(over);
        PointChart {
            title: self.title.clone(),
            x_label: scale.label(over),
            x_scale: scale.into(),
            y_label: value.to_owned(),
            legend_title: self.series.clone(),
            bar_label: format!("least to greatest {}", self.aggregate),
            series,
            size: self.figure.size(),
            ..PointChart::default()
        }
    }
}

/// The points of a series: means over the runs, with their range as far as the scale shows it; what has no mean is not
/// drawn.
fn drawn(points: &[Measured], over: &str, value: &str, labelled: bool, scale: Scale) -> Vec<Point> {
    let place = |runs: &[Measured]| {
        let (x, y) = (values(runs, over), values(runs, value));
        Some(Point {
            at: (mean(&x).ok()?, mean(&y).ok()?),
            x_range: {
                let shown = x.iter().filter(|x| scale != Scale::Log || **x > 0.0);
                range(&shown.copied().collect::<Vec<f64>>())
            },
            y_range: range(&y),
            label: if labelled {
                runs[0].along.join(", ")
            } else {
                String::new()
            },
            ringed: false,
            apart: false,
        })
    };
    // A line for each value of the axes after the first.
    let mut lines: IndexMap<&[String], Vec<Point>> = IndexMap::new();
    for runs in by_point(points) {
        let line = lines
            .entry(runs[0].along.get(1..).unwrap_or_default())
            .or_default();
        line.extend(place(runs));
    }
    let lines = lines.into_values().flat_map(|line| {
        let points = line.into_iter().enumerate();
        points.map(|(number, point)| Point {
            apart: number == 0,
            ..point
        })
    });
    lines.collect()
}

fn range(values: &[f64]) -> Option<(f64, f64)> {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    (values.len() > 1).then_some((low, high))
}
