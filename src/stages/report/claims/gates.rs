//! What a claim must not lose: columns whose means have limits.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::runs::Pairs;
use crate::engine::stage::{Problem, StageError};
use crate::stages::report::groups::{Row, Run, within};
use crate::stages::report::resample::difference;
use crate::stages::report::scored::Scored;
use crate::stats::{Interval, SampleMean, mean};

/// Limits for the mean of a column, each of which the interval over runs must keep.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Gate {
    /// For a column of which more is better: `a - b` must be above the negative of this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    not_worse_by: Option<f64>,
    /// `a` must be at least this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_least: Option<f64>,
    /// `a` must be at most this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at_most: Option<f64>,
}

impl Gate {
    /// Whether it looks at row `b`, too.
    pub(super) fn compares(&self) -> bool {
        self.not_worse_by.is_some()
    }
}

/// The gates of a claim, by column of `scores`.
pub(super) type Gates = BTreeMap<String, Gate>;

/// Whether a limit is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Kept,
    Broken,
    /// The interval has the limit inside.
    Open,
}

/// What was found at a gate.
#[derive(Debug)]
pub(super) struct Passage {
    /// The number with its interval.
    measured: String,
    outcome: Outcome,
    /// The column, and what is said of it if the limit is broken.
    broken: (String, String),
}

impl Passage {
    /// What stands beside the verdict; nothing if the limit is kept.
    pub(super) fn objection(&self) -> Option<String> {
        let (column, what) = &self.broken;
        match self.outcome {
            Outcome::Kept => None,
            Outcome::Broken => Some(format!("{column} {what}")),
            Outcome::Open => Some(format!("{column} perhaps {what}")),
        }
    }

    /// The number and whether it is within its limit.
    pub(super) fn text(&self) -> String {
        let outcome = match self.outcome {
            Outcome::Kept => "kept",
            Outcome::Broken => "broken",
            Outcome::Open => "open",
        };
        format!("{}: {outcome}", self.measured)
    }
}

/// Says what is wrong with the gates of a claim.
pub(super) fn check(id: &str, gates: &Gates, problems: &mut Vec<Problem>) {
    for (column, gate) in gates {
        let limits = [gate.not_worse_by, gate.at_least, gate.at_most];
        if limits.iter().all(Option::is_none) {
            problems.push(
                Problem::new(
                    "claims",
                    format!("claim `{id}`: the gate `{column}` has no limit"),
                )
                .hint("`not_worse_by`, `at_least` or `at_most`"),
            );
        }
        if gate.not_worse_by.is_some_and(|margin| margin <= 0.0) {
            problems.push(
                Problem::new(
                    "claims",
                    format!("claim `{id}`: `not_worse_by` of the gate `{column}` must be above 0"),
                )
                .hint("no finite number of runs shows that nothing at all is lost"),
            );
        }
        if let (Some(least), Some(most)) = (gate.at_least, gate.at_most)
            && least >= most
        {
            problems.push(Problem::new(
                "claims",
                format!("claim `{id}`: nothing passes the gate `{column}`: at least {least} and at most {most}"),
            ));
        }
    }
}

/// Looks at the gates of a claim for the same runs of two rows.
pub(super) fn pass(
    gates: &Gates,
    pairs: &Pairs<'_>,
    aggregate: &str,
    alpha: f64,
) -> Result<Vec<Passage>, StageError> {
    let mut passages = Vec::new();
    for (column, gate) in gates {
        let of = |row, runs: Vec<&Run<Scored>>| {
            means((row, &runs), column, aggregate).map_err(|error| match error {
                StageError::Failed { message, .. } if column == "kl" => {
                    StageError::new(format!("gate `kl`: {message}"))
                        .hint("`score` writes `kl` if its port `reference` is connected")
                }
                error => within(&format!("gate `{column}`"), error),
            })
        };
        let values = of(pairs.a, pairs.runs.iter().map(|(a, _)| *a).collect())?;
        if let Some(margin) = gate.not_worse_by {
            let others = of(pairs.b, pairs.runs.iter().map(|(_, b)| *b).collect())?;
            let both = values.iter().zip(&others);
            let differences: Vec<f64> = both.map(|(a, b)| difference(*a, *b)).collect();
            let limit = -margin;
            passages.push(passage(
                &differences,
                alpha,
                (column, " a - b", "worse".to_owned()),
                |interval| (interval.low > limit, interval.high <= limit),
            )?);
        }
        // Runs of `a` that are one and the same say once what they say.
        let values: Vec<f64> = pairs.distinct.iter().map(|at| values[*at]).collect();
        if let Some(least) = gate.at_least {
            let names = (column.as_str(), "", format!("below {least}"));
            passages.push(passage(&values, alpha, names, |interval| {
                (interval.low >= least, interval.high < least)
            })?);
        }
        if let Some(most) = gate.at_most {
            let names = (column.as_str(), "", format!("above {most}"));
            passages.push(passage(&values, alpha, names, |interval| {
                (interval.high <= most, interval.low > most)
            })?);
        }
    }
    Ok(passages)
}

fn passage(
    runs: &[f64],
    alpha: f64,
    (column, of, broken): (&str, &str, String),
    judge: impl Fn(&Interval) -> (bool, bool),
) -> Result<Passage, StageError> {
    let broken = (column.to_owned(), broken);
    if runs.len() < 2 {
        return Ok(Passage {
            measured: format!("{column}{of} {:.3}", mean(runs)?),
            outcome: Outcome::Open,
            broken,
        });
    }
    let interval = SampleMean::of(runs)?.interval(alpha);
    Ok(Passage {
        measured: format!(
            "{column}{of} {:.3} [{:.3}, {:.3}]",
            interval.estimate, interval.low, interval.high
        ),
        outcome: match judge(&interval) {
            (true, _) => Outcome::Kept,
            (_, true) => Outcome::Broken,
            _ => Outcome::Open,
        },
        broken,
    })
}

/// The mean of a column in each of some runs of a row.
fn means(
    (row, runs): (&Row<Scored>, &[&Run<Scored>]),
    column: &str,
    aggregate: &str,
) -> Result<Vec<f64>, StageError> {
    let mean_of = |run: &&Run<Scored>| {
        let values = run.content.column(column);
        let values = values.and_then(|values| Ok(mean(&values)?));
        values.map_err(|error| within(&row.describe(run, aggregate), error))
    };
    runs.iter().map(mean_of).collect()
}
