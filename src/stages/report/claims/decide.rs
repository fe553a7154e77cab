//! What decides a claim: the rule that [`Claims`] documents.

use std::collections::BTreeMap;

use super::{Claim, Claims, Direction, Test};
use crate::artifacts::curve::{Curve, Status};
use crate::engine::stage::StageError;
use crate::excerpt::listed;
use crate::random::Stream;
use crate::stages::report::groups::{Row, row_named, training_of, within};
use crate::stages::report::measure::{Metric, Rightness};
use crate::stages::report::resample::{Measured, RunPair, resampled_effects};
use crate::stages::report::scored::Scored;
use crate::stats::{Alternative, mean, paired_t_test, quantile};

/// What a test says of a claim at this scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Supported,
    Contradicted,
    Inconclusive,
}

impl Verdict {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Supported => "supported",
            Self::Contradicted => "contradicted",
            Self::Inconclusive => "inconclusive",
        }
    }

    /// The verdict on what is either true or not of each run.
    fn count(holding: usize, runs: usize) -> Self {
        match (holding, runs) {
            (_, 0) => Self::Inconclusive,
            (holding, runs) if holding == runs => Self::Supported,
            (0, _) => Self::Contradicted,
            _ => Self::Inconclusive,
        }
    }
}

/// What was found about one claim.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) test: String,
    pub(super) values: (Option<f64>, Option<f64>),
    pub(super) effect: f64,
    /// For a difference: its interval, and what the replicates say.
    pub(super) bootstrap: Option<Bootstrapped>,
    pub(super) holding: usize,
    pub(super) runs: usize,
}

#[derive(Debug)]
pub(super) struct Bootstrapped {
    pub(super) low: f64,
    pub(super) high: f64,
    /// Shares of replicates that do not, and that do, agree with the claim.
    p_for: f64,
    p_against: f64,
    /// The two-sided paired t-test of the runs' differences.
    pub(super) over_runs: Option<f64>,
}

impl Bootstrapped {
    pub(super) fn p(&self) -> f64 {
        (2.0 * self.p_for.min(self.p_against)).min(1.0)
    }
}

impl Claims {
    pub(super) fn verdict(&self, finding: &Finding, adjusted: Option<f64>) -> Verdict {
        if finding.runs < self.min_runs {
            return Verdict::Inconclusive;
        }
        let (Some(found), Some(p)) = (&finding.bootstrap, adjusted) else {
            return Verdict::count(finding.holding, finding.runs);
        };
        if p > self.alpha {
            return Verdict::Inconclusive;
        }
        match Verdict::count(finding.holding, finding.runs) {
            Verdict::Supported if found.p_for < found.p_against => Verdict::Supported,
            Verdict::Contradicted if found.p_against < found.p_for => Verdict::Contradicted,
            _ => Verdict::Inconclusive,
        }
    }

    pub(super) fn find(
        &self,
        claim: &Claim,
        rows: &[Row<Scored>],
        curves: &[Row<Curve>],
    ) -> Result<Finding, StageError> {
        match &claim.test {
            Test::Difference {
                a,
                b,
                metric,
                column,
                direction,
                margin,
            } => {
                let column = column.as_ref().unwrap_or(&self.column);
                let pairs =
                    self.pairs(row_named(rows, a)?, row_named(rows, b)?, *metric, column)?;
                self.difference(&claim.id, &pairs, *metric, column, (*direction, *margin))
            }
            Test::Diverges { a } => {
                let trainings = trainings(rows, curves, a)?;
                let diverged = |curve: &&&Curve| curve.summary.status == Status::Diverged;
                let holding = trainings.values().filter(diverged).count();
                Ok(Finding {
                    test: format!("the training of {} diverges", self.name(a)),
                    values: (None, None),
                    effect: holding as f64 / trainings.len() as f64,
                    bootstrap: None,
                    holding,
                    runs: trainings.len(),
                })
            }
            Test::FlopsShare { a, b, at_most } => {
                let (cheap, dear) = (trainings(rows, curves, a)?, trainings(rows, curves, b)?);
                let flops: Vec<(f64, f64)> = cheap
                    .iter()
                    .filter_map(|(run, curve)| {
                        Some((curve.summary.flops, dear.get(run)?.summary.flops))
                    })
                    .collect();
                if flops.is_empty() || flops.iter().any(|(_, dear)| *dear <= 0.0) {
                    return Err(StageError::new(format!(
                        "`{a}` and `{b}` have no run in common that counted operations"
                    )));
                }
                let shares: Vec<f64> = flops.iter().map(|(cheap, dear)| cheap / dear).collect();
                Ok(Finding {
                    test: format!("FLOPs {} / {} <= {at_most}", self.name(a), self.name(b)),
                    values: (None, None),
                    effect: mean(&shares)?,
                    bootstrap: None,
                    holding: shares.iter().filter(|share| **share <= *at_most).count(),
                    runs: shares.len(),
                })
            }
        }
    }

    fn name<'a>(&'a self, label: &'a str) -> &'a str {
        self.row_names.get(label).map_or(label, String::as_str)
    }

    /// Measures the runs that two rows have in common.
    fn pairs(
        &self,
        a: &Row<Scored>,
        b: &Row<Scored>,
        metric: Metric,
        column: &str,
    ) -> Result<Vec<RunPair>, StageError> {
        let rightness = Rightness {
            least: self.right,
            answer: self.answer.as_deref(),
        };
        let measured = |scored: &Scored| -> Result<Measured, StageError> {
            Ok(Measured {
                measurement: scored.measure(metric, column, self.top_k, rightness)?,
                questions: scored.questions.clone(),
            })
        };
        let mut pairs = Vec::new();
        for run in &a.runs {
            if let Some(other) = b.runs.iter().find(|other| other.label == run.label) {
                let place = |row: &Row<Scored>| row.describe(run, &self.aggregate);
                pairs.push(RunPair {
                    a: measured(&run.content).map_err(|error| within(&place(a), error))?,
                    b: measured(&other.content).map_err(|error| within(&place(b), error))?,
                    same_questions: run.content.answers_the_same(&other.content),
                });
            }
        }
        if pairs.is_empty() {
            return Err(StageError::new(format!(
                "`{}` and `{}` have no run in common",
                a.label, b.label
            )));
        }
        Ok(pairs)
    }

    fn difference(
        &self,
        id: &str,
        pairs: &[RunPair],
        metric: Metric,
        column: &str,
        (direction, margin): (Direction, f64),
    ) -> Result<Finding, StageError> {
        let values = |side: fn(&RunPair) -> &Measured| -> Vec<f64> {
            pairs.iter().map(|pair| side(pair).value()).collect()
        };
        let (a, b) = (values(|pair| &pair.a), values(|pair| &pair.b));
        let effects: Vec<f64> = pairs.iter().map(RunPair::effect).collect();
        let replicates = resampled_effects(
            pairs,
            self.replicates,
            &Stream::new(self.seed, "claims").child(id),
        );
        let agreeing = replicates
            .iter()
            .filter(|effect| direction.holds(**effect, margin))
            .count();
        // One more on both sides: no finite number of replicates shows a p of zero.
        let share = |count: usize| (count + 1) as f64 / (replicates.len() + 1) as f64;
        let tail = (1.0 - self.level) / 2.0;
        let what = match metric {
            Metric::Mean => format!("Mean of {column}"),
            Metric::Entropy => format!("Entropy of {column}"),
            _ if column == self.column => metric.heading(self.top_k),
            _ => format!("{} of {column}", metric.heading(self.top_k)),
        };
        let (what, sign) = (
            what.replace('|', "/"),
            match direction {
                Direction::Greater => ">",
                Direction::Less => "<",
                Direction::Equal => "=",
            },
        );
        let test = match (direction, margin == 0.0) {
            (_, true) => format!("{what}: a {sign} b"),
            (Direction::Equal, false) => format!("{what}: a = b within {margin}"),
            (_, false) => format!("{what}: a {sign} b by {margin}"),
        };
        Ok(Finding {
            test,
            values: (Some(mean(&a)?), Some(mean(&b)?)),
            effect: mean(&effects)?,
            bootstrap: Some(Bootstrapped {
                low: quantile(&replicates, tail)?,
                high: quantile(&replicates, 1.0 - tail)?,
                p_for: share(replicates.len() - agreeing),
                p_against: share(agreeing),
                // Undefined for one run, or where all runs agree to the last digit.
                over_runs: paired_t_test(&a, &b, Alternative::TwoSided)
                    .ok()
                    .map(|test| test.p),
            }),
            holding: effects
                .iter()
                .filter(|effect| direction.holds(**effect, margin))
                .count(),
            runs: effects.len(),
        })
    }
}

/// Returns the trainings of a row, by run: a row of the scores, or the name of a training.
fn trainings<'a>(
    rows: &[Row<Scored>],
    curves: &'a [Row<Curve>],
    label: &str,
) -> Result<BTreeMap<String, &'a Curve>, StageError> {
    let runs: Vec<&str> = match rows.iter().find(|row| row.label == label) {
        Some(row) => row.runs.iter().map(|run| run.label.as_str()).collect(),
        None => match curves.iter().find(|row| row.label == label) {
            Some(row) => row.runs.iter().map(|run| run.label.as_str()).collect(),
            None => Vec::new(),
        },
    };
    let found: BTreeMap<String, &Curve> = runs
        .into_iter()
        .filter_map(|run| Some((run.to_owned(), training_of(curves, label, run)?)))
        .collect();
    if found.is_empty() {
        let known: Vec<&str> = curves.iter().map(|row| row.label.as_str()).collect();
        return Err(
            StageError::new(format!("no input of `curves` is the training of `{label}`"))
                .hint(format!("the trainings are: {}", listed(known))),
        );
    }
    Ok(found)
}
