//! Reward-model training on preference pairs (Bradley-Terry).

use candle_core::Tensor;

use super::actions::Actions;
use super::batches::{Epochs, TokenizedCompletion};
use super::flops::{ModelSize, backward_flops, forward_flops};
use super::trained_model::TrainedModel;
use super::update::{OptimizerOptions, Updater};
use super::{Cancel, StepReport, TrainError, Trainer};
use crate::ml::head::{HeadGradient, ScalarHead};
use crate::ml::objectives::Normaliser;
use crate::ml::objectives::bradley_terry::{PairScores, bradley_terry, prefix_length};
use crate::ml::optimizer::{AdamW, Gradients};
use crate::random::Stream;

/// Two completions of one prompt, the first preferred.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizedPair {
    /// The preferred one.
    pub chosen: TokenizedCompletion,
    /// The other one.
    pub rejected: TokenizedCompletion,
}

/// How a reward model is trained.
#[derive(Debug, Clone)]
pub struct RewardOptions {
    /// Pairs in a step.
    pub batch_size: usize,
    /// Pairs in a forward pass.
    pub micro_batch: usize,
    /// AdamW and its learning rate.
    pub optimizer: OptimizerOptions,
    /// Weight of the loss at a random prefix, the same fraction of both completions: it makes the scores of
    /// unfinished completions mean something, which forward-looking training needs. 0 leaves it out.
    pub prefix_weight: f64,
}

/// Training of a trunk with a scalar head.
pub struct RewardTrainer {
    model: TrainedModel,
    head: ScalarHead,
    pairs: Vec<TokenizedPair>,
    options: RewardOptions,
    updater: Updater,
    epochs: Epochs,
    fractions: Stream,
    size: ModelSize,
    cancel: Cancel,
}

impl RewardTrainer {
    /// Prepares a training on `pairs`.
    pub fn new(
        model: TrainedModel,
        head: ScalarHead,
        pairs: Vec<TokenizedPair>,
        options: RewardOptions,
        stream: &Stream,
    ) -> Result<Self, TrainError> {
        if pairs.is_empty() {
            return Err(TrainError::Data(
                "there are no preference pairs to train on: the split is empty".to_owned(),
            ));
        }
        let head_name = model.llama.config().head_name();
        // Scores are read off hidden states: an output head of its own has no part in them.
        let trunk = model.llama.trainable().iter();
        let mut parameters: Vec<_> = trunk
            .filter(|(name, _)| *name != head_name)
            .cloned()
            .collect();
        parameters.extend(head.trainable("head."));
        Ok(Self {
            cancel: Cancel::default(),
            updater: Updater::new(parameters, Vec::new(), options.optimizer.clone())?,
            epochs: Epochs::new(pairs.len(), options.batch_size, stream.child("batches")),
            fractions: stream.child("prefix fractions"),
            size: ModelSize::of(model.llama.config(), model.adapter.is_none()),
            model,
            head,
            pairs,
            options,
        })
    }

    /// Returns the trunk in training.
    pub fn model(&self) -> &TrainedModel {
        &self.model
    }

    /// Returns the head in training.
    pub fn head(&self) -> &ScalarHead {
        &self.head
    }
}

impl Trainer for RewardTrainer {
    fn step(&mut self, step: u64) -> Result<StepReport, TrainError> {
        let items = self.epochs.at(step);
        let mut draws = self.fractions.at(step);
        let fractions: Vec<f64> = items.iter().map(|_| draws.uniform()).collect();
        let total = items.len() as f64;
        let mut gradients = Gradients::default();
        let mut report = StepReport::default();
        let (mut loss, mut accuracy, mut margin, mut flops) = (0.0, 0.0, 0.0, 0.0);
        let chunks = items
            .chunks(self.options.micro_batch)
            .zip(fractions.chunks(self.options.micro_batch));
        for (index, (chunk, fractions)) in chunks.enumerate() {
            self.cancel.check()?;
            let count = chunk.len();
            let rows: Vec<&TokenizedCompletion> = chunk
                .iter()
                .map(|item| &self.pairs[*item].chosen)
                .chain(chunk.iter().map(|item| &self.pairs[*item].rejected))
                .collect();
            let actions = Actions::new(&rows);
            let dropout = self
                .model
                .dropout(step * self.options.batch_size as u64 + index as u64);
            let hidden = self
                .model
                .llama
                .forward_training(&actions.batch, dropout.as_ref())?;
            let scores = actions.per_state(&self.head.apply(&hidden, HeadGradient::Joint)?)?;
            let columns = scores.dim(1)?;
            let at = |state: &dyn Fn(usize) -> usize| -> candle_core::Result<(Tensor, Tensor)> {
                let places: Vec<u32> = (0..2 * count)
                    .map(|row| (row * columns + state(row)) as u32)
                    .collect();
                let picked = scores
                    .flatten_all()?
                    .index_select(&Tensor::new(places, scores.device())?, 0)?;
                Ok((picked.narrow(0, 0, count)?, picked.narrow(0, count, count)?))
            };
            let (chosen, rejected) = at(&|row| actions.lengths[row])?;
            let whole = PairScores {
                chosen: &chosen,
                rejected: &rejected,
            };
            let prefix = (self.options.prefix_weight > 0.0)
                .then(|| at(&|row| prefix_length(fractions[row % count], actions.lengths[row])))
                .transpose()?;
            let prefix = prefix.as_ref().map(|(chosen, rejected)| {
                (PairScores { chosen, rejected }, self.options.prefix_weight)
            });
            let found = bradley_terry(whole, prefix, Normaliser::Total(total))?;
            loss += f64::from(found.loss.to_scalar::<f32>()?);
            accuracy += found.accuracy * found.count / total;
            margin += found.margin * found.count / total;
            gradients.add_of(&found.loss, &self.updater.parameters())?;
            flops += forward_flops(&self.size, actions.row_lengths());
            report.trained_tokens += actions.row_lengths().sum::<usize>() as u64;
        }
        report.flops = flops + backward_flops(&self.size, flops);
        report.metrics.insert("loss", loss);
        report.metrics.insert("accuracy", accuracy);
        report.metrics.insert("margin", margin);
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

    use super::super::fixture;
    use super::*;
    use crate::ml::head::HeadInit;
    use crate::ml::models::causal::LlamaConfig;

    #[test]
    fn all_of_a_model_is_trained_but_an_output_head_of_its_own() {
        let config = LlamaConfig {
            tie_word_embeddings: false,
            ..fixture::config()
        };
        let (model, _) = fixture::models(&config, None);
        let stream = Stream::new(5, "reward trainer");
        let normal = HeadInit::Normal(0.1);
        let head =
            ScalarHead::init(config.hidden_size, false, normal, &stream, &Device::Cpu).unwrap();
        let completion = |tokens: &[u32]| TokenizedCompletion {
            tokens: tokens.to_vec(),
            prompt_length: 2,
        };
        let pairs = vec![TokenizedPair {
            chosen: completion(&[1, 4, 5, 2]),
            rejected: completion(&[1, 4, 7, 8, 2]),
        }];
        let options = RewardOptions {
            batch_size: 1,
            micro_batch: 1,
            optimizer: OptimizerOptions::constant(1e-2),
            prefix_weight: 0.5,
        };
        let mut trainer = RewardTrainer::new(model.clone(), head, pairs, options, &stream).unwrap();
        let start = model.llama.trainable().to_vec();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let before: Vec<Vec<f32>> = start.iter().map(|(_, var)| values(var)).collect();
        let losses: Vec<f64> = (0..4)
            .map(|step| trainer.step(step).unwrap().metrics["loss"])
            .collect();
        assert!(losses[3] < losses[0], "{losses:?}");
        for ((name, var), before) in start.iter().zip(&before) {
            assert_eq!(values(var) == *before, name == "lm_head.weight", "{name}");
        }
    }
}
