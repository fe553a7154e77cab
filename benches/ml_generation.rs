//! Generation at the shape of SmolLM2-135M: 16 prompts of 32 tokens, 64 new tokens each, random
//! weights that are bfloat16 numbers, as those of the checkpoint are (others with WEIGHTS=f32).
//!
//! `cargo bench --bench ml_generation` (ROWS=1 for those of one row alone); `benches/ml_reference.py generation` does the same with transformers.
#![expect(clippy::print_stdout, reason = "a benchmark's output is for people")]
#![expect(clippy::unwrap_used, reason = "a benchmark may fail at once")]

use std::ops::ControlFlow;
use std::time::Instant;

use flowgraph::ml::generate::{Contrastive, GenerateOptions, Sampling, Strategy, generate};
use flowgraph::ml::kernels::process::prepare;
use flowgraph::ml::models::causal::{CausalLm, Training};
use flowgraph::random::Stream;

mod checkpoint;
mod smollm2;

const NEW_TOKENS: usize = 64;
const PROMPT_TOKENS: usize = 32;

fn main() {
    prepare();
    let config = smollm2::config();
    let stream = Stream::new(1, "benchmark");
    let weights = checkpoint::weights(&config, &stream);
    let model = CausalLm::new(&config, &weights, Training::Frozen).unwrap();
    let mut draws = Stream::new(2, "tokens").at(0);
    let prompts: Vec<Vec<u32>> = (0..16)
        .map(|_| {
            (0..PROMPT_TOKENS)
                .map(|_| draws.below(config.vocab_size) as u32)
                .collect()
        })
        .collect();
    let contrastive = Strategy::Contrastive(Contrastive {
        alpha: 0.6,
        top_k: 4,
        temperature: None,
    });
    for (name, rows, strategy) in [
        ("greedy", 16, Strategy::Greedy),
        ("sampling", 16, Strategy::Sampling(Sampling::default())),
        ("greedy", 1, Strategy::Greedy),
        ("contrastive", 4, contrastive),
    ] {
        if std::env::var("ROWS").is_ok_and(|wanted| wanted != rows.to_string()) {
            continue;
        }
        let keys: Vec<u64> = (0..rows as u64).collect();
        let before = smollm2::processor_seconds();
        let mut seconds: Vec<f64> = (0..3)
            .map(|_| {
                let start = Instant::now();
                let found = generate(
                    &model,
                    &prompts[..rows],
                    &GenerateOptions::new(NEW_TOKENS, &[]),
                    &strategy,
                    &stream,
                    &keys,
                    &mut |_| ControlFlow::Continue(()),
                );
                assert_eq!(found.unwrap().len(), rows);
                start.elapsed().as_secs_f64()
            })
            .collect();
        seconds.sort_unstable_by(f64::total_cmp);
        println!(
            "{name}, {rows} rows: {:.3} s and {:.2} processor seconds, {:.1} tokens/s, peak {:.2} GB, {} threads",
            seconds[1],
            (smollm2::processor_seconds() - before) / 3.0,
            (rows * NEW_TOKENS) as f64 / seconds[1],
            smollm2::peak_gigabytes(),
            rayon::current_num_threads(),
        );
    }
}
