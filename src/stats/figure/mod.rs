//! Figures as SVG text: the same numbers give the same bytes.

mod axis;
mod canvas;
mod histogram_chart;
mod line_chart;
mod look;
mod pen;
mod point_chart;
mod size;

use thiserror::Error;

pub use axis::Scale;
pub use histogram_chart::{HistogramChart, Sample};
pub use line_chart::{LineChart, Series};
pub use look::Look;
pub use point_chart::{Point, PointChart, PointSeries};
pub use size::Size;

use super::StatsError;

/// Why a figure cannot be drawn.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum FigureError {
    /// A band with another number of points than its line.
    #[error("series `{series}` has {points} points, but its band has {band}")]
    BandLength {
        /// Label of the series.
        series: String,
        /// Number of points of the line.
        points: usize,
        /// Number of points of the band.
        band: usize,
    },
    /// The numbers cannot be summarised.
    #[error(transparent)]
    Stats(#[from] StatsError),
    /// The drawing library failed.
    #[error("the figure could not be drawn: {0}")]
    Drawing(String),
}
