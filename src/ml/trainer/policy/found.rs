//! What an objective finds in completions: a loss, and numbers that are told.

use candle_core::Tensor;

use crate::ml::objectives::residual::ResidualSummary;

/// What a micro-batch gives.
#[derive(Debug)]
pub struct Found {
    /// A scalar to differentiate.
    pub loss: Tensor,
    /// Mean of the completions' rewards as they are given, times the factor from reward to `log R`.
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
    /// What every balance of flows tells: log-probability, log Z, residual and, with a reference, the log-ratio to it.
    pub fn of_flows(
        log_pf: f64,
        log_z: f64,
        residual: &ResidualSummary,
        log_ratio: Option<f64>,
    ) -> Vec<Self> {
        let mut metrics = vec![
            Self::mean("log_pf", log_pf),
            Self::mean("log_z", log_z),
            Self::root_mean_square("residual", residual.root_mean_square),
        ];
        metrics.extend(log_ratio.map(|ratio| Self::mean("log_ratio", ratio)));
        metrics
    }

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
