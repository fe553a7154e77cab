//! Weights such as those of a checkpoint.

use candle_core::{DType, Device};
use flowgraph::ml::models::causal::{self, LlamaConfig};
use flowgraph::ml::parameters::Weights;
use flowgraph::random::Stream;

/// Returns random weights: bfloat16 numbers in `f32`, as those of most checkpoints are, or such as a training of all
/// weights leaves with WEIGHTS=f32.
pub(crate) fn weights(config: &LlamaConfig, stream: &Stream) -> Weights {
    let weights = causal::init(config, stream, &Device::Cpu).unwrap();
    if std::env::var("WEIGHTS").is_ok_and(|dtype| dtype == "f32") {
        return weights;
    }
    let rounded = weights.into_iter().map(|(name, weight)| {
        let short = weight.to_dtype(DType::BF16).unwrap();
        (name, short.to_dtype(DType::F32).unwrap())
    });
    rounded.collect()
}
