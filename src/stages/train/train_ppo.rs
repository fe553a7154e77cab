//! `train_ppo`: proximal policy optimisation against a reward model.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::micro_batch::MicroBatch;
use super::policy::{Room, distinct_prompts};
use super::rewards::{self, PromptRewards};
use super::training::{self, Course, OnDivergence, OptimizerParams, Purpose, Training};
use crate::artifacts::dataset::{DATASET, Dataset};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::artifacts::reward::REWARDS;
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{
    Continuation, Estimate, GpuUse, Kind, Output, Port, Problem, StageError,
};
use crate::ml::adapter::LoraConfig;
use crate::ml::generate::Sampling;
use crate::ml::objectives::divergence::DivergenceLimits;
use crate::ml::objectives::kl_control::{AdaptiveKl, FixedKl, KlController};
use crate::ml::objectives::ppo::PpoOptions;
use crate::ml::placement::Precision;
use crate::ml::trainer::ppo::{ControlledKl, PpoStart, PpoTrainer, PpoTrainerOptions, Whitening};
use crate::random::Stream;
use crate::stages::expected_size::{ExpectedSize, Work, estimate};
use crate::stages::placement::{check_precision, placement};
use crate::stages::ranges;
use crate::stages::ranges::at_least_one;
use crate::stages::tokenized::needs_room;

/// Trains a policy with proximal policy optimisation (PPO) against a reward model.
///
/// A step samples completions of a batch of prompts, scores them, and makes several updates on them. The policy is
/// kept close to the model that it starts from by a KL penalty on the reward. Defaults are StackLLaMA's
/// (TRL 0.4.7).
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainPpo {
    /// Iterations: each samples a batch and makes updates on it.
    #[schemars(extend("also" = ["epochs", "num_epochs", "num_train_epochs", "max_steps", "num_steps", "iterations"]))]
    steps: u64,
    /// Completions sampled in a step.
    #[schemars(extend("also" = ["train_batch_size", "per_device_train_batch_size"]))]
    batch_size: usize,
    /// Completions of an optimizer step; divides `batch_size`.
    #[schemars(extend("also" = ["mini_batch_size"]))]
    minibatch_size: usize,
    /// Completions in a forward pass; a whole mini-batch if absent. `auto` begins with
    /// a whole mini-batch, and halves them each time that the GPU has no room for them.
    #[serde(default)]
    micro_batch: Option<MicroBatch>,
    /// Passes over the completions of a step.
    #[serde(default = "ppo_epochs")]
    #[schemars(extend("also" = ["num_ppo_epochs"]))]
    ppo_epochs: u64,
    /// Over which tokens advantages are whitened: those of a mini-batch or, as in TRL, of a micro-batch.
    #[serde(default)]
    whitening: Whitening,
    /// Optimiser; its schedule runs over steps.
    optimizer: OptimizerParams,
    /// Adapter to train; all weights if absent.
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
    /// Prompts of more tokens are left out; if absent, those that do not fit the models are.
    #[serde(default)]
    max_prompt_tokens: Option<usize>,
    /// The horizon: a completion has at most so many tokens, the end-of-sequence token included.
    #[schemars(extend("also" = ["max_completion_length", "response_length"]))]
    max_new_tokens: usize,
    /// If given, each completion has a horizon of its own, drawn from here to `max_new_tokens`.
    #[serde(default)]
    min_new_tokens: Option<usize>,
    /// Whether completions go on behind an end-of-sequence token up to their horizon, as in StackLLaMA.
    #[serde(default)]
    ignore_eos: bool,
    /// Temperature of sampling; losses and KL estimates are at temperature 1 whatever it is.
    #[serde(default = "one")]
    temperature: f64,
    /// Coefficient of the KL penalty at the start.
    #[serde(default = "init_kl")]
    #[schemars(extend("also" = ["kl_coef"]))]
    init_kl: f64,
    /// What moves the coefficient.
    #[serde(default)]
    kl: KlControl,
    /// Share of completions left out at either end of the trimmed KL estimate (metric `kl`, and its limit).
    #[serde(default = "kl_trim")]
    kl_trim: f64,
    /// Discount of rewards.
    #[serde(default = "one")]
    gamma: f64,
    /// Decay of generalised advantage estimates.
    #[serde(default = "lambda")]
    lambda: f64,
    /// Clip range of the probability ratio.
    #[serde(default = "clip_range")]
    clip_range: f64,
    /// Clip range of the value.
    #[serde(default = "clip_range")]
    value_clip_range: f64,
    /// Weight of the value loss.
    #[serde(default = "vf_coef")]
    vf_coef: f64,
    /// KL divergence to the sampling policy, per token; beyond 1.5 times it, early stopping acts.
    #[serde(default = "target_kl")]
    target_kl: f64,
    /// Whether a step's remaining updates are left out when the policy has moved far.
    #[serde(default = "yes")]
    early_stopping: bool,
    /// Mean probability ratio of a mini-batch above which no update is made on it.
    #[serde(default = "ratio_threshold")]
    ratio_threshold: f64,
    /// What is taken off every score.
    #[serde(default)]
    reward_baseline: f64,
    /// Steps after which the policy is kept, each an output under its label.
    #[serde(default)]
    checkpoints: BTreeMap<String, u64>,
    /// KL divergence to the starting model, in nats (trimmed estimate), above which, three steps in a row, the
    /// training counts as diverged.
    #[serde(default)]
    kl_limit: Option<f64>,
    /// Growth of the loss, its mean over 10 steps over that of the first 10 (at least 1), above which the training
    /// counts as diverged.
    #[serde(default)]
    loss_growth_limit: Option<f64>,
    /// What divergence means.
    #[serde(default)]
    on_divergence: OnDivergence,
    /// Seed of prompts' order, sampling, dropout, and new weights.
    seed: u64,
    /// Expected sizes, for the plan's estimates; they change no result.
    #[serde(default, skip_serializing)]
    expected_size: Option<ExpectedSize>,
}

/// What moves the coefficient of the KL penalty.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum KlControl {
    /// Nothing.
    Fixed,
    /// It follows a target.
    Adaptive {
        /// KL divergence of a completion to the reference to steer to, in nats.
        target: f64,
        /// Completions over which the coefficient moves by its own size times the clipped error.
        horizon: f64,
        /// Which estimate is steered: `mean`, as in TRL, or the steadier `trimmed`.
        #[serde(default)]
        estimate: ControlledKl,
    },
}

impl Default for KlControl {
    fn default() -> Self {
        Self::Adaptive {
            target: 6.0,
            horizon: 10_000.0,
            estimate: ControlledKl::Mean,
        }
    }
}

fn ppo_epochs() -> u64 {
    4
}

fn one() -> f64 {
    1.0
}

fn init_kl() -> f64 {
    0.2
}

fn kl_trim() -> f64 {
    0.05
}

fn lambda() -> f64 {
    0.95
}

fn clip_range() -> f64 {
    0.2
}

fn vf_coef() -> f64 {
    0.1
}

fn target_kl() -> f64 {
    0.1
}

fn yes() -> bool {
    true
}

fn ratio_threshold() -> f64 {
    10.0
}

impl Kind for TrainPpo {
    const NAME: &'static str = "train_ppo";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = "
steps: 40
batch_size: 64
minibatch_size: 16
optimizer: { lr: 3.0e-4 }
max_new_tokens: 24
kl: { adaptive: { target: 2, horizon: 10000 } }
checkpoints: { early: 20 }
seed: 1
";

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one(
                "policy",
                &[LANGUAGE_MODEL],
                "the model to train, and the reference that it is kept close to",
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
        if self.whitening == Whitening::MicroBatch && MicroBatch::halves(self.micro_batch) {
            let text =
                "`micro_batch: auto` would change what `whitening: micro_batch` takes means over";
            let problem = Problem::new("micro_batch", text);
            problems.push(problem.hint("give a number, or leave `whitening` out"));
        }
        check_precision(self.precision, self.adapter.as_ref(), &mut problems);
        for (key, value) in [
            ("steps", self.steps),
            ("batch_size", self.batch_size as u64),
            ("minibatch_size", self.minibatch_size as u64),
            ("ppo_epochs", self.ppo_epochs),
            ("max_new_tokens", self.max_new_tokens as u64),
            (
                "max_prompt_tokens",
                self.max_prompt_tokens.unwrap_or(1) as u64,
            ),
        ] {
            at_least_one(key, value, &mut problems);
        }
        let mut require = |ok: bool, key: &str, expected: &str| {
            if !ok {
                problems.push(Problem::new(key, format!("`{key}` must be {expected}")));
            }
        };
        require(
            self.minibatch_size == 0 || self.batch_size.is_multiple_of(self.minibatch_size),
            "minibatch_size",
            "a divisor of `batch_size`",
        );
        require(
            self.min_new_tokens
                .is_none_or(|least| (1..=self.max_new_tokens).contains(&least)),
            "min_new_tokens",
            "from 1 to `max_new_tokens`, or null",
        );
        require(self.init_kl >= 0.0, "init_kl", "at least 0");
        require(
            (0.0..0.5).contains(&self.kl_trim),
            "kl_trim",
            "at least 0 and below 0.5",
        );
        require((0.0..=1.0).contains(&self.gamma), "gamma", "from 0 to 1");
        require((0.0..=1.0).contains(&self.lambda), "lambda", "from 0 to 1");
        require(
            (0.0..1.0).contains(&self.clip_range),
            "clip_range",
            "at least 0 and below 1",
        );
        require(
            self.value_clip_range >= 0.0,
            "value_clip_range",
            "at least 0",
        );
        // At 0 the head would have no gradient.
        require(self.vf_coef >= 1e-6, "vf_coef", "at least 1e-6");
        require(self.target_kl >= 1e-6, "target_kl", "at least 1e-6");
        require(self.ratio_threshold > 1.0, "ratio_threshold", "above 1");
        if let KlControl::Adaptive {
            target, horizon, ..
        } = self.kl
        {
            require(target >= 1e-6, "kl.adaptive.target", "at least 1e-6");
            require(
                horizon >= self.batch_size as f64,
                "kl.adaptive.horizon",
                "at least `batch_size`",
            );
        }
        for (key, limit) in [
            ("kl_limit", self.kl_limit),
            ("loss_growth_limit", self.loss_growth_limit),
        ] {
            require(
                limit.is_none_or(|limit| limit > 0.0),
                key,
                "above 0, or null",
            );
        }
        ranges::temperature("temperature", self.temperature, &mut problems);
        self.optimizer.validate("optimizer", &mut problems);
        training::validate_labels(&self.checkpoints, self.steps, &mut problems);
        if let Some(size) = &self.expected_size {
            size.validate(&mut problems);
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        for model in ["policy", "reward"] {
            needs_room(known, model, self.max_new_tokens);
        }
        known.passes_on("policy");
        training::says_samples(known, self.steps, 1, (self.batch_size, 1));
    }

    fn estimate(&self) -> Estimate {
        let work = Work {
            rows: self.steps as f64 * self.batch_size as f64,
            // Generation, policy, reference and reward once; then the policy in each epoch.
            forward: 4.0 + self.ppo_epochs as f64,
            backward: self.ppo_epochs as f64,
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
        let start = LanguageModel::load_at(&ctx.input("policy")?.path, &placement)?;
        let reward = rewards::open(&start, &placement, ctx)?;
        let dataset = Dataset::read(&ctx.input("data")?.path)?;
        let room = Room {
            positions: rewards::positions(&start, &reward),
            max_prompt_tokens: self.max_prompt_tokens,
            max_new_tokens: self.max_new_tokens,
        };
        let (prompts, texts) = distinct_prompts(&start, &dataset, room, ctx)?;

        let stream = Stream::new(self.seed, Self::NAME);
        let training = Training::open(start, self.adapter.as_ref(), Purpose::Policy, &stream)?;
        let rewards = PromptRewards::new(reward, training.start(), texts, ctx)?;
        let program = rewards.program();
        let ppo_start = PpoStart {
            model: training.model(),
            reference: training.start().frozen()?,
            rewards: Box::new(rewards),
            prompts,
            eos: training.start().eos.clone(),
        };
        let mut trainer = PpoTrainer::new(ppo_start, self.options()?, &stream)?;
        let course = Course {
            title: "Proximal policy optimisation",
            steps: self.steps,
            checkpoints: &self.checkpoints,
            optimizer: &self.optimizer,
            on_divergence: self.on_divergence,
            is_evaluated: false,
            halves: MicroBatch::halves(self.micro_batch),
        };
        let trained = course.train(&mut trainer, ctx)?;
        rewards::finish(program, ctx)?;
        training.save(&trained, ctx)
    }
}

impl TrainPpo {
    fn options(&self) -> Result<PpoTrainerOptions, StageError> {
        let (kl, controlled_kl) = match self.kl {
            KlControl::Fixed => (
                KlController::Fixed(FixedKl { beta: self.init_kl }),
                ControlledKl::Mean,
            ),
            KlControl::Adaptive {
                target,
                horizon,
                estimate,
            } => {
                let controller = AdaptiveKl::new(self.init_kl, target, horizon)?;
                (KlController::Adaptive(controller), estimate)
            }
        };
        Ok(PpoTrainerOptions {
            batch_size: self.batch_size,
            mini_batch: self.minibatch_size,
            micro_batch: MicroBatch::rows(self.micro_batch, self.minibatch_size),
            ppo_epochs: self.ppo_epochs,
            whitening: self.whitening,
            optimizer: self.optimizer.options(self.steps),
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: self.min_new_tokens,
            ignore_eos: self.ignore_eos,
            sampling: Sampling {
                temperature: self.temperature,
                ..Sampling::default()
            },
            kl,
            controlled_kl,
            kl_trim: self.kl_trim,
            gamma: self.gamma,
            lambda: self.lambda,
            loss: PpoOptions {
                clip_range: self.clip_range,
                value_clip_range: self.value_clip_range,
                value_coefficient: self.vf_coef,
                ratio_threshold: self.ratio_threshold,
            },
            target_kl: self.early_stopping.then_some(self.target_kl),
            reward_baseline: self.reward_baseline,
            divergence: DivergenceLimits {
                kl: self.kl_limit,
                loss_growth: self.loss_growth_limit,
                ..DivergenceLimits::default()
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parses as the engine does, by way of JSON.
    fn parse(text: &str) -> TrainPpo {
        let params: serde_json::Value = serde_yaml::from_str(text).unwrap();
        serde_json::from_value(params).unwrap()
    }

    fn example() -> TrainPpo {
        parse(TrainPpo::EXAMPLE)
    }

    #[test]
    fn the_example_is_in_range_and_has_an_output_for_each_label() {
        let stage = example();
        assert_eq!(stage.validate(), []);
        let names: Vec<String> = stage
            .outputs()
            .into_iter()
            .map(|output| output.name)
            .collect();
        assert_eq!(names, ["model", "early", "curve"]);
        assert!(stage.options().is_ok());
    }

    #[test]
    fn values_out_of_range_are_named() {
        let cases: [(&str, fn(&mut TrainPpo)); 11] = [
            ("steps", |stage| stage.steps = 0),
            ("minibatch_size", |stage| stage.minibatch_size = 24),
            ("min_new_tokens", |stage| stage.min_new_tokens = Some(25)),
            ("kl_trim", |stage| stage.kl_trim = 0.5),
            ("lambda", |stage| stage.lambda = 1.1),
            ("kl.adaptive.target", |stage| {
                stage.kl = KlControl::Adaptive {
                    target: 0.0,
                    horizon: 1e4,
                    estimate: ControlledKl::Mean,
                };
            }),
            ("kl.adaptive.horizon", |stage| {
                stage.kl = KlControl::Adaptive {
                    target: 1.0,
                    horizon: 63.0,
                    estimate: ControlledKl::Mean,
                };
            }),
            ("optimizer.lr", |stage| stage.optimizer.lr = 0.0),
            ("checkpoints.early", |stage| {
                stage.checkpoints.insert("early".to_owned(), 41);
            }),
            ("checkpoints.curve", |stage| {
                stage.checkpoints.insert("curve".to_owned(), 1);
            }),
            ("kl_limit", |stage| stage.kl_limit = Some(-1.0)),
        ];
        for (key, damage) in cases {
            let mut stage = example();
            damage(&mut stage);
            let found: Vec<String> = stage
                .validate()
                .iter()
                .map(|problem| problem.path.to_string())
                .filter(|path| path == key)
                .collect();
            assert_eq!(found, [key], "{:?}", stage.validate());
        }
    }

    #[test]
    fn a_fixed_coefficient_is_spelt_in_one_word() {
        let adaptive = "kl: { adaptive: { target: 2, horizon: 10000 } }";
        let stage = parse(&TrainPpo::EXAMPLE.replace(adaptive, "kl: fixed"));
        let options = stage.options().unwrap();
        assert!(matches!(options.kl, KlController::Fixed(FixedKl { beta }) if beta == 0.2));
    }
}
