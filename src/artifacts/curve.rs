//! Training curves: metrics step by step, how the training ended, and what it cost.

use std::path::Path;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use super::table::{Table, TableError};

/// The artifact kind.
pub const CURVE: &str = "curve";
/// What a training has a known number of: new completions or pairs that it learns from, however often.
pub const SAMPLES: &str = "samples";
/// The file that says how a training ended.
pub const SUMMARY: &str = "summary.json";

/// How a training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It made all its steps.
    Completed,
    /// It left the region where its result means anything, and was stopped.
    Diverged,
}

/// What a training did, apart from its weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingSummary {
    /// How it ended.
    pub status: Status,
    /// Why it diverged, if it did.
    pub reason: Option<String>,
    /// Optimizer steps made.
    pub steps: u64,
    /// Tokens that gradients were computed for.
    pub trained_tokens: u64,
    /// Tokens generated on the way.
    pub generated_tokens: u64,
    /// Floating-point operations, counted from shapes.
    pub flops: f64,
    /// Parameters that were trained.
    pub trained_parameters: u64,
}

/// Metrics of a training; each has a value, or none, at each recorded step.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// What was trained.
    pub title: String,
    /// Recorded steps.
    pub steps: Vec<u64>,
    /// Values by metric.
    pub metrics: IndexMap<String, Vec<Option<f64>>>,
    /// How it ended.
    pub summary: TrainingSummary,
}

impl Curve {
    /// Writes the curve into a folder.
    pub fn write(&self, folder: &Path) -> Result<(), TableError> {
        let mut table = Table::new(&self.title);
        table.whole_column("step", self.steps.iter().map(|step| Some(*step as f64)));
        for (name, values) in &self.metrics {
            table.number_column(name, 6, values.iter().copied());
        }
        table.write_data(folder)?;
        let text = serde_json::to_string_pretty(&self.summary).map_err(std::io::Error::from)?;
        fs_err::write(folder.join(SUMMARY), text)?;
        Ok(())
    }

    /// Returns the values of a metric or, if the training does not tell it, of `fallback`.
    pub fn metric(&self, name: &str, fallback: Option<&str>) -> Option<&[Option<f64>]> {
        let mut names = [Some(name), fallback].into_iter().flatten();
        let values = names.find_map(|name| self.metrics.get(name));
        values.map(Vec::as_slice)
    }

    /// Returns the floating-point operations up to the end of a step, each step being an equal share of all.
    pub fn flops_to(&self, step: u64) -> f64 {
        let made = self.summary.steps.max(1);
        let done = step.saturating_add(u64::from(!self.counts_from_one()));
        self.summary.flops * (done.min(made) as f64 / made as f64)
    }

    /// Whether a step is called by how many steps have been made after it: our own trainings call the first one 0, others
    /// 1. The last of ours is one less than were made, unless one that diverged was not made.
    pub fn counts_from_one(&self) -> bool {
        let last = self.steps.last().copied().unwrap_or_default();
        let starts_later = self.steps.first().is_some_and(|first| *first > 0);
        last >= self.summary.steps && (self.summary.status == Status::Completed || starts_later)
    }

    /// Reads a curve from a folder.
    pub fn read(folder: &Path) -> Result<Self, TableError> {
        let table = Table::read(folder)?;
        let path = folder.join(SUMMARY);
        let summary = serde_json::from_str(&fs_err::read_to_string(&path)?)
            .map_err(|source| TableError::Description { path, source })?;
        let steps = table
            .all_numbers("step")?
            .into_iter()
            .map(|step| step as u64)
            .collect();
        let mut metrics = IndexMap::new();
        for column in table.columns.iter().filter(|column| column.name != "step") {
            metrics.insert(column.name.clone(), table.numbers(&column.name)?.to_vec());
        }
        Ok(Self {
            title: table.title,
            steps,
            metrics,
            summary,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted_from_zero_or_one() {
        let flops_to = |steps: &[u64], status: Status, step: u64| {
            let summary = TrainingSummary {
                status,
                reason: None,
                steps: 4,
                trained_tokens: 0,
                generated_tokens: 0,
                flops: 8.0,
                trained_parameters: 0,
            };
            let curve = Curve {
                title: String::new(),
                steps: steps.to_vec(),
                metrics: IndexMap::new(),
                summary,
            };
            curve.flops_to(step)
        };
        let (completed, diverged) = (Status::Completed, Status::Diverged);
        assert_eq!(flops_to(&[0, 1, 2, 3], completed, 1), 4.0);
        assert_eq!(flops_to(&[1, 2, 3, 4], completed, 1), 2.0);
        assert_eq!(flops_to(&[2, 4], completed, 2), 4.0);
        assert_eq!(flops_to(&[2, 4], completed, 4), 8.0);
        // The step at which a training of ours diverged is not made.
        assert_eq!(flops_to(&[0, 1, 2, 3, 4], diverged, 1), 4.0);
        assert_eq!(flops_to(&[1, 2, 3, 4], diverged, 1), 2.0);
        assert_eq!(flops_to(&[0, 1], completed, u64::MAX), 8.0);
    }
}
