//! The adapter of the benches that train one.

use flowgraph::ml::adapter::LoraConfig;

/// Returns rank 16 on all projections.
pub(crate) fn config() -> LoraConfig {
    LoraConfig {
        rank: 16,
        alpha: 32.0,
        dropout: 0.0,
        target_modules: [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ]
        .map(str::to_owned)
        .to_vec(),
        ..LoraConfig::default()
    }
}
