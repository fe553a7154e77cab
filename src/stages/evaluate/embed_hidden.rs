//! `embed_hidden`: texts as mean hidden states of a language model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::completions::{self, COMPLETIONS, SCORES};
use crate::artifacts::dataset::{DATASET, Dataset};
use crate::artifacts::embeddings::{EMBEDDINGS, EmbeddingMatrix};
use crate::artifacts::language_model::{LANGUAGE_MODEL, LanguageModel};
use crate::engine::context::{Input, RunContext};
use crate::engine::stage::{GpuUse, Kind, Output, Port, Problem, StageError};
use crate::ml::models::causal::TokenBatch;
use crate::ml::placement::Precision;
use crate::stages::placement::placement;
use crate::stages::ranges::at_least_one;
use crate::stages::{defaults, passes};

/// Embeds completions as the mean hidden state of a layer of a language model.
///
/// One frozen model embeds the texts of all policies, so that distances compare. Only the completion's own tokens
/// are averaged; `prefix` stands before them, the prompt does not. What goes beyond the model's context is cut, with a note.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EmbedHidden {
    /// After how many blocks; the middle of the model if absent.
    #[serde(default)]
    layer: Option<usize>,
    /// What stands before each text.
    #[serde(default)]
    prefix: String,
    /// Only the first so many texts.
    #[serde(default)]
    limit: Option<usize>,
    /// Texts in a forward pass; changes no result.
    #[serde(default = "defaults::batch_size", skip_serializing)]
    batch_size: usize,
    /// The precision of weights of the model.
    #[serde(default)]
    precision: Precision,
}

impl Kind for EmbedHidden {
    const NAME: &'static str = "embed_hidden";
    const VERSION: u32 = 2;
    const EXAMPLE: &'static str = r#"{ prefix: "Answer:" }"#;

    fn ports(&self) -> Vec<Port> {
        vec![
            Port::one(
                "texts",
                &[COMPLETIONS, SCORES, DATASET],
                "completions, or the preferred ones of a dataset",
            ),
            Port::one("model", &[LANGUAGE_MODEL], "its hidden states are used"),
        ]
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("embeddings", EMBEDDINGS)]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one("batch_size", self.batch_size as u64, &mut problems);
        at_least_one("limit", self.limit.unwrap_or(1) as u64, &mut problems);
        problems
    }

    fn gpu_use(&self) -> GpuUse {
        GpuUse::Tensors
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let placement = placement(ctx, self.precision)?;
        let model = LanguageModel::load_at(&ctx.input("model")?.path, &placement)?;
        let mut texts = texts(ctx.input("texts")?)?;
        texts.truncate(self.limit.unwrap_or(usize::MAX));
        let llama = model.frozen()?;
        let layer = self.layer.unwrap_or(model.config.num_layers.div_ceil(2));
        let prefix = model.tokenizer.encode_prompt(&self.prefix)?;
        let dimension = if layer == model.config.num_layers {
            model.config.embedding_size
        } else {
            model.config.hidden_size
        };
        let positions = model.config.max_position_embeddings;
        if prefix.len() >= positions {
            return Err(StageError::new(format!(
                "`prefix` has {} tokens, the model takes {positions}: no text fits behind it",
                prefix.len()
            )));
        }
        let mut cut = 0;
        let rows = ctx.pass("texts read", &texts, passes::TEXTS, |texts| {
            let rows = texts.iter().map(|text| {
                let mut tokens = prefix.clone();
                tokens.extend(model.tokenizer.encode(text)?);
                cut += usize::from(tokens.len() > positions);
                tokens.truncate(positions);
                Ok(tokens)
            });
            rows.collect::<Result<Vec<_>, StageError>>()
        })?;
        if cut > 0 {
            ctx.note(&format!(
                "{cut} of {} texts are longer than the model's {positions} tokens and were cut at the end",
                texts.len()
            ));
        }
        let part = passes::rows_at_once(rows.iter().map(Vec::len), self.batch_size);
        let means = ctx.pass("texts", &rows, part, |rows| {
            let batch = TokenBatch::right_padded(rows);
            let hidden = llama.layer_hidden_states(&batch, layer)?.to_vec3::<f32>()?;
            let means = hidden
                .iter()
                .zip(rows)
                .map(|(states, row)| mean(&states[prefix.len()..row.len()], dimension));
            Ok::<_, StageError>(means.collect::<Vec<_>>())
        })?;
        let values = means.into_iter().flatten().collect();
        Ok(EmbeddingMatrix { values, dimension }.write(&ctx.output("embeddings")?)?)
    }
}

/// The mean of vectors; the zero vector of none (an empty completion).
fn mean(states: &[Vec<f32>], dimension: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; dimension];
    for state in states {
        sums.iter_mut()
            .zip(state)
            .for_each(|(sum, value)| *sum += f64::from(*value));
    }
    let count = states.len().max(1) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// Returns the texts of an input: completions, or a dataset's preferred completions.
pub(super) fn texts(input: &Input) -> Result<Vec<String>, StageError> {
    if input.kind == DATASET {
        let dataset = Dataset::read(&input.path)?;
        return Ok(dataset
            .examples
            .into_iter()
            .filter_map(|example| example.chosen)
            .collect());
    }
    Ok(completions::read(&input.path)?
        .into_iter()
        .map(|row| row.completion)
        .collect())
}
