//! Completions of the prompts of a step.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::PromptCompletions;
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

/// Groups tokenized completions by what tells their prompts apart beside tokens, in order of first appearance; equal
/// completions count once. Names the prompt of each group.
pub fn group_by_prompt<P: Ord + Copy>(
    rows: Vec<(P, TokenizedCompletion)>,
) -> (Vec<PromptCompletions>, Vec<P>) {
    let mut places: BTreeMap<(P, Vec<u32>), usize> = BTreeMap::new();
    let mut groups: Vec<PromptCompletions> = Vec::new();
    let mut names = Vec::new();
    for (name, row) in rows {
        let prompt = row.tokens[..row.prompt_length].to_vec();
        let place = *places.entry((name, prompt.clone())).or_insert_with(|| {
            names.push(name);
            groups.push(PromptCompletions {
                prompt,
                completions: Vec::new(),
            });
            groups.len() - 1
        });
        if !groups[place].completions.contains(&row) {
            groups[place].completions.push(row);
        }
    }
    (groups, names)
}
