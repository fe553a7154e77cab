use serde_json::json;

use super::decide::Decided;
use super::*;
use crate::artifacts::curve::Status;
use crate::stages::report::fixture::{curve, with_rewards};
use crate::stages::report::groups::tests::labels;

/// A try of a method with a learning rate: its mean reward and KL.
type Try = (&'static str, &'static str, &'static str, f64, f64);

fn kind(params: serde_json::Value) -> Choose {
    let kind: Choose = serde_json::from_value(params).unwrap();
    assert_eq!(kind.validate(), []);
    kind
}

fn labels_of(tries: &[Try]) -> Vec<Labels> {
    let of = |(method, lr, seed, ..): &Try| {
        let pairs = [
            ("policy", *method),
            ("lr", *lr),
            ("seed", *seed),
            ("stage", "scores"),
        ];
        labels(&pairs[usize::from(method.is_empty())..])
    };
    tries.iter().map(of).collect()
}

fn scored(reward: f64, kl: f64, prompts: usize) -> Scored {
    let completions = vec!["word".to_owned(); prompts];
    let rewards: Vec<f64> = (0..prompts).map(|at| reward + at as f64).collect();
    let mut table = with_rewards(&rewards, &completions).table;
    table.number_column("kl", 3, vec![Some(kl); prompts]);
    Scored::new(table).unwrap()
}

/// Digests of inputs that all differ.
fn digests(count: usize) -> Vec<Digest> {
    (0..count)
        .map(|at| Digest::of(at.to_string().as_bytes()))
        .collect()
}

fn decide(
    kind: &Choose,
    tries: &[Try],
    curves: &[(Labels, Curve)],
) -> Result<Vec<Decided>, StageError> {
    let labels = labels_of(tries);
    let labels: Vec<&Labels> = labels.iter().collect();
    let scored: Vec<Scored> = tries
        .iter()
        .map(|(.., reward, kl)| scored(*reward, *kl, 3))
        .collect();
    let curves: Vec<(&Labels, Curve)> = curves
        .iter()
        .map(|(labels, curve)| (labels, curve.clone()))
        .collect();
    kind.decide(&labels, (&scored, &digests(scored.len())), &curves)
}

/// What is shown of each candidate: its name, its rank, and whether it is chosen.
fn told(decided: &[Decided]) -> Vec<(String, Option<usize>, bool)> {
    decided
        .iter()
        .map(|one| (one.candidate.describe(), one.rank, one.is_chosen))
        .collect()
}

fn failed(result: Result<Vec<Decided>, StageError>) -> (String, String) {
    match result {
        Err(StageError::Failed { message, hint }) => (message, hint.unwrap_or_default()),
        other => panic!("{other:?}"),
    }
}

const TRIES: &[Try] = &[
    ("", "0.001", "11", 1.0, 2.0),
    ("", "0.003", "11", 3.0, 9.0),
    ("", "0.002", "11", 2.5, 5.0),
    ("", "0.001", "12", 2.0, 2.0),
    ("", "0.003", "12", 4.0, 5.0),
    ("", "0.002", "12", 1.5, 5.0),
];

#[test]
fn the_best_mean_over_the_runs_wins_among_those_within_the_limits() {
    let free = decide(&kind(json!({ "candidate": "lr" })), TRIES, &[]).unwrap();
    let expected = [
        ("lr 0.001", 3, false),
        ("lr 0.003", 1, true),
        ("lr 0.002", 2, false),
    ];
    let expected = expected.map(|(name, rank, chosen)| (name.to_owned(), Some(rank), chosen));
    assert_eq!(told(&free), expected);
    // Of three completions each, with rewards that grow by one.
    assert!((free[0].mean - 2.5).abs() < 1e-12 && free[0].n == 6);
    assert!((free[0].std.unwrap() - 0.5f64.sqrt()).abs() < 1e-12);

    let within = json!({ "candidate": "lr", "within": { "kl": { "at_most": 6 } } });
    let decided = decide(&kind(within.clone()), TRIES, &[]).unwrap();
    assert_eq!(decided[1].rank, None);
    assert!(decided[2].is_chosen, "{:?}", told(&decided));
    let table = kind(within).table(&decided);
    assert_eq!(
        table.texts("May win").unwrap()[1].as_deref(),
        Some("no: kl 7.000 > 6")
    );
    assert_eq!(table.texts("Chosen").unwrap()[2].as_deref(), Some("yes"));
    assert!(
        table.notes[0].contains("(seed 11, 12) of those with kl at most 6"),
        "{:?}",
        table.notes
    );

    let least = json!({ "candidate": "lr", "best": "least" });
    assert!(decide(&kind(least), TRIES, &[]).unwrap()[0].is_chosen);
    let none = json!({ "candidate": "lr", "within": { "kl": { "at_least": 10 } } });
    let (message, hint) = failed(decide(&kind(none), TRIES, &[]));
    assert_eq!(
        message,
        "no candidate may win: each breaks a limit or diverged"
    );
    assert!(
        hint.contains("0.002") && hint.contains("no: kl 5.000 < 10"),
        "{hint}"
    );
}

#[test]
fn of_equals_the_first_wins() {
    let equal = [
        ("", "0.002", "1", 1.0, 0.0),
        ("", "0.001", "1", 1.0, 0.0),
        ("", "0.003", "1", 0.5, 0.0),
    ];
    let decided = decide(&kind(json!({ "candidate": "lr" })), &equal, &[]).unwrap();
    let ranks: Vec<Option<usize>> = decided.iter().map(|one| one.rank).collect();
    assert_eq!(ranks, [Some(1), Some(2), Some(3)]);
    assert!(decided[0].is_chosen);
}

#[test]
fn what_diverged_is_shown_and_cannot_win() {
    let curves: Vec<(Labels, Curve)> = TRIES
        .iter()
        .map(|(_, lr, seed, ..)| {
            let diverged = (*lr, *seed) == ("0.003", "12");
            let status = if diverged {
                Status::Diverged
            } else {
                Status::Completed
            };
            let (mut labels, curve) = curve("ppo", seed.parse().unwrap(), status, 2e9);
            labels.insert("lr".to_owned(), (*lr).to_owned());
            (labels, curve)
        })
        .collect();
    let chooses = kind(json!({ "candidate": "lr" }));
    let decided = decide(&chooses, TRIES, &curves).unwrap();
    assert_eq!(decided[1].faults, ["diverged in 1 of 2 runs"]);
    assert!(decided[2].is_chosen);
    let table = chooses.table(&decided);
    assert_eq!(table.numbers("GFLOP").unwrap(), [Some(2.0); 3]);
    assert_eq!(
        table.texts("Training").unwrap()[0].as_deref(),
        Some("completed")
    );
    let (message, _) = failed(decide(&chooses, TRIES, &curves[1..]));
    assert!(
        message.contains("no input of `curves` belongs to [lr=0.001, seed=11"),
        "{message}"
    );
}

#[test]
fn every_method_has_a_winner_of_its_own_and_the_curve_of_its_stage() {
    let tries = [
        ("ppo", "0.001", "11", 1.0, 0.0),
        ("ppo", "0.003", "11", 3.0, 0.0),
        ("tb.late", "0.001", "11", 2.0, 0.0),
        ("tb.late", "0.003", "11", 1.0, 0.0),
    ];
    let curves: Vec<(Labels, Curve)> = tries
        .iter()
        .map(|(method, lr, ..)| {
            let stage = method.split('.').next().unwrap();
            let (mut labels, curve) = curve(stage, 11, Status::Completed, 1e9);
            labels.insert("lr".to_owned(), (*lr).to_owned());
            (labels, curve)
        })
        .collect();
    let params =
        json!({ "candidate": "lr", "method": "policy", "frozen": { "ppo": { "lr": 3e-3 } } });
    let decided = decide(&kind(params), &tries, &curves).unwrap();
    let chosen: Vec<bool> = decided.iter().map(|one| one.is_chosen).collect();
    assert_eq!(chosen, [false, true, true, false]);
    let other =
        json!({ "candidate": "lr", "method": "policy", "frozen": { "tb.late": { "lr": 3e-3 } } });
    let (message, hint) = failed(decide(&kind(other), &tries, &curves));
    assert_eq!(
        message,
        "the tries choose tb.late, lr 0.001 (reward 3.0000), and `frozen` is tb.late, lr 0.003 (reward 2.0000, rank 2)"
    );
    assert!(hint.contains("0.003") && !hint.contains("ppo"), "{hint}");
}

#[test]
fn the_frozen_choice_must_win_or_tie() {
    let with = |lr: f64, tie: f64| json!({ "candidate": "lr", "frozen": { "lr": lr }, "tie": tie });
    let chosen = |params| {
        let decided = decide(&kind(params), TRIES, &[]).unwrap();
        decided.iter().position(|one| one.is_chosen)
    };
    assert_eq!(chosen(with(3e-3, 0.0)), Some(1));
    assert_eq!(chosen(with(2e-3, 1.5)), Some(2));
    failed(decide(&kind(with(2e-3, 1.4)), TRIES, &[]));
    // A tie is no pardon for a limit.
    let broken = json!({ "candidate": "lr", "within": { "kl": { "at_most": 6 } }, "frozen": { "lr": 3e-3 }, "tie": 9 });
    let (message, _) = failed(decide(&kind(broken), TRIES, &[]));
    assert!(
        message.ends_with("`frozen` is lr 0.003 (kl 7.000 > 6)"),
        "{message}"
    );
    let (message, hint) = failed(decide(
        &kind(json!({ "candidate": "lr", "frozen": { "lr": 1 } })),
        TRIES,
        &[],
    ));
    assert_eq!(message, "`frozen` is lr 1, which was not tried");
    assert_eq!(hint, "tried: lr 0.001, lr 0.003, lr 0.002");
}

#[test]
fn an_unfair_choice_is_refused() {
    let message = |params, tries: &[Try]| failed(decide(&kind(params), tries, &[])).0;
    let methods = || json!({ "candidate": "lr", "method": "policy" });
    let ppo: Try = ("ppo", "0.001", "11", 1.0, 0.0);
    let tb: Try = ("tb", "0.001", "11", 1.0, 0.0);
    let more: Try = ("tb", "0.002", "11", 1.0, 0.0);
    assert_eq!(
        message(methods(), &[ppo, tb, more]),
        "methods have different numbers of candidates: ppo 1, tb 2"
    );
    let other: Try = ("tb", "0.001", "12", 1.0, 0.0);
    assert_eq!(
        message(methods(), &[ppo, other]),
        "candidates have different runs (seed): ppo, lr 0.001 the runs 11; tb, lr 0.001 the runs 12"
    );
    let mut free = methods();
    free["equal_budget"] = json!(false);
    let chooses = kind(free);
    let decided = decide(&chooses, &[ppo, tb, more], &[]).unwrap();
    let notes = chooses.table(&decided).notes;
    assert!(notes[1].contains("ppo 1, tb 2"), "{notes:?}");
    let mut reported = methods();
    reported["reported"] = json!([1, 11]);
    assert_eq!(
        message(reported, &[ppo, tb]),
        "seed 11 is a try's and is reported"
    );
    assert!(message(methods(), &[ppo, ppo]).starts_with("two inputs are ppo, lr 0.001, seed 11"));
    assert_eq!(
        message(json!({ "candidate": "lr" }), &[ppo, tb]),
        "the inputs have more than one value of the axis `policy`: ppo, tb"
    );
    assert!(
        message(json!({ "candidate": "kl" }), &[ppo])
            .starts_with("an input has none of the axes kl; it is [policy=ppo")
    );
    let missing = message(json!({ "candidate": "lr", "column": "exact" }), &[TRIES[0]]);
    assert!(
        missing.contains("seed 11") && missing.contains("no column `exact`"),
        "{missing}"
    );
}

#[test]
fn tries_of_a_run_must_answer_the_same_prompts() {
    let tries = labels_of(&TRIES[..2]);
    let labels: Vec<&Labels> = tries.iter().collect();
    let fewer = [scored(1.0, 0.0, 3), scored(1.0, 0.0, 4)];
    let (message, _) =
        failed(kind(json!({ "candidate": "lr" })).decide(&labels, (&fewer, &digests(2)), &[]));
    assert_eq!(
        message,
        "lr 0.001, seed 11 and lr 0.003, seed 11 answer different prompts: they have other `question_id`s and `sample`s, or in \
         another order"
    );
    for column in ["question", "prompt"] {
        let mut asked = [scored(1.0, 0.0, 3), scored(1.0, 0.0, 3)];
        let table = &mut asked[1].table;
        table.columns.retain(|one| one.name != column);
        let easier = ["question 0", "easy", "question 2"].map(|text| Some(text.to_owned()));
        table.text_column(column, easier);
        let (message, _) =
            failed(kind(json!({ "candidate": "lr" })).decide(&labels, (&asked, &digests(2)), &[]));
        assert!(
            message.contains(&format!("prompts: `{column}` of question_id 10")),
            "{message}"
        );
    }
}

#[test]
fn candidates_of_other_runs_that_answer_other_prompts_are_told() {
    let tries = [TRIES[0], TRIES[4]];
    let labels = labels_of(&tries);
    let labels: Vec<&Labels> = labels.iter().collect();
    let chooses = kind(json!({ "candidate": "lr", "equal_budget": false }));
    let told = |prompts| {
        let scored = [scored(1.0, 0.0, 3), scored(2.0, 0.0, prompts)];
        let decided = chooses.decide(&labels, (&scored, &digests(2)), &[]);
        let notes = chooses.table(&decided.unwrap()).notes;
        let note = "Candidates answer different questions, and may differ by them: lr 0.001 (3) and lr 0.003 (4) have 3 in \
                    common.";
        notes.iter().any(|told| told == note)
    };
    assert!(told(4) && !told(3));
}

#[test]
fn runs_of_a_candidate_that_are_one_and_the_same_count_once() {
    let tries = [
        ("", "0.001", "1", 1.0, 0.0),
        ("", "0.001", "2", 1.0, 0.0),
        ("", "0.001", "3", 0.0, 0.0),
        ("", "0.002", "1", 0.6, 0.0),
        ("", "0.002", "2", 0.55, 0.0),
        ("", "0.002", "3", 0.65, 0.0),
    ];
    let labels = labels_of(&tries);
    let labels: Vec<&Labels> = labels.iter().collect();
    let scored = tries.map(|(.., reward, kl)| scored(reward, kl, 3));
    let chooses = kind(json!({ "candidate": "lr" }));
    let mut digests = digests(6);
    let first = |digests: &[Digest]| {
        let decided = chooses.decide(&labels, (&scored, digests), &[]).unwrap();
        (decided[0].is_chosen, chooses.table(&decided))
    };
    let (wins, table) = first(&digests);
    assert!(wins && table.notes.len() == 2, "{:?}", table.notes);
    digests[1] = digests[0];
    let (wins, table) = first(&digests);
    assert!(!wins);
    assert_eq!(table.all_numbers("Runs").unwrap(), [2.0, 3.0]);
    assert_eq!(table.all_numbers("n").unwrap(), [6.0, 9.0]);
    let note = "lr 0.001: runs that are one and the same, byte by byte, count once: seed 1 = 2.";
    assert_eq!(table.notes[2], note);
}

#[test]
fn steps_that_differ_are_told() {
    let tries = [
        ("ppo", "0.001", "11", 1.0, 0.0),
        ("ppo", "0.003", "11", 3.0, 0.0),
        ("tb", "0.001", "11", 2.0, 0.0),
        ("tb", "0.003", "11", 1.0, 0.0),
    ];
    let table = |more: (&str, &str), first_step: u64| {
        let curves = tries.iter().map(|(method, lr, ..)| {
            let (mut labels, mut curve) = curve(method, 11, Status::Completed, 1e9);
            curve.summary.steps += u64::from((*method, *lr) == more);
            // Another method may learn from as many samples in other steps.
            curve.summary.steps += 10 * u64::from(*method == "tb");
            curve.steps = (first_step..first_step + curve.summary.steps).collect();
            labels.insert("lr".to_owned(), (*lr).to_owned());
            (labels, curve)
        });
        let params =
            json!({ "candidate": "lr", "method": "policy", "frozen": { "ppo": { "lr": 3e-3 } } });
        let kind = kind(params);
        let decided = decide(&kind, &tries, &curves.collect::<Vec<_>>()).unwrap();
        kind.table(&decided).notes
    };
    let told = |notes: &[String]| notes.iter().any(|note| note.contains("numbers of steps"));
    let equal = table(("none", ""), 0);
    assert!(!told(&equal), "{equal:?}");
    assert!(
        equal
            .iter()
            .any(|note| note.starts_with("Frozen for ppo: ")),
        "{equal:?}"
    );
    let more = table(("ppo", "0.003"), 0);
    assert!(
        more.iter()
            .any(|note| note.contains("such as ppo, lr 0.001 4 and ppo, lr 0.003 5: ")),
        "{more:?}"
    );
    // What no training stage made learns from numbers of samples that nothing tells.
    let foreign = table(("none", ""), 1);
    assert!(
        foreign
            .iter()
            .any(|note| note.contains("such as ppo, lr 0.001 4 and tb, lr 0.001 14: ")),
        "{foreign:?}"
    );
}

#[test]
fn params_that_say_nothing_are_refused() {
    let problems = |params: serde_json::Value| -> Vec<String> {
        let kind: Choose = serde_json::from_value(params).unwrap();
        kind.validate()
            .into_iter()
            .map(|problem| problem.message)
            .collect()
    };
    for (params, expected) in [
        (
            json!({ "candidate": "seed" }),
            "`seed` cannot be an axis of candidates and `method` or `run`, too",
        ),
        (
            json!({ "candidate": "lr", "within": { "kl": {} } }),
            "`kl` has no limit",
        ),
        (
            json!({ "candidate": "lr", "within": { "kl": { "at_least": 2, "at_most": 1 } } }),
            "`at_least` is above `at_most`",
        ),
        (
            json!({ "candidate": "lr", "tie": 0.1 }),
            "`tie` has no effect without `frozen`",
        ),
        (
            json!({ "candidate": "lr", "frozen": { "kl": 1 } }),
            "`kl` is no axis of `candidate`",
        ),
        (
            json!({ "candidate": "lr", "frozen": { "ppo": { "lr": 1 } } }),
            "`ppo` must be a value: there is one choice",
        ),
        (
            json!({ "candidate": "lr", "method": "policy", "frozen": { "lr": 1 } }),
            "`frozen` does not say which policy has this `lr`",
        ),
        (
            json!({ "candidate": "lr", "method": "policy", "frozen": { "ppo": { "lr": 1 }, "tb": 2 } }),
            "`frozen` of tb is `2`, expected values of axes",
        ),
        (
            json!({ "candidate": "lr", "method": "policy", "hand_on": true }),
            "with `method` there are several winners, and one `best`",
        ),
    ] {
        assert_eq!(problems(params.clone()), [expected], "{params}");
    }
}
