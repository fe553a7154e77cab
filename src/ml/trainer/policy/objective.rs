//! What an objective is to the training of a policy: its parameters, what it asks for, and its loss.

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::view::View;
use crate::ml::objectives::Normaliser;
use crate::ml::optimizer::{LearningRate, ParameterGroup};
use crate::ml::trainer::{TokenizedCompletion, TrainError};
use crate::random::Stream;

/// A loss on completions of prompts, with the parameters it needs beside the policy's.
///
/// It is made of its settings alone, so that it can be asked before anything is opened; [`attach`](Self::attach) gives it
/// its parameters.
pub trait Objective: std::fmt::Debug {
    /// Says what the training has to bring.
    fn requirements(&self) -> Requirements;

    /// Makes the parameters of its own.
    fn attach(&mut self, _setup: &Setup<'_>) -> Result<Vec<ParameterGroup>, TrainError> {
        Ok(Vec::new())
    }

    /// Whether [`start`](Self::start) wants a first batch.
    fn wants_first(&self) -> bool {
        false
    }

    /// Puts parameters of its own where their training is to begin.
    fn start(&self, _first: Option<&View<'_>>) -> Result<(), TrainError> {
        Ok(())
    }

    /// Returns the units of the loss's mean that completions bring; a token of `eos` ends them.
    fn units(&self, rows: &[&TokenizedCompletion], eos: &[u32]) -> f64;

    /// Returns what each completion of a step weighs, where that takes all of them to know: its advantage.
    fn weigh(&self, _scored: &Scored) -> Result<Vec<Weights>, TrainError> {
        Ok(Vec::new())
    }

    /// Computes the loss of some prompts of a step.
    fn loss(&self, view: &View<'_>, normaliser: Normaliser) -> Result<Found, TrainError>;
}

/// What an objective asks of its training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Requirements {
    /// Rewards of unfinished completions.
    pub prefix_rewards: bool,
    /// Log-probabilities under the reference at every update, whatever the params say.
    pub reference: bool,
    /// The starting model's distribution is part of the target, whatever the params say.
    pub prior_in_target: bool,
    /// A KL penalty inside the reward has a place.
    pub takes_kl: bool,
    /// Completions of a prompt that a step needs.
    pub completions: usize,
    /// Completions that the data set has to have of a prompt if a step takes any of them.
    pub offline_completions: usize,
    /// Nothing but fresh samples.
    pub fresh: bool,
    /// Log-probabilities under the policy that drew completions, where they serve several updates.
    pub drawn: bool,
    /// Completions are weighed once all of a step are known; see [`Objective::weigh`].
    pub weighed: Option<Weighed>,
    /// Its `log_z` says whether the training is well.
    pub watches_log_z: bool,
    /// Batches of prompts that a step may sample for completions of different rewards, if it wants those alone and the
    /// params do not say.
    pub dynamic_sampling: u64,
    /// The factor from reward to `log R`, unless the params have one.
    pub reward_scale: Option<f64>,
}

/// What completions are weighed by, beside their rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weighed {
    /// Their log-probabilities under the reference.
    pub reference: bool,
    /// Their log-probabilities at the temperature that they were sampled at.
    pub sampler: bool,
}

impl Default for Requirements {
    fn default() -> Self {
        Self {
            prefix_rewards: false,
            reference: false,
            prior_in_target: false,
            takes_kl: true,
            completions: 1,
            offline_completions: 1,
            fresh: false,
            drawn: false,
            weighed: None,
            watches_log_z: false,
            dynamic_sampling: 0,
            reward_scale: None,
        }
    }
}

/// What a completion weighs in a loss, token by token.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Weights {
    /// Its reward.
    pub reward: f64,
    /// Advantage of each token.
    pub advantages: Vec<f64>,
    /// What corrects for the sampler's having been another distribution; 1 everywhere if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub importance: Vec<f64>,
}

/// The completions of a step with all that they are weighed by.
#[derive(Debug, Clone, Default)]
pub struct Scored {
    /// The prompt of each, equal numbers being the same prompt.
    pub prompt_of: Vec<usize>,
    /// Rewards.
    pub rewards: Vec<f64>,
    /// Tokens of each.
    pub lengths: Vec<usize>,
    /// Whether the horizon ended them.
    pub truncated: Vec<bool>,
    /// Log-probabilities of their tokens under the policy before the step's updates.
    pub log_probs: Vec<Vec<f64>>,
    /// The same under the reference; empty unless asked for.
    pub reference: Vec<Vec<f64>>,
    /// The same at the temperature of sampling; empty unless asked for.
    pub sampler: Vec<Vec<f64>>,
}

/// What an objective's parameters are made for.
#[derive(Debug, Clone, Copy)]
pub struct Setup<'a> {
    /// Width of the policy's hidden states.
    pub hidden_size: usize,
    /// Where the policy is.
    pub device: &'a Device,
    /// Where new weights are drawn from.
    pub stream: &'a Stream,
    /// Peak learning rate of the policy.
    pub lr: f64,
}

impl Setup<'_> {
    /// Returns a group of parameters with a peak learning rate of their own and without weight decay.
    pub fn group(&self, parameters: Vec<(String, candle_core::Var)>, lr: f64) -> ParameterGroup {
        ParameterGroup {
            parameters,
            learning_rate: LearningRate::Multiple(lr / self.lr),
            weight_decay: 0.0,
        }
    }
}

/// What a micro-batch gives.
#[derive(Debug)]
pub struct Found {
    /// A scalar to differentiate.
    pub loss: Tensor,
    /// Mean `log R` of the completions.
    pub log_r: f64,
    /// What else is told of the completions.
    pub metrics: Vec<Metric>,
}

/// A number that is told of completions, and how those of micro-batches make that of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    /// Its name in curves.
    pub name: &'static str,
    /// Its value over the completions of a micro-batch.
    pub value: f64,
    /// What it is over them.
    pub mean: Mean,
}

/// What a number is over completions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mean {
    /// The mean.
    OfCompletions,
    /// The root of the mean of squares.
    RootOfSquares,
    /// The mean over so many tokens.
    OfTokens(f64),
}

impl Metric {
    /// A mean.
    pub fn mean(name: &'static str, value: f64) -> Self {
        Self {
            name,
            value,
            mean: Mean::OfCompletions,
        }
    }

    /// The root of a mean of squares.
    pub fn root_mean_square(name: &'static str, value: f64) -> Self {
        Self {
            name,
            value,
            mean: Mean::RootOfSquares,
        }
    }

    /// A mean over tokens.
    pub fn over_tokens(name: &'static str, value: f64, tokens: f64) -> Self {
        Self {
            name,
            value,
            mean: Mean::OfTokens(tokens),
        }
    }
}

/// A name under which pipelines find an objective.
#[derive(Clone, Copy)]
pub struct ObjectiveKind<S: 'static> {
    /// The name.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// What it is, with its source.
    pub about: &'static str,
    /// The settings that it takes.
    pub takes: &'static [&'static str],
    /// Makes it of settings.
    pub make: fn(&S) -> Box<dyn Objective>,
}

impl<S> ObjectiveKind<S> {
    /// Finds an objective by any of its names.
    pub fn find(kinds: &'static [Self], name: &str) -> Option<&'static Self> {
        let is_named = |kind: &&Self| kind.name == name || kind.aliases.contains(&name);
        kinds.iter().find(is_named)
    }
}
