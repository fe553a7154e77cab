//! The table of claims, with all verdicts of a family together.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use super::decide::{Rule, Verdict};
use super::find::Finding;
use super::gates::Passage;
use super::pairs::trainings;
use super::{Claim, Claims, FAMILY, Test};
use crate::artifacts::curve::{Curve, Status};
use crate::artifacts::table::Table;
use crate::engine::stage::StageError;
use crate::excerpt::{NAME, excerpt, listed};
use crate::random::Stream;
use crate::stages::report::groups::{Row, within};
use crate::stages::report::scored::Scored;
use crate::stats::{Interval, holm, holm_levels, mean};

/// A finding with its verdict.
#[derive(Debug)]
struct Decided {
    finding: Finding,
    /// The p-value of a difference, alone and in its family.
    p: Option<(f64, Option<f64>)>,
    /// One less the coverage of the interval.
    alpha: f64,
    interval: Option<Interval>,
    verdict: Verdict,
    stability: Option<f64>,
    needed: Option<String>,
}

impl Decided {
    /// The verdict, with what speaks against it.
    fn text(&self) -> String {
        let mut text = self.verdict.text();
        if self.verdict == Verdict::Supported {
            let objections = self.finding.gates.iter();
            let objections: Vec<String> = objections.filter_map(Passage::objection).collect();
            if !objections.is_empty() {
                text = format!("{text}, but {}", objections.join(", "));
            }
        }
        text
    }

    /// A number on the scale that people read.
    fn shown(&self, value: f64) -> f64 {
        match self.finding.rule {
            Rule::Ratio { .. } => libm::exp(value),
            _ => value,
        }
    }
}

impl Claim {
    /// The family of a difference.
    fn family(&self) -> Option<&str> {
        match self.test {
            Test::Difference { .. } => Some(self.family.as_deref().unwrap_or(FAMILY)),
            _ => None,
        }
    }
}

impl Test {
    /// The rows that it compares; what it says of one alone is no comparison.
    fn compared(&self) -> Vec<&str> {
        match self {
            Self::Difference { a, b, .. }
            | Self::FlopsShare { a, b, .. }
            | Self::FlopsToReach { a, b, .. } => vec![a, b],
            Self::Diverges { .. } => Vec::new(),
        }
    }
}

impl Claims {
    pub(super) fn table(
        &self,
        rows: &[Row<Scored>],
        curves: &[Row<Curve>],
    ) -> Result<Table, StageError> {
        let mut findings = Vec::with_capacity(self.claims.len());
        for claim in &self.claims {
            let finding = self
                .find(claim, rows, curves)
                .map_err(|error| within(&format!("claim `{}`", claim.id), error))?;
            findings.push(finding);
        }
        let families = self.families(&findings);
        let decided = self.decide(findings, &families)?;
        let mut table = self.columns(&decided)?;
        table.notes = self.notes(&families);
        table
            .notes
            .extend(self.notes_on_runs(&decided, rows, curves));
        Ok(table)
    }

    /// The differences that are tested together, by family: those that can be decided.
    fn families(&self, findings: &[Finding]) -> BTreeMap<&str, Vec<usize>> {
        let mut families: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, (claim, finding)) in self.claims.iter().zip(findings).enumerate() {
            if let Some(family) = claim.family()
                && finding.runs.len() >= self.min_runs
            {
                families.entry(family).or_default().push(at);
            }
        }
        families
    }

    fn decide(
        &self,
        findings: Vec<Finding>,
        families: &BTreeMap<&str, Vec<usize>>,
    ) -> Result<Vec<Decided>, StageError> {
        let p_values = findings
            .iter()
            .map(|finding| finding.rule.p(&finding.runs))
            .collect::<Result<Vec<f64>, _>>()?;
        let mut in_family = vec![None; findings.len()];
        for members in families.values() {
            let of_family: Vec<f64> = members.iter().map(|at| p_values[*at]).collect();
            let levels = holm_levels(&of_family, self.alpha)?;
            for ((at, adjusted), level) in members.iter().zip(holm(&of_family)?).zip(levels) {
                in_family[*at] = Some((adjusted, level));
            }
        }
        let all = findings.into_iter().zip(&self.claims).enumerate();
        all.map(|(at, (finding, claim))| {
            let alpha = in_family[at].map_or(self.alpha, |(_, level)| level);
            let (rule, runs) = (finding.rule, finding.runs.len());
            let interval = rule.interval(&finding.runs, alpha)?;
            let needed = rule.fewest(self.min_runs, alpha)?;
            let has_bounds = finding.is_bound.contains(&true);
            let verdict = match &interval {
                Some(interval) if runs >= needed => rule.verdict_of(interval, has_bounds),
                _ => Verdict::TooFewRuns { runs, needed },
            };
            let stream = Stream::new(self.seed, "claims runs").child(&claim.id);
            let stability = match verdict {
                Verdict::TooFewRuns { .. } => None,
                verdict => Some(rule.stability(
                    (&finding.runs, &finding.is_bound),
                    alpha,
                    verdict,
                    (&stream, self.replicates),
                )?),
            };
            let needed = if verdict.is_decided() || has_bounds {
                // More runs do not make a training longer.
                None
            } else {
                rule.needed(&finding.runs, alpha)?
                    .map(|needed| needed.at_least(self.min_runs).text())
            };
            let of_family = in_family[at].map(|(adjusted, _)| adjusted);
            Ok(Decided {
                p: claim.family().map(|_| (p_values[at], of_family)),
                finding,
                alpha,
                interval,
                verdict,
                stability,
                needed,
            })
        })
        .collect()
    }

    fn columns(&self, decided: &[Decided]) -> Result<Table, StageError> {
        let mut table = Table::new(&self.title);
        let claims = || self.claims.iter();
        // What is read first comes first: a narrow terminal leaves out what comes last.
        table.text_column("Claim", claims().map(|claim| Some(claim.id.clone())));
        table.text_column(
            "Verdict",
            decided.iter().map(|decided| Some(decided.text())),
        );
        let findings = || decided.iter().map(|decided| &decided.finding);
        let effects = decided.iter().map(|decided| {
            let effect = mean(&decided.finding.runs)?;
            Ok(Some(decided.shown(effect)))
        });
        table.number_column(
            "Effect",
            3,
            effects.collect::<Result<Vec<_>, StageError>>()?,
        );
        table.interval_of_last(decided.iter().map(|decided| {
            let shown =
                |interval: Interval| (decided.shown(interval.low), decided.shown(interval.high));
            decided.interval.map(shown).unzip()
        }));
        let values =
            |side: fn((f64, f64)) -> f64| findings().map(move |found| found.values.map(side));
        table.number_column("a", 3, values(|(a, _)| a));
        table.number_column("b", 3, values(|(_, b)| b));
        table.number_column("Holm p", 4, decided.iter().map(|decided| decided.p?.1));
        table.text_column(
            "Runs needed",
            decided.iter().map(|decided| decided.needed.clone()),
        );
        table.text_column("Statement", claims().map(|claim| Some(claim.text.clone())));
        table.text_column("Test", findings().map(|finding| Some(finding.test.clone())));
        if claims().any(|claim| !claim.gates.is_empty()) {
            let gates = findings().map(|finding| {
                let gates: Vec<String> = finding.gates.iter().map(Passage::text).collect();
                (!gates.is_empty()).then(|| gates.join("; "))
            });
            table.text_column("Gates", gates);
        }
        let holding = findings()
            .map(|finding| Some(format!("{} of {}", finding.holding, finding.runs.len())));
        table.text_column("Holds in", holding);
        table.number_column(
            "Stability",
            2,
            decided.iter().map(|decided| decided.stability),
        );
        let families = claims().map(|claim| claim.family().map(str::to_owned));
        table.text_column("Family", families);
        let levels = decided.iter().map(|decided| {
            decided.interval?;
            Some(100.0 * (1.0 - decided.alpha))
        });
        table.number_column("Level (%)", 2, levels);
        table.number_column("p", 4, decided.iter().map(|decided| Some(decided.p?.0)));
        let bootstraps = || findings().map(|finding| finding.bootstrap);
        table.number_column(
            "Bootstrap",
            3,
            bootstraps().map(|found| Some(found?.estimate)),
        );
        table.interval_of_last(
            bootstraps().map(|found| found.map(|found| (found.low, found.high)).unzip()),
        );
        Ok(table)
    }

    fn notes(&self, families: &BTreeMap<&str, Vec<usize>>) -> Vec<String> {
        let percent = 100.0 * (1.0 - self.alpha);
        let mut notes = vec![format!(
            "Effect: mean over runs of a - b, with the interval of Student's t over runs at Level. A difference is \
             supported if the interval lies wholly beyond the margin in the claim's direction, contradicted if wholly on \
             the other side of 0, below the margin if wholly between, else inconclusive; with fewer than {} runs nothing is \
             decided. p: the least alpha that decides the claim alone.",
            self.min_runs
        )];
        for (family, members) in families {
            let ids: Vec<&str> = members
                .iter()
                .map(|at| self.claims[*at].id.as_str())
                .collect();
            notes.push(format!(
                "Family {family}, tested together at {} (Holm): {}.",
                self.alpha,
                ids.join(", ")
            ));
        }
        let has = |test: fn(&Test) -> bool| self.claims.iter().any(|claim| test(&claim.test));
        if has(|test| matches!(test, Test::Diverges { .. })) {
            notes.push(format!(
                "What diverges: exact {percent}% interval of the share of runs, against one half."
            ));
        }
        let of_flops =
            |test: &Test| matches!(test, Test::FlopsShare { .. } | Test::FlopsToReach { .. });
        if has(of_flops) {
            notes.push(format!(
                "FLOPs: geometric mean of the runs' ratios, with the {percent}% interval of Student's t of their logarithms."
            ));
        }
        if families.values().any(|members| !members.is_empty())
            || has(|test| matches!(test, Test::Difference { .. }))
        {
            notes.push(format!(
                "Bootstrap: {}% interval of {} replicates that draw runs and, once for all of them, questions; it decides \
                 nothing.",
                self.level * 100.0,
                self.replicates
            ));
        }
        notes.push(
            "Stability: share of resamples of the runs with the same verdict at the same level. Runs needed: for a decision \
             with a probability of 80%, if runs spread as those seen; for what diverges, if all further runs agree with \
             most of these."
                .to_owned(),
        );
        if self.claims.iter().any(|claim| !claim.gates.is_empty()) {
            notes.push(format!(
                "Gates: means over runs with {percent}% intervals, wholly within their limit (kept), wholly beyond it \
                 (broken) or neither (open)."
            ));
        }
        notes
    }

    /// What must be known of the runs: which count once, which never got where they should, and which ended early.
    fn notes_on_runs(
        &self,
        decided: &[Decided],
        rows: &[Row<Scored>],
        curves: &[Row<Curve>],
    ) -> Vec<String> {
        let mut notes = Vec::new();
        let mut early: IndexMap<&str, Vec<&str>> = IndexMap::new();
        for (Claim { id, test, .. }, Decided { finding, .. }) in self.claims.iter().zip(decided) {
            notes.extend(finding.told.iter().map(|told| format!("{id}: {told}")));
            if let Test::FlopsToReach { a, b, window, .. } = test {
                let short = finding
                    .is_bound
                    .iter()
                    .filter(|is_bound| **is_bound)
                    .count();
                let (a, b) = (self.name(a), self.name(b));
                let told = if short == 0 {
                    String::new()
                } else {
                    format!(
                        " In {short} of {} runs {a} never does: each counts with all of its operations, the least that it \
                         would take, and nothing is supported.",
                        finding.runs.len()
                    )
                };
                notes.push(format!(
                    "{id}: {a} is there when a mean of {window} values in a row first is what {b} ends with.{told}"
                ));
            }
            for row in test.compared() {
                early.entry(row).or_default().push(id);
            }
        }
        for (row, ids) in early {
            if let Some(told) = self.ended_early(row, rows, curves) {
                notes.push(format!("{told} ({})", ids.join(", ")));
            }
        }
        notes
    }

    /// Says in how many runs the training of a row diverged, and why.
    fn ended_early(
        &self,
        row: &str,
        rows: &[Row<Scored>],
        curves: &[Row<Curve>],
    ) -> Option<String> {
        let trainings = trainings(rows, curves, row).ok()?;
        let diverged = trainings.iter().filter_map(|(label, run)| {
            let summary = &run.content.summary;
            let reason = || format!("stopped at step {}", summary.steps);
            let why = summary.reason.clone().unwrap_or_else(reason);
            let told = format!("{} {label}: {}", self.aggregate, excerpt(&why, NAME));
            (summary.status == Status::Diverged).then_some(told)
        });
        let diverged: Vec<String> = diverged.collect();
        (!diverged.is_empty()).then(|| {
            format!(
                "Of {} the training diverged and ended early in {} of {} runs: {}. What it had then is compared.",
                self.name(row),
                diverged.len(),
                trainings.len(),
                listed(diverged)
            )
        })
    }
}
