//! A buffer of past completions, for trainings that mix them with fresh ones.
//!
//! For each prompt it keeps a bounded number of distinct completions, those of greatest reward. What it holds
//! depends only on what was inserted, not on the order (as long as a completion keeps its reward); draws
//! depend only on its content and on the given [`Draws`]. So a training that resumes from a stored buffer
//! continues with the same bytes.
//!
//! With a least distance (Hu et al. 2024) completions must also differ in so many tokens: of close ones the best
//! stays, so that the buffer does not fill with one answer in many wordings. What it holds then depends on the order
//! of insertion too: A is close to B and B to C, but A need not be to C.

mod edit_distance;

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::random::Draws;

/// What the buffer refuses.
#[derive(Debug, Error, PartialEq)]
pub enum ReplayBufferError {
    /// A buffer that can hold nothing.
    #[error(
        "the capacity of a replay buffer is 0 completions for each prompt, expected at least 1"
    )]
    NoCapacity,
    /// A completion without tokens.
    #[error("a completion of prompt {prompt} has no tokens")]
    NoTokens {
        /// The prompt.
        prompt: u64,
    },
    /// A reward that cannot be ordered.
    #[error("a completion of prompt {prompt} has log-reward {log_r}, expected a finite number")]
    Reward {
        /// The prompt.
        prompt: u64,
        /// The reward.
        log_r: f64,
    },
    /// A temperature that makes no distribution.
    #[error("the priority temperature is {0}, expected a positive number")]
    Temperature(f64),
    /// A distance that is none.
    #[error("the least distance is {0}, expected a number above 0 and at most 1")]
    Distance(f64),
    /// A stored buffer that breaks the buffer's own rules.
    #[error("stored replay buffer: prompt {prompt} {problem}")]
    Stored {
        /// The prompt.
        prompt: u64,
        /// What is wrong there.
        problem: &'static str,
    },
}

/// A completion with its reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Completion {
    /// Token ids, EOS included where it was sampled.
    pub tokens: Vec<u32>,
    /// Log-reward before any tempering, so that a schedule can temper it anew.
    pub log_r: f64,
    /// Whether it was cut at the horizon instead of ending with EOS.
    pub truncated: bool,
}

/// How draws prefer completions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// All alike.
    Uniform,
    /// Proportional to `exp(log_r / temperature)`.
    Reward {
        /// The temperature, positive; small values prefer the best completions more.
        temperature: f64,
    },
}

/// What became of an inserted completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Insertion {
    /// It is in the buffer now.
    Added,
    /// It was there; its reward is now the given one.
    Updated,
    /// It took the place of worse ones that it is close to.
    Replaced,
    /// The buffer is full for this prompt and holds better ones, or one that is close and as good.
    Rejected,
}

/// Distinct completions of greatest reward for each prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredBuffer")]
pub struct ReplayBuffer {
    capacity: usize,
    /// Share of two completions' lengths together by which they must differ.
    #[serde(skip_serializing_if = "Option::is_none")]
    min_distance: Option<f64>,
    /// Completions of a prompt, best first; see [`order`].
    prompts: BTreeMap<u64, Vec<Completion>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredBuffer {
    capacity: usize,
    #[serde(default)]
    min_distance: Option<f64>,
    prompts: BTreeMap<u64, Vec<Completion>>,
}

/// Orders by falling reward; tokens decide between equal rewards, so that the order is total.
fn order(left: &Completion, right: &Completion) -> Ordering {
    right
        .log_r
        .total_cmp(&left.log_r)
        .then_with(|| left.tokens.cmp(&right.tokens))
}

/// Says whether the edit distance of two completions, their EOS aside, is below `share` of their lengths together.
fn are_close(left: &Completion, right: &Completion, share: f64) -> bool {
    let words =
        |completion: &Completion| completion.tokens.len() - usize::from(!completion.truncated);
    let (left, right) = (&left.tokens[..words(left)], &right.tokens[..words(right)]);
    let least = (share * (left.len() + right.len()) as f64).ceil() as usize;
    least > 0 && edit_distance::within(left, right, least - 1)
}

fn check(prompt: u64, completion: &Completion) -> Result<(), ReplayBufferError> {
    if completion.tokens.is_empty() {
        return Err(ReplayBufferError::NoTokens { prompt });
    }
    if !completion.log_r.is_finite() {
        return Err(ReplayBufferError::Reward {
            prompt,
            log_r: completion.log_r,
        });
    }
    Ok(())
}

impl ReplayBuffer {
    /// Makes an empty buffer for `capacity` completions of each prompt.
    pub fn new(capacity: usize) -> Result<Self, ReplayBufferError> {
        if capacity == 0 {
            return Err(ReplayBufferError::NoCapacity);
        }
        Ok(Self {
            capacity,
            min_distance: None,
            prompts: BTreeMap::new(),
        })
    }

    /// Sets the least edit distance of two completions of a prompt, as a share of their lengths together; without one
    /// they must only not be the same. Set it before anything is inserted.
    pub fn with_min_distance(self, min_distance: Option<f64>) -> Result<Self, ReplayBufferError> {
        if let Some(distance) = min_distance
            && !(distance > 0.0 && distance <= 1.0)
        {
            return Err(ReplayBufferError::Distance(distance));
        }
        Ok(Self {
            min_distance,
            ..self
        })
    }

    /// Inserts a completion of a prompt.
    ///
    /// It is compared to every completion that is held of the prompt. One that is close to a stored one and not better
    /// is rejected; a better one replaces all that it is close to.
    pub fn insert(
        &mut self,
        prompt: u64,
        completion: Completion,
    ) -> Result<Insertion, ReplayBufferError> {
        check(prompt, &completion)?;
        let held = self.prompts.entry(prompt).or_default();
        let known = held.iter().position(|c| c.tokens == completion.tokens);
        if let Some(index) = known {
            held.remove(index);
        }
        let mut replaces = false;
        if let Some(share) = self.min_distance {
            // Best first: the first one that is close is the best of them.
            let mut best = None;
            let close: Vec<bool> = held
                .iter()
                .map(|other| {
                    let close = best.is_none_or(|best: f64| best < completion.log_r)
                        && are_close(other, &completion, share);
                    if close {
                        best.get_or_insert(other.log_r);
                    }
                    close
                })
                .collect();
            if best.is_some_and(|best| best >= completion.log_r) {
                return Ok(Insertion::Rejected);
            }
            replaces = best.is_some();
            let mut close = close.into_iter();
            held.retain(|_| !close.next().unwrap_or(false));
        }
        let place = held.partition_point(|c| order(c, &completion) == Ordering::Less);
        if place >= self.capacity {
            return Ok(Insertion::Rejected);
        }
        held.insert(place, completion);
        held.truncate(self.capacity);
        Ok(if known.is_some() {
            Insertion::Updated
        } else if replaces {
            Insertion::Replaced
        } else {
            Insertion::Added
        })
    }

    /// Gives a prompt the completions that [`Self::completions`] returned earlier.
    pub fn set(&mut self, prompt: u64, completions: Vec<Completion>) {
        if completions.is_empty() {
            self.prompts.remove(&prompt);
        } else {
            self.prompts.insert(prompt, completions);
        }
    }

    /// Draws up to `n` distinct completions of a prompt, one after another without replacement.
    ///
    /// Returns fewer where the prompt has fewer, and none for an unknown prompt.
    pub fn draw(
        &self,
        prompt: u64,
        n: usize,
        priority: Priority,
        draws: &mut Draws,
    ) -> Result<Vec<&Completion>, ReplayBufferError> {
        if let Priority::Reward { temperature } = priority
            && !(temperature.is_finite() && temperature > 0.0)
        {
            return Err(ReplayBufferError::Temperature(temperature));
        }
        let mut left: Vec<&Completion> = self.completions(prompt).iter().collect();
        let mut drawn = Vec::with_capacity(n.min(left.len()));
        while drawn.len() < n && !left.is_empty() {
            let index = match priority {
                Priority::Uniform => draws.below(left.len()),
                Priority::Reward { temperature } => {
                    // The best one left has weight 1: no overflow, and always some mass.
                    let best = left[0].log_r;
                    let weights: Vec<f64> = left
                        .iter()
                        .map(|c| libm::exp((c.log_r - best) / temperature))
                        .collect();
                    draws.weighted(&weights)
                }
            };
            drawn.push(left.remove(index));
        }
        Ok(drawn)
    }

    /// Returns the completions of a prompt, best first.
    pub fn completions(&self, prompt: u64) -> &[Completion] {
        self.prompts.get(&prompt).map_or(&[], Vec::as_slice)
    }

    /// Returns the prompts that have completions, in rising order.
    pub fn prompts(&self) -> impl Iterator<Item = u64> {
        self.prompts.keys().copied()
    }

    /// Returns the number of completions.
    pub fn len(&self) -> usize {
        self.prompts.values().map(Vec::len).sum()
    }

    /// Says whether there is no completion.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }
}

impl TryFrom<StoredBuffer> for ReplayBuffer {
    type Error = ReplayBufferError;

    fn try_from(stored: StoredBuffer) -> Result<Self, ReplayBufferError> {
        let empty = Self::new(stored.capacity)?.with_min_distance(stored.min_distance)?;
        let buffer = Self {
            prompts: stored.prompts,
            ..empty
        };
        for (prompt, held) in &buffer.prompts {
            let wrong = |problem| {
                Err(ReplayBufferError::Stored {
                    prompt: *prompt,
                    problem,
                })
            };
            if held.is_empty() {
                return wrong("has an empty list");
            }
            if held.len() > buffer.capacity {
                return wrong("has more completions than the capacity");
            }
            for completion in held {
                check(*prompt, completion)?;
            }
            if !held.is_sorted_by(|left, right| order(left, right) == Ordering::Less) {
                return wrong("is not sorted by falling reward");
            }
            let mut tokens: Vec<&[u32]> = held.iter().map(|c| c.tokens.as_slice()).collect();
            tokens.sort_unstable();
            if tokens.windows(2).any(|pair| pair[0] == pair[1]) {
                return wrong("has a completion twice");
            }
        }
        Ok(buffer)
    }
}

#[cfg(test)]
mod tests;
