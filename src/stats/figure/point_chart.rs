//! Points with error bars.

use plotters::{
    element::{Circle, EmptyElement, PathElement, Text},
    style::Color,
};

use super::{
    FigureError,
    axis::{Axis, Scale},
    canvas::{self, Labels},
};

/// A point with its error bars.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Point {
    /// The place.
    pub at: (f64, f64),
    /// The ends of the horizontal bar.
    pub x_range: Option<(f64, f64)>,
    /// The ends of the vertical bar.
    pub y_range: Option<(f64, f64)>,
    /// Stands beside it; may be empty.
    pub label: String,
    /// Whether a ring marks it.
    pub ringed: bool,
}

/// Points of one colour, joined by a line in this order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PointSeries {
    /// Its name in the legend.
    pub label: String,
    /// The points; those that are not finite are left out.
    pub points: Vec<Point>,
    /// Whether its line is dashed, whatever its colour.
    pub dashed: bool,
}

/// Points over one pair of axes, the vertical one linear.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PointChart {
    /// Printed above; may be empty.
    pub title: String,
    /// Name (and unit) of the horizontal axis.
    pub x_label: String,
    /// Scale of the horizontal axis.
    pub x_scale: Scale,
    /// Name (and unit) of the vertical axis.
    pub y_label: String,
    /// What a ring means, for the legend.
    pub ring_label: String,
    /// The points.
    pub series: Vec<PointSeries>,
}

impl PointChart {
    /// Returns the series, each with the number that gives its look.
    fn numbered(&self) -> impl Iterator<Item = (usize, &PointSeries)> {
        self.series.iter().enumerate().map(|(number, series)| {
            let number = if series.dashed {
                canvas::dashed(number)
            } else {
                number
            };
            (number, series)
        })
    }

    /// Draws the chart.
    pub fn to_svg(&self) -> Result<String, FigureError> {
        let is_shown =
            |point: &&Point| self.x_scale.shows(point.at.0) && Scale::Linear.shows(point.at.1);
        let points = || {
            let all = self.series.iter().flat_map(|series| &series.points);
            all.filter(is_shown)
        };
        let reach = |at: f64, range: Option<(f64, f64)>| {
            let (low, high) = range.unwrap_or((at, at));
            [at, low, high]
        };
        let x_values = points().flat_map(|point| reach(point.at.0, point.x_range));
        let y_values = points().flat_map(|point| reach(point.at.1, point.y_range));
        let x_axis = Axis::covering(self.x_scale, x_values, 0.08);
        let y_axis = Axis::covering(Scale::Linear, y_values, 0.08);
        let has_rings = points().any(|point| point.ringed);
        let labels = Labels {
            title: &self.title,
            x: &self.x_label,
            y: &self.y_label,
            series: self
                .numbered()
                .map(|(number, series)| (number, series.label.clone()))
                .collect(),
            ring: if has_rings { &self.ring_label } else { "" },
        };
        canvas::draw(&labels, x_axis, y_axis, |chart| {
            for (number, series) in self.numbered() {
                let line: Vec<(f64, f64)> = series
                    .points
                    .iter()
                    .filter(is_shown)
                    .map(|point| point.at)
                    .collect();
                if line.len() > 1 {
                    canvas::draw_line(chart, number, line)?;
                }
                let thin = canvas::color(number).stroke_width(4);
                for point in series.points.iter().filter(is_shown) {
                    let (x, y) = point.at;
                    let bars = [
                        point.x_range.map(|(low, high)| [(low, y), (high, y)]),
                        point.y_range.map(|(low, high)| [(x, low), (x, high)]),
                    ];
                    let bars = bars.into_iter().flatten();
                    let bars = bars.map(|ends| PathElement::new(ends.to_vec(), thin));
                    chart.draw_series(bars).map_err(canvas::drawing)?;
                }
            }
            // Points above all lines.
            for (number, series) in self.numbered() {
                for point in series.points.iter().filter(is_shown) {
                    let dot = canvas::color(number).filled();
                    let dot = Circle::new(point.at, canvas::pixels(4), dot);
                    chart
                        .draw_series(std::iter::once(dot))
                        .map_err(canvas::drawing)?;
                    if point.ringed {
                        let ring = Circle::new(point.at, canvas::pixels(7), canvas::ring_style());
                        chart
                            .draw_series(std::iter::once(ring))
                            .map_err(canvas::drawing)?;
                    }
                    let label = canvas::printable(&point.label);
                    if !label.is_empty() {
                        let place = (canvas::pixels(8), -canvas::pixels(16));
                        let text =
                            EmptyElement::at(point.at) + Text::new(label, place, canvas::font(11));
                        chart
                            .draw_series(std::iter::once(text))
                            .map_err(canvas::drawing)?;
                    }
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> PointChart {
        let point = |x: f64, y: f64, label: &str, ringed: bool| Point {
            at: (x, y),
            x_range: Some((x - 0.02, x + 0.03)),
            y_range: Some((y - 2.0, y + 1.0)),
            label: label.to_owned(),
            ringed,
        };
        PointChart {
            title: "Quality and diversity".to_owned(),
            x_label: "semantic diversity".to_owned(),
            y_label: "win rate (%)".to_owned(),
            ring_label: "Pareto-optimal".to_owned(),
            x_scale: Scale::Linear,
            series: vec![
                PointSeries {
                    label: "DPO".to_owned(),
                    points: vec![point(0.2, 60.0, "0.7", true), point(0.35, 55.0, "1", false)],
                    ..PointSeries::default()
                },
                PointSeries {
                    label: "GDPO & <tb>".to_owned(),
                    points: vec![point(0.5, 58.0, "0.7", false), point(0.69, 59.0, "1", true)],
                    ..PointSeries::default()
                },
                PointSeries {
                    label: "sft".to_owned(),
                    points: vec![Point {
                        at: (0.6, 40.0),
                        ..Point::default()
                    }],
                    ..PointSeries::default()
                },
            ],
        }
    }

    #[test]
    fn the_same_numbers_give_the_same_bytes() {
        let svg = chart().to_svg().unwrap();
        assert_eq!(svg, chart().to_svg().unwrap());
        for text in [
            "Pareto-optimal",
            "GDPO &amp; &lt;tb&gt;",
            "win rate (%)",
            "0.7",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        // Five points, two rings and the ring of the legend.
        assert_eq!(svg.matches("<circle").count(), 8);
    }

    #[test]
    fn a_dashed_line_is_of_several_strokes_and_named_so() {
        let mut chart = chart();
        let strokes = |chart: &PointChart| chart.to_svg().unwrap().matches("<polyline").count();
        let whole = strokes(&chart);
        chart.series[1].dashed = true;
        // In the legend and between two points.
        assert!(strokes(&chart) > whole + 4);
    }

    #[test]
    fn points_that_cannot_be_shown_are_left_out() {
        let mut chart = chart();
        let circles = |chart: &PointChart| chart.to_svg().unwrap().matches("<circle").count();
        chart.series[0].points[0].at.1 = f64::NAN;
        assert_eq!(circles(&chart), 6);
        assert!(!chart.to_svg().unwrap().contains("NaN"));
        chart.series.clear();
        assert_eq!(circles(&chart), 0);
        assert!(!chart.to_svg().unwrap().contains("Pareto"));
    }
}
