//! Line charts.

use super::{
    FigureError,
    axis::{Axis, Scale},
    canvas::{self, Labels, Legend},
    look::Look,
    pen::Plot,
    size::Size,
};

/// How many markers a line has.
const MARKERS: usize = 8;

/// One labelled line, with or without a shaded band.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Series {
    /// Its name in the legend.
    pub label: String,
    /// Its colour, dashes and markers.
    pub look: Look,
    /// The points `(x, y)`, joined in this order. The line has a gap where a value is not finite; what a logarithmic axis
    /// has no place for is left out, counted in the legend, and the line goes straight on.
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
    /// What the lines are, such as `policy`; may be empty.
    pub legend_title: String,
    /// What a band is.
    pub band_label: String,
    /// How large it is.
    pub size: Size,
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
        let has_bands = bands().next().is_some();
        let series = self.series.iter();
        let labels = Labels {
            title: &self.title,
            x: &self.x_label,
            y: &self.y_label,
            legend: Legend {
                title: self.legend_title.clone(),
                series: series
                    .map(|series| (series.look, self.named(series)))
                    .collect(),
                markers: true,
                band: if has_bands {
                    self.band_label.clone()
                } else {
                    String::new()
                },
                ..Legend::default()
            },
        };
        canvas::draw(self.size, &labels, x_axis, y_axis, |plot| {
            for series in &self.series {
                self.draw_band(plot, series)?;
            }
            // Lines above all bands, and markers above all lines.
            for series in &self.series {
                for run in self.runs(series) {
                    plot.pen.line(series.look, &plot.all(run))?;
                }
            }
            for series in &self.series {
                for run in self.runs(series) {
                    let apart = run.len().div_ceil(MARKERS).max(1);
                    for point in plot.all(run.into_iter().step_by(apart)) {
                        plot.pen.marker(series.look, point)?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Whether the axes have a place for a point.
    fn shows(&self, (x, y): (f64, f64)) -> bool {
        self.x_scale.shows(x) && self.y_scale.shows(y)
    }

    /// Whether an axis leaves a point out for being 0 or less.
    fn leaves_out(&self, (x, y): (f64, f64)) -> bool {
        let is_off = |scale: Scale, value: f64| scale == Scale::Log && value < 1e-300;
        is_off(self.x_scale, x) || is_off(self.y_scale, y)
    }

    /// The name in the legend, with what is left out of the line.
    fn named(&self, series: &Series) -> String {
        let left_out = series.points.iter();
        match left_out.filter(|point| self.leaves_out(**point)).count() {
            0 => series.label.clone(),
            count => format!("{} ({count} not above 0)", series.label),
        }
    }

    /// The pieces of a line between its gaps.
    fn runs(&self, series: &Series) -> Vec<Vec<(f64, f64)>> {
        let points = series.points.iter().copied();
        let points: Vec<(f64, f64)> = points.filter(|point| !self.leaves_out(*point)).collect();
        runs(&points, |point| self.shows(*point))
            .map(<[_]>::to_vec)
            .collect()
    }

    /// The shaded area; what lies below a logarithmic axis ends at its foot.
    fn draw_band(&self, plot: &Plot, series: &Series) -> Result<(), FigureError> {
        let ends = series.band.iter().flatten();
        let band = series.points.iter().zip(ends);
        let band: Vec<(f64, f64, f64)> = band
            .map(|((x, _), (low, high))| {
                let low = if self.y_scale == Scale::Log && *low <= 0.0 {
                    plot.floor
                } else {
                    *low
                };
                (*x, low, *high)
            })
            .filter(|(x, _, high)| !self.leaves_out((*x, *high)))
            .collect();
        let shown =
            |(x, low, high): &(f64, f64, f64)| self.shows((*x, *low)) && self.shows((*x, *high));
        for run in runs(&band, shown).filter(|run| run.len() > 1) {
            let above = run.iter().map(|(x, _, high)| (*x, *high));
            let below = run.iter().rev().map(|(x, low, _)| (*x, *low));
            plot.pen
                .shade(series.look, plot.all(above.chain(below)), 0.2)?;
        }
        Ok(())
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
        let line = |label: &str, look: usize, rise: f64, band: bool| {
            let points: Vec<(f64, f64)> = (0..60)
                .map(|step| f64::from(step) * 5.0)
                .map(|step| (step, 0.6 + rise * (1.0 - (-step / 80.0).exp())))
                .collect();
            Series {
                label: label.to_owned(),
                look: Look(look),
                band: band.then(|| points.iter().map(|(_, y)| (y - 0.08, y + 0.1)).collect()),
                points,
            }
        };
        LineChart {
            title: "Reward during training".to_owned(),
            x_label: "step".to_owned(),
            y_label: "mean reward".to_owned(),
            legend_title: "policy".to_owned(),
            band_label: "least to greatest seed".to_owned(),
            series: vec![
                line("ppo", 0, 0.65, true),
                line("flowhf", 5, 0.3, true),
                line("tb & <fl>", 10, 0.45, false),
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
            svg.starts_with("<svg width=\"7.5in\" height=\"4.5in\" viewBox=\"0 0 2880 1728\""),
            "{}",
            &svg[..120]
        );
        for text in [
            "Reward during training",
            "mean reward",
            "policy",
            "least to greatest seed",
            "ppo",
            "tb &amp; &lt;fl&gt;",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg.matches("opacity=\"0.2\"").count(), 2);
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
        let markers = |svg: &str| svg.matches("<circle").count();
        let before = markers(&split);
        chart.series[0].points[22].1 = f64::INFINITY;
        let lone = chart.to_svg().unwrap();
        assert!(markers(&lone) > before, "a point alone has its marker");
    }

    #[test]
    fn a_line_goes_on_where_a_logarithmic_axis_has_no_place() {
        let mut chart = chart();
        chart.series.truncate(1);
        chart.series[0].label = "ppo".to_owned();
        chart.y_scale = Scale::Log;
        let before = chart.to_svg().unwrap();
        chart.series[0].points[40].1 = -1.0;
        if let Some(band) = &mut chart.series[0].band {
            band[40].0 = -2.0;
        }
        let after = chart.to_svg().unwrap();
        assert_eq!(lines(&after), lines(&before));
        // The band goes down to the foot of the axis and is not cut there.
        assert_eq!(after.matches("opacity=\"0.2\"").count(), 1);
        assert!(after.contains("ppo (1 not above 0)") && !before.contains("not above"));
    }

    #[test]
    fn dashes_tell_lines_apart_without_colours() {
        let mut chart = chart();
        let strokes = |chart: &LineChart| lines(&chart.to_svg().unwrap());
        chart.series.truncate(1);
        let whole = strokes(&chart);
        chart.series[0].look = Look(1);
        assert!(strokes(&chart) > whole + 20);
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
