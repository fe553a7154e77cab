//! Completions of the prompts of a step.

use serde::{Deserialize, Serialize};

use crate::ml::trainer::TokenizedCompletion;
use crate::ml::trainer::rewards::Answer;

/// Completions of a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// The prompt's place among those of the training.
    pub prompt: usize,
    /// The completions.
    pub completions: Vec<TokenizedCompletion>,
}

impl Group {
    /// Returns how many completions there are.
    pub fn count(&self) -> usize {
        self.completions.len()
    }
}

/// Returns the completions of some prompts, one prompt's after the other's.
pub(super) fn rows(groups: &[Group]) -> Vec<&TokenizedCompletion> {
    let rows = groups.iter().flat_map(|group| &group.completions);
    rows.collect()
}

/// Returns the same as answers to their prompts.
pub(super) fn answers(groups: &[Group]) -> Vec<Answer<'_>> {
    let answers = groups.iter().flat_map(|group| {
        let of_prompt = |completion| Answer {
            prompt: group.prompt,
            completion,
        };
        group.completions.iter().map(of_prompt)
    });
    answers.collect()
}

/// Numbers the prompts of these rows from 0.
pub(super) fn prompt_of(groups: &[Group]) -> Vec<usize> {
    let groups = groups.iter().enumerate();
    groups
        .flat_map(|(prompt, group)| std::iter::repeat_n(prompt, group.count()))
        .collect()
}
