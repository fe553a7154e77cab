//! How many values an interval needs to tell a difference.

use super::distributions::{normal_above, student_quantile};

/// Halves of steps over the spread of a sample in units of the true one, where its density is not negligible.
const POINTS: u32 = 800;

/// How far from 1, in its standard deviations, that spread is looked at.
const REACH: f64 = 12.0;

/// Returns the probability that the two-sided `1 - alpha` interval of the mean of `n` normal values lies wholly between
/// two bounds: one `below` the true mean and one `above` it, in standard deviations, infinite for none.
///
/// With one bound it is the power of a one-sided t-test at `alpha / 2` (the noncentral t distribution), with two of them
/// that of the two tests of equivalence together (Schuirmann 1987). The interval is `mean +- t s / sqrt n`; given
/// `u = s / sigma` the mean is normal, and `n - 1` times the square of `u` has the chi-squared distribution.
pub fn interval_power(n: usize, below: f64, above: f64, alpha: f64) -> f64 {
    let degrees = (n - 1) as f64;
    let quantile = student_quantile(1.0 - alpha / 2.0, degrees);
    let root = (n as f64).sqrt();
    let spread = 1.0 / (2.0 * degrees).sqrt();
    let (from, to) = ((1.0 - REACH * spread).max(0.0), 1.0 + REACH * spread);
    let step = (to - from) / f64::from(POINTS);
    let (mut sum, mut mass) = (0.0, 0.0);
    for point in 0..=POINTS {
        let u = from + step * f64::from(point);
        // The density of u but for its constant, 1 at u = 1; to the power of 0, 1 at 0.
        let power = if degrees > 1.0 {
            (degrees - 1.0) * libm::log(u)
        } else {
            0.0
        };
        let density = libm::exp(power - degrees * (u * u - 1.0) / 2.0);
        let simpson = match point {
            0 | POINTS => 1.0,
            odd if odd % 2 == 1 => 4.0,
            _ => 2.0,
        };
        let inside =
            normal_above(quantile * u - below * root) - normal_above(above * root - quantile * u);
        sum += simpson * density * inside.max(0.0);
        mass += simpson * density;
    }
    sum / mass
}

/// Returns the least number of values with which [`interval_power`] is at least `power`; `None` above `most`.
pub fn runs_for_power(
    below: f64,
    above: f64,
    alpha: f64,
    power: f64,
    most: usize,
) -> Option<usize> {
    let enough = |n: usize| interval_power(n, below, above, alpha) >= power;
    if below <= 0.0 || above <= 0.0 || !enough(most) {
        return None;
    }
    // More values never have less power.
    let (mut low, mut high) = (1, most);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if enough(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: f64 = f64::INFINITY;

    /// ```python
    /// t = scipy.stats.t.ppf(1 - a / 2, n - 1); scipy.stats.nct.sf(t, n - 1, g * sqrt(n))
    /// ```
    #[test]
    fn with_one_bound_it_is_the_noncentral_t() {
        for (n, gap, alpha, expected) in [
            (2, 1.0, 0.05, 0.090_579_718_650_594_18),
            (5, 1.0, 0.05, 0.401_320_285_199_505_3),
            (8, 1.3, 0.05, 0.881_552_797_374_782),
            (16, 0.5, 0.05 / 7.0, 0.177_907_759_119_816_68),
            (200, 0.2, 0.05, 0.803_665_761_344_711_9),
            (5, 3.0, 0.01, 0.894_714_241_852_022_1),
        ] {
            for found in [
                interval_power(n, gap, NONE, alpha),
                interval_power(n, NONE, gap, alpha),
            ] {
                assert!(
                    (found - expected).abs() < 1e-7,
                    "{n}: {found}, not {expected}"
                );
            }
        }
    }

    /// ```python
    /// scipy.integrate.quad(lambda u: chi.pdf(u * sqrt(n - 1), n - 1) * sqrt(n - 1)
    ///     * max(0, norm.cdf(above * sqrt(n) - t * u) - norm.cdf(t * u - below * sqrt(n))), 0, inf)
    /// ```
    #[test]
    fn with_two_bounds_it_is_the_power_of_two_tests() {
        for (n, below, above, alpha, expected) in [
            (5, 2.0, 2.0, 0.05, 0.828_848_168_771_285_9),
            (8, 1.0, 1.0, 0.05, 0.413_959_560_304_128_8),
            (12, 1.0, 1.0, 0.05, 0.766_337_221_925_216_5),
            (8, 1.0, 2.0, 0.05, 0.678_569_234_804_583_9),
            (20, 0.5, 1.5, 0.01, 0.297_121_246_829_3),
        ] {
            let found = interval_power(n, below, above, alpha);
            assert!(
                (found - expected).abs() < 1e-5,
                "{n}: {found}, not {expected}"
            );
        }
    }

    /// The least `n` by a loop over the functions above in scipy.
    #[test]
    fn the_fewest_values_are_scipys() {
        for (below, above, alpha, expected) in [
            (1.0, NONE, 0.05, 10),
            (NONE, 0.5, 0.05, 34),
            (0.1, NONE, 0.05, 787),
            (0.05, NONE, 0.05, 3142),
            (2.0, NONE, 0.05 / 6.0, 7),
            (10.0, NONE, 0.05, 3),
            (1.0, 1.0, 0.05, 13),
        ] {
            let found = runs_for_power(below, above, alpha, 0.8, 10_000);
            assert_eq!(found, Some(expected), "{below} {above} {alpha}");
        }
        assert_eq!(runs_for_power(0.001, NONE, 0.05, 0.8, 10_000), None);
        assert_eq!(runs_for_power(0.0, NONE, 0.05, 0.8, 10_000), None);
    }
}
