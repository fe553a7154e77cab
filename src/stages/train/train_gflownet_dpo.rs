//! `train_gflownet_dpo`: `GFlowNet`-DPO (GDPO), a policy from preference pairs that stays diverse.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::micro_batch::MicroBatch;
use super::pairs::{self, PairTraining};
use super::training::{self, NO_LABELS, OptimizerParams};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{
    Continuation, Estimate, GpuUse, Kind, Output, Port, Problem, StageError,
};
use crate::ml::adapter::LoraConfig;
use crate::ml::objectives::Windows;
use crate::ml::objectives::gflownet_dpo::PreferenceReward;
use crate::ml::placement::Precision;
use crate::ml::trainer::pairs::{GflownetDpo, PairObjective};
use crate::ml::trainer::policy::objectives::Weighting;
use crate::stages::expected_size::ExpectedSize;
use crate::stages::ranges;
use crate::stages::tokenized::{Boundary, Limits, LongCompletions};

/// Whose loss is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Parity {
    /// The principled one: the log-reward of a prefix holds the log-probability of the whole prefix.
    #[default]
    Principled,
    /// That of the code released with the paper, with all that is odd in it.
    ReleasedCode,
}

/// Fine-tunes a policy on preference pairs by GFlowNet-DPO (GDPO; Kwon, Matsunaga and Kim 2024).
///
/// Detailed balance over prefixes that may all end, the log-reward being that of the starting model plus `alpha c` at
/// the end of a completion, `c` = 0 for preferred ones. Not NVIDIA's GDPO, which normalises the rewards of GRPO.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainGflownetDpo {
    /// Weight of the preference term.
    #[serde(default = "tenth")]
    alpha: f64,
    /// `c` of completions that were not preferred, below 0.
    #[serde(default = "minus_eight")]
    rejected: f64,
    /// Temperature of the starting model's log-probability of stopping.
    #[serde(default = "tenth")]
    gamma: f64,
    /// Whose loss is computed.
    #[serde(default)]
    parity: Parity,
    /// Factor between the weights of sub-trajectories of one length and the next; if absent, with `weighting`, single
    /// transitions are balanced, as in the paper.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lambda: Option<f64>,
    /// Over what the weights of sub-trajectories add up to 1; `trajectory` if there is a `lambda`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weighting: Option<Weighting>,
    /// Optimizer steps.
    #[schemars(extend("also" = ["epochs", "num_epochs", "num_train_epochs", "max_steps", "num_steps", "iterations"]))]
    steps: u64,
    /// Pairs in a step.
    #[schemars(extend("also" = ["train_batch_size", "per_device_train_batch_size"]))]
    batch_size: usize,
    /// Pairs in a forward pass; all pairs of a step if absent. `auto` begins with
    /// all pairs of a step, and halves them each time that the GPU has no room for them.
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
    /// Pairs with a longer side are left out, or cut with `long_completions: truncate`; the model's context if absent.
    #[serde(default)]
    #[schemars(extend("also" = ["max_length", "max_seq_length"]))]
    max_tokens: Option<usize>,
    /// Prompts keep so many of their last tokens, behind the begin token if there is one; all of them if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_prompt_tokens: Option<usize>,
    /// What becomes of completions that go beyond `max_tokens`.
    #[serde(default, skip_serializing_if = "LongCompletions::leaves_out")]
    long_completions: LongCompletions,
    /// How prompts and completions become tokens.
    #[serde(default, skip_serializing_if = "Boundary::is_apart")]
    boundary: Boundary,
    /// Seed of the order of pairs and of dropout.
    seed: u64,
    /// Expected sizes, for the plan's estimates; they change no result.
    #[serde(default, skip_serializing)]
    expected_size: Option<ExpectedSize>,
}

fn tenth() -> f64 {
    0.1
}

fn minus_eight() -> f64 {
    -8.0
}

impl Kind for TrainGflownetDpo {
    const NAME: &'static str = "train_gflownet_dpo";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = "{ alpha: 0.1, steps: 200, batch_size: 16, optimizer: { lr: 1e-4, schedule: cosine }, seed: 1 }";

    fn ports(&self) -> Vec<Port> {
        pairs::ports()
    }

    fn outputs(&self) -> Vec<Output> {
        training::outputs(&NO_LABELS)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.training().validate(&mut problems);
        let mut require = |ok: bool, key: &str, expected: &str| {
            if !ok {
                problems.push(Problem::new(key, format!("`{key}` must be {expected}")));
            }
        };
        // Their product is a log-reward, whose square must have room in 32 bits.
        require((0.0..=1e6).contains(&self.alpha), "alpha", "from 0 to 1e6");
        require(
            self.rejected < 0.0 && self.rejected >= -1e6,
            "rejected",
            "below 0 and at least -1e6",
        );
        require(
            self.lambda
                .is_none_or(|lambda| (1e-6..=2.0).contains(&lambda)),
            "lambda",
            "from 1e-6 to 2",
        );
        for (key, is_set) in [
            ("lambda", self.lambda.is_some()),
            ("weighting", self.weighting.is_some()),
        ] {
            require(
                self.parity == Parity::Principled || !is_set,
                key,
                "left out: the released code balances single transitions",
            );
        }
        ranges::factor("gamma", self.gamma, &mut problems);
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        known.passes_on("policy");
        training::says_samples(known, self.steps, 1, (self.batch_size, 1));
    }

    fn estimate(&self) -> Estimate {
        self.training().estimate()
    }

    fn continuation(&self) -> Option<Continuation> {
        training::continuation(self.steps, &NO_LABELS, &self.optimizer)
    }

    fn gpu_use(&self) -> GpuUse {
        GpuUse::Tensors
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let objective = PairObjective::GflownetDpo(GflownetDpo {
            preference: PreferenceReward {
                alpha: self.alpha,
                rejected: self.rejected,
            },
            gamma: self.gamma,
            windows: self.windows(),
            released: self.parity == Parity::ReleasedCode,
        });
        self.training().run(Self::NAME, objective, ctx)
    }
}

impl TrainGflownetDpo {
    /// Returns which sums of residuals are squared.
    fn windows(&self) -> Windows {
        match (self.lambda, self.weighting) {
            (None, None) => Windows::Transitions,
            (lambda, weighting) => weighting
                .unwrap_or(Weighting::Trajectory)
                .windows(lambda.unwrap_or(1.0)),
        }
    }

    fn training(&self) -> PairTraining<'_> {
        PairTraining {
            steps: self.steps,
            batch_size: self.batch_size,
            micro_batch: MicroBatch::rows(self.micro_batch, self.batch_size),
            optimizer: &self.optimizer,
            adapter: self.adapter.as_ref(),
            precision: self.precision,
            gradient_checkpointing: self.gradient_checkpointing,
            lengths: Limits {
                max_tokens: self.max_tokens,
                max_prompt_tokens: self.max_prompt_tokens,
                long_completions: self.long_completions,
                boundary: self.boundary,
            },
            seed: self.seed,
            expected_size: self.expected_size.as_ref(),
        }
    }
}
