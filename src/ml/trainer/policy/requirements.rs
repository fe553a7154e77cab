//! What an objective asks of its training.

/// What an objective asks of its training.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Requirements {
    /// Rewards of unfinished completions.
    pub prefix_rewards: bool,
    /// Log-probabilities under the reference at every update, whatever the params say.
    pub reference: bool,
    /// The starting model's distribution is part of the target, whatever the params say.
    pub prior_in_target: bool,
    /// A KL penalty inside the reward has a place.
    pub takes_kl: bool,
    /// Completions of a prompt that a step needs.
    pub completions: usize,
    /// Completions that the data set has to have of a prompt if a step takes any of them.
    pub offline_completions: usize,
    /// Nothing but fresh samples.
    pub fresh: bool,
    /// Log-probabilities under the policy that drew completions, where they serve several updates.
    pub drawn: bool,
    /// Completions are weighed once all of a step are known; see [`Objective::weigh`](super::objective::Objective::weigh).
    pub weighed: Option<Weighed>,
    /// It has parameters for `log Z`.
    pub trains_log_z: bool,
    /// Its `log_z` says whether the training is well.
    pub watches_log_z: bool,
    /// Batches of prompts that a step may sample for completions of different rewards, if it wants those alone.
    pub dynamic_sampling: u64,
    /// The factor from reward to `log R`, unless the params have one.
    pub reward_scale: Option<f64>,
}

/// What completions are weighed by, beside their rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Weighed {
    /// Their log-probabilities under the reference.
    pub reference: bool,
    /// Their log-probabilities at the temperature that they were sampled at.
    pub sampler: bool,
}

impl Default for Requirements {
    fn default() -> Self {
        Self {
            prefix_rewards: false,
            reference: false,
            prior_in_target: false,
            takes_kl: true,
            completions: 1,
            offline_completions: 1,
            fresh: false,
            drawn: false,
            weighed: None,
            trains_log_z: false,
            watches_log_z: false,
            dynamic_sampling: 0,
            reward_scale: None,
        }
    }
}
