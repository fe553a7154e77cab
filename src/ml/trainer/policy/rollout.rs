//! Where the completions of a step come from: the data set, the policy, the replay buffer.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::group::{self, Group, prompt_of};
use super::shares::{Counts, Shares};
use super::{Batch, Cancel, Earlier, PolicyTrainer, TokenizedCompletion, TrainError, Undo};
use crate::hint::Hint;
use crate::ml::generate::{Completion, GenerateOptions, Sampling, Strategy, generate};
use crate::ml::objectives::groups::varied;
use crate::ml::objectives::kl_estimate::KlEstimate;
use crate::ml::replay_buffer::{Completion as Remembered, Priority};
use crate::ml::trainer::actions::Actions;
use crate::ml::trainer::flops::forward_flops;
use crate::ml::trainer::rewards::Answer;

/// The rows of one step, prompt by prompt.
#[derive(Default)]
pub(super) struct Rows {
    /// For each prompt of the step, its completions.
    pub(super) groups: Vec<Group>,
    pub(super) generated: u64,
    pub(super) truncated: usize,
    pub(super) sampled: usize,
    /// Operations beyond those of sampling.
    pub(super) flops: f64,
    /// Rewards of all completions, where they had to be known to choose them.
    pub(super) rewards: Vec<f64>,
    /// Batches of prompts that were sampled, where there may be several.
    pub(super) rounds: u64,
    /// Share of the prompts whose completions differ in reward, where rewards are known.
    pub(super) varied: Option<f64>,
    /// Mean age of the completions in steps, where they are not all fresh.
    pub(super) age: Option<f64>,
}

/// What samples of the policy show beside its training.
pub(super) struct Watched {
    /// KL divergence to the reference in nats, a trimmed mean.
    pub(super) kl: f64,
    /// Mean reward, before it is scaled.
    pub(super) reward: Option<f64>,
}

impl Rows {
    /// Tells how the prompts of a step were come by, where there was a choice.
    pub(super) fn of_prompts(
        &self,
        groups: &[Group],
    ) -> impl Iterator<Item = (&'static str, f64)> + use<> {
        let several = |value: f64| Some(value).filter(|_| self.rounds > 0);
        let told = [
            ("varied", self.varied),
            ("rounds", several(self.rounds as f64)),
            ("prompts", several(groups.len() as f64)),
        ];
        told.into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
    }
}

impl PolicyTrainer {
    /// Returns the completions that a step learns from, and what was done to get them: `groups` are in the batch alone.
    pub(super) fn batch(
        &mut self,
        step: u64,
        undo: &mut Undo,
    ) -> Result<(Batch, Rows), TrainError> {
        let updates = self.shared.options.updates_per_batch.max(1);
        let first = step - step % updates;
        if step > first {
            let held = self.held.clone().filter(|batch| batch.step == first);
            let batch = held.ok_or_else(|| {
                TrainError::State(format!("it lacks the completions of step {first}"))
            })?;
            return Ok((batch, Rows::default()));
        }
        let options = &self.shared.options;
        let mut rows = match (options.asynchronous, options.dynamic_sampling) {
            (Some(settings), _) => self.found_rows(step, &settings, undo)?,
            (None, 0) => {
                let items = self.epochs.at(step / updates);
                self.rows(step, 0, &items, undo)?
            }
            (None, most) => self.varied_rows(step, most, undo)?,
        };
        let asks = self.objective.requirements();
        let mut batch = Batch {
            step,
            groups: std::mem::take(&mut rows.groups),
            drawn: None,
            weights: Vec::new(),
            age: rows.age,
        };
        if let Some(by) = asks.weighed {
            self.weigh(&mut batch, by, &mut rows)?;
        }
        if updates > 1 {
            if asks.drawn && batch.drawn.is_none() {
                batch.drawn = Some(self.drawn(&batch.groups, &mut rows)?);
            }
            undo.held = Some(Earlier(self.held.replace(batch.clone())));
        } else {
            // Of the policy as it is, they are those that the update finds itself.
            batch.drawn = None;
        }
        Ok((batch, rows))
    }

    /// Samples batches of prompts, `most` at most, until there are enough prompts whose completions differ in reward.
    fn varied_rows(&mut self, step: u64, most: u64, undo: &mut Undo) -> Result<Rows, TrainError> {
        let options = &self.shared.options;
        let wanted = options.prompts_per_step.min(self.prompts.len());
        undo.taken = Some(self.taken);
        let mut found = Rows::default();
        let (mut prompts, mut all_varied) = (0.0, 0.0);
        for round in 0..most {
            self.cancel.check()?;
            let items = self.epochs.at(self.taken);
            self.taken += 1;
            let rows = self.rows(step, round, &items, undo)?;
            let prompt_of = prompt_of(&rows.groups);
            let rewards = self.rewards(&rows.groups, &mut found)?;
            let varied = varied(&rewards, &prompt_of);
            let mut place = 0;
            for group in rows.groups {
                let places = place..place + group.count();
                place = places.end;
                prompts += 1.0;
                all_varied += f64::from(u8::from(varied[places.start]));
                if varied[places.start] && found.groups.len() < wanted {
                    found.rewards.extend(&rewards[places]);
                    found.groups.push(group);
                }
            }
            found.generated += rows.generated;
            found.truncated += rows.truncated;
            found.sampled += rows.sampled;
            found.flops += rows.flops;
            found.rounds = round + 1;
            if found.groups.len() == wanted {
                break;
            }
        }
        found.varied = Some(all_varied / prompts);
        if found.groups.is_empty() && self.taken == most {
            return Err(TrainError::AllEqual {
                prompts: prompts as usize,
                hint: Hint::new(
                    "raise `completions_per_prompt` or `dynamic_sampling`, or start from a policy that is sometimes right",
                ),
            });
        }
        Ok(found)
    }

    /// Returns the log-probabilities of each completion's tokens under the policy as it is.
    pub(super) fn drawn(
        &self,
        groups: &[Group],
        done: &mut Rows,
    ) -> Result<Vec<Vec<f64>>, TrainError> {
        let policy = self.shared.model.llama.detached();
        let mut found = Vec::new();
        for groups in groups.chunks(self.shared.options.micro_batch.max(1)) {
            let rows = group::rows(groups);
            if rows.is_empty() {
                continue;
            }
            self.cancel.check()?;
            let actions = Actions::new(&rows);
            found.extend(actions.by_row(&actions.frozen_log_probs(&policy)?)?);
            done.flops += forward_flops(&self.shared.size, actions.row_lengths());
        }
        Ok(found)
    }

    /// Chooses, samples and remembers the completions of a step.
    pub(super) fn rows(
        &mut self,
        step: u64,
        round: u64,
        items: &[usize],
        undo: &mut Undo,
    ) -> Result<Rows, TrainError> {
        let shares = Shares {
            on_policy: self.shared.options.on_policy,
            replay: self.shared.options.replay,
            per_prompt: self.shared.options.completions_per_prompt,
        };
        let batch = step / self.shared.options.updates_per_batch.max(1);
        let counts: Vec<Counts> = (batch * items.len() as u64..)
            .take(items.len())
            .map(|turn| shares.at(turn))
            .collect();
        let mut rows = Rows {
            groups: Vec::with_capacity(items.len()),
            ..Rows::default()
        };
        let sampled = self.sample((step, round), items, &counts, &mut rows, undo)?;
        let places = items.iter().zip(&counts).zip(sampled).enumerate();
        for (place, ((item, counts), mut group)) in places {
            let mut draws = self.picks.at(step * items.len() as u64 + place as u64);
            let prompt = &self.prompts[*item];
            let priority = self
                .shared
                .options
                .replay_temperature
                .map_or(Priority::Uniform, |temperature| Priority::Reward {
                    temperature,
                });
            let remembered = self
                .buffer
                .draw(*item as u64, counts.replay, priority, &mut draws)
                .map_err(|error| TrainError::Data(error.to_string()))?;
            let remembered = remembered.into_iter();
            group
                .extend(remembered.map(|completion| {
                    TokenizedCompletion::new(&prompt.prompt, &completion.tokens)
                }));
            let mut offline: Vec<&TokenizedCompletion> = prompt.completions.iter().collect();
            draws.shuffle(&mut offline);
            let left = shares.per_prompt - group.len();
            group.extend(offline.into_iter().take(left).cloned());
            rows.groups.push(Group {
                prompt: *item,
                completions: group,
            });
        }
        if !self.objective.requirements().prefix_rewards {
            self.shared.rewards.ahead(&group::answers(&rows.groups))?;
        }
        Ok(rows)
    }

    /// Samples completions of each item from the policy as it is.
    fn sample(
        &mut self,
        (step, round): (u64, u64),
        items: &[usize],
        counts: &[Counts],
        rows: &mut Rows,
        undo: &mut Undo,
    ) -> Result<Vec<Vec<TokenizedCompletion>>, TrainError> {
        let mut groups: Vec<Vec<TokenizedCompletion>> = vec![Vec::new(); items.len()];
        let places: Vec<usize> = counts
            .iter()
            .enumerate()
            .flat_map(|(place, counts)| std::iter::repeat_n(place, counts.on_policy))
            .collect();
        if places.is_empty() {
            return Ok(groups);
        }
        let prompts: Vec<Vec<u32>> = places
            .iter()
            .map(|place| self.prompts[items[*place]].prompt.clone())
            .collect();
        let first = round * prompts.len() as u64;
        let sampled = self.sampled(&prompts, step, first, rows)?;
        for (place, row) in places.iter().zip(sampled) {
            groups[*place].push(row);
        }
        if self.shared.options.replay > 0.0 {
            let flat: Vec<&TokenizedCompletion> = groups.iter().flatten().collect();
            // Before any tempering or standardising, which change from step to step.
            let answers = places.iter().zip(&flat).map(|(place, row)| Answer {
                prompt: items[*place],
                completion: row,
            });
            let log_r = self.untempered_log_r(&answers.collect::<Vec<_>>())?;
            // Each prompt once, before any of its completions comes in.
            let before: BTreeMap<u64, Vec<Remembered>> = items
                .iter()
                .map(|item| (*item as u64, self.buffer.completions(*item as u64).to_vec()))
                .collect();
            undo.remembered = before.into_iter().collect();
            for (place, (row, log_r)) in places.iter().zip(flat.into_iter().zip(log_r)) {
                let remembered = Remembered {
                    tokens: row.tokens[row.prompt_length..].to_vec(),
                    log_r,
                    truncated: row.is_truncated(&self.shared.options.eos),
                };
                self.buffer
                    .insert(items[*place] as u64, remembered)
                    .map_err(|error| TrainError::Data(error.to_string()))?;
            }
        }
        Ok(groups)
    }

    /// Samples a completion of each prompt at the temperature of the step, and counts what was done.
    pub(super) fn sampled(
        &self,
        prompts: &[Vec<u32>],
        step: u64,
        first: u64,
        done: &mut Rows,
    ) -> Result<Vec<TokenizedCompletion>, TrainError> {
        let temperature = self.temperature(step);
        let completions = self.generate(prompts, step, first, temperature, &self.cancel)?;
        let mut sampled = Vec::with_capacity(prompts.len());
        for (prompt, completion) in prompts.iter().zip(completions) {
            done.generated += completion.tokens.len() as u64;
            done.truncated += usize::from(completion.truncated);
            done.sampled += 1;
            sampled.push(TokenizedCompletion::new(prompt, &completion.tokens));
        }
        Ok(sampled)
    }

    /// `reward_scale x reward` of completions.
    pub(super) fn untempered_log_r(&self, answers: &[Answer<'_>]) -> Result<Vec<f64>, TrainError> {
        let rewards = self.shared.rewards.of_completions(answers)?;
        let device = self.shared.model.llama.device();
        let rewards = Tensor::new(rewards, device)?.to_dtype(DType::F32)?;
        let log_r = (rewards * self.shared.options.reward_scale)?;
        let log_r: Vec<f64> = log_r.to_dtype(DType::F64)?.to_vec1()?;
        if !log_r.iter().all(|log_r| log_r.is_finite()) {
            return Err(TrainError::Data(
                "`reward_scale` times the reward of a completion is no finite number".to_owned(),
            ));
        }
        Ok(log_r)
    }

    /// Returns the temperature that a step samples at.
    pub(super) fn temperature(&self, step: u64) -> f64 {
        if let Some(exploration) = self.shared.options.exploration {
            let mut draws = self.sampling.child("exploration").at(step);
            if draws.uniform() < exploration.probability {
                return exploration.low + (exploration.high - exploration.low) * draws.uniform();
            }
        }
        self.shared.options.temperature.at(step)
    }

    /// Samples completions. What follows an update is not cancellable, so that a cancelled step has changed nothing.
    fn generate(
        &self,
        prompts: &[Vec<u32>],
        step: u64,
        first: u64,
        temperature: f64,
        cancel: &Cancel,
    ) -> Result<Vec<Completion>, TrainError> {
        let options = GenerateOptions {
            batch_size: 64,
            ..GenerateOptions::new(self.shared.options.max_new_tokens, &self.shared.options.eos)
        };
        let strategy = Strategy::Sampling(Sampling {
            temperature,
            ..Sampling::default()
        });
        let stream = self.sampling.child(&step.to_string());
        let keys: Vec<u64> = (first..).take(prompts.len()).collect();
        let model = &self.shared.model.llama;
        let go_on = &mut |_| cancel.flow();
        generate(model, prompts, &options, &strategy, &stream, &keys, go_on)
            .map_err(TrainError::generating)
    }

    /// Samples the policy to see where it is: its KL divergence to the reference and, if asked for, its reward.
    pub(super) fn watched(&self, step: u64) -> Result<Watched, TrainError> {
        let count = self.shared.options.monitor_completions;
        let places: Vec<usize> = (0..count)
            .map(|index| index * self.prompts.len() / count)
            .collect();
        let prompts = places
            .iter()
            .map(|place| self.prompts[*place].prompt.clone());
        let prompts: Vec<Vec<u32>> = prompts.collect();
        // Its own stream: watching must not change what the training samples.
        let completions = self.generate(&prompts, u64::MAX - step, 0, 1.0, &Cancel::default())?;
        let rows: Vec<TokenizedCompletion> = prompts
            .iter()
            .zip(&completions)
            .map(|(prompt, completion)| TokenizedCompletion::new(prompt, &completion.tokens))
            .collect();
        let rows: Vec<&TokenizedCompletion> = rows.iter().collect();
        let actions = Actions::new(&rows);
        let policy = actions.frozen_log_probs(&self.shared.model.llama.detached())?;
        let reference = actions.frozen_log_probs(&self.shared.reference)?;
        let estimate = KlEstimate::of_tensors(&policy, &reference, &actions.lengths, 0.1)?;
        let mut reward = None;
        if self.shared.options.monitor_reward {
            let answers = places.iter().zip(&rows);
            let answers = answers.map(|(prompt, completion)| Answer {
                prompt: *prompt,
                completion,
            });
            let rewards = self
                .shared
                .rewards
                .of_completions(&answers.collect::<Vec<_>>())?;
            reward = Some(rewards.iter().sum::<f64>() / count as f64);
        }
        Ok(Watched {
            kl: estimate.trimmed,
            reward,
        })
    }
}
