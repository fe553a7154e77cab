//! Encoders with a classification head.

use candle_core::{Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::{
    Activation, Encoder, EncoderConfig, EncoderError, Family, PackedTokens, SentencePooling,
};
use crate::ml::kernels::linear::linear;
use crate::ml::kernels::sums::add_bias;
use crate::ml::parameters::{ParameterError, Parameters, Weights};
use crate::random::Stream;

/// Standard deviation of a new head's weights, as in BERT.
const INIT_STD: f64 = 0.02;

/// How a row becomes one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The mean of its last hidden states, as in sentence encoders.
    #[default]
    Mean,
    /// The last hidden state of its first token, as in the families' own classifiers.
    FirstToken,
}

/// Shape of a head: optionally a dense layer with an activation, then a linear layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassifierHead {
    /// What the head is applied to.
    pub pooling: Pooling,
    /// What follows a dense layer that comes first, if one does.
    pub dense: Option<Activation>,
    /// Number of classes.
    pub classes: usize,
}

impl ClassifierHead {
    /// A linear head on the mean.
    pub fn mean(classes: usize) -> Self {
        Self {
            pooling: Pooling::Mean,
            dense: None,
            classes,
        }
    }

    /// The head of a family's class for classification in `transformers`.
    pub fn of(family: &Family, classes: usize) -> Self {
        Self {
            pooling: Pooling::FirstToken,
            dense: Some(family.head.activation),
            classes,
        }
    }

    /// Tells whether a weight of a classifier is the head's.
    pub fn is_part(name: &str) -> bool {
        ["classifier.", "pre_classifier."]
            .iter()
            .any(|head| name.starts_with(head))
    }

    /// Returns the name and shape of every weight of the head.
    pub fn tensors(&self, config: &EncoderConfig) -> Vec<(String, Vec<usize>)> {
        let (hidden_size, names) = (config.hidden_size, &config.family.head);
        let layer = |name: &str, outputs: usize| {
            [
                (format!("{name}.weight"), vec![outputs, hidden_size]),
                (format!("{name}.bias"), vec![outputs]),
            ]
        };
        let dense = self.dense.map(|_| layer(names.dense, hidden_size));
        let out = layer(names.out, self.classes);
        dense.into_iter().flatten().chain(out).collect()
    }

    /// Draws a new head: weights normal with deviation 0.02, biases zero.
    pub fn init(
        &self,
        config: &EncoderConfig,
        stream: &Stream,
        device: &Device,
    ) -> candle_core::Result<Weights> {
        let stream = stream.child("classifier head");
        let tensors = self.tensors(config).into_iter().enumerate();
        let tensors = tensors.map(|(index, (name, shape))| {
            let mut draws = stream.at(index as u64);
            let is_bias = shape.len() == 1;
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|_| {
                    if is_bias {
                        0.0
                    } else {
                        (draws.normal() * INIT_STD) as f32
                    }
                })
                .collect();
            Ok((name, Tensor::from_vec(values, shape, device)?))
        });
        tensors.collect()
    }
}

/// An encoder with a classification head.
#[derive(Debug, Clone)]
pub struct EncoderClassifier {
    encoder: Encoder,
    shape: ClassifierHead,
    head: Parameters,
}

impl EncoderClassifier {
    /// Builds a classifier from the weights of encoder and head; `trainable` says which become variables.
    pub fn new(
        config: &EncoderConfig,
        shape: &ClassifierHead,
        weights: &Weights,
        trainable: impl Fn(&str) -> bool,
    ) -> Result<Self, EncoderError> {
        let mut head = Weights::new();
        for (name, _) in shape.tensors(config) {
            let weight = weights.get(&name);
            let weight = weight.ok_or_else(|| ParameterError::Missing { name: name.clone() })?;
            head.insert(name, weight.clone());
        }
        let built = Self {
            encoder: Encoder::new(config, weights, &trainable)?,
            shape: shape.clone(),
            head: Parameters::new(&head, &trainable)?,
        };
        for (name, expected) in shape.tensors(config) {
            built.head.get(&name, &expected)?;
        }
        Ok(built)
    }

    /// Returns the encoder.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Returns the shape of the head.
    pub fn head(&self) -> &ClassifierHead {
        &self.shape
    }

    /// Returns the trainable variables of encoder and head in name order.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        let mut variables = self.encoder.trainable();
        variables.extend(self.head.trainable());
        variables.sort_by(|(first, _), (second, _)| first.cmp(second));
        variables
    }

    /// Returns all weights as they are now.
    pub fn weights(&self) -> Result<Weights, EncoderError> {
        let mut weights = self.encoder.parameters.weights()?;
        weights.extend(self.head.weights()?);
        Ok(weights)
    }

    /// Returns the logits, (rows, classes).
    pub fn logits(&self, batch: &PackedTokens) -> Result<Tensor, EncoderError> {
        let config = &self.encoder.config;
        let layer = |x: &Tensor, name: &str, outputs: usize| {
            let weight = format!("{name}.weight");
            let weight = self.head.get(&weight, &[outputs, config.hidden_size])?;
            let bias = self.head.get(&format!("{name}.bias"), &[outputs])?;
            Ok::<_, EncoderError>(add_bias(&linear(x, weight)?, bias)?)
        };
        let mut pooled = match self.shape.pooling {
            Pooling::Mean => self.encoder.pooled(batch, &[SentencePooling::Mean], 0)?,
            Pooling::FirstToken => {
                let hidden = self.encoder.forward(batch)?;
                hidden.index_select(&batch.starts(hidden.device())?, 0)?
            }
        };
        let names = &config.family.head;
        if let Some(activation) = self.shape.dense {
            pooled = activation.apply(&layer(&pooled, names.dense, config.hidden_size)?)?;
        }
        layer(&pooled, names.out, self.shape.classes)
    }
}
