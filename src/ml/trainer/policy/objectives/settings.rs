//! What is set of single objectives.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ml::head::HeadGradient;
use crate::ml::objectives::Windows;

/// Where trajectory balance takes `log Z` from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// Over what the weights of sub-trajectories add up to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// Those of one trajectory.
    Trajectory,
    /// Those of all trajectories of a step.
    Batch,
}

impl Weighting {
    /// Returns the windows that are weighed so, each length `lambda` times as much as the one before.
    pub fn windows(self, lambda: f64) -> Windows {
        match self {
            Self::Trajectory => Windows::WithinTrajectory { lambda },
            Self::Batch => Windows::AcrossBatch { lambda },
        }
    }
}

/// Settings of the objectives of `GFlowNet`s; each takes those that its line in the table names.
#[derive(Debug, Clone, Copy)]
pub struct GflownetSettings {
    /// Where log Z comes from, if not from where the objective has it.
    pub log_z: Option<LogZSource>,
    /// Learning rate of log Z.
    pub log_z_lr: f64,
    /// Where log Z starts; from data if absent.
    pub log_z_start: Option<f64>,
    /// Whether log-probabilities are divided by the length of the completion, if not as the objective's authors did.
    pub length_normalised: Option<bool>,
    /// Factor between the weights of sub-trajectories of one length and the next, if not the objective's own.
    pub lambda: Option<f64>,
    /// Over what these weights add up to 1, if not what the objective's authors took.
    pub weighting: Option<Weighting>,
    /// Learning rate of the flow head.
    pub flow_lr: f64,
    /// Whether the flow head's gradient reaches the model.
    pub flow_gradient: HeadGradient,
    /// Completions that the data set must have of a prompt.
    pub least_completions: usize,
}

impl GflownetSettings {
    /// Returns the sub-trajectories that are squared, as the objective's authors did unless the settings say otherwise.
    pub(super) fn windows(&self, lambda: f64, weighting: Weighting) -> Windows {
        let lambda = self.lambda.unwrap_or(lambda);
        self.weighting.unwrap_or(weighting).windows(lambda)
    }
}
