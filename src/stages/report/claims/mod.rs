//! `claims`: statements of a paper, each decided by a stated test.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bootstrap_params::check_bootstrap;
use super::groups::Grouping;
use super::measure::{Metric, right};
use super::reach;
use super::scored;
use super::trainings::{curves_port, load_curves};
use crate::artifacts::completions::{ROWS, ROWS_PER_PROMPT};
use crate::artifacts::table::TABLE;
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::stages::defaults;
use gates::Gates;

/// Decides statements of a paper: supported, contradicted, below the margin, or inconclusive at this scale.
///
/// What counts is how runs differ. A run is one value of `aggregate`, such as a seed; its completions share one training
/// and say nothing of another. So each run gives one number: for a `difference` the metric of row `a` less that of row
/// `b` in the same run. The mean of these numbers has an interval of Student's t, which is where the true difference of
/// many such runs may lie. The claim is supported if that interval lies wholly beyond the `margin` in the claim's
/// direction, contradicted if wholly on the other side of 0, `below the margin` if wholly between 0 and the margin, and
/// inconclusive otherwise. `equal` is supported if the interval lies wholly within the margin on both sides of 0, and
/// contradicted if wholly outside. Runs need not agree with each other: one that does not widens the interval. With
/// fewer than `min_runs` runs nothing is decided.
///
/// Who tests many claims finds some by chance. All differences of a `family` are therefore tested together (Holm 1979),
/// so that with a probability of at least `1 - alpha` none of those without a difference is decided: the clearest of k
/// claims has an interval of coverage `1 - alpha / k`, after it is decided the next one of `1 - alpha / (k - 1)`, and so
/// on; from the first that is not decided the others stay at its level. `Level` is the coverage that a claim came to, and
/// `Effect` is shown with just this interval, so that the verdict can be read off it. `p` is the least alpha at which
/// the claim alone would be decided, `Holm p` the least alpha of its family. (For wrong directions, see Finner 1999.)
///
/// `Stability` is the share of resamples of the runs that have the same verdict at the same level. `Runs needed` says how
/// many runs would decide with a probability of 80%, if they spread as those seen and the true difference is the
/// claim's `effect`; without one the `margin` (which is then told from 0); without that the difference seen, which is a
/// guess. For `equal` it is an `effect` of 0.
///
/// The interval over runs speaks of these questions. `Bootstrap` beside it draws questions, too (Owen 2007): runs and, once
/// for all of them, questions. With few runs it is too narrow; it decides nothing.
///
/// `diverges` is decided by the exact interval (Clopper and Pearson 1934) of the share of runs that diverge, against one
/// half: at 95% six runs that all agree are the fewest that can. `flops_share` is decided by the interval of the mean
/// logarithm of the runs' ratios, against that of `at_most`; operations are counted, so that runs may well agree to the
/// last digit, and their interval is a point. `flops_to_reach` takes instead of all operations of `a` those until its
/// curve first has the reward that the curve of `b` ends with in the same run, over all operations of `b`. A run that never
/// gets there is not left out: it counts with all operations of `a`, the least that it would have taken, and one such run
/// is enough that the claim is not supported; it is contradicted if the interval lies above `at_most` even so. All three
/// are outside the families, at level `1 - alpha`.
///
/// Runs must be runs: those with the same scores in both rows count once, and so do those behind which is one training, byte
/// by byte, however often it is sampled. Where only one row repeats, as one that all runs share does, it is told. All runs of
/// both rows of a difference must answer the same questions, each as often. What diverged among the trainings in `curves` is
/// told.
///
/// `gates` name columns of `scores` that must not suffer, such as `exact_reward` where the claim is about a learned
/// reward, and `kl`, which `score` writes if its port `reference` is connected. Their means have intervals over runs at
/// level `1 - alpha`. A supported claim whose gate is not shown to be kept says so: `supported, but exact_reward worse`,
/// or `perhaps worse` where the limit is inside the interval.
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
    /// The greatest probability of any decision in a family without differences.
    #[serde(default = "defaults::alpha")]
    alpha: f64,
    /// The fewest runs that decide a claim, at least 2.
    #[serde(default = "five")]
    min_runs: usize,
    /// Names shown instead of values of `row`.
    #[serde(default)]
    row_names: BTreeMap<String, String>,
    /// The title.
    #[serde(default = "title")]
    title: String,
    /// Coverage of the bootstrap intervals.
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
    /// The differences that are tested together with it; all without one are the family `differences`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    family: Option<String>,
    /// What row `a` must not lose: columns of `scores` with limits for their means.
    #[serde(default, skip_serializing_if = "Gates::is_empty")]
    gates: Gates,
}

/// The family of claims that name none.
const FAMILY: &str = "differences";

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
        /// The true difference for which `Runs needed` is told, in the claim's direction: above the margin, for `equal`
        /// below it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        effect: Option<f64>,
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
    /// The training of `a` takes at most a share of the floating-point operations of that of `b` until it first has the
    /// reward that `b` ends with.
    FlopsToReach {
        /// The cheap row.
        a: String,
        /// The row whose end is reached.
        b: String,
        /// The greatest share of all operations of `b`, such as 0.035.
        at_most: f64,
        /// The metric of the curves that is the reward; greater is better.
        #[serde(default = "reach::metric")]
        metric: String,
        /// The metric taken of curves without it; null for none.
        #[serde(default = "reach::fallback")]
        fallback: Option<String>,
        /// Both what is reached and where `b` ends are means of so many values in a row.
        #[serde(default = "reach::window")]
        window: usize,
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

fn five() -> usize {
    5
}

fn title() -> String {
    "Claims and what this experiment says of them".to_owned()
}

fn mean_metric() -> Metric {
    Metric::Mean
}

impl Kind for Claims {
    const NAME: &'static str = "claims";
    const VERSION: u32 = 6;
    const EXAMPLE: &'static str = r"{ claims: [
      { id: diversity, text: FlowHF is more diverse than PPO,
        test: { kind: difference, metric: diversity, a: flowhf.late, b: ppo, direction: greater, margin: 0.02 },
        gates: { exact_reward: { not_worse_by: 0.05 }, coherent: { at_least: 0.9 } } },
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
            check_claim(claim, &mut problems);
        }
        if self.top_k < 2 {
            problems.push(Problem::new(
                "top_k",
                "`top_k` must be at least 2: diversity is a mean over pairs",
            ));
        }
        if self.min_runs < 2 {
            problems.push(
                Problem::new("min_runs", "`min_runs` must be at least 2")
                    .hint("one run does not show how runs differ"),
            );
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
        self.check_inputs(known);
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let tfidf = self.claims.iter().any(
            |claim| matches!(&claim.test, Test::Difference { metric, .. } if metric.is_tfidf()),
        );
        let rows = scored::load(ctx, self.grouping(), tfidf)?;
        let curves = load_curves(ctx, self.grouping())?;
        self.table(&rows, &curves)?.write(&ctx.output("table")?)?;
        Ok(())
    }
}

impl Claims {
    fn grouping(&self) -> Grouping<'_> {
        Grouping {
            row: std::slice::from_ref(&self.row),
            aggregate: &self.aggregate,
            names: &self.row_names,
        }
    }
}

/// Says what is wrong with a claim, whatever the inputs.
fn check_claim(claim: &Claim, problems: &mut Vec<Problem>) {
    let mut refuse = |what: &str, hint: &str| {
        let problem = Problem::new("claims", format!("claim `{}`: {what}", claim.id));
        problems.push(if hint.is_empty() {
            problem
        } else {
            problem.hint(hint)
        });
    };
    match &claim.test {
        Test::Difference {
            a,
            b,
            metric,
            direction,
            margin,
            effect,
            ..
        } => {
            if a == b {
                refuse(&format!("it compares `{a}` with itself"), "");
            }
            if metric.drawn() == Some(0) {
                refuse(
                    "`metric` draws no completion",
                    "such as `metric: { pass_at: 1 }`",
                );
            }
            if *direction == Direction::Equal {
                if *margin <= 0.0 {
                    refuse(
                        "`equal` needs a `margin` above 0",
                        "the margin is the difference that would not matter",
                    );
                } else if effect.is_some_and(|effect| effect.abs() >= *margin) {
                    refuse("`effect` must be within `margin`", "");
                }
            } else if *margin < 0.0 {
                refuse(
                    "`margin` must not be below 0",
                    "it is how far the difference must go in the claim's direction",
                );
            } else if effect.is_some_and(|effect| effect <= *margin) {
                refuse(
                    "`effect` must be above `margin`",
                    "no number of runs shows that a difference is beyond itself; give it as a positive number, also for `less`",
                );
            }
        }
        Test::FlopsShare { a, b, at_most } | Test::FlopsToReach { a, b, at_most, .. } => {
            if a == b {
                refuse(&format!("it compares `{a}` with itself"), "");
            }
            if *at_most <= 0.0 {
                refuse("`at_most` must be above 0", "");
            }
            if matches!(&claim.test, Test::FlopsToReach { window: 0, .. }) {
                refuse("`window` must be at least 1", "");
            }
        }
        Test::Diverges { .. } if !claim.gates.is_empty() => {
            refuse(
                "`diverges` has no gates",
                "they say what a row must not lose",
            );
        }
        Test::Diverges { .. } => {}
    }
    if claim.family.is_some() && !matches!(claim.test, Test::Difference { .. }) {
        refuse(
            "`family` has no effect",
            "only differences are tested together",
        );
    }
    gates::check(&claim.id, &claim.gates, problems);
}

#[cfg(test)]
mod calibration;
mod decide;
mod find;
mod gates;
mod pairs;
#[cfg(test)]
mod run_tests;
mod runs;
mod table;
#[cfg(test)]
mod tests;
