//! Supervised training: pre-training on whole documents, fine-tuning on completions.

use super::batches::{Epochs, TokenizedCompletion};
use super::flops::{ModelSize, backward_flops, forward_flops};
use super::trained_model::TrainedModel;
use super::update::{OptimizerOptions, Updater};
use super::{Cancel, StepReport, TrainError, Trainer};
use crate::ml::models::causal::TokenBatch;
use crate::ml::objectives::Normaliser;
use crate::ml::objectives::supervised::{completion_mask, supervised};
use crate::ml::optimizer::{AdamW, Gradients};
use crate::random::Stream;

/// How a supervised training goes.
#[derive(Debug, Clone)]
pub struct SupervisedOptions {
    /// Rows in a step.
    pub batch_size: usize,
    /// Rows in a forward pass; gradients are summed over the passes of a step.
    pub micro_batch: usize,
    /// AdamW and its learning rate.
    pub optimizer: OptimizerOptions,
    /// Whether prompts are learnt as well.
    pub learn_prompts: bool,
}

/// Next-token training on rows of tokens.
pub struct SupervisedTrainer {
    model: TrainedModel,
    rows: Vec<TokenizedCompletion>,
    options: SupervisedOptions,
    updater: Updater,
    epochs: Epochs,
    size: ModelSize,
    cancel: Cancel,
}

impl SupervisedTrainer {
    /// Prepares a training on `rows`.
    pub fn new(
        model: TrainedModel,
        rows: Vec<TokenizedCompletion>,
        options: SupervisedOptions,
        stream: &Stream,
    ) -> Result<Self, TrainError> {
        if rows.is_empty() {
            return Err(TrainError::Data(
                "there is nothing to train on: the split is empty".to_owned(),
            ));
        }
        Ok(Self {
            cancel: Cancel::default(),
            updater: Updater::new(
                model.llama.trainable().to_vec(),
                Vec::new(),
                options.optimizer.clone(),
            )?,
            epochs: Epochs::new(rows.len(), options.batch_size, stream.child("batches")),
            size: ModelSize::of(model.llama.config(), model.adapter.is_none()),
            model,
            rows,
            options,
        })
    }

    /// Returns the model in training.
    pub fn model(&self) -> &TrainedModel {
        &self.model
    }

    fn prompt_length(&self, row: &TokenizedCompletion) -> usize {
        if self.options.learn_prompts {
            1
        } else {
            row.prompt_length
        }
    }
}

impl Trainer for SupervisedTrainer {
    fn step(&mut self, step: u64) -> Result<StepReport, TrainError> {
        let items = self.epochs.at(step);
        let rows: Vec<&TokenizedCompletion> = items.iter().map(|item| &self.rows[*item]).collect();
        let predicted: usize = rows
            .iter()
            .map(|row| row.tokens.len() - self.prompt_length(row))
            .sum();
        let mut gradients = Gradients::default();
        let mut report = StepReport::default();
        let (mut sum, mut flops) = (0.0, 0.0);
        for (index, chunk) in rows.chunks(self.options.micro_batch).enumerate() {
            self.cancel.check()?;
            let tokens: Vec<&[u32]> = chunk.iter().map(|row| row.tokens.as_slice()).collect();
            let batch = TokenBatch::right_padded(&tokens);
            let lengths: Vec<usize> = tokens.iter().map(|row| row.len()).collect();
            let prompts: Vec<usize> = chunk.iter().map(|row| self.prompt_length(row)).collect();
            let llama = &self.model.llama;
            let dropout = self
                .model
                .dropout(step * self.options.batch_size as u64 + index as u64);
            let hidden = llama.forward_training(&batch, dropout.as_ref())?;
            let log_probs = llama.next_token_log_probs(&hidden, &batch)?;
            let mask = completion_mask(&prompts, &lengths, batch.time(), llama.device())?;
            let loss = supervised(&log_probs, &mask, Normaliser::Total(predicted as f64))?;
            sum += loss.sum;
            gradients.add_of(&loss.loss, &self.updater.parameters())?;
            flops += forward_flops(&self.size, lengths.iter().copied());
            report.trained_tokens += lengths.iter().sum::<usize>() as u64;
        }
        report.flops = flops + backward_flops(&self.size, flops);
        let loss = sum / predicted as f64;
        report.metrics.insert("loss", loss);
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
