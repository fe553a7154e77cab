//! Effect sizes and intervals.

use super::{
    describe::{mean, sample_variance},
    distributions::{beta_quantile, normal_quantile},
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

/// The exact interval of a share (Clopper and Pearson 1934): it covers at least as often as its level says, whatever the
/// share and however few the trials.
pub fn clopper_pearson(successes: usize, n: usize, level: f64) -> Result<Interval, StatsError> {
    check_level(level)?;
    if n == 0 {
        return Err(StatsError::TooFew {
            what: "an exact interval",
            needed: 1,
            found: 0,
        });
    }
    if successes > n {
        return Err(StatsError::OutOfRange {
            what: "the number of successes",
            value: successes as f64,
            expected: "from 0 to the number of trials",
        });
    }
    let tail = (1.0 - level) / 2.0;
    let (hits, misses) = (successes as f64, (n - successes) as f64);
    Ok(Interval {
        estimate: hits / n as f64,
        low: if successes == 0 {
            0.0
        } else {
            beta_quantile(tail, hits, misses + 1.0)
        },
        high: if successes == n {
            1.0
        } else {
            beta_quantile(1.0 - tail, hits + 1.0, misses)
        },
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

    /// ```python
    /// scipy.stats.beta.ppf(a, k, n - k + 1), scipy.stats.beta.ppf(1 - a, k + 1, n - k)   # a = (1 - level) / 2
    /// ```
    #[test]
    fn exact_intervals_are_scipys() {
        for (successes, n, level, low, high) in [
            (0, 5, 0.95, 0.0, 0.521_823_750_104_981_4),
            (5, 5, 0.95, 0.478_176_249_895_018_56, 1.0),
            (6, 6, 0.95, 0.540_741_873_560_099_6, 1.0),
            (
                3,
                8,
                0.95,
                0.085_233_414_137_253_55,
                0.755_136_783_633_448_4,
            ),
            (
                1,
                9,
                0.95,
                0.002_809_136_746_599_216_3,
                0.482_496_514_917_336_97,
            ),
            (
                50,
                200,
                0.99,
                0.175_439_246_888_297_8,
                0.336_813_861_029_283_6,
            ),
        ] {
            let found = clopper_pearson(successes, n, level).unwrap();
            assert!((found.low - low).abs() < 1e-12, "{found:?}, not {low}");
            assert!((found.high - high).abs() < 1e-12, "{found:?}, not {high}");
        }
        assert!(clopper_pearson(0, 0, 0.95).is_err());
        assert!(clopper_pearson(3, 2, 0.95).is_err());
        assert!(clopper_pearson(1, 2, 1.0).is_err());
    }
}
