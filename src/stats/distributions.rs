//! Distribution functions and quantiles, from the `libm` crate alone: those of a statistics library end in the C
//! library, whose last bits differ between machines.

/// Halvings of an interval until its ends are neighbours.
const HALVINGS: usize = 200;

/// Returns the probability that a standard normal number exceeds `x`.
pub(super) fn normal_above(x: f64) -> f64 {
    0.5 * libm::erfc(x * std::f64::consts::FRAC_1_SQRT_2)
}

/// Returns the number that a standard normal one stays below with probability `p` (between 0 and 1).
pub(super) fn normal_quantile(p: f64) -> f64 {
    if p > 0.5 {
        return -normal_quantile(1.0 - p);
    }
    -tail_quantile(p, normal_above, 40.0)
}

/// Returns the probability that a number of Student's distribution exceeds `t`.
///
/// Half of `I_x(n / 2, 1 / 2)` with `x = n / (n + t^2)` (Abramowitz and Stegun 1964, 26.7.1).
pub(super) fn student_above(t: f64, degrees: f64) -> f64 {
    let (a, square) = (degrees / 2.0, t * t);
    if square == 0.0 {
        return 0.5;
    }
    let tail = if square.is_infinite() {
        0.0
    } else {
        let (x, rest) = (degrees / (degrees + square), square / (degrees + square));
        // x^a (1 - x)^(1/2) / B(a, 1/2)
        let front = libm::exp(log_gamma_step(a) - a * libm::log1p(square / degrees))
            * (rest / std::f64::consts::PI).sqrt();
        // The fraction converges fast on this side of the mean only.
        if x < (a + 1.0) / (a + 2.5) {
            0.5 * front * beta_fraction(a, 0.5, x) / a
        } else {
            0.5 - front * beta_fraction(0.5, a, rest)
        }
    };
    if t < 0.0 { 1.0 - tail } else { tail }
}

/// Returns `log(Gamma(a + 1/2) / Gamma(a))`.
fn log_gamma_step(a: f64) -> f64 {
    if a < 30.0 {
        return libm::lgamma(a + 0.5) - libm::lgamma(a);
    }
    // The asymptotic series: the difference of two large numbers would lose its digits.
    let inverse = 1.0 / a;
    let square = inverse * inverse;
    let series =
        -1.0 / 8.0 + square * (1.0 / 192.0 + square * (-1.0 / 640.0 + square * (17.0 / 14336.0)));
    0.5 * libm::log(a) + inverse * series
}

/// Returns the number that one of Student's distribution stays below with probability `p` (above one half).
pub(super) fn student_quantile(p: f64, degrees: f64) -> f64 {
    tail_quantile(1.0 - p, |t| student_above(t, degrees), f64::MAX)
}

/// Returns the probability that a number of the beta distribution is at most `x` (from 0 to 1).
///
/// The regularised incomplete beta function `I_x(a, b)`.
pub(super) fn beta_below(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return f64::from(u8::from(x >= 1.0));
    }
    // x^a (1 - x)^b / B(a, b)
    let front = libm::exp(
        libm::lgamma(a + b) - libm::lgamma(a) - libm::lgamma(b)
            + a * libm::log(x)
            + b * libm::log1p(-x),
    );
    // The fraction converges fast on this side of the mean only.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * beta_fraction(a, b, x) / a
    } else {
        1.0 - front * beta_fraction(b, a, 1.0 - x) / b
    }
}

/// Returns the number that one of the beta distribution stays below with probability `p`.
pub(super) fn beta_quantile(p: f64, a: f64, b: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..HALVINGS {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            break;
        }
        if beta_below(middle, a, b) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// Returns the number from 0 to `most` that is exceeded with probability `p` (at most one half).
fn tail_quantile(p: f64, above: impl Fn(f64) -> f64, most: f64) -> f64 {
    let (mut low, mut high) = (0.0, 1.0);
    while high < most && above(high) > p {
        low = high;
        high *= 2.0;
    }
    for _ in 0..HALVINGS {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            break;
        }
        if above(middle) > p {
            low = middle;
        } else {
            high = middle;
        }
    }
    high
}

/// The continued fraction of the incomplete beta function (Abramowitz and Stegun 1964, 26.5.8), from its front by
/// the method of Lentz (1976).
fn beta_fraction(a: f64, b: f64, x: f64) -> f64 {
    // Instead of a denominator of 0.
    const LEAST: f64 = 1e-300;
    let away = |value: f64| if value.abs() < LEAST { LEAST } else { value };
    let mut ratio = 1.0;
    let mut inverse = 1.0 / away(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = inverse;
    for step in 1..100_000 {
        let m = f64::from(step);
        for term in [
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0)),
        ] {
            inverse = 1.0 / away(1.0 + term * inverse);
            ratio = away(1.0 + term / ratio);
            fraction *= inverse * ratio;
        }
        if (inverse * ratio - 1.0).abs() < 1e-15 {
            break;
        }
    }
    fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        let error = (found - expected).abs() / expected.abs();
        assert!(error < 1e-11, "{found} is not {expected}");
    }

    /// `scipy.stats.norm.sf`, `.ppf`, `scipy.stats.t.sf`, `.ppf`, `scipy.stats.beta.cdf`, `.ppf` (scipy 1.17).
    #[test]
    fn distributions_are_scipys() {
        close(normal_above(1.0), 0.158_655_253_931_457_05);
        close(normal_above(-2.5), 0.993_790_334_674_223_8);
        close(normal_above(9.0), 1.128_588_405_953_832_4e-19);
        close(normal_quantile(0.975), 1.959_963_984_540_054);
        close(normal_quantile(1e-9), -5.997_807_015_007_686_5);
        assert!(normal_quantile(0.5).abs() < 1e-15);
        close(student_above(2.0, 3.0), 0.069_662_984_279_421_58);
        close(student_above(-2.0, 3.0), 0.930_337_015_720_578_4);
        close(student_above(0.1, 250.0), 0.460_212_234_647_908_45);
        close(student_above(40.0, 5.5), 2.705_254_994_523_05e-8);
        close(student_above(3.0, 1e6), 0.001_349_931_270_710_9);
        close(student_quantile(0.975, 2.0), 4.302_652_729_749_462);
        close(student_quantile(0.975, 1000.5), 1.962_337_892_459_348);
        close(student_quantile(0.9995, 1.0), 636.619_248_768_789_7);
        close(beta_below(0.3, 2.0, 5.0), 0.579_825_000_000_000_3);
        close(beta_below(0.9, 40.0, 3.0), 0.195_107_654_826_936_76);
        close(beta_quantile(0.025, 3.0, 6.0), 0.085_233_414_137_253_55);
        close(beta_quantile(0.995, 51.0, 150.0), 0.336_813_861_029_283_6);
        assert_eq!(
            (beta_below(0.0, 2.0, 3.0), beta_below(1.0, 2.0, 3.0)),
            (0.0, 1.0)
        );
        assert_eq!(student_above(f64::INFINITY, 4.0), 0.0);
        assert_eq!(student_above(f64::NEG_INFINITY, 4.0), 1.0);
    }
}
