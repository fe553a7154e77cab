//! `train_tokenizer`: a tokenizer of the texts of datasets.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::dataset::{DATASET, Dataset};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, StageError};
use crate::ml::tokenizer::{TokenizerAlgorithm, train_tokenizer};

/// Trains a tokenizer on the prompts and completions of datasets.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainTokenizer {
    /// How text is cut.
    algorithm: TokenizerAlgorithm,
    /// Most token ids.
    vocab_size: usize,
    /// Tokens that are never cut.
    #[serde(default)]
    special_tokens: Vec<String>,
}

impl Kind for TrainTokenizer {
    const NAME: &'static str = "train_tokenizer";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = "{ algorithm: word_level, vocab_size: 256 }";

    fn ports(&self) -> Vec<Port> {
        vec![Port::many(
            "data",
            &[DATASET],
            "datasets whose prompts and completions are read",
        )]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("tokenizer", "tokenizer")]
    }

    fn validate(&self) -> Vec<Problem> {
        if self.vocab_size >= 8 {
            return Vec::new();
        }
        vec![Problem::new(
            "vocab_size",
            "`vocab_size` must be at least 8",
        )]
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let mut texts = Vec::new();
        for input in ctx.inputs("data") {
            for example in Dataset::read(&input.path)?.examples {
                texts.push(example.prompt);
                texts.extend(example.chosen);
                texts.extend(example.rejected);
            }
        }
        let special: Vec<&str> = self.special_tokens.iter().map(String::as_str).collect();
        let tokenizer = train_tokenizer(
            self.algorithm,
            texts.iter().map(String::as_str),
            self.vocab_size,
            &special,
        )?;
        ctx.note(&format!("{} tokens", tokenizer.vocab_size()));
        tokenizer.save(&ctx.output("tokenizer")?)?;
        Ok(())
    }
}
