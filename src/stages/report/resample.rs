//! The crossed bootstrap of a metric: a replicate draws runs, and one set of questions for all of them.
//!
//! Runs share their questions, and a question that one run answers badly the others answer badly, too. Questions are
//! therefore drawn by what they are, not run by run: every question that any run answers is drawn as often for all runs
//! that answer it. Where each run has questions of its own, this is a bootstrap of questions within runs. Any
//! [`Measurement`] can be resampled, also those that are no means, such as the diversity of the top K.

use std::collections::BTreeMap;

use super::measure::Measurement;
use crate::stats::{Bootstrap, Interval, StatsError, mean};

/// The questions that any of some runs answers, each at a place of its own.
#[derive(Debug)]
pub(super) struct Questions<K>(BTreeMap<K, usize>);

impl<K: Ord> Questions<K> {
    pub(super) fn new() -> Self {
        Self(BTreeMap::new())
    }

    /// Returns the place of a question.
    pub(super) fn place(&mut self, question: K) -> usize {
        let next = self.0.len();
        *self.0.entry(question).or_insert(next)
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }
}

/// A metric of one run, and the completions that belong to each question it answers.
#[derive(Debug)]
pub(super) struct Measured {
    measurement: Measurement,
    /// The place of each question among all, with the completions.
    questions: Vec<(usize, Vec<usize>)>,
}

impl Measured {
    pub(super) fn new(measurement: Measurement, questions: Vec<(usize, Vec<usize>)>) -> Self {
        Self {
            measurement,
            questions,
        }
    }

    /// The mean of one value a question.
    pub(super) fn mean_of(values: &[f64], places: impl IntoIterator<Item = usize>) -> Self {
        Self {
            measurement: Measurement::Mean(values.iter().copied().enumerate().collect()),
            questions: places
                .into_iter()
                .enumerate()
                .map(|(at, place)| (place, vec![at]))
                .collect(),
        }
    }

    fn completions(&self) -> usize {
        self.questions
            .iter()
            .map(|(_, completions)| completions.len())
            .sum()
    }

    /// The metric as measured.
    pub(super) fn value(&self) -> f64 {
        self.measurement.of(&vec![1; self.completions()])
    }

    /// The metric where each question is drawn so often.
    pub(super) fn at(&self, drawn: &[u32]) -> f64 {
        let mut counts = vec![0; self.completions()];
        for (place, completions) in &self.questions {
            for completion in completions {
                counts[*completion] = drawn[*place];
            }
        }
        if counts.iter().all(|count| *count == 0) {
            // Only a run with few questions that no other answers.
            return self.value();
        }
        self.measurement.of(&counts)
    }
}

/// Returns `a - b`, and 0 where only rounding tells them apart: it would look like a difference without any spread.
pub(super) fn difference(a: f64, b: f64) -> f64 {
    const ROUNDING: f64 = 1e-12;
    if (a - b).abs() <= ROUNDING * a.abs().max(b.abs()) {
        0.0
    } else {
        a - b
    }
}

/// Returns the interval of the mean over runs of a value, which is given for each run by how often each question is drawn.
pub(super) fn crossed_mean(
    bootstrap: &Bootstrap,
    (runs, questions): (usize, usize),
    value: impl Fn(usize, &[u32]) -> f64 + Sync,
) -> Result<Interval, StatsError> {
    let once = vec![1; questions];
    let measured: Vec<f64> = (0..runs).map(|run| value(run, &once)).collect();
    let replicates = bootstrap.crossed(&[runs, questions], |drawn| {
        mean_of_drawn(&drawn[0], |run| value(run, &drawn[1]))
    });
    bootstrap.interval_of(mean(&measured)?, replicates)
}

/// The mean of a value over runs, each drawn so often.
pub(super) fn mean_of_drawn(runs: &[u32], value: impl Fn(usize) -> f64) -> f64 {
    let drawn = runs.iter().enumerate().filter(|(_, count)| **count > 0);
    let sum: f64 = drawn
        .map(|(run, count)| f64::from(*count) * value(run))
        .sum();
    sum / runs.len() as f64
}

/// Returns the interval of the mean of a metric over runs.
pub(super) fn crossed_mean_of<K: Ord>(
    bootstrap: &Bootstrap,
    runs: &[Measured],
    questions: &Questions<K>,
) -> Result<Interval, StatsError> {
    let shape = (runs.len(), questions.count());
    crossed_mean(bootstrap, shape, |run, drawn| runs[run].at(drawn))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    const RUNS: usize = 3;

    fn bootstrap(label: &str) -> Bootstrap {
        Bootstrap::new(4000, 0.95, Stream::new(1, label)).unwrap()
    }

    /// Values of runs at questions: a part of the question, one of the run and one of both.
    fn values(of_question: f64, of_run: f64, of_both: f64) -> Vec<Vec<f64>> {
        let normal = |label: &str, at: usize| Stream::new(1, label).at(at as u64).normal();
        (0..RUNS)
            .map(|run| {
                (0..100)
                    .map(|question| {
                        of_question * normal("question", question)
                            + of_run * normal("run", run)
                            + of_both * normal("both", 100 * run + question)
                    })
                    .collect()
            })
            .collect()
    }

    fn width(values: &[Vec<f64>], shared: bool) -> f64 {
        let mut questions = Questions::new();
        let measured: Vec<Measured> = values
            .iter()
            .enumerate()
            .map(|(run, values)| {
                let of = if shared { 0 } else { run };
                let places = (0..values.len()).map(|question| questions.place((of, question)));
                Measured::mean_of(values, places.collect::<Vec<_>>())
            })
            .collect();
        let found = crossed_mean_of(&bootstrap("width"), &measured, &questions).unwrap();
        assert!(found.low < found.estimate && found.estimate < found.high);
        found.high - found.low
    }

    /// Twice 1.96 standard errors.
    fn expected(variance: f64) -> f64 {
        2.0 * 1.96 * variance.sqrt()
    }

    #[test]
    fn what_all_runs_share_does_not_average_out_over_runs() {
        // One question's part is in all runs: 1 / 100, not 1 / 300.
        let values = values(1.0, 0.0, 0.1);
        let (crossed, apart) = (width(&values, true), width(&values, false));
        assert!(
            (crossed / expected(0.01) - 1.0).abs() < 0.15,
            "{crossed}, not {}",
            expected(0.01)
        );
        // A run that is drawn twice counts twice: on average 5/3 of the variance of three runs each drawn once.
        let variance = 0.01 / 3.0 * 5.0 / 3.0;
        assert!(
            (apart / expected(variance) - 1.0).abs() < 0.15,
            "{apart}, not {}",
            expected(variance)
        );
    }

    #[test]
    fn questions_of_each_runs_own_are_drawn_within_it() {
        // Values that share nothing: whether their questions are called the same hardly matters.
        let values = values(0.0, 0.0, 1.0);
        let (crossed, apart) = (width(&values, true), width(&values, false));
        assert!((crossed / apart - 1.0).abs() < 0.15, "{crossed} {apart}");
    }

    #[test]
    fn all_samples_of_a_question_are_drawn_together() {
        // The means of the two questions are 1/4 and 7/8, so a resampled mean is one of three numbers.
        let grouped = Measured::new(
            Measurement::Mean(vec![(0, 0.0), (1, 1.0), (2, 0.5), (3, 0.75)]),
            vec![(0, vec![0, 2]), (1, vec![1, 3])],
        );
        let found = bootstrap("grouped").crossed(&[1, 2], |drawn| grouped.at(&drawn[1]));
        assert!(
            found
                .iter()
                .all(|value| [0.25, 0.5625, 0.875].contains(value)),
            "{found:?}"
        );
        assert!(
            [0.25, 0.5625, 0.875]
                .iter()
                .all(|value| found.contains(value))
        );
    }

    #[test]
    fn a_run_without_a_drawn_question_is_as_measured() {
        let one = Measured::mean_of(&[2.0, 4.0], [5, 6]);
        assert_eq!(one.at(&[1, 1, 1, 1, 1, 0, 0]), 3.0);
        assert_eq!(one.at(&[1, 1, 1, 1, 1, 0, 1]), 4.0);
    }

    #[test]
    fn rounding_is_no_difference() {
        assert_eq!(difference(0.1 + 0.2, 0.3), 0.0);
        assert_eq!(difference(0.0, 0.0), 0.0);
        assert_eq!(difference(1.0, 1.0 - 1e-9), 1.0 - (1.0 - 1e-9));
    }

    #[test]
    fn replicates_do_not_depend_on_the_threads() {
        let values = values(1.0, 1.0, 1.0);
        let one = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        let found = || width(&values, true);
        assert_eq!(one.install(found), found());
    }
}
