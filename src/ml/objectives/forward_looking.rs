//! Forward-looking GFlowNet objective: per-transition credit from rewards of prefixes.
//!
//! Pan et al. 2023, equation 9; FlowHF, equation 3. The flow of a state is written `F(s) = F~(s) R(s)` with the
//! reward of the prefix, and the head learns `log F~`. With the energy `E(s -> s') = log R(s) - log R(s')`,
//!
//! ```text
//! delta_t = log F~(s_t) + a_t - log F~(s_{t+1}) + E(s_t -> s_{t+1}),      L = mean_b sum_t delta_{b,t}^2
//! ```
//!
//! which is detailed balance under the shaped flow ([`transition_residuals`]); with zero energies it *is*
//! detailed balance. Then `log F~(s_0) = log Z - log R(s_0)` at the optimum.
//!
//! # The boundary condition
//!
//! `F~(x) = 1` at a terminal (FlowHF, equation 4), so `log F~` of the terminal is the constant 0 and the head's
//! output there is ignored. With a free terminal flow *every* policy reaches zero loss on a tree. The terminal
//! is the state after the last action, whether that is EOS or the token that reaches the horizon, where the
//! stop is forced with probability 1 (see [`super::residual`]).
//!
//! # One completion of a prompt is not enough
//!
//! Off policy even the pinned loss can be driven to zero by the flows alone when a prompt has a single
//! completion; see [`super::branching`]. The function therefore asks for the [`Branching`] of the whole batch
//! (or data set) and refuses fewer than [`ForwardLookingOptions::least_completions`].

use candle_core::Tensor;

use super::residual::{ResidualSummary, mean, pin_terminal, squared, transition_residuals};
use super::{
    Branching, Normaliser, ObjectiveError, ReferenceTerms, Steps, Trajectories, expect_shape, keep,
    matrix, prefix_mask, vector,
};

/// Choices of the forward-looking objective.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ForwardLookingOptions {
    /// The reference model's part; a KL penalty counts per transition (FlowHF's row FL+KL).
    pub reference: ReferenceTerms,
    /// Completions that every prompt must have; 1 allows what the paper did with single answers.
    pub least_completions: usize,
}

impl Default for ForwardLookingOptions {
    fn default() -> Self {
        Self {
            reference: ReferenceTerms::default(),
            least_completions: 2,
        }
    }
}

/// Flows and rewards of the visited states, `(batch, time + 1)`; column `lengths[b]` is the terminal's.
#[derive(Debug, Clone, Copy)]
pub struct StateFlows<'a> {
    /// `log F~(s_t)` from the flow head; entries from the terminal on are ignored.
    pub log_flow: &'a Tensor,
    /// `log R` of every prefix, the terminal's being `log R(x)`; not differentiated, padding ignored.
    pub log_r: &'a Tensor,
}

/// The forward-looking loss of a batch.
#[derive(Debug, Clone)]
pub struct ForwardLooking {
    /// Mean over trajectories of the sum of squared residuals in nats squared, a scalar.
    pub loss: Tensor,
    /// Trajectories: the units of the mean.
    pub count: f64,
    /// Transitions of this call.
    pub transitions: f64,
    /// Mean of `log F~(s_0) + log R(s_0)`, the head's estimate of `log Z`.
    pub log_z: f64,
    /// Mean of the summed `log pi`.
    pub log_pf: f64,
    /// Mean of the terminals' `log R`.
    pub log_r: f64,
    /// Residuals of transitions.
    pub residual: ResidualSummary,
    /// Mean summed `log pi - log pi_ref`, with a reference.
    pub log_ratio: Option<f64>,
    /// Completions per prompt, as given.
    pub branching: Branching,
}

/// Computes the forward-looking loss.
pub fn forward_looking(
    trajectories: &Trajectories<'_>,
    states: StateFlows<'_>,
    options: ForwardLookingOptions,
    branching: Branching,
    normaliser: Normaliser,
) -> Result<ForwardLooking, ObjectiveError> {
    branching.require(options.least_completions, "the forward-looking objective")?;
    let steps = Steps::new(trajectories, options.reference)?;
    let (batch, time) = steps.terms.dims2()?;
    let lengths = trajectories.lengths;
    expect_shape("log_flow", states.log_flow, &[batch, time + 1])?;
    expect_shape("log_r", states.log_r, &[batch, time + 1])?;
    // Inner states only: a reward in padding may be anything.
    let inner = prefix_mask(lengths, time + 1, steps.terms.device())?;
    let dtype = steps.terms.dtype();
    let prefix_log_r = keep(&states.log_r.detach().to_dtype(dtype)?, &inner)?;
    let log_state_flow = pin_terminal(
        &(states.log_flow.to_dtype(dtype)? + prefix_log_r)?,
        states.log_r,
        lengths,
    )?;
    let residuals = transition_residuals(&steps, &log_state_flow)?;
    let terminals: Vec<f64> = matrix(states.log_r)?
        .iter()
        .zip(lengths)
        .map(|(row, length)| row[*length])
        .collect();
    let values = matrix(&residuals)?;
    Ok(ForwardLooking {
        loss: squared(&residuals, batch, normaliser)?,
        count: batch as f64,
        transitions: lengths.iter().sum::<usize>() as f64,
        log_z: mean(&vector(&log_state_flow.narrow(1, 0, 1)?.squeeze(1)?)?),
        log_pf: mean(&steps.log_pf),
        log_r: mean(&terminals),
        residual: ResidualSummary::of(
            values
                .iter()
                .zip(lengths)
                .flat_map(|(row, length)| row[..*length].iter().copied()),
        ),
        log_ratio: steps.mean_log_ratio(),
        branching,
    })
}
