//! Tiny models for tests of trainers, and what their gradients must be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Tensor, Var};

use super::rewards::{Answer, Rewards};
use super::trained_model::TrainedModel;
use super::{ModelSize, TrainError};
use crate::ml::adapter::{Adapter, LoraConfig};
use crate::ml::kernels::rope::RopeLayout;
use crate::ml::models::causal::LlamaConfig;
use crate::ml::models::causal::{self, CausalLm, TokenBatch, Training};
use crate::ml::optimizer::Gradients;
use crate::ml::parameters::{Weights, to_safetensors};
use crate::random::Stream;

pub(super) fn config() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 16,
        hidden_size: 16,
        intermediate_size: 24,
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

/// Wide enough for parallel products.
pub(super) fn wide_config() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 300,
        hidden_size: 64,
        intermediate_size: 160,
        ..config()
    }
}

pub(super) fn lora() -> LoraConfig {
    LoraConfig {
        rank: 2,
        alpha: 4.0,
        dropout: 0.25,
        target_modules: vec!["q_proj".into(), "down_proj".into()],
        ..LoraConfig::default()
    }
}

/// A model to train and the frozen one it starts from; with `lora` both have an adapter that does something.
pub(super) fn models(config: &LlamaConfig, lora: Option<&LoraConfig>) -> (TrainedModel, CausalLm) {
    let stream = Stream::new(3, "tiny");
    let mut weights = causal::init(config, &stream, &Device::Cpu).unwrap();
    // As drawn, they are so small that all tokens are about equally probable.
    for weight in weights.values_mut().filter(|weight| weight.rank() == 2) {
        *weight = weight.affine(3.0, 0.0).unwrap();
    }
    // An adapter that does something, for a training to continue.
    let adapter = lora.map(|lora| {
        let adapter = Adapter::init(lora, &weights, &stream, &Device::Cpu).unwrap();
        for (name, var) in adapter.parameters().trainable() {
            let mut draws = stream.child(&name).at(1);
            let values: Vec<f32> = (0..var.elem_count())
                .map(|_| 0.3 * draws.normal() as f32)
                .collect();
            let values = Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap();
            var.set(&values).unwrap();
        }
        adapter
    });
    let training = adapter.as_ref().map_or(Training::Frozen, Training::Adapter);
    let reference = CausalLm::new(config, &weights, training)
        .unwrap()
        .detached();
    let model = TrainedModel::new(config, &weights, adapter.as_ref(), lora, &stream).unwrap();
    (model, reference)
}

/// Rewards that count a token, wherever it stands.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) token: u32,
    pub(super) size: Option<ModelSize>,
    /// Set once rewards are asked for.
    pub(super) asked: Arc<AtomicBool>,
}

impl Counted {
    pub(super) fn boxed(token: u32) -> Box<Self> {
        Box::new(Self {
            token,
            ..Self::default()
        })
    }
}

impl Rewards for Counted {
    fn of_completions(&self, answers: &[Answer<'_>]) -> Result<Vec<f64>, TrainError> {
        self.asked.store(true, Ordering::Relaxed);
        let count = |answer: &Answer<'_>| {
            let tokens = answer.completion.tokens.iter();
            let counted = tokens.filter(|token| **token == self.token);
            counted.count() as f64
        };
        Ok(answers.iter().map(count).collect())
    }

    fn of_prefixes(
        &self,
        _answers: &[Answer<'_>],
        batch: &TokenBatch,
    ) -> Result<Tensor, TrainError> {
        let mut rewards = Vec::with_capacity(batch.tokens().len());
        for row in batch.tokens().chunks(batch.time()) {
            let mut count = 0f32;
            rewards.extend(row.iter().map(|token| {
                count += f32::from(u8::from(*token == self.token));
                count
            }));
        }
        let shape = (batch.rows(), batch.time());
        Ok(Tensor::from_vec(rewards, shape, &Device::Cpu)?)
    }

    fn size(&self) -> Option<ModelSize> {
        self.size
    }
}

pub(super) fn bits(weights: &Weights) -> Vec<(String, Vec<u8>)> {
    weights
        .iter()
        .map(|(name, tensor)| {
            let one = Weights::from([(String::from("t"), tensor.clone())]);
            (name.clone(), to_safetensors(&one).unwrap())
        })
        .collect()
}

/// The largest difference between two gradients of a parameter, over the larger one's largest entry.
pub(super) fn difference(a: &Gradients, b: &Gradients, name: &str) -> f64 {
    let values = |gradients: &Gradients| -> Vec<f32> {
        let gradient = gradients.get(name).unwrap();
        gradient.flatten_all().unwrap().to_vec1().unwrap()
    };
    let (a, b) = (values(a), values(b));
    let largest = a
        .iter()
        .chain(&b)
        .fold(0f32, |most, value| most.max(value.abs()));
    let apart = a
        .iter()
        .zip(&b)
        .fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(largest > 0.0, "`{name}` has no gradient");
    f64::from(apart / largest)
}

/// Asserts of every parameter that its gradient is not zero, and that the loss grows along it by its norm, as a
/// central difference says.
pub(super) fn assert_slopes(
    parameters: &[(String, Var)],
    gradients: &Gradients,
    mut loss: impl FnMut() -> f64,
) {
    assert!(!parameters.is_empty());
    for (name, var) in parameters {
        let gradient = gradients.get(name).unwrap();
        let square = gradient.sqr().unwrap().sum_all().unwrap();
        let norm = f64::from(square.to_scalar::<f32>().unwrap()).sqrt();
        assert!(norm > 0.0, "`{name}` has no gradient");
        let start = var.as_detached_tensor().copy().unwrap();
        let direction = (gradient / norm).unwrap();
        let mut at = |step: f64| {
            var.set(&(&start + (&direction * step).unwrap()).unwrap())
                .unwrap();
            loss()
        };
        const STEP: f64 = 4e-3;
        let (up, down) = (at(STEP), at(-STEP));
        let half = at(STEP / 2.0) - at(-STEP / 2.0);
        var.set(&start).unwrap();
        // Richardson's extrapolation: the third derivative drops out.
        let slope = (8.0 * half - (up - down)) / (6.0 * STEP);
        // The loss is an f32.
        let noise = 4.0 * f64::from(f32::EPSILON) * up.abs().max(1.0) / STEP;
        assert!(
            norm > 2.0 * noise,
            "`{name}`: gradient {norm} is too small to be checked"
        );
        assert!(
            (slope - norm).abs() < 0.02 * norm + noise,
            "`{name}`: gradient {norm}, difference {slope}"
        );
    }
}
