//! GFlowNet fine-tuning of a language model, by any of the objectives of [`crate::ml::objectives`].
//!
//! A step takes some prompts with several completions each: from the data set (off-policy), from the policy as
//! it is now (on-policy), or from a replay buffer of what it sampled before. `log R` is a scaled reward; with
//! the forward-looking objective that of every prefix, which one causal forward pass gives.

mod loss;
mod rollout;
mod shares;

use std::collections::BTreeMap;

use candle_core::{DType, Tensor, Var};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use self::loss::{Found, Part};
use super::actions::Actions;
use super::batches::{Epochs, TokenizedCompletion};
use super::flops::{ModelSize, forward_flops};
use super::policy::TrainedModel;
use super::{Cancel, StepReport, TrainError, Trainer};
use crate::ml::generate::GenerateError;
use crate::ml::head::{HeadGradient, HeadInit, ScalarHead, ScalarNetwork};
use crate::ml::models::causal::{CausalLm, TokenBatch};
use crate::ml::objectives::divergence::{DivergenceLimits, DivergenceMonitor, Health, Observation};
use crate::ml::objectives::trajectory_balance::initial_log_z;
use crate::ml::objectives::{Normaliser, ReferenceTerms, Trajectories, Windows};
use crate::ml::optimizer::{AdamW, AdamWConfig, Gradients, LearningRate, ParameterGroup, Step};
use crate::ml::replay_buffer::{Completion as Remembered, ReplayBuffer};
use crate::ml::schedule::{Ramp, Schedule};
use crate::random::Stream;

/// Where trajectory balance takes `log Z` from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogZSource {
    /// One trained number for all prompts (the paper's).
    Scalar,
    /// A trained head on the prompt's last state.
    PerPrompt,
    /// A trained network of three layers on the mean of the prompt's states, without the last one (`FlowRL`); its
    /// gradient reaches the model.
    Network,
    /// The mean over the completions of a prompt in the batch (VarGrad).
    Batch,
}

/// The loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Objective {
    /// Trajectory balance.
    TrajectoryBalance {
        /// Where `log Z` comes from.
        log_z: LogZSource,
        /// Its learning rate.
        log_z_lr: f64,
        /// Where it starts; from data if absent.
        log_z_start: Option<f64>,
        /// Whether log-probabilities are divided by the length of the completion.
        length_normalised: bool,
        /// Whether rewards are standardised among the completions of a prompt (`FlowRL`).
        group_rewards: bool,
        /// Whether completions that serve several updates are weighted by how likely they are by now (`FlowRL`).
        importance: bool,
    },
    /// Modified sub-trajectory balance: flows from the probability of stopping, without a head.
    Terminable {
        /// Which sums of residuals are squared.
        windows: Windows,
    },
    /// Objectives with a flow head: detailed and sub-trajectory balance, forward-looking.
    StateFlows {
        /// Whether the rewards of prefixes shape the flows (forward-looking).
        energies: bool,
        /// Which sums of residuals are squared.
        windows: Windows,
        /// The flow head's learning rate.
        flow_lr: f64,
        /// Whether the flow head's gradient reaches the model.
        flow_gradient: HeadGradient,
        /// Completions that each prompt must have.
        least_completions: usize,
    },
}

/// How a GFlowNet is trained.
#[derive(Debug, Clone)]
pub struct GflownetOptions {
    /// The loss.
    pub objective: Objective,
    /// `log R = reward_scale x reward / reward_temperature`.
    pub reward_scale: f64,
    /// The reward's temperature over the steps.
    pub reward_temperature: Ramp,
    /// How the reference model enters.
    pub reference: ReferenceTerms,
    /// Updates that the completions of a step serve before others are taken.
    pub updates_per_batch: u64,
    /// Prompts in a step.
    pub prompts_per_step: usize,
    /// Completions of each prompt in a step.
    pub completions_per_prompt: usize,
    /// Share of the completions that the policy samples anew.
    pub on_policy: f64,
    /// Share of the completions that come from the replay buffer, once it has any.
    pub replay: f64,
    /// Completions that the buffer keeps of each prompt.
    pub replay_capacity: usize,
    /// Share of their lengths by which completions of a prompt in the buffer differ, if they must.
    pub replay_min_distance: Option<f64>,
    /// Temperature of the buffer's priorities; `None` draws uniformly.
    pub replay_temperature: Option<f64>,
    /// The horizon.
    pub max_new_tokens: usize,
    /// Temperature of on-policy sampling over the steps.
    pub temperature: Ramp,
    /// Steps at which another temperature is drawn.
    pub exploration: Option<Exploration>,
    /// Peak learning rate of the policy.
    pub lr: f64,
    /// Warm-up and decay, of all learning rates alike.
    pub schedule: Schedule,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// AdamW's constants.
    pub optimizer: AdamWConfig,
    /// Prompts in a forward pass.
    pub micro_batch: usize,
    /// Steps between estimates of the KL divergence to the reference.
    pub monitor_every: u64,
    /// Completions in such an estimate.
    pub monitor_completions: usize,
    /// When the training counts as diverged.
    pub limits: DivergenceLimits,
    /// Ids that end a completion.
    pub eos: Vec<u32>,
}

/// Sampling at random temperatures (Hu et al. 2024).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exploration {
    /// Share of steps that sample at a temperature drawn evenly from `low` to `high`.
    pub probability: f64,
    /// The lowest temperature.
    pub low: f64,
    /// The highest temperature.
    pub high: f64,
}

/// A prompt with the completions that the data set has for it.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptCompletions {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// Distinct completions.
    pub completions: Vec<TokenizedCompletion>,
}

/// Returns the reward of every prefix: (rows, time).
pub type PrefixRewards = Box<dyn Fn(&TokenBatch) -> Result<Tensor, TrainError>>;

/// GFlowNet training of a policy.
pub struct GflownetTrainer {
    model: TrainedModel,
    reference: CausalLm,
    rewards: PrefixRewards,
    /// Operations of one reward evaluation.
    reward_size: ModelSize,
    prompts: Vec<PromptCompletions>,
    options: GflownetOptions,
    optimizer: AdamW,
    epochs: Epochs,
    picks: Stream,
    sampling: Stream,
    head: Option<ScalarHead>,
    log_z: Option<Var>,
    log_z_network: Option<ScalarNetwork>,
    log_z_dropout: Stream,
    size: ModelSize,
    buffer: ReplayBuffer,
    /// The completions that the next update is to see again.
    held: Option<Batch>,
    monitor: DivergenceMonitor,
    cancel: Cancel,
}

/// What changes from step to step beside tensors.
#[derive(Serialize, Deserialize)]
struct Values {
    buffer: ReplayBuffer,
    monitor: DivergenceMonitor,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<Batch>,
}

/// Completions for one update or several.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Batch {
    /// The first step that sees them.
    step: u64,
    /// For each prompt, its completions.
    groups: Vec<Vec<TokenizedCompletion>>,
    /// Summed log-probabilities under the policy of the first step, where they are needed.
    drawn: Option<Vec<f64>>,
}

/// What a step found in place of what it has changed.
#[derive(Default)]
struct Undo {
    /// Completions in the buffer of each prompt that got more.
    remembered: Vec<(u64, Vec<Remembered>)>,
    /// The completions of earlier updates, if others were taken.
    held: Option<Earlier>,
}

/// The completions that were held before, if any were.
struct Earlier(Option<Batch>);

/// Sums over the micro-batches of a step.
#[derive(Default)]
struct Sums {
    loss: f64,
    log_z: f64,
    log_r: f64,
    log_pf: f64,
    log_ratio: Option<f64>,
    weight: Option<f64>,
    residual_square: f64,
    flops: f64,
}

impl GflownetTrainer {
    /// Prepares a training of `model` against `rewards`; `reference` is the frozen model it starts from.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a different thing that the stage has opened"
    )]
    pub fn new(
        model: TrainedModel,
        reference: CausalLm,
        rewards: PrefixRewards,
        reward_size: ModelSize,
        prompts: Vec<PromptCompletions>,
        options: GflownetOptions,
        stream: &Stream,
        cancel: Cancel,
    ) -> Result<Self, TrainError> {
        if prompts.is_empty() {
            return Err(TrainError::Data(
                "there are no prompts to train on: the split is empty".to_owned(),
            ));
        }
        let hidden_size = model.llama.config().embedding_size;
        let device = model.llama.device().clone();
        let mut groups = vec![ParameterGroup {
            parameters: model.llama.trainable().to_vec(),
            learning_rate: LearningRate::Multiple(1.0),
            weight_decay: options.weight_decay,
        }];
        let (mut head, mut log_z, mut log_z_network) = (None, None, None);
        let own_rate = |lr: f64| LearningRate::Multiple(lr / options.lr);
        let new_head = || {
            ScalarHead::init(
                hidden_size,
                true,
                HeadInit::Zero,
                &stream.child("head"),
                &device,
            )
        };
        match options.objective {
            Objective::Terminable { .. } => {}
            Objective::StateFlows { flow_lr, .. } => {
                let flow = new_head()?;
                groups.push(ParameterGroup {
                    parameters: flow.trainable("flow."),
                    learning_rate: own_rate(flow_lr),
                    weight_decay: 0.0,
                });
                head = Some(flow);
            }
            Objective::TrajectoryBalance {
                log_z: source,
                log_z_lr,
                ..
            } => {
                let parameters = match source {
                    LogZSource::Batch => Vec::new(),
                    LogZSource::Scalar => {
                        let var = Var::zeros(1, DType::F32, &device)?;
                        log_z = Some(var.clone());
                        vec![("log_z".to_owned(), var)]
                    }
                    LogZSource::Network => {
                        let own = stream.child("head");
                        let network = ScalarNetwork::init(hidden_size, &own, &device)?;
                        let parameters = network.trainable("log_z.");
                        log_z_network = Some(network);
                        parameters
                    }
                    LogZSource::PerPrompt => {
                        let per_prompt = new_head()?;
                        let parameters = per_prompt.trainable("log_z.");
                        head = Some(per_prompt);
                        parameters
                    }
                };
                groups.push(ParameterGroup {
                    parameters,
                    learning_rate: own_rate(log_z_lr),
                    weight_decay: 0.0,
                });
            }
        }
        let mut trainer = Self {
            size: ModelSize::of(model.llama.config(), model.adapter.is_none()),
            optimizer: AdamW::new(groups, options.optimizer)?,
            epochs: Epochs::new(
                prompts.len(),
                options.prompts_per_step.min(prompts.len()),
                stream.child("prompts"),
            ),
            picks: stream.child("completions"),
            sampling: stream.child("sampling"),
            buffer: ReplayBuffer::new(options.replay_capacity.max(1))
                .and_then(|buffer| buffer.with_min_distance(options.replay_min_distance))
                .map_err(|error| TrainError::Data(error.to_string()))?,
            held: None,
            monitor: DivergenceMonitor::new(options.limits),
            model,
            reference,
            rewards,
            reward_size,
            prompts,
            options,
            head,
            log_z,
            log_z_network,
            log_z_dropout: stream.child("log_z_dropout"),
            cancel,
        };
        trainer.start_log_z()?;
        Ok(trainer)
    }

    /// Returns the model in training.
    pub fn model(&self) -> &TrainedModel {
        &self.model
    }

    /// Sets `log Z` to where the mean residual of a first batch is 0: from 0, updates would move nothing else for
    /// long.
    fn start_log_z(&mut self) -> Result<(), TrainError> {
        let Objective::TrajectoryBalance { log_z_start, .. } = self.options.objective else {
            return Ok(());
        };
        let named = |vars: Vec<(String, Var)>, end: &str| {
            let mut vars = vars.into_iter();
            vars.find(|(name, _)| name.ends_with(end))
                .map(|(_, var)| var)
        };
        let target = match (&self.log_z, &self.head, &self.log_z_network) {
            (Some(var), _, _) => Some(var.clone()),
            (_, Some(head), _) => named(head.trainable(""), "bias"),
            (_, _, Some(network)) => named(network.trainable(""), &ScalarNetwork::last_bias()),
            _ => None,
        };
        let Some(var) = target else {
            return Ok(());
        };
        let start = match log_z_start {
            Some(start) => start,
            None => {
                let items = self.epochs.at(0);
                let groups = self.rows(0, &items, &mut Undo::default())?.groups;
                let rows: Vec<&TokenizedCompletion> = groups.iter().flatten().collect();
                let actions = Actions::new(&rows);
                let log_pf = actions.frozen_log_probs(&self.model.llama.detached())?;
                let reference = self
                    .needs_reference()
                    .then(|| actions.frozen_log_probs(&self.reference))
                    .transpose()?;
                let trajectories = Trajectories {
                    log_pf: &log_pf,
                    lengths: &actions.lengths,
                    reference: reference.as_ref(),
                };
                let prompt_of = loss::prompt_of(&groups);
                initial_log_z(
                    &trajectories,
                    &self.terminal_log_r(0, &actions, &prompt_of)?,
                    self.balance_options(),
                )?
            }
        };
        var.set(&Tensor::new(&[start as f32], var.device())?)?;
        Ok(())
    }

    /// Makes what a step has changed but for the model what it was before.
    fn take_back(&mut self, step: Undo) {
        for (prompt, completions) in step.remembered {
            self.buffer.set(prompt, completions);
        }
        if let Some(Earlier(held)) = step.held {
            self.held = held;
        }
    }

    fn needs_reference(&self) -> bool {
        self.options.reference.in_target || self.options.reference.kl_beta > 0.0
    }
}

impl Sums {
    fn add(&mut self, found: &Found, total: f64) -> Result<(), TrainError> {
        let share = found.rows as f64 / total;
        self.loss += f64::from(found.loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
        self.flops += found.flops;
        self.log_z += share * found.log_z;
        self.log_r += share * found.log_r;
        self.log_pf += share * found.log_pf;
        self.residual_square += share * found.residual.powi(2);
        if let Some(ratio) = found.log_ratio {
            *self.log_ratio.get_or_insert(0.0) += share * ratio;
        }
        if let Some(weight) = found.weight {
            *self.weight.get_or_insert(0.0) += share * weight;
        }
        Ok(())
    }
}

impl Trainer for GflownetTrainer {
    fn step(&mut self, step: u64) -> Result<StepReport, TrainError> {
        let mut undo = Undo::default();
        let found = self.make_step(step, &mut undo);
        if matches!(found, Err(TrainError::Cancelled)) {
            self.take_back(undo);
        }
        found
    }

    fn optimizer(&mut self) -> &mut AdamW {
        &mut self.optimizer
    }

    fn cancelled_by(&mut self, cancel: Cancel) {
        self.cancel = cancel;
    }

    fn values(&self) -> Json {
        serde_json::to_value(Values {
            buffer: self.buffer.clone(),
            monitor: self.monitor.clone(),
            held: self.held.clone(),
        })
        .unwrap_or_default()
    }

    fn restore_values(&mut self, values: &Json) -> Result<(), TrainError> {
        let values: Values = serde_json::from_value(values.clone())
            .map_err(|error| TrainError::State(error.to_string()))?;
        if let Some(batch) = &values.held {
            let rows = batch.groups.iter().flatten();
            let faulty = rows
                .clone()
                .any(|row| !(1..row.tokens.len()).contains(&row.prompt_length));
            let drawn = batch.drawn.as_ref();
            if faulty || drawn.is_some_and(|drawn| drawn.len() != rows.count()) {
                return Err(TrainError::State(
                    "its completions are not whole".to_owned(),
                ));
            }
        }
        self.buffer = values.buffer;
        self.monitor = values.monitor;
        self.held = values.held;
        Ok(())
    }
}

impl GflownetTrainer {
    fn make_step(&mut self, step: u64, undo: &mut Undo) -> Result<StepReport, TrainError> {
        let (batch, rows) = match self.batch(step, undo) {
            Err(TrainError::Generate(error @ GenerateError::NonFinite { .. })) => {
                return Ok(StepReport {
                    diverged: Some(error.to_string()),
                    ..StepReport::default()
                });
            }
            other => other?,
        };
        let all: Vec<&TokenizedCompletion> = batch.groups.iter().flatten().collect();
        let total = all.len() as f64;
        // Of completions that all end at once there is nothing to average over: their loss is 0.
        let units = Some(self.units(&all)).filter(|units| *units > 0.0);
        let normaliser = Normaliser::Total(units.unwrap_or(1.0));
        let mut gradients = Gradients::default();
        let mut sums = Sums::default();
        let mut first_row = 0;
        for groups in batch.groups.chunks(self.options.micro_batch.max(1)) {
            let count = groups.iter().map(Vec::len).sum::<usize>();
            if count == 0 {
                continue;
            }
            self.cancel.check()?;
            let part = Part {
                groups,
                first_row,
                drawn: batch
                    .drawn
                    .as_ref()
                    .map(|drawn| &drawn[first_row..][..count]),
            };
            first_row += count;
            let found = self.loss(step, part, normaliser)?;
            gradients.add(&found.loss.backward()?, &self.optimizer.parameters())?;
            sums.add(&found, total)?;
        }
        let mut report = StepReport {
            trained_tokens: all.iter().map(|row| row.tokens.len() as u64).sum(),
            generated_tokens: rows.generated,
            flops: sums.flops + rows.flops,
            ..StepReport::default()
        };
        // Each generated token is one forward pass over one token with a cache.
        report.flops += forward_flops(&self.size, [1]) * rows.generated as f64;
        let metrics = &mut report.metrics;
        metrics.insert("loss", sums.loss);
        metrics.insert("reward", sums.log_r / self.options.reward_scale);
        metrics.insert("log_pf", sums.log_pf);
        metrics.insert("log_z", sums.log_z);
        metrics.insert("residual", sums.residual_square.sqrt());
        if let Some(ratio) = sums.log_ratio {
            metrics.insert("log_ratio", ratio);
        }
        if let Some(weight) = sums.weight {
            metrics.insert("importance", weight);
        }
        if rows.sampled > 0 {
            metrics.insert("truncated", rows.truncated as f64 / rows.sampled as f64);
        }
        let lr = self.options.lr * self.options.schedule.factor(step);
        metrics.insert("lr", lr);
        let gradient_norm = match self.optimizer.step(&gradients, lr)? {
            Step::Updated { grad_norm } => grad_norm,
            Step::NonFinite { parameter } => {
                report.diverged = Some(format!(
                    "the gradient of `{parameter}` is not finite (loss {})",
                    sums.loss
                ));
                return Ok(report);
            }
        };
        metrics.insert("grad_norm", gradient_norm);
        let mut kl = None;
        if self.options.monitor_every > 0 && (step + 1).is_multiple_of(self.options.monitor_every) {
            let estimate = match self.kl(step) {
                Err(TrainError::Generate(error @ GenerateError::NonFinite { .. })) => {
                    report.diverged = Some(error.to_string());
                    return Ok(report);
                }
                other => other?,
            };
            metrics.insert("kl", estimate);
            kl = Some(estimate);
        }
        let health = self.monitor.observe(Observation {
            step,
            loss: sums.loss,
            gradient_norm,
            kl,
            log_z: Some(sums.log_z)
                .filter(|_| matches!(self.options.objective, Objective::TrajectoryBalance { .. })),
        });
        if let Health::Diverged(divergence) = health {
            report.diverged = Some(divergence.to_string());
        }
        Ok(report)
    }
}

/// Groups tokenized completions by question, in order of first appearance; equal completions count once.
pub fn group_by_prompt(rows: Vec<(u64, TokenizedCompletion)>) -> Vec<PromptCompletions> {
    let mut places: BTreeMap<(u64, Vec<u32>), usize> = BTreeMap::new();
    let mut groups: Vec<PromptCompletions> = Vec::new();
    for (question, row) in rows {
        let prompt = row.tokens[..row.prompt_length].to_vec();
        let place = *places.entry((question, prompt.clone())).or_insert_with(|| {
            groups.push(PromptCompletions {
                prompt,
                completions: Vec::new(),
            });
            groups.len() - 1
        });
        if !groups[place].completions.contains(&row) {
            groups[place].completions.push(row);
        }
    }
    groups
}

#[cfg(test)]
mod tests;
