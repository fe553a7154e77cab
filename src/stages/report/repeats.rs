//! Runs that are one and the same.
//!
//! Five seeds that nothing depends on give the same bytes five times. They show how one run differs from itself: not at
//! all. Whoever counts runs counts them once, and says so.

use std::collections::BTreeMap;

use super::groups::{Row, Run};

/// Whether two runs have the same bytes.
pub(super) fn are_one<T>(a: &Run<T>, b: &Run<T>) -> bool {
    a.digest.is_some() && a.digest == b.digest
}

/// Which of some runs are others again.
#[derive(Debug)]
pub(super) struct Repeats {
    /// For each run the first one that it repeats, or itself.
    firsts: Vec<usize>,
}

impl Repeats {
    /// Compares runs by their places.
    pub(super) fn among(runs: usize, same: impl Fn(usize, usize) -> bool) -> Self {
        let first = |at: usize| (0..at).find(|first| same(*first, at)).unwrap_or(at);
        Self {
            firsts: (0..runs).map(first).collect(),
        }
    }

    /// Compares the runs of a row by their bytes.
    pub(super) fn of_row<T>(row: &Row<T>) -> Self {
        let runs = &row.runs;
        Self::among(runs.len(), |a, b| are_one(&runs[a], &runs[b]))
    }

    /// Returns the places of the runs, each once.
    pub(super) fn distinct(&self) -> Vec<usize> {
        let firsts = self.firsts.iter().enumerate();
        let distinct = firsts.filter(|(at, first)| at == *first);
        distinct.map(|(at, _)| at).collect()
    }

    /// Lists the runs, given by their labels, that are one; nothing if all differ.
    pub(super) fn told(&self, labels: &[&str], aggregate: &str) -> Option<String> {
        let mut groups: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for (label, first) in labels.iter().zip(&self.firsts) {
            groups.entry(*first).or_default().push(label);
        }
        groups.retain(|_, group| group.len() > 1);
        let groups: Vec<String> = groups.values().map(|group| group.join(" = ")).collect();
        (!groups.is_empty()).then(|| format!("{aggregate} {}", groups.join(", ")))
    }
}

/// Says that runs of a row count once, given what [`Repeats::told`] lists.
pub(super) fn note(name: &str, told: &str) -> String {
    format!("{name}: runs that are one and the same, byte by byte, count once: {told}.")
}

/// Returns the rows with each run once, and a note for each row that has some again.
pub(super) fn once<'a, T>(rows: &'a [Row<T>], aggregate: &str) -> (Vec<Row<&'a T>>, Vec<String>) {
    let mut notes = Vec::new();
    let without = rows.iter().map(|row| {
        let repeats = Repeats::of_row(row);
        let labels: Vec<&str> = row.runs.iter().map(|run| run.label.as_str()).collect();
        let told = repeats.told(&labels, aggregate);
        notes.extend(told.map(|told| note(&row.name, &told)));
        let distinct = repeats.distinct().into_iter();
        Row {
            label: row.label.clone(),
            name: row.name.clone(),
            values: row.values.clone(),
            shown: row.shown.clone(),
            runs: distinct.map(|at| row.runs[at].borrowed()).collect(),
        }
    });
    (without.collect(), notes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::engine::artifact::Digest;
    use crate::stages::report::fixture::rows;
    use crate::stages::report::groups::tests::labels;

    /// Gives every run of a row the same bytes.
    pub(in crate::stages::report) fn repeat<T>(row: &mut Row<T>) {
        for run in &mut row.runs {
            run.digest = Some(Digest::of(row.label.as_bytes()));
        }
    }

    #[test]
    fn a_run_that_is_there_again_counts_once_and_is_told() {
        let items = [("a", "1"), ("b", "1"), ("a", "2"), ("b", "2"), ("a", "3")];
        let items = items.map(|(policy, seed)| {
            let labels = labels(&[("policy", policy), ("seed", seed)]);
            (labels, format!("{policy}{seed}"))
        });
        let mut rows = rows(items.into());
        let runs = |rows: &[Row<&String>]| -> Vec<usize> {
            rows.iter().map(|row| row.runs.len()).collect()
        };
        let (all, notes) = once(&rows, "seed");
        assert_eq!((runs(&all), notes.len()), (vec![3, 2], 0));
        for (run, digest) in rows[0].runs.iter_mut().zip(["x", "y", "x"]) {
            run.digest = Some(Digest::of(digest.as_bytes()));
        }
        let (all, notes) = once(&rows, "seed");
        assert_eq!(runs(&all), [2, 2]);
        assert_eq!(all[0].runs[1].content, "a2");
        assert_eq!(
            notes,
            ["a: runs that are one and the same, byte by byte, count once: seed 1 = 3."]
        );
    }
}
