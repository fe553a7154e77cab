//! The runs that a claim compares: each once, and over the same questions.

use std::collections::BTreeMap;

use super::Claims;
use crate::artifacts::curve::Curve;
use crate::engine::stage::StageError;
use crate::excerpt::{NAME, excerpt};
use crate::stages::report::groups::{Row, Run, STAGE, row_named, training_of};
use crate::stages::report::repeats::{Repeats, are_one};
use crate::stages::report::scored::{QuestionKey, Scored};

/// The runs of two rows, paired.
#[derive(Debug)]
pub(super) struct Pairs<'a> {
    pub(super) a: &'a Row<Scored>,
    pub(super) b: &'a Row<Scored>,
    pub(super) runs: Vec<(&'a Run<Scored>, &'a Run<Scored>)>,
    /// The places of the runs of `a`, each once.
    pub(super) distinct: Vec<usize>,
    /// What must be known of the runs.
    pub(super) told: Vec<String>,
}

/// Keeps each run once: of those that are the same the first. With them comes which were there again.
pub(super) fn once<'a, T: Copy>(
    runs: &[(&'a str, T)],
    aggregate: &str,
    same: impl Fn(&T, &T) -> bool,
) -> (Vec<(&'a str, T)>, Vec<String>) {
    let repeats = Repeats::among(runs.len(), |a, b| same(&runs[a].1, &runs[b].1));
    let again = repeats.told(&labels(runs), aggregate);
    let told = again.map(|again| {
        format!("runs whose scores or trainings are the same, byte by byte, count once: {again}.")
    });
    let distinct = repeats.distinct().into_iter();
    (
        distinct.map(|at| runs[at]).collect(),
        told.into_iter().collect(),
    )
}

/// Finds the runs of one row that are one and the same while those of the other differ, and says that nothing is known of
/// their spread.
fn of_one_side<T>(
    name: &str,
    runs: &[(&str, T)],
    aggregate: &str,
    same: impl Fn(&T, &T) -> bool,
) -> (Repeats, Option<String>) {
    let repeats = Repeats::among(runs.len(), |a, b| same(&runs[a].1, &runs[b].1));
    let again = repeats.told(&labels(runs), aggregate);
    let told = again.map(|again| {
        format!(
            "{name} is one and the same run in {again}, and only the other row's runs differ: the interval knows nothing of \
             how runs of {name} do."
        )
    });
    (repeats, told)
}

fn labels<'a, T>(runs: &[(&'a str, T)]) -> Vec<&'a str> {
    runs.iter().map(|(label, _)| *label).collect()
}

/// Whether two runs have one training: the same, or one with the same bytes. Curves that hold nothing that was measured
/// may well agree.
pub(super) fn one_training(a: &Run<Curve>, b: &Run<Curve>) -> bool {
    std::ptr::eq(a, b) || (are_one(a, b) && !a.content.metrics.is_empty())
}

impl Claims {
    /// Pairs the runs of two rows. Two are one if both rows have the same scores in them, or if all trainings that are
    /// known behind them are the same: samples of one training are no runs.
    pub(super) fn paired<'a>(
        &self,
        (a, b): (&str, &str),
        rows: &'a [Row<Scored>],
        curves: &[Row<Curve>],
    ) -> Result<Pairs<'a>, StageError> {
        type Pair<'a> = (&'a Run<Scored>, &'a Run<Scored>);
        let (a, b) = (row_named(rows, a)?, row_named(rows, b)?);
        let pairs = a.runs.iter().flat_map(|run| {
            let others = b.runs.iter().filter(move |other| other.label == run.label);
            others.map(move |other| (run.label.as_str(), (run, other)))
        });
        let of_training = |row: &Row<Scored>, one: &Run<Scored>, other: &Run<Scored>| {
            let training = |run: &Run<Scored>| training_of(curves, &row.label, &run.label);
            Some(one_training(training(one)?, training(other)?))
        };
        let same = |row: &Row<Scored>, one: &Run<Scored>, other: &Run<Scored>| {
            are_one(one, other) || of_training(row, one, other) == Some(true)
        };
        let in_a = |one: &Pair<'a>, other: &Pair<'a>| same(a, one.0, other.0);
        let in_b = |one: &Pair<'a>, other: &Pair<'a>| same(b, one.1, other.1);
        let pairs: Vec<(&str, Pair<'_>)> = pairs.collect();
        let (runs, mut told) = once(&pairs, &self.aggregate, |one, other| {
            let trainings = [
                of_training(a, one.0, other.0),
                of_training(b, one.1, other.1),
            ];
            let known = || trainings.iter().flatten();
            (known().count() > 0 && known().all(|same| *same))
                || (in_a(one, other) && in_b(one, other))
        });
        let (of_a, alone) = of_one_side(self.name(&a.label), &runs, &self.aggregate, in_a);
        told.extend(alone);
        told.extend(of_one_side(self.name(&b.label), &runs, &self.aggregate, in_b).1);
        Ok(Pairs {
            a,
            b,
            distinct: of_a.distinct(),
            runs: runs.into_iter().map(|(_, pair)| pair).collect(),
            told,
        })
    }

    /// Pairs the trainings of two rows by run, each pair once. With them comes what must be known of the runs.
    pub(super) fn paired_trainings<'a>(
        &self,
        (a, trainings_a): (&str, &'a BTreeMap<String, &'a Run<Curve>>),
        (b, trainings_b): (&str, &'a BTreeMap<String, &'a Run<Curve>>),
    ) -> (Vec<(&'a Run<Curve>, &'a Run<Curve>)>, Vec<String>) {
        type Pair<'a> = (&'a Run<Curve>, &'a Run<Curve>);
        let pairs = trainings_a.iter().zip(trainings_b.values());
        let pairs = pairs.map(|((label, a), b)| (label.as_str(), (*a, *b)));
        let in_a = |one: &Pair<'a>, other: &Pair<'a>| one_training(one.0, other.0);
        let in_b = |one: &Pair<'a>, other: &Pair<'a>| one_training(one.1, other.1);
        let pairs: Vec<(&str, Pair<'_>)> = pairs.collect();
        let (runs, mut told) = once(&pairs, &self.aggregate, |one, other| {
            in_a(one, other) && in_b(one, other)
        });
        told.extend(of_one_side(self.name(a), &runs, &self.aggregate, in_a).1);
        told.extend(of_one_side(self.name(b), &runs, &self.aggregate, in_b).1);
        (runs.into_iter().map(|(_, pair)| pair).collect(), told)
    }
}

impl Pairs<'_> {
    /// Fails where runs answer different questions, or some of them more often than others do: one may gain by easier ones.
    pub(super) fn same_questions(&self, aggregate: &str) -> Result<(), StageError> {
        let both = self
            .runs
            .iter()
            .flat_map(|(a, b)| [(self.a, *a), (self.b, *b)]);
        let mut first: Option<(String, BTreeMap<QuestionKey, usize>)> = None;
        for (row, run) in both {
            let stage = run.labels.get(STAGE).map_or("scores", String::as_str);
            let place = format!("{} (stage `{stage}`)", row.describe(run, aggregate));
            let asked = run.content.asked()?;
            let Some((other, known)) = &first else {
                first = Some((place, asked));
                continue;
            };
            let sides = [
                (&asked, known, &place, other),
                (known, &asked, other, &place),
            ];
            for (one, another, place, other) in sides {
                let missing = one.keys().find(|key| !another.contains_key(*key));
                if let Some((id, text)) = missing {
                    return Err(StageError::new(format!(
                        "{place} and {other} answer different questions: the first alone has `question` {id}, `{}`",
                        excerpt(text, NAME)
                    ))
                    .hint("a claim compares answers to the same questions: sample the same prompts for every run of both rows"));
                }
            }
            let (of_one, of_other) = (total(&asked), total(known));
            let otherwise = asked.iter().zip(known.values());
            let mut otherwise =
                otherwise.filter(|((_, one), other)| *one * of_other != *other * of_one);
            if let Some((((id, text), one), count)) = otherwise.next() {
                return Err(StageError::new(format!(
                    "{place} and {other} answer the same questions, but not as often: `question` {id}, `{}`, is {one} of \
                     {of_one} completions of the first and {count} of {of_other} of the second",
                    excerpt(text, NAME)
                ))
                .hint("sample every prompt as often as the others, in every run of both rows"));
            }
        }
        Ok(())
    }
}

fn total(asked: &BTreeMap<QuestionKey, usize>) -> usize {
    asked.values().sum()
}
