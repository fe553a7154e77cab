//! Effect sizes and intervals.

use super::{
    describe::{mean, sample_variance},
    distributions::normal_quantile,
    error::{StatsError, check, check_level},
};

/// An estimate with a confidence interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The estimate itself.
    pub estimate: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Coverage, such as 0.95.
    pub level: f64,
}

/// Cohen's d, `(mean(a) - mean(b)) / pooled sample standard deviation`, with the large-sample interval
/// `d +- z sqrt((n_a + n_b) / (n_a n_b) + d^2 / (2 (n_a + n_b)))` (Hedges and Olkin 1985, ch. 5).
pub fn cohens_d(a: &[f64], b: &[f64], level: f64) -> Result<Interval, StatsError> {
    check("Cohen's d", a, 2)?;
    check("Cohen's d", b, 2)?;
    check_level(level)?;
    let (n_a, n_b) = (a.len() as f64, b.len() as f64);
    let pooled =
        ((n_a - 1.0) * sample_variance(a)? + (n_b - 1.0) * sample_variance(b)?) / (n_a + n_b - 2.0);
    if pooled == 0.0 {
        return Err(StatsError::NoVariance { what: "Cohen's d" });
    }
    let estimate = (mean(a)? - mean(b)?) / pooled.sqrt();
    let error = ((n_a + n_b) / (n_a * n_b) + estimate.powi(2) / (2.0 * (n_a + n_b))).sqrt();
    let reach = normal_quantile(0.5 + level / 2.0) * error;
    Ok(Interval {
        estimate,
        low: estimate - reach,
        high: estimate + reach,
        level,
    })
}

/// Wilson's interval of a share (Wilson 1927), `successes` of `n` independent trials; a tie may count as half a success.
///
/// Other than the normal interval it does not shrink to a point at 0 and at 1.
pub fn wilson(successes: f64, n: usize, level: f64) -> Result<Interval, StatsError> {
    check_level(level)?;
    if n == 0 {
        return Err(StatsError::TooFew {
            what: "Wilson's interval",
            needed: 1,
            found: 0,
        });
    }
    let n = n as f64;
    if !(0.0..=n).contains(&successes) {
        return Err(StatsError::OutOfRange {
            what: "the number of successes",
            value: successes,
            expected: "from 0 to the number of trials",
        });
    }
    let share = successes / n;
    let z = normal_quantile(0.5 + level / 2.0);
    let scale = 1.0 + z * z / n;
    let center = (share + z * z / (2.0 * n)) / scale;
    let reach = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt() / scale;
    Ok(Interval {
        estimate: share,
        // Rounding may lead a little beyond 0 and 1.
        low: (center - reach).max(0.0),
        high: (center + reach).min(1.0),
        level,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// ```python
    /// scipy.stats.binomtest(8, 10).proportion_ci(method="wilson")
    /// scipy.stats.binomtest(137, 300).proportion_ci(0.9, method="wilson")
    /// ```
    #[test]
    fn wilson_agrees_with_scipy() {
        let close = |successes, n, level, low: f64, high: f64| {
            let found = wilson(successes, n, level).unwrap();
            assert!(
                (found.low - low).abs() < 1e-9 && (found.high - high).abs() < 1e-9,
                "{found:?}"
            );
        };
        close(
            8.0,
            10,
            0.95,
            0.490_162_471_536_641_8,
            0.943_317_848_545_624_8,
        );
        close(
            137.0,
            300,
            0.9,
            0.409_960_081_933_775_3,
            0.504_147_866_988_069_1,
        );
        // By hand: z^2 / (n + z^2) at the ends, with z = 1.959964.
        close(0.0, 10, 0.95, 0.0, 0.277_532_799_862_889_1);
        close(10.0, 10, 0.95, 0.722_467_200_137_110_9, 1.0);
        assert!(wilson(1.0, 0, 0.95).is_err());
        assert!(wilson(11.0, 10, 0.95).is_err());
    }

    /// ```python
    /// d = (mean(A) - mean(B)) / sqrt(((na-1)*var(A, ddof=1) + (nb-1)*var(B, ddof=1)) / (na+nb-2))
    /// se = sqrt((na+nb)/(na*nb) + d*d/(2*(na+nb))); z = scipy.stats.norm.ppf(.975)
    /// d, d - z*se, d + z*se
    /// ```
    #[test]
    fn agrees_with_the_formula_in_numpy() {
        let a = [1.2, 0.7, 1.9, 1.4, 0.3, 2.2, 1.1, 0.9];
        let b = [0.4, 1.0, 0.1, 0.8, -0.3, 0.6];
        let found = cohens_d(&a, &b, 0.95).unwrap();
        assert!((found.estimate - 1.380_609_673_252_723_5).abs() < 1e-13);
        assert!(
            (found.low - 0.205_054_282_868_827_8).abs() < 1e-9,
            "{found:?}"
        );
        assert!((found.high - 2.556_165_063_636_619_5).abs() < 1e-9);
    }

    #[test]
    fn needs_spread_and_a_level() {
        assert!(matches!(
            cohens_d(&[1.0, 1.0], &[2.0, 2.0], 0.95),
            Err(StatsError::NoVariance { .. })
        ));
        assert!(cohens_d(&[1.0], &[2.0, 3.0], 0.95).is_err());
        assert!(cohens_d(&[1.0, 2.0], &[2.0, 3.0], 95.0).is_err());
    }
}
