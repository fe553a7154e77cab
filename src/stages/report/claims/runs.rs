//! The runs that a claim compares: each once, and over the same questions.

use std::collections::{BTreeMap, BTreeSet};

use super::Claims;
use crate::artifacts::curve::Curve;
use crate::engine::stage::StageError;
use crate::excerpt::{NAME, excerpt};
use crate::stages::report::groups::{Row, Run, STAGE, row_named, training_of};
use crate::stages::report::repeats::{are_one, firsts, told};
use crate::stages::report::scored::{QuestionKey, Scored};

/// The runs of two rows, paired.
#[derive(Debug)]
pub(super) struct Pairs<'a> {
    pub(super) a: &'a Row<Scored>,
    pub(super) b: &'a Row<Scored>,
    pub(super) runs: Vec<(&'a Run<Scored>, &'a Run<Scored>)>,
    /// Which of the runs were others again.
    pub(super) repeated: Option<String>,
}

/// Keeps each run once: of those that are the same the first. With them comes which were there again.
pub(super) fn once<T>(
    runs: Vec<(&str, T)>,
    aggregate: &str,
    same: impl Fn(&T, &T) -> bool,
) -> (Vec<T>, Option<String>) {
    let firsts = firsts(runs.len(), |a, b| same(&runs[a].1, &runs[b].1));
    let labels: Vec<&str> = runs.iter().map(|(label, _)| *label).collect();
    let told = told(&labels, &firsts, aggregate);
    let kept = runs.into_iter().zip(firsts).enumerate();
    let kept = kept.filter(|(at, (_, first))| at == first);
    (kept.map(|(_, ((_, run), _))| run).collect(), told)
}

/// Whether two runs have one training: the same, or one with the same bytes.
pub(super) fn one_training(a: &Run<Curve>, b: &Run<Curve>) -> bool {
    std::ptr::eq(a, b) || are_one(a, b)
}

impl Claims {
    /// Pairs the runs of two rows. Two that agree in their scores, or in the training behind them, are one.
    pub(super) fn paired<'a>(
        &self,
        (a, b): (&str, &str),
        rows: &'a [Row<Scored>],
        curves: &[Row<Curve>],
    ) -> Result<Pairs<'a>, StageError> {
        let (a, b) = (row_named(rows, a)?, row_named(rows, b)?);
        let pairs = a.runs.iter().flat_map(|run| {
            let others = b.runs.iter().filter(move |other| other.label == run.label);
            others.map(move |other| (run.label.as_str(), (run, other)))
        });
        let same = |row: &str, one: &Run<Scored>, other: &Run<Scored>| {
            let training = |run: &Run<Scored>| training_of(curves, row, &run.label);
            let trainings = (training(one), training(other));
            are_one(one, other)
                || matches!(trainings, (Some(one), Some(other)) if one_training(one, other))
        };
        let (runs, repeated) = once(pairs.collect(), &self.aggregate, |one, other| {
            same(&a.label, one.0, other.0) && same(&b.label, one.1, other.1)
        });
        Ok(Pairs {
            a,
            b,
            runs,
            repeated,
        })
    }
}

impl Pairs<'_> {
    /// Fails where runs answer different questions: one may gain by easier ones.
    pub(super) fn same_questions(&self, aggregate: &str) -> Result<(), StageError> {
        let both = self
            .runs
            .iter()
            .flat_map(|(a, b)| [(self.a, *a), (self.b, *b)]);
        let mut first: Option<(String, BTreeSet<QuestionKey>)> = None;
        for (row, run) in both {
            let stage = run.labels.get(STAGE).map_or("scores", String::as_str);
            let place = format!("{} (stage `{stage}`)", row.describe(run, aggregate));
            let keys: BTreeSet<QuestionKey> = run.content.question_keys()?.into_iter().collect();
            let Some((other, known)) = &first else {
                first = Some((place, keys));
                continue;
            };
            let sides = [(&keys, known, &place, other), (known, &keys, other, &place)];
            for (one, another, place, other) in sides {
                if let Some((id, text)) = one.difference(another).next() {
                    return Err(StageError::new(format!(
                        "{place} and {other} answer different questions: the first alone has `question` {id}, `{}`",
                        excerpt(text, NAME)
                    ))
                    .hint("a claim compares answers to the same questions: sample the same prompts for every run of both rows"));
                }
            }
        }
        Ok(())
    }
}

/// Pairs the trainings of two rows by run, each pair once.
pub(super) fn paired_trainings<'a>(
    a: &'a BTreeMap<String, &'a Run<Curve>>,
    b: &'a BTreeMap<String, &'a Run<Curve>>,
    aggregate: &str,
) -> (Vec<(&'a Run<Curve>, &'a Run<Curve>)>, Option<String>) {
    let pairs = a.iter().zip(b.values());
    let pairs = pairs.map(|((label, a), b)| (label.as_str(), (*a, *b)));
    once(pairs.collect(), aggregate, |one, other| {
        one_training(one.0, other.0) && one_training(one.1, other.1)
    })
}
