//! Which examples a step sees.

use serde::{Deserialize, Serialize};

use crate::random::Stream;

/// A prompt with a completion, as tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizedCompletion {
    /// Prompt, then completion, the end-of-sequence token included.
    pub tokens: Vec<u32>,
    /// Length of the prompt.
    pub prompt_length: usize,
}

impl TokenizedCompletion {
    /// Puts a completion behind its prompt.
    pub fn new(prompt: &[u32], completion: &[u32]) -> Self {
        Self {
            tokens: [prompt, completion].concat(),
            prompt_length: prompt.len(),
        }
    }

    /// Returns the number of tokens after the prompt.
    pub fn completion_length(&self) -> usize {
        self.tokens.len() - self.prompt_length
    }

    /// Whether the horizon ended it: its last token is none of those that end completions.
    pub fn is_truncated(&self, eos: &[u32]) -> bool {
        self.tokens.last().is_none_or(|last| !eos.contains(last))
    }
}

/// Returns each row's tokens without the one that ends it, and whether none does: the horizon ended it.
pub(super) fn tokens_before_end(
    rows: &[&TokenizedCompletion],
    eos: &[u32],
) -> (Vec<usize>, Vec<bool>) {
    let rows = rows.iter();
    rows.map(|row| {
        let truncated = row.is_truncated(eos);
        (row.completion_length() - usize::from(!truncated), truncated)
    })
    .unzip()
}

/// Shuffled passes over `count` items; the items of a step depend on the stream and the step alone, so there
/// is no cursor to store.
#[derive(Debug, Clone)]
pub struct Epochs {
    count: usize,
    batch: usize,
    stream: Stream,
    /// The permutation of one epoch, kept because consecutive steps share it.
    current: Option<(u64, Vec<usize>)>,
}

impl Epochs {
    /// Makes passes over `count` items (at least one) in batches of `batch`.
    pub fn new(count: usize, batch: usize, stream: Stream) -> Self {
        assert!(count > 0 && batch > 0, "BUG: empty epochs");
        Self {
            count,
            batch,
            stream,
            current: None,
        }
    }

    /// Returns the items of `step`; a batch may end one epoch and begin the next.
    pub fn at(&mut self, step: u64) -> Vec<usize> {
        (0..self.batch as u64)
            .map(|offset| {
                let place = step * self.batch as u64 + offset;
                let (epoch, index) = (
                    place / self.count as u64,
                    (place % self.count as u64) as usize,
                );
                if self
                    .current
                    .as_ref()
                    .is_none_or(|(current, _)| *current != epoch)
                {
                    let mut order: Vec<usize> = (0..self.count).collect();
                    self.stream.at(epoch).shuffle(&mut order);
                    self.current = Some((epoch, order));
                }
                self.current.as_ref().map_or(0, |(_, order)| order[index])
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_sees_every_item_once_and_steps_need_no_history() {
        let mut epochs = Epochs::new(10, 4, Stream::new(1, "data"));
        let seen: Vec<usize> = (0..5).flat_map(|step| epochs.at(step)).collect();
        for epoch in seen.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(seen[..10], seen[10..]);
        assert_eq!(
            Epochs::new(10, 4, Stream::new(1, "data")).at(3),
            seen[12..16]
        );
    }
}
