//! `train_gflownet`: GFlowNet fine-tuning against a reward model, by every objective of the field.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::objective::{Named, Settings, spread};
use super::policy::PolicyTraining;
use super::rewards;
use super::training::{self, Course, OnDivergence, OptimizerParams};
use crate::artifacts::dataset::{DATASET, Dataset};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::artifacts::reward::REWARDS;
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{
    Continuation, Estimate, GpuUse, Kind, Moved, Output, Port, Problem, StageError,
};
use crate::ml::adapter::LoraConfig;
use crate::ml::placement::Precision;
use crate::ml::schedule::Ramp;
use crate::ml::trainer::policy::Exploration;
use crate::ml::trainer::policy::asynchronous::Asynchronous;
use crate::ml::trainer::policy::objective::ObjectiveKind;
use crate::ml::trainer::policy::objectives::{
    GFLOWNET_OBJECTIVES, GflownetSettings, LogZSource, Weighting,
};
use crate::random::Stream;
use crate::stages::expected_size::{ExpectedSize, Work, estimate};
use crate::stages::placement::{check_precision, placement};
use crate::stages::ranges;
use crate::stages::ranges::at_least_one;
use crate::stages::tokenized::{Boundary, LongCompletions, needs_room};
use crate::stages::train::micro_batch::MicroBatch;

mod options;
mod prompts;

impl Settings for GflownetSettings {
    const KINDS: &'static [ObjectiveKind<Self>] = GFLOWNET_OBJECTIVES;
}

/// Whether the flow head's gradient reaches the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowGradient {
    /// Only the head learns flows.
    #[default]
    Detached,
    /// The model learns flows as well (the literal reading of the paper).
    Joint,
}

/// Which completions of the data set are trajectories.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Offline {
    /// Both sides of each pair: more completions of a prompt.
    #[default]
    All,
    /// Preferred ones only.
    Chosen,
}

/// Fine-tunes a policy to sample completions in proportion to their reward.
///
/// `log R = reward_scale x reward`; FlowHF is the forward-looking objective with scale 100 and without a KL term, on
/// completions of the data set. Off-policy forward-looking training constrains the policy by only K - 1 equations for
/// K completions of a prompt, so it wants at least two of each (`least_completions`). Prompts that leave no room for
/// `max_new_tokens` in the context of policy and reward model are left out, with a note.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainGflownet {
    /// The loss: a name, beside which the settings of it stand, or the name with them, such as
    /// `{ flowrl: { log_z: network } }`.
    objective: Named<GflownetSettings>,
    /// Optimizer steps.
    #[schemars(extend("also" = ["epochs", "num_epochs", "num_train_epochs", "max_steps", "num_steps", "iterations"]))]
    steps: u64,
    /// Steps that learn from the same completions before others are taken; `flowrl` weighs them by how likely they
    /// have become.
    #[serde(default = "one", skip_serializing_if = "is_one_update")]
    updates_per_batch: u64,
    /// Prompts in a step.
    prompts_per_step: usize,
    /// Completions of each prompt in a step.
    #[schemars(extend("also" = ["num_generations", "group_size"]))]
    completions_per_prompt: usize,
    /// Prompts in a forward pass; all of a step if absent. `auto` begins with
    /// all of a step, and halves them each time that the GPU has no room for them.
    #[serde(default)]
    micro_batch: Option<MicroBatch>,
    /// AdamW and its schedule.
    optimizer: OptimizerParams,
    /// LoRA adapter to train instead of all weights.
    #[serde(default)]
    #[schemars(extend("also" = ["lora", "peft_config"]))]
    adapter: Option<LoraConfig>,
    /// The precision of weights that are not trained.
    #[serde(default)]
    precision: Precision,
    /// Keep no more than the input of each block for the gradient, and compute the rest again: less memory, a third more
    /// time, the same result.
    #[serde(default, skip_serializing)]
    gradient_checkpointing: bool,
    /// Factor from reward to log R; `flowrl_released` has one of its own.
    #[serde(default)]
    reward_scale: Option<f64>,
    /// What log R is divided by: a number, or `{ start, end, steps }` for a straight line.
    #[serde(default, skip_serializing_if = "is_one")]
    reward_temperature: Ramp,
    /// Coefficient of a KL penalty to the starting model, inside the reward; 0 leaves it out.
    #[serde(default)]
    kl: f64,
    /// Whether the target is the starting model's distribution times R, instead of R alone.
    #[serde(default)]
    prior_in_target: bool,
    /// Where trajectory balance takes log Z from.
    #[serde(default)]
    log_z: Option<LogZSource>,
    /// Whether log-probabilities are divided by the length of the completion, as in `flowrl`; this shifts the target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    length_normalised: Option<bool>,
    /// Factor between the weights of sub-trajectories of one length and the next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lambda: Option<f64>,
    /// Over what the weights of sub-trajectories add up to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weighting: Option<Weighting>,
    /// Learning rate of log Z.
    #[serde(default = "tenth")]
    log_z_lr: f64,
    /// Where log Z starts; from a first batch if absent.
    #[serde(default)]
    log_z_start: Option<f64>,
    /// Learning rate of the flow head.
    #[serde(default = "tenth")]
    flow_lr: f64,
    /// Whether the flow head's gradient reaches the model.
    #[serde(default)]
    flow_gradient: FlowGradient,
    /// Completions that the data set must have of a prompt under objectives with a flow head, unless all are sampled.
    #[serde(default = "two")]
    least_completions: usize,
    /// Share of completions that the policy samples anew. It holds over the prompts of all steps: of 4 completions, 0.1
    /// samples one of every fifth prompt or so, and 0.5 two of each.
    #[serde(default)]
    on_policy: f64,
    /// Share of completions drawn from a buffer of what the policy sampled before; it holds as `on_policy` does, and the
    /// data set stands in while the buffer has fewer of a prompt.
    #[serde(default)]
    replay: f64,
    /// Completions that the buffer keeps of each prompt.
    #[serde(default = "sixteen")]
    replay_capacity: usize,
    /// Least edit distance between completions of a prompt in the buffer, as a share of their lengths together: of
    /// closer ones only the best stays (Hu et al. 2024: 0.25). If absent only the same completion counts as close.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replay_min_distance: Option<f64>,
    /// Temperature of priorities by log R in the buffer; uniform if absent.
    #[serde(default)]
    replay_temperature: Option<f64>,
    /// Sampling that runs behind learning, as in TBA: completions come from what it found alone, and `on_policy` and
    /// `replay` are left out. TBA's authors took `{ sync_every: 10, samples: 20, recent: 0.5 }` on TL;DR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    asynchronous: Option<Asynchronous>,
    /// Which completions of the data set are used.
    #[serde(default)]
    offline: Offline,
    /// The horizon, at which sampled completions are stopped.
    #[schemars(extend("also" = ["max_completion_length", "response_length"]))]
    max_new_tokens: usize,
    /// What becomes of completions of the data set beyond the horizon.
    #[serde(default)]
    long_completions: LongCompletions,
    /// How prompts and completions of the data set become tokens.
    #[serde(default, skip_serializing_if = "Boundary::is_apart")]
    boundary: Boundary,
    /// Temperature of on-policy sampling: a number, or `{ start, end, steps }` for a straight line.
    #[serde(default)]
    temperature: Ramp,
    /// Steps that sample at a random temperature instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    exploration: Option<Exploration>,
    /// Labels of further outputs, with the step after which each is taken.
    #[serde(default)]
    checkpoints: BTreeMap<String, u64>,
    /// Steps between estimates of the KL divergence to the starting model; 0 for none.
    #[serde(default = "twenty_five")]
    monitor_every: u64,
    /// Completions in such an estimate.
    #[serde(default = "thirty_two")]
    monitor_completions: usize,
    /// Whether the curve has the mean reward of these completions, `sampled_reward`, too: `reward` is that of the step's
    /// completions, which the policy need not have sampled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    monitor_reward: bool,
    /// KL divergence to the starting model, in nats, above which, two estimates in a row, the training counts as diverged.
    #[serde(default)]
    kl_limit: Option<f64>,
    /// |log Z| above which, at two steps in a row, the training counts as diverged.
    #[serde(default)]
    log_z_limit: Option<f64>,
    /// What divergence means.
    #[serde(default)]
    on_divergence: OnDivergence,
    /// Seed of prompts, completions, sampling and dropout.
    seed: u64,
    /// Expected sizes, for the plan's estimates; they change no result.
    #[serde(default, skip_serializing)]
    expected_size: Option<ExpectedSize>,
}

fn tenth() -> f64 {
    0.1
}

fn one() -> u64 {
    1
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_one_update(updates: &u64) -> bool {
    *updates == 1
}

fn is_one(value: &Ramp) -> bool {
    *value == Ramp::default()
}

fn two() -> usize {
    2
}

fn sixteen() -> usize {
    16
}

fn twenty_five() -> u64 {
    25
}

fn thirty_two() -> usize {
    32
}

impl Kind for TrainGflownet {
    const NAME: &'static str = "train_gflownet";
    const VERSION: u32 = 7;
    const EXAMPLE: &'static str = "{ objective: forward_looking, steps: 200, prompts_per_step: 8, completions_per_prompt: 4, \
        optimizer: { lr: 6e-5 }, reward_scale: 100, max_new_tokens: 24, checkpoints: { early: 150, late: 200 }, seed: 1 }";

    fn respell(params: &mut Map<String, Json>) -> Result<Vec<Moved>, Vec<Problem>> {
        spread::<GflownetSettings>(params)
    }

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one(
                "policy",
                &[LANGUAGE_MODEL],
                "the model to start from, and the reference",
            ),
            Port::one("reward", REWARDS, "scores completions and their prefixes"),
            Port::one(
                "data",
                &[DATASET],
                "prompts, with completions for off-policy training",
            ),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        training::outputs(&self.checkpoints)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        check_precision(self.precision, self.adapter.as_ref(), &mut problems);
        for (key, value) in [
            ("steps", self.steps),
            ("updates_per_batch", self.updates_per_batch),
            ("prompts_per_step", self.prompts_per_step as u64),
            ("max_new_tokens", self.max_new_tokens as u64),
            ("least_completions", self.least_completions as u64),
            ("replay_capacity", self.replay_capacity as u64),
            ("monitor_completions", self.monitor_completions as u64),
        ] {
            at_least_one(key, value, &mut problems);
        }
        ranges::rows(
            "completions_per_prompt",
            self.completions_per_prompt,
            &mut problems,
        );
        if let Some(settings) = &self.asynchronous {
            ranges::rows("asynchronous.samples", settings.samples, &mut problems);
        }
        self.optimizer.validate("optimizer", &mut problems);
        if let Some(scale) = self.reward_scale {
            ranges::factor("reward_scale", scale, &mut problems);
        } else if self.objective().requirements().reward_scale.is_none() {
            problems.push(Problem::new(
                "reward_scale",
                "missing param `reward_scale`: the factor from reward to log R",
            ));
        }
        ranges::learning_rate("log_z_lr", self.log_z_lr, &mut problems);
        ranges::learning_rate("flow_lr", self.flow_lr, &mut problems);
        for (end, value) in self.reward_temperature.ends() {
            ranges::factor(&format!("reward_temperature{end}"), value, &mut problems);
        }
        if let Some(temperature) = self
            .asynchronous
            .and_then(|settings| settings.reward_temperature)
        {
            ranges::factor(
                "asynchronous.reward_temperature",
                temperature,
                &mut problems,
            );
        }
        for (end, value) in self.temperature.ends() {
            ranges::temperature(&format!("temperature{end}"), value, &mut problems);
        }
        for (key, value) in self
            .exploration
            .iter()
            .flat_map(|exploration| [("low", exploration.low), ("high", exploration.high)])
        {
            ranges::temperature(&format!("exploration.{key}"), value, &mut problems);
        }
        if let Some(temperature) = self.replay_temperature {
            ranges::factor("replay_temperature", temperature, &mut problems);
        }
        let mut require = |ok: bool, key: &str, expected: &str| {
            if !ok {
                problems.push(Problem::new(key, format!("`{key}` must be {expected}")));
            }
        };
        require(self.kl >= 0.0, "kl", "at least 0");
        require(
            (0.0..=1.0).contains(&self.on_policy),
            "on_policy",
            "from 0 to 1",
        );
        require((0.0..=1.0).contains(&self.replay), "replay", "from 0 to 1");
        require(
            self.on_policy + self.replay <= 1.0,
            "replay",
            "at most 1 together with `on_policy`",
        );
        require(
            self.replay == 0.0 || self.on_policy > 0.0,
            "replay",
            "0 without `on_policy`: nothing fills the buffer",
        );
        require(
            self.exploration.is_none_or(|exploration| {
                (0.0..=1.0).contains(&exploration.probability)
                    && exploration.low <= exploration.high
            }),
            "exploration",
            "a probability from 0 to 1 and temperatures, `low` not above `high`",
        );
        require(
            self.replay_min_distance
                .is_none_or(|distance| distance > 0.0 && distance <= 1.0),
            "replay_min_distance",
            "above 0 and at most 1",
        );
        let asks = self.objective().requirements();
        require(
            self.log_z.is_none() || self.objective.takes("log_z"),
            "log_z",
            "left out: this objective has no log Z to choose",
        );
        require(
            self.completions_per_prompt >= asks.completions,
            "completions_per_prompt",
            "at least 2: this objective compares the completions of a prompt with each other",
        );
        require(
            self.length_normalised != Some(true) || self.objective.takes("length_normalised"),
            "length_normalised",
            "left out: only objectives on whole trajectories can be divided by length",
        );
        for (key, is_set) in [
            ("lambda", self.lambda.is_some()),
            ("weighting", self.weighting.is_some()),
        ] {
            require(
                !is_set || self.objective.takes("lambda"),
                key,
                "left out: this objective has no sub-trajectories to weigh",
            );
        }
        require(
            self.log_z_start.is_none() || asks.trains_log_z,
            "log_z_start",
            "left out: this objective trains nothing for log Z",
        );
        require(
            self.log_z_limit.is_none() || asks.watches_log_z,
            "log_z_limit",
            "left out: this objective has no log Z to watch",
        );
        require(
            self.log_z_limit.is_none_or(|limit| limit > 0.0),
            "log_z_limit",
            "above 0, or null",
        );
        if let Some(settings) = self.asynchronous.filter(|_| !asks.fresh) {
            require(
                self.on_policy == 0.0 && self.replay == 0.0,
                "asynchronous",
                "alone: `on_policy` and `replay` are left out, as all completions come from its sampling",
            );
            require(
                settings.samples >= asks.completions,
                "asynchronous.samples",
                "at least 2: this objective compares the completions of a prompt with each other",
            );
            require(
                settings.sync_every >= 1,
                "asynchronous.sync_every",
                "at least 1",
            );
            require(
                settings.prompts.is_none_or(|prompts| prompts >= 1),
                "asynchronous.prompts",
                "at least 1",
            );
            require(
                settings.capacity >= settings.samples,
                "asynchronous.capacity",
                "at least `samples`",
            );
            require(
                (0.0..=1.0).contains(&settings.recent),
                "asynchronous.recent",
                "from 0 to 1",
            );
        }
        let longest = i32::try_from(self.max_new_tokens).unwrap_or(i32::MAX);
        require(
            self.lambda
                .is_none_or(|lambda| lambda >= 1e-6 && lambda.powi(longest) <= 1e30),
            "lambda",
            "at least 1e-6, and to the power of `max_new_tokens` at most 1e30: weights have no room beyond",
        );
        require(
            self.samples() || self.completions_per_prompt >= asks.offline_completions,
            "completions_per_prompt",
            "at least `least_completions`: without `on_policy` a step has no others of a prompt",
        );
        require(
            asks.takes_kl || self.kl == 0.0,
            "kl",
            "0: this objective has no KL penalty; `prior_in_target` keeps the policy near the start",
        );
        require(
            !asks.fresh || self.asynchronous.is_none(),
            "asynchronous",
            "left out: this objective trains on fresh samples alone",
        );
        require(
            !asks.fresh || self.asynchronous.is_some() || self.on_policy == 1.0,
            "on_policy",
            "1: this objective trains on fresh samples alone",
        );
        training::validate_kl_limit(self.kl_limit, self.monitor_every, &mut problems);
        if self.monitor_reward && self.monitor_every == 0 {
            let what = "`monitor_reward` is never told: `monitor_every` is 0";
            problems.push(Problem::new("monitor_reward", what));
        }
        training::validate_labels(&self.checkpoints, self.steps, &mut problems);
        if let Some(size) = &self.expected_size {
            size.validate(&mut problems);
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        if self.samples() {
            needs_room(known, "policy", self.max_new_tokens);
        }
        known.passes_on("policy");
        let prompts = self.prompts_per_step;
        let (updates, batch) = match &self.asynchronous {
            Some(settings) => (
                settings.sync_every,
                (settings.prompts.unwrap_or(prompts), settings.samples),
            ),
            None => (
                self.updates_per_batch,
                (prompts, self.completions_per_prompt),
            ),
        };
        training::says_samples(known, self.steps, updates, batch);
    }

    fn estimate(&self) -> Estimate {
        let work = Work {
            rows: self.steps as f64
                * self.prompts_per_step as f64
                * self.completions_per_prompt as f64,
            // The policy, the reward model, the reference where it is asked, and generation.
            forward: 2.0
                + f64::from(u8::from(self.kl > 0.0 || self.prior_in_target()))
                + self.on_policy / self.updates_per_batch as f64,
            backward: 1.0,
            trains_all: self.adapter.is_none(),
            models: 3.0,
        };
        estimate(self.expected_size.as_ref(), work)
    }

    fn continuation(&self) -> Option<Continuation> {
        training::continuation(self.steps, &self.checkpoints, &self.optimizer)
    }

    fn gpu_use(&self) -> GpuUse {
        GpuUse::Tensors
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let placement = placement(ctx, self.precision)?
            .with_gradient_checkpointing(self.gradient_checkpointing);
        let policy = LanguageModel::load_at(&ctx.input("policy")?.path, &placement)?;
        let reward = rewards::open(&policy, &placement, ctx)?;
        let data = Dataset::read(&ctx.input("data")?.path)?;
        let positions = rewards::positions(&policy, &reward);
        let prompts = self.prompts(&policy, &data, positions, ctx)?;
        let is_sampling_set = self.exploration.is_some() || self.temperature != Ramp::default();
        if is_sampling_set && !self.samples() {
            ctx.note("no completions are sampled: `temperature` and `exploration` change nothing");
        }
        let training = PolicyTraining {
            course: Course {
                title: "GFlowNet",
                steps: self.steps,
                checkpoints: &self.checkpoints,
                optimizer: &self.optimizer,
                on_divergence: self.on_divergence,
                is_evaluated: false,
                halves: MicroBatch::halves(self.micro_batch),
            },
            adapter: self.adapter.as_ref(),
            objective: self.objective(),
            options: self.options(&policy),
            stream: Stream::new(self.seed, Self::NAME),
        };
        training.run(policy, reward, prompts, ctx)
    }
}

#[cfg(test)]
mod tests;
