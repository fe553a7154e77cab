//! The shape of SmolLM2-135M, and the memory a process used.

use flowgraph::ml::kernels::rope::RopeLayout;
use flowgraph::ml::models::causal::LlamaConfig;

/// Returns the shape.
pub(crate) fn config() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 49_152,
        hidden_size: 576,
        intermediate_size: 1536,
        num_layers: 30,
        num_heads: 9,
        num_kv_heads: 3,
        rope_theta: 100_000.0,
        rope_layout: RopeLayout::HalfSplit,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        max_position_embeddings: 2048,
    }
}

/// Returns the largest resident size so far, or NaN where the kernel does not tell.
pub(crate) fn peak_gigabytes() -> f64 {
    fs_err::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
            line.split_whitespace().nth(1)?.parse::<f64>().ok()
        })
        .map_or(f64::NAN, |kilobytes| kilobytes / 1e6)
}

/// Returns the processor time of all threads so far in seconds, or NaN where the kernel does not tell. On a busy
/// machine it says more than the time on the clock.
pub(crate) fn processor_seconds() -> f64 {
    fs_err::read_to_string("/proc/self/stat")
        .ok()
        .and_then(|status| {
            // utime and stime are fields 14 and 15, in hundredths; the name in field 2 ends with a parenthesis.
            let after_name = status.rsplit(')').next()?;
            let mut fields = after_name.split_whitespace().skip(11);
            let user: f64 = fields.next()?.parse().ok()?;
            let system: f64 = fields.next()?.parse().ok()?;
            Some((user + system) / 100.0)
        })
        .unwrap_or(f64::NAN)
}
