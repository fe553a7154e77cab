//! `init_model`: a language model with random weights.

use candle_core::Device;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::language_model::{CONTEXT, LANGUAGE_MODEL, save_new};
use crate::engine::context::RunContext;
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::ml::kernels::rope::RopeLayout;
use crate::ml::models::causal::LlamaConfig;
use crate::ml::models::causal::init;
use crate::ml::tokenizer::Tokenizer;
use crate::random::Stream;

/// Makes a LLaMA-architecture model with random weights, to be pre-trained.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct InitModel {
    /// Width of the residual stream.
    hidden_size: usize,
    /// Transformer blocks.
    num_layers: usize,
    /// Query heads.
    num_heads: usize,
    /// Key/value heads; as many as query heads if absent.
    #[serde(default)]
    num_kv_heads: Option<usize>,
    /// Width of the feed-forward layer.
    intermediate_size: usize,
    /// Longest sequence.
    max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    #[serde(default = "rope_theta")]
    rope_theta: f64,
    /// Whether the output head is the embedding matrix.
    #[serde(default = "tied")]
    tie_word_embeddings: bool,
    /// Seed of the weights.
    seed: u64,
}

fn rope_theta() -> f64 {
    10_000.0
}

fn tied() -> bool {
    true
}

impl InitModel {
    fn config(&self, vocab_size: usize) -> LlamaConfig {
        LlamaConfig {
            vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_layers: self.num_layers,
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads.unwrap_or(self.num_heads),
            rope_theta: self.rope_theta,
            rope_layout: RopeLayout::HalfSplit,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: self.tie_word_embeddings,
            max_position_embeddings: self.max_position_embeddings,
        }
    }
}

impl Kind for InitModel {
    const NAME: &'static str = "init_model";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = "{ hidden_size: 64, num_layers: 3, num_heads: 2, intermediate_size: 176, max_position_embeddings: 64, seed: 1 }";

    fn ports(&self) -> Vec<Port> {
        vec![Port::one(
            "tokenizer",
            &["tokenizer"],
            "its vocabulary is the model's",
        )]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("model", LANGUAGE_MODEL)]
    }

    fn validate(&self) -> Vec<Problem> {
        match self.config(8).check() {
            Ok(()) => Vec::new(),
            Err(error) => vec![Problem::new("hidden_size", error)],
        }
    }

    fn facts(&self, known: &mut Known<'_>) {
        let context = self.max_position_embeddings;
        known.says(
            "model",
            CONTEXT,
            context,
            ("max_position_embeddings", context),
        );
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let tokenizer = Tokenizer::load(&ctx.input("tokenizer")?.path)?;
        let config = self.config(tokenizer.vocab_size());
        let weights = init(&config, &Stream::new(self.seed, "init_model"), &Device::Cpu)?;
        let count: usize = weights.values().map(candle_core::Tensor::elem_count).sum();
        ctx.note(&format!("{count} parameters"));
        Ok(save_new(
            &ctx.output("model")?,
            &config,
            &weights,
            &tokenizer,
        )?)
    }
}
