//! What the params are to the trainer.

use super::{FlowGradient, TrainGflownet};
use crate::artifacts::language_model::LanguageModel;
use crate::ml::head::HeadGradient;
use crate::ml::objectives::ReferenceTerms;
use crate::ml::objectives::divergence::DivergenceLimits;
use crate::ml::trainer::policy::PolicyOptions;
use crate::ml::trainer::policy::objective::Objective;
use crate::ml::trainer::policy::objectives::GflownetSettings;
use crate::stages::train::micro_batch::MicroBatch;
use crate::stages::train::training;

impl TrainGflownet {
    pub(super) fn objective(&self) -> Box<dyn Objective> {
        self.objective.make(&GflownetSettings {
            log_z: self.log_z,
            log_z_lr: self.log_z_lr,
            log_z_start: self.log_z_start,
            length_normalised: self.length_normalised,
            lambda: self.lambda,
            weighting: self.weighting,
            flow_lr: self.flow_lr,
            flow_gradient: match self.flow_gradient {
                FlowGradient::Detached => HeadGradient::Detached,
                FlowGradient::Joint => HeadGradient::Joint,
            },
            least_completions: self.least_completions,
        })
    }

    /// Whether the policy samples any of the completions.
    pub(super) fn samples(&self) -> bool {
        self.on_policy > 0.0 || self.asynchronous.is_some()
    }

    pub(super) fn prior_in_target(&self) -> bool {
        self.prior_in_target || self.objective().requirements().prior_in_target
    }

    pub(super) fn options(&self, policy: &LanguageModel) -> PolicyOptions {
        let asks = self.objective().requirements();
        PolicyOptions {
            reward_scale: self.reward_scale.or(asks.reward_scale).unwrap_or(1.0),
            reference: ReferenceTerms {
                kl_beta: self.kl,
                in_target: self.prior_in_target(),
            },
            reward_temperature: self.reward_temperature,
            dynamic_sampling: 0,
            asynchronous: self.asynchronous,
            exploration: self.exploration,
            updates_per_batch: self.updates_per_batch,
            prompts_per_step: self.prompts_per_step,
            completions_per_prompt: self.completions_per_prompt,
            on_policy: self.on_policy,
            replay: self.replay,
            replay_capacity: self.replay_capacity,
            replay_min_distance: self.replay_min_distance,
            replay_temperature: self.replay_temperature,
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            optimizer: self.optimizer.options(self.steps),
            micro_batch: MicroBatch::rows(self.micro_batch, self.prompts_per_step),
            monitor_every: self.monitor_every,
            monitor_completions: self.monitor_completions,
            monitor_reward: self.monitor_reward,
            limits: DivergenceLimits {
                kl: self.kl_limit,
                log_z: self.log_z_limit,
                patience: training::ESTIMATES_BEYOND,
                ..DivergenceLimits::default()
            },
            eos: policy.eos.clone(),
        }
    }
}
