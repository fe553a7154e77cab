//! Prompts and completions of the data set, as a training takes them.

use super::super::policy::{Room, distinct_prompts, without_completions};
use super::{Offline, TrainGflownet};
use crate::artifacts::dataset::{Dataset, Example};
use crate::artifacts::language_model::LanguageModel;
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::ml::trainer::TokenizedCompletion;
use crate::ml::trainer::policy::PromptCompletions;
use crate::ml::trainer::policy::group::group_by_prompt;
use crate::stages::tokenized::{Lengths, LongCompletions, tokenize_chosen};

/// Prompts with their completions, and the text of each prompt.
type Prompts = (Vec<PromptCompletions>, Vec<String>);

impl TrainGflownet {
    /// Returns the prompts that steps can take, models reading `positions` tokens.
    pub(super) fn prompts(
        &self,
        policy: &LanguageModel,
        data: &Dataset,
        positions: usize,
        ctx: &mut RunContext,
    ) -> Result<Prompts, StageError> {
        // All completions of a step are sampled.
        if self.on_policy == 1.0 || self.asynchronous.is_some() {
            let room = Room {
                positions,
                max_prompt_tokens: None,
                max_new_tokens: self.max_new_tokens,
            };
            let (prompts, texts) = distinct_prompts(policy, data, room, ctx)?;
            return Ok((without_completions(prompts), texts));
        }
        let trajectories = self.trajectories(data);
        // Where the policy is sampled, its completions must fit behind every prompt.
        let samples = self.samples() || self.monitor_every > 0;
        let lengths = Lengths::up_to(positions)
            .with_room_for(if samples { self.max_new_tokens } else { 0 })
            .with_boundary(self.boundary);
        let rows = tokenize_chosen(policy, &trajectories, lengths, ctx)?;
        type Prompt<'a> = (u64, &'a str);
        let kept: Vec<(Prompt<'_>, TokenizedCompletion)> = rows
            .into_iter()
            .filter_map(|(place, mut row)| {
                let Example {
                    question_id,
                    prompt,
                    ..
                } = &trajectories[place];
                let longest = row.prompt_length + self.max_new_tokens;
                if self.long_completions == LongCompletions::Truncate {
                    row.tokens.truncate(longest);
                }
                (row.tokens.len() <= longest).then_some(((*question_id, prompt.as_str()), row))
            })
            .collect();
        let (prompts, names) = group_by_prompt(kept);
        let least = self.least_of_data();
        let before = prompts.len();
        let texts = names.into_iter().map(|(_, text)| text.to_owned());
        let (prompts, texts): Prompts = prompts
            .into_iter()
            .zip(texts)
            .filter(|(prompt, _)| prompt.completions.len() >= least)
            .unzip();
        if prompts.is_empty() {
            let hint = if self.objective.takes("least_completions") {
                "raise `max_new_tokens`, or lower `least_completions` (1 is what the paper did)"
            } else if least > 1 {
                "raise `max_new_tokens` or `on_policy`: completions of a prompt are compared with each other"
            } else {
                "raise `max_new_tokens`, or set `long_completions: truncate`"
            };
            return Err(StageError::new(format!(
                "no prompt has {least} completions of at most {} tokens",
                self.max_new_tokens
            ))
            .hint(hint));
        }
        if prompts.len() < before {
            ctx.note(&format!(
                "{} of {before} prompts have fewer than {least} completions within the horizon and were left out",
                before - prompts.len(),
            ));
        }
        self.note_shortages(&prompts, ctx);
        Ok((prompts, texts))
    }

    /// Returns one example for each completion that can be a trajectory.
    fn trajectories(&self, data: &Dataset) -> Vec<Example> {
        let mut examples = Vec::new();
        for example in &data.examples {
            let rejected = example
                .rejected
                .as_ref()
                .filter(|_| self.offline == Offline::All);
            for completion in example.chosen.iter().chain(rejected) {
                examples.push(Example {
                    chosen: Some(completion.clone()),
                    rejected: None,
                    ..example.clone()
                });
            }
        }
        examples
    }

    /// Returns how many completions the data set must have of a prompt for a step on it to mean something.
    fn least_of_data(&self) -> usize {
        let asks = self.objective().requirements();
        let sampled = (self.on_policy * self.completions_per_prompt as f64).floor() as usize;
        let beside_samples = asks.completions.saturating_sub(sampled);
        asks.offline_completions.max(beside_samples)
    }

    /// Says where the data set has fewer completions than a step asks for.
    fn note_shortages(&self, prompts: &[PromptCompletions], ctx: &mut RunContext) {
        let sampled = (self.on_policy * self.completions_per_prompt as f64).floor();
        let wanted = self.completions_per_prompt.saturating_sub(sampled as usize);
        let short = prompts
            .iter()
            .filter(|prompt| prompt.completions.len() < wanted)
            .count();
        if short > 0 {
            ctx.note(&format!(
                "{short} of {} prompts have fewer than {wanted} completions: steps take those there are",
                prompts.len()
            ));
        }
    }
}
