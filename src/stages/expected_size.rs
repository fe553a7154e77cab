//! What a stage is expected to cost: arithmetic on sizes that the pipeline states.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::stage::{Estimate, Problem};
use crate::stages::ranges::at_least_one;

/// Sizes that only the data and the model know, as the pipeline expects them; for the plan's estimates alone.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ExpectedSize {
    /// Parameters of the model.
    pub(crate) parameters: u64,
    /// Tokens of a row: prompt and completion.
    pub(crate) row_tokens: u64,
    /// Floating-point operations a second that the machine really makes; without it no time is estimated.
    #[serde(default)]
    pub(crate) flops_per_second: Option<f64>,
}

/// Work of a stage in forward passes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Work {
    /// Rows in all.
    pub(crate) rows: f64,
    /// Forward passes over each row, those of frozen models and of generation included.
    pub(crate) forward: f64,
    /// Backward passes over each row.
    pub(crate) backward: f64,
    /// Whether all weights are trained, not an adapter alone.
    pub(crate) trains_all: bool,
    /// Models in memory at once.
    pub(crate) models: f64,
}

impl ExpectedSize {
    /// Checks ranges.
    pub(crate) fn validate(&self, problems: &mut Vec<Problem>) {
        at_least_one("expected_size.parameters", self.parameters, problems);
        at_least_one("expected_size.row_tokens", self.row_tokens, problems);
        if self.flops_per_second.is_some_and(|rate| rate <= 0.0) {
            problems.push(Problem::new(
                "expected_size.flops_per_second",
                "`flops_per_second` must be above 0",
            ));
        }
    }

    /// Estimates costs: 2 operations a weight and token forward, and as much again backward for inputs and for
    /// weights, if those are trained (Kaplan et al. 2020, section 2.1).
    ///
    /// Memory is that of 32-bit weights, gradients and AdamW's two moments; activations are not in it.
    pub(crate) fn estimate(&self, work: Work) -> Estimate {
        let backward = if work.trains_all { 2.0 } else { 1.0 } * work.backward;
        let tokens = work.rows * self.row_tokens as f64;
        let flops = 2.0 * self.parameters as f64 * tokens * (work.forward + backward);
        let training = if work.trains_all && work.backward > 0.0 {
            3.0
        } else {
            0.0
        };
        let memory = 4.0 * self.parameters as f64 * (work.models + training);
        Estimate {
            seconds: self.flops_per_second.map(|rate| flops / rate),
            memory_bytes: Some(memory as u64),
            flops: Some(flops),
        }
    }
}

/// Estimates the cost of `work`, if a size is given.
pub(crate) fn estimate(size: Option<&ExpectedSize>, work: Work) -> Estimate {
    size.map_or_else(Estimate::default, |size| size.estimate(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_follow_from_sizes() {
        let size = ExpectedSize {
            parameters: 1_000_000,
            row_tokens: 100,
            flops_per_second: Some(1e9),
        };
        let work = Work {
            rows: 10.0,
            forward: 1.0,
            backward: 1.0,
            trains_all: true,
            models: 1.0,
        };
        let all = size.estimate(work);
        // 6 operations a weight and token; weights, gradients and two moments.
        assert_eq!(all.flops, Some(6e9));
        assert_eq!(
            (all.seconds, all.memory_bytes),
            (Some(6.0), Some(16_000_000))
        );
        let adapter = size.estimate(Work {
            trains_all: false,
            ..work
        });
        assert_eq!(
            (adapter.flops, adapter.memory_bytes),
            (Some(4e9), Some(4_000_000))
        );
        assert_eq!(estimate(None, work), Estimate::default());
    }
}
