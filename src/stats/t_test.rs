//! t-tests, from samples and from published summaries.

use super::{
    describe::{mean, sample_std},
    distributions::{student_above, student_quantile},
    effect::Interval,
    error::{StatsError, check, check_lengths, check_level},
};

/// Which differences count against the hypothesis that there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alternative {
    /// The first mean is another than the second.
    TwoSided,
    /// The first mean is greater.
    Greater,
    /// The first mean is less.
    Less,
}

/// What is assumed of the variances of two samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variances {
    /// They are equal (Student).
    Equal,
    /// They may differ (Welch).
    Unequal,
}

/// How a published standard deviation was computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StdKind {
    /// Divided by `n`.
    Population,
    /// Divided by `n - 1`.
    Sample,
}

/// What a two-sample t-test needs to know of a sample.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Summary {
    n: usize,
    mean: f64,
    /// With divisor `n - 1`.
    std: f64,
}

impl Summary {
    /// Summarises a sample of at least two values.
    pub fn of(values: &[f64]) -> Result<Self, StatsError> {
        Ok(Self {
            n: values.len(),
            mean: mean(values)?,
            std: sample_std(values)?,
        })
    }

    /// Takes the numbers of a published table; a population standard deviation is converted.
    pub fn published(n: usize, mean: f64, std: f64, kind: StdKind) -> Result<Self, StatsError> {
        if n < 2 {
            return Err(StatsError::TooFew {
                what: "a t-test",
                needed: 2,
                found: n,
            });
        }
        check("the published mean", &[mean], 1)?;
        if !(std.is_finite() && std >= 0.0) {
            return Err(StatsError::OutOfRange {
                what: "the published standard deviation",
                value: std,
                expected: "a finite number, not negative",
            });
        }
        let factor = match kind {
            StdKind::Population => (n as f64 / (n - 1) as f64).sqrt(),
            StdKind::Sample => 1.0,
        };
        Ok(Self {
            n,
            mean,
            std: std * factor,
        })
    }

    /// Number of values.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Mean.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Sample standard deviation.
    pub fn std(&self) -> f64 {
        self.std
    }
}

/// The outcome of a t-test.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TTest {
    /// The statistic.
    pub t: f64,
    /// Degrees of freedom; not whole for Welch's test.
    pub degrees_of_freedom: f64,
    /// Probability, without a difference, of a statistic at least as extreme.
    pub p: f64,
    /// The observed difference of means.
    pub difference: f64,
    /// Its standard error.
    pub standard_error: f64,
}

impl TTest {
    fn new(
        difference: f64,
        standard_error: f64,
        degrees_of_freedom: f64,
        alternative: Alternative,
    ) -> Result<Self, StatsError> {
        if standard_error == 0.0 {
            return Err(StatsError::NoVariance { what: "a t-test" });
        }
        let t = difference / standard_error;
        if !(degrees_of_freedom > 0.0 && degrees_of_freedom.is_finite() && !t.is_nan()) {
            return Err(StatsError::OutOfRange {
                what: "degrees of freedom",
                value: degrees_of_freedom,
                expected: "a positive number",
            });
        }
        let p = match alternative {
            Alternative::TwoSided => (2.0 * student_above(t.abs(), degrees_of_freedom)).min(1.0),
            Alternative::Greater => student_above(t, degrees_of_freedom),
            Alternative::Less => student_above(-t, degrees_of_freedom),
        };
        Ok(Self {
            t,
            degrees_of_freedom,
            p,
            difference,
            standard_error,
        })
    }

    /// The two-sided confidence interval of the difference, whatever the test's alternative.
    pub fn interval(&self, level: f64) -> Result<Interval, StatsError> {
        check_level(level)?;
        let quantile = student_quantile(0.5 + level / 2.0, self.degrees_of_freedom);
        let reach = quantile * self.standard_error;
        Ok(Interval {
            estimate: self.difference,
            low: self.difference - reach,
            high: self.difference + reach,
            level,
        })
    }
}

/// Tests whether the means of two independent samples differ; `difference = a - b`.
///
/// Welch's degrees of freedom are those of Satterthwaite 1946:
/// `(v_a + v_b)^2 / (v_a^2 / (n_a - 1) + v_b^2 / (n_b - 1))` with `v = std^2 / n`.
pub fn two_sample_t_test(
    a: &Summary,
    b: &Summary,
    variances: Variances,
    alternative: Alternative,
) -> Result<TTest, StatsError> {
    let (n_a, n_b) = (a.n as f64, b.n as f64);
    let (square_a, square_b) = (a.std.powi(2), b.std.powi(2));
    let (standard_error, degrees_of_freedom) = match variances {
        Variances::Equal => {
            let degrees = n_a + n_b - 2.0;
            let pooled = ((n_a - 1.0) * square_a + (n_b - 1.0) * square_b) / degrees;
            ((pooled * (1.0 / n_a + 1.0 / n_b)).sqrt(), degrees)
        }
        Variances::Unequal => {
            let (share_a, share_b) = (square_a / n_a, square_b / n_b);
            let total = share_a + share_b;
            let degrees =
                total.powi(2) / (share_a.powi(2) / (n_a - 1.0) + share_b.powi(2) / (n_b - 1.0));
            (total.sqrt(), degrees)
        }
    };
    TTest::new(
        a.mean - b.mean,
        standard_error,
        degrees_of_freedom,
        alternative,
    )
}

/// Tests whether the mean of `values` differs from `expected`.
pub fn one_sample_t_test(
    values: &[f64],
    expected: f64,
    alternative: Alternative,
) -> Result<TTest, StatsError> {
    check("a one-sample t-test", values, 2)?;
    check("the expected mean", &[expected], 1)?;
    let n = values.len() as f64;
    TTest::new(
        mean(values)? - expected,
        sample_std(values)? / n.sqrt(),
        n - 1.0,
        alternative,
    )
}

/// Tests whether the mean of the differences `a[i] - b[i]` is zero.
pub fn paired_t_test(a: &[f64], b: &[f64], alternative: Alternative) -> Result<TTest, StatsError> {
    check_lengths("the samples of a paired t-test", a.len(), b.len())?;
    let differences: Vec<f64> = a.iter().zip(b).map(|(a, b)| a - b).collect();
    one_sample_t_test(&differences, 0.0, alternative)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [f64; 8] = [1.2, 0.7, 1.9, 1.4, 0.3, 2.2, 1.1, 0.9];
    const B: [f64; 6] = [0.4, 1.0, 0.1, 0.8, -0.3, 0.6];

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-10, "{found} {expected}");
    }

    /// ```python
    /// t = scipy.stats.ttest_ind(A, B, equal_var=..., alternative=...)
    /// t.statistic, t.df, t.pvalue
    /// ```
    #[test]
    fn two_sample_tests_agree_with_scipy() {
        let (a, b) = (Summary::of(&A).unwrap(), Summary::of(&B).unwrap());
        for (variances, alternative, t, degrees, p) in [
            (
                Variances::Equal,
                Alternative::TwoSided,
                2.556_392_370_875_572_7,
                12.0,
                0.025_168_020_404_196_57,
            ),
            (
                Variances::Equal,
                Alternative::Greater,
                2.556_392_370_875_572_7,
                12.0,
                0.012_584_010_202_098_284,
            ),
            (
                Variances::Equal,
                Alternative::Less,
                2.556_392_370_875_572_7,
                12.0,
                0.987_415_989_797_901_7,
            ),
            (
                Variances::Unequal,
                Alternative::TwoSided,
                2.660_168_018_320_047_3,
                11.972_381_192_240_272,
                0.020_819_993_539_265_17,
            ),
            (
                Variances::Unequal,
                Alternative::Greater,
                2.660_168_018_320_047_3,
                11.972_381_192_240_272,
                0.010_409_996_769_632_585,
            ),
            (
                Variances::Unequal,
                Alternative::Less,
                2.660_168_018_320_047_3,
                11.972_381_192_240_272,
                0.989_590_003_230_367_4,
            ),
        ] {
            let found = two_sample_t_test(&a, &b, variances, alternative).unwrap();
            close(found.t, t);
            close(found.degrees_of_freedom, degrees);
            close(found.p, p);
        }
    }

    /// ```python
    /// scipy.stats.ttest_ind(A, B, equal_var=...).confidence_interval(.9)
    /// ```
    #[test]
    fn intervals_agree_with_scipy() {
        let (a, b) = (Summary::of(&A).unwrap(), Summary::of(&B).unwrap());
        for (variances, low, high) in [
            (
                Variances::Equal,
                0.235_940_568_201_536_3,
                1.322_392_765_131_796_4,
            ),
            (
                Variances::Unequal,
                0.257_031_969_307_823,
                1.301_301_364_025_51,
            ),
        ] {
            let test = two_sample_t_test(&a, &b, variances, Alternative::Greater).unwrap();
            let interval = test.interval(0.9).unwrap();
            close(interval.low, low);
            close(interval.high, high);
            close(interval.estimate, 1.2125 - 2.6 / 6.0);
        }
    }

    /// ```python
    /// scipy.stats.ttest_rel(A[:6], B); scipy.stats.ttest_1samp(A, 1.0, alternative='greater')
    /// ```
    #[test]
    fn one_sample_and_paired_tests_agree_with_scipy() {
        let paired = paired_t_test(&A[..6], &B, Alternative::TwoSided).unwrap();
        close(paired.t, 2.726_843_877_088_886_5);
        close(paired.p, 0.041_435_698_769_451_58);
        assert_eq!(paired.degrees_of_freedom, 5.0);
        let one = one_sample_t_test(&A, 1.0, Alternative::Greater).unwrap();
        close(one.t, 0.969_790_077_310_176_7);
        close(one.p, 0.182_229_177_587_033_26);
    }

    /// Table 1 of the `FlowHF` paper: 200 completions a row, population standard deviations; its text gives
    /// p = 0.039 for the checkpoint at 17,500 steps against PPO.
    ///
    /// ```python
    /// f = sqrt(200/199)   # or 1, to take the printed std as it stands
    /// scipy.stats.ttest_ind_from_stats(m, s*f, 200, .872, .796*f, 200, equal_var=..., alternative='greater')
    /// ```
    #[test]
    fn the_papers_p_value_follows_from_its_table() {
        for (kind, mean, std, t, welch_p, student_p, degrees) in [
            (
                StdKind::Population,
                1.024,
                0.914,
                1.769_120_660_6,
                0.038_826_988_6,
                0.038_819_763_6,
                390.629_939_1,
            ),
            (
                StdKind::Population,
                0.966,
                0.987,
                1.045_780_177_3,
                0.148_162_853_1,
                0.148_148_624_3,
                380.910_234_0,
            ),
            (
                StdKind::Sample,
                1.024,
                0.914,
                1.773_560_117_2,
                0.038_457_487_3,
                0.038_450_273_4,
                390.629_939_1,
            ),
            (
                StdKind::Sample,
                0.966,
                0.987,
                1.048_404_472_9,
                0.147_558_522_0,
                0.147_544_259_4,
                380.910_234_0,
            ),
        ] {
            let flowhf = Summary::published(200, mean, std, kind).unwrap();
            let ppo = Summary::published(200, 0.872, 0.796, kind).unwrap();
            let test = |variances| {
                two_sample_t_test(&flowhf, &ppo, variances, Alternative::Greater).unwrap()
            };
            let (welch, student) = (test(Variances::Unequal), test(Variances::Equal));
            for (found, expected) in [
                (welch.t, t),
                (welch.p, welch_p),
                (student.p, student_p),
                (welch.degrees_of_freedom, degrees),
            ] {
                assert!((found - expected).abs() < 1e-7, "{found} {expected}");
            }
            assert_eq!(student.degrees_of_freedom, 398.0);
        }
    }

    #[test]
    fn senseless_input_is_an_error() {
        let constant = Summary::of(&[1.0, 1.0]).unwrap();
        assert_eq!(
            two_sample_t_test(&constant, &constant, Variances::Unequal, Alternative::Less),
            Err(StatsError::NoVariance { what: "a t-test" })
        );
        assert!(Summary::of(&[1.0]).is_err());
        assert!(Summary::published(1, 0.0, 1.0, StdKind::Sample).is_err());
        assert!(Summary::published(5, f64::NAN, 1.0, StdKind::Sample).is_err());
        assert!(Summary::published(5, 0.0, -1.0, StdKind::Sample).is_err());
        assert!(matches!(
            paired_t_test(&A, &B, Alternative::Less),
            Err(StatsError::Lengths { .. })
        ));
        assert!(one_sample_t_test(&A, f64::NAN, Alternative::Less).is_err());
        let test = one_sample_t_test(&A, 0.0, Alternative::Less).unwrap();
        assert!(test.interval(1.0).is_err());
    }

    #[test]
    fn extreme_statistics_keep_a_p_value_between_zero_and_one() {
        let far = [1e9, 1e9 + 1.0, 1e9 + 2.0];
        let test = one_sample_t_test(&far, 0.0, Alternative::TwoSided).unwrap();
        assert!((0.0..1e-12).contains(&test.p), "{test:?}");
    }
}
