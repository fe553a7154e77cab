//! Rewards of every prefix of a completion at the shape of SmolLM2-135M: one causal forward pass against scoring each
//! prefix by itself, which is what forward-looking training would cost without the first.
//!
//! `cargo bench --bench ml_rewards`. 4 completions of 48 tokens to prompts of 64, random weights.
#![expect(clippy::print_stdout, reason = "a benchmark's output is for people")]
#![expect(clippy::unwrap_used, reason = "a benchmark may fail at once")]

use candle_core::{Device, Tensor};
use flowgraph::ml::head::{HeadGradient, HeadInit, ScalarHead};
use flowgraph::ml::kernels::process::prepare;
use flowgraph::ml::models::causal::{self, CausalLm, TokenBatch, Training};
use flowgraph::random::Stream;

mod smollm2;

const PROMPT_TOKENS: usize = 64;
const NEW_TOKENS: usize = 48;

fn main() {
    prepare();
    let config = smollm2::config();
    let stream = Stream::new(1, "benchmark");
    let weights = causal::init(&config, &stream, &Device::Cpu).unwrap();
    let model = CausalLm::new(&config, &weights, Training::Frozen).unwrap();
    let normal = HeadInit::Normal(0.05);
    let head = ScalarHead::init(config.hidden_size, true, normal, &stream, &Device::Cpu).unwrap();
    let mut draws = Stream::new(2, "tokens").at(0);
    let rows: Vec<Vec<u32>> = (0..4)
        .map(|_| {
            (0..PROMPT_TOKENS + NEW_TOKENS)
                .map(|_| draws.below(config.vocab_size) as u32)
                .collect()
        })
        .collect();
    let score = |rows: &[Vec<u32>]| -> Tensor {
        let hidden = model.forward(&TokenBatch::right_padded(rows)).unwrap();
        head.apply(&hidden, HeadGradient::Detached).unwrap()
    };

    let start = smollm2::processor_seconds();
    let together = score(&rows).to_vec2::<f32>().unwrap();
    let one_pass = smollm2::processor_seconds() - start;

    let start = smollm2::processor_seconds();
    let mut difference = 0f32;
    for length in PROMPT_TOKENS..=PROMPT_TOKENS + NEW_TOKENS {
        let prefixes: Vec<Vec<u32>> = rows.iter().map(|row| row[..length].to_vec()).collect();
        let alone = score(&prefixes).to_vec2::<f32>().unwrap();
        for (together, alone) in together.iter().zip(&alone) {
            difference = difference.max((together[length - 1] - alone[length - 1]).abs());
        }
    }
    let each_alone = smollm2::processor_seconds() - start;
    println!(
        "rewards of {} prefixes: {one_pass:.2} processor seconds in one pass, {each_alone:.2} one by one: {:.1} times \
         as many; largest difference {difference:e}, peak {:.2} GB",
        4 * (NEW_TOKENS + 1),
        each_alone / one_pass,
        smollm2::peak_gigabytes(),
    );
}
