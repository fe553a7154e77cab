//! The completions that one update or several learn from, as checkpoints hold them.

use serde::{Deserialize, Serialize};

use super::PolicyOptions;
use super::group::{self, Group};
use super::requirements::Requirements;
use super::scored::Weights;
use crate::ml::trainer::TokenizedCompletion;

/// Completions for one update or several.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Batch {
    /// The first step that sees them.
    pub(super) step: u64,
    /// For each prompt, its completions.
    pub(super) groups: Vec<Group>,
    /// Log-probabilities of their tokens under the policy of the first step, where they are needed.
    pub(super) drawn: Option<Vec<Vec<f64>>>,
    /// What they weigh, where they are weighed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) weights: Vec<Weights>,
    /// Their mean age at that step, where they are not all fresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) age: Option<f64>,
}

impl Batch {
    /// Whether it could be what a training by an objective that asks for so much is at.
    pub(super) fn is_whole(
        &self,
        asks: &Requirements,
        options: &PolicyOptions,
        prompts: usize,
    ) -> bool {
        let rows = group::rows(&self.groups);
        let lengths = || rows.iter().map(|row| row.completion_length());
        let known = |group: &Group| group.prompt < prompts && group.count() > 0;
        let completed =
            |row: &&TokenizedCompletion| (1..row.tokens.len()).contains(&row.prompt_length);
        let drawn = match &self.drawn {
            Some(drawn) => drawn.iter().map(Vec::len).eq(lengths()),
            None => !asks.drawn,
        };
        let weighed = match asks.weighed {
            Some(by) => {
                let of_importance = |length| if by.sampler { length } else { 0 };
                let expected = lengths().map(|length| (length, of_importance(length)));
                let found = self.weights.iter();
                found
                    .map(|weights| (weights.advantages.len(), weights.importance.len()))
                    .eq(expected)
            }
            None => self.weights.is_empty(),
        };
        self.groups.iter().all(known)
            && rows.iter().all(completed)
            && (!rows.is_empty() || options.dynamic_sampling > 0)
            && (rows.is_empty() || drawn)
            && weighed
    }
}
