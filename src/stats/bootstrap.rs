//! Bootstrap intervals.

use rayon::prelude::*;

use super::{
    describe::{mean, quantile_of_sorted},
    effect::Interval,
    error::{StatsError, check, check_lengths, check_level},
};
use crate::random::{Draws, Stream};

/// How the rows of two hierarchical samples belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// Not at all: both are resampled independently.
    Independent,
    /// Run `i` of both shares a seed (data, initial weights, reward model): runs are resampled together.
    Runs,
    /// Value `j` of run `i` of both is about the same prompt, too: everything is resampled together.
    RunsAndPrompts,
}

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

    /// The interval of the mean over runs of their means, where `runs[i]` holds the values of one run
    /// (one per prompt): runs are resampled, then the values within each drawn run, because values of
    /// one run are not independent (Davison and Hinkley 1997, section 3.8).
    pub fn mean_of_runs(&self, runs: &[Vec<f64>]) -> Result<Interval, StatsError> {
        check_runs(runs)?;
        self.run(mean_of_means(runs)?, |draws| resampled_mean(runs, draws))
    }

    /// The interval of the difference `a - b` of [`Self::mean_of_runs`].
    pub fn difference_of_runs(
        &self,
        a: &[Vec<f64>],
        b: &[Vec<f64>],
        pairing: Pairing,
    ) -> Result<Interval, StatsError> {
        check_runs(a)?;
        check_runs(b)?;
        if pairing != Pairing::Independent {
            check_lengths("paired sets of runs", a.len(), b.len())?;
        }
        if pairing == Pairing::RunsAndPrompts {
            for (a, b) in a.iter().zip(b) {
                check_lengths("paired runs", a.len(), b.len())?;
            }
        }
        let estimate = mean_of_means(a)? - mean_of_means(b)?;
        self.run(estimate, |draws| {
            if pairing == Pairing::Independent {
                return Ok(resampled_mean(a, draws)? - resampled_mean(b, draws)?);
            }
            let mut sum = 0.0;
            for _ in 0..a.len() {
                let run = draws.below(a.len());
                let (a, b) = (&a[run], &b[run]);
                sum += if pairing == Pairing::Runs {
                    resampled_row_mean(a, draws) - resampled_row_mean(b, draws)
                } else {
                    let differences = (0..a.len()).map(|_| {
                        let prompt = draws.below(a.len());
                        a[prompt] - b[prompt]
                    });
                    differences.sum::<f64>() / a.len() as f64
                };
            }
            Ok(sum / a.len() as f64)
        })
    }

    /// Replicates of a statistic of runs that answer questions: each of them draws runs, and one set of questions for
    /// all its runs (the pigeonhole bootstrap: Owen 2007). The statistic is told how often each run and each question is
    /// drawn.
    ///
    /// A question that is hard for one run is hard for the others: drawing questions anew for each run would average
    /// that out, and tell too narrow an interval.
    pub fn crossed(
        &self,
        runs: usize,
        questions: usize,
        statistic: impl Fn(&[u32], &[u32]) -> f64 + Sync,
    ) -> Vec<f64> {
        (0..self.replicates)
            .into_par_iter()
            .map(|replicate| {
                let mut draws = self.stream.at(replicate as u64);
                let mut counts = |n: usize| {
                    let mut counts = vec![0; n];
                    for _ in 0..n {
                        counts[draws.below(n)] += 1;
                    }
                    counts
                };
                statistic(&counts(runs), &counts(questions))
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

fn check_runs(runs: &[Vec<f64>]) -> Result<(), StatsError> {
    if runs.is_empty() {
        return Err(StatsError::TooFew {
            what: "the hierarchical bootstrap",
            needed: 1,
            found: 0,
        });
    }
    runs.iter()
        .try_for_each(|run| check("a run of the hierarchical bootstrap", run, 1))
}

fn mean_of_means(runs: &[Vec<f64>]) -> Result<f64, StatsError> {
    let means = runs
        .iter()
        .map(|run| mean(run))
        .collect::<Result<Vec<f64>, StatsError>>()?;
    mean(&means)
}

fn resampled_mean(runs: &[Vec<f64>], draws: &mut Draws) -> Result<f64, StatsError> {
    let means: Vec<f64> = (0..runs.len())
        .map(|_| {
            let run = draws.below(runs.len());
            resampled_row_mean(&runs[run], draws)
        })
        .collect();
    mean(&means)
}

fn resampled_row_mean(row: &[f64], draws: &mut Draws) -> f64 {
    let sum: f64 = (0..row.len()).map(|_| row[draws.below(row.len())]).sum();
    sum / row.len() as f64
}

#[cfg(test)]
mod tests {
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
    fn runs_that_differ_widen_the_interval() {
        let same: Vec<Vec<f64>> = (0..4)
            .map(|run| normal(100, &format!("run {run}")))
            .collect();
        let shifted: Vec<Vec<f64>> = same
            .iter()
            .enumerate()
            .map(|(run, values)| values.iter().map(|value| value + run as f64).collect())
            .collect();
        let width = |runs: &[Vec<f64>]| {
            let found = bootstrap(2).mean_of_runs(runs).unwrap();
            found.high - found.low
        };
        assert!(width(&same) < 0.35, "{}", width(&same));
        assert!(width(&shifted) > 1.5, "{}", width(&shifted));
    }

    #[test]
    fn pairing_takes_out_what_the_pairs_share() {
        let a: Vec<Vec<f64>> = (0..4)
            .map(|run| {
                normal(50, &format!("run {run}"))
                    .iter()
                    .map(|x| x + 3.0 * f64::from(run))
                    .collect()
            })
            .collect();
        let b: Vec<Vec<f64>> = a
            .iter()
            .map(|run| run.iter().map(|value| value - 0.5).collect())
            .collect();
        let width = |pairing| {
            let found = bootstrap(3).difference_of_runs(&a, &b, pairing).unwrap();
            assert!((found.estimate - 0.5).abs() < 1e-12);
            found.high - found.low
        };
        assert!(width(Pairing::Independent) > 3.0);
        assert!(
            (0.1..1.0).contains(&width(Pairing::Runs)),
            "{}",
            width(Pairing::Runs)
        );
        assert!(width(Pairing::RunsAndPrompts) < 1e-9);
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
        let run = || bootstrap(4).interval(&values, super::super::mean).unwrap();
        assert_eq!(one.install(run), four.install(run));
        assert_ne!(
            run(),
            bootstrap(5).interval(&values, super::super::mean).unwrap()
        );
    }

    #[test]
    fn senseless_input_is_an_error() {
        let stream = Stream::new(1, "bootstrap");
        assert!(Bootstrap::new(10, 0.95, stream.clone()).is_err());
        assert!(Bootstrap::new(1000, 95.0, stream).is_err());
        let bootstrap = bootstrap(1);
        assert!(bootstrap.interval(&[1.0], mean).is_err());
        assert!(bootstrap.mean_of_runs(&[]).is_err());
        assert!(bootstrap.mean_of_runs(&[vec![1.0], vec![]]).is_err());
        assert!(bootstrap.mean_of_runs(&[vec![1.0, f64::NAN]]).is_err());
        let (a, b) = ([vec![1.0, 2.0]], [vec![1.0]]);
        assert!(
            bootstrap
                .difference_of_runs(&a, &b, Pairing::RunsAndPrompts)
                .is_err()
        );
        assert!(bootstrap.difference_of_runs(&a, &b, Pairing::Runs).is_ok());
    }
}
