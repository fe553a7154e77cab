//! Some completions of a step as an objective sees them.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::group::{self, Group};
use super::requirements::Requirements;
use super::{PolicyOptions, Rewards, TokenizedCompletion, TrainError, Weights};
use crate::ml::models::causal::CausalLm;
use crate::ml::objectives::Trajectories;
use crate::ml::trainer::actions::Actions;
use crate::ml::trainer::batches::tokens_before_end;
use crate::ml::trainer::flops::{ModelSize, backward_flops, forward_flops};
use crate::ml::trainer::rewards::Answer;
use crate::ml::trainer::trained_model::TrainedModel;

/// What stays the same over a training.
pub struct Shared {
    /// The policy.
    pub model: TrainedModel,
    /// The frozen model that it starts from.
    pub reference: CausalLm,
    /// Where rewards come from.
    pub rewards: Box<dyn Rewards>,
    /// How the training goes.
    pub options: PolicyOptions,
    pub(super) size: ModelSize,
}

impl Shared {
    /// Whether log-probabilities under the reference are part of a trajectory's residual.
    pub(super) fn needs_reference(&self) -> bool {
        self.options.reference.in_target || self.options.reference.kl_beta > 0.0
    }
}

/// Some prompts of a step.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// For each prompt, its completions.
    pub groups: &'a [Group],
    /// The place of the first completion among those of the step.
    pub first_row: usize,
    /// Log-probabilities of the completions' tokens when they were drawn, where they are known.
    pub drawn: Option<&'a [Vec<f64>]>,
    /// What the completions weigh, where they are weighed.
    pub weights: &'a [Weights],
}

/// Some completions of a step, and what the policy makes of them.
pub struct View<'a> {
    /// What stays the same over the training.
    pub shared: &'a Shared,
    /// The step.
    pub step: u64,
    /// The prompts.
    pub part: Part<'a>,
    /// Their completions.
    pub rows: Vec<&'a TokenizedCompletion>,
    /// The prompt of each completion.
    pub prompt_of: Vec<usize>,
    /// Where the tokens of the completions are.
    pub actions: Actions,
    hidden: Tensor,
    states: Tensor,
}

/// Log-probabilities of the actions under policy and, where it is needed, reference: (rows, columns).
pub struct LogProbs {
    pf: Tensor,
    reference: Option<Tensor>,
}

impl LogProbs {
    /// Returns those of the policy.
    pub fn policy(&self) -> &Tensor {
        &self.pf
    }

    /// Returns both with the lengths of their rows.
    pub fn trajectories<'a>(&'a self, actions: &'a Actions) -> Trajectories<'a> {
        Trajectories {
            log_pf: &self.pf,
            lengths: &actions.lengths,
            reference: self.reference.as_ref(),
        }
    }
}

impl<'a> View<'a> {
    /// Reads completions with the policy in training.
    pub(super) fn training(
        shared: &'a Shared,
        step: u64,
        part: Part<'a>,
    ) -> Result<Self, TrainError> {
        let dropout = shared.model.dropout(step);
        Self::read(shared, step, part, |actions| {
            Ok(shared
                .model
                .llama
                .forward_training(&actions.batch, dropout.as_ref())?)
        })
    }

    /// Reads completions with the policy as it is, which learns nothing from it.
    pub(super) fn frozen(
        shared: &'a Shared,
        step: u64,
        part: Part<'a>,
    ) -> Result<Self, TrainError> {
        let policy = shared.model.llama.detached();
        Self::read(shared, step, part, |actions| {
            Ok(policy.forward(&actions.batch)?.detach())
        })
    }

    fn read(
        shared: &'a Shared,
        step: u64,
        part: Part<'a>,
        hidden: impl FnOnce(&Actions) -> Result<Tensor, TrainError>,
    ) -> Result<Self, TrainError> {
        let rows = group::rows(part.groups);
        let actions = Actions::new(&rows);
        let hidden = hidden(&actions)?;
        Ok(Self {
            shared,
            step,
            part,
            prompt_of: group::prompt_of(part.groups),
            states: actions.states(&hidden, true)?,
            hidden,
            actions,
            rows,
        })
    }

    /// Returns the policy's hidden states: (rows, time, hidden).
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// Returns the states of the trajectories, the terminal ones among them: (rows, columns + 1, hidden).
    pub fn states(&self) -> &Tensor {
        &self.states
    }

    /// Returns the states in which actions are taken: (rows, columns, hidden).
    pub fn states_before(&self) -> Result<Tensor, TrainError> {
        let columns = self.states.dim(1)? - 1;
        Ok(self.states.narrow(1, 0, columns)?.contiguous()?)
    }

    /// Returns each completion's tokens without the one that ends it, and whether none does: the horizon ended it.
    pub fn tokens_before_end(&self) -> (Vec<usize>, Vec<bool>) {
        tokens_before_end(&self.rows, &self.shared.options.eos)
    }

    /// Returns log-probabilities of the actions under policy and, where it is needed, reference.
    pub fn log_probs(&self) -> Result<LogProbs, TrainError> {
        let model = &self.shared.model.llama;
        let pf = self.actions.log_probs(model, &self.states_before()?)?;
        let reference = self
            .shared
            .needs_reference()
            .then(|| self.actions.frozen_log_probs(&self.shared.reference))
            .transpose()?;
        Ok(LogProbs { pf, reference })
    }

    /// Returns the factor from reward to `log R`.
    fn reward_factor(&self) -> f64 {
        self.shared.options.reward_factor(self.step)
    }

    /// Returns `log R` of every state: (rows, columns + 1).
    pub fn state_log_r(&self) -> Result<Tensor, TrainError> {
        let rewards = self
            .shared
            .rewards
            .of_prefixes(&group::answers(self.part.groups), &self.actions.batch)?;
        let rewards = rewards.to_device(self.states.device())?;
        Ok((self.actions.per_state(&rewards)? * self.reward_factor())?)
    }

    /// Returns the rewards of the completions.
    pub fn rewards(&self) -> Result<Vec<f64>, TrainError> {
        let answers = group::answers(self.part.groups);
        self.shared.rewards.of_completions(&answers)
    }

    /// Returns `log R` of completions with these rewards: (rows).
    pub fn log_r_of(&self, rewards: &[f64]) -> Result<Tensor, TrainError> {
        let rewards = Tensor::new(rewards, self.states.device())?.to_dtype(DType::F32)?;
        Ok((rewards * self.reward_factor())?)
    }

    /// Returns the mean `log R` of completions with these rewards.
    pub fn mean_log_r_of(&self, rewards: &[f64]) -> f64 {
        self.reward_factor() * rewards.iter().sum::<f64>() / rewards.len() as f64
    }

    /// Returns `log R` of the completion that ends in each state, (rows, columns + 1): every prefix is scored with its
    /// EOS.
    pub fn stop_log_r(&self, tokens: &[usize]) -> Result<Tensor, TrainError> {
        /// Texts that are scored at once.
        const BATCH: usize = 256;
        let columns = self.actions.columns();
        let mut ended: Vec<(usize, TokenizedCompletion)> = Vec::new();
        let mut known: BTreeMap<(usize, Vec<u32>), usize> = BTreeMap::new();
        let mut places = Vec::with_capacity(self.rows.len() * (columns + 1));
        for (answer, tokens) in group::answers(self.part.groups).iter().zip(tokens) {
            let (prompt, row) = (answer.prompt, answer.completion);
            for length in 0..=columns {
                let whole = row.prompt_length + length.min(*tokens);
                let mut text = row.tokens[..whole].to_vec();
                // A row that the horizon ended has no EOS in its last state.
                if whole < row.tokens.len() {
                    text.push(self.shared.options.eos[0]);
                }
                let next = ended.len();
                places.push(*known.entry((prompt, text.clone())).or_insert_with(|| {
                    let completion = TokenizedCompletion {
                        tokens: text,
                        prompt_length: row.prompt_length,
                    };
                    ended.push((prompt, completion));
                    next
                }) as u32);
            }
        }
        let mut rewards = Vec::with_capacity(ended.len());
        for chunk in ended.chunks(BATCH) {
            let answers = chunk.iter().map(|(prompt, completion)| Answer {
                prompt: *prompt,
                completion,
            });
            let answers: Vec<Answer<'_>> = answers.collect();
            rewards.extend(self.shared.rewards.of_completions(&answers)?);
        }
        let rewards = self.log_r_of(&rewards)?;
        let places = Tensor::new(places, rewards.device())?;
        Ok(rewards
            .index_select(&places, 0)?
            .reshape((self.rows.len(), columns + 1))?)
    }

    /// Counts the operations of reading the completions, learning from them and scoring them.
    pub(super) fn flops(&self, asks: &Requirements) -> f64 {
        let shared = self.shared;
        let forward = forward_flops(&shared.size, self.actions.row_lengths());
        let mut flops = forward + backward_flops(&shared.size, forward);
        // Weighed completions were scored when they were drawn.
        if let Some(size) = shared.rewards.size().filter(|_| asks.weighed.is_none()) {
            flops += forward_flops(&size, self.actions.row_lengths());
        }
        if shared.needs_reference() || asks.reference {
            flops += forward;
        }
        flops
    }
}
