//! What the tries reached, and which candidate wins.

use std::collections::BTreeSet;

use super::super::groups::within;
use super::super::repeats::{Repeats, note};
use super::super::scored::{QuestionKey, Scored};
use super::super::trainings::ended;
use super::design::Candidate;
use super::{Choose, Limit};
use crate::artifacts::curve::{Curve, Status};
use crate::artifacts::table::Table;
use crate::engine::artifact::Digest;
use crate::engine::context::Labels;
use crate::engine::stage::StageError;
use crate::stats::{mean, sample_std};

/// A candidate with what it reached.
#[derive(Debug, Clone)]
pub(super) struct Decided {
    pub(super) candidate: Candidate,
    /// Runs that are not the same, byte by byte, as one before: those that are measured.
    pub(super) distinct: usize,
    /// Which of the runs are the same.
    pub(super) repeats: Option<String>,
    /// Completions of the distinct runs.
    pub(super) n: usize,
    pub(super) mean: f64,
    /// Sample standard deviation over the runs, if there are several.
    pub(super) std: Option<f64>,
    /// The means of the columns of `within`.
    pub(super) limited: Vec<f64>,
    /// The questions of all runs.
    pub(super) asked: BTreeSet<QuestionKey>,
    /// Why it cannot win; empty if it can.
    pub(super) faults: Vec<String>,
    /// What its trainings cost.
    pub(super) cost: Option<Cost>,
    /// Its place among those of its method that can win.
    pub(super) rank: Option<usize>,
    pub(super) is_chosen: bool,
}

/// What trainings cost, as means over the runs.
#[derive(Debug, Clone)]
pub(super) struct Cost {
    pub(super) steps: f64,
    /// Whether a curve is not one of our own trainings, as far as it tells.
    pub(super) is_foreign: bool,
    pub(super) generated_tokens: f64,
    pub(super) flops: f64,
    pub(super) ended: Option<String>,
}

impl Limit {
    /// Says how a mean breaks the limit.
    fn broken(self, column: &str, value: f64) -> Option<String> {
        let (least, most) = (self.at_least, self.at_most);
        if let Some(least) = least.filter(|least| value < *least) {
            return Some(format!("{column} {value:.3} < {least}"));
        }
        let most = most.filter(|most| value > *most)?;
        Some(format!("{column} {value:.3} > {most}"))
    }
}

impl Choose {
    /// Measures all candidates and chooses; they stay in the order of the inputs.
    pub(super) fn decide(
        &self,
        labels: &[&Labels],
        (scored, digests): (&[Scored], &[Digest]),
        curves: &[(&Labels, Curve)],
    ) -> Result<Vec<Decided>, StageError> {
        let candidates = self.candidates(labels)?;
        if let Some(problem) = self.faults(&candidates).into_iter().next() {
            return Err(problem.into());
        }
        self.same_prompts(&candidates, scored)?;
        let methods: Vec<String> = Self::methods(&candidates)
            .into_iter()
            .map(str::to_owned)
            .collect();
        let mut decided = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            let place = candidate.describe();
            let measured = self.measure(candidate, labels, (scored, digests), curves);
            decided.push(measured.map_err(|error| within(&place, error))?);
        }
        for method in &methods {
            self.choose(method, &mut decided)?;
        }
        Ok(decided)
    }

    /// Runs of one label must answer the same prompts, else a candidate may win by easier ones.
    fn same_prompts(&self, candidates: &[Candidate], scored: &[Scored]) -> Result<(), StageError> {
        let Some(first) = candidates.first() else {
            return Ok(());
        };
        for (run, at) in &first.runs {
            for other in &candidates[1..] {
                let same_run = other.runs.iter().find(|(label, _)| label == run);
                let differ =
                    same_run.map(|(_, other)| scored[*at].asked_otherwise(&scored[*other]));
                if let Some(how) = differ.transpose()?.flatten() {
                    return Err(StageError::new(format!(
                        "{}, {} {run} and {}, {} {run} answer different prompts: {how}",
                        first.describe(),
                        self.run,
                        other.describe(),
                        self.run
                    ))
                    .hint("sample the same validation prompts, as often, for every try of a run"));
                }
            }
        }
        Ok(())
    }

    fn measure(
        &self,
        candidate: Candidate,
        labels: &[&Labels],
        (scored, digests): (&[Scored], &[Digest]),
        curves: &[(&Labels, Curve)],
    ) -> Result<Decided, StageError> {
        let all = &candidate.runs;
        let repeats = Repeats::among(all.len(), |a, b| digests[all[a].1] == digests[all[b].1]);
        let distinct = repeats.distinct().into_iter();
        let distinct: Vec<&(String, usize)> = distinct.map(|at| &all[at]).collect();
        let names: Vec<&str> = all.iter().map(|(label, _)| label.as_str()).collect();
        let repeats = repeats.told(&names, &self.run);
        let means_of = |column: &str| {
            let runs = distinct.iter();
            let means = runs.map(|(run, at)| {
                let mean_of_run = || Ok(mean(&scored[*at].column(column)?)?);
                mean_of_run()
                    .map_err(|error: StageError| within(&format!("{} {run}", self.run), error))
            });
            means.collect::<Result<Vec<f64>, StageError>>()
        };
        let values = means_of(&self.column)?;
        let mut asked = BTreeSet::new();
        for (_, at) in all {
            asked.extend(scored[*at].known_questions()?);
        }
        let mut faults = Vec::new();
        let mut limited = Vec::with_capacity(self.within.len());
        for (column, limit) in &self.within {
            let value = mean(&means_of(column)?)?;
            faults.extend(limit.broken(column, value));
            limited.push(value);
        }
        let mut trainings = Vec::new();
        if !curves.is_empty() {
            let of: Vec<&Labels> = curves.iter().map(|(labels, _)| *labels).collect();
            for (_, at) in &candidate.runs {
                let curve = self.belonging(labels, *at, ("curves", &of))?;
                trainings.push(&curves[curve].1);
            }
        }
        let ended = ended(&trainings);
        if trainings
            .iter()
            .any(|curve| curve.summary.status == Status::Diverged)
        {
            faults.extend(ended.clone());
        }
        let mean_cost = |value: fn(&Curve) -> f64| {
            mean(
                &trainings
                    .iter()
                    .map(|curve| value(curve))
                    .collect::<Vec<_>>(),
            )
        };
        let cost = match trainings.as_slice() {
            [] => None,
            _ => Some(Cost {
                steps: mean_cost(|curve| curve.summary.steps as f64)?,
                is_foreign: trainings.iter().any(|curve| curve.counts_from_one()),
                generated_tokens: mean_cost(|curve| curve.summary.generated_tokens as f64)?,
                flops: mean_cost(|curve| curve.summary.flops)?,
                ended,
            }),
        };
        Ok(Decided {
            distinct: distinct.len(),
            repeats: repeats.map(|told| note(&candidate.describe(), &told)),
            n: distinct
                .iter()
                .map(|(_, at)| scored[*at].identities.len())
                .sum(),
            mean: mean(&values)?,
            std: sample_std(&values).ok(),
            limited,
            asked,
            faults,
            cost,
            rank: None,
            is_chosen: false,
            candidate,
        })
    }

    /// Ranks the candidates of a method and marks the winner.
    fn choose(&self, method: &str, decided: &mut [Decided]) -> Result<(), StageError> {
        let of_method = |one: &Decided| one.candidate.method == method;
        let all = (0..decided.len()).filter(|at| of_method(&decided[*at]));
        let mut eligible: Vec<usize> = all.filter(|at| decided[*at].faults.is_empty()).collect();
        let merit = |one: &Decided| self.best.merit(one.mean);
        // Stable: of equals the first of the inputs comes first.
        eligible.sort_by(|a, b| merit(&decided[*b]).total_cmp(&merit(&decided[*a])));
        for (rank, at) in eligible.iter().enumerate() {
            decided[*at].rank = Some(rank + 1);
        }
        let of = if method.is_empty() {
            String::new()
        } else {
            format!("{method}: ")
        };
        let tries = |decided: &[Decided]| self.tries(decided.iter().filter(|one| of_method(one)));
        let Some(winner) = eligible.first().copied() else {
            return Err(StageError::new(format!(
                "{of}no candidate may win: each breaks a limit or diverged"
            ))
            .hint(format!(
                "try others, or change `within`\n{}",
                tries(decided)
            )));
        };
        let Some(choice) = self.frozen_for(method) else {
            decided[winner].is_chosen = true;
            return Ok(());
        };
        let frozen = (0..decided.len())
            .find(|at| of_method(&decided[*at]) && decided[*at].candidate.is(&choice))
            .ok_or_else(|| StageError::new(format!("BUG: {of}the frozen choice is no try")))?;
        let (best, kept) = (&decided[winner], &decided[frozen]);
        if kept.faults.is_empty() && merit(best) - merit(kept) <= self.tie {
            decided[frozen].is_chosen = true;
            return Ok(());
        }
        let why = if kept.faults.is_empty() {
            format!(
                "{} {:.4}, rank {}",
                self.column,
                kept.mean,
                kept.rank.unwrap_or_default()
            )
        } else {
            kept.faults.join(", ")
        };
        Err(StageError::new(format!(
            "the tries choose {} ({} {:.4}), and `frozen` is {} ({why})",
            best.candidate.describe(),
            self.column,
            best.mean,
            kept.candidate.describe(),
        ))
        .hint(format!(
            "set `frozen` to what the tries choose, and the reported trainings with it; or `tie` to a difference that says nothing\n{}",
            tries(decided)
        )))
    }

    /// Shows the tries of a method in a message.
    fn tries<'a>(&self, decided: impl Iterator<Item = &'a Decided>) -> String {
        let mut table: Table = self.columns(&decided.collect::<Vec<_>>());
        table.title.clear();
        table.text()
    }
}
