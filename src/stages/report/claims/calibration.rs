//! How often the rule errs, and how often it finds what is there, by simulation.

use super::Direction;
use super::decide::{Rule, Verdict};
use crate::random::{Draws, Stream};
use crate::stats::{holm_levels, interval_power};

const QUESTIONS: usize = 10;
const ALPHA: f64 = 0.05;

fn greater(margin: f64) -> Rule {
    Rule::Difference {
        direction: Direction::Greater,
        margin,
        effect: None,
    }
}

/// Differences of runs: the means of questions of deviation 1 within a run, around what runs differ by.
fn differences(draws: &mut Draws, runs: usize, between: f64, effect: f64) -> Vec<f64> {
    (0..runs)
        .map(|_| {
            let run = effect + between * draws.normal();
            let questions: f64 = (0..QUESTIONS).map(|_| draws.normal()).sum();
            run + questions / QUESTIONS as f64
        })
        .collect()
}

/// The deviation of those differences.
fn deviation(between: f64) -> f64 {
    (between * between + 1.0 / QUESTIONS as f64).sqrt()
}

fn verdict(rule: Rule, runs: &[f64], alpha: f64) -> Verdict {
    rule.verdict(&rule.interval(runs, alpha).unwrap().unwrap())
}

/// The share of simulations for which something holds, with four Monte-Carlo errors of it.
fn share(trials: u64, label: &str, holds: impl Fn(&mut Draws) -> bool) -> f64 {
    let stream = Stream::new(1, label);
    let hits = (0..trials).filter(|trial| holds(&mut stream.at(*trial)));
    hits.count() as f64 / trials as f64
}

fn error(share: f64, trials: u64) -> f64 {
    4.0 * (share * (1.0 - share) / trials as f64).sqrt()
}

#[test]
fn where_nothing_differs_one_in_twenty_is_decided() {
    const TRIALS: u64 = 4000;
    for runs in [5, 8, 16] {
        for between in [0.0, 1.0, 3.0] {
            let label = format!("null {runs} {between}");
            let found = share(TRIALS, &label, |draws| {
                let runs = differences(draws, runs, between, 0.0);
                verdict(greater(0.0), &runs, ALPHA).is_decided()
            });
            assert!(
                (found - ALPHA).abs() < error(ALPHA, TRIALS),
                "{runs} runs, ratio {between}: {found} decided"
            );
        }
    }
}

#[test]
fn what_differs_is_found_as_often_as_the_power_says() {
    const TRIALS: u64 = 2000;
    for (runs, between, effect, margin) in [
        (5, 1.0, 2.0, 0.0),
        (8, 0.0, 0.4, 0.0),
        (8, 3.0, 4.0, 0.5),
        (16, 1.0, 0.8, 0.0),
    ] {
        let expected = interval_power(
            runs,
            (effect - margin) / deviation(between),
            f64::INFINITY,
            ALPHA,
        );
        let label = format!("effect {runs} {between} {effect}");
        let found = share(TRIALS, &label, |draws| {
            let runs = differences(draws, runs, between, effect);
            verdict(greater(margin), &runs, ALPHA) == Verdict::Supported
        });
        assert!(
            (found - expected).abs() < error(expected, TRIALS),
            "{runs} runs, ratio {between}: {found}, not {expected}"
        );
        assert!((0.3..0.99).contains(&expected), "{expected} tells nothing");
    }
    let same = Rule::Difference {
        direction: Direction::Equal,
        margin: 1.5,
        effect: None,
    };
    let expected = interval_power(8, 1.5 / deviation(1.0), 1.5 / deviation(1.0), ALPHA);
    let found = share(TRIALS, "same", |draws| {
        verdict(same, &differences(draws, 8, 1.0, 0.0), ALPHA) == Verdict::Supported
    });
    assert!(
        (found - expected).abs() < error(expected, TRIALS),
        "{found}, not {expected}"
    );
}

#[test]
fn as_many_runs_as_are_needed_are_enough() {
    const TRIALS: u64 = 2000;
    // Five runs of deviation 1 by construction.
    let seen = [-1.264_911, -0.632_456, 0.0, 0.632_456, 1.264_911].map(|run| 0.3 + run);
    let rule = Rule::Difference {
        direction: Direction::Greater,
        margin: 0.2,
        effect: Some(1.0),
    };
    let needed = rule.needed(&seen, ALPHA).unwrap().unwrap();
    assert_eq!(needed.text(), "15 at 1");
    let found = |runs: usize| {
        share(TRIALS, "needed", |draws| {
            let runs: Vec<f64> = (0..runs).map(|_| 1.0 + draws.normal()).collect();
            verdict(rule, &runs, ALPHA) == Verdict::Supported
        })
    };
    let more = found(15);
    assert!(more > 0.8 - error(0.8, TRIALS), "{more}");
    assert!(found(10) < 0.8 - error(0.8, TRIALS), "{}", found(10));
    let of = |rule: Rule| rule.needed(&seen, ALPHA).unwrap().unwrap().text();
    assert_eq!(of(greater(0.2)), "199 at 0.2");
    assert_eq!(of(greater(0.0)), "90 at the effect seen");
    let same = |margin: f64| Rule::Difference {
        direction: Direction::Equal,
        margin,
        effect: None,
    };
    assert_eq!(of(same(1.0)), "13 at 0");
    assert_eq!(of(same(0.01)), "over 10000 at 0");
}

/// Six claims that share their row `b`, as those of a paper do; the first two are true.
#[test]
fn a_family_without_differences_is_left_alone_in_nineteen_of_twenty() {
    const TRIALS: u64 = 2000;
    const RUNS: usize = 6;
    for effects in [[0.0; 6], [2.5, 2.5, 0.0, 0.0, 0.0, 0.0]] {
        let wrong = share(TRIALS, &format!("family {effects:?}"), |draws| {
            let base: Vec<f64> = (0..RUNS).map(|_| draws.normal()).collect();
            let claims = effects.map(|effect| -> Vec<f64> {
                let run = |base: &f64| effect + draws.normal() - base;
                base.iter().map(run).collect()
            });
            let rule = greater(0.0);
            let p_values = claims.each_ref().map(|runs| rule.p(runs).unwrap());
            let levels = holm_levels(&p_values, ALPHA).unwrap();
            let claims = claims.iter().zip(levels).zip(effects);
            claims
                .into_iter()
                .any(|((runs, level), effect)| match verdict(rule, runs, level) {
                    Verdict::Supported => effect <= 0.0,
                    Verdict::Contradicted => effect >= 0.0,
                    _ => false,
                })
        });
        assert!(
            wrong < ALPHA + error(ALPHA, TRIALS),
            "{effects:?}: {wrong} with a wrong verdict"
        );
        // Not by deciding nothing.
        assert!(wrong > 0.01, "{effects:?}: {wrong}");
    }
}

#[test]
fn the_p_value_is_where_the_verdict_turns() {
    let stream = Stream::new(1, "turns");
    for trial in 0..300 {
        let mut draws = stream.at(trial);
        let effect = 2.0 * draws.normal();
        let runs = differences(&mut draws, 6, 1.0, effect);
        for direction in [Direction::Greater, Direction::Less, Direction::Equal] {
            let rule = Rule::Difference {
                direction,
                margin: 1.0,
                effect: None,
            };
            let p = rule.p(&runs).unwrap();
            if (1e-9..0.99).contains(&p) {
                let decided = |alpha: f64| verdict(rule, &runs, alpha).is_decided();
                assert!(
                    decided(p * 1.0001) && !decided(p * 0.9999),
                    "{direction:?} {p}"
                );
            }
        }
    }
}

#[test]
fn stability_is_the_share_of_resamples_with_the_same_verdict() {
    let stream = Stream::new(1, "stability");
    let of = |rule: Rule, runs: &[f64]| {
        let found = verdict(rule, runs, ALPHA);
        let stability = rule.stability((runs, &[false; 6]), ALPHA, found, (&stream, 4000));
        (found, stability.unwrap())
    };
    let (found, clear) = of(greater(0.0), &[1.0, 1.1, 0.9, 1.05, 0.95]);
    assert_eq!((found, clear), (Verdict::Supported, 1.0));
    let (found, narrow) = of(greater(0.0), &[1.0, 0.6, 0.2, 1.4, 0.3, 0.1]);
    assert_eq!(found, Verdict::Supported);
    assert!((0.5..0.95).contains(&narrow), "{narrow}");
    // Undecided stays each resample in which at least one of six did not diverge: 1 - (5 / 6)^6.
    let (found, share) = of(Rule::Share, &[1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
    assert_eq!(found, Verdict::Inconclusive);
    assert!((share - 0.665).abs() < 0.03, "{share}");
}
