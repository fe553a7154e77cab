//! The objectives by name, and what each stands for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::ml::trainer::gflownet::LogZSource;

/// The loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ObjectiveName {
    /// TB (Malkin et al. 2022).
    #[serde(alias = "tb")]
    TrajectoryBalance,
    /// TB whose log Z is the mean over the completions of a prompt (Richter et al. 2020; Zhang et al. 2023).
    Vargrad,
    /// DB (Bengio et al. 2023), with a flow head.
    #[serde(alias = "db")]
    DetailedBalance,
    /// SubTB(lambda) (Madan et al. 2023), with a flow head.
    #[serde(alias = "subtb")]
    SubTrajectoryBalance,
    /// FL (Pan et al. 2023), the terminals' log-flow pinned to 0.
    ForwardLooking,
    /// SubTB on prefixes that may all end (Hu et al. 2024): flows from the probability of stopping, no head.
    #[serde(alias = "modified_subtb")]
    ModifiedSubTrajectoryBalance,
    /// RTB (Venkatraman et al. 2024): TB whose target is the starting model's distribution times R.
    #[serde(alias = "rtb")]
    RelativeTrajectoryBalance,
    /// TBA (Bartoldson et al. 2025): RTB whose log Z is the mean over the completions of a prompt.
    Tba,
    /// FlowRL (Zhu et al. 2025): RTB of log-probabilities divided by length and rewards standardised among the
    /// completions of a prompt. Log Z is a linear head on the prompt's last state unless `log_z: network` asks for the
    /// authors' network of three layers. With `updates_per_batch` above 1 completions have importance weights.
    Flowrl,
}

impl ObjectiveName {
    pub(super) fn has_flow_head(self) -> bool {
        matches!(
            self,
            Self::DetailedBalance | Self::SubTrajectoryBalance | Self::ForwardLooking
        )
    }

    pub(super) fn has_windows(self) -> bool {
        matches!(
            self,
            Self::SubTrajectoryBalance | Self::ModifiedSubTrajectoryBalance
        )
    }

    /// Where log Z comes from unless the params say so; `None` if there is none.
    pub(super) fn log_z(self) -> Option<LogZSource> {
        match self {
            Self::TrajectoryBalance => Some(LogZSource::Scalar),
            Self::RelativeTrajectoryBalance | Self::Flowrl => Some(LogZSource::PerPrompt),
            Self::Vargrad | Self::Tba => Some(LogZSource::Batch),
            _ => None,
        }
    }

    pub(super) fn has_prior_in_target(self) -> bool {
        matches!(
            self,
            Self::RelativeTrajectoryBalance | Self::Tba | Self::Flowrl
        )
    }
}

/// Over what the weights of sub-trajectories add up to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Weighting {
    /// Those of one trajectory.
    Trajectory,
    /// Those of all trajectories of a step.
    Batch,
}
