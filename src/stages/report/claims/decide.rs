//! What decides a claim, given one number of each run: the rule that [`Claims`](super::Claims) documents.

use super::Direction;
use crate::engine::stage::StageError;
use crate::random::Stream;
use crate::stats::{Interval, SampleMean, clopper_pearson, runs_for_power};

/// The probability of a decision for which runs are counted.
const POWER: f64 = 0.8;

/// No more runs than this are asked for.
const MOST_RUNS: usize = 10_000;

/// What a test says of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Supported,
    Contradicted,
    /// A difference in the claim's direction that is less than its margin.
    BelowMargin,
    Inconclusive,
    TooFewRuns {
        runs: usize,
        needed: usize,
    },
}

impl Verdict {
    pub(super) fn text(self) -> String {
        match self {
            Self::Supported => "supported".to_owned(),
            Self::Contradicted => "contradicted".to_owned(),
            Self::BelowMargin => "below the margin".to_owned(),
            Self::Inconclusive => "inconclusive".to_owned(),
            Self::TooFewRuns { runs, needed } => format!("too few runs ({runs} of {needed})"),
        }
    }

    /// Whether it says anything of the claim.
    pub(super) fn is_decided(self) -> bool {
        matches!(
            self,
            Self::Supported | Self::Contradicted | Self::BelowMargin
        )
    }
}

/// How the numbers of the runs decide a claim.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rule {
    /// By the mean of differences `a - b`.
    Difference {
        direction: Direction,
        margin: f64,
        /// The difference for which runs are counted.
        effect: Option<f64>,
    },
    /// By the mean of the logarithms of ratios, against that of the greatest ratio.
    Ratio { most: f64 },
    /// By the share of runs of which something is true (1, else 0), against one half.
    Share,
}

impl Rule {
    /// The interval at level `1 - alpha`; `None` if one run is all there is of a mean.
    pub(super) fn interval(
        &self,
        runs: &[f64],
        alpha: f64,
    ) -> Result<Option<Interval>, StageError> {
        match self {
            Self::Share => Ok(Some(clopper_pearson(hits(runs), runs.len(), 1.0 - alpha)?)),
            _ if runs.len() < 2 => Ok(None),
            _ => Ok(Some(SampleMean::of(runs)?.interval(alpha))),
        }
    }

    /// What an interval says.
    pub(super) fn verdict(&self, interval: &Interval) -> Verdict {
        let (low, high) = (interval.low, interval.high);
        match *self {
            Self::Difference {
                direction, margin, ..
            } => {
                // `less` is `greater` of `b - a`.
                let (low, high) = match direction {
                    Direction::Less => (-high, -low),
                    Direction::Greater | Direction::Equal => (low, high),
                };
                match direction {
                    Direction::Equal if low > -margin && high < margin => Verdict::Supported,
                    Direction::Equal if low > margin || high < -margin => Verdict::Contradicted,
                    Direction::Equal => Verdict::Inconclusive,
                    _ if low > margin => Verdict::Supported,
                    _ if high < 0.0 => Verdict::Contradicted,
                    _ if low > 0.0 && high < margin => Verdict::BelowMargin,
                    _ => Verdict::Inconclusive,
                }
            }
            Self::Ratio { most } if high <= most => Verdict::Supported,
            Self::Ratio { most } if low > most => Verdict::Contradicted,
            Self::Share if low > 0.5 => Verdict::Supported,
            Self::Share if high < 0.5 => Verdict::Contradicted,
            Self::Ratio { .. } | Self::Share => Verdict::Inconclusive,
        }
    }

    /// The p-value of a difference: the least `alpha` at which its interval decides the claim, 1 for one run.
    pub(super) fn p(&self, runs: &[f64]) -> Result<f64, StageError> {
        let Self::Difference {
            direction, margin, ..
        } = *self
        else {
            return Ok(1.0);
        };
        if runs.len() < 2 {
            return Ok(1.0);
        }
        let found = SampleMean::of(runs)?;
        let (above, below) = (|bound| found.p_above(bound), |bound| found.p_below(bound));
        let one_sided = match direction {
            Direction::Equal => {
                let within = above(-margin).max(below(margin));
                within.min(above(margin)).min(below(-margin))
            }
            Direction::Greater => {
                let between = above(0.0).max(below(margin));
                between.min(above(margin)).min(below(0.0))
            }
            Direction::Less => {
                let between = below(0.0).max(above(-margin));
                between.min(below(-margin)).min(above(0.0))
            }
        };
        Ok((2.0 * one_sided).min(1.0))
    }

    /// The fewest runs with which a claim can be decided at all.
    pub(super) fn fewest(&self, min_runs: usize, alpha: f64) -> Result<usize, StageError> {
        match self {
            Self::Share => Ok(min_runs.max(unanimous(0, 0, alpha)?.unwrap_or(min_runs))),
            _ => Ok(min_runs),
        }
    }

    /// What an interval says if the numbers of some runs are only the least that they can be: they speak for no ratio.
    pub(super) fn verdict_of(&self, interval: &Interval, has_bounds: bool) -> Verdict {
        match self.verdict(interval) {
            Verdict::Supported if has_bounds => Verdict::Inconclusive,
            verdict => verdict,
        }
    }

    /// The share of resamples of the runs that have the same verdict; with each number comes whether it is only the least
    /// that it can be.
    pub(super) fn stability(
        &self,
        (runs, is_bound): (&[f64], &[bool]),
        alpha: f64,
        verdict: Verdict,
        (stream, replicates): (&Stream, usize),
    ) -> Result<f64, StageError> {
        let n = runs.len();
        let resampled = (0..replicates).map(|replicate| {
            let mut draws = stream.at(replicate as u64);
            let mut has_bounds = false;
            let drawn = (0..n).map(|_| {
                let run = draws.below(n);
                has_bounds |= is_bound[run];
                runs[run]
            });
            (drawn.collect::<Vec<f64>>(), has_bounds)
        });
        let same = match self {
            Self::Share => {
                // Few different resamples: how many hits they have.
                let by_hits = (0..=n)
                    .map(|hits| Ok(self.verdict(&clopper_pearson(hits, n, 1.0 - alpha)?)))
                    .collect::<Result<Vec<Verdict>, StageError>>()?;
                resampled
                    .filter(|(runs, _)| by_hits[hits(runs)] == verdict)
                    .count()
            }
            _ => {
                let reach = SampleMean::reach(n, alpha);
                let mut same = 0;
                for (runs, has_bounds) in resampled {
                    let interval = SampleMean::of(&runs)?.within(reach, alpha);
                    same += usize::from(self.verdict_of(&interval, has_bounds) == verdict);
                }
                same
            }
        };
        Ok(same as f64 / replicates as f64)
    }

    /// How many runs an undecided claim would take; `None` if that cannot be said.
    pub(super) fn needed(&self, runs: &[f64], alpha: f64) -> Result<Option<Needed>, StageError> {
        if matches!(self, Self::Share) {
            let runs = unanimous(hits(runs), runs.len(), alpha)?;
            return Ok(runs.map(|runs| Needed {
                runs: Some(runs),
                at: None,
            }));
        }
        if runs.len() < 2 {
            return Ok(None);
        }
        let SampleMean { mean, std, .. } = SampleMean::of(runs)?;
        // What the true difference is taken to be, and its distance to the bounds that the interval must keep within.
        let (at, below, above) = match *self {
            Self::Difference {
                direction: Direction::Equal,
                margin,
                effect,
            } => {
                let effect = effect.unwrap_or(0.0);
                (At::Stated(effect), effect + margin, margin - effect)
            }
            Self::Difference {
                margin,
                effect: Some(effect),
                ..
            } => (At::Stated(effect), effect - margin, f64::INFINITY),
            Self::Difference { margin, .. } if margin > 0.0 => {
                (At::Stated(margin), margin, f64::INFINITY)
            }
            Self::Ratio { most } => (At::Seen, (mean - most).abs(), f64::INFINITY),
            Self::Difference { .. } | Self::Share => (At::Seen, mean.abs(), f64::INFINITY),
        };
        if std == 0.0 || below == 0.0 {
            return Ok(None);
        }
        Ok(Some(Needed {
            runs: runs_for_power(below / std, above / std, alpha, POWER, MOST_RUNS),
            at: Some(at),
        }))
    }
}

/// How many runs it would take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Needed {
    /// `None` for more than anyone makes.
    pub(super) runs: Option<usize>,
    /// The true difference for which this holds.
    pub(super) at: Option<At>,
}

/// A true difference that is assumed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum At {
    /// One that the claim states.
    Stated(f64),
    /// The one seen.
    Seen,
}

impl Needed {
    /// The same, but no fewer than decide anything.
    pub(super) fn at_least(self, min_runs: usize) -> Self {
        Self {
            runs: self.runs.map(|runs| runs.max(min_runs)),
            ..self
        }
    }

    pub(super) fn text(self) -> String {
        let runs = self
            .runs
            .map_or_else(|| format!("over {MOST_RUNS}"), |runs| runs.to_string());
        match self.at {
            None => runs,
            Some(At::Seen) => format!("{runs} at the effect seen"),
            Some(At::Stated(effect)) => format!("{runs} at {effect}"),
        }
    }
}

fn hits(runs: &[f64]) -> usize {
    runs.iter().filter(|run| **run > 0.5).count()
}

/// The fewest runs, among them `n` with `hits`, that decide a share if all further ones agree with most of these.
fn unanimous(hits: usize, n: usize, alpha: f64) -> Result<Option<usize>, StageError> {
    let most = hits.max(n - hits);
    for runs in n.max(1)..=MOST_RUNS {
        let interval = clopper_pearson(most + runs - n, runs, 1.0 - alpha)?;
        if interval.low > 0.5 {
            return Ok(Some(runs));
        }
    }
    Ok(None)
}
