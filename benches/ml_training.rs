//! A LoRA step at the shape of SmolLM2-135M: 2 rows of 256 tokens, rank 16 on all projections, random
//! weights that are bfloat16 numbers (others with WEIGHTS=f32).
//!
//! `cargo bench --bench ml_training`; `benches/ml_reference.py training` does the same in PyTorch. RAYON_NUM_THREADS
//! sets the number of threads.
#![expect(clippy::print_stdout, reason = "a benchmark's output is for people")]
#![expect(clippy::unwrap_used, reason = "a benchmark may fail at once")]

use std::time::Instant;

use candle_core::Device;
use flowgraph::ml::adapter::Adapter;
use flowgraph::ml::kernels::process::prepare;
use flowgraph::ml::kernels::sums::total;
use flowgraph::ml::models::causal::LlamaConfig;
use flowgraph::ml::models::causal::{CausalLm, TokenBatch, Training};
use flowgraph::ml::optimizer::{AdamW, AdamWConfig, Gradients, LearningRate, ParameterGroup};
use flowgraph::random::Stream;

mod checkpoint;
mod lora;
mod smollm2;

const STEPS: usize = 8;

fn main() {
    prepare();
    let config = smollm2::config();
    let stream = Stream::new(1, "benchmark");
    let weights = checkpoint::weights(&config, &stream);
    let adapter = Adapter::init(&lora::config(), &weights, &stream, &Device::Cpu).unwrap();
    for (name, training) in [
        ("LoRA", Training::Adapter(&adapter)),
        ("full", Training::Full),
    ] {
        if name == "full" && std::env::var_os("FULL").is_none() {
            println!("full training: set FULL=1 (its memory would hide the adapter's)");
            continue;
        }
        run(
            name,
            &config,
            &CausalLm::new(&config, &weights, training).unwrap(),
        );
    }
}

fn run(name: &str, config: &LlamaConfig, model: &CausalLm) {
    let group = ParameterGroup {
        parameters: model.trainable().to_vec(),
        learning_rate: LearningRate::Multiple(1.0),
        weight_decay: 0.0,
    };
    let mut optimizer = AdamW::new(vec![group], AdamWConfig::default()).unwrap();
    let mut draws = Stream::new(2, "tokens").at(0);
    let rows: Vec<Vec<u32>> = (0..2)
        .map(|_| {
            (0..256)
                .map(|_| draws.below(config.vocab_size) as u32)
                .collect()
        })
        .collect();
    let batch = TokenBatch::right_padded(&rows);
    let mut seconds = Vec::new();
    let mut phases = [0.0; 3];
    let before = smollm2::processor_seconds();
    let mut last = 0.0;
    for _ in 0..STEPS {
        let start = Instant::now();
        let hidden = model.forward(&batch).unwrap();
        let log_probs = model.next_token_log_probs(&hidden, &batch).unwrap();
        let loss = total(&log_probs)
            .unwrap()
            .affine(-1.0 / 510.0, 0.0)
            .unwrap();
        let forward = start.elapsed().as_secs_f64();
        let mut gradients = Gradients::default();
        gradients
            .add(&loss.backward().unwrap(), model.trainable())
            .unwrap();
        let backward = start.elapsed().as_secs_f64();
        optimizer.step(&gradients, 1e-4).unwrap();
        last = loss.to_scalar::<f32>().unwrap();
        seconds.push(start.elapsed().as_secs_f64());
        phases = [
            forward,
            backward - forward,
            seconds[seconds.len() - 1] - backward,
        ];
    }
    let processor = (smollm2::processor_seconds() - before) / STEPS as f64;
    seconds.remove(0);
    seconds.sort_unstable_by(f64::total_cmp);
    let median = seconds[seconds.len() / 2];
    println!(
        "{name} training: {median:.3} s and {processor:.2} processor seconds a step, {:.0} tokens/s (forward {:.3}, backward {:.3}, optimiser {:.3}), \
         loss {last:.4}, peak {:.2} GB, {} threads",
        512.0 / median,
        phases[0],
        phases[1],
        phases[2],
        smollm2::peak_gigabytes(),
        rayon::current_num_threads(),
    );
}
