//! `embed_sentences`: texts as vectors of a sentence encoder.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::embed_hidden::texts;
use crate::artifacts::completions::{COMPLETIONS, SCORES};
use crate::artifacts::dataset::DATASET;
use crate::artifacts::embeddings::{EMBEDDINGS, EmbeddingMatrix};
use crate::artifacts::text_encoder::{TEXT_ENCODER, TextEncoder};
use crate::engine::context::RunContext;
use crate::engine::stage::{GpuUse, Kind, Output, Port, Problem, StageError};
use crate::ml::placement::Precision;
use crate::stages::passes;
use crate::stages::placement::placement;
use crate::stages::ranges::at_least_one;

/// Embeds completions with a sentence encoder: with the prompt, by the pooling, through the layers and with the
/// normalisation that a folder of sentence-transformers states, otherwise by the mean of its last hidden states, of unit
/// length.
///
/// Texts are cut to what the encoder takes.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbedSentences {
    /// Only the first so many texts.
    #[serde(default)]
    limit: Option<usize>,
    /// Tokens in a forward pass; changes no result.
    #[serde(default = "batch_tokens", skip_serializing)]
    batch_tokens: usize,
}

fn batch_tokens() -> usize {
    4096
}

impl Kind for EmbedSentences {
    const NAME: &'static str = "embed_sentences";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = "{}";

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one(
                "texts",
                &[COMPLETIONS, SCORES, DATASET],
                "completions, or the preferred ones of a dataset",
            ),
            Port::one("encoder", &[TEXT_ENCODER], "embeds them"),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("embeddings", EMBEDDINGS)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one("batch_tokens", self.batch_tokens as u64, &mut problems);
        at_least_one("limit", self.limit.unwrap_or(1) as u64, &mut problems);
        problems
    }

    fn gpu_use(&self) -> GpuUse {
        GpuUse::Tensors
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let device = placement(ctx, Precision::F32)?.device;
        let encoder = TextEncoder::load_at(&ctx.input("encoder")?.path, &device)?;
        let mut texts = texts(ctx.input("texts")?)?;
        texts.truncate(self.limit.unwrap_or(usize::MAX));
        let dimension = encoder.dimension()?;
        let part = passes::texts_at_once(&texts);
        let vectors = ctx.pass("texts", &texts, part, |texts| {
            encoder.embed(texts, self.batch_tokens)
        })?;
        let values = vectors.into_iter().flatten().collect();
        Ok(EmbeddingMatrix { values, dimension }.write(&ctx.output("embeddings")?)?)
    }
}
