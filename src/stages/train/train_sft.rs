//! `train_sft`: supervised training of a language model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::micro_batch::MicroBatch;
use super::training::{self, Course, NO_LABELS, OptimizerParams, Purpose, Training};
use crate::artifacts::dataset::{DATASET, Dataset};
use crate::artifacts::language_model::{CONTEXT, LANGUAGE_MODEL, LanguageModel};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{
    Continuation, Estimate, GpuUse, Kind, Output, Port, Problem, StageError,
};
use crate::ml::adapter::LoraConfig;
use crate::ml::placement::Precision;
use crate::ml::trainer::TokenizedCompletion;
use crate::ml::trainer::supervised::{SupervisedOptions, SupervisedTrainer};
use crate::random::Stream;
use crate::stages::expected_size::{ExpectedSize, Work, estimate};
use crate::stages::placement::{check_precision, placement};
use crate::stages::ranges::at_least_one;
use crate::stages::tokenized::{Boundary, Limits, LongCompletions, tokenize_chosen};

/// Trains a language model on the completions of a dataset (the preferred ones of pairs).
///
/// With `learn_prompts` the prompts are learnt as well, which is pre-training; with `packing` documents are joined
/// into rows of one length, as in the StackLLaMA recipe. Without an `adapter` all weights are trained.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainSft {
    /// Optimizer steps.
    #[schemars(extend("also" = ["epochs", "num_epochs", "num_train_epochs", "max_steps", "num_steps", "iterations"]))]
    steps: u64,
    /// Rows in a step.
    #[schemars(extend("also" = ["train_batch_size", "per_device_train_batch_size"]))]
    batch_size: usize,
    /// Rows in a forward pass; all rows of a step if absent. `auto` begins with
    /// all rows of a step, and halves them each time that the GPU has no room for them.
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
    /// Whether prompts are learnt as well as completions.
    #[serde(default)]
    learn_prompts: bool,
    /// Joins documents, each with its end-of-sequence token, into rows of so many tokens.
    #[serde(default)]
    packing: Option<usize>,
    /// Longer examples are left out, or cut with `long_completions: truncate`; the model's context if absent.
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
    /// Seed of the order of examples and of dropout.
    seed: u64,
    /// Expected sizes, for the plan's estimates; they change no result.
    #[serde(default, skip_serializing)]
    expected_size: Option<ExpectedSize>,
}

impl Kind for TrainSft {
    const NAME: &'static str = "train_sft";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str =
        "{ steps: 120, batch_size: 64, optimizer: { lr: 2e-3, schedule: cosine }, seed: 1 }";

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one("model", &[LANGUAGE_MODEL], "the model to start from"),
            Port::many(
                "data",
                &[DATASET],
                "prompts with completions, of one dataset or of several together",
            ),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        training::outputs(&NO_LABELS)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        check_precision(self.precision, self.adapter.as_ref(), &mut problems);
        at_least_one("steps", self.steps, &mut problems);
        at_least_one("batch_size", self.batch_size as u64, &mut problems);
        self.limits().validate(&mut problems);
        self.optimizer.validate("optimizer", &mut problems);
        if self.packing.is_some_and(|length| length < 2) {
            problems.push(Problem::new(
                "packing",
                "`packing` must be at least 2 tokens",
            ));
        }
        if self.packing.is_some() && !self.learn_prompts {
            problems.push(
                Problem::new("packing", "packed rows have no prompts apart")
                    .hint("set `learn_prompts: true`, or leave `packing` out"),
            );
        }
        if let Some(size) = &self.expected_size {
            size.validate(&mut problems);
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        if let Some(length) = self.packing {
            let hint =
                "a packed row is read at once: lower it, or take a model with a longer context";
            known.needs("model", CONTEXT, length, ("packing", length), hint);
        }
        known.passes_on("model");
    }

    fn estimate(&self) -> Estimate {
        let work = Work {
            rows: self.steps as f64 * self.batch_size as f64,
            forward: 1.0,
            backward: 1.0,
            trains_all: self.adapter.is_none(),
            models: 1.0,
        };
        estimate(self.expected_size.as_ref(), work)
    }

    fn continuation(&self) -> Option<Continuation> {
        training::continuation(self.steps, &NO_LABELS, &self.optimizer)
    }

    fn gpu_use(&self) -> GpuUse {
        GpuUse::Tensors
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let placement = placement(ctx, self.precision)?
            .with_gradient_checkpointing(self.gradient_checkpointing);
        let model = LanguageModel::load_at(&ctx.input("model")?.path, &placement)?;
        let context = model.config.max_position_embeddings;
        if let Some(length) = self.packing.filter(|length| *length > context) {
            return Err(StageError::new(format!(
                "`packing` makes rows of {length} tokens, the model takes {context}"
            ))
            .hint(format!("lower `packing` to {context} or less")));
        }
        let mut examples = Vec::new();
        for input in ctx.inputs("data") {
            examples.extend(Dataset::read(&input.path)?.examples);
        }
        let stream = Stream::new(self.seed, "train_sft");
        let lengths = self.limits().lengths(&model);
        let rows = tokenize_chosen(&model, &examples, lengths, ctx)?;
        let mut rows: Vec<TokenizedCompletion> = rows.into_iter().map(|(_, row)| row).collect();
        if let Some(length) = self.packing {
            rows = pack(&rows, length)?;
        }
        let training = Training::open(model, self.adapter.as_ref(), Purpose::Policy, &stream)?;
        let options = SupervisedOptions {
            batch_size: self.batch_size,
            micro_batch: MicroBatch::rows(self.micro_batch, self.batch_size),
            optimizer: self.optimizer.options(self.steps),
            learn_prompts: self.learn_prompts,
        };
        let mut trainer = SupervisedTrainer::new(training.model(), rows, options, &stream)?;
        let course = Course::new("supervised training", self.steps, &self.optimizer);
        let trained = course.train(&mut trainer, ctx)?;
        training.save(&trained, ctx)
    }
}

impl TrainSft {
    fn limits(&self) -> Limits {
        Limits {
            max_tokens: self.max_tokens,
            max_prompt_tokens: self.max_prompt_tokens,
            long_completions: self.long_completions,
            boundary: self.boundary,
        }
    }
}

/// Joins rows end to end and cuts them to one length; what is left over at the end is dropped.
fn pack(
    rows: &[TokenizedCompletion],
    length: usize,
) -> Result<Vec<TokenizedCompletion>, StageError> {
    let tokens: Vec<u32> = rows
        .iter()
        .flat_map(|row| row.tokens.iter().copied())
        .collect();
    let packed: Vec<TokenizedCompletion> = tokens
        .chunks_exact(length)
        .map(|tokens| TokenizedCompletion {
            tokens: tokens.to_vec(),
            prompt_length: 1,
        })
        .collect();
    if packed.is_empty() {
        return Err(StageError::new(format!(
            "the data has {} tokens, less than one row of {length}",
            tokens.len()
        )));
    }
    Ok(packed)
}
