//! Which tensors a LLaMA model has.

use std::path::Path;

use super::FormatError;
use crate::ml::models::causal::Architecture;
use crate::ml::models::causal::LlamaConfig;

/// Returns the name and shape of every tensor of a LLaMA model, in the order of the computation.
///
/// The output head `lm_head.weight` is among them only if it is not the embedding matrix.
pub fn llama_tensors(config: &LlamaConfig) -> impl Iterator<Item = (String, Vec<usize>)> + use<> {
    let architecture = Architecture::from(config);
    let slots: Vec<_> = architecture.slots().collect();
    slots.into_iter().map(|slot| (slot.name, slot.shape))
}

/// Checks that a configuration read from a file describes a model.
pub(super) fn check_config(path: &Path, config: &LlamaConfig) -> Result<(), FormatError> {
    let checked = config.check();
    checked.map_err(|reason| FormatError::malformed(path, reason))
}
