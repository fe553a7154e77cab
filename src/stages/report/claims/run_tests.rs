//! Which runs count, what is told of them, and what they must share.

use serde_json::{Value as Json, json};

use super::tests::{difference, kind, message, pairs, policies, verdicts};
use super::*;
use crate::artifacts::curve::{Curve, Status};
use crate::artifacts::table::Table;
use crate::engine::artifact::Digest;
use crate::engine::context::Labels;
use crate::stages::report::fixture::{curve, rows};
use crate::stages::report::groups::Row;
use crate::stages::report::repeats::tests::repeat;

fn noted(table: &Table, text: &str) -> bool {
    table.notes.iter().any(|note| note.contains(text))
}

fn up() -> Claims {
    kind(json!([difference("up", "a", "b", "greater", json!({}))]))
}

#[test]
fn runs_that_are_one_and_the_same_are_one_run() {
    let mut runs = rows(pairs(&[0.3; 5], &[0.9; 5]));
    assert_eq!(verdicts(&up().table(&runs, &[]).unwrap()), ["supported"]);
    repeat(&mut runs[1]);
    // A row that all runs share is no repetition: the other row differs.
    assert_eq!(verdicts(&up().table(&runs, &[]).unwrap()), ["supported"]);
    repeat(&mut runs[0]);
    let table = up().table(&runs, &[]).unwrap();
    assert_eq!(verdicts(&table), ["too few runs (1 of 5)"]);
    assert_eq!(table.all_texts("Holds in").unwrap(), ["1 of 1"]);
    assert_eq!(table.numbers("Effect low").unwrap(), [None]);
    let note = "up: runs whose scores or trainings are the same, byte by byte, count once: seed 1 = 2 = 3 = 4 = 5.";
    assert!(
        table.notes.iter().any(|told| told == note),
        "{:?}",
        table.notes
    );
}

#[test]
fn what_only_one_row_repeats_is_told_and_its_gates_count_it_once() {
    let mut runs = rows(pairs(&[0.3; 5], &[0.9; 5]));
    repeat(&mut runs[1]);
    let mut up = difference("up", "b", "a", "greater", json!({}));
    up["gates"] = json!({ "reward": { "at_least": 0.1 } });
    let claims = kind(json!([up]));
    let table = claims.table(&runs, &[]).unwrap();
    let note = "up: b is one and the same run in seed 1 = 2 = 3 = 4 = 5, and only the other row's runs differ: the interval \
                knows nothing of how runs of b do.";
    assert!(
        table.notes.iter().any(|told| told == note),
        "{:?}",
        table.notes
    );
    let gates = table.all_texts("Gates").unwrap();
    assert!(gates[0].ends_with(": open"), "{gates:?}");
}

#[test]
fn samples_of_one_training_are_no_runs_of_it() {
    let items = (1..=5).map(|seed| curve("b", seed, Status::Completed, 1.0));
    let mut curves = rows(items.collect());
    repeat(&mut curves[0]);
    let runs = rows(pairs(&[0.3, 0.2, 0.25, 0.2, 0.3], &[0.9; 5]));
    let table = up().table(&runs, &curves).unwrap();
    assert_eq!(verdicts(&table), ["too few runs (1 of 5)"]);
    // Curves without measurements agree whoever made them.
    for run in &mut curves[0].runs {
        run.content.metrics.clear();
    }
    let table = up().table(&runs, &curves).unwrap();
    assert_eq!(verdicts(&table), ["supported"]);
}

#[test]
fn what_is_there_again_among_others_counts_once() {
    let mut runs = rows(pairs(&[0.3, 0.3, 0.2, 0.25, 0.35, 0.3], &[0.9; 6]));
    for row in &mut runs {
        row.runs[1].digest = Some(Digest::of(row.label.as_bytes()));
        row.runs[5].digest = row.runs[1].digest;
    }
    let table = up().table(&runs, &[]).unwrap();
    assert_eq!(table.all_texts("Holds in").unwrap(), ["5 of 5"]);
    assert!(
        noted(&table, "count once: seed 2 = 6."),
        "{:?}",
        table.notes
    );
}

#[test]
fn runs_of_one_training_are_one_however_they_are_sampled() {
    let curves = |same: &[&str]| -> Vec<Row<Curve>> {
        let items = (1..=5)
            .flat_map(|seed| ["a", "b"].map(|stage| curve(stage, seed, Status::Completed, 1.0)));
        let mut curves = rows(items.collect());
        for row in curves
            .iter_mut()
            .filter(|row| same.contains(&row.label.as_str()))
        {
            repeat(row);
        }
        curves
    };
    let runs = rows(pairs(&[0.3, 0.2, 0.25, 0.2, 0.3], &[0.9; 5]));
    for (same, verdict) in [
        (vec![], "supported"),
        (vec!["a"], "supported"),
        (vec!["a", "b"], "too few runs (1 of 5)"),
    ] {
        let table = up().table(&runs, &curves(&same)).unwrap();
        assert_eq!(verdicts(&table), [verdict], "{same:?}");
    }
    let diverges = json!([{ "id": "tb", "text": "", "test": { "kind": "diverges", "a": "a" } }]);
    let table = kind(diverges).table(&runs, &curves(&["a"])).unwrap();
    assert_eq!(verdicts(&table), ["too few runs (1 of 6)"]);
}

#[test]
fn trainings_that_diverged_are_told_beside_what_compares_them() {
    let items = (1..=5).flat_map(|seed| {
        let (labels, mut a) = curve("a", seed, Status::Completed, 1.0);
        if seed % 2 == 0 {
            a.summary.status = Status::Diverged;
            a.summary.reason = Some("KL to the reference is 7 at step 3, limit 6".to_owned());
        }
        [(labels, a), curve("b", seed, Status::Completed, 1.0)]
    });
    let curves = rows(items.collect());
    let runs = rows(pairs(&[0.3; 5], &[0.9; 5]));
    let table = up().table(&runs, &curves).unwrap();
    let note = "Of a the training diverged and ended early in 2 of 5 runs: seed 2: KL to the reference is 7 at step 3, limit \
                6, seed 4: KL to the reference is 7 at step 3, limit 6. What it had then is compared. (up)";
    assert!(
        table.notes.iter().any(|told| told == note),
        "{:?}",
        table.notes
    );
    let diverges = json!([{ "id": "tb", "text": "", "test": { "kind": "diverges", "a": "a" } }]);
    let alone = kind(diverges).table(&runs, &curves).unwrap();
    assert!(!noted(&alone, "ended early"), "{:?}", alone.notes);
}

#[test]
fn questions_that_one_row_answers_more_often_are_refused() {
    let mut items = pairs(&[0.3; 5], &[0.9; 5]);
    items[1].1.questions[0].push(0);
    let found = message(up().table(&rows(items), &[]));
    let expected = "claim `up`: b, seed 1 (stage `scored`) and a, seed 1 (stage `scored`) answer the same questions, but not \
                    as often: `question` 100, `question 0`, is 2 of 5 completions of the first and 1 of 4 of the second";
    assert_eq!(found, expected);
}

#[test]
fn questions_that_differ_between_runs_are_refused() {
    let of = |changed: &[usize]| {
        let mut items = pairs(&[0.3; 5], &[0.9; 5]);
        for at in changed {
            let table = &mut items[*at].1.table;
            table.columns.retain(|column| column.name != "question");
            let other = (0..4).map(|at| Some(format!("another {at}")));
            table.text_column("question", other);
        }
        up().table(&rows(items), &[])
    };
    assert!(of(&[]).is_ok());
    // Of one row in one run, and of both rows in one run.
    for changed in [&[1][..], &[2, 3]] {
        let found = message(of(changed));
        let place = if changed.len() == 1 {
            "b, seed 1"
        } else {
            "a, seed 2"
        };
        assert_eq!(
            found,
            format!(
                "claim `up`: {place} (stage `scored`) and a, seed 1 (stage `scored`) answer different questions: the first \
                 alone has `question` 100, `another 0`"
            )
        );
    }
}

/// Trainings of 4 steps: `low` with these operations and rewards, `high` with 100 operations and rewards up to 1.
fn trainings(low: &[(f64, [f64; 4])]) -> Vec<(Labels, Curve)> {
    let with = |(labels, mut curve): (Labels, Curve), values: [f64; 4]| {
        let values = values.map(Some).to_vec();
        curve.metrics.insert("reward".to_owned(), values);
        (labels, curve)
    };
    let pairs = (1..).zip(low).flat_map(|(seed, (flops, values))| {
        [
            with(curve("low", seed, Status::Completed, *flops), *values),
            with(
                curve("high", seed, Status::Completed, 100.0),
                [0.0, 0.5, 0.8, 1.0],
            ),
        ]
    });
    pairs.collect()
}

fn to_reach(at_most: f64, more: Json) -> Json {
    let mut test = json!({ "kind": "flops_to_reach", "a": "low", "b": "high", "at_most": at_most, "window": 1 });
    test.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    json!([{ "id": "cost", "text": "", "test": test }])
}

#[test]
fn costs_are_counted_until_the_other_s_end_is_reached() {
    let reaches = [0.0, 1.0, 1.0, 1.0];
    let decided = |low: &[(f64, [f64; 4])], at_most: f64| {
        let kind = kind(to_reach(at_most, json!({})));
        assert_eq!(kind.validate(), []);
        let policies = rows(policies(low.len() as u64));
        kind.table(&policies, &rows(trainings(low))).unwrap()
    };
    // After two of four steps.
    let all = [(8.0, reaches); 5];
    let table = decided(&all, 0.045);
    assert_eq!(verdicts(&table), ["supported"]);
    for column in ["Effect", "Effect low", "Effect high"] {
        assert!((table.all_numbers(column).unwrap()[0] - 0.04).abs() < 1e-12);
    }
    assert_eq!(verdicts(&decided(&all, 0.035)), ["contradicted"]);
    assert_eq!(
        table.all_texts("Test").unwrap(),
        ["FLOPs of low until its sampled_reward is high's last / FLOPs of high <= 0.045"]
    );
    let other = [3.0, 3.4, 4.0, 3.0, 3.6].map(|flops| (2.0 * flops, reaches));
    // The ratios of `costs_are_decided_by_their_ratios`.
    let found = decided(&other, 0.035);
    assert_eq!(verdicts(&found), ["inconclusive"]);
    assert!((found.all_numbers("Effect").unwrap()[0] - 0.033_792_224_650_581_38).abs() < 1e-12);
    assert_eq!(found.all_texts("Holds in").unwrap(), ["3 of 5"]);
}

#[test]
fn a_run_that_never_gets_there_speaks_for_nothing() {
    let (reaches, never) = ([0.0, 1.0, 1.0, 1.0], [0.0, 0.2, 0.2, 0.2]);
    let decided = |low: &[(f64, [f64; 4])], at_most: f64| {
        let kind = kind(to_reach(at_most, json!({})));
        let policies = rows(policies(low.len() as u64));
        kind.table(&policies, &rows(trainings(low))).unwrap()
    };
    // It cost little, and would be the cheapest run.
    let mut one = [(4.0, reaches); 5];
    one[2] = (2.0, never);
    let table = decided(&one, 0.045);
    assert_eq!(verdicts(&table), ["inconclusive"]);
    assert_eq!(table.all_texts("Holds in").unwrap(), ["4 of 5"]);
    assert_eq!(table.texts("Runs needed").unwrap(), [None]);
    // Of five draws of five runs the fifth is not there: then the claim would be supported.
    let stability = table.all_numbers("Stability").unwrap()[0];
    assert!(
        (stability - (1.0 - 0.8f64.powi(5))).abs() < 0.04,
        "{stability}"
    );
    assert!(
        noted(&table, "In 1 of 5 runs low never does"),
        "{:?}",
        table.notes
    );
    // What it has cost is too much already.
    assert_eq!(
        verdicts(&decided(&[(8.0, never); 5], 0.045)),
        ["contradicted"]
    );
    assert_eq!(
        verdicts(&decided(&[(2.0, never); 5], 0.045)),
        ["inconclusive"]
    );
}

#[test]
fn what_no_curve_tells_is_not_never_reached() {
    let low = [(8.0, [0.0, 1.0, 1.0, 1.0]); 5];
    let failed = |more: Json| {
        let kind = kind(to_reach(0.5, more));
        message(kind.table(&rows(policies(5)), &rows(trainings(&low))))
    };
    assert_eq!(
        failed(json!({ "metric": "exact", "fallback": null })),
        "claim `cost`: the training of `high`, seed 1: the curve has no metric `exact`"
    );
    assert!(failed(json!({ "window": 5 })).contains("fewer values than `window`, 5"));
    assert_eq!(
        kind(to_reach(0.0, json!({ "window": 0 }))).validate().len(),
        2
    );
    let again: Json =
        serde_json::to_value(kind(to_reach(0.5, json!({ "fallback": null })))).unwrap();
    assert_eq!(again["claims"][0]["test"]["fallback"], Json::Null);
}
