//! Histograms of several samples over each other.

use super::{
    FigureError,
    axis::{Axis, Scale},
    canvas::{self, Labels, Legend},
    look::Look,
    size::Size,
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
    /// The samples.
    pub samples: Vec<Sample>,
    /// What the samples are, such as `policy`; may be empty.
    pub legend_title: String,
    /// Number of bins over the range of all samples.
    pub bins: usize,
    /// How large it is.
    pub size: Size,
}

/// The values of one histogram.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    /// Its name in the legend.
    pub label: String,
    /// Its colour and dashes.
    pub look: Look,
    /// The values. Those that are not finite are counted in the legend instead.
    pub values: Vec<f64>,
}

impl HistogramChart {
    /// Draws the chart.
    pub fn to_svg(&self) -> Result<String, FigureError> {
        let finite: Vec<Vec<f64>> = self
            .samples
            .iter()
            .map(|sample| {
                let shown = sample
                    .values
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
            let total = self.samples[shares.len()].values.len().max(1) as f64;
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
            legend: Legend {
                title: self.legend_title.clone(),
                series: self
                    .samples
                    .iter()
                    .zip(&finite)
                    .map(|(sample, finite)| {
                        let label = &sample.label;
                        let named = match sample.values.len() - finite.len() {
                            0 => label.clone(),
                            hidden => format!("{label} ({hidden} not finite)"),
                        };
                        (sample.look, named)
                    })
                    .collect(),
                ..Legend::default()
            },
        };
        canvas::draw(self.size, &labels, x_axis, y_axis, |plot| {
            let outlines = shares
                .iter()
                .map(|shares| plot.all(outline(&edges, shares)));
            let outlines: Vec<_> = outlines.collect();
            for (sample, outline) in self.samples.iter().zip(&outlines) {
                plot.pen.shade(sample.look, outline.clone(), 0.25)?;
            }
            for (sample, outline) in self.samples.iter().zip(&outlines) {
                plot.pen.line(sample.look, outline)?;
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
        let sample = |label: &str, look: usize, center: f64, spread: f64| {
            let stream = Stream::new(1, label);
            let values = (0..200)
                .map(|n| center + spread * stream.at(n).normal())
                .collect();
            Sample {
                label: label.to_owned(),
                look: Look(look),
                values,
            }
        };
        HistogramChart {
            title: "Reward of 200 completions".to_owned(),
            x_label: "reward".to_owned(),
            samples: vec![
                sample("baseline", 0, 0.7, 0.8),
                sample("flowhf", 5, 0.9, 0.5),
                sample("ppo", 10, 1.3, 0.4),
            ],
            legend_title: "policy".to_owned(),
            bins: 30,
            size: Size::default(),
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
        chart.samples[0].values[3] = f64::NAN;
        chart.samples[0].values[4] = f64::NEG_INFINITY;
        let svg = chart.to_svg().unwrap();
        assert!(svg.contains("baseline (2 not finite)") && !svg.contains("NaN"));
    }

    #[test]
    fn empty_samples_are_drawn_and_no_bins_are_an_error() {
        let mut chart = chart();
        chart.samples[1].values.clear();
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
