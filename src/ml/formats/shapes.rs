//! Which tensors a LLaMA model has.

use std::path::Path;

use super::FormatError;
use crate::ml::config::LlamaConfig;

/// Longest sequence a file may claim.
const MAX_POSITIONS: usize = 1 << 24;

/// Returns the name and shape of every tensor of a LLaMA model, in the order of the computation.
///
/// The output head `lm_head.weight` is among them only if it is not the embedding matrix. The iterator is
/// lazy, so that a forged number of layers costs nothing until the first missing tensor stops it.
pub fn llama_tensors(config: &LlamaConfig) -> impl Iterator<Item = (String, Vec<usize>)> + use<> {
    let &LlamaConfig {
        vocab_size,
        hidden_size,
        intermediate_size,
        num_layers,
        tie_word_embeddings,
        ..
    } = config;
    let kv_size = config.num_kv_heads * config.head_size();
    let embedding = ("model.embed_tokens.weight", vec![vocab_size, hidden_size]);
    let norm = ("model.norm.weight", vec![hidden_size]);
    let head = ("lm_head.weight", vec![vocab_size, hidden_size]);
    let layers = (0..num_layers).flat_map(move |layer| {
        [
            ("input_layernorm", vec![hidden_size]),
            ("self_attn.q_proj", vec![hidden_size, hidden_size]),
            ("self_attn.k_proj", vec![kv_size, hidden_size]),
            ("self_attn.v_proj", vec![kv_size, hidden_size]),
            ("self_attn.o_proj", vec![hidden_size, hidden_size]),
            ("post_attention_layernorm", vec![hidden_size]),
            ("mlp.gate_proj", vec![intermediate_size, hidden_size]),
            ("mlp.up_proj", vec![intermediate_size, hidden_size]),
            ("mlp.down_proj", vec![hidden_size, intermediate_size]),
        ]
        .map(|(part, shape)| (format!("model.layers.{layer}.{part}.weight"), shape))
    });
    let named = |(name, shape): (&str, Vec<usize>)| (name.to_owned(), shape);
    std::iter::once(named(embedding))
        .chain(layers)
        .chain(std::iter::once(named(norm)))
        .chain((!tie_word_embeddings).then(|| named(head)))
}

/// Checks that a configuration read from a file describes a model.
pub(super) fn check_config(path: &Path, config: &LlamaConfig) -> Result<(), FormatError> {
    let malformed = |reason: String| Err(FormatError::malformed(path, reason));
    for (name, value) in [
        ("vocabulary size", config.vocab_size),
        ("hidden size", config.hidden_size),
        ("intermediate size", config.intermediate_size),
        ("number of layers", config.num_layers),
        ("number of heads", config.num_heads),
        ("number of key/value heads", config.num_kv_heads),
    ] {
        // The upper bound keeps every product of two sizes within 64 bits.
        if value == 0 || value > i32::MAX as usize {
            return malformed(format!("{name} is {value}, expected 1 to {}", i32::MAX));
        }
    }
    if !config.hidden_size.is_multiple_of(config.num_heads) || !config.head_size().is_multiple_of(2)
    {
        return malformed(format!(
            "hidden size {} does not split into {} heads of an even size",
            config.hidden_size, config.num_heads
        ));
    }
    if !config.num_heads.is_multiple_of(config.num_kv_heads) {
        return malformed(format!(
            "{} query heads do not share {} key/value heads evenly",
            config.num_heads, config.num_kv_heads
        ));
    }
    if !(1..=MAX_POSITIONS).contains(&config.max_position_embeddings) {
        return malformed(format!(
            "longest sequence is {}, expected 1 to {MAX_POSITIONS}",
            config.max_position_embeddings
        ));
    }
    if !(config.rope_theta.is_finite() && config.rope_theta > 0.0) {
        return malformed(format!(
            "rotary base is {}, expected a positive number",
            config.rope_theta
        ));
    }
    if !(config.rms_norm_eps.is_finite() && config.rms_norm_eps >= 0.0) {
        return malformed(format!(
            "RMSNorm epsilon is {}, expected a number not below 0",
            config.rms_norm_eps
        ));
    }
    Ok(())
}
