//! `train_policy_gradient`: policy gradients on groups of completions, without a value head.
//!
//! Losses, advantages and KL estimators equal those of TRL 1.16.0 and verl 0.9.1 to 1e-12 in double precision
//! (`tests/fixtures/objectives`), but for verl's means over tokens, which divide by lengths + 1e-8. Not there: CISPO, SAPO
//! and other clips of TRL; ratios of tokens within sequences (GSPO-token); a sampler that is another program.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::micro_batch::MicroBatch;
use super::objective::{Named, Settings, spread};
use super::policy::{PolicyTraining, Room, distinct_prompts, without_completions};
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
use crate::ml::objectives::ReferenceTerms;
use crate::ml::objectives::divergence::DivergenceLimits;
use crate::ml::objectives::policy_gradient::{MeanOver, RatioLevel};
use crate::ml::placement::Precision;
use crate::ml::schedule::Ramp;
use crate::ml::trainer::policy::PolicyOptions;
use crate::ml::trainer::policy::objective::{Objective, ObjectiveKind};
use crate::ml::trainer::policy::objectives::{
    Advantage, Importance, KlPlace, KlSettings, POLICY_GRADIENTS, PolicyGradientSettings,
};
use crate::random::Stream;
use crate::stages::expected_size::{ExpectedSize, Work, estimate};
use crate::stages::placement::{check_precision, placement};
use crate::stages::ranges;
use crate::stages::ranges::at_least_one;
use crate::stages::tokenized::needs_room;

impl Settings for PolicyGradientSettings {
    const KINDS: &'static [ObjectiveKind<Self>] = POLICY_GRADIENTS;
}

/// Trains a policy by a policy gradient without a value head: RLOO, GRPO, Dr. GRPO, DAPO, GSPO or REINFORCE++.
///
/// A step samples several completions of some prompts, compares their rewards with each other, and makes one update on
/// them, or several. A method is a name; each of its parts can be set to another's. Where the rewards of a prompt's
/// completions are all equal, they teach nothing: the metric `varied` is the share of prompts where they are not, and
/// `dynamic_sampling` samples other prompts in their place.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainPolicyGradient {
    /// The method: a name, beside which other settings may stand, or the name with them, such as
    /// `{ grpo: { clip_high: 0.28 } }`.
    objective: Named<PolicyGradientSettings>,
    /// Optimizer steps.
    #[schemars(extend("also" = ["epochs", "num_epochs", "num_train_epochs", "max_steps", "num_steps", "iterations"]))]
    steps: u64,
    /// Steps that learn from the same completions before others are sampled.
    #[serde(default = "one")]
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
    /// What a completion's reward is compared with, if not with what the method has.
    #[serde(default)]
    advantage: Option<Advantage>,
    /// Of what the ratio to the policy that drew completions is taken.
    #[serde(default)]
    ratio: Option<RatioLevel>,
    /// How far below 1 a ratio counts.
    #[serde(default)]
    clip_low: Option<f64>,
    /// How far above 1 a ratio counts.
    #[serde(default)]
    clip_high: Option<f64>,
    /// The greatest ratio that counts (two-sided clipping); no limit if absent. It is for advantages below 0: above 0
    /// `clip_high` is the lower limit, unless this is below it.
    #[serde(default)]
    clip_ceiling: Option<f64>,
    /// Over what the loss is a mean.
    #[serde(default)]
    mean: Option<MeanOver>,
    /// The penalty on the divergence from the starting model, such as
    /// `{ coefficient: 0.04, estimator: k3, in: loss, corrected: true }`.
    #[serde(default)]
    kl: Option<KlSettings>,
    /// Weight of the policy's entropy in the loss.
    #[serde(default)]
    entropy_bonus: f64,
    /// Batches of prompts that a step may sample until it has enough prompts whose completions differ in reward; 0 takes
    /// one batch as it is.
    #[serde(default)]
    dynamic_sampling: Option<u64>,
    /// Tokens before the horizon over which what is taken off a completion's reward grows from 0 to 1; 0 for nothing.
    #[serde(default)]
    overlong_buffer: Option<usize>,
    /// Whether completions that the horizon ended have no part in the loss.
    #[serde(default)]
    mask_truncated: bool,
    /// Weights of completions for their having been sampled at another temperature than 1, such as `{ greatest: 2 }`.
    #[serde(default)]
    importance: Option<Importance>,
    /// Prompts of more tokens are left out; if absent, those that do not fit the models are.
    #[serde(default)]
    max_prompt_tokens: Option<usize>,
    /// The horizon: a completion has at most so many tokens, the end-of-sequence token included.
    #[schemars(extend("also" = ["max_completion_length", "response_length"]))]
    max_new_tokens: usize,
    /// Temperature of sampling; log-probabilities are those at temperature 1 whatever it is.
    #[serde(default)]
    temperature: Ramp,
    /// Labels of further outputs, with the step after which each is taken.
    #[serde(default)]
    checkpoints: BTreeMap<String, u64>,
    /// Steps between estimates of the KL divergence to the starting model; 0 for none.
    #[serde(default = "twenty_five")]
    monitor_every: u64,
    /// Completions in such an estimate.
    #[serde(default = "thirty_two")]
    monitor_completions: usize,
    /// KL divergence to the starting model, in nats, above which, two estimates in a row, the training counts as diverged.
    #[serde(default)]
    kl_limit: Option<f64>,
    /// What divergence means.
    #[serde(default)]
    on_divergence: OnDivergence,
    /// Seed of prompts, sampling, dropout, and new weights.
    seed: u64,
    /// Expected sizes, for the plan's estimates; they change no result.
    #[serde(default, skip_serializing)]
    expected_size: Option<ExpectedSize>,
}

fn one() -> u64 {
    1
}

fn twenty_five() -> u64 {
    25
}

fn thirty_two() -> usize {
    32
}

impl Kind for TrainPolicyGradient {
    const NAME: &'static str = "train_policy_gradient";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = "{ objective: grpo, steps: 200, prompts_per_step: 8, completions_per_prompt: 8, \
        optimizer: { lr: 3e-4 }, max_new_tokens: 24, seed: 1 }";

    fn respell(params: &mut Map<String, Json>) -> Result<Vec<Moved>, Vec<Problem>> {
        spread::<PolicyGradientSettings>(params)
    }

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one(
                "policy",
                &[LANGUAGE_MODEL],
                "the model to start from, and the reference",
            ),
            Port::one("reward", REWARDS, "what scores completions"),
            Port::one("data", &[DATASET], "whose distinct prompts are completed"),
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
            (
                "max_prompt_tokens",
                self.max_prompt_tokens.unwrap_or(1) as u64,
            ),
            ("monitor_completions", self.monitor_completions as u64),
        ] {
            at_least_one(key, value, &mut problems);
        }
        ranges::rows(
            "completions_per_prompt",
            self.completions_per_prompt,
            &mut problems,
        );
        self.optimizer.validate("optimizer", &mut problems);
        for (end, value) in self.temperature.ends() {
            ranges::temperature(&format!("temperature{end}"), value, &mut problems);
        }
        let mut require = |ok: bool, key: &str, expected: &str| {
            if !ok {
                problems.push(Problem::new(key, format!("`{key}` must be {expected}")));
            }
        };
        let asks = self.objective().requirements();
        require(
            self.completions_per_prompt >= asks.completions,
            "completions_per_prompt",
            "at least 2: the completions of a prompt are compared with each other",
        );
        require(
            self.clip_low.is_none_or(|clip| (0.0..=1.0).contains(&clip)),
            "clip_low",
            "from 0 to 1",
        );
        require(
            self.clip_high
                .is_none_or(|clip| (0.0..=1e6).contains(&clip)),
            "clip_high",
            "from 0 to 1e6",
        );
        require(
            self.clip_ceiling
                .is_none_or(|ceiling| (1.0..=1e6).contains(&ceiling)),
            "clip_ceiling",
            "from 1 to 1e6",
        );
        require(
            self.entropy_bonus.abs() <= 1e6,
            "entropy_bonus",
            "from -1e6 to 1e6",
        );
        if let Some(kl) = self.kl {
            require(
                (0.0..=1e6).contains(&kl.coefficient),
                "kl.coefficient",
                "from 0 to 1e6",
            );
            require(
                !kl.corrected || kl.place == KlPlace::Loss,
                "kl.corrected",
                "left out with `in: reward`: what is corrected is a term of the loss",
            );
        }
        if let Some(importance) = self.importance {
            require(
                importance.least >= 0.0
                    && importance.least <= importance.greatest
                    && (1e-6..=1e6).contains(&importance.greatest),
                "importance.greatest",
                "from 1e-6 to 1e6 and at least `least`, which is at least 0",
            );
        }
        require(
            self.overlong_buffer
                .is_none_or(|buffer| buffer <= self.max_new_tokens),
            "overlong_buffer",
            "at most `max_new_tokens`",
        );
        require(
            asks.dynamic_sampling == 0 || self.completions_per_prompt >= 2,
            "completions_per_prompt",
            "at least 2 with `dynamic_sampling`: it looks for prompts whose completions differ in reward",
        );
        training::validate_kl_limit(self.kl_limit, self.monitor_every, &mut problems);
        training::validate_labels(&self.checkpoints, self.steps, &mut problems);
        if let Some(size) = &self.expected_size {
            size.validate(&mut problems);
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        needs_room(known, "policy", self.max_new_tokens);
        known.passes_on("policy");
        let batch = (self.prompts_per_step, self.completions_per_prompt);
        training::says_samples(known, self.steps, self.updates_per_batch, batch);
    }

    fn estimate(&self) -> Estimate {
        let asks = self.objective().requirements();
        let work = Work {
            rows: self.steps as f64
                * self.prompts_per_step as f64
                * self.completions_per_prompt as f64,
            // The policy; generation and reward once for each batch; the reference where it is asked.
            forward: 1.0
                + f64::from(u8::from(asks.reference))
                + 2.0 / self.updates_per_batch as f64,
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
        let room = Room {
            positions: rewards::positions(&policy, &reward),
            max_prompt_tokens: self.max_prompt_tokens,
            max_new_tokens: self.max_new_tokens,
        };
        let (prompts, texts) = distinct_prompts(&policy, &data, room, ctx)?;
        let prompts = (without_completions(prompts), texts);
        let training = PolicyTraining {
            course: Course {
                title: "Policy gradient",
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

impl TrainPolicyGradient {
    fn objective(&self) -> Box<dyn Objective> {
        self.objective.make(&PolicyGradientSettings {
            advantage: self.advantage,
            ratio: self.ratio,
            clip_low: self.clip_low,
            clip_high: self.clip_high,
            clip_ceiling: self.clip_ceiling,
            mean: self.mean,
            kl: self.kl,
            entropy_bonus: self.entropy_bonus,
            overlong_buffer: self.overlong_buffer,
            mask_truncated: self.mask_truncated,
            importance: self.importance,
            dynamic_sampling: self.dynamic_sampling,
            horizon: self.max_new_tokens,
        })
    }

    fn options(&self, policy: &LanguageModel) -> PolicyOptions {
        PolicyOptions {
            reward_scale: 1.0,
            reward_temperature: Ramp::default(),
            reference: ReferenceTerms::default(),
            updates_per_batch: self.updates_per_batch,
            prompts_per_step: self.prompts_per_step,
            completions_per_prompt: self.completions_per_prompt,
            on_policy: 1.0,
            replay: 0.0,
            replay_capacity: 1,
            replay_min_distance: None,
            replay_temperature: None,
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            dynamic_sampling: self.objective().requirements().dynamic_sampling,
            asynchronous: None,
            exploration: None,
            optimizer: self.optimizer.options(self.steps),
            micro_batch: MicroBatch::rows(self.micro_batch, self.prompts_per_step),
            monitor_every: self.monitor_every,
            monitor_completions: self.monitor_completions,
            monitor_reward: false,
            limits: DivergenceLimits {
                kl: self.kl_limit,
                patience: training::ESTIMATES_BEYOND,
                ..DivergenceLimits::default()
            },
            eos: policy.eos.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::artifacts::curve::Curve;
    use crate::artifacts::reward_model::REWARD_MODEL;
    use crate::artifacts::reward_rule::REWARD_RULE;
    use crate::stages::data::generate_tree::GenerateTree;
    use crate::stages::data::reward_rule::RewardRule;
    use crate::stages::tryout::{Tried, attempt};

    fn with(changes: Json) -> Json {
        let mut params = json!({
            "objective": "grpo", "steps": 4, "prompts_per_step": 2, "completions_per_prompt": 4,
            "optimizer": { "lr": 1e-3 }, "max_new_tokens": 2, "monitor_every": 0, "seed": 1
        });
        let changes: Map<String, Json> = serde_json::from_value(changes).unwrap();
        params.as_object_mut().unwrap().extend(changes);
        params
    }

    /// Trains on the rewards of the tree, or on a rule that no completion matches.
    fn train(changes: Json, matches_nothing: bool) -> (Tried, [tempfile::TempDir; 2]) {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let params = json!({
            "symbols": 2, "horizon": 2, "prompts": 2, "spread": 1.5, "hidden_size": 16, "num_layers": 1, "seed": 1
        });
        let tree = attempt::<GenerateTree>(folders[0].path(), params, &[], None);
        let [policy, reward, data] = ["policy", "reward", "data"].map(|name| tree.output(name));
        let params = json!({ "rule": { "regex": { "pattern": "nothing" } } });
        let rule = attempt::<RewardRule>(&folders[0].path().join("rule"), params, &[], None);
        let rule = rule.output("rule");
        let inputs = [
            ("policy", LANGUAGE_MODEL, policy.as_path()),
            if matches_nothing {
                ("reward", REWARD_RULE, rule.as_path())
            } else {
                ("reward", REWARD_MODEL, reward.as_path())
            },
            ("data", DATASET, data.as_path()),
        ];
        let tried = attempt::<TrainPolicyGradient>(folders[1].path(), with(changes), &inputs, None);
        tried.outcome.as_ref().unwrap();
        (tried, folders)
    }

    #[test]
    fn params_that_would_be_ignored_or_teach_nothing_are_refused() {
        let kl =
            json!({ "coefficient": 0.1, "estimator": "k3", "in": "reward", "corrected": true });
        for (changes, path) in [
            (json!({ "kl": kl }), "kl.corrected"),
            (
                json!({ "importance": { "greatest": 0 } }),
                "importance.greatest",
            ),
            (json!({ "kl_limit": 3 }), "kl_limit"),
            (
                json!({ "completions_per_prompt": 1 }),
                "completions_per_prompt",
            ),
            (
                json!({ "completions_per_prompt": 9_000_000_000_000_000_000_u64 }),
                "completions_per_prompt",
            ),
            (
                json!({ "objective": "reinforce++", "completions_per_prompt": 1, "dynamic_sampling": 3 }),
                "completions_per_prompt",
            ),
        ] {
            let stage: TrainPolicyGradient = serde_json::from_value(with(changes)).unwrap();
            let problems = stage.validate();
            let found: Vec<String> = problems.iter().map(|p| p.path.to_string()).collect();
            assert_eq!(found, [path]);
        }
        let alone = json!({ "objective": "reinforce++", "completions_per_prompt": 1 });
        let stage: TrainPolicyGradient = serde_json::from_value(with(alone)).unwrap();
        assert_eq!(stage.validate(), []);
    }

    #[test]
    fn trainings_that_learn_nothing_say_so() {
        for matches_nothing in [false, true] {
            let changes = json!({ "objective": "dr_grpo", "mask_truncated": true });
            let (tried, _folders) = train(changes, matches_nothing);
            let notes = &tried.told.notes;
            let told = notes
                .iter()
                .any(|note| note.contains("4 of 4 steps changed nothing"));
            assert_eq!(told, matches_nothing, "{notes:?}");
        }
        // A step whose completions are all masked has no ratio: there is no mean over no tokens.
        let (tried, _folders) = train(
            json!({ "mask_truncated": true, "max_new_tokens": 1 }),
            false,
        );
        let curve = Curve::read(&tried.output("curve")).unwrap();
        let ratios = curve.metrics["ratio"].iter().flatten();
        assert!(
            ratios.clone().all(|ratio| (ratio - 1.0).abs() < 1e-5),
            "{:?}",
            curve.metrics["ratio"]
        );
        assert!(ratios.count() < 4);
    }

    #[test]
    fn dapo_takes_its_dynamic_sampling_as_a_setting_or_beside_it() {
        let sampled = |changes: Json| {
            let mut params = with(changes).as_object().unwrap().clone();
            TrainPolicyGradient::respell(&mut params).unwrap();
            let stage: TrainPolicyGradient = serde_json::from_value(params.into()).unwrap();
            stage.objective().requirements().dynamic_sampling
        };
        assert_eq!(sampled(json!({ "objective": "dapo" })), 10);
        assert_eq!(
            sampled(json!({ "objective": { "dapo": { "dynamic_sampling": 0 } } })),
            0
        );
        assert_eq!(
            sampled(json!({ "objective": "grpo", "dynamic_sampling": 3 })),
            3
        );
        assert_eq!(sampled(json!({ "objective": "grpo" })), 0);
    }
}
