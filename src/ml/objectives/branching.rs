//! Completions per prompt: how much an off-policy batch can say about the policy.
//!
//! Along one completion of `n` actions, `n` free log-flows solve the `n` equations of detailed balance (or of
//! the forward-looking objective) whatever the policy is, so `K` completions of a prompt give only `K - 1`
//! constraints on it: prompts with a single completion train nothing but the flow head.

use std::collections::{BTreeMap, BTreeSet};

use super::ObjectiveError;
use crate::hint::Hint;

/// Completions per prompt of a batch or a data set.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Branching {
    /// Distinct prompts.
    pub prompts: usize,
    /// Completions of the poorest prompt.
    pub least: usize,
    /// Mean number of completions of a prompt.
    pub mean: f64,
    /// Share of prompts with one completion.
    pub single: f64,
}

impl Branching {
    /// Counts rows per prompt; `prompt_of[row]` names the prompt of a row.
    ///
    /// For trajectories sampled from the policy, where a repeated row is evidence too.
    pub fn of_rows(prompt_of: &[usize]) -> Self {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for prompt in prompt_of {
            *counts.entry(*prompt).or_default() += 1;
        }
        Self::of_counts(counts.values().copied())
    }

    /// Counts distinct completions per prompt, for a fixed data set: a repeated completion adds no equation.
    pub fn of_distinct<'a>(pairs: impl IntoIterator<Item = (usize, &'a [u32])>) -> Self {
        let mut sets: BTreeMap<usize, BTreeSet<&[u32]>> = BTreeMap::new();
        for (prompt, completion) in pairs {
            sets.entry(prompt).or_default().insert(completion);
        }
        Self::of_counts(sets.values().map(BTreeSet::len))
    }

    fn of_counts(counts: impl Iterator<Item = usize>) -> Self {
        let (mut prompts, mut rows, mut single, mut least) = (0usize, 0usize, 0usize, usize::MAX);
        for count in counts {
            prompts += 1;
            rows += count;
            single += usize::from(count == 1);
            least = least.min(count);
        }
        let per_prompt = |n: usize| n as f64 / (prompts as f64).max(1.0);
        Self {
            prompts,
            least: if prompts == 0 { 0 } else { least },
            mean: per_prompt(rows),
            single: per_prompt(single),
        }
    }

    /// Refuses batches in which a prompt has fewer than `required` completions.
    pub fn require(&self, required: usize, objective: &'static str) -> Result<(), ObjectiveError> {
        if self.least >= required {
            Ok(())
        } else {
            Err(ObjectiveError::Branching {
                objective,
                found: self.least,
                required,
                hint: Hint::new(
                    "with K completions of a prompt only K - 1 constraints reach the policy, so put all completions \
                     of a prompt into one batch",
                ),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::in_one_line;

    #[test]
    fn rows_are_counted_per_prompt() {
        let branching = Branching::of_rows(&[4, 7, 4, 4]);
        assert_eq!(
            branching,
            Branching {
                prompts: 2,
                least: 1,
                mean: 2.0,
                single: 0.5
            }
        );
        let error = in_one_line(&branching.require(2, "forward-looking").unwrap_err());
        assert!(
            error.contains("; hint: ") && error.contains("K - 1"),
            "{error}"
        );
        branching.require(1, "forward-looking").unwrap();
    }

    #[test]
    fn a_repeated_completion_is_one_completion() {
        let rows: [(usize, &[u32]); 3] = [(0, &[1, 2]), (0, &[1, 2]), (0, &[1])];
        assert_eq!(Branching::of_distinct(rows).least, 2);
        assert_eq!(Branching::of_distinct(rows[..2].to_vec()).least, 1);
    }

    #[test]
    fn nothing_has_no_branching() {
        assert_eq!(Branching::of_rows(&[]).least, 0);
    }
}
