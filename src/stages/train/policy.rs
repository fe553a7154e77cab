//! What the kinds that train a policy against rewards have in common.

use super::rewards::{self, PromptRewards};
use super::training::{Course, Purpose, Training};
use crate::artifacts::dataset::Dataset;
use crate::artifacts::language_model::LanguageModel;
use crate::artifacts::reward::Reward;
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::ml::adapter::LoraConfig;
use crate::ml::trainer::policy::objective::Objective;
use crate::ml::trainer::policy::{PolicyOptions, PolicyStart, PolicyTrainer, PromptCompletions};
use crate::ml::trainer::{Cancel, TrainError};
use crate::random::Stream;
use crate::stages::tokenized::tokenize_prompts;

/// How long prompts and completions may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Tokens that the models take.
    pub(super) positions: usize,
    /// Tokens of a prompt, if params limit them.
    pub(super) max_prompt_tokens: Option<usize>,
    /// Tokens of a completion.
    pub(super) max_new_tokens: usize,
}

/// Returns a dataset's distinct prompts that leave room for a completion, as tokens, and the text of each.
pub(super) fn distinct_prompts(
    policy: &LanguageModel,
    data: &Dataset,
    room: Room,
    ctx: &mut RunContext,
) -> Result<(Vec<Vec<u32>>, Vec<String>), StageError> {
    let Room {
        positions,
        max_prompt_tokens,
        max_new_tokens,
    } = room;
    let left = positions.saturating_sub(max_new_tokens);
    let most = max_prompt_tokens.unwrap_or(left).min(left);
    let distinct = data.distinct_prompts();
    let prompts = tokenize_prompts(policy, &distinct, usize::MAX, None, most, ctx)?;
    if prompts.is_empty() {
        return Err(StageError::new(format!(
            "none of {} prompts has from 1 to {most} tokens",
            distinct.len()
        ))
        .hint(format!(
            "the models take {positions} tokens, {max_new_tokens} of them for the completion"
        )));
    }
    let text = |place: usize| distinct[place].1.prompt.clone();
    let prompts = prompts.into_iter();
    Ok(prompts
        .map(|prompt| (prompt.tokens, text(prompt.place)))
        .unzip())
}

/// Makes prompts of which the dataset has no completions.
pub(super) fn without_completions(prompts: Vec<Vec<u32>>) -> Vec<PromptCompletions> {
    let prompts = prompts.into_iter().map(|prompt| PromptCompletions {
        prompt,
        completions: Vec::new(),
    });
    prompts.collect()
}

/// A training of a policy by an objective.
pub(super) struct PolicyTraining<'a> {
    pub(super) course: Course<'a>,
    pub(super) adapter: Option<&'a LoraConfig>,
    pub(super) objective: Box<dyn Objective>,
    pub(super) options: PolicyOptions,
    pub(super) stream: Stream,
}

impl PolicyTraining<'_> {
    /// Trains `policy` on the rewards of its completions, and writes what the stage puts out.
    pub(super) fn run(
        self,
        policy: LanguageModel,
        reward: Reward,
        (prompts, texts): (Vec<PromptCompletions>, Vec<String>),
        ctx: &mut RunContext,
    ) -> Result<(), StageError> {
        let wanted = self.options.prompts_per_step;
        if prompts.len() < wanted {
            ctx.note(&format!(
                "the data set has {} prompts: a step takes so many, not the {wanted} of `prompts_per_step`",
                prompts.len(),
            ));
        }
        if self.options.limits.kl.is_some() && self.options.monitor_every > self.course.steps {
            ctx.note(&format!(
                "`kl_limit` is never checked: the first of `monitor_every` {} is beyond all {} steps",
                self.options.monitor_every, self.course.steps
            ));
        }
        if self.objective.requirements().prefix_rewards
            && let Some(error) = reward.lacks_prefix_values()
        {
            return Err(error.into());
        }
        let reference = policy.frozen()?;
        let training = Training::open(policy, self.adapter, Purpose::Policy, &self.stream)?;
        let rewards = PromptRewards::new(reward, training.start(), texts, ctx)?;
        let program = rewards.program();
        let start = PolicyStart {
            model: training.model(),
            reference,
            rewards: Box::new(rewards),
            prompts,
        };
        let cancel = Cancel::new(ctx.cancel_flag());
        let trainer = PolicyTrainer::new(start, self.objective, self.options, &self.stream, cancel);
        let mut trainer = match trainer {
            Err(TrainError::Cancelled) => return Err(StageError::Interrupted),
            other => other?,
        };
        let trained = self.course.train(&mut trainer, ctx)?;
        rewards::finish(program, ctx)?;
        training.save(&trained, ctx)
    }
}
