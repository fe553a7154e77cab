//! `claims`: statements of a paper, each decided by a stated test.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bootstrap_params::check_bootstrap;
use super::groups::{Grouping, Row, within};
use super::measure::{Metric, right};
use super::scored::{self, Scored};
use super::trainings::{curves_port, load_curves};
use crate::artifacts::completions::{ROWS, ROWS_PER_PROMPT};
use crate::artifacts::curve::Curve;
use crate::artifacts::table::{TABLE, Table};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stages::defaults;
use crate::stats::holm;
use decide::Verdict;

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
    #[expect(clippy::struct_field_names, reason = "the name in pipelines")]
    claims: Vec<Claim>,
    /// The axis whose values are compared.
    #[serde(default = "defaults::policy")]
    row: String,
    /// The axis whose values are the runs of a row.
    #[serde(default = "defaults::seed_axis")]
    aggregate: String,
    /// The column of `scores` that is the reward, unless a claim names another.
    #[serde(default = "defaults::reward")]
    column: String,
    /// How many completions the top-K metrics take.
    #[serde(default = "defaults::twenty")]
    top_k: usize,
    /// The least reward of a right completion, for `pass_at`, `majority_at` and `distinct_right`.
    #[serde(default = "right")]
    right: f64,
    /// The text column with the answers that `majority_at` and `distinct_right` count; if absent `answer`, which `score`
    /// writes with a reward rule, else the completions themselves.
    #[serde(default)]
    answer: Option<String>,
    /// The greatest Holm p that decides a claim.
    #[serde(default = "defaults::alpha")]
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
    #[serde(default = "defaults::level")]
    level: f64,
    /// Bootstrap replicates.
    #[serde(default = "defaults::replicates")]
    replicates: usize,
    /// Seed of the bootstrap.
    #[serde(default)]
    seed: u64,
}

/// A statement and what decides it.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Claim {
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
pub(super) enum Test {
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
pub(super) enum Direction {
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

fn two() -> usize {
    2
}

fn title() -> String {
    "Claims and what this experiment says of them".to_owned()
}

fn mean_metric() -> Metric {
    Metric::Mean
}

impl Kind for Claims {
    const NAME: &'static str = "claims";
    const VERSION: u32 = 3;
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
                problems.push(Problem::new(
                    "claims",
                    format!("two claims are `{}`", claim.id),
                ));
            }
            match &claim.test {
                Test::Difference { a, b, .. } | Test::FlopsShare { a, b, .. } if a == b => {
                    problems.push(Problem::new(
                        "claims",
                        format!("claim `{}` compares `{a}` with itself", claim.id),
                    ));
                }
                Test::Difference {
                    direction: Direction::Equal,
                    margin,
                    ..
                } if *margin <= 0.0 => {
                    problems.push(
                        Problem::new(
                            "claims",
                            format!("claim `{}`: `equal` needs a `margin` above 0", claim.id),
                        )
                        .hint("the margin is the difference that would not matter"),
                    );
                }
                Test::Difference { metric, .. } if metric.drawn() == Some(0) => {
                    let what = format!("claim `{}`: `metric` draws no completion", claim.id);
                    problems.push(
                        Problem::new("claims", what).hint("such as `metric: { pass_at: 1 }`"),
                    );
                }
                Test::FlopsShare { at_most, .. } if *at_most <= 0.0 => {
                    problems.push(Problem::new(
                        "claims",
                        format!("claim `{}`: `at_most` must be above 0", claim.id),
                    ));
                }
                _ => {}
            }
        }
        if self.top_k < 2 {
            problems.push(Problem::new(
                "top_k",
                "`top_k` must be at least 2: diversity is a mean over pairs",
            ));
        }
        if self.min_runs == 0 {
            problems.push(Problem::new("min_runs", "`min_runs` must be at least 1"));
        }
        if !(self.alpha > 0.0 && self.alpha < 1.0) {
            problems.push(Problem::new(
                "alpha",
                "`alpha` must be between 0 and 1, such as 0.05",
            ));
        }
        check_bootstrap(self.level, self.replicates, &mut problems);
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        let of_top_k = self.claims.iter().any(|claim| match &claim.test {
            Test::Difference { metric, .. } => metric.is_of_top_k(),
            _ => false,
        });
        let drawn = self.claims.iter().filter_map(|claim| match &claim.test {
            Test::Difference { metric, .. } => metric.drawn(),
            _ => None,
        });
        if let Some(k) = drawn.max() {
            let hint = "lower it, or raise `samples_per_prompt`";
            known.needs_of_some("scores", ROWS_PER_PROMPT, k, ("metric", k), hint);
        }
        if of_top_k {
            // Which rows are compared is known when their labels are: all of them would have to be too few.
            let hint = "lower it, or raise the number of completions";
            known.needs_of_some("scores", ROWS, self.top_k, ("top_k", self.top_k), hint);
        }
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let grouping = Grouping {
            row: std::slice::from_ref(&self.row),
            aggregate: &self.aggregate,
            names: &self.row_names,
        };
        let tfidf = self.claims.iter().any(
            |claim| matches!(&claim.test, Test::Difference { metric, .. } if metric.is_tfidf()),
        );
        let rows = scored::load(ctx, grouping, tfidf)?;
        let curves = load_curves(ctx, grouping)?;
        self.table(&rows, &curves)?.write(&ctx.output("table")?)?;
        Ok(())
    }
}

impl Claims {
    fn table(&self, rows: &[Row<Scored>], curves: &[Row<Curve>]) -> Result<Table, StageError> {
        let mut findings = Vec::with_capacity(self.claims.len());
        for claim in &self.claims {
            let finding = self
                .find(claim, rows, curves)
                .map_err(|error| within(&format!("claim `{}`", claim.id), error))?;
            findings.push(finding);
        }
        let p_values: Vec<f64> = findings
            .iter()
            .filter_map(|finding| Some(finding.bootstrap.as_ref()?.p()))
            .collect();
        let mut adjusted = if p_values.is_empty() {
            Vec::new()
        } else {
            holm(&p_values)?
        }
        .into_iter();
        let decided: Vec<(Option<f64>, Verdict)> = findings
            .iter()
            .map(|finding| {
                let adjusted = finding.bootstrap.as_ref().and_then(|_| adjusted.next());
                (adjusted, self.verdict(finding, adjusted))
            })
            .collect();
        let mut table = Table::new(&self.title);
        table.text_column(
            "Claim",
            self.claims.iter().map(|claim| Some(claim.id.clone())),
        );
        table.text_column(
            "Statement",
            self.claims.iter().map(|claim| Some(claim.text.clone())),
        );
        table.text_column(
            "Test",
            findings.iter().map(|finding| Some(finding.test.clone())),
        );
        table.number_column("a", 3, findings.iter().map(|finding| finding.values.0));
        table.number_column("b", 3, findings.iter().map(|finding| finding.values.1));
        table.number_column(
            "Effect",
            3,
            findings.iter().map(|finding| Some(finding.effect)),
        );
        let bootstraps = || findings.iter().map(|finding| finding.bootstrap.as_ref());
        table.interval_of_last(
            bootstraps().map(|found| found.map(|found| (found.low, found.high)).unzip()),
        );
        table.number_column("p", 4, bootstraps().map(|found| Some(found?.p())));
        table.number_column("Holm p", 4, decided.iter().map(|(adjusted, _)| *adjusted));
        let over_runs = bootstraps().map(|found| found?.over_runs);
        table.number_column("p over runs", 4, over_runs);
        let holding = findings
            .iter()
            .map(|finding| Some(format!("{} of {}", finding.holding, finding.runs)));
        table.text_column("Holds in", holding);
        table.text_column(
            "Verdict",
            decided
                .iter()
                .map(|(_, verdict)| Some(verdict.name().to_owned())),
        );
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
                "Effect: mean over runs of a - b; [low, high]: {}% bootstrap interval over runs, then questions. p: twice the \
                 smaller share of {} replicates for and against the claim; Holm p adjusts for {differences} differences.",
                self.level * 100.0,
                self.replicates
            ),
            "With few runs the bootstrap understates how runs differ; p over runs is a two-sided paired t-test of the \
             runs' values alone, and errs to the other side."
                .to_owned(),
        ]
    }
}

mod decide;
#[cfg(test)]
mod tests;
