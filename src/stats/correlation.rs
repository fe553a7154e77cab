//! Correlation of paired values.

use super::{
    describe::mean,
    error::{StatsError, check, check_lengths},
};

/// Pearson's correlation coefficient.
pub fn pearson(a: &[f64], b: &[f64]) -> Result<f64, StatsError> {
    check_lengths("the samples of a correlation", a.len(), b.len())?;
    check("the correlation", a, 2)?;
    check("the correlation", b, 2)?;
    let (mean_a, mean_b) = (mean(a)?, mean(b)?);
    let (mut covariance, mut square_a, mut square_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        covariance += a * b;
        square_a += a * a;
        square_b += b * b;
    }
    if square_a == 0.0 || square_b == 0.0 {
        return Err(StatsError::NoVariance {
            what: "the correlation",
        });
    }
    Ok((covariance / (square_a.sqrt() * square_b.sqrt())).clamp(-1.0, 1.0))
}

/// Spearman's rank correlation: Pearson's of the ranks, equal values sharing the mean of theirs.
pub fn spearman(a: &[f64], b: &[f64]) -> Result<f64, StatsError> {
    check("the rank correlation", a, 2)?;
    check("the rank correlation", b, 2)?;
    pearson(&ranks(a), &ranks(b))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut rank = 0.0;
    for tied in order.chunk_by(|a, b| values[*a] == values[*b]) {
        for index in tied {
            ranks[*index] = rank + (tied.len() - 1) as f64 / 2.0;
        }
        rank += tied.len() as f64;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// scipy.stats.pearsonr(A[:6], B); scipy.stats.spearmanr([1, 2, 2, 3, 5, 4], [2, 1, 4, 4, 6, 5])
    /// ```
    #[test]
    fn agrees_with_scipy() {
        let a = [1.2, 0.7, 1.9, 1.4, 0.3, 2.2];
        let b = [0.4, 1.0, 0.1, 0.8, -0.3, 0.6];
        assert!((pearson(&a, &b).unwrap() - 0.225_563_921_827_034_77).abs() < 1e-14);
        let found = spearman(
            &[1.0, 2.0, 2.0, 3.0, 5.0, 4.0],
            &[2.0, 1.0, 4.0, 4.0, 6.0, 5.0],
        );
        assert!((found.unwrap() - 0.867_647_058_823_529_4).abs() < 1e-14);
    }

    #[test]
    fn needs_pairs_with_spread() {
        assert!(matches!(
            pearson(&[1.0, 1.0], &[1.0, 2.0]),
            Err(StatsError::NoVariance { .. })
        ));
        assert!(pearson(&[1.0], &[1.0]).is_err());
        assert!(spearman(&[1.0, f64::NAN], &[1.0, 2.0]).is_err());
        assert!(pearson(&[1.0, 2.0], &[1.0, 2.0, 3.0]).is_err());
    }
}
