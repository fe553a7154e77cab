//! Histograms of several samples over each other.

use plotters::{element::Polygon, style::Color};

use super::{
    FigureError,
    axis::{Axis, Scale},
    canvas::{self, Labels},
};
use crate::stats::{Histogram, even_edges};

/// Overlaid histograms: the share of each sample's values in each bin, so that samples of different size
/// compare.
#[derive(Debug, Clone, PartialEq)]
pub struct HistogramChart {
    /// Printed above; may be empty.
    pub title: String,
    /// Name (and unit) of the values.
    pub x_label: String,
    /// The samples with their names. Values that are not finite are counted in the legend instead.
    pub samples: Vec<(String, Vec<f64>)>,
    /// Number of bins over the range of all samples.
    pub bins: usize,
}

impl HistogramChart {
    /// Draws the chart.
    pub fn to_svg(&self) -> Result<String, FigureError> {
        let finite: Vec<Vec<f64>> = self
            .samples
            .iter()
            .map(|(_, values)| {
                let shown = values
                    .iter()
                    .copied()
                    .filter(|value| Scale::Linear.shows(*value));
                shown.collect()
            })
            .collect();
        let all = finite.concat();
        let edges = if all.is_empty() {
            even_edges(&[0.0], self.bins)?
        } else {
            even_edges(&all, self.bins)?
        };
        let mut shares: Vec<Vec<f64>> = Vec::new();
        for values in &finite {
            let histogram = Histogram::count(values, &edges)?;
            // Of the whole sample, with the values that are not shown.
            let total = self.samples[shares.len()].1.len().max(1) as f64;
            shares.push(
                histogram
                    .counts
                    .iter()
                    .map(|count| *count as f64 / total)
                    .collect(),
            );
        }
        let x_axis = Axis::covering(Scale::Linear, edges.iter().copied(), 0.02);
        let tallest = shares.iter().flatten().copied().fold(0.0, f64::max);
        let y_axis = Axis::covering(Scale::Linear, [0.0, tallest * 1.05].into_iter(), 0.0);
        let labels = Labels {
            title: &self.title,
            x: &self.x_label,
            y: "share of values",
            series: self
                .samples
                .iter()
                .zip(&finite)
                .map(
                    |((label, values), finite)| match values.len() - finite.len() {
                        0 => label.clone(),
                        hidden => format!("{label} ({hidden} not finite)"),
                    },
                )
                .enumerate()
                .collect(),
            ring: "",
        };
        canvas::draw(&labels, x_axis, y_axis, |chart| {
            for (number, shares) in shares.iter().enumerate() {
                let shade = canvas::color(number).mix(0.25).filled();
                let bars = std::iter::once(Polygon::new(outline(&edges, shares), shade));
                chart.draw_series(bars).map_err(canvas::drawing)?;
            }
            for (number, shares) in shares.iter().enumerate() {
                canvas::draw_line(chart, number, outline(&edges, shares))?;
            }
            Ok(())
        })
    }
}

/// The steps over the bars, from the ground to the ground.
fn outline(edges: &[f64], shares: &[f64]) -> Vec<(f64, f64)> {
    let mut points = vec![(edges[0], 0.0)];
    for (edge, share) in edges.windows(2).zip(shares) {
        points.extend([(edge[0], *share), (edge[1], *share)]);
    }
    points.push((edges[edges.len() - 1], 0.0));
    points
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    fn chart() -> HistogramChart {
        let sample = |label: &str, center: f64, spread: f64| {
            let stream = Stream::new(1, label);
            let values = (0..200)
                .map(|n| center + spread * stream.at(n).normal())
                .collect();
            (label.to_owned(), values)
        };
        HistogramChart {
            title: "Reward of 200 completions".to_owned(),
            x_label: "reward".to_owned(),
            samples: vec![
                sample("baseline", 0.7, 0.8),
                sample("flowhf", 0.9, 0.5),
                sample("ppo", 1.3, 0.4),
            ],
            bins: 30,
        }
    }

    #[test]
    fn the_same_numbers_give_the_same_bytes() {
        let svg = chart().to_svg().unwrap();
        assert_eq!(svg, chart().to_svg().unwrap());
        assert!(svg.contains("baseline") && svg.contains("share of values"));
        assert!(svg.matches("<polygon").count() == 3);
    }

    #[test]
    fn values_that_are_not_finite_are_named() {
        let mut chart = chart();
        chart.samples[0].1[3] = f64::NAN;
        chart.samples[0].1[4] = f64::NEG_INFINITY;
        let svg = chart.to_svg().unwrap();
        assert!(svg.contains("baseline (2 not finite)") && !svg.contains("NaN"));
    }

    #[test]
    fn empty_samples_are_drawn_and_no_bins_are_an_error() {
        let mut chart = chart();
        chart.samples[1].1.clear();
        chart.to_svg().unwrap();
        chart.samples.clear();
        chart.to_svg().unwrap();
        chart.bins = 0;
        assert!(matches!(chart.to_svg(), Err(FigureError::Stats(_))));
    }

    #[test]
    fn outlines_begin_and_end_on_the_ground() {
        let points = outline(&[0.0, 1.0, 2.0], &[0.5, 0.25]);
        assert_eq!(
            points,
            [
                (0.0, 0.0),
                (0.0, 0.5),
                (1.0, 0.5),
                (1.0, 0.25),
                (2.0, 0.25),
                (2.0, 0.0)
            ]
        );
    }
}
