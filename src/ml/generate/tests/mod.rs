//! Generation with tiny models: what is drawn, and that nothing but a row's own prompt and key has a part in it.

mod bits;
mod choices;
mod draws;
mod ends;
mod recompute;
mod recorded;

use std::ops::ControlFlow;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::*;
use crate::ml::adapter::{Adapter, LoraConfig};
use crate::ml::kernels::rope::RopeLayout;
use crate::ml::models::causal::{self, CausalLm, LlamaConfig, Training};
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
    wide_model_of(|weight| weight)
}

/// The same, of weights that are bfloat16 numbers, as those of checkpoints.
fn stored_model() -> CausalLm {
    wide_model_of(|weight| {
        let short = weight.to_dtype(DType::BF16).unwrap();
        short.to_dtype(DType::F32).unwrap()
    })
}

fn wide_model_of(changed: impl Fn(Tensor) -> Tensor) -> CausalLm {
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
        *weight = changed(weight.affine(3.0, 0.0).unwrap());
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
