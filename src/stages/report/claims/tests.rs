use serde_json::{Value as Json, json};

use super::*;
use crate::artifacts::curve::Status;
use crate::artifacts::embeddings::EmbeddingMatrix;
use crate::artifacts::table::Table;
use crate::engine::context::Labels;
use crate::random::Stream;
use crate::stages::report::fixture::{curve, rows, scored, with_rewards};
use crate::stages::report::scored::Scored;

pub(super) fn kind(claims: Json) -> Claims {
    serde_json::from_value(json!({ "claims": claims, "top_k": 10, "replicates": 2000 })).unwrap()
}

pub(super) fn difference(id: &str, a: &str, b: &str, direction: &str, more: Json) -> Json {
    let mut test = json!({ "kind": "difference", "a": a, "b": b, "direction": direction });
    test.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    json!({ "id": id, "text": id, "test": test })
}

/// Policies `high`, `low` and `near` (to low) in some runs.
pub(super) fn policies(seeds: u64) -> Vec<(Labels, Scored)> {
    let mut items = Vec::new();
    for seed in 1..=seeds {
        items.push(scored("high", seed, 1.0, 60));
        items.push(scored("low", seed, 0.5, 60));
        items.push(scored("near", seed, 0.52, 60));
    }
    items
}

pub(super) fn verdicts(table: &Table) -> Vec<String> {
    table.all_texts("Verdict").unwrap()
}

/// Rows `a` and `b` whose runs differ by just these numbers, and have these values in the column `quality`.
pub(super) fn pairs(differences: &[f64], quality: &[f64]) -> Vec<(Labels, Scored)> {
    let mut items = Vec::new();
    for (seed, (difference, quality)) in (1..).zip(differences.iter().zip(quality)) {
        for (policy, shift, quality) in [("a", *difference, *quality), ("b", 0.0, 0.9)] {
            let mut item = scored(policy, seed, 0.0, 4);
            let rewards = [0.25, 0.5, 0.75, 1.0].map(|reward| reward + shift);
            let texts: Vec<String> = (0..4).map(|at| format!("{policy} {at}")).collect();
            item.1 = with_rewards(&rewards, &texts);
            item.1.table.number_column("quality", 3, [Some(quality); 4]);
            items.push(item);
        }
    }
    items
}

pub(super) fn message(result: Result<Table, StageError>) -> String {
    match result {
        Err(StageError::Failed { message, .. }) => message,
        other => panic!("{other:?}"),
    }
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
            "less by much",
            "low",
            "high",
            "less",
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
    let table = kind.table(&rows(policies(6)), &[]).unwrap();
    let expected = [
        "supported",
        "contradicted",
        "inconclusive",
        "supported",
        "contradicted",
        "below the margin",
        "below the margin",
        "supported",
    ];
    assert_eq!(verdicts(&table), expected, "{}", table.text());
    let numbers = |column: &str| table.all_numbers(column).unwrap();
    assert!((numbers("Effect")[0] - 0.5).abs() < 0.15);
    for (row, verdict) in expected.into_iter().enumerate() {
        assert!(
            numbers("Effect low")[row] <= numbers("Effect")[row]
                && numbers("Effect")[row] <= numbers("Effect high")[row]
        );
        assert!(numbers("Holm p")[row] >= numbers("p")[row]);
        assert!((numbers("a")[row] - numbers("b")[row] - numbers("Effect")[row]).abs() < 1e-12);
        assert!((numbers("Bootstrap")[row] - numbers("Effect")[row]).abs() < 1e-12);
        // Seven of eight are decided, each at a step of its own; the last step tests one alone.
        let last = (numbers("Level (%)")[row] - 95.0).abs() < 1e-9;
        assert_eq!(last, verdict == "inconclusive");
    }
    assert_eq!(
        table.all_texts("Test").unwrap()[4],
        "Mean of reward: a = b within 0.1"
    );
}

/// ```python
/// scipy.stats.ttest_1samp([.3, -.1, .25, .4, .1], 0).confidence_interval(.95), .pvalue
/// ```
#[test]
fn the_interval_is_that_of_a_paired_t_test() {
    let runs = rows(pairs(&[0.3, -0.1, 0.25, 0.4, 0.1], &[0.9; 5]));
    let kind = kind(json!([difference("up", "a", "b", "greater", json!({}))]));
    let table = kind.table(&runs, &[]).unwrap();
    let number = |column: &str| table.all_numbers(column).unwrap()[0];
    for (column, expected) in [
        ("Effect", 0.19),
        ("Effect low", -0.052_044_872_716_906_75),
        ("Effect high", 0.432_044_872_716_906_7),
        ("p", 0.094_802_825_789_733_92),
        ("Holm p", 0.094_802_825_789_733_92),
        ("Level (%)", 95.0),
    ] {
        assert!((number(column) - expected).abs() < 1e-12, "{column}");
    }
    assert_eq!(verdicts(&table), ["inconclusive"]);
    assert_eq!(table.all_texts("Holds in").unwrap(), ["4 of 5"]);
}

#[test]
fn a_run_that_disagrees_widens_the_interval_and_decides_nothing() {
    let kind = kind(json!([difference("up", "a", "b", "greater", json!({}))]));
    let seven_of_eight = [0.3, 0.28, 0.33, -0.02, 0.31, 0.27, 0.3, 0.32];
    let table = kind.table(&rows(pairs(&seven_of_eight, &[0.9; 8])), &[]);
    let table = table.unwrap();
    assert_eq!(verdicts(&table), ["supported"], "{}", table.text());
    assert_eq!(table.all_texts("Holds in").unwrap(), ["7 of 8"]);
}

#[test]
fn few_runs_decide_nothing_and_do_not_weigh_on_others() {
    let claims = json!([difference("up", "high", "low", "greater", json!({}))]);
    for (runs, verdict) in [
        (1, "too few runs (1 of 5)"),
        (3, "too few runs (3 of 5)"),
        (5, "supported"),
    ] {
        let table = kind(claims.clone()).table(&rows(policies(runs)), &[]);
        let table = table.unwrap();
        assert_eq!(verdicts(&table), [verdict]);
        let decided = runs == 5;
        assert_eq!(table.numbers("Holm p").unwrap()[0].is_some(), decided);
        assert_eq!(table.numbers("Stability").unwrap()[0].is_some(), decided);
        assert_eq!(table.numbers("Effect low").unwrap()[0].is_some(), runs > 1);
    }
}

#[test]
fn families_are_adjusted_apart_and_named() {
    let named = |id: &str, family: &str| {
        let mut claim = difference(id, "a", "b", "greater", json!({}));
        claim["family"] = json!(family);
        claim
    };
    let kind = kind(json!([
        named("one", "reward"),
        named("two", "reward"),
        named("three", "diversity"),
        difference("four", "a", "b", "greater", json!({})),
    ]));
    assert_eq!(kind.validate(), []);
    // p = .0948
    let runs = rows(pairs(&[0.3, -0.1, 0.25, 0.4, 0.1], &[0.9; 5]));
    let table = kind.table(&runs, &[]).unwrap();
    let factors: Vec<f64> = table
        .all_numbers("Holm p")
        .unwrap()
        .iter()
        .zip(table.all_numbers("p").unwrap())
        .map(|(adjusted, p)| (adjusted / p).round())
        .collect();
    assert_eq!(factors, [2.0, 2.0, 1.0, 1.0]);
    assert_eq!(
        table.all_texts("Family").unwrap(),
        ["reward", "reward", "diversity", "differences"]
    );
    for note in [
        "Family reward, tested together at 0.05 (Holm): one, two.",
        "Family differences, tested together at 0.05 (Holm): four.",
    ] {
        assert!(table.notes.iter().any(|found| found == note), "{note}");
    }
}

#[test]
fn equal_differences_are_decided_as_they_stand() {
    let kind = kind(json!([
        difference("up", "a", "b", "greater", json!({})),
        difference("by more", "a", "b", "greater", json!({ "margin": 0.5 })),
        difference("down", "a", "b", "less", json!({})),
        difference("none", "b", "c", "greater", json!({})),
        difference("same", "b", "c", "equal", json!({ "margin": 0.01 })),
    ]));
    let mut items = pairs(&[0.25; 5], &[0.9; 5]);
    for at in 0..5 {
        let (mut labels, scored) = items[2 * at + 1].clone();
        labels.insert("policy".to_owned(), "c".to_owned());
        items.push((labels, scored));
    }
    let table = kind.table(&rows(items), &[]).unwrap();
    let expected = [
        "supported",
        "below the margin",
        "contradicted",
        "inconclusive",
        "supported",
    ];
    assert_eq!(verdicts(&table), expected, "{}", table.text());
    assert_eq!(table.all_numbers("p").unwrap(), [0.0, 0.0, 0.0, 1.0, 0.0]);
    assert_eq!(table.texts("Runs needed").unwrap(), vec![None; 5]);
    assert_eq!(table.all_numbers("Stability").unwrap(), [1.0; 5]);
}

#[test]
fn gates_speak_against_a_supported_claim() {
    let gated = |id: &str, direction: &str, gates: Json| {
        let mut claim = difference(id, "a", "b", direction, json!({}));
        claim["gates"] = gates;
        claim
    };
    let kind = kind(json!([
        gated(
            "kept",
            "greater",
            json!({ "quality": { "at_least": 0.7, "at_most": 0.9 } })
        ),
        gated(
            "worse",
            "greater",
            json!({ "quality": { "not_worse_by": 0.05 } })
        ),
        gated(
            "open",
            "greater",
            json!({ "quality": { "not_worse_by": 0.1, "at_least": 0.8 } })
        ),
        gated(
            "limits",
            "greater",
            json!({ "quality": { "at_least": 0.9 }, "reward": { "at_most": 0.5 } })
        ),
        gated(
            "contradicted",
            "less",
            json!({ "quality": { "at_least": 0.9 } })
        ),
    ]));
    assert_eq!(kind.validate(), []);
    // `b` has .9 in each run: means -.1 with [-.1 +- .0196].
    let quality = [0.8, 0.79, 0.81, 0.82, 0.78];
    let runs = rows(pairs(&[0.3, 0.2, 0.25, 0.2, 0.3], &quality));
    let table = kind.table(&runs, &[]).unwrap();
    let expected = [
        "supported",
        "supported, but quality worse",
        "supported, but quality perhaps worse, quality perhaps below 0.8",
        "supported, but quality below 0.9, reward above 0.5",
        "contradicted",
    ];
    assert_eq!(verdicts(&table), expected, "{}", table.text());
    assert_eq!(
        table.all_texts("Gates").unwrap()[1..3],
        [
            "quality a - b -0.100 [-0.120, -0.080]: broken",
            "quality a - b -0.100 [-0.120, -0.080]: open; quality 0.800 [0.780, 0.820]: open"
        ]
    );
}

#[test]
fn a_gate_on_a_missing_column_names_it_and_the_run() {
    let gated = |column: &str| {
        let mut claim = difference("up", "a", "b", "greater", json!({}));
        claim["gates"] = json!({ column: { "at_least": 0 } });
        kind(json!([claim]))
    };
    let runs = rows(pairs(&[0.3; 5], &[0.9; 5]));
    let found = message(gated("exact").table(&runs, &[]));
    assert!(
        found.starts_with("claim `up`: gate `exact`: a, seed 1: ") && found.contains("`exact`"),
        "{found}"
    );
    let Err(StageError::Failed { hint, .. }) = gated("kl").table(&runs, &[]) else {
        panic!("no error");
    };
    assert!(hint.unwrap().contains("`reference`"));
}

#[test]
fn rows_of_different_runs_do_not_pair() {
    let kind = kind(json!([difference("up", "a", "b", "greater", json!({}))]));
    let mut items = pairs(&[0.3; 3], &[0.9; 3]);
    items[1].0.insert("seed".to_owned(), "7".to_owned());
    assert_eq!(
        message(kind.table(&rows(items.clone()), &[])),
        "claim `up`: the runs of `a` and `b` do not pair: the first has `seed` 1, 2, 3, the second `seed` 7, 2, 3"
    );
    items.truncate(2);
    items[1].0.shift_remove("seed");
    assert_eq!(
        message(kind.table(&rows(items), &[])),
        "claim `up`: the runs of `a` and `b` do not pair: the first has `seed` 1, the second no axis `seed`"
    );
}

#[test]
fn diversity_is_resampled_within_runs() {
    let mut items = policies(5);
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
fn divergence_is_decided_by_the_exact_interval() {
    let diverges = |a: &str| json!({ "id": a, "text": "", "test": { "kind": "diverges", "a": a } });
    let table = |runs: u64, diverging: u64| {
        let curves = (1..=runs).map(|seed| {
            let status = if seed <= diverging {
                Status::Diverged
            } else {
                Status::Completed
            };
            curve("low", seed, status, 1.0)
        });
        let kind = kind(json!([diverges("low")]));
        let table = kind.table(&rows(policies(runs)), &rows(curves.collect()));
        let table = table.unwrap();
        let needed = table.texts("Runs needed").unwrap()[0].clone();
        (
            verdicts(&table)[0].clone(),
            needed.unwrap_or_default(),
            table,
        )
    };
    for (runs, diverging, verdict, needed) in [
        (3, 3, "too few runs (3 of 6)", "6"),
        (5, 0, "too few runs (5 of 6)", "6"),
        (6, 6, "supported", ""),
        (6, 0, "contradicted", ""),
        (6, 5, "inconclusive", "9"),
        (8, 3, "inconclusive", "15"),
    ] {
        let (found, more, table) = table(runs, diverging);
        assert_eq!((found.as_str(), more.as_str()), (verdict, needed), "{runs}");
        assert_eq!(
            table.all_numbers("Effect").unwrap(),
            [diverging as f64 / runs as f64]
        );
        assert_eq!(table.numbers("Holm p").unwrap(), [None]);
    }
    // scipy.stats.beta.ppf(.025, 3, 6)
    let low = table(8, 3).2.all_numbers("Effect low").unwrap()[0];
    assert!((low - 0.085_233_414_137_253_55).abs() < 1e-12);
    assert!(
        kind(json!([diverges("low")]))
            .table(&rows(policies(2)), &[])
            .is_err()
    );
}

#[test]
fn costs_are_decided_by_their_ratios() {
    let curves = |flops: [f64; 5]| {
        let mut items = Vec::new();
        for (seed, flops) in (1..).zip(flops) {
            items.push(curve("low", seed, Status::Completed, flops));
            items.push(curve("high", seed, Status::Completed, 100.0));
        }
        rows(items)
    };
    let share = |id: &str, at_most: f64| json!({ "id": id, "text": "", "test": { "kind": "flops_share", "a": "low", "b": "high", "at_most": at_most } });
    let kind = kind(json!([
        share("all", 0.045),
        share("some", 0.035),
        share("none", 0.02)
    ]));
    let policies = rows(policies(5));
    let found = kind.table(&policies, &curves([3.0; 5])).unwrap();
    assert_eq!(verdicts(&found), ["supported", "supported", "contradicted"]);
    let shown = |table: &Table, column: &str| table.all_numbers(column).unwrap()[0];
    for column in ["Effect", "Effect low", "Effect high"] {
        assert!((shown(&found, column) - 0.03).abs() < 1e-12);
    }
    // np.exp(scipy.stats.ttest_1samp(np.log([.03, .034, .04, .03, .036]), 0).confidence_interval(.95))
    let found = kind
        .table(&policies, &curves([3.0, 3.4, 4.0, 3.0, 3.6]))
        .unwrap();
    assert_eq!(
        verdicts(&found),
        ["supported", "inconclusive", "contradicted"]
    );
    for (column, expected) in [
        ("Effect", 0.033_792_224_650_581_38),
        ("Effect low", 0.028_994_868_422_406_707),
        ("Effect high", 0.039_383_329_153_268_705),
    ] {
        assert!((shown(&found, column) - expected).abs() < 1e-12, "{column}");
    }
    assert_eq!(
        found.all_texts("Holds in").unwrap(),
        ["5 of 5", "3 of 5", "0 of 5"]
    );
    assert!(message(kind.table(&policies, &curves([0.0; 5]))).contains("counted no operations"));
}

#[test]
fn senseless_claims_are_problems() {
    let kind = kind(json!([
        difference("a", "x", "x", "greater", json!({})),
        difference("a", "x", "y", "equal", json!({})),
        { "id": "b", "text": "", "test": { "kind": "flops_share", "a": "x", "b": "y", "at_most": 0 } },
        { "id": "c", "text": "", "test": { "kind": "diverges", "a": "x" }, "gates": { "kl": { "at_most": 6 } }, "family": "f" },
        difference("d", "x", "y", "less", json!({ "margin": -0.1 })),
        difference("e", "x", "y", "less", json!({ "margin": 0.1, "effect": 0.1 })),
        difference("f", "x", "y", "equal", json!({ "margin": 0.1, "effect": -0.1 })),
    ]));
    assert_eq!(kind.validate().len(), 9, "{:?}", kind.validate());
    let gates =
        json!({ "x": {}, "y": { "not_worse_by": 0 }, "z": { "at_least": 1, "at_most": 1 } });
    let mut gated = difference("a", "x", "y", "greater", json!({}));
    gated["gates"] = gates;
    assert_eq!(self::kind(json!([gated])).validate().len(), 3);
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
    let items = policies(5);
    let share = |at: usize| {
        let rewards = items[at].1.column("reward").unwrap();
        let right = rewards.iter().filter(|reward| **reward >= 0.75).count();
        right as f64 / rewards.len() as f64
    };
    let mean = |first: usize| (0..5).map(|run| share(first + 3 * run)).sum::<f64>() / 5.0;
    let (high, low) = (mean(0), mean(1));
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
    let error = kind.table(&rows(policies(5)), &[]).unwrap_err();
    let StageError::Failed { message, .. } = error else {
        panic!("not failed");
    };
    assert!(
        message.contains("max@2 needs 2 completions of each question, there are 1"),
        "{message}"
    );
}
