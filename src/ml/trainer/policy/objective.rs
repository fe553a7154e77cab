//! What an objective is to the training of a policy: its parameters, what it asks for, and its loss.

use candle_core::Device;

use super::found::Found;
use super::requirements::Requirements;
use super::scored::{Scored, Weights};
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
