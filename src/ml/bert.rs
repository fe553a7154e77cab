//! BERT-family encoders (Devlin et al. 2019, arXiv 1810.04805), such as MiniLM and RoBERTa: sentence
//! embeddings and classifiers, trainable as a whole.
//!
//! Blocks are normalised after their residual sums; positions are learned; the activation is the exact
//! GELU. Texts of a batch are packed one after the other rather than padded, so that an embedding is the
//! same to the last bit whatever it is batched with. There is no dropout.
//!
//! Weights are named as in `transformers.BertModel`, without prefix:
//! `encoder.layer.0.attention.self.query.weight`.

mod classifier;
mod packed;
mod sentence;
#[cfg(test)]
mod tests;

use candle_core::{Tensor, Var};

pub use classifier::{BertClassifier, ClassifierHead, Pooling};
pub use packed::PackedTokens;
pub use sentence::{SentenceEmbedding, SentencePooling};

use super::kernels::layer_norm::layer_norm;
use super::kernels::linear::linear;
use super::kernels::span_attention::SpanAttention;
use super::parameters::{ParameterError, Parameters, Weights};
use super::tokenizer::TokenizerError;

use crate::ml::kernels::pointwise::gelu;
use crate::ml::kernels::sums::add_bias;

/// An encoder could not be built or applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BertError {
    /// A weight is missing, or has another shape.
    #[error(transparent)]
    Parameter(#[from] ParameterError),

    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),

    /// A text could not be encoded.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),

    /// The sizes do not describe an encoder.
    #[error("invalid encoder: {0}")]
    Config(String),

    /// A row has no token.
    #[error("row {row} is empty, expected at least one token")]
    EmptyRow {
        /// Index of the row.
        row: usize,
    },

    /// A row has more tokens than the encoder has positions.
    #[error("row {row} has {tokens} tokens, the encoder has {limit} positions; truncate it")]
    TooLong {
        /// Index of the row.
        row: usize,
        /// Its length.
        tokens: usize,
        /// The greatest length.
        limit: usize,
    },

    /// An id is outside the vocabulary.
    #[error("row {row} has token id {id}, the vocabulary has {vocab_size}")]
    UnknownToken {
        /// Index of the row.
        row: usize,
        /// The id.
        id: u32,
        /// Number of ids.
        vocab_size: usize,
    },
}

/// Shape and constants of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of transformer blocks.
    pub num_layers: usize,
    /// Number of attention heads.
    pub num_heads: usize,
    /// Rows of the table of positions.
    pub max_position_embeddings: usize,
    /// Row of that table for a text's first token: 0 in BERT, the padding id plus one in RoBERTa.
    pub first_position: usize,
    /// Rows of the table of token types; all tokens are of type 0.
    pub type_vocab_size: usize,
    /// Added to the variance before its root is taken.
    pub layer_norm_eps: f64,
}

impl BertConfig {
    /// Returns the greatest number of tokens in a row.
    pub fn max_tokens(&self) -> usize {
        self.max_position_embeddings
            .saturating_sub(self.first_position)
    }

    /// Checks that sizes are positive and fit together.
    pub fn check(&self) -> Result<(), BertError> {
        let sizes = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.num_layers,
            self.num_heads,
            self.max_tokens(),
            self.type_vocab_size,
        ];
        // The upper bound keeps every product of two sizes within 64 bits.
        if sizes
            .iter()
            .any(|size| *size == 0 || *size > i32::MAX as usize)
        {
            return Err(BertError::Config(format!(
                "every size must be from 1 to {}: {self:?}",
                i32::MAX
            )));
        }
        if !self.hidden_size.is_multiple_of(self.num_heads) {
            return Err(BertError::Config(format!(
                "hidden size {} does not split into {} heads",
                self.hidden_size, self.num_heads
            )));
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps >= 0.0) {
            return Err(BertError::Config(format!(
                "layer norm epsilon is {}, expected a number not below 0",
                self.layer_norm_eps
            )));
        }
        Ok(())
    }

    /// Returns the name and shape of every weight; lazy, so that a forged number of layers costs nothing.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> + use<> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let embeddings = [
            ("word_embeddings", self.vocab_size),
            ("position_embeddings", self.max_position_embeddings),
            ("token_type_embeddings", self.type_vocab_size),
        ]
        .map(|(table, rows)| (format!("embeddings.{table}.weight"), vec![rows, hidden]));
        let norm = move |module: &str| {
            ["weight", "bias"].map(|part| (format!("{module}.LayerNorm.{part}"), vec![hidden]))
        };
        let layers = (0..self.num_layers).flat_map(move |layer| {
            let prefix = format!("encoder.layer.{layer}");
            let projections = [
                ("attention.self.query", hidden, hidden),
                ("attention.self.key", hidden, hidden),
                ("attention.self.value", hidden, hidden),
                ("attention.output.dense", hidden, hidden),
                ("intermediate.dense", inner, hidden),
                ("output.dense", hidden, inner),
            ];
            let mut tensors = Vec::new();
            for (module, outputs, inputs) in projections {
                tensors.push((format!("{prefix}.{module}.weight"), vec![outputs, inputs]));
                tensors.push((format!("{prefix}.{module}.bias"), vec![outputs]));
            }
            for module in ["attention.output", "output"] {
                tensors.extend(norm(&format!("{prefix}.{module}")));
            }
            tensors
        });
        embeddings
            .into_iter()
            .chain(norm("embeddings"))
            .chain(layers)
    }
}

/// An encoder.
#[derive(Debug, Clone)]
pub struct Bert {
    config: BertConfig,
    parameters: Parameters,
}

impl Bert {
    /// Builds an encoder; `trainable` says which weights become variables.
    ///
    /// Frozen weights build no graph. Weights that are not the encoder's are left alone.
    pub fn new(
        config: &BertConfig,
        weights: &Weights,
        trainable: impl Fn(&str) -> bool,
    ) -> Result<Self, BertError> {
        config.check()?;
        let mut own = Weights::new();
        for (name, shape) in config.tensors() {
            let weight = weights.get(&name);
            let weight = weight.ok_or_else(|| ParameterError::Missing { name: name.clone() })?;
            if weight.dims() != shape {
                return Err(BertError::Parameter(ParameterError::Shape {
                    name,
                    found: weight.dims().to_vec(),
                    expected: shape,
                }));
            }
            own.insert(name, weight.clone());
        }
        Ok(Self {
            config: config.clone(),
            parameters: Parameters::new(&own, trainable)?,
        })
    }

    /// Returns the shape of the encoder.
    pub fn config(&self) -> &BertConfig {
        &self.config
    }

    /// Returns the weights, frozen and trainable.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// Returns the trainable variables in name order.
    pub fn trainable(&self) -> Vec<(String, Var)> {
        self.parameters.trainable()
    }

    fn weight(&self, name: &str, shape: &[usize]) -> Result<&Tensor, BertError> {
        Ok(self.parameters.get(name, shape)?)
    }

    /// Returns the last hidden states, (tokens, hidden size).
    pub fn forward(&self, batch: &PackedTokens) -> Result<Tensor, BertError> {
        let config = &self.config;
        batch.check(config)?;
        let attention = SpanAttention {
            heads: config.num_heads,
            head_size: config.hidden_size / config.num_heads,
            spans: batch.spans().into(),
        };
        let mut hidden = self.embed_tokens(batch)?;
        for layer in 0..config.num_layers {
            hidden = self.block(&hidden, &format!("encoder.layer.{layer}"), &attention)?;
        }
        Ok(hidden)
    }

    fn embed_tokens(&self, batch: &PackedTokens) -> Result<Tensor, BertError> {
        let config = &self.config;
        let hidden = config.hidden_size;
        let table = |name: &str, rows: usize| {
            self.weight(&format!("embeddings.{name}.weight"), &[rows, hidden])
        };
        let words = table("word_embeddings", config.vocab_size)?;
        let positions = table("position_embeddings", config.max_position_embeddings)?;
        let types = table("token_type_embeddings", config.type_vocab_size)?;
        let device = words.device();
        let sum = words
            .index_select(&batch.ids(device)?, 0)?
            .add(&positions.index_select(&batch.positions(config.first_position, device)?, 0)?)?;
        // Every token is of type 0.
        let sum = add_bias(&sum, &types.get(0)?)?;
        self.norm(&sum, "embeddings")
    }

    /// One transformer block, each half `norm(x + f(x))`.
    fn block(
        &self,
        x: &Tensor,
        prefix: &str,
        attention: &SpanAttention,
    ) -> Result<Tensor, BertError> {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let project = |x: &Tensor, module: &str, outputs: usize, inputs: usize| {
            self.linear(x, &format!("{prefix}.{module}"), outputs, inputs)
        };
        let queries = project(x, "attention.self.query", hidden, hidden)?;
        let keys = project(x, "attention.self.key", hidden, hidden)?;
        let values = project(x, "attention.self.value", hidden, hidden)?;
        let attended = attention.apply(&queries, &keys, &values)?;
        let attended = project(&attended, "attention.output.dense", hidden, hidden)?;
        let x = self.norm(&x.add(&attended)?, &format!("{prefix}.attention.output"))?;
        let inside = gelu(&project(&x, "intermediate.dense", inner, hidden)?)?;
        let outside = project(&inside, "output.dense", hidden, inner)?;
        self.norm(&x.add(&outside)?, &format!("{prefix}.output"))
    }

    fn linear(
        &self,
        x: &Tensor,
        module: &str,
        outputs: usize,
        inputs: usize,
    ) -> Result<Tensor, BertError> {
        let weight = self.weight(&format!("{module}.weight"), &[outputs, inputs])?;
        let bias = self.weight(&format!("{module}.bias"), &[outputs])?;
        Ok(add_bias(&linear(x, weight)?, bias)?)
    }

    fn norm(&self, x: &Tensor, module: &str) -> Result<Tensor, BertError> {
        let shape = [self.config.hidden_size];
        let weight = self.weight(&format!("{module}.LayerNorm.weight"), &shape)?;
        let bias = self.weight(&format!("{module}.LayerNorm.bias"), &shape)?;
        Ok(layer_norm(x, weight, bias, self.config.layer_norm_eps)?)
    }
}
