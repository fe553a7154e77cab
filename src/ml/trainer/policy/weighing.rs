//! What completions weigh, once all of a step are known.

use super::group::{self, Group, prompt_of};
use super::requirements::Weighed;
use super::rollout::Rows;
use super::scored::Scored;
use super::{Batch, PolicyTrainer, TrainError};
use crate::ml::objectives::groups::varied;
use crate::ml::trainer::actions::Actions;
use crate::ml::trainer::flops::forward_flops;

/// Completions that are scored between two looks at whether the training is to stop.
const SCORED: usize = 64;

impl PolicyTrainer {
    /// Weighs the completions of a batch by what the objective asks for.
    pub(super) fn weigh(
        &self,
        batch: &mut Batch,
        by: Weighed,
        done: &mut Rows,
    ) -> Result<(), TrainError> {
        let rows = group::rows(&batch.groups);
        if rows.is_empty() {
            return Ok(());
        }
        let mut scored = Scored {
            prompt_of: prompt_of(&batch.groups),
            lengths: rows.iter().map(|row| row.completion_length()).collect(),
            ..Scored::default()
        };
        if by.reference || by.sampler {
            scored.log_probs = self.drawn(&batch.groups, done)?;
        }
        for groups in batch.groups.chunks(self.shared.options.micro_batch.max(1)) {
            let rows = group::rows(groups);
            if rows.is_empty() || !(by.reference || by.sampler) {
                continue;
            }
            self.cancel.check()?;
            let actions = Actions::new(&rows);
            let forward = forward_flops(&self.shared.size, actions.row_lengths());
            if by.reference {
                let reference = actions.frozen_log_probs(&self.shared.reference)?;
                scored.reference.extend(actions.by_row(&reference)?);
                done.flops += forward;
            }
            if by.sampler {
                let policy = self.shared.model.llama.detached();
                let temperature = self.temperature(batch.step);
                let sampler = actions.frozen_log_probs_at(&policy, temperature)?;
                scored.sampler.extend(actions.by_row(&sampler)?);
                done.flops += forward;
            }
        }
        // Last: whoever gives them may work while the models do.
        let rewards = match std::mem::take(&mut done.rewards) {
            known if known.len() == rows.len() => known,
            _ => self.rewards(&batch.groups, done)?,
        };
        if done.varied.is_none() {
            let varied = varied(&rewards, &scored.prompt_of).into_iter();
            let count = varied.filter(|varied| *varied).count();
            done.varied = Some(count as f64 / rows.len() as f64);
        }
        scored.rewards = rewards;
        batch.weights = self.objective.weigh(&scored)?;
        batch.drawn = Some(scored.log_probs).filter(|log_probs| !log_probs.is_empty());
        Ok(())
    }

    /// Returns the rewards of completions.
    pub(super) fn rewards(
        &self,
        groups: &[Group],
        done: &mut Rows,
    ) -> Result<Vec<f64>, TrainError> {
        let answers = group::answers(groups);
        let mut rewards = Vec::with_capacity(answers.len());
        for chunk in answers.chunks(SCORED) {
            self.cancel.check()?;
            rewards.extend(self.shared.rewards.of_completions(chunk)?);
        }
        if rewards.len() != answers.len() || !rewards.iter().all(|reward| reward.is_finite()) {
            return Err(TrainError::Data(
                "a completion has a reward that is no finite number, or none".to_owned(),
            ));
        }
        if let Some(size) = self.shared.rewards.size() {
            done.flops += forward_flops(
                &size,
                group::rows(groups).iter().map(|row| row.tokens.len()),
            );
        }
        Ok(rewards)
    }
}
