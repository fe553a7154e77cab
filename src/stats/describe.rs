//! Mean, spread and quantiles.

use super::error::{StatsError, check};

/// The arithmetic mean.
pub fn mean(values: &[f64]) -> Result<f64, StatsError> {
    check("the mean", values, 1)?;
    let n = values.len() as f64;
    let first = values.iter().sum::<f64>() / n;
    // A second pass takes out the rounding of the first, and equal values give exactly that value.
    let correction = values.iter().map(|value| value - first).sum::<f64>() / n;
    Ok(first + correction)
}

fn sum_of_squared_deviations(values: &[f64]) -> Result<f64, StatsError> {
    let center = mean(values)?;
    Ok(values.iter().map(|value| (value - center).powi(2)).sum())
}

/// The standard deviation of a whole population: squared deviations divided by `n`. The tables of the
/// `FlowHF` paper use it.
pub fn population_std(values: &[f64]) -> Result<f64, StatsError> {
    check("the population standard deviation", values, 1)?;
    Ok((sum_of_squared_deviations(values)? / values.len() as f64).sqrt())
}

/// The unbiased variance of a sample: squared deviations divided by `n - 1`.
pub fn sample_variance(values: &[f64]) -> Result<f64, StatsError> {
    check("the sample variance", values, 2)?;
    Ok(sum_of_squared_deviations(values)? / (values.len() - 1) as f64)
}

/// The square root of the [`sample_variance`].
pub fn sample_std(values: &[f64]) -> Result<f64, StatsError> {
    check("the sample standard deviation", values, 2)?;
    Ok(sample_variance(values)?.sqrt())
}

/// The quantile at `probability`, interpolated linearly between order statistics (type 7 of Hyndman and
/// Fan 1996, the default of numpy and R).
pub fn quantile(values: &[f64], probability: f64) -> Result<f64, StatsError> {
    check("the quantile", values, 1)?;
    if !(0.0..=1.0).contains(&probability) {
        return Err(StatsError::OutOfRange {
            what: "the probability of a quantile",
            value: probability,
            expected: "0 to 1",
        });
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    Ok(quantile_of_sorted(&sorted, probability))
}

/// The quantile of values in ascending order; there must be at least one.
pub(super) fn quantile_of_sorted(sorted: &[f64], probability: f64) -> f64 {
    let place = (sorted.len() - 1) as f64 * probability;
    let below = place.floor() as usize;
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (place - below as f64) * (sorted[above] - sorted[below])
}

/// The mean of the middle half of the values: a quarter of them, rounded down, is left out at each end.
///
/// Agarwal et al. (2021) recommend it for a few runs of many tasks: an outlier moves it less than the mean, and it knows
/// more of the values than the median.
pub fn interquartile_mean(values: &[f64]) -> Result<f64, StatsError> {
    check("the interquartile mean", values, 1)?;
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    Ok(middle_half_mean(sorted.iter().map(|value| (*value, 1))))
}

/// The [`interquartile_mean`] of ascending values, each of which counts so often; 0 if none does.
pub fn middle_half_mean(ascending: impl Iterator<Item = (f64, u32)> + Clone) -> f64 {
    let total: u64 = ascending.clone().map(|(_, count)| u64::from(count)).sum();
    let (first, end) = (total / 4, total - total / 4);
    let (mut sum, mut at) = (0.0, 0);
    for (value, count) in ascending {
        let next = at + u64::from(count);
        let taken = next.min(end).saturating_sub(at.max(first));
        sum += value * taken as f64;
        at = next;
    }
    sum / (end - first).max(1) as f64
}

/// The median.
pub fn median(values: &[f64]) -> Result<f64, StatsError> {
    quantile(values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [f64; 8] = [1.2, 0.7, 1.9, 1.4, 0.3, 2.2, 1.1, 0.9];

    /// ```python
    /// np.mean(A), np.std(A), np.std(A, ddof=1), np.quantile(A, .3), np.median(A)
    /// ```
    #[test]
    fn agrees_with_numpy() {
        let found = [
            mean(&A),
            population_std(&A),
            sample_std(&A),
            quantile(&A, 0.3),
            median(&A),
        ];
        let expected = [
            1.2125,
            0.579_735_931_265_261_5,
            0.619_763_779_884_838_8,
            0.92,
            1.15,
        ];
        for (found, expected) in found.into_iter().zip(expected) {
            assert!((found.unwrap() - expected).abs() < 1e-14);
        }
        assert_eq!(quantile(&A, 0.0).unwrap(), 0.3);
        assert_eq!(quantile(&A, 1.0).unwrap(), 2.2);
    }

    /// ```python
    /// scipy.stats.trim_mean(A, .25), scipy.stats.trim_mean(A[:7], .25), scipy.stats.trim_mean(np.repeat(A, [2, 0, 1, 3, 1, 0, 2, 1]), .25)
    /// ```
    #[test]
    fn the_middle_half_is_scipys() {
        let close = |found: f64, expected: f64| {
            assert!((found - expected).abs() < 1e-14, "{found}, not {expected}");
        };
        close(interquartile_mean(&A).unwrap(), 1.15);
        close(
            interquartile_mean(&A[..7]).unwrap(),
            1.260_000_000_000_000_2,
        );
        assert_eq!(interquartile_mean(&[2.0, 4.0, 9.0]).unwrap(), 5.0);
        let mut counted: Vec<(f64, u32)> = A.into_iter().zip([2, 0, 1, 3, 1, 0, 2, 1]).collect();
        counted.sort_by(|a, b| a.0.total_cmp(&b.0));
        close(
            middle_half_mean(counted.into_iter()),
            1.233_333_333_333_333_4,
        );
        assert!(interquartile_mean(&[]).is_err());
    }

    #[test]
    fn equal_values_have_no_spread() {
        let values = [0.1; 7];
        assert_eq!(mean(&values).unwrap(), 0.1);
        assert_eq!(sample_std(&values).unwrap(), 0.0);
    }

    #[test]
    fn senseless_input_is_an_error() {
        assert!(matches!(
            mean(&[]),
            Err(StatsError::TooFew {
                needed: 1,
                found: 0,
                ..
            })
        ));
        assert!(matches!(
            sample_std(&[1.0]),
            Err(StatsError::TooFew { needed: 2, .. })
        ));
        assert_eq!(population_std(&[1.0]), Ok(0.0));
        for value in [f64::NAN, f64::INFINITY] {
            assert!(matches!(
                mean(&[1.0, value]),
                Err(StatsError::NotFinite { index: 1, .. })
            ));
            assert!(quantile(&[1.0, value], 0.5).is_err());
            assert!(quantile(&[1.0], value).is_err());
        }
        assert!(quantile(&[1.0], 1.1).is_err());
    }
}
