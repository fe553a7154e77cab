//! Trainers: everything that happens between two optimizer steps, for each way of training.
//!
//! A trainer owns model, heads, optimiser and whatever else changes from step to step. All of it goes into
//! its [`TrainerState`], so that k steps, a kill, and N - k steps give the same bits as N steps.

pub mod actions;
mod batches;
pub mod classifier;
#[cfg(test)]
mod fixture;
mod flops;
pub mod pairs;
pub mod policy;
pub mod ppo;
pub mod reward;
pub mod rewards;
pub mod supervised;
pub mod trained_model;
pub mod update;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Tensor;
use indexmap::IndexMap;
use serde_json::Value as Json;

pub use batches::{Epochs, TokenizedCompletion};
pub use flops::{ModelSize, backward_flops, forward_flops};

use super::adapter::AdapterError;
use super::generate::GenerateError;
use super::models::causal::CausalLmError;
use super::models::encoder::EncoderError;
use super::objectives::ObjectiveError;
use super::optimizer::{AdamW, OptimizerError};
use super::parameters::{ParameterError, Weights};
use crate::hint::Hint;

/// Why a training cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// A model failed.
    #[error(transparent)]
    Model(#[from] CausalLmError),
    /// An adapter failed.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A text encoder failed.
    #[error(transparent)]
    Encoder(#[from] EncoderError),
    /// A loss could not be computed.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
    /// A step could not be made.
    #[error(transparent)]
    Optimizer(#[from] OptimizerError),
    /// Completions could not be generated.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// Parameters do not fit.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// What gives rewards failed.
    #[error(transparent)]
    Rewards(Box<dyn std::error::Error + Send + Sync>),
    /// Of all prompts that the first step could sample, none has completions of different rewards.
    #[error(
        "of {prompts} prompts none has completions of different rewards: there is nothing to learn from"
    )]
    AllEqual {
        /// How many prompts were sampled.
        prompts: usize,
        /// What to do.
        #[source]
        hint: Hint,
    },
    /// Data that cannot be trained on.
    #[error("{0}")]
    Data(String),
    /// A stored state is not of this training.
    #[error("the checkpoint does not belong to this training: {0}")]
    State(String),
    /// The training was asked to stop in the middle of a step.
    #[error("cancelled")]
    Cancelled,
}

impl TrainError {
    /// Makes a failure to generate one of the training; to be cancelled is the same for both.
    fn generating(error: GenerateError) -> Self {
        match error {
            GenerateError::Cancelled => Self::Cancelled,
            other => Self::Generate(other),
        }
    }
}

/// A request to stop, which may come in the middle of a step.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Stops when the flag is set.
    pub fn new(flag: Arc<AtomicBool>) -> Self {
        Self(flag)
    }

    /// Fails once the training is to stop.
    pub fn check(&self) -> Result<(), TrainError> {
        match self.flow() {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(TrainError::Cancelled),
        }
    }

    /// Tells a callback's caller whether to go on.
    pub fn flow(&self) -> ControlFlow<()> {
        if self.0.load(Ordering::Relaxed) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// What one optimizer step did.
#[derive(Debug, Clone, Default)]
pub struct StepReport {
    /// What is shown and recorded: loss, reward, KL, ...
    pub metrics: IndexMap<&'static str, f64>,
    /// Tokens that gradients were computed for.
    pub trained_tokens: u64,
    /// Tokens that were generated.
    pub generated_tokens: u64,
    /// Floating-point operations, counted from shapes.
    pub flops: f64,
    /// Why the training left the region where its result means anything; the step was not made.
    pub diverged: Option<String>,
}

/// All that changes from step to step beside the parameters and the optimiser.
#[derive(Debug, Clone, Default)]
pub struct TrainerState {
    /// Tensors by name.
    pub tensors: Weights,
    /// Everything else.
    pub values: Json,
}

/// One way of training.
pub trait Trainer {
    /// Makes step `step`, counted from 0.
    fn step(&mut self, step: u64) -> Result<StepReport, TrainError>;

    /// Returns the optimiser, which holds every trained parameter.
    fn optimizer(&mut self) -> &mut AdamW;

    /// Makes a step end with [`TrainError::Cancelled`] soon after it is asked to: at the latest after a micro-batch. If the
    /// optimiser has made no step by then, everything else is as it was before the step, too.
    fn cancelled_by(&mut self, cancel: Cancel);

    /// Halves the rows that go through the model at once, and returns how many they are from then on; `None` if there is but
    /// one, or if they cannot be fewer. A step that failed before an update may be made again.
    fn halve_micro_batch(&mut self) -> Option<usize>;

    /// Returns what else changes from step to step (controllers, buffers, monitors).
    fn values(&self) -> Json {
        Json::Null
    }

    /// Takes up [`Self::values`] of an earlier step.
    fn restore_values(&mut self, _values: &Json) -> Result<(), TrainError> {
        Ok(())
    }
}

/// Halves a number of rows, if that leaves any.
pub(crate) fn halve(rows: &mut usize) -> Option<usize> {
    if *rows <= 1 {
        return None;
    }
    *rows = rows.div_ceil(2);
    Some(*rows)
}

const PARAMETER: &str = "parameter.";
const OPTIMIZER: &str = "optimizer.";

/// Returns everything that a training needs to go on.
pub fn state(trainer: &mut dyn Trainer) -> Result<TrainerState, TrainError> {
    let mut tensors = Weights::new();
    for (name, var) in trainer.optimizer().parameters() {
        tensors.insert(
            format!("{PARAMETER}{name}"),
            var.as_detached_tensor().copy()?,
        );
    }
    for (name, tensor) in trainer.optimizer().state()? {
        tensors.insert(format!("{OPTIMIZER}{name}"), tensor);
    }
    Ok(TrainerState {
        tensors,
        values: trainer.values(),
    })
}

/// Takes up the [`state`] of an earlier step.
pub fn restore(trainer: &mut dyn Trainer, state: &TrainerState) -> Result<(), TrainError> {
    let part = |prefix: &str| -> Weights {
        state
            .tensors
            .iter()
            .filter_map(|(name, tensor)| {
                Some((name.strip_prefix(prefix)?.to_owned(), tensor.clone()))
            })
            .collect()
    };
    set_parameters(trainer, &part(PARAMETER))?;
    trainer.optimizer().restore(&part(OPTIMIZER))?;
    trainer.restore_values(&state.values)
}

/// Copies the trained parameters.
pub fn parameters(trainer: &mut dyn Trainer) -> Result<Weights, TrainError> {
    trainer
        .optimizer()
        .parameters()
        .into_iter()
        .map(|(name, var)| Ok((name, var.as_detached_tensor().copy()?)))
        .collect()
}

/// Sets the trained parameters to copies taken by [`parameters`].
pub fn set_parameters(trainer: &mut dyn Trainer, copies: &Weights) -> Result<(), TrainError> {
    for (name, var) in trainer.optimizer().parameters() {
        let tensor: &Tensor = copies
            .get(&name)
            .ok_or_else(|| TrainError::State(format!("it has no `{name}`")))?;
        if tensor.dims() != var.dims() || tensor.dtype() != var.dtype() {
            return Err(TrainError::State(format!(
                "`{name}` is {:?} of shape {:?}, expected {:?} of shape {:?}",
                tensor.dtype(),
                tensor.dims(),
                var.dtype(),
                var.dims()
            )));
        }
        var.set(&tensor.to_device(var.device())?)?;
    }
    Ok(())
}
