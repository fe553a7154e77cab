//! How many rows of a step go through a model at once.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::engine::stage::Problem;

/// A number of rows, or `auto`: all at first, and half as many each time that a GPU has no room for them.
///
/// Sums over fewer rows differ in rounding: with `auto` the last bits of a result depend on the memory of the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum MicroBatch {
    /// So many.
    Rows(usize),
    /// As many as have room.
    Auto(Auto),
}

/// The word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Auto {
    /// As many as have room.
    Auto,
}

impl MicroBatch {
    /// Returns how many rows of `all` there are at first.
    pub(super) fn rows(this: Option<Self>, all: usize) -> usize {
        match this {
            Some(Self::Rows(rows)) => rows,
            Some(Self::Auto(_)) | None => all,
        }
    }

    /// Whether there are fewer when there is no room.
    pub(super) fn halves(this: Option<Self>) -> bool {
        matches!(this, Some(Self::Auto(_)))
    }

    /// Says what is wrong with it.
    pub(super) fn check(this: Option<Self>, problems: &mut Vec<Problem>) {
        if this == Some(Self::Rows(0)) {
            problems.push(Problem::new(
                "micro_batch",
                "`micro_batch` must be at least 1, or `auto`",
            ));
        }
    }
}
