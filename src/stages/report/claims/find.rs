//! What is measured for a claim: one number of each run.

use super::decide::Rule;
use super::gates::{self, Passage};
use super::pairs::trainings;
use super::{Claim, Claims, Direction, Test};
use crate::artifacts::curve::{Curve, Status};
use crate::engine::stage::StageError;
use crate::random::Stream;
use crate::stages::report::groups::{Row, row_named, within};
use crate::stages::report::measure::{Metric, Rightness};
use crate::stages::report::resample::{Measured, Questions, crossed_mean, difference};
use crate::stages::report::scored::Scored;
use crate::stats::{Bootstrap, Interval, mean};

/// What was found about one claim.
#[derive(Debug)]
pub(super) struct Finding {
    pub(super) test: String,
    /// Means over runs of a metric of both rows.
    pub(super) values: Option<(f64, f64)>,
    pub(super) rule: Rule,
    /// The number of each run.
    pub(super) runs: Vec<f64>,
    /// In how many runs the statement holds.
    pub(super) holding: usize,
    /// Over runs and questions.
    pub(super) bootstrap: Option<Interval>,
    /// Whether all runs answer the same questions.
    pub(super) shared: bool,
    pub(super) gates: Vec<Passage>,
}

/// The same runs of two rows.
#[derive(Debug)]
struct Compared {
    values: (f64, f64),
    effects: Vec<f64>,
    bootstrap: Interval,
    shared: bool,
}

/// One run of two rows.
#[derive(Debug)]
struct RunPair {
    a: Measured,
    b: Measured,
}

impl Claims {
    pub(super) fn find(
        &self,
        claim: &Claim,
        rows: &[Row<Scored>],
        curves: &[Row<Curve>],
    ) -> Result<Finding, StageError> {
        self.check_rows(claim, rows, curves)?;
        match &claim.test {
            Test::Difference {
                a,
                b,
                metric,
                column,
                direction,
                margin,
                effect,
            } => {
                let rows = (row_named(rows, a)?, row_named(rows, b)?);
                let column = column.as_ref().unwrap_or(&self.column);
                let compared = self.compare(&claim.id, rows, (*metric, column))?;
                let holds = |effect: &&f64| match direction {
                    Direction::Greater => **effect > *margin,
                    Direction::Less => **effect < -margin,
                    Direction::Equal => effect.abs() < *margin,
                };
                Ok(Finding {
                    test: self.test_of(*metric, column, *direction, *margin),
                    values: Some(compared.values),
                    rule: Rule::Difference {
                        direction: *direction,
                        margin: *margin,
                        effect: *effect,
                    },
                    holding: compared.effects.iter().filter(holds).count(),
                    runs: compared.effects,
                    bootstrap: Some(compared.bootstrap),
                    shared: compared.shared,
                    gates: gates::pass(&claim.gates, rows, &self.aggregate, self.alpha)?,
                })
            }
            Test::Diverges { a } => {
                let trainings = trainings(rows, curves, a)?;
                let diverged = |curve: &&Curve| curve.summary.status == Status::Diverged;
                let runs = trainings.values();
                let runs: Vec<f64> = runs
                    .map(|curve| f64::from(u8::from(diverged(curve))))
                    .collect();
                Ok(Finding {
                    test: format!("the training of {} diverges", self.name(a)),
                    values: None,
                    rule: Rule::Share,
                    holding: runs.iter().filter(|diverged| **diverged > 0.0).count(),
                    runs,
                    bootstrap: None,
                    shared: true,
                    gates: Vec::new(),
                })
            }
            Test::FlopsShare { a, b, at_most } => {
                let (cheap, dear) = (trainings(rows, curves, a)?, trainings(rows, curves, b)?);
                let flops = cheap.values().zip(dear.values());
                let flops = flops.map(|(cheap, dear)| (cheap.summary.flops, dear.summary.flops));
                let flops: Vec<(f64, f64)> = flops.collect();
                if flops
                    .iter()
                    .any(|(cheap, dear)| *cheap <= 0.0 || *dear <= 0.0)
                {
                    return Err(StageError::new(format!(
                        "a training of `{a}` or `{b}` counted no operations, so their ratio says nothing"
                    )));
                }
                let shares = flops.iter().map(|(cheap, dear)| cheap / dear);
                let gates = if claim.gates.is_empty() {
                    Vec::new()
                } else {
                    let rows = (row_named(rows, a)?, row_named(rows, b)?);
                    gates::pass(&claim.gates, rows, &self.aggregate, self.alpha)?
                };
                Ok(Finding {
                    test: format!("FLOPs {} / {} <= {at_most}", self.name(a), self.name(b)),
                    values: None,
                    rule: Rule::Ratio {
                        most: libm::log(*at_most),
                    },
                    holding: shares.clone().filter(|share| share <= at_most).count(),
                    runs: shares.map(libm::log).collect(),
                    bootstrap: None,
                    shared: true,
                    gates,
                })
            }
        }
    }

    fn name<'a>(&'a self, label: &'a str) -> &'a str {
        self.row_names.get(label).map_or(label, String::as_str)
    }

    /// Measures a difference run by run, and resamples it.
    fn compare(
        &self,
        id: &str,
        rows: (&Row<Scored>, &Row<Scored>),
        (metric, column): (Metric, &str),
    ) -> Result<Compared, StageError> {
        let (pairs, questions) = self.pairs(rows, metric, column)?;
        let values = |side: fn(&RunPair) -> &Measured| -> Vec<f64> {
            pairs.iter().map(|pair| side(pair).value()).collect()
        };
        let (a, b) = (values(|pair| &pair.a), values(|pair| &pair.b));
        let stream = Stream::new(self.seed, "claims").child(id);
        let bootstrap = Bootstrap::new(self.replicates, self.level, stream)?;
        let of_all = |run: &Measured| run.answers() == questions;
        Ok(Compared {
            values: (mean(&a)?, mean(&b)?),
            effects: a.iter().zip(&b).map(|(a, b)| difference(*a, *b)).collect(),
            bootstrap: crossed_mean(&bootstrap, (pairs.len(), questions), |run, drawn| {
                pairs[run].a.at(drawn) - pairs[run].b.at(drawn)
            })?,
            shared: pairs.iter().all(|pair| of_all(&pair.a) && of_all(&pair.b)),
        })
    }

    /// Measures the same runs of two rows; with them comes the number of questions that any of them answers.
    fn pairs(
        &self,
        (a, b): (&Row<Scored>, &Row<Scored>),
        metric: Metric,
        column: &str,
    ) -> Result<(Vec<RunPair>, usize), StageError> {
        let rightness = Rightness {
            least: self.right,
            answer: self.answer.as_deref(),
        };
        let mut questions = Questions::new();
        let mut measured = |scored: &Scored| -> Result<Measured, StageError> {
            let measurement = scored.measure(metric, column, self.top_k, rightness)?;
            Ok(Measured::new(measurement, scored.placed(&mut questions)?))
        };
        let mut pairs = Vec::new();
        for run in &a.runs {
            let others = b.runs.iter().filter(|other| other.label == run.label);
            for other in others {
                let place = |row: &Row<Scored>| row.describe(run, &self.aggregate);
                pairs.push(RunPair {
                    a: measured(&run.content).map_err(|error| within(&place(a), error))?,
                    b: measured(&other.content).map_err(|error| within(&place(b), error))?,
                });
            }
        }
        Ok((pairs, questions.count()))
    }

    /// Says what is tested.
    fn test_of(&self, metric: Metric, column: &str, direction: Direction, margin: f64) -> String {
        let what = match metric {
            Metric::Mean => format!("Mean of {column}"),
            Metric::Entropy => format!("Entropy of {column}"),
            _ if column == self.column => metric.heading(self.top_k),
            _ => format!("{} of {column}", metric.heading(self.top_k)),
        };
        let what = what.replace('|', "/");
        let sign = match direction {
            Direction::Greater => ">",
            Direction::Less => "<",
            Direction::Equal => "=",
        };
        match (direction, margin == 0.0) {
            (_, true) => format!("{what}: a {sign} b"),
            (Direction::Equal, false) => format!("{what}: a = b within {margin}"),
            (_, false) => format!("{what}: a {sign} b by {margin}"),
        }
    }
}
