//! Tests of normality.

use super::{
    describe::mean,
    distributions::{normal_above, normal_quantile},
    error::{StatsError, check},
};

/// The outcome of a test whose hypothesis is that the values are a normal sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormalityTest {
    /// The statistic: K2, or W.
    pub statistic: f64,
    /// Probability of a statistic at least as extreme from a normal sample.
    pub p: f64,
}

/// D'Agostino and Pearson's omnibus test: `K2 = z(skewness)^2 + z(kurtosis)^2`, chi-square with two
/// degrees of freedom. Needs at least 8 values; the kurtosis part is rough below 20.
///
/// Sources: D'Agostino 1971 (skewness), Anscombe and Glynn 1983 (kurtosis), D'Agostino and Pearson 1973;
/// the same numbers as `scipy.stats.normaltest`.
pub fn dagostino_pearson(values: &[f64]) -> Result<NormalityTest, StatsError> {
    const WHAT: &str = "the D'Agostino-Pearson test";
    check(WHAT, values, 8)?;
    let center = mean(values)?;
    let moment = |power: i32| {
        values
            .iter()
            .map(|value| (value - center).powi(power))
            .sum::<f64>()
            / values.len() as f64
    };
    let variance = moment(2);
    if variance == 0.0 {
        return Err(StatsError::NoVariance { what: WHAT });
    }
    let n = values.len() as f64;
    let statistic = z_of_skewness(moment(3) / (variance * variance.sqrt()), n).powi(2)
        + z_of_kurtosis(moment(4) / variance.powi(2), n).powi(2);
    Ok(NormalityTest {
        statistic,
        // The upper tail of a chi-square distribution with two degrees of freedom.
        p: libm::exp(-statistic / 2.0),
    })
}

fn z_of_skewness(skewness: f64, n: f64) -> f64 {
    let y = skewness * ((n + 1.0) * (n + 3.0) / (6.0 * (n - 2.0))).sqrt();
    let beta2 = 3.0 * (n * n + 27.0 * n - 70.0) * (n + 1.0) * (n + 3.0)
        / ((n - 2.0) * (n + 5.0) * (n + 7.0) * (n + 9.0));
    let w2 = (2.0 * (beta2 - 1.0)).sqrt() - 1.0;
    let delta = 1.0 / (0.5 * libm::log(w2)).sqrt();
    let alpha = (2.0 / (w2 - 1.0)).sqrt();
    delta * libm::asinh(y / alpha)
}

fn z_of_kurtosis(kurtosis: f64, n: f64) -> f64 {
    let expected = 3.0 * (n - 1.0) / (n + 1.0);
    let variance =
        24.0 * n * (n - 2.0) * (n - 3.0) / ((n + 1.0) * (n + 1.0) * (n + 3.0) * (n + 5.0));
    let x = (kurtosis - expected) / variance.sqrt();
    let root_beta1 = 6.0 * (n * n - 5.0 * n + 2.0) / ((n + 7.0) * (n + 9.0))
        * (6.0 * (n + 3.0) * (n + 5.0) / (n * (n - 2.0) * (n - 3.0))).sqrt();
    let a = 6.0 + 8.0 / root_beta1 * (2.0 / root_beta1 + (1.0 + 4.0 / root_beta1.powi(2)).sqrt());
    let denominator = 1.0 + x * (2.0 / (a - 4.0)).sqrt();
    let term = denominator.signum() * libm::cbrt((1.0 - 2.0 / a) / denominator.abs());
    (1.0 - 2.0 / (9.0 * a) - term) / (2.0 / (9.0 * a)).sqrt()
}

/// Shapiro and Wilk's test for 3 to 5000 values, after Royston 1995 (algorithm AS R94); the same numbers
/// as `scipy.stats.shapiro`.
pub fn shapiro_wilk(values: &[f64]) -> Result<NormalityTest, StatsError> {
    const WHAT: &str = "the Shapiro-Wilk test";
    check(WHAT, values, 3)?;
    if values.len() > 5000 {
        return Err(StatsError::OutOfRange {
            what: "the number of values of the Shapiro-Wilk test",
            value: values.len() as f64,
            expected: "3 to 5000",
        });
    }
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let n = sorted.len();
    let center = mean(&sorted)?;
    let square: f64 = sorted.iter().map(|value| (value - center).powi(2)).sum();
    if square == 0.0 {
        return Err(StatsError::NoVariance { what: WHAT });
    }
    let slope: f64 = shapiro_weights(n)
        .iter()
        .enumerate()
        .map(|(rank, weight)| weight * (sorted[n - 1 - rank] - sorted[rank]))
        .sum();
    let statistic = (slope * slope / square).min(1.0);
    Ok(NormalityTest {
        statistic,
        p: shapiro_p(statistic, n),
    })
}

/// The weights of the greatest order statistics, largest first; those of the least are their negatives.
fn shapiro_weights(n: usize) -> Vec<f64> {
    const OUTER: [f64; 6] = [
        0.0, 0.221_157, -0.147_981, -2.071_190, 4.434_685, -2.706_056,
    ];
    const NEXT: [f64; 6] = [
        0.0, 0.042_981, -0.293_762, -1.752_461, 5.682_633, -3.582_633,
    ];
    if n == 3 {
        return vec![std::f64::consts::FRAC_1_SQRT_2];
    }
    // Approximate expected normal order statistics (Blom), largest first.
    let mut weights: Vec<f64> = (1..=n / 2)
        .map(|rank| -normal_quantile((rank as f64 - 0.375) / (n as f64 + 0.25)))
        .collect();
    let square = 2.0 * weights.iter().map(|m| m * m).sum::<f64>();
    let root = 1.0 / (n as f64).sqrt();
    let first = weights[0] / square.sqrt() + polynomial(&OUTER, root);
    let second = weights[1] / square.sqrt() + polynomial(&NEXT, root);
    let exact = if n > 5 { 2 } else { 1 };
    let mut left = square - 2.0 * weights[0].powi(2);
    let mut right = 1.0 - 2.0 * first.powi(2);
    if exact == 2 {
        left -= 2.0 * weights[1].powi(2);
        right -= 2.0 * second.powi(2);
    }
    let scale = (left / right).sqrt();
    for weight in &mut weights[exact..] {
        *weight /= scale;
    }
    weights[0] = first;
    if exact == 2 {
        weights[1] = second;
    }
    weights
}

fn shapiro_p(statistic: f64, n: usize) -> f64 {
    if n == 3 {
        let least = libm::asin(0.75f64.sqrt());
        let p = 6.0 / std::f64::consts::PI * (libm::asin(statistic.sqrt()) - least);
        return p.clamp(0.0, 1.0);
    }
    let size = n as f64;
    let distance = libm::log(1.0 - statistic);
    let (y, location, scale) = if n <= 11 {
        let gamma = polynomial(&[-2.273, 0.459], size);
        if distance >= gamma {
            return 0.0;
        }
        (
            -libm::log(gamma - distance),
            polynomial(&[0.5440, -0.399_78, 0.025_054, -6.714e-4], size),
            libm::exp(polynomial(
                &[1.3822, -0.778_57, 0.062_767, -0.002_032_2],
                size,
            )),
        )
    } else {
        let log = libm::log(size);
        (
            distance,
            polynomial(&[-1.5861, -0.310_82, -0.083_751, 0.003_891_5], log),
            libm::exp(polynomial(&[-0.4803, -0.082_676, 0.003_030_2], log)),
        )
    };
    normal_above((y - location) / scale)
}

/// Evaluates a polynomial, coefficients from the constant up.
fn polynomial(coefficients: &[f64], x: f64) -> f64 {
    coefficients
        .iter()
        .rev()
        .fold(0.0, |sum, coefficient| sum * x + coefficient)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `np.round(np.random.default_rng(0).gamma(3, 1, 24), 2)`
    const X: [f64; 24] = [
        2.88, 3.86, 1.88, 5.41, 1.67, 1.77, 0.39, 1.11, 1.87, 3.4, 2.46, 1.72, 4.43, 1.63, 1.99,
        1.33, 2.42, 3.03, 1.74, 4.16, 1.09, 5.52, 3.12, 5.83,
    ];
    const A: [f64; 8] = [1.2, 0.7, 1.9, 1.4, 0.3, 2.2, 1.1, 0.9];

    /// ```python
    /// scipy.stats.normaltest(X); scipy.stats.normaltest(A)
    /// ```
    #[test]
    fn omnibus_test_agrees_with_scipy() {
        for (values, statistic, p) in [
            (&X[..], 2.692_185_471_807_035_5, 0.260_255_162_261_814_6),
            (&A[..], 0.169_084_637_596_810_4, 0.918_932_766_423_480_4),
        ] {
            let found = dagostino_pearson(values).unwrap();
            assert!((found.statistic - statistic).abs() < 1e-12, "{found:?}");
            assert!((found.p - p).abs() < 1e-12, "{found:?}");
        }
    }

    /// ```python
    /// for v in (X, A, A[:6], A[:5], A[:3], X[:4], np.r_[np.full(30, 1.), np.arange(10)]): scipy.stats.shapiro(v)
    /// ```
    #[test]
    fn shapiro_wilk_agrees_with_scipy() {
        let tied: Vec<f64> = [1.0; 30]
            .into_iter()
            .chain((0..10).map(f64::from))
            .collect();
        for (values, statistic, p) in [
            (&X[..], 0.919_145_731_824_708_6, 0.055_925_284_309_542_175),
            (&A[..], 0.978_939_748_962_417_8, 0.957_468_157_824_630_6),
            (&A[..6], 0.974_853_388_611_178_4, 0.923_303_921_854_341_7),
            (&A[..5], 0.986_199_806_849_720_4, 0.964_774_831_329_262),
            (&A[..3], 0.990_825_688_073_394_4, 0.816_787_781_844_846_9),
            (&X[..4], 0.987_757_410_906_432_5, 0.945_718_462_861_439),
            (&tied[..], 0.530_748_989_630_351_4, 3.978_995_073_127_79e-10),
        ] {
            let found = shapiro_wilk(values).unwrap();
            assert!(
                (found.statistic - statistic).abs() < 1e-7,
                "{found:?} {statistic}"
            );
            assert!((found.p / p - 1.0).abs() < 1e-5, "{found:?} {p}");
        }
    }

    #[test]
    fn senseless_input_is_an_error() {
        assert!(matches!(
            dagostino_pearson(&A[..7]),
            Err(StatsError::TooFew { needed: 8, .. })
        ));
        assert!(matches!(
            dagostino_pearson(&[2.0; 9]),
            Err(StatsError::NoVariance { .. })
        ));
        assert!(shapiro_wilk(&A[..2]).is_err());
        assert!(shapiro_wilk(&[2.0; 9]).is_err());
        assert!(shapiro_wilk(&vec![1.0; 5001]).is_err());
        assert!(shapiro_wilk(&[1.0, 2.0, f64::NAN]).is_err());
    }
}
