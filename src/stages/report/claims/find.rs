//! What is measured for a claim: one number of each run.

use super::decide::Rule;
use super::gates::{self, Passage};
use super::pairs::trainings;
use super::runs::{Pairs, once, one_training};
use super::{Claim, Claims, Direction, Test};
use crate::artifacts::curve::{Curve, Status};
use crate::engine::stage::StageError;
use crate::random::Stream;
use crate::stages::report::groups::{Row, Run, within};
use crate::stages::report::measure::{Metric, Rightness};
use crate::stages::report::reach::Reach;
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
    /// Of each run whether its number is only the least that it can be.
    pub(super) is_bound: Vec<bool>,
    /// In how many runs the statement holds.
    pub(super) holding: usize,
    /// Over runs and questions.
    pub(super) bootstrap: Option<Interval>,
    /// What must be known of the runs.
    pub(super) told: Vec<String>,
    pub(super) gates: Vec<Passage>,
}

/// The same runs of two rows.
#[derive(Debug)]
struct Compared {
    values: (f64, f64),
    effects: Vec<f64>,
    bootstrap: Interval,
}

/// One run of two rows.
#[derive(Debug)]
struct RunPair {
    a: Measured,
    b: Measured,
}

/// Rows whose trainings' operations are compared.
#[derive(Debug, Clone, Copy)]
struct Flops<'a> {
    a: &'a str,
    b: &'a str,
    at_most: f64,
    /// What `a` must reach; without it its whole training counts.
    reach: Option<&'a Reach>,
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
                let pairs = self.paired((a, b), rows, curves)?;
                pairs.same_questions(&self.aggregate)?;
                let column = column.as_ref().unwrap_or(&self.column);
                let compared = self.compare(&claim.id, &pairs, (*metric, column))?;
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
                    is_bound: vec![false; compared.effects.len()],
                    runs: compared.effects,
                    bootstrap: Some(compared.bootstrap),
                    gates: gates::pass(&claim.gates, &pairs, &self.aggregate, self.alpha)?,
                    told: pairs.told,
                })
            }
            Test::Diverges { a } => {
                let trainings = trainings(rows, curves, a)?;
                let runs = trainings.iter().map(|(label, run)| (label.as_str(), *run));
                let runs: Vec<(&str, &Run<Curve>)> = runs.collect();
                let same = |one: &&Run<Curve>, other: &&Run<Curve>| one_training(one, other);
                let (runs, told) = once(&runs, &self.aggregate, same);
                let diverged = |(_, run): &(&str, &Run<Curve>)| {
                    f64::from(u8::from(run.content.summary.status == Status::Diverged))
                };
                let runs: Vec<f64> = runs.iter().map(diverged).collect();
                Ok(Finding {
                    test: format!("the training of {} diverges", self.name(a)),
                    values: None,
                    rule: Rule::Share,
                    holding: runs.iter().filter(|diverged| **diverged > 0.0).count(),
                    is_bound: vec![false; runs.len()],
                    runs,
                    bootstrap: None,
                    told,
                    gates: Vec::new(),
                })
            }
            Test::FlopsShare { a, b, at_most } => {
                let flops = Flops {
                    a,
                    b,
                    at_most: *at_most,
                    reach: None,
                };
                self.find_flops(claim, flops, rows, curves)
            }
            Test::FlopsToReach {
                a,
                b,
                at_most,
                metric,
                fallback,
                window,
            } => {
                let reach = Reach {
                    metric: metric.clone(),
                    fallback: fallback.clone(),
                    window: *window,
                };
                let flops = Flops {
                    a,
                    b,
                    at_most: *at_most,
                    reach: Some(&reach),
                };
                self.find_flops(claim, flops, rows, curves)
            }
        }
    }

    /// Compares the operations of trainings, run by run.
    fn find_flops(
        &self,
        claim: &Claim,
        flops: Flops<'_>,
        rows: &[Row<Scored>],
        curves: &[Row<Curve>],
    ) -> Result<Finding, StageError> {
        let Flops { a, b, at_most, .. } = flops;
        let (cheap, dear) = (trainings(rows, curves, a)?, trainings(rows, curves, b)?);
        let (pairs, mut told) = self.paired_trainings((a, &cheap), (b, &dear));
        let mut shares = Vec::with_capacity(pairs.len());
        let mut is_bound = Vec::with_capacity(pairs.len());
        for (cheap, dear) in pairs {
            let all = (cheap.content.summary.flops, dear.content.summary.flops);
            if all.0 <= 0.0 || all.1 <= 0.0 {
                return Err(StageError::new(format!(
                    "a training of `{a}` or `{b}` counted no operations, so their ratio says nothing"
                )));
            }
            let (share, reaches) = match flops.reach {
                None => (all.0 / all.1, true),
                Some(reach) => {
                    let of = |run: &Run<Curve>| format!("{} {}", self.aggregate, run.label);
                    let failed = |row: &str, run: &Run<Curve>, error: StageError| {
                        within(&format!("the training of `{row}`, {}", of(run)), error)
                    };
                    let end = reach.end(&dear.content);
                    let end = end.map_err(|error| failed(b, dear, error))?;
                    let found = reach.flops(&cheap.content, end);
                    let found = found.map_err(|error| failed(a, cheap, error))?;
                    if found.is_some_and(|flops| flops <= 0.0) {
                        let text = format!("it has what `{b}` ends with before its first step");
                        return Err(failed(a, cheap, StageError::new(text)));
                    }
                    (found.unwrap_or(all.0) / all.1, found.is_some())
                }
            };
            shares.push(share);
            is_bound.push(!reaches);
        }
        if let Some(reach) = flops.reach {
            let sides = [(a, &cheap), (b, &dear)];
            told.extend(sides.into_iter().filter_map(|(row, trainings)| {
                let curves = trainings.values().map(|run| &run.content);
                reach.stand_in(self.name(row), curves)
            }));
        }
        let gates = if claim.gates.is_empty() {
            Vec::new()
        } else {
            let pairs = self.paired((a, b), rows, curves)?;
            if claim.gates.values().any(gates::Gate::compares) {
                pairs.same_questions(&self.aggregate)?;
            }
            gates::pass(&claim.gates, &pairs, &self.aggregate, self.alpha)?
        };
        let (name_a, name_b) = (self.name(a), self.name(b));
        let held = shares.iter().zip(&is_bound);
        let held = held.filter(|(share, is_bound)| !**is_bound && **share <= at_most);
        Ok(Finding {
            test: match flops.reach {
                None => format!("FLOPs {name_a} / {name_b} <= {at_most}"),
                Some(reach) => format!(
                    "FLOPs of {name_a} until its {} is {name_b}'s last / FLOPs of {name_b} <= {at_most}",
                    reach.metric
                ),
            },
            values: None,
            rule: Rule::Ratio {
                most: libm::log(at_most),
            },
            holding: held.count(),
            runs: shares.into_iter().map(libm::log).collect(),
            is_bound,
            bootstrap: None,
            told,
            gates,
        })
    }

    pub(super) fn name<'a>(&'a self, label: &'a str) -> &'a str {
        self.row_names.get(label).map_or(label, String::as_str)
    }

    /// Measures a difference run by run, and resamples it.
    fn compare(
        &self,
        id: &str,
        pairs: &Pairs<'_>,
        (metric, column): (Metric, &str),
    ) -> Result<Compared, StageError> {
        let (runs, questions) = self.measured(pairs, metric, column)?;
        let values = |side: fn(&RunPair) -> &Measured| -> Vec<f64> {
            runs.iter().map(|pair| side(pair).value()).collect()
        };
        let (a, b) = (values(|pair| &pair.a), values(|pair| &pair.b));
        let stream = Stream::new(self.seed, "claims").child(id);
        let bootstrap = Bootstrap::new(self.replicates, self.level, stream)?;
        Ok(Compared {
            values: (mean(&a)?, mean(&b)?),
            effects: a.iter().zip(&b).map(|(a, b)| difference(*a, *b)).collect(),
            bootstrap: crossed_mean(&bootstrap, (runs.len(), questions), |run, drawn| {
                runs[run].a.at(drawn) - runs[run].b.at(drawn)
            })?,
        })
    }

    /// Measures the same runs of two rows; with them comes the number of questions.
    fn measured(
        &self,
        pairs: &Pairs<'_>,
        metric: Metric,
        column: &str,
    ) -> Result<(Vec<RunPair>, usize), StageError> {
        let rightness = Rightness {
            least: self.right,
            answer: self.answer.as_deref(),
        };
        let mut questions = Questions::new();
        let mut measured = |row: &Row<Scored>, run: &Run<Scored>| {
            let scored = &run.content;
            let measurement = scored.measure(metric, column, self.top_k, rightness);
            let placed = measurement.and_then(|measurement| {
                Ok(Measured::new(measurement, scored.placed(&mut questions)?))
            });
            placed.map_err(|error| within(&row.describe(run, &self.aggregate), error))
        };
        let runs = pairs.runs.iter().map(|(a, b)| {
            Ok(RunPair {
                a: measured(pairs.a, a)?,
                b: measured(pairs.b, b)?,
            })
        });
        let runs = runs.collect::<Result<_, StageError>>()?;
        Ok((runs, questions.count()))
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
