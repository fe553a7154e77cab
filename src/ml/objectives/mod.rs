//! Training objectives as pure functions of tensors: equations, their sources and their diagnostics.
//!
//! No function here knows a model. Inputs are per-token log-probabilities of the policy and of a frozen
//! reference model, rewards, and which entries count; outputs are a scalar `loss` to differentiate (f32, or f64
//! where the inputs are) and detached diagnostics. Shapes are `(batch, time)`; `time` counts *actions*, so column `t` holds
//! `log pi(y_{t+1} | s_t)` with `s_0` the prompt. Whatever stands in padding, even NaN, changes nothing.
//!
//! | objective | units of its mean | source |
//! | --- | --- | --- |
//! | [`supervised`] | tokens that count | maximum likelihood |
//! | [`bradley_terry`] | preference pairs | Bradley and Terry 1952; Ouyang et al. 2022 |
//! | [`ppo`] | tokens of completions | Schulman et al. 2017, as in TRL 0.4.7 (`StackLLaMA`) |
//! | [`policy_gradient`] | tokens or completions | RLOO, GRPO, Dr. GRPO, DAPO, GSPO, REINFORCE++ |
//! | [`trajectory_balance`] | trajectories | Malkin et al. 2022; `VarGrad`: Richter et al. 2020, Zhang et al. 2023 |
//! | [`forward_looking`] | trajectories | Pan et al. 2023; FlowHF equation 3; without energies detailed balance (Bengio et al. 2023) |
//! | [`windows`] | trajectories or windows | sub-trajectory balance, Madan et al. 2023 |
//! | [`terminable`] | trajectories or windows | Deleu et al. 2022; Hu et al. 2024 |
//! | [`gflownet_dpo`] | trajectories | Kwon et al. 2024 |
//! | [`preference`] | preference pairs | DPO, IPO, CPO, ORPO, SimPO, KTO |
//!
//! # Gradient accumulation
//!
//! Every loss is a sum over units divided by a number of units. [`Normaliser::Own`] divides by the units of
//! the call; [`Normaliser::Total`] divides by a number that the caller took over the whole batch, so that the
//! losses (and gradients) of micro-batches add up to those of the batch, up to rounding of the sums. Every
//! result carries its `count` of units. What is estimated *across* rows must be taken over the whole batch
//! first: whitened advantages (PPO) are inputs for this reason, and a micro-batch must hold all completions
//! of a prompt for [`trajectory_balance::LogZ::Batch`].
//!
//! # One residual core
//!
//! A token tree has one path to every state, so the backward policy is 1 and the flow-matching objectives
//! share the residual of a transition, `log F(s) + log pi(s' | s) - log F(s')`; see [`residual`].

pub mod advantage;
pub mod bradley_terry;
pub mod branching;
pub mod divergence;
pub mod forward_looking;
pub mod gflownet_dpo;
pub mod groups;
pub mod importance;
pub mod kl_control;
pub mod kl_estimate;
pub mod policy_gradient;
pub mod ppo;
pub mod preference;
pub mod residual;
pub mod supervised;
pub mod terminable;
pub mod trajectory_balance;
pub mod windows;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod gradient_check;
#[cfg(test)]
mod optimum_tests;
#[cfg(test)]
mod tree;

use candle_core::{DType, Device, Tensor};
use thiserror::Error;

use crate::hint::Hint;
use crate::ml::kernels::sums::total;

pub use branching::Branching;
pub use residual::{ReferenceTerms, Steps, Trajectories};
pub use windows::Windows;

/// What can be wrong with the inputs of an objective.
#[derive(Debug, Error)]
pub enum ObjectiveError {
    /// A tensor has another shape than the others call for.
    #[error("`{what}` has shape {got:?}, expected {expected:?}")]
    Shape {
        /// The argument.
        what: &'static str,
        /// The shape that the other arguments call for.
        expected: Vec<usize>,
        /// Its shape.
        got: Vec<usize>,
    },
    /// A list has another length than the batch.
    #[error("`{what}` has {got} entries, expected {expected}")]
    Length {
        /// The argument.
        what: &'static str,
        /// The number that the other arguments call for.
        expected: usize,
        /// Its number of entries.
        got: usize,
    },
    /// A trajectory has no action, or more than the batch has columns.
    #[error("trajectory {row} has {length} actions, expected 1 to {time}")]
    TrajectoryLength {
        /// Row of the batch.
        row: usize,
        /// Its length.
        length: usize,
        /// Columns of the batch.
        time: usize,
    },
    /// Nothing to take a mean over.
    #[error("no {what} to average over")]
    Empty {
        /// The unit.
        what: &'static str,
    },
    /// A number is outside its range.
    #[error("`{what}` is {value}, expected {expected}")]
    Range {
        /// The argument.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The range in words.
        expected: &'static str,
    },
    /// A term needs the reference model's log-probabilities, and there are none.
    #[error(
        "the {what} needs the reference model's log-probabilities, and the trajectories carry none"
    )]
    MissingReference {
        /// The term.
        what: &'static str,
    },
    /// A term needs numbers that are not there.
    #[error("the {term} needs `{what}`")]
    Missing {
        /// The numbers.
        what: &'static str,
        /// The term.
        term: &'static str,
    },
    /// Too few completions of one prompt to say anything about the policy.
    #[error("a prompt has {found} completion(s), {objective} needs at least {required}")]
    Branching {
        /// The objective.
        objective: &'static str,
        /// Completions of the poorest prompt.
        found: usize,
        /// The least that is accepted.
        required: usize,
        /// What to do.
        #[source]
        hint: Hint,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// By what a summed loss is divided.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Normaliser {
    /// By the units of this call: the mean.
    Own,
    /// By this number, the units of the whole batch of which this call sees one micro-batch.
    Total(f64),
}

impl Normaliser {
    /// Returns the divisor for a call with `own` units called `what`.
    fn divisor(self, own: f64, what: &'static str) -> Result<f64, ObjectiveError> {
        match self {
            Self::Own if own > 0.0 => Ok(own),
            Self::Own => Err(ObjectiveError::Empty { what }),
            Self::Total(total) if total.is_finite() && total > 0.0 => Ok(total),
            Self::Total(value) => Err(ObjectiveError::Range {
                what: "normaliser",
                value,
                expected: "a positive number of units",
            }),
        }
    }
}

/// Checks that `tensor` has shape `expected`.
fn expect_shape(
    what: &'static str,
    tensor: &Tensor,
    expected: &[usize],
) -> Result<(), ObjectiveError> {
    if tensor.dims() == expected {
        Ok(())
    } else {
        Err(ObjectiveError::Shape {
            what,
            expected: expected.to_vec(),
            got: tensor.dims().to_vec(),
        })
    }
}

/// Keeps the entries where `keep` is not 0 and puts 0 elsewhere, in value and in gradient.
///
/// A product with a 0/1 mask would let NaN through.
fn keep(tensor: &Tensor, keep: &Tensor) -> Result<Tensor, ObjectiveError> {
    Ok(keep.where_cond(tensor, &tensor.zeros_like()?)?)
}

/// Returns what is below `low` or above `high` as these, without a gradient there.
///
/// The bounds themselves have one: a ratio of 1 has the whole gradient, however narrow its range. At a bound candle's
/// `clamp` has half of it, and that of PyTorch 2.15 none.
fn clamped(tensor: &Tensor, low: f64, high: f64) -> Result<Tensor, ObjectiveError> {
    let bounds = tensor.detach().clamp(low, high)?;
    let is_within = tensor.detach().eq(&bounds)?;
    Ok(is_within.where_cond(tensor, &bounds)?)
}

/// Widens half precision to f32: sums over tokens have no room there.
fn full_precision(tensor: &Tensor) -> Result<Tensor, ObjectiveError> {
    Ok(match tensor.dtype() {
        DType::F32 | DType::F64 => tensor.clone(),
        _ => tensor.to_dtype(DType::F32)?,
    })
}

/// Counts the ones of a u8 mask.
fn count_of(mask: &Tensor) -> Result<f64, ObjectiveError> {
    scalar(&total(&mask.to_dtype(DType::F64)?)?)
}

/// Reads a scalar as f64.
fn scalar(tensor: &Tensor) -> Result<f64, ObjectiveError> {
    Ok(tensor.detach().to_dtype(DType::F64)?.to_scalar::<f64>()?)
}

/// Reads a vector as f64.
fn vector(tensor: &Tensor) -> Result<Vec<f64>, ObjectiveError> {
    Ok(tensor.detach().to_dtype(DType::F64)?.to_vec1::<f64>()?)
}

/// Reads a matrix as f64.
fn matrix(tensor: &Tensor) -> Result<Vec<Vec<f64>>, ObjectiveError> {
    Ok(tensor.detach().to_dtype(DType::F64)?.to_vec2::<f64>()?)
}

/// Makes a u8 mask `(lengths.len(), columns)` that is 1 where `column < length`.
fn prefix_mask(
    lengths: &[usize],
    columns: usize,
    device: &Device,
) -> Result<Tensor, ObjectiveError> {
    let mut mask = vec![0u8; lengths.len() * columns];
    if columns > 0 {
        for (row, length) in mask.chunks_exact_mut(columns).zip(lengths) {
            row[..(*length).min(columns)].fill(1);
        }
    }
    Ok(Tensor::from_vec(mask, (lengths.len(), columns), device)?)
}
