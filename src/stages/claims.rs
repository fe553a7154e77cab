//! `claims`: statements of a paper, each decided by a stated test.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::groups::{Grouping, Row, row_named, training_of, within};
use super::measure::Metric;
use super::metric_table::check_bootstrap;
use super::resample::{Measured, RunPair, resampled_effects};
use super::scored::{self, Scored};
use super::trainings::{curves_port, load_curves};
use crate::artifacts::curve::{Curve, Status};
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::random::Stream;
use crate::stats::{Alternative, holm, mean, paired_t_test, quantile};

/// Decides statements of a paper: supported, contradicted, or inconclusive at this scale.
///
/// A `difference` is decided by a hierarchical bootstrap of the metric's mean difference `a - b` over the runs that
/// both rows have: runs are resampled, then questions within each run, together where both rows answer the same
/// questions. `p` is twice the smaller share of replicates that speak for and against the claim (at most 1), and
/// `Holm p` adjusts it for all differences of the table. The claim is supported if Holm p is at most `alpha`, the
/// replicates speak for it, and it holds in every single run; contradicted if Holm p is at most `alpha`, they speak
/// against it, and it fails in every single run; inconclusive otherwise, and always with fewer than `min_runs` runs.
///
/// `diverges` and `flops_share` count: supported if true of every run, contradicted if of none.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Claims {
    /// The statements.
    claims: Vec<Claim>,
    /// The axis whose values are compared.
    #[serde(default = "policy")]
    row: String,
    /// The axis whose values are the runs of a row.
    #[serde(default = "seed_axis")]
    aggregate: String,
    /// The column of `scores` that is the reward, unless a claim names another.
    #[serde(default = "reward")]
    column: String,
    /// How many completions the top-K metrics take.
    #[serde(default = "twenty")]
    top_k: usize,
    /// The greatest Holm p that decides a claim.
    #[serde(default = "alpha")]
    alpha: f64,
    /// The fewest runs that decide a claim.
    #[serde(default = "two")]
    min_runs: usize,
    /// Names shown instead of values of `row`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// The title.
    #[serde(default = "title")]
    title: String,
    /// Coverage of the intervals.
    #[serde(default = "level")]
    level: f64,
    /// Bootstrap replicates.
    #[serde(default = "replicates")]
    replicates: usize,
    /// Seed of the bootstrap.
    #[serde(default)]
    seed: u64,
}

/// A statement and what decides it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Its name.
    id: String,
    /// What the paper says.
    text: String,
    /// What decides it.
    test: Test,
}

/// What decides a claim.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Test {
    /// A metric differs between two rows.
    Difference {
        /// The first row.
        a: String,
        /// The second row.
        b: String,
        /// The metric compared.
        #[serde(default = "mean_metric")]
        metric: Metric,
        /// The column it is taken of; the reward if null.
        #[serde(default)]
        column: Option<String>,
        /// What the claim says of `a - b`.
        direction: Direction,
        /// The difference that counts: `greater` means above it, `less` below its negative, `equal` within it.
        #[serde(default)]
        margin: f64,
    },
    /// The training of a row diverges.
    Diverges {
        /// The row.
        a: String,
    },
    /// The training of `a` takes at most a share of the floating-point operations of that of `b`.
    FlopsShare {
        /// The cheap row.
        a: String,
        /// The row it is compared with.
        b: String,
        /// The greatest share, such as 0.035.
        at_most: f64,
    },
}

/// What a claim says of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// It is above the margin.
    Greater,
    /// It is below the negative margin.
    Less,
    /// It is within the margin.
    Equal,
}

impl Direction {
    fn holds(self, effect: f64, margin: f64) -> bool {
        match self {
            Self::Greater => effect > margin,
            Self::Less => effect < -margin,
            Self::Equal => effect.abs() < margin,
        }
    }
}

/// What a test says of a claim at this scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Supported,
    Contradicted,
    Inconclusive,
}

impl Verdict {
    fn name(self) -> &'static str {
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

fn policy() -> String {
    "policy".to_owned()
}

fn seed_axis() -> String {
    "seed".to_owned()
}

fn reward() -> String {
    "reward".to_owned()
}

fn twenty() -> usize {
    20
}

fn alpha() -> f64 {
    0.05
}

fn two() -> usize {
    2
}

fn title() -> String {
    "Claims and what this experiment says of them".to_owned()
}

fn level() -> f64 {
    0.95
}

fn replicates() -> usize {
    10_000
}

fn mean_metric() -> Metric {
    Metric::Mean
}

impl Kind for Claims {
    const NAME: &'static str = "claims";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = r"{ claims: [
      { id: diversity, text: FlowHF is more diverse than PPO,
        test: { kind: difference, metric: diversity, a: flowhf.late, b: ppo, direction: greater } },
      { id: tb, text: Trajectory balance diverges, test: { kind: diverges, a: tb } },
      { id: cost, text: FlowHF takes under 3.5% of the FLOPs of PPO,
        test: { kind: flops_share, a: flowhf, b: ppo, at_most: 0.035 } }] }";

    fn ports(&self) -> Vec<Port> {
        let mut ports = vec![scored::scores_port()];
        ports.extend(scored::embedding_ports());
        ports.push(curves_port());
        ports
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("table", TABLE)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.claims.is_empty() {
            problems.push(Problem::new("claims", "`claims` is empty"));
        }
        for (at, claim) in self.claims.iter().enumerate() {
            if self.claims[..at].iter().any(|other| other.id == claim.id) {
                problems.push(Problem::new("claims", format!("two claims are `{}`", claim.id)));
            }
            match &claim.test {
                Test::Difference { a, b, .. } | Test::FlopsShare { a, b, .. } if a == b => {
                    problems.push(Problem::new("claims", format!("claim `{}` compares `{a}` with itself", claim.id)));
                }
                Test::Difference { direction: Direction::Equal, margin, .. } if *margin <= 0.0 => {
                    problems.push(
                        Problem::new("claims", format!("claim `{}`: `equal` needs a `margin` above 0", claim.id))
                            .hint("the margin is the difference that would not matter"),
                    );
                }
                Test::FlopsShare { at_most, .. } if *at_most <= 0.0 => {
                    problems.push(Problem::new("claims", format!("claim `{}`: `at_most` must be above 0", claim.id)));
                }
                _ => {}
            }
        }
        if self.top_k < 2 {
            problems.push(Problem::new("top_k", "`top_k` must be at least 2: diversity is a mean over pairs"));
        }
        if self.min_runs == 0 {
            problems.push(Problem::new("min_runs", "`min_runs` must be at least 1"));
        }
        if !(self.alpha > 0.0 && self.alpha < 1.0) {
            problems.push(Problem::new("alpha", "`alpha` must be between 0 and 1, such as 0.05"));
        }
        check_bootstrap(self.level, self.replicates, &mut problems);
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let grouping = Grouping {
            row: &self.row,
            aggregate: &self.aggregate,
            names: &self.row_names,
        };
        let tfidf = self.claims.iter().any(|claim| {
            matches!(&claim.test, Test::Difference { metric, .. } if metric.is_tfidf())
        });
        let rows = scored::load(ctx, grouping, tfidf)?;
        let curves = load_curves(ctx, grouping)?;
        self.table(&rows, &curves)?.write(&ctx.output("table")?)?;
        Ok(())
    }
}

/// What was found about one claim.
#[derive(Debug)]
struct Finding {
    test: String,
    values: (Option<f64>, Option<f64>),
    effect: f64,
    /// For a difference: its interval, and what the replicates say.
    bootstrap: Option<Bootstrapped>,
    holding: usize,
    runs: usize,
}

#[derive(Debug)]
struct Bootstrapped {
    low: f64,
    high: f64,
    /// Shares of replicates that do not, and that do, agree with the claim.
    p_for: f64,
    p_against: f64,
    /// The two-sided paired t-test of the runs' differences.
    over_runs: Option<f64>,
}

impl Bootstrapped {
    fn p(&self) -> f64 {
        (2.0 * self.p_for.min(self.p_against)).min(1.0)
    }
}

impl Claims {
    fn table(&self, rows: &[Row<Scored>], curves: &[Row<Curve>]) -> Result<Table, StageError> {
        let mut findings = Vec::with_capacity(self.claims.len());
        for claim in &self.claims {
            let finding = self.find(claim, rows, curves).map_err(|error| within(&format!("claim `{}`", claim.id), error))?;
            findings.push(finding);
        }
        let p_values: Vec<f64> = findings.iter().filter_map(|finding| Some(finding.bootstrap.as_ref()?.p())).collect();
        let mut adjusted = if p_values.is_empty() { Vec::new() } else { holm(&p_values)? }.into_iter();
        let decided: Vec<(Option<f64>, Verdict)> = findings
            .iter()
            .map(|finding| {
                let adjusted = finding.bootstrap.as_ref().and_then(|_| adjusted.next());
                (adjusted, self.verdict(finding, adjusted))
            })
            .collect();
        let mut table = Table::new(&self.title);
        table.text_column("Claim", self.claims.iter().map(|claim| Some(claim.id.clone())));
        table.text_column("Statement", self.claims.iter().map(|claim| Some(claim.text.clone())));
        table.text_column("Test", findings.iter().map(|finding| Some(finding.test.clone())));
        table.number_column("a", 3, findings.iter().map(|finding| finding.values.0));
        table.number_column("b", 3, findings.iter().map(|finding| finding.values.1));
        table.number_column("Effect", 3, findings.iter().map(|finding| Some(finding.effect)));
        let mut bootstrapped = |heading: &str, decimals: usize, value: &dyn Fn(&Bootstrapped) -> Option<f64>| {
            table.number_column(heading, decimals, findings.iter().map(|finding| value(finding.bootstrap.as_ref()?)));
        };
        bootstrapped("low", 3, &|found| Some(found.low));
        bootstrapped("high", 3, &|found| Some(found.high));
        bootstrapped("p", 4, &|found| Some(found.p()));
        table.number_column("Holm p", 4, decided.iter().map(|(adjusted, _)| *adjusted));
        let mut bootstrapped = |heading: &str, decimals: usize, value: &dyn Fn(&Bootstrapped) -> Option<f64>| {
            table.number_column(heading, decimals, findings.iter().map(|finding| value(finding.bootstrap.as_ref()?)));
        };
        bootstrapped("p over runs", 4, &|found| found.over_runs);
        let holding = findings.iter().map(|finding| Some(format!("{} of {}", finding.holding, finding.runs)));
        table.text_column("Holds in", holding);
        table.text_column("Verdict", decided.iter().map(|(_, verdict)| Some(verdict.name().to_owned())));
        table.notes = self.notes(p_values.len());
        Ok(table)
    }

    fn notes(&self, differences: usize) -> Vec<String> {
        vec![
            format!(
                "A difference is supported (contradicted) if Holm p is at most {}, the bootstrap speaks for (against) it, \
                 and it holds (fails) in every run; it is inconclusive otherwise, and with fewer than {} runs. What is \
                 counted (divergence, operations) must be true of every run, or of none.",
                self.alpha, self.min_runs
            ),
            format!(
                "Effect: mean over runs of a - b; low, high: {}% bootstrap interval over runs, then questions. p: twice the \
                 smaller share of {} replicates for and against the claim; Holm p adjusts for {differences} differences.",
                self.level * 100.0,
                self.replicates
            ),
            "With few runs the bootstrap understates how runs differ; p over runs is a two-sided paired t-test of the \
             runs' values alone, and errs to the other side."
                .to_owned(),
        ]
    }

    fn verdict(&self, finding: &Finding, adjusted: Option<f64>) -> Verdict {
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

    fn find(&self, claim: &Claim, rows: &[Row<Scored>], curves: &[Row<Curve>]) -> Result<Finding, StageError> {
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
                let pairs = self.pairs(row_named(rows, a)?, row_named(rows, b)?, *metric, column)?;
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
                    .filter_map(|(run, curve)| Some((curve.summary.flops, dear.get(run)?.summary.flops)))
                    .collect();
                if flops.is_empty() || flops.iter().any(|(_, dear)| *dear <= 0.0) {
                    return Err(StageError::new(format!("`{a}` and `{b}` have no run in common that counted operations")));
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
    fn pairs(&self, a: &Row<Scored>, b: &Row<Scored>, metric: Metric, column: &str) -> Result<Vec<RunPair>, StageError> {
        let measured = |scored: &Scored| -> Result<Measured, StageError> {
            Ok(Measured {
                measurement: scored.measure(metric, column, self.top_k)?,
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
            return Err(StageError::new(format!("`{}` and `{}` have no run in common", a.label, b.label)));
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
        let values = |side: fn(&RunPair) -> &Measured| -> Vec<f64> { pairs.iter().map(|pair| side(pair).value()).collect() };
        let (a, b) = (values(|pair| &pair.a), values(|pair| &pair.b));
        let effects: Vec<f64> = pairs.iter().map(RunPair::effect).collect();
        let replicates = resampled_effects(pairs, self.replicates, &Stream::new(self.seed, "claims").child(id));
        let agreeing = replicates.iter().filter(|effect| direction.holds(**effect, margin)).count();
        // One more on both sides: no finite number of replicates shows a p of zero.
        let share = |count: usize| (count + 1) as f64 / (replicates.len() + 1) as f64;
        let tail = (1.0 - self.level) / 2.0;
        let what = match metric {
            Metric::Mean => format!("Mean of {column}"),
            Metric::Entropy => format!("Entropy of {column}"),
            _ if column == self.column => metric.heading(self.top_k),
            _ => format!("{} of {column}", metric.heading(self.top_k)),
        };
        let (what, sign) = (what.replace('|', "/"), match direction {
            Direction::Greater => ">",
            Direction::Less => "<",
            Direction::Equal => "=",
        });
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
                over_runs: paired_t_test(&a, &b, Alternative::TwoSided).ok().map(|test| test.p),
            }),
            holding: effects.iter().filter(|effect| direction.holds(**effect, margin)).count(),
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
    let found: BTreeMap<String, &Curve> =
        runs.into_iter().filter_map(|run| Some((run.to_owned(), training_of(curves, label, run)?))).collect();
    if found.is_empty() {
        let known: Vec<&str> = curves.iter().map(|row| row.label.as_str()).collect();
        return Err(StageError::new(format!("no input of `curves` is the training of `{label}`"))
            .hint(format!("the trainings are: {}", known.join(", "))));
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
