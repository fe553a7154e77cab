use serde_json::{Value as Json, json};

use super::*;
use crate::artifacts::curve::Status;
use crate::artifacts::embeddings::EmbeddingMatrix;
use crate::engine::context::Labels;
use crate::random::Stream;
use crate::stages::report::fixture::{curve, rows, scored};

fn kind(claims: Json) -> Claims {
    serde_json::from_value(json!({ "claims": claims, "top_k": 10, "replicates": 2000 })).unwrap()
}

fn difference(id: &str, a: &str, b: &str, direction: &str, more: Json) -> Json {
    let mut test = json!({ "kind": "difference", "a": a, "b": b, "direction": direction });
    test.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    json!({ "id": id, "text": id, "test": test })
}

/// Policies `high`, `low` and `near` (to low) in three runs.
fn policies(seeds: u64) -> Vec<(Labels, Scored)> {
    let mut items = Vec::new();
    for seed in 1..=seeds {
        items.push(scored("high", seed, 1.0, 60));
        items.push(scored("low", seed, 0.5, 60));
        items.push(scored("near", seed, 0.52, 60));
    }
    items
}

fn verdicts(table: &Table) -> Vec<String> {
    table.all_texts("Verdict").unwrap()
}

#[test]
fn true_false_and_undecided_differences_are_told_apart() {
    let kind = kind(json!([
        difference("up", "high", "low", "greater", json!({})),
        difference("down", "high", "low", "less", json!({})),
        difference("flat", "near", "low", "greater", json!({})),
        difference("same", "near", "low", "equal", json!({ "margin": 0.4 })),
        difference("not same", "high", "low", "equal", json!({ "margin": 0.1 })),
        difference(
            "by much",
            "high",
            "low",
            "greater",
            json!({ "margin": 2.0 })
        ),
        difference(
            "top",
            "high",
            "low",
            "greater",
            json!({ "metric": "top_k_mean" })
        ),
    ]));
    let table = kind.table(&rows(policies(3)), &[]).unwrap();
    let expected = [
        "supported",
        "contradicted",
        "inconclusive",
        "supported",
        "contradicted",
        "contradicted",
        "supported",
    ];
    assert_eq!(verdicts(&table), expected, "{}", table.text());
    let numbers = |column: &str| table.all_numbers(column).unwrap();
    assert!((numbers("Effect")[0] - 0.5).abs() < 0.15);
    for row in 0..7 {
        assert!(
            numbers("Effect low")[row] <= numbers("Effect")[row]
                && numbers("Effect")[row] <= numbers("Effect high")[row]
        );
        assert!(numbers("Holm p")[row] >= numbers("p")[row]);
        assert!((numbers("a")[row] - numbers("b")[row] - numbers("Effect")[row]).abs() < 1e-12);
    }
    // Seven tests, each decided one by all 2000 replicates.
    assert!((numbers("Holm p")[0] - 7.0 * 2.0 / 2001.0).abs() < 1e-12);
    assert_eq!(
        table.all_texts("Test").unwrap()[4],
        "Mean of reward: a = b within 0.1"
    );
}

#[test]
fn one_run_decides_nothing() {
    let claims = json!([difference("up", "high", "low", "greater", json!({}))]);
    let table = kind(claims.clone()).table(&rows(policies(1)), &[]).unwrap();
    assert_eq!(verdicts(&table), ["inconclusive"]);
    assert_eq!(table.numbers("p over runs").unwrap(), [None]);
    let two = kind(claims).table(&rows(policies(2)), &[]).unwrap();
    assert_eq!(verdicts(&two), ["supported"]);
}

#[test]
fn a_run_that_disagrees_withholds_the_verdict() {
    let mut items = policies(3);
    // In the third run, `high` is no higher: the others still pull every replicate above zero.
    items[6].1 = scored("high", 3, 0.45, 60).1;
    items[0].1 = scored("high", 1, 3.0, 60).1;
    items[3].1 = scored("high", 2, 3.0, 60).1;
    let kind: Claims = serde_json::from_value(json!({
        "claims": [difference("up", "high", "low", "greater", json!({}))], "alpha": 0.2,
    }))
    .unwrap();
    let table = kind.table(&rows(items), &[]).unwrap();
    assert!(
        table.all_numbers("Holm p").unwrap()[0] <= 0.2,
        "{}",
        table.text()
    );
    assert_eq!(table.all_texts("Holds in").unwrap(), ["2 of 3"]);
    assert_eq!(verdicts(&table), ["inconclusive"]);
}

#[test]
fn diversity_is_resampled_within_runs() {
    let mut items = policies(3);
    for (labels, run) in &mut items {
        // `low` points everywhere, the others almost nowhere but up.
        let spread = if labels["policy"] == "low" { 2.0 } else { 0.1 };
        let stream = Stream::new(labels["seed"].parse().unwrap(), &labels["policy"]);
        let values = (0..60).flat_map(|at| {
            let mut draws = stream.at(at);
            [
                1.0,
                (spread * draws.normal()) as f32,
                (spread * draws.normal()) as f32,
            ]
        });
        let texts = EmbeddingMatrix {
            values: values.collect(),
            dimension: 3,
        };
        run.embed(texts, None).unwrap();
    }
    let kind = kind(json!([
        difference(
            "top",
            "low",
            "high",
            "greater",
            json!({ "metric": "diversity" })
        ),
        difference(
            "all",
            "low",
            "high",
            "greater",
            json!({ "metric": "diversity_all" })
        ),
        difference(
            "modes",
            "low",
            "high",
            "equal",
            json!({ "metric": "entropy", "column": "mode", "margin": 0.2 })
        ),
        difference(
            "equal",
            "near",
            "high",
            "greater",
            json!({ "metric": "diversity" })
        ),
    ]));
    let table = kind.table(&rows(items), &[]).unwrap();
    assert_eq!(
        verdicts(&table),
        ["supported", "supported", "supported", "inconclusive"],
        "{}",
        table.text()
    );
    let (low, effect) = (
        table.all_numbers("Effect low").unwrap()[1],
        table.all_numbers("Effect").unwrap()[1],
    );
    // Resampling does not pull the diversity down by drawing the same completion twice.
    let high = table.all_numbers("Effect high").unwrap()[1];
    assert!(
        (f64::midpoint(low, high) - effect).abs() < 0.15 * (high - low),
        "{low} {effect} {high}"
    );
}

#[test]
fn divergence_and_cost_are_counted() {
    let curves = rows(vec![
        curve("high", 1, Status::Completed, 100.0),
        curve("high", 2, Status::Completed, 100.0),
        curve("low", 1, Status::Diverged, 3.0),
        curve("low", 2, Status::Diverged, 4.0),
        curve("near", 1, Status::Diverged, 2.0),
        curve("near", 2, Status::Completed, 3.0),
    ]);
    let diverges = |a: &str| json!({ "id": format!("{a} fails"), "text": "", "test": { "kind": "diverges", "a": a } });
    let share = |id: &str, a: &str, at_most: f64| json!({ "id": id, "text": "", "test": { "kind": "flops_share", "a": a, "b": "high", "at_most": at_most } });
    let kind = kind(json!([
        diverges("low"),
        diverges("near"),
        diverges("high"),
        share("all", "near", 0.035),
        share("some", "low", 0.035),
        share("none", "low", 0.02),
    ]));
    let table = kind.table(&rows(policies(2)), &curves).unwrap();
    let expected = [
        "supported",
        "inconclusive",
        "contradicted",
        "supported",
        "inconclusive",
        "contradicted",
    ];
    assert_eq!(verdicts(&table), expected, "{}", table.text());
    assert_eq!(
        table.all_numbers("Effect").unwrap()[..4],
        [1.0, 0.5, 0.0, 0.025]
    );
    assert!(kind.table(&rows(policies(2)), &[]).is_err());
}

#[test]
fn senseless_claims_are_problems() {
    let kind = kind(json!([
        difference("a", "x", "x", "greater", json!({})),
        difference("a", "x", "y", "equal", json!({})),
        { "id": "b", "text": "", "test": { "kind": "flops_share", "a": "x", "b": "y", "at_most": 0 } },
    ]));
    assert_eq!(kind.validate().len(), 4, "{:?}", kind.validate());
    let unknown =
        json!({ "claims": [difference("a", "x", "y", "greater", json!({ "metrics": "mean" }))] });
    assert!(serde_json::from_value::<Claims>(unknown).is_err());
    let missing = self::kind(json!([difference("a", "high", "lo", "greater", json!({}))]));
    let error = missing.table(&rows(policies(2)), &[]).unwrap_err();
    assert!(
        matches!(error, StageError::Failed { message, .. } if message == "claim `a`: no input is the row `lo`")
    );
}

#[test]
fn right_answers_among_several_can_be_claimed() {
    let claims = |metric: Json| {
        let up = difference("up", "high", "low", "greater", json!({ "metric": metric }));
        json!({ "claims": [up], "right": 0.75, "top_k": 10, "replicates": 2000 })
    };
    let kind: Claims = serde_json::from_value(claims(json!({ "pass_at": 1 }))).unwrap();
    assert_eq!(kind.validate(), []);
    let items = policies(3);
    let share = |at: usize| {
        let rewards = items[at].1.column("reward").unwrap();
        let right = rewards.iter().filter(|reward| **reward >= 0.75).count();
        right as f64 / rewards.len() as f64
    };
    let (high, low) = (
        (share(0) + share(3) + share(6)) / 3.0,
        (share(1) + share(4) + share(7)) / 3.0,
    );
    let table = kind.table(&rows(items), &[]).unwrap();
    assert_eq!(table.all_texts("Test").unwrap(), ["pass@1: a > b"]);
    assert!((table.all_numbers("a").unwrap()[0] - high).abs() < 1e-12);
    assert!((table.all_numbers("b").unwrap()[0] - low).abs() < 1e-12);
    assert_eq!(verdicts(&table), ["supported"]);
    let kind: Claims = serde_json::from_value(claims(json!({ "majority_at": 0 }))).unwrap();
    let problems = kind.validate();
    assert!(
        problems.len() == 1
            && problems[0]
                .message
                .ends_with("`metric` draws no completion")
    );
    // One completion of each question is no two.
    let kind: Claims = serde_json::from_value(claims(json!({ "max_at": 2 }))).unwrap();
    let error = kind.table(&rows(policies(3)), &[]).unwrap_err();
    let StageError::Failed { message, .. } = error else {
        panic!("not failed");
    };
    assert!(
        message.contains("max@2 needs 2 completions of each question, there are 1"),
        "{message}"
    );
}
