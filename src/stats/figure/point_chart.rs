//! Points with error bars.

use super::{
    FigureError,
    axis::{Axis, Scale},
    canvas::{self, Labels, Legend, words},
    look::Look,
    pen::{Place, Plot},
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
    /// Stands beside it, where it has room beside the labels of others; may be empty.
    pub label: String,
    /// Whether a ring marks it.
    pub ringed: bool,
    /// Whether a line begins here: none joins it to the point before it.
    pub apart: bool,
}

/// Points of one colour, joined by lines in this order.
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
                for line in shown.chunk_by(|_, next| !next.apart) {
                    let line = plot.all(line.iter().map(|point| point.at));
                    plot.pen.line(series.look, &line)?;
                }
                for point in shown {
                    draw_bars(plot, series.look, point)?;
                }
            }
            // Points above all lines.
            let mut places = LabelPlaces::new(self.size);
            for series in &self.series {
                for point in series.points.iter().filter(is_shown) {
                    let at = plot.at(point.at);
                    plot.pen.marker(series.look, at)?;
                    if point.ringed {
                        plot.pen.ring(at)?;
                    }
                    if let Some(place) = places.beside(at, &point.label) {
                        plot.pen.text(&point.label, place, 11)?;
                    }
                }
            }
            Ok(())
        })
    }
}

/// Where labels stand: beside their points and over no other label.
struct LabelPlaces {
    size: Size,
    /// Left, top, right and bottom of those that are taken.
    taken: Vec<[i32; 4]>,
}

impl LabelPlaces {
    fn new(size: Size) -> Self {
        Self {
            size,
            taken: Vec::new(),
        }
    }

    /// The upper left corner of the label of a point, above or below it, on the right or the left; `None` if no such place
    /// is free.
    fn beside(&mut self, at: Place, label: &str) -> Option<Place> {
        let wide = words(label, self.size) * 11 / 12;
        let high = self.size.pixels(12);
        let away = self.size.pixels(8);
        let (right, left) = (at.0 + away, at.0 - away - wide);
        let (above, below) = (at.1 - 2 * away, at.1 + away / 2);
        let corners = [(right, above), (right, below), (left, above), (left, below)];
        let free = corners.into_iter().find(|(x, y)| {
            let meets = |other: &[i32; 4]| {
                *x < other[2] && other[0] < x + wide && *y < other[3] && other[1] < y + high
            };
            !self.taken.iter().any(meets)
        })?;
        let (x, y) = free;
        self.taken.push([x, y, x + wide, y + high]);
        Some(free)
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
            apart: false,
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
    fn a_line_begins_anew_where_it_is_asked_to() {
        let mut chart = chart();
        chart.series.truncate(1);
        chart.series[0].points.push(Point {
            at: (0.4, 50.0),
            ..Point::default()
        });
        let lines = |chart: &PointChart| {
            let svg = chart.to_svg().unwrap();
            svg.matches("<polyline").count()
        };
        let joined = lines(&chart);
        chart.series[0].points[2].apart = true;
        assert_eq!(lines(&chart), joined + 1);
    }

    #[test]
    fn labels_stand_over_no_other_label() {
        let mut places = LabelPlaces::new(Size::default());
        let mut beside = || places.beside((400, 400), "0.1, 0.002");
        let found = [beside(), beside(), beside(), beside()].map(Option::unwrap);
        let distinct: std::collections::BTreeSet<_> = found.into_iter().collect();
        assert_eq!((distinct.len(), beside()), (4, None));
        assert!(places.beside((400, 800), "0.1, 0.002").is_some());
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
