//! A tiny model in every format, for tests.

use candle_core::{Device, Tensor};
use half::f16;

use super::gguf::writer::{Field, TensorData, gguf};
use super::llama_tensors;
use crate::ml::kernels::rope::RopeLayout;
use crate::ml::models::causal::LlamaConfig;
use crate::ml::parameters::Weights;
use crate::random::Stream;

/// Two layers, two query heads, one key/value head, 24 tokens.
pub(super) fn config() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 24,
        hidden_size: 8,
        intermediate_size: 12,
        num_layers: 2,
        num_heads: 2,
        num_kv_heads: 1,
        rope_theta: 10_000.0,
        rope_layout: RopeLayout::HalfSplit,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        max_position_embeddings: 16,
    }
}

/// Random weights of a configuration.
pub(super) fn weights(config: &LlamaConfig) -> Weights {
    let stream = Stream::new(1, "tiny model");
    let tensors = llama_tensors(config).enumerate();
    let tensors = tensors.map(|(index, (name, shape))| {
        let mut draws = stream.at(index as u64);
        let count = shape.iter().product();
        let values = (0..count).map(|_| draws.normal() as f32).collect();
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
        (name, tensor)
    });
    tensors.collect()
}

/// Asserts that two models have the same weights, bit for bit.
pub(super) fn assert_equal(found: &Weights, expected: &Weights) {
    let names = |weights: &Weights| weights.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected));
    for (name, tensor) in expected {
        assert_eq!(found[name].dims(), tensor.dims(), "{name}");
        assert_eq!(values(&found[name]), values(tensor), "{name}");
    }
}

pub(super) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The bytes of a GGUF file of the tiny model with a byte-level tokenizer; the embedding is in `f16`.
pub(super) fn tiny_gguf() -> Vec<u8> {
    gguf(&metadata(), &tiny_tensors())
}

/// Tensors of [`tiny_gguf`].
pub(super) fn tiny_tensors() -> Vec<TensorData> {
    let config = config();
    weights(&config)
        .iter()
        .map(|(name, tensor)| {
            let sizes = tensor
                .dims()
                .iter()
                .rev()
                .map(|size| *size as u64)
                .collect();
            let half = name.contains("embed_tokens");
            let bytes = values(tensor).into_iter().flat_map(|value| {
                if half {
                    f16::from_f32(value).to_le_bytes().to_vec()
                } else {
                    value.to_le_bytes().to_vec()
                }
            });
            let stored = super::gguf::stored_name(name);
            (stored, sizes, u32::from(half), bytes.collect())
        })
        .collect()
}

/// Metadata of [`tiny_gguf`].
pub(super) fn metadata() -> Vec<(&'static str, Field)> {
    let letters = "abcdefghijklmnopqr".chars().map(String::from);
    let mut tokens = vec!["<|start|>".to_owned(), "<|end|>".to_owned()];
    tokens.extend(letters);
    tokens.extend(["ab", "abc", "\u{120}", "\u{120}ab"].map(str::to_owned));
    let mut kinds = vec![1; tokens.len()];
    kinds[..2].fill(3);
    let merges = ["a b", "ab c", "\u{120} ab"].map(str::to_owned).to_vec();
    vec![
        ("general.architecture", Field::Text("llama")),
        ("llama.block_count", Field::U32(2)),
        ("llama.context_length", Field::U32(16)),
        ("llama.embedding_length", Field::U32(8)),
        ("llama.feed_forward_length", Field::U32(12)),
        ("llama.attention.head_count", Field::U32(2)),
        ("llama.attention.head_count_kv", Field::U32(1)),
        ("llama.attention.layer_norm_rms_epsilon", Field::F32(1e-5)),
        ("llama.rope.freq_base", Field::F32(10_000.0)),
        ("tokenizer.ggml.model", Field::Text("gpt2")),
        ("tokenizer.ggml.pre", Field::Text("smollm")),
        ("tokenizer.ggml.tokens", Field::Texts(tokens)),
        ("tokenizer.ggml.token_type", Field::I32s(kinds)),
        ("tokenizer.ggml.merges", Field::Texts(merges)),
        ("tokenizer.ggml.bos_token_id", Field::U32(0)),
        ("tokenizer.ggml.eos_token_id", Field::U32(1)),
        ("tokenizer.ggml.add_bos_token", Field::Flag(false)),
    ]
}
