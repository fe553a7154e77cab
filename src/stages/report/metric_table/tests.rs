use serde_json::json;

use super::*;
use crate::artifacts::completions::{CompletionRow, to_table};
use crate::artifacts::curve::Status;
use crate::artifacts::embeddings::EmbeddingMatrix;
use crate::artifacts::table::{Table, Values};
use crate::engine::context::Labels;
use crate::random::Stream;
use crate::stages::report::fixture::{curve, rows, scored, with_rewards};
use crate::stages::report::repeats::tests::repeat;
use crate::stages::report::scored::{Scored, add_tfidf};
use crate::stats::{Embeddings, diversity, mean, novelty};

fn kind(params: serde_json::Value) -> MetricTable {
    serde_json::from_value(params).unwrap()
}

fn one(table: &Table, column: &str, row: usize) -> f64 {
    table.numbers(column).unwrap()[row].unwrap()
}

fn vectors(n: usize, seed: u64) -> EmbeddingMatrix {
    let mut draws = Stream::new(seed, "vectors").at(0);
    EmbeddingMatrix {
        values: (0..n * 3).map(|_| draws.normal() as f32).collect(),
        dimension: 3,
    }
}

/// ```python
/// r = np.array([.5, 2, -1, 1.5, 0, 1]); top = np.sort(r)[-3:]
/// r.mean(), r.std(), top.mean(), top.std()
/// ```
#[test]
fn rewards_are_summarised_as_in_the_paper() {
    let texts = ["a", "b", "c", "", "e", "f"].map(str::to_owned);
    let scored = with_rewards(&[0.5, 2.0, -1.0, 1.5, 0.0, 1.0], &texts);
    let labels = crate::stages::report::groups::tests::labels(&[("policy", "ppo"), ("seed", "1")]);
    let kind = kind(json!({ "top_k": 3, "entropy": ["mode"], "extra": ["tokens"] }));
    let (table, per_seed) = kind.tables(rows(vec![(labels, scored)]), &[]).unwrap();
    let expected = [
        ("n", 6.0),
        ("Mean", 0.666_666_666_666_666_6),
        ("Std", 0.986_013_297_183_269_2),
        ("Top-3 Mean", 1.5),
        ("Top-3 Std", 0.408_248_290_463_863),
        ("Truncated", 1.0 / 3.0),
        ("tokens", 3.0),
        ("Entropy of mode", 2f64.ln()),
    ];
    for (column, expected) in expected {
        let found = one(&table, column, 0);
        assert!(
            (found - expected).abs() < 1e-14,
            "{column}: {found}, not {expected}"
        );
        assert_eq!(one(&per_seed, column, 0), found);
    }
    assert!(!table.has("Diversity") && !table.has("Mean sd") && !table.has("Training"));
    assert!(one(&table, "Mean low", 0) < 0.66 && one(&table, "Mean high", 0) > 0.67);
}

#[test]
fn what_is_asked_for_beside_the_columns_is_shown_behind_them() {
    let texts = ["a", "b"].map(str::to_owned);
    let shown = |params| {
        let labels =
            crate::stages::report::groups::tests::labels(&[("policy", "ppo"), ("seed", "1")]);
        let runs = rows(vec![(labels, with_rewards(&[0.5, 2.0], &texts))]);
        let (table, _) = kind(params).tables(runs, &[]).unwrap();
        let names = table.columns.into_iter().map(|column| column.name);
        let wanted = ["Mean", "Std", "tokens", "Entropy of mode"];
        names
            .filter(|name| wanted.contains(&name.as_str()))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        shown(json!({ "columns": ["std", "mean"], "extra": ["tokens"], "entropy": ["mode"] })),
        ["Std", "Mean", "tokens", "Entropy of mode"]
    );
    // Named among the columns, they stand where they are named.
    assert_eq!(
        shown(json!({ "columns": ["tokens", "mean"], "extra": ["tokens"] })),
        ["tokens", "Mean"]
    );
}

#[test]
fn tfidf_and_columns_that_contradict_each_other_are_refused() {
    let problems = |params| -> Vec<String> {
        let problems = kind(params).validate().into_iter();
        problems.map(|problem| problem.message).collect()
    };
    assert_eq!(
        problems(json!({ "columns": ["mean", "tfidf_diversity"] })),
        ["metrics with TF-IDF vectors need `tfidf: true`"]
    );
    assert_eq!(
        problems(json!({ "columns": ["mean"], "tfidf": true })),
        ["`tfidf: true` has no effect: `columns` shows no metric with TF-IDF vectors"]
    );
    for right in [
        json!({ "columns": ["tfidf_diversity"], "tfidf": true }),
        json!({ "tfidf": true }),
        json!({ "columns": ["mean"] }),
    ] {
        assert_eq!(problems(right), Vec::<String>::new());
    }
}

#[test]
fn diversity_and_novelty_are_of_the_best_completions() {
    let (labels, mut scored) = scored("ppo", 1, 0.0, 10);
    let rewards = scored.column("reward").unwrap();
    let best = crate::stats::top_k(&rewards, 4).unwrap();
    let (texts, reference) = (vectors(10, 1), vectors(5, 2));
    let chosen: Vec<f32> = best
        .iter()
        .flat_map(|at| texts.values[at * 3..at * 3 + 3].to_vec())
        .collect();
    let chosen = Embeddings::new(&chosen, 3).unwrap();
    let known = Embeddings::new(&reference.values, 3).unwrap();
    let all = Embeddings::new(&texts.values, 3).unwrap();
    let expected = [
        ("Diversity", diversity(&chosen).unwrap()),
        ("Diversity, all", diversity(&all).unwrap()),
        ("Novelty", novelty(&chosen, &known).unwrap()),
        ("Novelty, all", novelty(&all, &known).unwrap()),
    ];
    scored
        .embed(texts.clone(), Some(reference.clone().into()))
        .unwrap();
    let (table, _) = kind(json!({ "top_k": 4 }))
        .tables(rows(vec![(labels, scored)]), &[])
        .unwrap();
    for (column, expected) in expected {
        assert!(
            (one(&table, column, 0) - expected).abs() < 1e-12,
            "{column}"
        );
    }
    // One sample of each question: there is no diversity within one.
    assert!(!table.has("Diversity, per prompt"));
}

#[test]
fn seeds_are_averaged_and_the_paper_stands_beside() {
    let items = [("ppo", 1, 1.0), ("ppo", 2, 1.4), ("tb", 1, 0.2)];
    let items = items.map(|(policy, seed, center)| scored(policy, seed, center, 40));
    let expected: Vec<f64> = items
        .iter()
        .map(|(_, run)| mean(&run.column("reward").unwrap()).unwrap())
        .collect();
    let curves = rows(vec![
        curve("ppo", 1, Status::Completed, 1.0),
        curve("ppo", 2, Status::Diverged, 1.0),
    ]);
    let kind =
        kind(json!({ "reference_values": { "ppo": { "mean": 0.872 } }, "columns": ["mean"] }));
    let (table, per_seed) = kind.tables(rows(items.into()), &curves).unwrap();
    let close =
        |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} {expected}");
    close(
        one(&table, "Mean", 0),
        f64::midpoint(expected[0], expected[1]),
    );
    close(
        one(&table, "Mean sd", 0),
        (expected[0] - expected[1]).abs() / 2f64.sqrt(),
    );
    assert_eq!(table.numbers("Mean sd").unwrap()[1], None);
    assert_eq!(table.numbers("Mean (paper)").unwrap(), [Some(0.872), None]);
    assert_eq!(table.numbers("n").unwrap(), [Some(80.0), Some(40.0)]);
    let (low, high) = (one(&table, "Mean low", 0), one(&table, "Mean high", 0));
    assert!(
        low < expected[0] + 0.1 && high > expected[1] - 0.1,
        "{low} {high}"
    );
    assert_eq!(
        table.texts("Training").unwrap(),
        [Some("diverged in 1 of 2 runs".to_owned()), None]
    );
    let status = per_seed.texts("Training").unwrap();
    assert_eq!(
        status,
        [
            Some("completed".to_owned()),
            Some("diverged at step 4".to_owned()),
            None
        ]
    );
    assert_eq!(per_seed.texts("seed").unwrap()[1].as_deref(), Some("2"));
}

/// ```python
/// scipy.stats.trim_mean(np.concatenate([[0, 1, 2, 3], ..., [0, 1, 2, -100]]), .25)
/// ```
#[test]
fn the_interquartile_mean_is_of_all_questions_of_all_runs() {
    let table = |runs: u64| {
        let items = (1..=runs).map(|seed| {
            let last = if seed == runs { -100.0 } else { 3.0 };
            let texts = ["a", "b", "c", "d"].map(str::to_owned);
            let labels = [("policy", "ppo"), ("seed", &seed.to_string())];
            let labels = crate::stages::report::groups::tests::labels(&labels);
            (labels, with_rewards(&[0.0, 1.0, 2.0, last], &texts))
        });
        let kind = kind(json!({ "columns": ["mean", "iqm"] }));
        assert_eq!(kind.validate(), []);
        kind.tables(rows(items.collect()), &[]).unwrap()
    };
    let (five, per_seed) = table(5);
    // Of -100, 0 x 5, 1 x 5, 2 x 5, 3 x 4 five are left out at each end.
    assert!((one(&five, "IQM", 0) - 1.3).abs() < 1e-12);
    assert!(one(&five, "Mean", 0) < -3.0);
    let (low, high) = (one(&five, "IQM low", 0), one(&five, "IQM high", 0));
    assert!(
        (0.0..1.3).contains(&low) && (1.3..3.0).contains(&high),
        "{low} {high}"
    );
    assert_eq!(one(&per_seed, "IQM", 0), 1.5);
    assert_eq!(one(&per_seed, "IQM", 4), 0.5);
    let (four, _) = table(4);
    for column in ["IQM", "IQM sd", "IQM low", "IQM high"] {
        assert_eq!(four.numbers(column).unwrap(), [None]);
    }
    assert!(
        four.notes
            .iter()
            .any(|note| note.contains("fewer than 5 runs"))
    );
    let (whole, _) = kind(json!({}))
        .tables(rows(vec![scored("ppo", 1, 1.0, 30)]), &[])
        .unwrap();
    assert!(!whole.has("IQM"));
    let of_top_k = |table: &Table| table.notes.iter().any(|note| note.starts_with("Top-"));
    assert!(of_top_k(&whole) && !of_top_k(&five));
}

#[test]
fn runs_that_are_one_and_the_same_count_once() {
    let items = (1..=5).map(|seed| scored("ppo", seed, 1.0, 30)).collect();
    let kind = kind(json!({ "columns": ["mean", "iqm"] }));
    let mut all = rows(items);
    repeat(&mut all[0]);
    let (table, per_seed) = kind.tables(all, &[]).unwrap();
    assert!(!table.has("Runs") && !table.has("Mean sd"));
    assert_eq!(one(&table, "n", 0), 30.0);
    assert_eq!(table.numbers("IQM").unwrap(), [None]);
    assert_eq!(per_seed.height(), 5);
    let note =
        "ppo: runs that are one and the same, byte by byte, count once: seed 1 = 2 = 3 = 4 = 5.";
    assert!(
        table.notes.iter().any(|told| told == note),
        "{:?}",
        table.notes
    );
}

#[test]
fn questions_that_all_runs_share_are_drawn_once_for_all() {
    let width = |apart: usize| {
        let items = (0..4).map(|seed: usize| {
            let reward = |at: usize| f64::from(u8::from((at + seed * apart) % 40 < 20));
            let rewards: Vec<f64> = (0..40).map(reward).collect();
            let texts: Vec<String> = (0..40).map(|at| at.to_string()).collect();
            let labels = [("policy", "ppo"), ("seed", &seed.to_string())];
            let labels = crate::stages::report::groups::tests::labels(&labels);
            (labels, with_rewards(&rewards, &texts))
        });
        let kind = kind(json!({ "columns": ["mean"] }));
        let (table, _) = kind.tables(rows(items.collect()), &[]).unwrap();
        one(&table, "Mean high", 0) - one(&table, "Mean low", 0)
    };
    let (same, others) = (width(0), width(10));
    // 2 x 1.96 x sqrt(1 / 4 / 40)
    assert!((same - 0.31).abs() < 0.02, "{same}");
    assert!(others < 0.7 * same, "{others} {same}");
}

#[test]
fn questions_that_rows_or_runs_do_not_share_are_told() {
    let notes = |counts: [usize; 3]| {
        let runs = [("ppo", 1), ("ppo", 2), ("tb", 1)].into_iter().zip(counts);
        let items = runs.map(|((policy, seed), n)| scored(policy, seed, 0.0, n));
        let kind = kind(json!({ "columns": ["mean"] }));
        let (table, _) = kind.tables(rows(items.collect()), &[]).unwrap();
        table.notes.join("\n")
    };
    let same = notes([5, 5, 5]);
    assert!(same.contains("(seed) and the questions that they share;"));
    assert!(!same.contains("different questions"), "{same}");
    let of_rows = notes([5, 5, 4]);
    assert!(of_rows.contains("that they share;"), "{of_rows}");
    assert!(of_rows.contains("ppo (5) and tb (4) have 4 in common."));
    let of_runs = notes([5, 4, 5]);
    assert!(of_runs.contains("(seed) and questions;"), "{of_runs}");
    assert!(of_runs.contains("ppo, seed 1 (5) and ppo, seed 2 (4) have 4 in common."));
    assert!(!of_runs.contains("Rows answer"), "{of_runs}");
}

#[test]
fn tfidf_measures_every_row_in_one_space() {
    let mut all = rows(vec![scored("ppo", 1, 1.0, 30), scored("tb", 1, 0.0, 30)]);
    let known = vec![
        "ppo says word1 and word1".to_owned(),
        "ppo says word2 and word0".to_owned(),
    ];
    add_tfidf(&mut all, &[known], |_| Ok(Some(0))).unwrap();
    let dimensions: Vec<usize> = all
        .iter()
        .map(|row| row.runs[0].content.tfidf.as_ref().unwrap().texts.dimension)
        .collect();
    assert_eq!(dimensions, [11, 11]);
    let (table, _) = kind(json!({ "top_k": 5 })).tables(all, &[]).unwrap();
    let novelties = table.numbers("TF-IDF Novelty, all").unwrap();
    // The reference speaks of `ppo`.
    assert!(
        novelties[0].unwrap() < novelties[1].unwrap(),
        "{novelties:?}"
    );
    assert!(one(&table, "TF-IDF Diversity", 0) > 0.0);
}

#[test]
fn equal_inputs_give_equal_tables_and_a_seed_moves_the_interval() {
    let table = |seed: u64| {
        let items = vec![scored("ppo", 1, 1.0, 20), scored("ppo", 2, 1.1, 20)];
        kind(json!({ "seed": seed }))
            .tables(rows(items), &[])
            .unwrap()
            .0
    };
    assert_eq!(table(1), table(1));
    assert_ne!(one(&table(1), "Mean low", 0), one(&table(2), "Mean low", 0));
    let columns = table(1).columns;
    assert!(columns.iter().all(|column| match &column.values {
        Values::Numbers(values) => values.len() == 1,
        Values::Text(values) => values.len() == 1,
        Values::Ids(values) => values.len() == 1,
    }));
}

#[test]
fn what_does_not_fit_is_named() {
    let message = |result: Result<(Table, Table), StageError>| match result {
        Err(StageError::Failed { message, .. }) => message,
        other => panic!("{other:?}"),
    };
    let few = || rows(vec![scored("ppo", 3, 1.0, 10)]);
    let found = message(kind(json!({})).tables(few(), &[]));
    assert!(
        found.starts_with("ppo, seed 3: top 20 of 10 values"),
        "{found}"
    );
    let found = message(kind(json!({ "columns": ["diversity"], "top_k": 2 })).tables(few(), &[]));
    assert_eq!(
        found,
        "ppo, seed 3: `diversity` needs vectors of the completions"
    );
    let found = message(kind(json!({ "column": "rewards", "top_k": 2 })).tables(few(), &[]));
    assert!(found.contains("no column `rewards` of numbers"), "{found}");
    let texts = ["a".to_owned(), "b".to_owned(), "c".to_owned()];
    let mut odd = with_rewards(&[1.0, f64::NAN, 2.0], &texts);
    assert!(
        matches!(odd.column("reward"), Err(StageError::Failed { message, .. }) if message == "`reward` of row 1 is NaN")
    );
    assert!(odd.embed(vectors(2, 1), None).is_err());
    assert!(odd.embed(vectors(3, 1), None).is_ok());
    let problems = kind(
        json!({ "columns": ["novlty"], "top_k": 1, "reference_values": { "a": { "mode": 1 } } }),
    )
    .validate();
    assert_eq!(problems.len(), 3, "{problems:?}");
}

/// Three questions with four completions each; rewards 0 and 1.
fn attempts(seed: u64, right: [usize; 3]) -> (Labels, Scored) {
    let rows = (0..12).map(|at| CompletionRow {
        question_id: at % 3,
        sample: at / 3,
        completion: format!("answer {}", at / 6),
        ..CompletionRow::default()
    });
    let rows: Vec<CompletionRow> = rows.collect();
    let mut table = to_table("scores", &rows);
    let rewards = rows.iter().map(|row| {
        let is_right = row.sample < right[row.question_id as usize] as u64;
        Some(f64::from(u8::from(is_right)))
    });
    table.number_column("reward", 3, rewards.collect::<Vec<_>>());
    let labels = crate::stages::report::groups::tests::labels(&[
        ("policy", "ppo"),
        ("seed", &seed.to_string()),
    ]);
    (labels, Scored::new(table).unwrap())
}

#[test]
fn right_answers_among_several_are_measured_by_question_and_resampled() {
    let params = json!({ "k": [1, 2, 4], "top_k": 4, "replicates": 2000 });
    let runs = vec![attempts(1, [4, 1, 0]), attempts(2, [3, 3, 2])];
    let (table, per_seed) = kind(params).tables(rows(runs), &[]).unwrap();
    for (column, first, second) in [
        ("pass@1", 5.0 / 12.0, 8.0 / 12.0),
        ("pass@2", (1.0 + 0.5) / 3.0, (1.0 + 1.0 + 5.0 / 6.0) / 3.0),
        ("pass@4", 2.0 / 3.0, 1.0),
        ("max@2", (1.0 + 0.5) / 3.0, (1.0 + 1.0 + 5.0 / 6.0) / 3.0),
        // Two answers, of two completions each: both tie.
        ("majority@4", (1.0 + 0.25) / 3.0, (0.75 + 0.75 + 0.5) / 3.0),
        ("Distinct right", (2.0 + 1.0) / 3.0, (2.0 + 2.0 + 1.0) / 3.0),
    ] {
        let found = [one(&per_seed, column, 0), one(&per_seed, column, 1)];
        for (found, expected) in found.iter().zip([first, second]) {
            assert!(
                (found - expected).abs() < 1e-12,
                "{column}: {found}, not {expected}"
            );
        }
        let mean = one(&table, column, 0);
        assert!(
            (mean - f64::midpoint(first, second)).abs() < 1e-12,
            "{column}"
        );
        let (low, high) = (
            one(&table, &format!("{column} low"), 0),
            one(&table, &format!("{column} high"), 0),
        );
        assert!(low < mean && mean < high, "{column}: {low} {mean} {high}");
        assert!(table.has(&format!("{column} sd")), "{column}");
    }
    // Of a mean of whole questions: pass@1 is the mean reward, with its interval but for the draws.
    let width = |column: &str| {
        one(&table, &format!("{column} high"), 0) - one(&table, &format!("{column} low"), 0)
    };
    let ratio = width("pass@1") / width("Mean");
    assert!((ratio - 1.0).abs() < 0.2, "{ratio}");
    let notes = table.notes.join("\n");
    assert!(notes.contains("Right: reward of at least 1."), "{notes}");
    assert!(notes.contains("Distinct right: "), "{notes}");
    // Nothing of it without being asked.
    let (table, _) = kind(json!({ "top_k": 4 }))
        .tables(rows(vec![attempts(1, [4, 1, 0])]), &[])
        .unwrap();
    assert!(!table.has("pass@1") && !table.has("Distinct right"));
}

#[test]
fn more_than_a_question_has_is_an_error() {
    let runs = rows(vec![attempts(1, [4, 1, 0])]);
    let error = kind(json!({ "k": [5], "top_k": 4 }))
        .tables(runs, &[])
        .unwrap_err();
    let StageError::Failed { message, .. } = error else {
        panic!("not failed");
    };
    let expected = "ppo, seed 1: pass@5 needs 5 completions of each question, there are 4";
    assert_eq!(message, expected);
}

#[test]
fn params_of_right_answers_that_contradict_each_other_are_refused() {
    let problems = |params| -> Vec<String> {
        let problems = kind(params).validate().into_iter();
        problems.map(|problem| problem.message).collect()
    };
    for (params, expected) in [
        (json!({ "k": [0] }), "`k` must be numbers from 1"),
        (json!({ "k": [4, 1, 4] }), "`k` has 4 twice"),
        (
            json!({ "k": [4], "columns": ["mean"] }),
            "`k` has no effect: `columns` shows no metric of it",
        ),
        (
            json!({ "columns": ["pass_at_4"], "k": [4], "reference_values": { "a": { "pass_at_8": 1 } } }),
            "no metric `pass_at_8`",
        ),
        (
            json!({ "right": 0.5 }),
            "`right` has no effect: no metric of right answers is shown",
        ),
        (
            json!({ "answer": "mode" }),
            "`answer` has no effect: no metric of right answers is shown",
        ),
    ] {
        assert_eq!(problems(params), [expected]);
    }
    for right in [
        json!({ "k": [1, 64], "right": 0.5 }),
        json!({ "columns": ["distinct_right"], "answer": "mode" }),
        json!({ "columns": ["mean", "pass_at_4"], "k": [4] }),
    ] {
        assert_eq!(problems(right), Vec::<String>::new());
    }
    let hint = kind(json!({ "columns": ["pass_at_4"] }))
        .validate()
        .remove(0)
        .hint;
    assert_eq!(
        hint.unwrap(),
        "its number must be in `k`, such as `k: [1, 4]` for `pass_at_4`"
    );
}
