//! Against recorded runs of transformers (`tests/fixtures/generation.py`) and of llama2.c.

use std::path::Path;

use candle_core::{DType, Device};

use super::*;
use crate::ml::formats::llama2c::load_llama2c;

#[test]
fn greedy_decoding_is_that_of_transformers() {
    let (model, prompts) = (small_model(), recorded_rows("prompts"));
    let mut options = GenerateOptions::new(16, &[]);
    let found = run(&model, &prompts, &options, Strategy::Greedy);
    assert_eq!(tokens(&found), recorded_rows("greedy"));
    let log_probs: Vec<Vec<f32>> =
        serde_json::from_value(recorded()["greedy_log_probs"].clone()).unwrap();
    for (found, expected) in found.iter().zip(&log_probs) {
        assert!(found.truncated);
        assert_eq!(found.sampling_log_probs, [0.0; 16]);
        for (found, expected) in found.log_probs.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-5, "{found} is not {expected}");
        }
    }
    options.repetition_penalty = 1.3;
    let found = run(&model, &prompts, &options, Strategy::Greedy);
    assert_eq!(tokens(&found), recorded_rows("greedy_penalty_1.3"));
}

#[test]
fn contrastive_search_is_that_of_transformers_4_30() {
    let (model, prompts) = (small_model(), recorded_rows("prompts"));
    let mut options = GenerateOptions::new(16, &[]);
    for (name, alpha, top_k, temperature, penalty) in [
        ("contrastive", 0.6, 4, None, 1.0),
        ("contrastive_temperature_0.1", 0.6, 4, Some(0.1), 1.0),
        ("contrastive_temperature_2", 0.3, 6, Some(2.0), 1.0),
        ("contrastive_penalty_1.3", 0.4, 3, None, 1.3),
    ] {
        options.repetition_penalty = penalty;
        let strategy = Strategy::Contrastive(Contrastive {
            alpha,
            top_k,
            temperature,
        });
        let found = run(&model, &prompts, &options, strategy);
        assert_eq!(tokens(&found), recorded_rows(name), "{name}");
    }
}

#[test]
fn contrastive_search_without_penalty_is_greedy() {
    let strategy = Strategy::Contrastive(Contrastive {
        alpha: 0.0,
        top_k: 5,
        temperature: None,
    });
    let options = GenerateOptions::new(16, &[]);
    let found = run(
        &small_model(),
        &recorded_rows("prompts"),
        &options,
        strategy,
    );
    assert_eq!(tokens(&found), recorded_rows("greedy"));
}

#[test]
fn models_in_other_dtypes_decode_too() {
    let all = parameters::load(&fixture("llama.safetensors"), &Device::Cpu).unwrap();
    let weights: Weights = all
        .into_iter()
        .filter_map(|(name, t)| {
            let name = name.strip_prefix("tied.weight.")?.to_owned();
            Some((name, t.to_dtype(DType::F64).unwrap()))
        })
        .collect();
    let model = CausalLm::new(small_config(), &weights, Training::Frozen).unwrap();
    let options = GenerateOptions::new(16, &[]);
    let found = run(
        &model,
        &recorded_rows("prompts"),
        &options,
        Strategy::Greedy,
    );
    assert_eq!(tokens(&found), recorded_rows("greedy"));
}

#[test]
fn stories260k_tells_the_published_story() {
    let folder = std::env::var_os("FLOWGRAPH_TEST_STORIES260K").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/models/stories260k"),
        std::path::PathBuf::from,
    );
    if !folder.exists() {
        println!(
            "skipped: {} is not there; FLOWGRAPH_TEST_STORIES260K may name another folder",
            folder.display()
        );
        return;
    }
    let checkpoint =
        load_llama2c(&folder.join("stories260K.bin"), &folder.join("tok512.bin")).unwrap();
    let model = CausalLm::new(&checkpoint.config, &checkpoint.weights, Training::Frozen).unwrap();
    // llama2.c's `run -t 0.0` starts from the beginning-of-sequence token alone and makes 256 steps.
    let options = GenerateOptions::new(256, &[1]);
    let found = run(&model, &[vec![1]], &options, Strategy::Greedy);
    let text = checkpoint
        .tokenizer
        .unwrap()
        .decode(&found[0].tokens)
        .unwrap();
    assert_eq!(text.trim(), STORY);
}

/// The text in llama2.c's doc/stories260K.md.
const STORY: &str = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. \
One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n\
Lily's mom said, \"Lily, let's go to the park.\" Lily was sad and didn't know what to do. She said, \"I want to play \
with your ball, but I can't find it.\"\n\
Lily was sad and didn't know what to do. She said, \"I'm sorry, Lily. I didn't know what to do.\"\n\
Lily didn't want to help her mom, so she said, \"I'm sorry, mom. I didn't know what to do.\" Her mom said, \"Don't \
worry, Lily. We can help you.";
