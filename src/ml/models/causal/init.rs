//! Initial values of a model's weights.

use candle_core::{Device, Tensor};

use super::architecture::{Architecture, NormKind, Role};
use super::{CausalLmError, Result};
use crate::ml::parameters::Weights;
use crate::random::Stream;

/// Draws initial weights.
///
/// Norms are one and biases zero; embeddings (and an untied head) are `N(0, 0.05)`; linear layers are `N(0, s)` with
/// `s = 0.04 sqrt(128 / hidden_size)`, those that write to the residual stream divided by
/// `sqrt(2 num_layers)` (Radford et al. 2019, section 2.3).
pub fn init(
    architecture: impl Into<Architecture>,
    stream: &Stream,
    device: &Device,
) -> Result<Weights> {
    let architecture = architecture.into();
    let checked = architecture.check();
    checked.map_err(|reason| CausalLmError::Config { reason })?;
    let projection = 0.04 * (128.0 / architecture.hidden_size as f64).sqrt();
    let residual = projection / (2.0 * architecture.num_layers as f64).sqrt();
    let norm = match architecture.norm.kind {
        NormKind::Rms | NormKind::Layer => 1.0,
        NormKind::RmsPlusOne => 0.0,
    };
    let slots = architecture.slots();
    slots
        .map(|slot| {
            let elements = slot.shape.iter().product();
            let normal = |std: f64| -> Vec<f32> {
                let mut draws = stream.child(&slot.name).at(0);
                let draw = |_| (std * draws.normal()) as f32;
                (0..elements).map(draw).collect()
            };
            let values = match slot.role {
                Role::Norm => vec![norm; elements],
                Role::Bias => vec![0.0; elements],
                Role::Tokens => normal(0.05),
                Role::Other | Role::Linear { writes: false } => normal(projection),
                Role::Linear { writes: true } => normal(residual),
            };
            let values = Tensor::from_vec(values, slot.shape.as_slice(), device)?;
            Ok((slot.name, values))
        })
        .collect()
}
