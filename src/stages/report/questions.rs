//! Whether rows, and the runs of a row, answer the same questions.

use std::collections::BTreeSet;

use super::groups::Row;
use crate::engine::stage::StageError;

/// How the questions of some rows differ.
#[derive(Debug, PartialEq)]
pub(super) struct Asked {
    /// Whether all runs of each row share their questions.
    pub(super) shared: bool,
    /// What must be known where questions differ.
    pub(super) notes: Vec<String>,
}

/// Compares what rows are asked, and the runs of each; `asked` returns the questions of a run.
pub(super) fn compare<'a, T: 'a, K: Ord + Clone>(
    rows: impl IntoIterator<Item = &'a Row<T>>,
    aggregate: &str,
    asked: impl Fn(&'a T) -> Result<BTreeSet<K>, StageError>,
) -> Result<Asked, StageError> {
    let (mut of_rows, mut of_runs) = (Vec::new(), None);
    for row in rows {
        let runs = row.runs.iter();
        let runs = runs.map(|run| Ok((row.describe(run, aggregate), asked(&run.content)?)));
        let runs = runs.collect::<Result<Vec<_>, StageError>>()?;
        of_runs = of_runs.or_else(|| differ("Runs of a row", &runs));
        let all = runs.into_iter().flat_map(|(_, asked)| asked).collect();
        of_rows.push((row.name.clone(), all));
    }
    let shared = of_runs.is_none();
    let notes = differ("Rows", &of_rows).into_iter().chain(of_runs);
    Ok(Asked {
        shared,
        notes: notes.collect(),
    })
}

/// Names the questions that a bootstrap draws for all runs.
pub(super) fn drawn_questions(what: &str, shared: bool) -> String {
    if shared {
        format!("the {what} that they share")
    } else {
        what.to_owned()
    }
}

/// Says that some, given by their names, answer different questions; nothing if all answer the same.
pub(super) fn differ<K: Ord>(what: &str, some: &[(String, BTreeSet<K>)]) -> Option<String> {
    let (first, asked) = some.first()?;
    let (other, others) = some.iter().find(|(_, others)| others != asked)?;
    Some(format!(
        "{what} answer different questions, and may differ by them: {first} ({}) and {other} ({}) have {} in common.",
        asked.len(),
        others.len(),
        asked.intersection(others).count()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::report::fixture::rows;
    use crate::stages::report::groups::tests::labels;

    #[test]
    fn questions_that_differ_between_rows_or_runs_are_told() {
        let compared = |items: &[(&str, &str, &str)]| {
            let items = items.iter().map(|(policy, seed, questions)| {
                let labels = labels(&[("policy", policy), ("seed", seed)]);
                (labels, questions.chars().collect::<BTreeSet<char>>())
            });
            let rows = rows(items.collect());
            let asked = compare(&rows, "seed", |questions| Ok(questions.clone())).unwrap();
            (asked.shared, asked.notes)
        };
        let same = [("a", "1", "xyz"), ("a", "2", "zyx"), ("b", "1", "xyz")];
        assert_eq!(compared(&same), (true, Vec::new()));
        let of_rows = "Rows answer different questions, and may differ by them: a (3) and b (2) have 1 in common.";
        let (shared, notes) = compared(&[("a", "1", "xyz"), ("b", "1", "zv")]);
        assert_eq!((shared, notes), (true, vec![of_rows.to_owned()]));
        // Rows whose runs are asked the same, run by run.
        let paired = [
            ("a", "1", "xy"),
            ("a", "2", "yz"),
            ("b", "1", "xy"),
            ("b", "2", "yz"),
        ];
        let of_runs = "Runs of a row answer different questions, and may differ by them: a, seed 1 (2) and a, seed 2 (2) \
                       have 1 in common.";
        assert_eq!(compared(&paired), (false, vec![of_runs.to_owned()]));
        let (shared, notes) = compared(&paired[..3]);
        assert!(!shared && notes.len() == 2, "{notes:?}");
    }
}
