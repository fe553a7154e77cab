//! Line charts.

use plotters::{
    element::{Circle, Polygon},
    style::Color,
};

use super::{
    FigureError,
    axis::{Axis, Scale},
    canvas::{self, Labels},
};

/// One labelled line, with or without a shaded band.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Series {
    /// Its name in the legend.
    pub label: String,
    /// The points `(x, y)`, joined in this order. The line has a gap where a value is not finite (or not
    /// positive, on a logarithmic axis).
    pub points: Vec<(f64, f64)>,
    /// For each point the lower and upper end of the band: an interval, or a range over seeds.
    pub band: Option<Vec<(f64, f64)>>,
}

/// Lines over one pair of axes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LineChart {
    /// Printed above; may be empty.
    pub title: String,
    /// Name (and unit) of the horizontal axis.
    pub x_label: String,
    /// Name (and unit) of the vertical axis.
    pub y_label: String,
    /// Scale of the horizontal axis.
    pub x_scale: Scale,
    /// Scale of the vertical axis.
    pub y_scale: Scale,
    /// The lines.
    pub series: Vec<Series>,
}

impl LineChart {
    /// Draws the chart.
    pub fn to_svg(&self) -> Result<String, FigureError> {
        for series in &self.series {
            if let Some(band) = &series.band
                && band.len() != series.points.len()
            {
                return Err(FigureError::BandLength {
                    series: series.label.clone(),
                    points: series.points.len(),
                    band: band.len(),
                });
            }
        }
        let points = || self.series.iter().flat_map(|series| &series.points);
        let bands = || self.series.iter().flat_map(|series| &series.band).flatten();
        let x_axis = Axis::covering(self.x_scale, points().map(|point| point.0), 0.02);
        let heights = points()
            .map(|point| point.1)
            .chain(bands().flat_map(|ends| [ends.0, ends.1]));
        let y_axis = Axis::covering(self.y_scale, heights, 0.05);
        let labels = Labels {
            title: &self.title,
            x: &self.x_label,
            y: &self.y_label,
            series: self
                .series
                .iter()
                .map(|series| series.label.clone())
                .enumerate()
                .collect(),
            ring: "",
        };
        let (x_scale, y_scale) = (x_axis.scale(), y_axis.scale());
        canvas::draw(&labels, x_axis, y_axis, |chart| {
            for (number, series) in self.series.iter().enumerate() {
                let ends = series.band.iter().flatten();
                let band: Vec<_> = series.points.iter().zip(ends).collect();
                let shown = |((x, _), (low, high)): &(&(f64, f64), &(f64, f64))| {
                    x_scale.shows(*x) && y_scale.shows(*low) && y_scale.shows(*high)
                };
                for run in runs(&band, shown).filter(|run| run.len() > 1) {
                    let above = run.iter().map(|(point, ends)| (point.0, ends.1));
                    let below = run.iter().rev().map(|(point, ends)| (point.0, ends.0));
                    let outline: Vec<(f64, f64)> = above.chain(below).collect();
                    let shade = canvas::color(number).mix(0.2).filled();
                    chart
                        .draw_series(std::iter::once(Polygon::new(outline, shade)))
                        .map_err(canvas::drawing)?;
                }
            }
            // Lines above all bands.
            for (number, series) in self.series.iter().enumerate() {
                let shown = |point: &(f64, f64)| x_scale.shows(point.0) && y_scale.shows(point.1);
                for run in runs(&series.points, shown) {
                    if let [point] = run {
                        let dot =
                            Circle::new(*point, canvas::pixels(3), canvas::color(number).filled());
                        chart
                            .draw_series(std::iter::once(dot))
                            .map_err(canvas::drawing)?;
                    } else {
                        canvas::draw_line(chart, number, run.to_vec())?;
                    }
                }
            }
            Ok(())
        })
    }
}

/// The longest runs of neighbouring items that are shown.
fn runs<'a, T>(items: &'a [T], shown: impl Fn(&T) -> bool + 'a) -> impl Iterator<Item = &'a [T]> {
    items
        .split(move |item| !shown(item))
        .filter(|run| !run.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart() -> LineChart {
        let line = |label: &str, rise: f64, band: bool| {
            let points: Vec<(f64, f64)> = (0..60)
                .map(|step| f64::from(step) * 5.0)
                .map(|step| (step, 0.6 + rise * (1.0 - (-step / 80.0).exp())))
                .collect();
            Series {
                label: label.to_owned(),
                band: band.then(|| points.iter().map(|(_, y)| (y - 0.08, y + 0.1)).collect()),
                points,
            }
        };
        LineChart {
            title: "Reward during training".to_owned(),
            x_label: "step".to_owned(),
            y_label: "mean reward".to_owned(),
            series: vec![
                line("ppo", 0.65, true),
                line("flowhf", 0.3, true),
                line("tb & <fl>", 0.45, false),
            ],
            ..LineChart::default()
        }
    }

    fn lines(svg: &str) -> usize {
        svg.matches("<polyline").count()
    }

    #[test]
    fn the_same_numbers_give_the_same_bytes() {
        let svg = chart().to_svg().unwrap();
        assert_eq!(svg, chart().to_svg().unwrap());
        assert!(
            svg.starts_with("<svg width=\"720\" height=\"432\" viewBox=\"0 0 2880 1728\""),
            "{}",
            &svg[..120]
        );
        for text in [
            "Reward during training",
            "mean reward",
            "ppo",
            "tb &amp; &lt;fl&gt;",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg.matches("<polygon").count(), 2);
    }

    #[test]
    fn gaps_split_a_line() {
        let mut chart = chart();
        chart.series.truncate(1);
        let whole = lines(&chart.to_svg().unwrap());
        chart.series[0].points[20].1 = f64::NAN;
        let split = chart.to_svg().unwrap();
        assert_eq!(lines(&split), whole + 1);
        assert!(!split.contains("NaN"));
        chart.series[0].points[22].1 = f64::INFINITY;
        let dotted = chart.to_svg().unwrap();
        assert_eq!(
            (lines(&dotted), dotted.matches("<circle").count()),
            (whole + 1, 1)
        );
        chart.y_scale = Scale::Log;
        let whole = lines(&chart.to_svg().unwrap());
        chart.series[0].points[40].1 = -1.0;
        assert_eq!(lines(&chart.to_svg().unwrap()), whole + 1);
    }

    #[test]
    fn charts_without_data_are_drawn() {
        assert!(LineChart::default().to_svg().unwrap().ends_with("</svg>\n"));
        let mut chart = chart();
        for series in &mut chart.series {
            for point in &mut series.points {
                point.1 = f64::NAN;
            }
        }
        chart.to_svg().unwrap();
        chart.series[0].points.clear();
        assert!(matches!(
            chart.to_svg(),
            Err(FigureError::BandLength {
                points: 0,
                band: 60,
                ..
            })
        ));
    }
}
