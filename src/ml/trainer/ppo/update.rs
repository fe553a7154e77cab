//! The updates on a step's completions.

use candle_core::{Device, Tensor};

use super::advantages::whitened;
use super::options::Whitening;
use super::rollout::Rollout;
use super::{PpoTrainer, forward_flops};
use crate::ml::head::HeadGradient;
use crate::ml::objectives::Normaliser;
use crate::ml::objectives::advantage::pad;
use crate::ml::objectives::ppo::{Ppo, PpoBatch, PpoOptions, early_stop, ppo};
use crate::ml::optimizer::{Gradients, Step};
use crate::ml::trainer::actions::Actions;
use crate::ml::trainer::{TokenizedCompletion, TrainError};

/// Means over tokens.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Means {
    pub(super) loss: f64,
    pub(super) policy_loss: f64,
    pub(super) value_loss: f64,
    pub(super) ratio: f64,
    pub(super) approximate_kl: f64,
    pub(super) policy_kl: f64,
    pub(super) clip_fraction: f64,
    pub(super) value_clip_fraction: f64,
}

impl Means {
    fn of(pass: &Ppo) -> Result<Self, TrainError> {
        Ok(Self {
            loss: f64::from(pass.loss.to_scalar::<f32>()?),
            policy_loss: pass.policy_loss,
            value_loss: pass.value_loss,
            ratio: pass.ratio,
            approximate_kl: pass.approximate_kl,
            policy_kl: pass.policy_kl,
            clip_fraction: pass.clip_fraction,
            value_clip_fraction: pass.value_clip_fraction,
        })
    }

    fn add(&mut self, other: &Self, share: f64) {
        self.loss += share * other.loss;
        self.policy_loss += share * other.policy_loss;
        self.value_loss += share * other.value_loss;
        self.ratio += share * other.ratio;
        self.approximate_kl += share * other.approximate_kl;
        self.policy_kl += share * other.policy_kl;
        self.clip_fraction += share * other.clip_fraction;
        self.value_clip_fraction += share * other.value_clip_fraction;
    }
}

/// What the updates of a step showed.
#[derive(Debug, Default)]
pub(super) struct Seen {
    sums: Means,
    mini_batches: u64,
    pub(super) last_loss: f64,
    pub(super) updates: u64,
    /// Mini-batches beyond the threshold of the ratio.
    pub(super) skipped: u64,
    pub(super) greatest_norm: f64,
    /// The parameter whose gradient ended the updates.
    pub(super) non_finite: Option<String>,
    /// Tokens, prompts included, that gradients were computed for.
    pub(super) tokens: u64,
    pub(super) forward_flops: f64,
}

impl Seen {
    fn take(&mut self, found: &Means) {
        self.mini_batches += 1;
        self.last_loss = found.loss;
        self.sums.add(found, 1.0);
    }

    /// Returns means over mini-batches, those without an update included.
    pub(super) fn means(&self) -> Means {
        let mut means = Means::default();
        means.add(&self.sums, 1.0 / self.mini_batches.max(1) as f64);
        means
    }
}

impl PpoTrainer {
    /// Makes the updates of a step.
    pub(super) fn update(&mut self, step: u64, rollouts: &[Rollout]) -> Result<Seen, TrainError> {
        let mut seen = Seen::default();
        // Each forward pass of a training has its own dropout; no pass is without a completion.
        let mut pass = step * self.options.ppo_epochs * self.options.batch_size as u64;
        for epoch in 0..self.options.ppo_epochs {
            let mut order: Vec<&Rollout> = rollouts.iter().collect();
            let counter = step * self.options.ppo_epochs + epoch;
            self.streams.mini_batches.at(counter).shuffle(&mut order);
            for mini_batch in order.chunks(self.options.mini_batch) {
                self.cancel.check()?;
                let (gradients, mut found) = self.gradients(mini_batch, &mut pass, &mut seen)?;
                let skipped = found.ratio > self.options.loss.ratio_threshold;
                if skipped {
                    found.loss = 0.0;
                    seen.skipped += 1;
                }
                seen.take(&found);
                if !skipped {
                    match self.updater.update(step, &gradients)? {
                        Step::Updated { grad_norm } => {
                            seen.updates += 1;
                            seen.greatest_norm = seen.greatest_norm.max(grad_norm);
                        }
                        Step::NonFinite { parameter } => {
                            seen.non_finite = Some(parameter);
                            return Ok(seen);
                        }
                    }
                }
                if self
                    .options
                    .target_kl
                    .is_some_and(|target| early_stop(found.policy_kl, target))
                {
                    return Ok(seen);
                }
            }
        }
        Ok(seen)
    }

    /// Computes the gradients of a mini-batch, pass by pass.
    pub(super) fn gradients(
        &self,
        mini_batch: &[&Rollout],
        pass: &mut u64,
        seen: &mut Seen,
    ) -> Result<(Gradients, Means), TrainError> {
        let llama = &self.start.model.llama;
        let parameters = self.updater.parameters();
        let tokens = mini_batch
            .iter()
            .map(|rollout| rollout.length())
            .sum::<usize>() as f64;
        let passes = mini_batch.len().div_ceil(self.options.micro_batch) as f64;
        let mut whole = match self.options.whitening {
            Whitening::MiniBatch => whitened(mini_batch)?,
            Whitening::MicroBatch => Vec::new(),
        }
        .into_iter();
        let options = PpoOptions {
            // Whether a ratio is too great is asked of the mini-batch, not of a part of it.
            ratio_threshold: f64::INFINITY,
            ..self.options.loss
        };
        let mut gradients = Gradients::default();
        let mut found = Means::default();
        for chunk in mini_batch.chunks(self.options.micro_batch) {
            let rows: Vec<&TokenizedCompletion> =
                chunk.iter().map(|rollout| &rollout.row).collect();
            let actions = Actions::new(&rows);
            let count = actions.count() as f64;
            let (advantages, normaliser): (Vec<_>, _) = match self.options.whitening {
                Whitening::MiniBatch => (
                    whole.by_ref().take(chunk.len()).collect(),
                    Normaliser::Total(tokens),
                ),
                Whitening::MicroBatch => (whitened(chunk)?, Normaliser::Total(count * passes)),
            };
            let dropout = self.start.model.dropout(*pass);
            *pass += 1;
            let hidden = llama.forward_training(&actions.batch, dropout.as_ref())?;
            let states = actions.states(&hidden, false)?;
            let log_probs = actions.log_probs(llama, &states)?;
            let values = self.value_head.apply(&states, HeadGradient::Joint)?;
            let columns = log_probs.dim(1)?;
            let padded = |part: &dyn Fn(&Rollout) -> Vec<f64>| {
                let rows: Vec<Vec<f64>> = chunk.iter().map(|rollout| part(rollout)).collect();
                pad(&rows, columns, values.dtype(), llama.device())
            };
            let loss = ppo(
                &PpoBatch {
                    log_probs: &log_probs,
                    old_log_probs: &padded(&|rollout| rollout.log_probs.clone())?,
                    values: &values,
                    old_values: &padded(&|rollout| rollout.values.clone())?,
                    advantages: &pad(&advantages, columns, values.dtype(), llama.device())?,
                    returns: &padded(&|rollout| rollout.returns.clone())?,
                    mask: &mask(&actions.lengths, columns, llama.device())?,
                },
                options,
                normaliser,
            )?;
            // The loss is a sum over passes already.
            let means = Means::of(&loss)?;
            let share = count / tokens;
            found.add(
                &Means {
                    loss: means.loss / share,
                    ..means
                },
                share,
            );
            gradients.add_of(&loss.loss, &parameters)?;
            seen.tokens += actions.row_lengths().sum::<usize>() as u64;
            seen.forward_flops += forward_flops(&self.size, actions.row_lengths());
        }
        Ok((gradients, found))
    }
}

/// Marks the tokens of completions: 1 before each row's length, (rows, columns).
fn mask(lengths: &[usize], columns: usize, device: &Device) -> candle_core::Result<Tensor> {
    let marks: Vec<u8> = lengths
        .iter()
        .flat_map(|length| (0..columns).map(move |column| u8::from(column < *length)))
        .collect();
    Tensor::from_vec(marks, (lengths.len(), columns), device)
}
