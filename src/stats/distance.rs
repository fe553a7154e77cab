//! Diversity and novelty of texts by the cosine distance of their embeddings.

use rayon::prelude::*;

use super::error::{StatsError, check_lengths};

/// Rows of one matrix that are compared with as many rows of the other while both are in cache.
const BLOCK: usize = 32;

/// A row-major matrix of embeddings, one row a text, with the norm of each row.
#[derive(Debug, Clone)]
pub struct Embeddings<'a> {
    values: &'a [f32],
    dimension: usize,
    norms: Vec<f64>,
}

impl<'a> Embeddings<'a> {
    /// Takes `values` as rows of `dimension` finite numbers.
    pub fn new(values: &'a [f32], dimension: usize) -> Result<Self, StatsError> {
        if dimension == 0 || !values.len().is_multiple_of(dimension) {
            return Err(StatsError::OutOfRange {
                what: "the dimension of the embeddings",
                value: dimension as f64,
                expected: "a positive divisor of the number of values",
            });
        }
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(StatsError::NotFinite {
                what: "the embeddings",
                index,
                value: f64::from(values[index]),
            });
        }
        let norms = values
            .par_chunks(dimension)
            .map(|row| dot(row, row).sqrt())
            .collect();
        Ok(Self {
            values,
            dimension,
            norms,
        })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.norms.len()
    }

    fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dimension..(index + 1) * self.dimension]
    }

    /// `1 - cos` of row `i` here and row `j` there, 0 to 2. A zero vector (an empty text) is at distance
    /// 0 from another zero vector and at distance 1 from everything else.
    fn distance(&self, i: usize, there: &Self, j: usize) -> f64 {
        let (norm_i, norm_j) = (self.norms[i], there.norms[j]);
        if norm_i == 0.0 || norm_j == 0.0 {
            return if norm_i == norm_j { 0.0 } else { 1.0 };
        }
        let cosine = dot(self.row(i), there.row(j)) / (norm_i * norm_j);
        1.0 - cosine.clamp(-1.0, 1.0)
    }
}

/// The mean cosine distance over ordered pairs of different rows (the diversity of the `FlowHF` paper,
/// which takes the top-k texts by reward; with the samples of one prompt it is that of the GDPO paper).
pub fn diversity(texts: &Embeddings) -> Result<f64, StatsError> {
    let n = texts.rows();
    if n < 2 {
        return Err(StatsError::TooFew {
            what: "the diversity",
            needed: 2,
            found: n,
        });
    }
    // The distance is symmetric: each unordered pair is computed once. One sum a row, added in order.
    let rows: Vec<f64> = by_blocks(n, |rows| {
        let mut sums = vec![0.0; rows.len()];
        for start in (rows.start..n).step_by(BLOCK) {
            for (sum, i) in sums.iter_mut().zip(rows.clone()) {
                for j in start.max(i + 1)..(start + BLOCK).min(n) {
                    *sum += texts.distance(i, texts, j);
                }
            }
        }
        sums
    });
    Ok(rows.iter().sum::<f64>() / (n * (n - 1) / 2) as f64)
}

/// The mean over `texts` of the cosine distance to the nearest row of `reference` (the novelty of the
/// `FlowHF` paper, whose reference set are the completions trained on).
pub fn novelty(texts: &Embeddings, reference: &Embeddings) -> Result<f64, StatsError> {
    for (what, n) in [
        ("the novelty", texts.rows()),
        ("the reference set of the novelty", reference.rows()),
    ] {
        if n == 0 {
            return Err(StatsError::TooFew {
                what,
                needed: 1,
                found: 0,
            });
        }
    }
    let nearest = nearest_distances(texts, reference)?;
    Ok(nearest.iter().sum::<f64>() / texts.rows() as f64)
}

/// The cosine distance of each of `texts` to its nearest row of `reference`; infinite without rows there.
pub fn nearest_distances(
    texts: &Embeddings,
    reference: &Embeddings,
) -> Result<Vec<f64>, StatsError> {
    check_lengths("embedding dimensions", texts.dimension, reference.dimension)?;
    Ok(by_blocks(texts.rows(), |rows| {
        let mut least = vec![f64::INFINITY; rows.len()];
        for start in (0..reference.rows()).step_by(BLOCK) {
            for (least, i) in least.iter_mut().zip(rows.clone()) {
                for j in start..(start + BLOCK).min(reference.rows()) {
                    *least = least.min(texts.distance(i, reference, j));
                }
            }
        }
        least
    }))
}

/// The cosine distances of all unordered pairs of rows: those of row `j` with rows `0..j`, for each `j`.
pub fn pairwise_distances(texts: &Embeddings) -> Vec<f64> {
    (0..texts.rows())
        .into_par_iter()
        .flat_map_iter(|j| (0..j).map(move |i| texts.distance(i, texts, j)))
        .collect()
}

/// Computes one number for each of `n` rows, a block of rows a task; the order is kept.
fn by_blocks(n: usize, block: impl Fn(std::ops::Range<usize>) -> Vec<f64> + Sync) -> Vec<f64> {
    (0..n.div_ceil(BLOCK))
        .into_par_iter()
        .flat_map_iter(|index| block(index * BLOCK..((index + 1) * BLOCK).min(n)))
        .collect()
}

/// The scalar product in double precision, in a fixed order of eight interleaved sums that compilers
/// turn into vector instructions.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0f64; 8];
    let (chunks_a, chunks_b) = (a.chunks_exact(8), b.chunks_exact(8));
    let tail: f64 = chunks_a
        .remainder()
        .iter()
        .zip(chunks_b.remainder())
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum();
    for (a, b) in chunks_a.zip(chunks_b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    sums.iter().sum::<f64>() + tail
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    const M: [f32; 12] = [
        1.0, 2.0, 3.0, 0.5, -1.0, 2.0, 3.0, 0.0, 1.0, -1.0, 1.0, 0.25,
    ];
    const R: [f32; 9] = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 2.0, 2.0, -1.0];

    /// ```python
    /// from sklearn.metrics.pairwise import cosine_distances as d
    /// d(M).sum() / (4 * 3), d(M, R).min(1).mean()
    /// ```
    #[test]
    fn agrees_with_scikit_learn() {
        let (texts, reference) = (
            Embeddings::new(&M, 3).unwrap(),
            Embeddings::new(&R, 3).unwrap(),
        );
        assert!((diversity(&texts).unwrap() - 0.844_787_727_365_747_7).abs() < 1e-14);
        assert!((novelty(&texts, &reference).unwrap() - 0.295_585_341_151_392_7).abs() < 1e-14);
    }

    #[test]
    fn blocks_agree_with_the_definition() {
        let (n, m, dimension) = (101, 77, 19);
        let mut draws = Stream::new(1, "embeddings").at(0);
        let mut matrix = |rows: usize| -> Vec<f32> {
            (0..rows * dimension)
                .map(|_| draws.normal() as f32)
                .collect()
        };
        let (a, b) = (matrix(n), matrix(m));
        let (texts, reference) = (
            Embeddings::new(&a, dimension).unwrap(),
            Embeddings::new(&b, dimension).unwrap(),
        );
        let mut pairs = 0.0;
        let mut nearest = 0.0;
        for i in 0..n {
            pairs += (0..n)
                .filter(|j| *j != i)
                .map(|j| texts.distance(i, &texts, j))
                .sum::<f64>();
            nearest += (0..m)
                .map(|j| texts.distance(i, &reference, j))
                .fold(f64::INFINITY, f64::min);
        }
        assert!((diversity(&texts).unwrap() - pairs / (n * (n - 1)) as f64).abs() < 1e-13);
        assert!((novelty(&texts, &reference).unwrap() - nearest / n as f64).abs() < 1e-13);
        let one = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        assert_eq!(
            one.install(|| diversity(&texts).unwrap()),
            diversity(&texts).unwrap()
        );
    }

    #[test]
    fn equal_texts_have_no_diversity_and_empty_ones_are_far_from_others() {
        let equal = [0.3f32, 0.7, 0.3, 0.7, 0.6, 1.4];
        assert!(
            diversity(&Embeddings::new(&equal, 2).unwrap())
                .unwrap()
                .abs()
                < 1e-7
        );
        let empty = [0.0f32, 0.0, 0.0, 0.0, 1.0, 0.0];
        let empty = Embeddings::new(&empty, 2).unwrap();
        assert_eq!(diversity(&empty).unwrap(), 2.0 / 3.0);
        assert_eq!(novelty(&empty, &empty).unwrap(), 0.0);
    }

    #[test]
    fn senseless_input_is_an_error() {
        assert!(Embeddings::new(&M, 5).is_err());
        assert!(Embeddings::new(&M, 0).is_err());
        assert!(matches!(
            Embeddings::new(&[1.0, f32::NAN], 2),
            Err(StatsError::NotFinite { index: 1, .. })
        ));
        let one = Embeddings::new(&M[..3], 3).unwrap();
        assert!(diversity(&one).is_err());
        let none = Embeddings::new(&[], 3).unwrap();
        assert!(novelty(&one, &none).is_err());
        assert!(novelty(&none, &one).is_err());
        let other = Embeddings::new(&M, 4).unwrap();
        assert!(matches!(
            novelty(&one, &other),
            Err(StatsError::Lengths { .. })
        ));
    }
}
