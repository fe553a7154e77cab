//! A buffer of past completions, for trainings that mix them with fresh ones.
//!
//! For each prompt it keeps a bounded number of distinct completions, those of greatest reward. What it holds
//! depends only on what was inserted, not on the order (as long as a completion keeps its reward); draws
//! depend only on its content and on the given [`Draws`]. So a training that resumes from a stored buffer
//! continues with the same bytes.

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
    /// The buffer is full for this prompt and holds better ones.
    Rejected,
}

/// Distinct completions of greatest reward for each prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "StoredBuffer")]
pub struct ReplayBuffer {
    capacity: usize,
    /// Completions of a prompt, best first; see [`order`].
    prompts: BTreeMap<u64, Vec<Completion>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredBuffer {
    capacity: usize,
    prompts: BTreeMap<u64, Vec<Completion>>,
}

/// Orders by falling reward; tokens decide between equal rewards, so that the order is total.
fn order(left: &Completion, right: &Completion) -> Ordering {
    right
        .log_r
        .total_cmp(&left.log_r)
        .then_with(|| left.tokens.cmp(&right.tokens))
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
            prompts: BTreeMap::new(),
        })
    }

    /// Inserts a completion of a prompt.
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
        let place = held.partition_point(|c| order(c, &completion) == Ordering::Less);
        if place >= self.capacity {
            return Ok(Insertion::Rejected);
        }
        held.insert(place, completion);
        held.truncate(self.capacity);
        Ok(if known.is_some() {
            Insertion::Updated
        } else {
            Insertion::Added
        })
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
                        .map(|c| ((c.log_r - best) / temperature).exp())
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
        let buffer = Self {
            prompts: stored.prompts,
            ..Self::new(stored.capacity)?
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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::random::Stream;

    fn completion(token: u32, log_r: f64) -> Completion {
        Completion {
            tokens: vec![token, 0],
            log_r,
            truncated: token % 2 == 1,
        }
    }

    fn filled(rewards: &[f64], capacity: usize) -> ReplayBuffer {
        let mut buffer = ReplayBuffer::new(capacity).unwrap();
        for (token, log_r) in rewards.iter().enumerate() {
            buffer.insert(5, completion(token as u32, *log_r)).unwrap();
        }
        buffer
    }

    #[test]
    fn the_best_distinct_completions_stay() {
        let mut buffer = filled(&[1.0, 3.0, 2.0], 2);
        let rewards: Vec<f64> = buffer.completions(5).iter().map(|c| c.log_r).collect();
        assert_eq!(rewards, [3.0, 2.0]);
        assert_eq!(
            buffer.insert(5, completion(9, 1.5)).unwrap(),
            Insertion::Rejected
        );
        assert_eq!(
            buffer.insert(5, completion(1, 2.5)).unwrap(),
            Insertion::Updated
        );
        assert_eq!(
            buffer.insert(6, completion(1, -8.0)).unwrap(),
            Insertion::Added
        );
        assert_eq!(buffer.len(), 3);
        assert_eq!(buffer.prompts().collect::<Vec<_>>(), [5, 6]);
        assert_eq!(buffer.completions(5)[0].log_r, 2.5);
        assert!(buffer.completions(7).is_empty());
    }

    #[test]
    fn uniform_draws_are_uniform_and_without_replacement() {
        let buffer = filled(&[0.0, 50.0, 1.0, 2.0], 4);
        let stream = Stream::new(1, "replay");
        let mut counts = [0usize; 4];
        for counter in 0..4000 {
            let drawn = buffer
                .draw(5, 2, Priority::Uniform, &mut stream.at(counter))
                .unwrap();
            assert_eq!(drawn.len(), 2);
            assert_ne!(drawn[0].tokens, drawn[1].tokens);
            counts[drawn[0].tokens[0] as usize] += 1;
        }
        assert!(counts.iter().all(|n| (900..1100).contains(n)), "{counts:?}");
        let all = buffer.draw(5, 99, Priority::Uniform, &mut stream.at(0));
        assert_eq!(all.unwrap().len(), 4);
        let none = buffer.draw(8, 1, Priority::Uniform, &mut stream.at(0));
        assert!(none.unwrap().is_empty());
    }

    #[test]
    fn prioritised_draws_follow_the_reward() {
        let buffer = filled(&[0.0, 2.0 * 3f64.ln(), -5000.0], 4);
        let stream = Stream::new(2, "replay");
        let mut counts = [0usize; 3];
        for counter in 0..4000 {
            let priority = Priority::Reward { temperature: 2.0 };
            let drawn = buffer
                .draw(5, 1, priority, &mut stream.at(counter))
                .unwrap();
            counts[drawn[0].tokens[0] as usize] += 1;
        }
        assert!((2900..3100).contains(&counts[1]), "{counts:?}");
        assert_eq!(counts[2], 0);
        for temperature in [0.0, f64::NAN, -1.0] {
            let priority = Priority::Reward { temperature };
            assert!(buffer.draw(5, 1, priority, &mut stream.at(0)).is_err());
        }
    }

    #[test]
    fn what_cannot_be_ordered_is_refused() {
        assert_eq!(
            ReplayBuffer::new(0).unwrap_err(),
            ReplayBufferError::NoCapacity
        );
        let mut buffer = ReplayBuffer::new(1).unwrap();
        let error = buffer.insert(3, completion(1, f64::INFINITY)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "a completion of prompt 3 has log-reward inf, expected a finite number"
        );
        let mut empty = completion(1, 0.0);
        empty.tokens.clear();
        assert!(buffer.insert(3, empty).is_err());
        assert!(buffer.is_empty());
    }

    #[test]
    fn a_forged_buffer_is_refused() {
        let json = serde_json::to_string(&filled(&[1.0, 2.0], 2)).unwrap();
        serde_json::from_str::<ReplayBuffer>(&json).unwrap();
        for (from, to, problem) in [
            ("\"capacity\":2", "\"capacity\":1", "more completions"),
            ("\"capacity\":2", "\"capacity\":0", "capacity"),
            ("2.0", "0.5", "not sorted"),
            ("[0,0]", "[1,0]", "twice"),
            ("[0,0]", "[]", "no tokens"),
            ("\"capacity\"", "\"extra\":1,\"capacity\"", "unknown field"),
        ] {
            let forged = json.replace(from, to);
            assert_ne!(forged, json);
            let error = serde_json::from_str::<ReplayBuffer>(&forged).unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
        }
    }

    proptest! {
        #[test]
        fn content_does_not_depend_on_the_order_of_insertion(
            items in proptest::collection::vec((0u64..3, 0u32..6), 0..40),
            seed in any::<u64>(),
        ) {
            // One completion has one reward, with ties between completions.
            let reward = |token: u32| f64::from(token / 2) * 0.3;
            let fill = |items: &[(u64, u32)]| {
                let mut buffer = ReplayBuffer::new(3).unwrap();
                for (prompt, token) in items {
                    buffer.insert(*prompt, completion(*token, reward(*token))).unwrap();
                }
                buffer
            };
            let mut shuffled = items.clone();
            Stream::new(seed, "shuffle").at(0).shuffle(&mut shuffled);
            prop_assert_eq!(fill(&items), fill(&shuffled));
        }

        #[test]
        fn a_stored_buffer_comes_back_bit_by_bit(
            items in proptest::collection::vec((any::<u64>(), 0u32..9, -1e30f64..1e30), 0..30),
        ) {
            let mut buffer = ReplayBuffer::new(4).unwrap();
            for (prompt, token, log_r) in items {
                buffer.insert(prompt % 3, completion(token, log_r)).unwrap();
            }
            let json = serde_json::to_string(&buffer).unwrap();
            let back: ReplayBuffer = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(&back, &buffer);
            for prompt in buffer.prompts() {
                for (a, b) in buffer.completions(prompt).iter().zip(back.completions(prompt)) {
                    prop_assert_eq!(a.log_r.to_bits(), b.log_r.to_bits());
                }
            }
            prop_assert_eq!(serde_json::to_string(&back).unwrap(), json);
        }
    }
}
