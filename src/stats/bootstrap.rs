//! Bootstrap intervals.

use rayon::prelude::*;

use super::{
    describe::quantile_of_sorted,
    effect::Interval,
    error::{StatsError, check, check_level},
};
use crate::random::{Draws, Stream};

/// Percentile bootstrap intervals (Efron 1979): replicate `r` draws from counter `r` of the stream alone,
/// so that the result does not depend on the number of threads.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    replicates: usize,
    level: f64,
    stream: Stream,
}

impl Bootstrap {
    /// Takes `replicates` (at least 100; 10,000 are usual) and the coverage of the intervals.
    pub fn new(replicates: usize, level: f64, stream: Stream) -> Result<Self, StatsError> {
        check_level(level)?;
        if replicates < 100 {
            return Err(StatsError::OutOfRange {
                what: "the number of bootstrap replicates",
                value: replicates as f64,
                expected: "at least 100",
            });
        }
        Ok(Self {
            replicates,
            level,
            stream,
        })
    }

    /// The interval of any statistic of independent values.
    pub fn interval(
        &self,
        values: &[f64],
        statistic: impl Fn(&[f64]) -> Result<f64, StatsError> + Sync,
    ) -> Result<Interval, StatsError> {
        check("the bootstrap", values, 2)?;
        self.run(statistic(values)?, |draws| {
            let resampled: Vec<f64> = (0..values.len())
                .map(|_| values[draws.below(values.len())])
                .collect();
            statistic(&resampled)
        })
    }

    /// Replicates of a statistic of things that cross each other, such as runs and the questions that all of them
    /// answer: each replicate draws of every kind as many as there are (the pigeonhole bootstrap: Owen 2007). The
    /// statistic is told for each kind how often each thing is drawn.
    ///
    /// A question that is hard for one run is hard for the others: drawing questions anew for each run would average
    /// that out, and tell too narrow an interval.
    pub fn crossed<T: Send>(
        &self,
        sizes: &[usize],
        statistic: impl Fn(&[Vec<u32>]) -> T + Sync,
    ) -> Vec<T> {
        (0..self.replicates)
            .into_par_iter()
            .map(|replicate| {
                let mut draws = self.stream.at(replicate as u64);
                let mut counts = |size: &usize| {
                    let mut counts = vec![0; *size];
                    for _ in 0..*size {
                        counts[draws.below(*size)] += 1;
                    }
                    counts
                };
                statistic(&sizes.iter().map(&mut counts).collect::<Vec<_>>())
            })
            .collect()
    }

    /// The interval of replicates.
    pub fn interval_of(
        &self,
        estimate: f64,
        mut replicates: Vec<f64>,
    ) -> Result<Interval, StatsError> {
        check("a bootstrapped statistic", &replicates, 1)?;
        replicates.sort_unstable_by(f64::total_cmp);
        let tail = (1.0 - self.level) / 2.0;
        Ok(Interval {
            estimate,
            low: quantile_of_sorted(&replicates, tail),
            high: quantile_of_sorted(&replicates, 1.0 - tail),
            level: self.level,
        })
    }

    fn run(
        &self,
        estimate: f64,
        replicate: impl Fn(&mut Draws) -> Result<f64, StatsError> + Sync,
    ) -> Result<Interval, StatsError> {
        let found = (0..self.replicates)
            .into_par_iter()
            .map(|index| replicate(&mut self.stream.at(index as u64)))
            .collect::<Result<Vec<f64>, StatsError>>()?;
        self.interval_of(estimate, found)
    }
}

#[cfg(test)]
mod tests {
    use super::super::mean;
    use super::*;

    fn normal(n: usize, label: &str) -> Vec<f64> {
        let stream = Stream::new(1, label);
        (0..n)
            .map(|counter| stream.at(counter as u64).normal())
            .collect()
    }

    fn bootstrap(seed: u64) -> Bootstrap {
        Bootstrap::new(2000, 0.95, Stream::new(seed, "bootstrap")).unwrap()
    }

    #[test]
    fn interval_of_a_mean_is_near_the_normal_one() {
        let values = normal(400, "values");
        let found = bootstrap(1).interval(&values, mean).unwrap();
        let error = super::super::sample_std(&values).unwrap() / 20.0;
        assert!((found.estimate - mean(&values).unwrap()).abs() < 1e-15);
        assert!(
            (found.low - (found.estimate - 1.96 * error)).abs() < 0.01,
            "{found:?}"
        );
        assert!(
            (found.high - (found.estimate + 1.96 * error)).abs() < 0.01,
            "{found:?}"
        );
    }

    #[test]
    fn intervals_cover_the_truth_as_often_as_they_say() {
        let covered = (0..200)
            .filter(|trial| {
                let values = normal(50, &format!("trial {trial}"));
                let found = Bootstrap::new(400, 0.9, Stream::new(*trial, "coverage"))
                    .unwrap()
                    .interval(&values, mean)
                    .unwrap();
                found.low <= 0.0 && 0.0 <= found.high
            })
            .count();
        assert!(
            (165..=195).contains(&covered),
            "{covered} of 200 at level 0.9"
        );
    }

    #[test]
    fn what_crosses_is_drawn_once_for_all() {
        // Rows differ by 1, columns by a hundredth: the mean's variance is that of the rows.
        let statistic = |counts: &[Vec<u32>]| {
            assert_eq!(counts[0].iter().sum::<u32>(), 16);
            assert_eq!(counts[1].iter().sum::<u32>(), 100);
            let (rows, columns) = (normal(16, "rows"), normal(100, "columns"));
            let part = |values: &[f64], counts: &[u32]| {
                let sum = values.iter().zip(counts);
                sum.map(|(value, count)| value * f64::from(*count))
                    .sum::<f64>()
                    / values.len() as f64
            };
            part(&rows, &counts[0]) + 0.01 * part(&columns, &counts[1])
        };
        let bootstrap = bootstrap(2);
        let found = bootstrap.crossed(&[16, 100], statistic);
        let found = bootstrap.interval_of(0.0, found).unwrap();
        let rows = normal(16, "rows");
        let expected = 2.0 * 1.96 * super::super::population_std(&rows).unwrap() / 4.0;
        let width = found.high - found.low;
        assert!((width / expected - 1.0).abs() < 0.1, "{width} {expected}");
    }

    #[test]
    fn results_follow_from_the_stream_and_not_from_the_threads() {
        let values = normal(30, "values");
        let one = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        let four = rayon::ThreadPoolBuilder::new()
            .num_threads(4)
            .build()
            .unwrap();
        let run = || bootstrap(4).interval(&values, mean).unwrap();
        assert_eq!(one.install(run), four.install(run));
        assert_ne!(run(), bootstrap(5).interval(&values, mean).unwrap());
    }

    #[test]
    fn senseless_input_is_an_error() {
        let stream = Stream::new(1, "bootstrap");
        assert!(Bootstrap::new(10, 0.95, stream.clone()).is_err());
        assert!(Bootstrap::new(1000, 95.0, stream).is_err());
        let bootstrap = bootstrap(1);
        assert!(bootstrap.interval(&[1.0], mean).is_err());
        assert!(bootstrap.interval_of(0.0, vec![f64::NAN]).is_err());
    }
}
