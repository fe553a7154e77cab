//! `train_reward`: a reward model from preference pairs.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::micro_batch::MicroBatch;
use super::training::{self, Course, NO_LABELS, OptimizerParams, Purpose, Training};
use crate::artifacts::curve::CURVE;
use crate::artifacts::dataset::{DATASET, Dataset};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::artifacts::reward_model::{REWARD_MODEL, RewardDescription, RewardModel};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{
    Continuation, Estimate, GpuUse, Kind, Output, Port, Problem, StageError,
};
use crate::ml::adapter::LoraConfig;
use crate::ml::head::{HeadInit, ScalarHead};
use crate::ml::placement::Precision;
use crate::ml::trainer::reward::{RewardOptions, RewardTrainer, TokenizedPair};
use crate::random::Stream;
use crate::stages::expected_size::{ExpectedSize, Work, estimate};
use crate::stages::passes;
use crate::stages::placement::{check_precision, placement};
use crate::stages::ranges::at_least_one;
use crate::stages::tokenized::{Boundary, Lengths, context_length, tokenize, tokenize_pairs};
use crate::stats;
use crate::world::Examiner;

/// Trains a reward model on preference pairs (Bradley-Terry), and measures it on held-out pairs.
///
/// The head scores every place of a completion; the reward of a whole one is read at the end token that follows it.
/// A completion that does not end (`truncated`) is read at its last token. `prefix_weight` adds the loss of unfinished completions, without
/// which their scores mean little; forward-looking GFlowNet training needs them.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainReward {
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
    /// Weight of the loss at a random prefix, the same fraction of both completions; 0 leaves it out.
    #[serde(default)]
    prefix_weight: f64,
    /// Longer examples are left out; the model's context if absent.
    #[serde(default)]
    #[schemars(extend("also" = ["max_length", "max_seq_length"]))]
    max_tokens: Option<usize>,
    /// How prompts and completions become tokens.
    #[serde(default, skip_serializing_if = "Boundary::is_apart")]
    boundary: Boundary,
    /// What the scores are scaled and shifted to match.
    #[serde(default)]
    calibration: Calibration,
    /// Accuracy on held-out pairs must exceed that of "the longer completion wins" by this; absent, it need not.
    #[serde(default)]
    require_margin: Option<f64>,
    /// Seed of the head, of the order of pairs and of dropout.
    seed: u64,
    /// Expected sizes, for the plan's estimates; they change no result.
    #[serde(default, skip_serializing)]
    expected_size: Option<ExpectedSize>,
}

/// What the scores of a reward model are scaled and shifted to match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Calibration {
    /// Nothing: scores as the head gives them.
    #[default]
    None,
    /// Mean 0 and standard deviation 1 over preferred completions of the training pairs.
    Standard,
    /// Mean and standard deviation of the generated world's exact reward over the same completions.
    World,
}

const CALIBRATION_ROWS: usize = 400;
/// The head's weight among the trained parameters.
const HEAD_SCORE: &str = "head.score.weight";
/// Completions that are scored at once, at most.
const SCORED: usize = 64;

impl Kind for TrainReward {
    const NAME: &'static str = "train_reward";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = "{ steps: 250, batch_size: 32, optimizer: { lr: 3e-3, schedule: cosine }, prefix_weight: 0.5, seed: 1 }";

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one("model", &[LANGUAGE_MODEL], "the model to start from"),
            Port::one("data", &[DATASET], "preference pairs"),
            Port::one("evaluation", &[DATASET], "held-out preference pairs"),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![
            Output::new("model", REWARD_MODEL),
            Output::new("curve", CURVE),
        ]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        check_precision(self.precision, self.adapter.as_ref(), &mut problems);
        at_least_one("steps", self.steps, &mut problems);
        at_least_one("batch_size", self.batch_size as u64, &mut problems);
        self.optimizer.validate("optimizer", &mut problems);
        if !(self.prefix_weight >= 0.0 && self.prefix_weight.is_finite()) {
            problems.push(Problem::new(
                "prefix_weight",
                "`prefix_weight` must be at least 0",
            ));
        }
        if let Some(size) = &self.expected_size {
            size.validate(&mut problems);
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        known.passes_on("model");
    }

    fn estimate(&self) -> Estimate {
        let work = Work {
            rows: self.steps as f64 * self.batch_size as f64 * 2.0,
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
        let data = Dataset::read(&ctx.input("data")?.path)?;
        let evaluation = Dataset::read(&ctx.input("evaluation")?.path)?;
        let ports = [ctx.input("data")?, ctx.input("evaluation")?];
        if ports[0].digest == ports[1].digest {
            ctx.warn("warning: `data` and `evaluation` are the same: the accuracy is that on pairs it has learnt");
        }
        let stream = Stream::new(self.seed, "train_reward");
        let most = context_length(&model, self.max_tokens);
        let lengths = Lengths::up_to(most).with_boundary(self.boundary);
        // What could fail after the training fails before it.
        let examples = &evaluation.examples;
        let held_out = tokenize_pairs(&model, examples, "held-out pairs", lengths, ctx)?;
        let calibrated = self.calibrated(&model, &data, lengths)?;
        let pairs = tokenize_pairs(&model, &data.examples, "pairs", lengths, ctx)?;
        let training = Training::open(model, self.adapter.as_ref(), Purpose::Scorer, &stream)?;
        let trained = training.model();
        let head = ScalarHead::init(
            training.start().config.embedding_size,
            false,
            HeadInit::Normal(0.01),
            &stream.child("head"),
            trained.llama.device(),
        )?;
        let options = RewardOptions {
            batch_size: self.batch_size,
            micro_batch: MicroBatch::rows(self.micro_batch, self.batch_size),
            optimizer: self.optimizer.options(self.steps),
            prefix_weight: self.prefix_weight,
        };
        let mut trainer = RewardTrainer::new(trained, head, pairs, options, &stream)?;
        let course = Course {
            is_evaluated: true,
            halves: MicroBatch::halves(self.micro_batch),
            ..Course::new("reward model", self.steps, &self.optimizer)
        };
        let result = course.train(&mut trainer, ctx)?;
        let folder = ctx.output("model")?;
        let score = result.end.get(HEAD_SCORE);
        training.save_model(&result.end, score, &folder)?;
        let mut description = RewardDescription {
            scale: 1.0,
            offset: 0.0,
            accuracy: None,
            longer_wins: None,
            skipped_end: None,
            appended_end: None,
        };
        description.save(&folder)?;
        let raw = RewardModel::load_at(&folder, &placement)?;
        if let Some(calibrated) = calibrated {
            calibrate(&raw, &calibrated, &mut description, ctx)?;
        }
        measure(&raw, &held_out, &mut description, ctx)?;
        description.save(&folder)?;
        let (accuracy, longer) = (
            description.accuracy.unwrap_or(0.0),
            description.longer_wins.unwrap_or(0.0),
        );
        ctx.note(&format!(
            "accuracy {accuracy:.3} on held-out pairs; \"the longer one wins\": {longer:.3}"
        ));
        if let Some(margin) = self.require_margin
            && accuracy < longer + margin
        {
            return Err(StageError::new(format!(
                "the reward model orders {accuracy:.3} of the held-out pairs as people did, the rule \"the longer one \
                 wins\" {longer:.3}: less than {margin} above"
            ))
            .hint("train longer, on more pairs, or lower `require_margin`"));
        }
        Ok(result.curve.write(&ctx.output("curve")?)?)
    }
}

/// What scores are calibrated on.
struct Calibrated {
    rows: Vec<Vec<u32>>,
    /// Mean and standard deviation that the scores are to have.
    target: (f64, f64),
}

impl TrainReward {
    /// Returns the completions that scores are calibrated on, if they are.
    fn calibrated(
        &self,
        model: &LanguageModel,
        data: &Dataset,
        lengths: Lengths,
    ) -> Result<Option<Calibrated>, StageError> {
        if self.calibration == Calibration::None {
            return Ok(None);
        }
        let examples = &data.examples[..data.examples.len().min(CALIBRATION_ROWS)];
        let examiner = Examiner::new(0);
        let (mut rows, mut exact) = (Vec::new(), Vec::new());
        for example in examples {
            let Some(chosen) = &example.chosen else {
                continue;
            };
            if let Some(row) = tokenize(model, &example.prompt, chosen, lengths)? {
                rows.push(row.tokens);
                exact.extend(
                    examiner
                        .exam(&example.question)
                        .map(|exam| exam.marks(chosen, true).reward),
                );
            }
        }
        let target = match self.calibration {
            Calibration::World if exact.len() != rows.len() => {
                return Err(StageError::new(
                    "`calibration: world` needs prompts of the generated world",
                ));
            }
            Calibration::World => (stats::mean(&exact)?, stats::population_std(&exact)?),
            Calibration::Standard | Calibration::None => (0.0, 1.0),
        };
        if rows.len() < 2 {
            return Err(StageError::new(format!(
                "scores are calibrated on the first {} pairs, of which {} fit into {} tokens: expected at least 2",
                examples.len(),
                rows.len(),
                lengths.most
            ))
            .hint("raise `max_tokens`, or leave `calibration` out"));
        }
        Ok(Some(Calibrated { rows, target }))
    }
}

fn calibrate(
    raw: &RewardModel,
    Calibrated { rows, target }: &Calibrated,
    description: &mut RewardDescription,
    ctx: &mut RunContext,
) -> Result<(), StageError> {
    let scores = passes::rewards(ctx, raw, rows, SCORED)?;
    let spread = stats::population_std(&scores)?;
    if !(spread > 0.0 && spread.is_finite()) {
        return Err(StageError::new(format!(
            "the scores of the reward model have the standard deviation {spread} over {} completions: nothing can be \
             calibrated",
            rows.len()
        )));
    }
    description.scale = target.1 / spread;
    description.offset = target.0 - description.scale * stats::mean(&scores)?;
    Ok(())
}

fn measure(
    raw: &RewardModel,
    pairs: &[TokenizedPair],
    description: &mut RewardDescription,
    ctx: &mut RunContext,
) -> Result<(), StageError> {
    let sides = |pair: &TokenizedPair| [&pair.chosen, &pair.rejected].map(|row| row.tokens.clone());
    let lengths = |pair: &TokenizedPair| [&pair.chosen, &pair.rejected].map(|row| row.tokens.len());
    let part = passes::rows_at_once(pairs.iter().flat_map(lengths), SCORED);
    let scores = ctx.pass("held-out pairs", pairs, part.div_ceil(2), |pairs| {
        let rows: Vec<Vec<u32>> = pairs.iter().flat_map(sides).collect();
        raw.rewards(&rows, part)
    })?;
    // A tie is half a win.
    let share = |wins: &mut dyn Iterator<Item = std::cmp::Ordering>| {
        let sum: f64 = wins
            .map(|order| match order {
                std::cmp::Ordering::Greater => 1.0,
                std::cmp::Ordering::Equal => 0.5,
                std::cmp::Ordering::Less => 0.0,
            })
            .sum();
        sum / pairs.len() as f64
    };
    description.accuracy = Some(share(
        &mut scores
            .chunks_exact(2)
            .map(|pair| pair[0].total_cmp(&pair[1])),
    ));
    description.longer_wins = Some(share(
        &mut pairs
            .iter()
            .map(lengths)
            .map(|[chosen, rejected]| chosen.cmp(&rejected)),
    ));
    Ok(())
}
