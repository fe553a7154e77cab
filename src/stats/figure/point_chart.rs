//! Points with error bars.

use super::{
    FigureError,
    axis::{Axis, Scale},
    canvas::{self, Labels, Legend},
    look::Look,
    pen::Plot,
    size::Size,
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
    /// Its colour, dashes and markers.
    pub look: Look,
    /// The points; those that are not finite are left out.
    pub points: Vec<Point>,
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
    /// What the series are, such as `policy`; may be empty.
    pub legend_title: String,
    /// What an error bar is.
    pub bar_label: String,
    /// What a ring means.
    pub ring_label: String,
    /// The points.
    pub series: Vec<PointSeries>,
    /// How large it is.
    pub size: Size,
}

impl PointChart {
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
        let if_any = |label: &String, has: &dyn Fn(&Point) -> bool| {
            let label = points().any(has).then(|| label.clone());
            label.unwrap_or_default()
        };
        let series = self.series.iter();
        let labels = Labels {
            title: &self.title,
            x: &self.x_label,
            y: &self.y_label,
            legend: Legend {
                title: self.legend_title.clone(),
                series: series
                    .map(|series| (series.look, series.label.clone()))
                    .collect(),
                markers: true,
                bar: if_any(&self.bar_label, &|point| {
                    point.x_range.or(point.y_range).is_some()
                }),
                ring: if_any(&self.ring_label, &|point| point.ringed),
                ..Legend::default()
            },
        };
        canvas::draw(self.size, &labels, x_axis, y_axis, |plot| {
            for series in &self.series {
                let shown: Vec<&Point> = series.points.iter().filter(is_shown).collect();
                let line = plot.all(shown.iter().map(|point| point.at));
                plot.pen.line(series.look, &line)?;
                for point in shown {
                    draw_bars(plot, series.look, point)?;
                }
            }
            // Points above all lines.
            for series in &self.series {
                for point in series.points.iter().filter(is_shown) {
                    let at = plot.at(point.at);
                    plot.pen.marker(series.look, at)?;
                    if point.ringed {
                        plot.pen.ring(at)?;
                    }
                    let beside = self.size.pixels(8);
                    plot.pen
                        .text(&point.label, (at.0 + beside, at.1 - 2 * beside), 11)?;
                }
            }
            Ok(())
        })
    }
}

fn draw_bars(plot: &Plot, look: Look, point: &Point) -> Result<(), FigureError> {
    let (x, y) = point.at;
    let bars = [
        point.x_range.map(|(low, high)| [(low, y), (high, y)]),
        point.y_range.map(|(low, high)| [(x, low), (x, high)]),
    ];
    for ends in bars.into_iter().flatten() {
        plot.pen.thin_line(look, ends.map(|end| plot.at(end)))?;
    }
    Ok(())
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
            legend_title: "policy".to_owned(),
            bar_label: "least to greatest seed".to_owned(),
            ring_label: "Pareto-optimal".to_owned(),
            x_scale: Scale::Linear,
            series: vec![
                PointSeries {
                    label: "DPO".to_owned(),
                    look: Look(0),
                    points: vec![point(0.2, 60.0, "0.7", true), point(0.35, 55.0, "1", false)],
                },
                PointSeries {
                    label: "GDPO & <tb>".to_owned(),
                    look: Look(1),
                    points: vec![point(0.5, 58.0, "0.7", false), point(0.69, 59.0, "1", true)],
                },
                PointSeries {
                    label: "sft".to_owned(),
                    look: Look(2),
                    points: vec![Point {
                        at: (0.6, 40.0),
                        ..Point::default()
                    }],
                },
            ],
            size: Size::default(),
        }
    }

    #[test]
    fn the_same_numbers_give_the_same_bytes() {
        let svg = chart().to_svg().unwrap();
        assert_eq!(svg, chart().to_svg().unwrap());
        for text in [
            "policy",
            "Pareto-optimal",
            "GDPO &amp; &lt;tb&gt;",
            "win rate (%)",
            "0.7",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        // Two points and two rings, each with one in the legend; the other points have other markers.
        assert_eq!(svg.matches("<circle").count(), 6);
    }

    #[test]
    fn what_bars_are_is_said_where_there_are_any() {
        let mut chart = chart();
        assert!(chart.to_svg().unwrap().contains("least to greatest seed"));
        for point in chart
            .series
            .iter_mut()
            .flat_map(|series| &mut series.points)
        {
            (point.x_range, point.y_range) = (None, None);
        }
        assert!(!chart.to_svg().unwrap().contains("least to greatest"));
    }

    #[test]
    fn points_that_cannot_be_shown_are_left_out() {
        let mut chart = chart();
        let circles = |chart: &PointChart| chart.to_svg().unwrap().matches("<circle").count();
        chart.series[0].points[0].at.1 = f64::NAN;
        assert_eq!(circles(&chart), 4);
        assert!(!chart.to_svg().unwrap().contains("NaN"));
        chart.series.clear();
        assert_eq!(circles(&chart), 0);
        assert!(!chart.to_svg().unwrap().contains("Pareto"));
    }
}
