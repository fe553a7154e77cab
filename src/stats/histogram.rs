//! Histograms.

use super::error::{StatsError, check};

/// Counts of values between edges.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// The ascending edges of the bins, one more than there are bins.
    pub edges: Vec<f64>,
    /// How many values fell into each bin: `[edge, next edge)`, the last bin with its right edge.
    pub counts: Vec<usize>,
    /// Values below the first edge.
    pub below: usize,
    /// Values above the last edge.
    pub above: usize,
}

impl Histogram {
    /// Counts finite `values` between `edges` (at least two, strictly ascending).
    pub fn count(values: &[f64], edges: &[f64]) -> Result<Self, StatsError> {
        check("the histogram", values, 0)?;
        check("the edges of a histogram", edges, 2)?;
        if let Some(pair) = edges.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(StatsError::OutOfRange {
                what: "an edge of a histogram",
                value: pair[1],
                expected: "a number above the edge before",
            });
        }
        let bins = edges.len() - 1;
        let mut histogram = Self {
            edges: edges.to_vec(),
            counts: vec![0; bins],
            below: 0,
            above: 0,
        };
        for value in values {
            match edges.partition_point(|edge| edge <= value) {
                0 => histogram.below += 1,
                place if place <= bins => histogram.counts[place - 1] += 1,
                _ if *value == edges[bins] => histogram.counts[bins - 1] += 1,
                _ => histogram.above += 1,
            }
        }
        Ok(histogram)
    }
}

/// The edges of `bins` bins of equal width from the least to the greatest of `values`; equal values get
/// one unit of room.
pub fn even_edges(values: &[f64], bins: usize) -> Result<Vec<f64>, StatsError> {
    check("the edges of a histogram", values, 1)?;
    if bins == 0 {
        return Err(StatsError::OutOfRange {
            what: "the number of bins",
            value: 0.0,
            expected: "at least 1",
        });
    }
    let mut low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let mut high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if low == high {
        (low, high) = (low - 0.5, high + 0.5);
    }
    let mut edges: Vec<f64> = (0..bins)
        .map(|bin| low + (high - low) * (bin as f64 / bins as f64))
        .collect();
    edges.push(high);
    Ok(edges)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// np.histogram([0, .1, .5, .99, 1.0, 1.5, -.2, .25], bins=[0, .25, .5, .75, 1.0])
    /// ```
    #[test]
    fn agrees_with_numpy() {
        let values = [0.0, 0.1, 0.5, 0.99, 1.0, 1.5, -0.2, 0.25];
        let found = Histogram::count(&values, &[0.0, 0.25, 0.5, 0.75, 1.0]).unwrap();
        assert_eq!(found.counts, [2, 1, 1, 2]);
        assert_eq!((found.below, found.above), (1, 1));
    }

    #[test]
    fn even_edges_hold_every_value() {
        let values = [0.3, -1.7, 2.9, 0.1];
        let edges = even_edges(&values, 7).unwrap();
        assert_eq!((edges.len(), edges[0], edges[7]), (8, -1.7, 2.9));
        let found = Histogram::count(&values, &edges).unwrap();
        assert_eq!(found.counts.iter().sum::<usize>(), 4);
        assert_eq!(even_edges(&[2.0], 2).unwrap(), [1.5, 2.0, 2.5]);
    }

    #[test]
    fn edges_ascend_and_values_are_finite() {
        assert!(Histogram::count(&[1.0], &[0.0, 0.0]).is_err());
        assert!(Histogram::count(&[1.0], &[0.0]).is_err());
        assert!(Histogram::count(&[f64::NAN], &[0.0, 1.0]).is_err());
        assert!(even_edges(&[], 3).is_err());
        assert!(even_edges(&[1.0], 0).is_err());
    }
}
