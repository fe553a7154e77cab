//! Named weights of a model, some of them trainable.

use std::collections::BTreeMap;

use candle_core::Tensor;

/// Weights by name, in name order (so that norms and optimiser states have one order).
pub type Weights = BTreeMap<String, Tensor>;
