//! The losses, each with its own numbers and what these may be.

use serde::{Deserialize, Serialize};

/// The loss, with its own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "loss", rename_all = "snake_case", deny_unknown_fields)]
pub enum PreferenceLoss {
    /// Direct preference optimisation.
    Dpo {
        /// Strength of the pull to the reference.
        beta: f64,
        /// Share of pairs that may be labelled the wrong way round.
        #[serde(default)]
        label_smoothing: f64,
        /// Leaves the reference model out.
        #[serde(default)]
        reference_free: bool,
    },
    /// Identity preference optimisation.
    Ipo {
        /// Regularisation; the margin aimed at is `1 / (2 beta)`.
        beta: f64,
    },
    /// Contrastive preference optimisation.
    Cpo {
        /// Scale of the margin.
        beta: f64,
        /// Weight of the likelihood of preferred completions.
        #[serde(default = "one")]
        sft_weight: f64,
        /// What that likelihood is a mean over.
        #[serde(default)]
        likelihood: Likelihood,
    },
    /// Odds-ratio preference optimisation.
    Orpo {
        /// Weight of the odds ratio.
        weight: f64,
    },
    /// Simple preference optimisation.
    Simpo {
        /// Scale of the margin.
        beta: f64,
        /// Margin aimed at.
        margin: f64,
    },
    /// Kahneman-Tversky optimisation, each completion judged by itself.
    Kto {
        /// Strength of the pull to the reference.
        beta: f64,
        /// Weight of preferred completions.
        #[serde(default = "one")]
        desirable_weight: f64,
        /// Weight of the others.
        #[serde(default = "one")]
        undesirable_weight: f64,
        /// The completions whose divergence from the reference rewards are compared to.
        #[serde(default)]
        reference_point: ReferencePoint,
    },
}

/// What CPO's likelihood of preferred completions is a mean over.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, Default,
)]
#[serde(rename_all = "snake_case")]
pub enum Likelihood {
    /// Over the tokens of all preferred completions of a step, as TRL does: long ones weigh more.
    #[default]
    Tokens,
    /// Over the pairs, each with the mean of its own tokens.
    Pairs,
}

/// Which completions KTO's reference point is taken over, each under another prompt of the step.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema, Default,
)]
#[serde(rename_all = "snake_case")]
pub enum ReferencePoint {
    /// All of them, as TRL does.
    #[default]
    All,
    /// The preferred ones.
    Chosen,
}

fn one() -> f64 {
    1.0
}

impl PreferenceLoss {
    /// Whether the loss needs the reference model.
    pub fn needs_reference(self) -> bool {
        match self {
            Self::Dpo { reference_free, .. } => !reference_free,
            Self::Ipo { .. } | Self::Kto { .. } => true,
            Self::Cpo { .. } | Self::Orpo { .. } | Self::Simpo { .. } => false,
        }
    }

    /// Names a number that is out of its range, with what was expected.
    pub fn problem(self) -> Option<(&'static str, &'static str)> {
        // What a margin is multiplied with or divided by: beyond, `f32` has no room.
        let positive = |value: f64| (1e-6..=1e6).contains(&value);
        let not_negative = |value: f64| value.is_finite() && value >= 0.0;
        let checks: Vec<(bool, &'static str, &'static str)> = match self {
            Self::Dpo {
                beta,
                label_smoothing,
                ..
            } => vec![
                (positive(beta), "beta", "from 1e-6 to 1e6"),
                (
                    (0.0..0.5).contains(&label_smoothing),
                    "label_smoothing",
                    "from 0 to below 0.5",
                ),
            ],
            Self::Ipo { beta } => vec![(positive(beta), "beta", "from 1e-6 to 1e6")],
            Self::Cpo {
                beta, sft_weight, ..
            } => vec![
                (positive(beta), "beta", "from 1e-6 to 1e6"),
                (not_negative(sft_weight), "sft_weight", "at least 0"),
            ],
            Self::Orpo { weight } => vec![(positive(weight), "weight", "from 1e-6 to 1e6")],
            Self::Simpo { beta, margin } => vec![
                (positive(beta), "beta", "from 1e-6 to 1e6"),
                (not_negative(margin), "margin", "at least 0"),
            ],
            Self::Kto {
                beta,
                desirable_weight,
                undesirable_weight,
                ..
            } => vec![
                (positive(beta), "beta", "from 1e-6 to 1e6"),
                (
                    not_negative(desirable_weight),
                    "desirable_weight",
                    "at least 0",
                ),
                (
                    not_negative(undesirable_weight),
                    "undesirable_weight",
                    "at least 0",
                ),
            ],
        };
        let wrong = checks.into_iter().find(|(holds, ..)| !holds);
        wrong.map(|(_, key, expected)| (key, expected))
    }
}
