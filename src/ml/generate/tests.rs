//! Generation against recorded runs of transformers (`tests/fixtures/generation.py`) and of llama2.c.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::decoder::{Decoder, HostDecoder};
use super::distribution::{draw, largest, most_probable, penalise, temper};
use super::recompute::Recompute;
use super::*;
use crate::ml::adapter::{Adapter, LoraConfig};
use crate::ml::formats::llama2c::load_llama2c;
use crate::ml::kernels::rope::RopeLayout;
use crate::ml::models::causal::LlamaConfig;
use crate::ml::models::causal::{self, CausalLm, TokenBatch, Training};
use crate::ml::parameters::{self, Weights};
use crate::random::Stream;

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn recorded() -> serde_json::Value {
    let text = fs_err::read_to_string(fixture("generation.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn recorded_rows(name: &str) -> Vec<Vec<u32>> {
    serde_json::from_value(recorded()[name].clone()).unwrap()
}

fn small_config() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 32,
        hidden_size: 16,
        intermediate_size: 24,
        num_layers: 2,
        num_heads: 4,
        num_kv_heads: 2,
        rope_theta: 10_000.0,
        rope_layout: RopeLayout::HalfSplit,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        max_position_embeddings: 64,
    }
}

fn small_model() -> CausalLm {
    let all = parameters::load(&fixture("llama.safetensors"), &Device::Cpu).unwrap();
    let weights: Weights = all
        .into_iter()
        .filter_map(|(name, t)| Some((name.strip_prefix("tied.weight.")?.to_owned(), t)))
        .collect();
    CausalLm::new(small_config(), &weights, Training::Frozen).unwrap()
}

/// A model wide enough for parallel products, with an adapter that changes something.
fn wide_model() -> CausalLm {
    let config = LlamaConfig {
        vocab_size: 300,
        hidden_size: 64,
        intermediate_size: 160,
        ..small_config()
    };
    let stream = Stream::new(2, "wide");
    let mut weights = causal::init(&config, &stream, &Device::Cpu).unwrap();
    // Initial weights are so small that all tokens are about equally probable: make them count.
    for weight in weights.values_mut().filter(|weight| weight.rank() == 2) {
        *weight = weight.affine(3.0, 0.0).unwrap();
    }
    let lora = LoraConfig {
        rank: 4,
        alpha: 8.0,
        dropout: 0.5,
        target_modules: vec!["q_proj".into(), "v_proj".into(), "down_proj".into()],
        ..LoraConfig::default()
    };
    let adapter = Adapter::init(&lora, &weights, &stream, &Device::Cpu).unwrap();
    for (name, var) in adapter.parameters().trainable() {
        if name.contains("lora_B") {
            let mut draws = stream.child(&name).at(7);
            let values: Vec<f32> = (0..var.elem_count())
                .map(|_| 0.2 * draws.normal() as f32)
                .collect();
            let values = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
            var.set(&values).unwrap();
        }
    }
    CausalLm::new(&config, &weights, Training::Adapter(&adapter)).unwrap()
}

fn wide_prompts() -> Vec<Vec<u32>> {
    let mut draws = Stream::new(3, "prompts").at(0);
    (0..16)
        .map(|row| (0..=row % 7).map(|_| draws.below(300) as u32).collect())
        .collect()
}

fn run(
    model: &CausalLm,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    strategy: Strategy,
) -> Vec<Completion> {
    let keys: Vec<u64> = (0..prompts.len() as u64).collect();
    let stream = Stream::new(5, "sampling");
    let go_on = &mut |_| ControlFlow::Continue(());
    generate(model, prompts, options, &strategy, &stream, &keys, go_on).unwrap()
}

fn tokens(completions: &[Completion]) -> Vec<Vec<u32>> {
    completions.iter().map(|c| c.tokens.clone()).collect()
}

const STRATEGIES: [Strategy; 3] = [
    Strategy::Greedy,
    Strategy::Sampling(Sampling {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.9,
    }),
    Strategy::Contrastive(Contrastive {
        alpha: 0.6,
        top_k: 4,
        temperature: None,
    }),
];

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

#[test]
fn a_completion_depends_on_no_other_row() {
    let (model, prompts) = (wide_model(), wide_prompts());
    for strategy in STRATEGIES {
        let mut options = GenerateOptions::new(12, &[17, 40, 41, 42, 43, 44, 45]);
        options.batch_size = 16;
        let whole = run(&model, &prompts, &options, strategy);
        for batch_size in [1, 2, 7, 64] {
            options.batch_size = batch_size;
            let found = run(&model, &prompts, &options, strategy);
            assert!(found == whole, "{strategy:?} in batches of {batch_size}");
        }
        let go_on = &mut |_| ControlFlow::Continue(());
        let stream = Stream::new(5, "sampling");
        for (index, expected) in whole.iter().enumerate() {
            let one = &prompts[index..=index];
            let found = generate(
                &model,
                one,
                &options,
                &strategy,
                &stream,
                &[index as u64],
                go_on,
            );
            assert_eq!(&found.unwrap()[0], expected, "{strategy:?} alone");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (model, prompts) = (wide_model(), wide_prompts());
    for strategy in STRATEGIES {
        let at = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| run(&model, &prompts, &GenerateOptions::new(6, &[]), strategy))
        };
        assert!(at(1) == at(2) && at(1) == at(3), "{strategy:?}");
    }
}

#[test]
fn log_probs_are_those_of_a_teacher_forced_pass_to_the_last_bit() {
    let (model, prompts) = (wide_model(), wide_prompts());
    let options = GenerateOptions::new(12, &[17]);
    for strategy in STRATEGIES {
        let found = run(&model, &prompts, &options, strategy);
        let rows: Vec<Vec<u32>> = prompts
            .iter()
            .zip(&found)
            .map(|(prompt, completion)| [prompt.as_slice(), &completion.tokens].concat())
            .collect();
        let batch = TokenBatch::right_padded(&rows);
        let hidden = model.detached().forward(&batch).unwrap();
        let expected: Vec<Vec<f32>> = model
            .detached()
            .next_token_log_probs(&hidden, &batch)
            .unwrap()
            .to_vec2()
            .unwrap();
        for (row, completion) in found.iter().enumerate() {
            for (place, found) in completion.log_probs.iter().enumerate() {
                let expected = expected[row][prompts[row].len() - 1 + place];
                assert_eq!(
                    found.to_bits(),
                    expected.to_bits(),
                    "{found} is not {expected}"
                );
            }
        }
    }
}

/// Returns the hidden states of three more tokens after each prompt.
fn three_steps<D: Decoder>(decoder: &D, prompts: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut memories: Vec<D::Memory> = decoder
        .read(prompts)
        .unwrap()
        .into_iter()
        .map(|(memory, _)| memory)
        .collect();
    let mut out = Vec::new();
    for token in [3, 200, 77] {
        let tokens: Vec<_> = memories.iter().map(|memory| (memory, token)).collect();
        let step = decoder.step(&tokens).unwrap();
        for (index, memory) in memories.iter_mut().enumerate() {
            out.push(decoder.hidden(&step, index));
            decoder.take(memory, &step, index);
        }
    }
    out
}

#[test]
fn decoding_with_memory_is_decoding_anew() {
    let model = wide_model().detached();
    let prompts = wide_prompts();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let found = three_steps(&HostDecoder::new(&model), &prompts);
    let expected = three_steps(&Recompute::new(&model), &prompts);
    assert_eq!(found.len(), 48);
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert_eq!(
            found.to_bits(),
            expected.to_bits(),
            "{found} is not {expected}"
        );
    }
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
fn a_completion_ends_at_the_end_token_or_the_horizon() {
    let (model, prompts) = (small_model(), recorded_rows("prompts"));
    let found = run(
        &model,
        &prompts,
        &GenerateOptions::new(16, &[28, 8]),
        Strategy::Greedy,
    );
    assert_eq!(found[0].tokens, recorded_rows("greedy")[0]);
    assert!(found[0].truncated);
    assert_eq!(found[1].tokens, [9, 9, 28]);
    assert!(!found[1].truncated);
    assert_eq!(found[2].tokens, [4, 18, 8]);
    assert_eq!(found[2].log_probs.len(), 3);
    // An end token at the horizon still is one.
    let found = run(
        &model,
        &prompts,
        &GenerateOptions::new(3, &[28, 8]),
        Strategy::Greedy,
    );
    assert_eq!(found[0].tokens.len(), 3);
    assert_eq!(
        found.iter().map(|c| c.truncated).collect::<Vec<_>>(),
        [true, false, false]
    );
}

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
fn progress_counts_and_cancels() {
    let (model, prompts) = (small_model(), recorded_rows("prompts"));
    let stream = Stream::new(5, "sampling");
    let options = GenerateOptions::new(4, &[]);
    let mut seen = Vec::new();
    let count = &mut |progress: Progress| {
        seen.push((progress.finished, progress.tokens));
        ControlFlow::Continue(())
    };
    generate(
        &model,
        &prompts,
        &options,
        &Strategy::Greedy,
        &stream,
        &[0, 1, 2],
        count,
    )
    .unwrap();
    assert_eq!(seen, [(0, 3), (0, 6), (0, 9), (3, 12)]);
    let stop = &mut |progress: Progress| {
        if progress.tokens >= 6 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let stopped = generate(
        &model,
        &prompts,
        &options,
        &Strategy::Greedy,
        &stream,
        &[0, 1, 2],
        stop,
    );
    assert!(matches!(stopped, Err(GenerateError::Cancelled)));
}

#[test]
fn what_cannot_be_generated_is_an_error_that_names_it() {
    let model = small_model();
    let stream = Stream::new(5, "sampling");
    let error = |prompt: &[u32], options: &GenerateOptions, strategy: Strategy| {
        let go_on = &mut |_| ControlFlow::Continue(());
        generate(
            &model,
            &[prompt.to_vec()],
            options,
            &strategy,
            &stream,
            &[0],
            go_on,
        )
        .unwrap_err()
        .to_string()
    };
    let options = GenerateOptions::new(5, &[]);
    assert_eq!(
        error(&[], &options, Strategy::Greedy),
        "prompt 0: it is empty, expected at least a beginning-of-sequence token"
    );
    assert_eq!(
        error(&[32], &options, Strategy::Greedy),
        "prompt 0: token 32 is outside the vocabulary of 32"
    );
    // Contrastive search reads a token before it takes it, the last one too.
    assert!(error(&[1; 60], &options, STRATEGIES[2]).contains("60 tokens and 5 new ones"));
    assert_eq!(
        error(&[1; 61], &options, Strategy::Greedy),
        "prompt 0: 61 tokens and 5 new ones exceed the model's 64 positions"
    );
    assert_eq!(
        error(&[1], &GenerateOptions::new(0, &[]), Strategy::Greedy),
        "generation: `max_new_tokens` is 0, expected at least 1"
    );
    let colder = |temperature| {
        Strategy::Sampling(Sampling {
            temperature,
            ..Sampling::default()
        })
    };
    for (temperature, found) in [(0.0, "0.0"), (1e-45, "1e-45"), (f64::INFINITY, "inf")] {
        assert_eq!(
            error(&[1], &options, colder(temperature)),
            format!(
                "generation: `temperature` is {found}, expected a number from 1e-6 to 1000000 (or the greedy strategy)"
            )
        );
    }
    let punishing = GenerateOptions {
        repetition_penalty: 1e-45,
        ..GenerateOptions::new(5, &[])
    };
    assert_eq!(
        error(&[1], &punishing, Strategy::Greedy),
        "generation: `repetition_penalty` is 1e-45, expected a number from 1e-6 to 1000000"
    );
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

#[test]
fn a_diverged_model_is_an_error_not_a_story() {
    let mut weights = causal::init(small_config(), &Stream::new(1, "init"), &Device::Cpu).unwrap();
    let norm = Tensor::new(f32::NAN, &Device::Cpu).unwrap();
    weights.insert("model.norm.weight".into(), norm.broadcast_as(16).unwrap());
    let model = CausalLm::new(small_config(), &weights, Training::Frozen).unwrap();
    let stream = Stream::new(5, "sampling");
    for strategy in STRATEGIES {
        let go_on = &mut |_| ControlFlow::Continue(());
        let options = GenerateOptions::new(5, &[]);
        let error = generate(
            &model,
            &[vec![1]],
            &options,
            &strategy,
            &stream,
            &[0],
            go_on,
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "prompt 0: the logits after 0 new tokens are not finite"
        );
    }
}
