//! Sampling that runs behind learning, as in TBA (Bartoldson et al. 2025), in one process.
//!
//! There searchers sample from the policy of the last synchronisation while a trainer learns from a buffer of what they
//! found. Here each `sync_every`-th step samples completions of some prompts with the policy as it is then (where steps
//! share completions, the first of them or after it that takes new ones); each step takes its completions from the buffer: with probability `recent` those of a prompt of
//! the last synchronisation, newest alone, else those of any prompt, by their reward. So a step learns from completions
//! that are from 0 to `sync_every - 1` steps old or older, and the same seed gives the same bytes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::group::Group;
use super::rollout::Rows;
use super::{PolicyTrainer, TokenizedCompletion, TrainError, Undo};
use crate::ml::trainer::rewards::Answer;
use crate::random::Draws;

/// How far sampling runs behind learning.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Asynchronous {
    /// Steps between synchronisations.
    pub sync_every: u64,
    /// Prompts that a synchronisation samples for; those of a step if absent.
    #[serde(default)]
    pub prompts: Option<usize>,
    /// Completions sampled of each prompt at a synchronisation.
    pub samples: usize,
    /// Probability that a prompt of a step is one of the last synchronisation, with its newest completions.
    pub recent: f64,
    /// Temperature of log R by which completions of other prompts are drawn; all alike if absent.
    #[serde(default)]
    pub reward_temperature: Option<f64>,
    /// Distinct completions that are kept of a prompt; the oldest go first.
    #[serde(default = "Asynchronous::hundred")]
    pub capacity: usize,
}

impl Asynchronous {
    fn hundred() -> usize {
        100
    }
}

/// A completion with its reward and the step that sampled it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Found {
    tokens: Vec<u32>,
    log_r: f64,
    step: u64,
}

/// What was found so far.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Findings {
    /// Synchronisations so far.
    count: u64,
    /// The step of the last one.
    step: u64,
    /// The prompts that it sampled for.
    latest: Vec<u64>,
    /// Distinct completions of each prompt, oldest first.
    prompts: BTreeMap<u64, Vec<Found>>,
}

impl Findings {
    fn insert(&mut self, prompt: u64, found: Found, capacity: usize) {
        let held = self.prompts.entry(prompt).or_default();
        held.retain(|other| other.tokens != found.tokens);
        held.push(found);
        let beyond = held.len().saturating_sub(capacity);
        held.drain(..beyond);
    }

    /// Draws a prompt and so many of its completions; they are repeated where it has fewer.
    fn draw(&self, settings: &Asynchronous, count: usize, draws: &mut Draws) -> (u64, Vec<&Found>) {
        let is_recent = draws.uniform() < settings.recent;
        let (prompt, mut left): (u64, Vec<&Found>) = if is_recent {
            let prompt = self.latest[draws.below(self.latest.len())];
            let newest = self.prompts[&prompt].iter();
            (
                prompt,
                newest.filter(|found| found.step == self.step).collect(),
            )
        } else {
            let place = draws.below(self.prompts.len());
            let (prompt, held) = self
                .prompts
                .iter()
                .nth(place)
                .expect("BUG: a place of a prompt");
            (*prompt, held.iter().collect())
        };
        let temperature = settings.reward_temperature.filter(|_| !is_recent);
        let mut drawn = Vec::with_capacity(count);
        while drawn.len() < count && !left.is_empty() {
            let index = match temperature {
                None => draws.below(left.len()),
                Some(temperature) => {
                    let best = left
                        .iter()
                        .map(|found| found.log_r)
                        .fold(f64::MIN, f64::max);
                    let weight = |found: &&Found| libm::exp((found.log_r - best) / temperature);
                    draws.weighted(&left.iter().map(weight).collect::<Vec<f64>>())
                }
            };
            drawn.push(left.remove(index));
        }
        let distinct = drawn.clone();
        drawn.extend(distinct.iter().cycle().take(count - distinct.len()));
        (prompt, drawn)
    }

    /// Whether it could be what a training of so many prompts has found.
    pub(super) fn is_whole(&self, prompts: usize) -> bool {
        let known = |prompt: &u64| (*prompt as usize) < prompts;
        let held = self.prompts.iter();
        self.latest.is_empty() == self.prompts.is_empty()
            && self
                .latest
                .iter()
                .all(|prompt| self.prompts.contains_key(prompt))
            && held
                .clone()
                .all(|(prompt, held)| known(prompt) && !held.is_empty())
            && held
                .flat_map(|(_, held)| held)
                .all(|found| !found.tokens.is_empty())
            && self.latest.iter().all(|prompt| {
                let newest = |found: &Found| found.step == self.step;
                self.prompts[prompt].iter().any(newest)
            })
    }
}

impl PolicyTrainer {
    /// Takes the completions of a step from what was found, after a synchronisation if one is due.
    pub(super) fn found_rows(
        &mut self,
        step: u64,
        settings: &Asynchronous,
        undo: &mut Undo,
    ) -> Result<Rows, TrainError> {
        let mut rows = Rows::default();
        let options = &self.shared.options;
        // Due at this step, or since steps that shared the completions before.
        if step % settings.sync_every < options.updates_per_batch.max(1) {
            undo.findings = Some(self.findings.clone());
            self.synchronise(step, settings, &mut rows)?;
        } else if self.findings.latest.is_empty() {
            return Err(TrainError::State(
                "it lacks what its sampling has found".to_owned(),
            ));
        }
        let options = &self.shared.options;
        let (mut age, mut count) = (0.0, 0.0);
        let wanted = options.prompts_per_step.min(self.prompts.len());
        for turn in 0..wanted {
            let mut draws = self.picks.at(step * wanted as u64 + turn as u64);
            let per_prompt = options.completions_per_prompt;
            let (prompt, found) = self.findings.draw(settings, per_prompt, &mut draws);
            let place = prompt as usize;
            let tokens = &self.prompts[place].prompt;
            age += found
                .iter()
                .map(|found| step.saturating_sub(found.step) as f64)
                .sum::<f64>();
            count += found.len() as f64;
            let completions = found
                .into_iter()
                .map(|found| TokenizedCompletion::new(tokens, &found.tokens));
            rows.groups.push(Group {
                prompt: place,
                completions: completions.collect(),
            });
        }
        rows.age = Some(age / count);
        Ok(rows)
    }

    /// Samples completions with the policy as it is.
    fn synchronise(
        &mut self,
        step: u64,
        settings: &Asynchronous,
        rows: &mut Rows,
    ) -> Result<(), TrainError> {
        let batch = self.shared.options.prompts_per_step.min(self.prompts.len());
        let wanted = settings.prompts.unwrap_or(batch).min(self.prompts.len());
        let each = wanted.div_ceil(batch) as u64;
        let first = self.findings.count.wrapping_mul(each);
        let batches = (0..each).map(|batch| first.wrapping_add(batch));
        let mut items: Vec<usize> = batches.flat_map(|batch| self.epochs.at(batch)).collect();
        items.truncate(wanted);
        items.sort_unstable();
        items.dedup();
        let per_item = |item: &usize| std::iter::repeat_n(*item, settings.samples);
        let places: Vec<usize> = items.iter().flat_map(per_item).collect();
        let of = |place: &usize| self.prompts[*place].prompt.clone();
        let prompts: Vec<Vec<u32>> = places.iter().map(of).collect();
        let sampled = self.sampled(&prompts, step, 0, rows)?;
        let answers = places.iter().zip(&sampled);
        let answers = answers.map(|(place, completion)| Answer {
            prompt: *place,
            completion,
        });
        let log_r = self.untempered_log_r(&answers.collect::<Vec<_>>())?;
        self.findings.count = self.findings.count.wrapping_add(1);
        self.findings.step = step;
        self.findings.latest = items.iter().map(|item| *item as u64).collect();
        for ((place, row), log_r) in places.iter().zip(sampled).zip(log_r) {
            let found = Found {
                tokens: row.tokens[row.prompt_length..].to_vec(),
                log_r,
                step,
            };
            self.findings
                .insert(*place as u64, found, settings.capacity);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Stream;

    fn found(token: u32, log_r: f64, step: u64) -> Found {
        Found {
            tokens: vec![token],
            log_r,
            step,
        }
    }

    fn settings(recent: f64, reward_temperature: Option<f64>) -> Asynchronous {
        Asynchronous {
            sync_every: 4,
            prompts: None,
            samples: 3,
            recent,
            reward_temperature,
            capacity: 3,
        }
    }

    fn findings() -> Findings {
        let mut findings = Findings {
            count: 2,
            step: 4,
            latest: vec![1],
            prompts: BTreeMap::new(),
        };
        for (prompt, found) in [
            (0, found(10, 0.0, 0)),
            (0, found(11, 3.0, 0)),
            (1, found(20, 9.0, 0)),
            (1, found(21, 0.0, 4)),
            (1, found(22, 0.0, 4)),
        ] {
            findings.insert(prompt, found, 3);
        }
        findings
    }

    #[test]
    fn the_oldest_of_distinct_completions_go_first() {
        let mut findings = findings();
        findings.insert(1, found(20, 9.0, 8), 3);
        findings.insert(1, found(23, 0.0, 8), 3);
        let held: Vec<u32> = findings.prompts[&1]
            .iter()
            .map(|found| found.tokens[0])
            .collect();
        assert_eq!(held, [22, 20, 23]);
        assert!(findings.is_whole(2) && !findings.is_whole(1));
    }

    #[test]
    fn recent_draws_are_of_the_last_synchronisation_and_others_go_by_reward() {
        let findings = findings();
        let stream = Stream::new(1, "asynchronous");
        for turn in 0..50 {
            let (prompt, drawn) = findings.draw(&settings(1.0, None), 3, &mut stream.at(turn));
            assert_eq!((prompt, drawn.len()), (1, 3));
            assert!(drawn.iter().all(|found| found.step == 4));
        }
        let (mut first, mut zero, turns) = (0, 0, 4000);
        for turn in 0..turns {
            let (prompt, drawn) = findings.draw(&settings(0.0, Some(1.0)), 1, &mut stream.at(turn));
            zero += u64::from(prompt == 0);
            first += u64::from(prompt == 0 && drawn[0].tokens == [11]);
        }
        let share = first as f64 / zero as f64;
        // e^3 / (1 + e^3), and each prompt as often as the other.
        assert!((share - 0.952_574).abs() < 0.02, "{share}");
        assert!((zero as f64 / turns as f64 - 0.5).abs() < 0.03, "{zero}");
    }
}
