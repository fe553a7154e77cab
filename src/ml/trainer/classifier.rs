//! Training of text classifiers: cross-entropy on encoders with a head.

use candle_core::{D, Tensor};

use super::batches::Epochs;
use super::update::{OptimizerOptions, Updater};
use super::{Cancel, StepReport, TrainError, Trainer};
use crate::ml::kernels::pointwise::log_softmax;
use crate::ml::kernels::sums;
use crate::ml::models::encoder::{EncoderClassifier, PackedTokens};
use crate::ml::optimizer::{AdamW, Gradients};
use crate::random::Stream;

/// A text as tokens, and its class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClassifiedTokens {
    /// Tokens, special ones included.
    pub tokens: Vec<u32>,
    /// Index of the class.
    pub class: usize,
}

/// How a classifier is trained.
#[derive(Debug, Clone)]
pub struct ClassifierOptions {
    /// Texts in a step.
    pub batch_size: usize,
    /// Texts in a forward pass.
    pub micro_batch: usize,
    /// AdamW and its learning rate.
    pub optimizer: OptimizerOptions,
    /// Weight of the loss of a text of each class.
    pub class_weights: Vec<f64>,
}

/// Returns weights that make every class count the same in all: texts / (classes x texts of the class).
///
/// A class without texts gets 0.
pub fn balanced_weights(rows: &[ClassifiedTokens], classes: usize) -> Vec<f64> {
    let mut counts = vec![0usize; classes];
    for row in rows {
        counts[row.class] += 1;
    }
    let weight = |count: usize| match count {
        0 => 0.0,
        count => rows.len() as f64 / (classes * count) as f64,
    };
    counts.into_iter().map(weight).collect()
}

/// Training of an encoder with a classification head.
pub struct ClassifierTrainer {
    classifier: EncoderClassifier,
    rows: Vec<ClassifiedTokens>,
    options: ClassifierOptions,
    updater: Updater,
    epochs: Epochs,
    flops_per_token: f64,
    cancel: Cancel,
}

impl ClassifierTrainer {
    /// Prepares a training on `rows`.
    pub fn new(
        classifier: EncoderClassifier,
        rows: Vec<ClassifiedTokens>,
        options: ClassifierOptions,
        stream: &Stream,
    ) -> Result<Self, TrainError> {
        if rows.is_empty() {
            return Err(TrainError::Data(
                "there are no texts to train on: the split is empty".to_owned(),
            ));
        }
        let config = classifier.encoder().config();
        let (hidden, inner) = (config.hidden_size as f64, config.intermediate_size as f64);
        let matrices = config.num_layers as f64 * (4.0 * hidden * hidden + 2.0 * hidden * inner);
        // Forward 2 a weight; backward as much for the inputs, and again for trained weights.
        let passes = if classifier.encoder().trainable().is_empty() {
            2.0
        } else {
            6.0
        };
        Ok(Self {
            cancel: Cancel::default(),
            updater: Updater::new(
                classifier.trainable(),
                Vec::new(),
                options.optimizer.clone(),
            )?,
            epochs: Epochs::new(rows.len(), options.batch_size, stream.child("batches")),
            flops_per_token: passes * matrices,
            classifier,
            rows,
            options,
        })
    }

    /// Returns the classifier in training.
    pub fn classifier(&self) -> &EncoderClassifier {
        &self.classifier
    }
}

impl Trainer for ClassifierTrainer {
    fn step(&mut self, step: u64) -> Result<StepReport, TrainError> {
        let items = self.epochs.at(step);
        let rows: Vec<&ClassifiedTokens> = items.iter().map(|item| &self.rows[*item]).collect();
        let weight = |row: &ClassifiedTokens| self.options.class_weights[row.class];
        // As in torch.nn.CrossEntropyLoss: the weighted mean.
        let total: f64 = rows.iter().map(|row| weight(row)).sum();
        let mut gradients = Gradients::default();
        let mut report = StepReport::default();
        let (mut loss, mut right) = (0.0, 0);
        for chunk in rows.chunks(self.options.micro_batch) {
            self.cancel.check()?;
            let tokens: Vec<&[u32]> = chunk.iter().map(|row| row.tokens.as_slice()).collect();
            let logits = self.classifier.logits(&PackedTokens::new(&tokens))?;
            let device = logits.device();
            let classes: Vec<u32> = chunk.iter().map(|row| row.class as u32).collect();
            let weights: Vec<f32> = chunk
                .iter()
                .map(|row| (weight(row) / total) as f32)
                .collect();
            let classes_at = Tensor::new(classes.as_slice(), device)?.unsqueeze(1)?;
            let log_probs = log_softmax(&logits)?;
            let found = log_probs.gather(&classes_at, 1)?.squeeze(1)?;
            let found = sums::total(&(found * Tensor::new(weights, device)?)?)?.neg()?;
            loss += f64::from(found.to_scalar::<f32>()?);
            let best = logits.argmax(D::Minus1)?.to_vec1::<u32>()?;
            right += best.iter().zip(&classes).filter(|(a, b)| a == b).count();
            gradients.add_of(&found, &self.updater.parameters())?;
            report.trained_tokens += tokens.iter().map(|row| row.len() as u64).sum::<u64>();
        }
        report.flops = self.flops_per_token * report.trained_tokens as f64;
        report.metrics.insert("loss", loss);
        report
            .metrics
            .insert("accuracy", right as f64 / rows.len() as f64);
        self.updater.finish(step, &gradients, &mut report)?;
        Ok(report)
    }

    fn optimizer(&mut self) -> &mut AdamW {
        self.updater.optimizer()
    }

    fn halve_micro_batch(&mut self) -> Option<usize> {
        super::halve(&mut self.options.micro_batch)
    }

    fn cancelled_by(&mut self, cancel: Cancel) {
        self.cancel = cancel;
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ml::models::encoder::{
        Activation, ClassifierHead, EncoderConfig, Family, Positions,
    };
    use crate::ml::parameters::Weights;
    use crate::ml::trainer::parameters;

    fn config() -> EncoderConfig {
        EncoderConfig {
            family: Family::of("bert").unwrap(),
            vocab_size: 12,
            hidden_size: 8,
            intermediate_size: 16,
            num_layers: 1,
            num_heads: 2,
            max_position_embeddings: 8,
            positions: Positions::FromZero,
            token_types: Some(1),
            padding_id: None,
            distances: false,
            activation: Activation::Gelu,
            layer_norm_eps: 1e-12,
        }
    }

    fn rows() -> Vec<ClassifiedTokens> {
        // The class is whether token 5 occurs.
        (0..40u32)
            .map(|index| {
                let class = usize::from(index % 4 == 0);
                let tokens = vec![1, 6 + index % 6, if class == 1 { 5 } else { 4 }, 2];
                ClassifiedTokens { tokens, class }
            })
            .collect()
    }

    fn trainer(micro_batch: usize, trains_encoder: bool) -> ClassifierTrainer {
        trainer_of(&config(), micro_batch, trains_encoder)
    }

    fn trainer_of(
        config: &EncoderConfig,
        micro_batch: usize,
        trains_encoder: bool,
    ) -> ClassifierTrainer {
        let stream = Stream::new(3, "test");
        let mut weights = Weights::new();
        for (index, (name, shape)) in config.tensors().enumerate() {
            let mut draws = stream.at(index as u64);
            let norm = shape.len() == 1 && name.ends_with(".weight");
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|_| {
                    if norm {
                        1.0
                    } else {
                        0.1 * draws.normal() as f32
                    }
                })
                .collect();
            weights.insert(name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
        }
        let head = ClassifierHead::mean(2);
        weights.extend(head.init(config, &stream, &Device::Cpu).unwrap());
        let trainable = |name: &str| trains_encoder || ClassifierHead::is_part(name);
        let classifier = EncoderClassifier::new(config, &head, &weights, trainable).unwrap();
        let rows = rows();
        let options = ClassifierOptions {
            batch_size: 8,
            micro_batch,
            optimizer: OptimizerOptions::constant(0.02),
            class_weights: balanced_weights(&rows, 2),
        };
        ClassifierTrainer::new(classifier, rows, options, &stream).unwrap()
    }

    #[test]
    fn classes_count_the_same_whatever_their_share() {
        assert_eq!(balanced_weights(&rows(), 2), [40.0 / 60.0, 2.0]);
        assert_eq!(balanced_weights(&rows()[1..4], 2), [0.5, 0.0]);
    }

    #[test]
    fn a_classifier_learns_and_every_trained_weight_moves() {
        let distilbert = EncoderConfig {
            family: Family::of("distilbert").unwrap(),
            token_types: None,
            ..config()
        };
        let mpnet = EncoderConfig {
            family: Family::of("mpnet").unwrap(),
            positions: Positions::AfterPadding(1),
            distances: true,
            ..distilbert.clone()
        };
        for config in [config(), distilbert, mpnet] {
            let mut trainer = trainer_of(&config, 8, true);
            let before = parameters(&mut trainer).unwrap();
            let first = trainer.step(0).unwrap().metrics["loss"];
            let reports: Vec<_> = (1..30).map(|step| trainer.step(step).unwrap()).collect();
            let last = &reports[28].metrics;
            assert!(
                last["loss"] < 0.2 * first && last["accuracy"] == 1.0,
                "{first} {last:?}"
            );
            for (name, tensor) in parameters(&mut trainer).unwrap() {
                let values =
                    |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                assert_ne!(values(&tensor), values(&before[&name]), "{name}");
            }
        }
    }

    #[test]
    fn micro_batches_change_rounding_only() {
        let (mut whole, mut parts) = (trainer(8, true), trainer(3, true));
        let (first, second) = (whole.step(0).unwrap(), parts.step(0).unwrap());
        for name in ["loss", "grad_norm"] {
            let (a, b) = (first.metrics[name], second.metrics[name]);
            assert!((a - b).abs() < 1e-5 * a.abs(), "{name}: {a} {b}");
        }
    }

    #[test]
    fn a_frozen_encoder_trains_the_head_alone() {
        let mut trainer = trainer(8, false);
        let names: Vec<String> = parameters(&mut trainer).unwrap().into_keys().collect();
        assert_eq!(
            names,
            ["classifier.out_proj.bias", "classifier.out_proj.weight"]
        );
        trainer.step(0).unwrap();
    }
}
