//! The hierarchical bootstrap of the difference of a metric between two policies.
//!
//! Runs are drawn with replacement, then questions within each drawn run (Davison and Hinkley 1997, section 3.8): the
//! completions of one run share its weights and are not independent. Any [`Measurement`] can be resampled, also those
//! that are no means, such as the diversity of the top K.

use rayon::prelude::*;

use super::measure::Measurement;
use crate::random::{Draws, Stream};

/// A metric of one run, and the completions that belong to each question.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) measurement: Measurement,
    pub(super) questions: Vec<Vec<usize>>,
}

impl Measured {
    fn completions(&self) -> usize {
        self.questions.iter().map(Vec::len).sum()
    }

    /// The metric as measured.
    pub(super) fn value(&self) -> f64 {
        self.measurement.of(&vec![1; self.completions()])
    }

    fn at(&self, drawn: &[usize]) -> f64 {
        let mut counts = vec![0; self.completions()];
        for question in drawn {
            for completion in &self.questions[*question] {
                counts[*completion] += 1;
            }
        }
        self.measurement.of(&counts)
    }
}

/// The same run of two policies.
#[derive(Debug)]
pub(super) struct RunPair {
    pub(super) a: Measured,
    pub(super) b: Measured,
    /// Whether both answer the same questions in the same order, which are then drawn together.
    pub(super) same_questions: bool,
}

impl RunPair {
    /// The measured difference `a - b`.
    pub(super) fn effect(&self) -> f64 {
        self.a.value() - self.b.value()
    }

    fn resampled(&self, draws: &mut Draws) -> f64 {
        let mut draw = |n: usize| -> Vec<usize> { (0..n).map(|_| draws.below(n)).collect() };
        let first = draw(self.a.questions.len());
        let a = self.a.at(&first);
        if self.same_questions {
            a - self.b.at(&first)
        } else {
            a - self.b.at(&draw(self.b.questions.len()))
        }
    }
}

/// Returns `replicates` resampled means over runs of the difference; replicate `r` draws from counter `r` of the
/// stream alone, so that the result does not depend on the number of threads.
pub(super) fn resampled_effects(runs: &[RunPair], replicates: usize, stream: &Stream) -> Vec<f64> {
    (0..replicates)
        .into_par_iter()
        .map(|replicate| {
            let mut draws = stream.at(replicate as u64);
            let sum: f64 = (0..runs.len())
                .map(|_| {
                    let run = draws.below(runs.len());
                    runs[run].resampled(&mut draws)
                })
                .sum();
            sum / runs.len() as f64
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Bootstrap, Pairing, quantile};

    fn values(label: &str, n: usize, shift: f64) -> Vec<f64> {
        let stream = Stream::new(1, label);
        (0..n as u64)
            .map(|at| shift + stream.at(at).normal())
            .collect()
    }

    fn measured(values: &[f64]) -> Measured {
        Measured {
            measurement: Measurement::Mean(values.iter().copied().enumerate().collect()),
            questions: (0..values.len()).map(|at| vec![at]).collect(),
        }
    }

    fn pairs(same_questions: bool) -> (Vec<RunPair>, Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let a: Vec<Vec<f64>> = (0..3)
            .map(|run| values(&format!("a {run}"), 60, 0.2 * f64::from(run)))
            .collect();
        let b: Vec<Vec<f64>> = (0..3)
            .map(|run| {
                a[run]
                    .iter()
                    .zip(values("b", 60, -0.5))
                    .map(|(a, b)| a + 0.2 * b)
                    .collect()
            })
            .collect();
        let runs = a.iter().zip(&b).map(|(a, b)| RunPair {
            a: measured(a),
            b: measured(b),
            same_questions,
        });
        (runs.collect(), a, b)
    }

    #[test]
    fn means_have_the_interval_of_the_bootstrap_of_means() {
        for (same, pairing) in [(true, Pairing::RunsAndPrompts), (false, Pairing::Runs)] {
            let (runs, a, b) = pairs(same);
            let found = resampled_effects(&runs, 4000, &Stream::new(1, "here"));
            let expected = Bootstrap::new(4000, 0.9, Stream::new(1, "there")).unwrap();
            let expected = expected.difference_of_runs(&a, &b, pairing).unwrap();
            let effect = runs.iter().map(RunPair::effect).sum::<f64>() / 3.0;
            assert!((effect - expected.estimate).abs() < 1e-12);
            let width = expected.high - expected.low;
            for (probability, expected) in [(0.05, expected.low), (0.95, expected.high)] {
                let found = quantile(&found, probability).unwrap();
                assert!(
                    (found - expected).abs() < 0.1 * width,
                    "{same}: {found}, not {expected}"
                );
            }
        }
    }

    #[test]
    fn all_samples_of_a_question_are_drawn_together() {
        // The means of the two questions are 1/4 and 7/8, so a resampled mean is one of three numbers.
        let grouped = Measured {
            measurement: Measurement::Mean(vec![(0, 0.0), (1, 1.0), (2, 0.5), (3, 0.75)]),
            questions: vec![vec![0, 2], vec![1, 3]],
        };
        let zero = Measured {
            measurement: Measurement::Mean(vec![(0, 0.0)]),
            questions: vec![vec![0]],
        };
        let pair = RunPair {
            a: grouped,
            b: zero,
            same_questions: false,
        };
        let found = resampled_effects(&[pair], 200, &Stream::new(1, "grouped"));
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
    fn replicates_do_not_depend_on_the_threads() {
        let (runs, ..) = pairs(true);
        let one = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        let stream = Stream::new(1, "threads");
        assert_eq!(
            one.install(|| resampled_effects(&runs, 200, &stream)),
            resampled_effects(&runs, 200, &stream)
        );
        assert_ne!(
            resampled_effects(&runs, 200, &stream),
            resampled_effects(&runs, 200, &Stream::new(2, "threads"))
        );
    }
}
