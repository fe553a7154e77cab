//! What the kinds that train a policy on preference pairs have in common.

use super::training::{Course, OptimizerParams, Purpose, Training};
use crate::artifacts::dataset::{DATASET, Dataset};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::engine::context::RunContext;
use crate::engine::stage::{Estimate, Port, Problem, StageError};
use crate::ml::adapter::LoraConfig;
use crate::ml::placement::Precision;
use crate::ml::trainer::pairs::{PairObjective, PairOptions, PairTrainer};
use crate::random::Stream;
use crate::stages::expected_size::{ExpectedSize, Work, estimate};
use crate::stages::placement::{check_precision, placement};
use crate::stages::ranges::at_least_one;
use crate::stages::tokenized::{Limits, tokenize_pairs};

/// The params that such kinds share.
#[derive(Debug)]
pub(super) struct PairTraining<'a> {
    pub(super) steps: u64,
    pub(super) batch_size: usize,
    pub(super) micro_batch: usize,
    pub(super) optimizer: &'a OptimizerParams,
    pub(super) adapter: Option<&'a LoraConfig>,
    pub(super) precision: Precision,
    pub(super) gradient_checkpointing: bool,
    pub(super) lengths: Limits,
    pub(super) seed: u64,
    pub(super) expected_size: Option<&'a ExpectedSize>,
}

pub(super) fn ports() -> Vec<Port> {
    vec![
        Port::one(
            "policy",
            &[LANGUAGE_MODEL],
            "the model to start from, and the reference",
        ),
        Port::one("data", &[DATASET], "preference pairs"),
    ]
}

impl PairTraining<'_> {
    pub(super) fn validate(&self, problems: &mut Vec<Problem>) {
        check_precision(self.precision, self.adapter, problems);
        at_least_one("steps", self.steps, problems);
        at_least_one("batch_size", self.batch_size as u64, problems);
        at_least_one("micro_batch", self.micro_batch as u64, problems);
        self.lengths.validate(problems);
        self.optimizer.validate("optimizer", problems);
        if let Some(size) = self.expected_size {
            size.validate(problems);
        }
    }

    pub(super) fn estimate(&self) -> Estimate {
        let work = Work {
            rows: self.steps as f64 * self.batch_size as f64 * 2.0,
            // The policy and the reference.
            forward: 2.0,
            backward: 1.0,
            trains_all: self.adapter.is_none(),
            models: 2.0,
        };
        estimate(self.expected_size, work)
    }

    pub(super) fn run(
        &self,
        kind: &str,
        objective: PairObjective,
        ctx: &mut RunContext,
    ) -> Result<(), StageError> {
        let placement = placement(ctx, self.precision)?
            .with_gradient_checkpointing(self.gradient_checkpointing);
        let policy = LanguageModel::load_at(&ctx.input("policy")?.path, &placement)?;
        let data = Dataset::read(&ctx.input("data")?.path)?;
        let stream = Stream::new(self.seed, kind);
        let lengths = self.lengths.lengths(&policy);
        let pairs = tokenize_pairs(&policy, &data.examples, "pairs", lengths, ctx)?;
        let reference = policy.frozen()?;
        let eos = policy.eos.clone();
        let training = Training::open(policy, self.adapter, Purpose::Policy, &stream)?;
        let options = PairOptions {
            objective,
            batch_size: self.batch_size,
            micro_batch: self.micro_batch,
            optimizer: self.optimizer.options(self.steps),
            eos,
        };
        let mut trainer = PairTrainer::new(training.model(), reference, pairs, options, &stream)?;
        let course = Course::new("preferences", self.steps, self.optimizer);
        let trained = course.train(&mut trainer, ctx)?;
        training.save(&trained, ctx)
    }
}
