//! Rewards, advantages and value targets of a step's completions.

use super::options::PpoTrainerOptions;
use super::rollout::Rollout;
use crate::ml::objectives::ObjectiveError;
use crate::ml::objectives::advantage::{
    self, KlPenalty, generalised_advantages, penalised_rewards,
};

/// Fills in advantages and returns, with `beta` on the log-ratio to the reference.
pub(super) fn assign(
    rollouts: &mut [Rollout],
    beta: f64,
    options: &PpoTrainerOptions,
) -> Result<(), ObjectiveError> {
    for rollout in rollouts {
        let score = rollout.score - options.reward_baseline;
        let rewards = penalised_rewards(
            &rollout.log_probs,
            &rollout.reference,
            score,
            beta,
            KlPenalty::Kl,
        )?;
        let found =
            generalised_advantages(&rewards, &rollout.values, options.gamma, options.lambda)?;
        rollout.advantages = found.advantages;
        rollout.returns = found.returns;
    }
    Ok(())
}

/// Returns the advantages of some completions, whitened together.
pub(super) fn whitened(rollouts: &[&Rollout]) -> Result<Vec<Vec<f64>>, ObjectiveError> {
    let advantages = rollouts.iter().map(|rollout| rollout.advantages.clone());
    advantage::whitened(advantages.collect())
}
