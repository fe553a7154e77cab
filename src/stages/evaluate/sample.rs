//! `sample`: completions of a policy.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::completions::{
    COLUMNS, COMPLETIONS, CompletionRow, ROWS, ROWS_PER_PROMPT, to_table,
};
use crate::artifacts::dataset::{DATASET, Dataset, PROMPTS};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::engine::context::{Progress, RunContext};
use crate::engine::facts::Known;
use crate::engine::stage::{Estimate, GpuUse, Kind, Output, Port, Problem, StageError};
use crate::ml::generate::{
    Contrastive, GenerateError, GenerateOptions, Sampling, Strategy, generate,
};
use crate::ml::placement::Precision;
use crate::ml::trainer::{ModelSize, forward_flops};
use crate::random::Stream;
use crate::stages::expected_size::{ExpectedSize, Work, estimate};
use crate::stages::placement::placement;
use crate::stages::ranges;
use crate::stages::tokenized::{needs_room, tokenize_prompts};

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StrategyName {
    /// The most probable token.
    Greedy,
    /// A draw, after temperature, top-k and top-p.
    Sampling,
    /// Contrastive search (Su et al. 2022) as in transformers 4.30; with a temperature, p = softmax(z / T).
    Contrastive,
}

/// Lets a policy complete prompts.
///
/// The completion of a prompt depends on the seed, the prompt and the number of the sample alone, so policies that
/// are compared see the same noise. Prompts that leave no room for `max_new_tokens` in the model's context are left out,
/// with a note.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// How the next token is chosen.
    strategy: StrategyName,
    /// Divides the logits; 1 for sampling and none for contrastive search if absent.
    #[serde(default)]
    #[schemars(extend("also" = ["temp"]))]
    temperature: Option<f64>,
    /// Only the k most probable tokens: 0 or absent keeps all in sampling; candidates of contrastive search (4).
    #[serde(default)]
    top_k: Option<usize>,
    /// Only the most probable tokens of so much mass, in sampling.
    #[serde(default)]
    top_p: Option<f64>,
    /// Weight of the similarity penalty of contrastive search.
    #[serde(default)]
    alpha: Option<f64>,
    /// Penalty on tokens that occurred before (Keskar et al. 2019); 1 changes nothing.
    #[serde(default = "one")]
    repetition_penalty: f64,
    /// Completions in all.
    #[schemars(extend("also" = ["num_samples"]))]
    n: usize,
    /// Completions of each prompt.
    #[serde(default = "one_sample")]
    #[schemars(extend("also" = ["num_return_sequences"]))]
    samples_per_prompt: usize,
    /// Distinct prompts of the dataset to skip first.
    #[serde(default)]
    skip: usize,
    /// Prompts keep so many of their last tokens, behind the begin token if there is one; all of them if absent. Scorers
    /// read what is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_prompt_tokens: Option<usize>,
    /// The horizon.
    #[schemars(extend("also" = ["max_length", "max_tokens"]))]
    max_new_tokens: usize,
    /// Seed of the draws.
    #[serde(default)]
    seed: u64,
    /// Completions decoded together; changes no result.
    #[serde(default = "batch_size", skip_serializing)]
    batch_size: usize,
    /// Expected sizes, for the plan's estimates; they change no result.
    #[serde(default, skip_serializing)]
    expected_size: Option<ExpectedSize>,
    /// The precision of weights of the model.
    #[serde(default)]
    precision: Precision,
}

fn one() -> f64 {
    1.0
}

fn one_sample() -> usize {
    1
}

fn batch_size() -> usize {
    100
}

impl Sample {
    fn decoding(&self) -> Strategy {
        match self.strategy {
            StrategyName::Greedy => Strategy::Greedy,
            StrategyName::Sampling => Strategy::Sampling(Sampling {
                temperature: self.temperature.unwrap_or(1.0),
                top_k: self.top_k.unwrap_or(0),
                top_p: self.top_p.unwrap_or(1.0),
            }),
            StrategyName::Contrastive => Strategy::Contrastive(Contrastive {
                alpha: self.alpha.unwrap_or(0.6),
                top_k: self.top_k.unwrap_or(4),
                temperature: self.temperature,
            }),
        }
    }

    fn is_deterministic(&self) -> bool {
        self.strategy != StrategyName::Sampling
    }
}

impl Kind for Sample {
    const NAME: &'static str = "sample";
    const VERSION: u32 = 6;
    const EXAMPLE: &'static str =
        "{ strategy: contrastive, alpha: 0.6, top_k: 4, n: 200, max_new_tokens: 24 }";

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one("policy", &[LANGUAGE_MODEL], "the model that completes"),
            Port::one(
                "prompts",
                &[DATASET],
                "its distinct prompts are completed, in order",
            ),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("completions", COMPLETIONS)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut require = |ok: bool, key: &str, expected: &str| {
            if !ok {
                problems.push(Problem::new(key, format!("`{key}` must be {expected}")));
            }
        };
        let sampling = self.strategy == StrategyName::Sampling;
        let contrastive = self.strategy == StrategyName::Contrastive;
        require(self.n > 0, "n", "at least 1");
        require(
            self.samples_per_prompt > 0,
            "samples_per_prompt",
            "at least 1",
        );
        require(self.max_new_tokens > 0, "max_new_tokens", "at least 1");
        require(
            self.max_prompt_tokens != Some(0),
            "max_prompt_tokens",
            "at least 1",
        );
        require(
            self.samples_per_prompt == 1 || sampling,
            "samples_per_prompt",
            "1 unless `strategy: sampling`: every sample of a prompt would be the same",
        );
        require(
            self.temperature.is_none() || sampling || contrastive,
            "temperature",
            "left out with `strategy: greedy`",
        );
        require(
            self.top_k.is_none() || sampling || contrastive,
            "top_k",
            "left out with `strategy: greedy`",
        );
        require(
            self.top_p.is_none() || sampling,
            "top_p",
            "left out unless `strategy: sampling`",
        );
        require(
            self.top_p.is_none_or(|p| p > 0.0 && p <= 1.0),
            "top_p",
            "above 0 and at most 1",
        );
        require(
            self.alpha.is_none() || contrastive,
            "alpha",
            "left out unless `strategy: contrastive`",
        );
        require(
            self.alpha.is_none_or(|a| (0.0..=1.0).contains(&a)),
            "alpha",
            "from 0 to 1",
        );
        require(
            !contrastive || self.top_k.is_none_or(|k| k > 1),
            "top_k",
            "at least 2 with contrastive search",
        );
        require(self.batch_size > 0, "batch_size", "at least 1");
        if let Some(temperature) = self.temperature {
            ranges::temperature("temperature", temperature, &mut problems);
        }
        ranges::factor("repetition_penalty", self.repetition_penalty, &mut problems);
        if let Some(size) = &self.expected_size {
            size.validate(&mut problems);
        }
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        needs_room(known, "policy", self.max_new_tokens);
        let prompts = self
            .n
            .div_ceil(self.samples_per_prompt)
            .saturating_add(self.skip);
        known.needs("prompts", PROMPTS, prompts, ("n", self.n), if self.is_deterministic() {
            "deterministic decoding gives one completion for each prompt behind the first `skip`"
        } else {
            "each prompt behind the first `skip` is completed `samples_per_prompt` times"
        });
        known.says_columns("completions", COLUMNS);
        known.says("completions", ROWS, self.n, ("n", self.n));
        let of_a_prompt = self.samples_per_prompt.min(self.n);
        known.says(
            "completions",
            ROWS_PER_PROMPT,
            of_a_prompt,
            ("samples_per_prompt", self.samples_per_prompt),
        );
    }

    fn estimate(&self) -> Estimate {
        let work = Work {
            rows: self.n as f64,
            // Contrastive search looks at every candidate.
            forward: if self.strategy == StrategyName::Contrastive {
                self.top_k.unwrap_or(4) as f64
            } else {
                1.0
            },
            backward: 0.0,
            trains_all: false,
            models: 1.0,
        };
        estimate(self.expected_size.as_ref(), work)
    }

    fn gpu_use(&self) -> GpuUse {
        GpuUse::Tensors
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let placement = placement(ctx, self.precision)?;
        let model = LanguageModel::load_at(&ctx.input("policy")?.path, &placement)?;
        let dataset = Dataset::read(&ctx.input("prompts")?.path)?;
        let needed = self.n.div_ceil(self.samples_per_prompt);
        let distinct = dataset.distinct_prompts();
        let examples = &distinct[self.skip.min(distinct.len())..];
        let positions = model.config.max_position_embeddings;
        let room = positions.saturating_sub(self.max_new_tokens);
        let cut = self.max_prompt_tokens;
        let chosen = tokenize_prompts(&model, examples, needed, cut, room, ctx)?;
        if needed > chosen.len() {
            let error = StageError::new(format!(
                "{} completions need {needed} distinct prompts, the dataset has {}{}",
                self.n,
                chosen.len(),
                if chosen.len() < examples.len() {
                    format!(" of at most {room} tokens")
                } else {
                    String::new()
                }
            ));
            return Err(error.hint(if chosen.len() < examples.len() {
                format!(
                    "the model takes {positions} tokens, {} of them for the completion: lower `max_new_tokens`, or set \
                     `max_prompt_tokens`",
                    self.max_new_tokens
                )
            } else if self.is_deterministic() {
                "deterministic decoding gives one completion for each prompt: lower `n`, or sample"
                    .to_owned()
            } else {
                "lower `n`, or raise `samples_per_prompt`".to_owned()
            }));
        }
        let mut rows = Vec::with_capacity(self.n);
        let (mut prompts, mut keys) = (Vec::new(), Vec::new());
        for index in 0..self.n {
            let prompt = &chosen[index / self.samples_per_prompt];
            let sample = (index % self.samples_per_prompt) as u64;
            let (_, example) = examples[prompt.place];
            prompts.push(prompt.tokens.clone());
            keys.push(((self.skip + prompt.place) as u64) << 20 | sample);
            let mut row = CompletionRow {
                question_id: example.question_id,
                sample,
                question: example.question.clone(),
                prompt: example.prompt.clone(),
                ..CompletionRow::default()
            };
            if prompt.is_cut {
                row.prompt = model.tokenizer.decode_prompt(&prompt.tokens)?;
                row.prompt_ids = Some(prompt.tokens.clone());
            }
            rows.push(row);
        }
        let options = GenerateOptions {
            repetition_penalty: self.repetition_penalty,
            batch_size: self.batch_size,
            ..GenerateOptions::new(self.max_new_tokens, &model.eos)
        };
        let cancelled = ctx.cancel_flag();
        let total = self.n as u64;
        let completions = generate(
            &model.frozen()?,
            &prompts,
            &options,
            &self.decoding(),
            &Stream::new(self.seed, "sample"),
            &keys,
            &mut |progress| {
                ctx.progress(Progress {
                    step: progress.finished as u64,
                    total,
                    unit: "completions".to_owned(),
                    ..Progress::default()
                });
                if cancelled.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            },
        );
        if ctx.is_cancelled() {
            return Err(StageError::Interrupted);
        }
        let completions = completions.map_err(|error| match error {
            GenerateError::NonFinite { index, tokens } => StageError::new(format!(
                "question {}, sample {}: the logits after {tokens} new tokens are not finite",
                rows[index].question_id, rows[index].sample
            )),
            other => other.into(),
        })?;
        let read = prompts.iter().zip(&completions);
        let lengths = read.map(|(prompt, completion)| prompt.len() + completion.tokens.len());
        let flops = forward_flops(&ModelSize::of(&model.config, false), lengths);
        let tokens: usize = completions.iter().map(|found| found.tokens.len()).sum();
        ctx.count(tokens as u64, flops);
        for (row, completion) in rows.iter_mut().zip(completions) {
            row.completion = model.tokenizer.decode(&completion.tokens)?;
            row.tokens = Some(completion.tokens.len() as u64);
            row.token_ids = Some(completion.tokens);
            row.truncated = completion.truncated;
            let log_probs = completion.log_probs.iter();
            row.log_prob = Some(log_probs.map(|log_prob| f64::from(*log_prob)).sum());
        }
        Ok(to_table("completions", &rows).write_data(&ctx.output("completions")?)?)
    }
}
