//! Rewards, advantages and value targets of a step's completions.

use super::options::PpoTrainerOptions;
use super::rollout::Rollout;
use crate::ml::objectives::ObjectiveError;
use crate::ml::objectives::advantage::{
    KlPenalty, generalised_advantages, penalised_rewards, whiten,
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
    let mut rows: Vec<Vec<f64>> = rollouts
        .iter()
        .map(|rollout| rollout.advantages.clone())
        .collect();
    if rows.iter().map(Vec::len).sum::<usize>() < 2 {
        // One advantage is its own mean; it has no variance to divide by.
        rows.iter_mut()
            .flatten()
            .for_each(|advantage| *advantage = 0.0);
    } else {
        whiten(&mut rows)?;
    }
    Ok(rows)
}
