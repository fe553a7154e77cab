//! Draws follow the distribution they are from, and belong to their row.

use std::collections::BTreeMap;

use super::super::distribution::{draw, largest, most_probable, penalise, temper};
use super::*;
use crate::ml::models::causal::TokenBatch;

/// Points over `[0, 1)`; they give each token its probability to within their spacing.
const GRID: usize = 4096;

#[test]
fn draws_follow_the_reshaped_distribution_of_transformers() {
    let cases: Vec<BTreeMap<String, serde_json::Value>> =
        serde_json::from_value(recorded()["reshaped"].clone()).unwrap();
    assert_eq!(cases.len(), 4);
    for case in cases {
        let sampling: Sampling = serde_json::from_value(serde_json::json!({
            "temperature": case["temperature"], "top_k": case["top_k"], "top_p": case["top_p"],
        }))
        .unwrap();
        let expected: Vec<f64> = serde_json::from_value(case["probabilities"].clone()).unwrap();
        let mut counts = [0usize; 32];
        for place in 0..GRID {
            let mut logits: Vec<f32> = (0..32).map(|i| (i * 37 % 32) as f32 / 9.0 - 1.5).collect();
            let (token, log_prob) = draw(&mut logits, &sampling, place as f64 / GRID as f64);
            counts[token as usize] += 1;
            let probability = f64::from(log_prob.exp());
            assert!(
                (probability - expected[token as usize]).abs() < 1e-5,
                "{sampling:?}"
            );
        }
        for (count, expected) in counts.iter().zip(&expected) {
            assert!(
                (*count as f64 / GRID as f64 - expected).abs() < 1.1 / GRID as f64,
                "{sampling:?}"
            );
        }
    }
}

#[test]
fn samples_follow_the_model() {
    // 4000 rows of one prompt: the first token's frequencies are the model's probabilities.
    let model = small_model();
    let prompt = vec![3, 30, 2];
    let prompts = vec![prompt.clone(); 4000];
    let mut options = GenerateOptions::new(1, &[]);
    options.batch_size = 500;
    let found = run(
        &model,
        &prompts,
        &options,
        Strategy::Sampling(Sampling::default()),
    );
    let mut counts = [0f64; 32];
    for completion in &found {
        counts[completion.tokens[0] as usize] += 1.0;
        assert!((completion.log_probs[0] - completion.sampling_log_probs[0]).abs() < 1e-5);
    }
    let hidden = model.forward(&TokenBatch::right_padded(&[prompt])).unwrap();
    let logits = model.logits(&hidden).unwrap();
    let expected: Vec<f32> = candle_nn::ops::softmax(&logits, 2)
        .unwrap()
        .get(0)
        .unwrap()
        .get(2)
        .unwrap()
        .to_vec1()
        .unwrap();
    // Pearson's chi-square with 31 degrees of freedom exceeds 61.1 once in a thousand.
    let chi_square: f64 = counts
        .iter()
        .zip(&expected)
        .map(|(count, p)| (count - 4000.0 * f64::from(*p)).powi(2) / (4000.0 * f64::from(*p)))
        .sum();
    assert!(chi_square < 61.1, "{chi_square}");
}

#[test]
fn sampling_draws_belong_to_the_row_key() {
    let model = wide_model();
    let prompts = vec![vec![1, 2, 3]; 3];
    let stream = Stream::new(5, "sampling");
    let strategy = Strategy::Sampling(Sampling::default());
    let options = GenerateOptions::new(8, &[]);
    let go_on = &mut |_| ControlFlow::Continue(());
    let found = generate(
        &model,
        &prompts,
        &options,
        &strategy,
        &stream,
        &[4, 9, 4],
        go_on,
    )
    .unwrap();
    assert_eq!(found[0], found[2]);
    assert_ne!(found[0].tokens, found[1].tokens);
}

#[test]
fn draws_at_low_temperatures_and_of_large_logits_are_greedy() {
    let logits = [1.5f32, 3.0, -2.0, 2.5];
    for (scale, temperature) in [(1.0, 1e-6), (1e34, 1e-6), (1e38, 0.5), (-1e34, 1e-6)] {
        let logits = logits.map(|logit| logit * scale);
        let sampling = Sampling {
            temperature,
            ..Sampling::default()
        };
        let (token, log_prob) = draw(&mut logits.clone(), &sampling, 0.5);
        assert_eq!((token, log_prob), (largest(&logits), 0.0), "{scale}");
        let found = most_probable(&mut logits.clone(), 1, temperature);
        assert_eq!(found, [(largest(&logits), 1.0)], "{scale}");
    }
    // Where nothing overflows, quotients are those of plain division.
    let mut tempered = logits;
    temper(&mut tempered, 0.7);
    assert_eq!(tempered, logits.map(|logit| logit / 0.7));

    let mut penalised = [1e38f32, -1e38, 2.0];
    penalise(&mut penalised, [0, 1].into_iter(), 1e-6);
    assert_eq!(penalised, [f32::MAX, -1e38 * 1e-6, 2.0]);
}
