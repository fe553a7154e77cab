//! What a training records step by step.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::artifacts::curve::{Curve, Status, TrainingSummary};
use crate::ml::trainer::StepReport;

/// What a training has recorded so far; part of its checkpoints.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) step: u64,
    steps: Vec<u64>,
    metrics: IndexMap<String, Vec<Option<f64>>>,
    trained_tokens: u64,
    generated_tokens: u64,
    flops: f64,
    pub(super) diverged: Option<String>,
}

impl Record {
    pub(super) fn take(&mut self, report: &StepReport) {
        let known = self.steps.len();
        self.steps.push(self.step);
        for (name, value) in &report.metrics {
            let column = self
                .metrics
                .entry((*name).to_owned())
                .or_insert_with(|| vec![None; known]);
            column.resize(known, None);
            column.push(value.is_finite().then_some(*value));
        }
        self.trained_tokens += report.trained_tokens;
        self.generated_tokens += report.generated_tokens;
        self.flops += report.flops;
        self.diverged.clone_from(&report.diverged);
    }

    /// Says so where steps had nothing to learn from: gradients of 0, or none at all.
    pub(super) fn unlearnt(&self) -> Option<String> {
        let norms = self.metrics.get("grad_norm")?;
        let learnt = norms.iter().flatten().filter(|norm| **norm > 0.0).count();
        let (steps, idle) = (self.steps.len(), self.steps.len() - learnt);
        // A step now and then is no news.
        (2 * idle > steps).then(|| {
            format!("{idle} of {steps} steps changed nothing: nothing of their loss depends on the parameters")
        })
    }

    pub(super) fn into_curve(self, title: &str, trained_parameters: u64) -> Curve {
        let rows = self.steps.len();
        let mut metrics = self.metrics;
        metrics
            .values_mut()
            .for_each(|column| column.resize(rows, None));
        Curve {
            title: title.to_owned(),
            steps: self.steps,
            metrics,
            summary: TrainingSummary {
                status: if self.diverged.is_some() {
                    Status::Diverged
                } else {
                    Status::Completed
                },
                reason: self.diverged,
                steps: self.step,
                trained_tokens: self.trained_tokens,
                generated_tokens: self.generated_tokens,
                flops: self.flops,
                trained_parameters,
            },
        }
    }
}
