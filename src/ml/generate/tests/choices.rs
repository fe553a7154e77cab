//! Choices that stay on a device are those of the processor.

use std::collections::BTreeSet;

use candle_core::{Device, Tensor};

use super::super::decoder::Choosing;
use super::super::device_choice::{candidates, choose, normalisers, read_back};
use super::super::distribution::{draw, largest, log_sum_exp, most_probable, penalise};
use super::super::options::{Contrastive, Sampling, Strategy};
use crate::random::Stream;

const ROWS: usize = 40;
/// More than one block of a draw, and not a whole number of them.
const VOCABULARY: usize = 700;

/// Logits of many rows, some of them far apart.
fn logits() -> Vec<Vec<f32>> {
    let of_row = |row: usize| {
        let mut draws = Stream::new(3, "logits").at(row as u64);
        let spread = [0.5, 3.0, 20.0][row % 3];
        let logits = (0..VOCABULARY).map(|_| (spread * draws.normal()) as f32);
        logits.collect()
    };
    (0..ROWS).map(of_row).collect()
}

/// The tokens that a row has seen: as many as its number.
fn seen(row: usize) -> BTreeSet<u32> {
    (0..=row as u32)
        .map(|token| token * 17 % VOCABULARY as u32)
        .collect()
}

struct Found {
    token: u32,
    log_prob: f32,
    sampling_log_prob: f32,
}

fn on_device(strategy: &Strategy, repetition_penalty: f64, uniforms: &[f64]) -> Vec<Found> {
    let logits = Tensor::new(logits(), &Device::Cpu).unwrap();
    let seen: Vec<BTreeSet<u32>> = (0..ROWS).map(seen).collect();
    let seen: Vec<&BTreeSet<u32>> = seen.iter().collect();
    let how = Choosing {
        strategy,
        repetition_penalty,
    };
    let normalisers = normalisers(&logits).unwrap();
    let chosen = choose(&logits, &normalisers, (&seen, uniforms), &how).unwrap();
    let chosen = read_back(&chosen, &normalisers).unwrap().into_iter();
    let found = chosen.map(|choice| Found {
        token: choice.token,
        log_prob: choice.log_prob,
        sampling_log_prob: choice.sampling_log_prob,
    });
    found.collect()
}

fn on_host(strategy: &Strategy, repetition_penalty: f64, uniforms: &[f64]) -> Vec<Found> {
    let rows = logits().into_iter().enumerate();
    let found = rows.map(|(row, raw)| {
        let normaliser = log_sum_exp(&raw);
        let mut logits = raw.clone();
        penalise(&mut logits, seen(row).into_iter(), repetition_penalty);
        let (token, sampling_log_prob) = match strategy {
            Strategy::Sampling(sampling) => draw(&mut logits, sampling, uniforms[row]),
            _ => (largest(&logits), 0.0),
        };
        Found {
            token,
            log_prob: raw[token as usize] - normaliser,
            sampling_log_prob,
        }
    });
    found.collect()
}

#[test]
fn draws_and_cuts_are_those_of_the_processor() {
    let sampling = |temperature: f64, top_k: usize, top_p: f64| {
        Strategy::Sampling(Sampling {
            temperature,
            top_k,
            top_p,
        })
    };
    let ways = [
        Strategy::Greedy,
        sampling(1.0, 0, 1.0),
        sampling(0.6, 0, 0.9),
        sampling(1.7, 5, 1.0),
        sampling(1.0, 50, 0.5),
        sampling(1.0, 1, 1.0),
        sampling(1.0, 0, 0.0),
        sampling(1e-6, 0, 1.0),
        sampling(100.0, 0, 0.3),
        sampling(1.0, 699, 0.999_999),
    ];
    let mut apart = 0;
    for strategy in &ways {
        for penalty in [1.0, 1.3] {
            for time in 0..5 {
                let uniform = |row: usize| Stream::new(time, "uniform").at(row as u64).uniform();
                let uniforms: Vec<f64> = (0..ROWS).map(uniform).collect();
                let found = on_device(strategy, penalty, &uniforms);
                let expected = on_host(strategy, penalty, &uniforms);
                for (found, expected) in found.iter().zip(&expected) {
                    if found.token != expected.token {
                        apart += 1;
                        continue;
                    }
                    for (found, expected) in [
                        (found.log_prob, expected.log_prob),
                        (found.sampling_log_prob, expected.sampling_log_prob),
                    ] {
                        assert!(
                            (found - expected).abs() < 1e-4,
                            "{strategy:?}: {found} {expected}"
                        );
                    }
                }
            }
        }
    }
    // Of 4,000; where a sum comes to the drawn number but for rounding.
    assert!(apart <= 2, "{apart} other tokens");
}

#[test]
fn the_ends_of_a_draw_are_tokens_with_weight() {
    let strategy = Strategy::Sampling(Sampling {
        temperature: 1.0,
        top_k: 3,
        top_p: 1.0,
    });
    for uniform in [0.0, 1.0 - f64::EPSILON / 2.0] {
        let found = on_device(&strategy, 1.0, &[uniform; ROWS]);
        let expected = on_host(&strategy, 1.0, &[uniform; ROWS]);
        for (found, expected) in found.iter().zip(&expected) {
            assert!(found.sampling_log_prob.is_finite());
            if uniform == 0.0 {
                assert_eq!(found.token, expected.token);
            }
        }
    }
}

#[test]
fn candidates_are_those_of_the_processor() {
    let search = Contrastive {
        alpha: 0.6,
        top_k: 4,
        temperature: Some(0.7),
    };
    let rows = logits();
    let tensor = Tensor::new(rows.clone(), &Device::Cpu).unwrap();
    let normalisers = normalisers(&tensor).unwrap();
    let seen: Vec<BTreeSet<u32>> = (0..ROWS).map(seen).collect();
    let borrowed: Vec<&BTreeSet<u32>> = seen.iter().collect();
    let how = Choosing {
        strategy: &Strategy::Contrastive(search),
        repetition_penalty: 1.2,
    };
    let found = candidates(&tensor, &normalisers, &borrowed, &search, &how).unwrap();
    let tokens: Vec<Vec<u32>> = found.tokens.to_vec2().unwrap();
    let probabilities: Vec<Vec<f32>> = found.probabilities.to_vec2().unwrap();
    let log_probs: Vec<Vec<f32>> = found.log_probs.to_vec2().unwrap();
    for (row, raw) in rows.iter().enumerate() {
        let mut logits = raw.clone();
        penalise(&mut logits, seen[row].iter().copied(), 1.2);
        let expected = most_probable(&mut logits, 4, 0.7);
        for (place, (token, probability)) in expected.into_iter().enumerate() {
            assert_eq!(tokens[row][place], token);
            assert!((probabilities[row][place] - probability).abs() < 1e-5);
            let log_prob = raw[token as usize] - log_sum_exp(raw);
            assert!((log_probs[row][place] - log_prob).abs() < 1e-4);
        }
    }
}
