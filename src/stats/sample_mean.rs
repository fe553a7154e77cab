//! How well the mean of a few values is known.

use super::{
    describe::{mean, sample_std},
    distributions::{student_above, student_quantile},
    effect::Interval,
    error::StatsError,
};

/// The mean of at least two independent values of a normal distribution (Student 1908).
///
/// Other than for a t-test the values may all be equal: the interval is then the value itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleMean {
    /// How many values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation, with divisor `n - 1`.
    pub std: f64,
}

impl SampleMean {
    /// Takes at least two values.
    pub fn of(values: &[f64]) -> Result<Self, StatsError> {
        Ok(Self {
            n: values.len(),
            mean: mean(values)?,
            std: sample_std(values)?,
        })
    }

    fn error(&self) -> f64 {
        self.std / (self.n as f64).sqrt()
    }

    /// How many standard errors the two-sided `1 - alpha` interval of `n` values reaches.
    pub fn reach(n: usize, alpha: f64) -> f64 {
        student_quantile(1.0 - alpha / 2.0, (n - 1) as f64)
    }

    /// The interval that reaches so many standard errors.
    pub fn within(&self, reach: f64, alpha: f64) -> Interval {
        let reach = reach * self.error();
        Interval {
            estimate: self.mean,
            low: self.mean - reach,
            high: self.mean + reach,
            level: 1.0 - alpha,
        }
    }

    /// The two-sided interval with coverage `1 - alpha`.
    pub fn interval(&self, alpha: f64) -> Interval {
        self.within(Self::reach(self.n, alpha), alpha)
    }

    /// The one-sided p-value against a true mean of at most `bound`.
    pub fn p_above(&self, bound: f64) -> f64 {
        self.p_of_gap(self.mean - bound)
    }

    /// The one-sided p-value against a true mean of at least `bound`.
    pub fn p_below(&self, bound: f64) -> f64 {
        self.p_of_gap(bound - self.mean)
    }

    fn p_of_gap(&self, gap: f64) -> f64 {
        if self.std > 0.0 {
            student_above(gap / self.error(), (self.n - 1) as f64)
        } else {
            f64::from(u8::from(gap <= 0.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: [f64; 5] = [0.3, -0.1, 0.25, 0.4, 0.1];

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-13, "{found}, not {expected}");
    }

    /// ```python
    /// scipy.stats.ttest_1samp(V, 0).confidence_interval(.95); .pvalue; ttest_1samp(V, .05, alternative='greater').pvalue
    /// ```
    #[test]
    fn intervals_and_p_values_are_scipys() {
        let found = SampleMean::of(&VALUES).unwrap();
        let interval = found.interval(0.05);
        close(interval.low, -0.052_044_872_716_906_75);
        close(interval.high, 0.432_044_872_716_906_7);
        close(found.interval(0.01).high, 0.591_375_685_413_770_4);
        close(2.0 * found.p_above(0.0), 0.094_802_825_789_733_92);
        close(found.p_above(0.05), 0.091_783_430_027_638_32);
        close(found.p_below(0.05), 1.0 - 0.091_783_430_027_638_32);
    }

    #[test]
    fn a_p_value_is_where_the_interval_touches_the_bound() {
        let found = SampleMean::of(&VALUES).unwrap();
        close(found.interval(2.0 * found.p_above(0.03)).low, 0.03);
        close(found.interval(2.0 * found.p_below(0.7)).high, 0.7);
    }

    #[test]
    fn equal_values_are_their_own_interval() {
        let found = SampleMean::of(&[0.25; 4]).unwrap();
        let interval = found.interval(0.05);
        assert_eq!((interval.low, interval.high), (0.25, 0.25));
        assert_eq!((found.p_above(0.2), found.p_above(0.25)), (0.0, 1.0));
        assert_eq!((found.p_below(0.3), found.p_below(0.2)), (0.0, 1.0));
        assert!(SampleMean::of(&[1.0]).is_err());
    }
}
