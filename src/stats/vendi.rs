//! The Vendi score: an effective number of different texts.

use super::{
    distance::{Embeddings, pairwise_distances},
    error::StatsError,
};

/// Sweeps of Jacobi's method; it converges quadratically and takes about eight.
const MOST_SWEEPS: usize = 60;

/// The Vendi score (Friedman and Dieng 2023): `exp(-sum_i w_i ln w_i)` over the eigenvalues `w` of `K / n`, where `K`
/// holds the cosines of the `n` texts.
///
/// It is 1 if all texts are the same and `n` if all are orthogonal. A zero vector has cosine 1 with another one and 0
/// with everything else.
pub fn vendi_score(texts: &Embeddings) -> Result<f64, StatsError> {
    let n = texts.rows();
    if n == 0 {
        return Err(StatsError::TooFew {
            what: "the Vendi score",
            needed: 1,
            found: 0,
        });
    }
    let distances = pairwise_distances(texts);
    let mut kernel = vec![0.0; n * n];
    for i in 0..n {
        kernel[i * n + i] = 1.0 / n as f64;
        for j in 0..i {
            let cosine = 1.0 - distances[i * (i - 1) / 2 + j];
            kernel[i * n + j] = cosine / n as f64;
            kernel[j * n + i] = cosine / n as f64;
        }
    }
    let entropy: f64 = eigenvalues(kernel, n)
        .into_iter()
        // What is 0 in exact numbers may be a little less.
        .filter(|value| *value > 0.0)
        .map(|value| -value * libm::log(value))
        .sum();
    Ok(libm::exp(entropy))
}

/// The eigenvalues of a symmetric matrix, by Jacobi's rotations, row by row (Golub and Van Loan, section 8.5).
fn eigenvalues(mut a: Vec<f64>, n: usize) -> Vec<f64> {
    for _ in 0..MOST_SWEEPS {
        let off: f64 = (0..n)
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| a[i * n + j].powi(2))
            .sum();
        let on: f64 = (0..n).map(|i| a[i * n + i].powi(2)).sum();
        if off <= f64::EPSILON.powi(2) * on {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut a, n, p, q);
            }
        }
    }
    (0..n).map(|i| a[i * n + i]).collect()
}

/// Makes the entry (p, q) zero.
fn rotate(a: &mut [f64], n: usize, p: usize, q: usize) {
    let apq = a[p * n + q];
    if apq == 0.0 {
        return;
    }
    let theta = (a[q * n + q] - a[p * n + p]) / (2.0 * apq);
    // The smaller of the two angles; its tangent cannot overflow.
    let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let c = 1.0 / (t * t + 1.0).sqrt();
    let s = t * c;
    for k in 0..n {
        let (akp, akq) = (a[k * n + p], a[k * n + q]);
        a[k * n + p] = c * akp - s * akq;
        a[k * n + q] = s * akp + c * akq;
    }
    for k in 0..n {
        let (apk, aqk) = (a[p * n + k], a[q * n + k]);
        a[p * n + k] = c * apk - s * aqk;
        a[q * n + k] = s * apk + c * aqk;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    /// ```python
    /// from vendi_score import vendi  # 0.0.3
    /// vendi.score_X(np.array([1, 2, 3, .5, -1, 2, 3, 0, 1, -1, 1, .25]).reshape(4, 3))
    /// ```
    #[test]
    fn agrees_with_the_authors_package() {
        let texts = [
            1.0f32, 2.0, 3.0, 0.5, -1.0, 2.0, 3.0, 0.0, 1.0, -1.0, 1.0, 0.25,
        ];
        let found = vendi_score(&Embeddings::new(&texts, 3).unwrap()).unwrap();
        assert!((found - 2.620_684_430_565_408_5).abs() < 1e-12, "{found}");
    }

    #[test]
    fn it_counts_texts_that_have_nothing_in_common() {
        let score = |values: &[f32], dimension: usize| {
            vendi_score(&Embeddings::new(values, dimension).unwrap()).unwrap()
        };
        assert!((score(&[1.0, 0.0, 0.0, 2.0], 2) - 2.0).abs() < 1e-14);
        assert!((score(&[1.0, 1.0, 2.0, 2.0, 0.5, 0.5], 2) - 1.0).abs() < 1e-6);
        // Two of four are the same: eigenvalues 1/2, 1/4, 1/4.
        let two = score(
            &[1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
            3,
        );
        assert!((two - 8f64.sqrt()).abs() < 1e-14, "{two}");
        // Empty texts are the same text.
        assert!((score(&[0.0, 0.0, 0.0, 0.0, 1.0, 0.0], 2) - 1.889_881_574_842_31).abs() < 1e-12);
        assert!(vendi_score(&Embeddings::new(&[], 2).unwrap()).is_err());
    }

    #[test]
    fn eigenvalues_have_the_traces_of_the_powers() {
        let n = 40;
        let mut draws = Stream::new(1, "matrix").at(0);
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                a[i * n + j] = draws.normal();
                a[j * n + i] = a[i * n + j];
            }
        }
        let values = eigenvalues(a.clone(), n);
        let trace: f64 = (0..n).map(|i| a[i * n + i]).sum();
        let squares: f64 = a.iter().map(|value| value * value).sum();
        assert!((values.iter().sum::<f64>() - trace).abs() < 1e-11);
        assert!(
            (values.iter().map(|value| value * value).sum::<f64>() / squares - 1.0).abs() < 1e-13
        );
        let cubes: f64 = (0..n * n * n)
            .map(|at| (at / n / n, at / n % n, at % n))
            .map(|(i, j, k)| a[i * n + j] * a[j * n + k] * a[k * n + i])
            .sum();
        let found: f64 = values.iter().map(|value| value.powi(3)).sum();
        assert!((found - cubes).abs() < 1e-9, "{found} {cubes}");
    }
}
