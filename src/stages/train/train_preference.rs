//! `train_preference`: a policy from preference pairs, without a reward model.

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
use crate::ml::objectives::preference::PreferenceLoss;
use crate::ml::placement::Precision;
use crate::ml::trainer::pairs::PairObjective;
use crate::stages::expected_size::ExpectedSize;
use crate::stages::tokenized::{Boundary, Limits, LongCompletions};

/// Fine-tunes a policy on preference pairs: DPO, IPO, CPO, ORPO, SimPO or KTO.
///
/// All see the same pairs in the same order; the reference is the model that the training starts from.
/// `train_gflownet_dpo` is the GFlowNet among them.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainPreference {
    /// The loss, with its own numbers, such as `{ loss: dpo, beta: 0.1 }`.
    objective: PreferenceLoss,
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

impl Kind for TrainPreference {
    const NAME: &'static str = "train_preference";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = "{ objective: { loss: dpo, beta: 0.1 }, steps: 200, batch_size: 16, \
        optimizer: { lr: 1e-4, schedule: cosine }, seed: 1 }";

    fn ports(&self) -> Vec<Port> {
        pairs::ports()
    }

    fn outputs(&self) -> Vec<Output> {
        training::outputs(&NO_LABELS)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        self.training().validate(&mut problems);
        if let Some((key, expected)) = self.objective.problem() {
            problems.push(Problem::new(
                &format!("objective.{key}"),
                format!("`{key}` must be {expected}"),
            ));
        }
        if matches!(self.objective, PreferenceLoss::Kto { .. }) && self.batch_size < 2 {
            problems.push(Problem::new(
                "batch_size",
                "`batch_size` must be at least 2: KTO needs completions of other prompts",
            ));
        }
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
        let objective = PairObjective::Preference(self.objective);
        self.training().run(Self::NAME, objective, ctx)
    }
}

impl TrainPreference {
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
