//! A language model as it comes out of a file.

use std::fmt;

use super::{FormatError, to_half_split};
use crate::ml::models::causal::Architecture;
use crate::ml::parameters::Weights;
use crate::ml::tokenizer::Tokenizer;

/// Configuration, weights and tokenizer of a language model.
#[derive(Clone)]
pub struct Checkpoint {
    /// What the model is made of.
    pub config: Architecture,
    /// Weights in `f32` on the CPU, under their Hugging Face names.
    pub weights: Weights,
    /// The tokenizer, where the file or folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// Ids that end a text, the tokenizer's own first; empty if the files name none.
    pub eos_ids: Vec<u32>,
    /// Rows that embedding and head were given for tokens beyond those of the file.
    pub added_rows: usize,
}

impl Checkpoint {
    /// Returns the same model with rotary pairs in Hugging Face's order; see [`to_half_split`].
    pub fn into_half_split(mut self) -> Result<Self, FormatError> {
        (self.config, self.weights) = to_half_split(&self.config, &self.weights)?;
        Ok(self)
    }
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Checkpoint")
            .field("config", &self.config)
            .field("weights", &self.weights.len())
            .field("tokenizer", &self.tokenizer.is_some())
            .field("eos_ids", &self.eos_ids)
            .field("added_rows", &self.added_rows)
            .finish()
    }
}
