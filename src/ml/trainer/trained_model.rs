//! The model that a training changes: all of its weights, or an adapter.

use crate::ml::adapter::{Adapter, AdapterError, LoraConfig};
use crate::ml::models::causal::{Architecture, CausalLm, CausalLmError, DropoutKey, Training};
use crate::ml::parameters::{Weights, device_of};
use crate::random::Stream;

/// A model in training.
#[derive(Debug, Clone)]
pub struct TrainedModel {
    /// The model; its trainable variables are those of the adapter, if there is one.
    pub llama: CausalLm,
    /// The adapter in training.
    pub adapter: Option<Adapter>,
    dropout: Stream,
}

impl TrainedModel {
    /// Prepares a training of `base`.
    ///
    /// With `lora`, an adapter is trained: a copy of `start` if that has the same configuration, otherwise a new
    /// one. Without, all weights are. `start` of another configuration must be merged into `base` before.
    pub fn new(
        config: impl Into<Architecture>,
        base: &Weights,
        start: Option<&Adapter>,
        lora: Option<&LoraConfig>,
        stream: &Stream,
    ) -> Result<Self, CausalLmError> {
        let device = device_of(base);
        let adapter = match (lora, start) {
            (None, _) => None,
            (Some(lora), Some(start)) if start.config() == lora => {
                let weights = start.parameters().weights().map_err(AdapterError::from)?;
                Some(Adapter::from_weights(lora, base, &weights, &device)?)
            }
            (Some(lora), _) => Some(Adapter::init(
                lora,
                base,
                &stream.child("adapter"),
                &device,
            )?),
        };
        let training = adapter.as_ref().map_or(Training::Full, Training::Adapter);
        Ok(Self {
            llama: CausalLm::new(config, base, training)?,
            dropout: stream.child("dropout"),
            adapter,
        })
    }

    /// Returns the masks for one forward pass, if the adapter drops anything.
    pub fn dropout(&self, counter: u64) -> Option<DropoutKey> {
        let drops = self
            .adapter
            .as_ref()
            .is_some_and(|adapter| adapter.config().dropout > 0.0);
        drops.then(|| DropoutKey {
            stream: self.dropout.clone(),
            counter,
        })
    }
}
