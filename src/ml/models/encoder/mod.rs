//! Text encoders with BERT's blocks (Devlin et al. 2019, arXiv 1810.04805): sentence embeddings and classifiers,
//! trainable as a whole.
//!
//! Blocks are normalised after their residual sums; positions are learned. Texts of a batch are packed one after the
//! other rather than padded, so that an embedding is the same to the last bit whatever it is batched with. There is no
//! dropout.
//!
//! Families are BERT, RoBERTa, XLM-RoBERTa, MPNet and DistilBERT, with their classification heads. Folders of
//! sentence-transformers are read in full: all six poolings and lists of them, Dense, Normalize or none, `max_seq_length`,
//! `do_lower_case`, `truncate_dim` and prompts; whatever else such a folder asks for is refused by name.
//!
//! [`EncoderConfig`] describes an encoder, [`Family`] says what its tensors and the keys of its `config.json` are
//! called. Weights have the names of the class of `transformers` without a head, without prefix:
//! `encoder.layer.0.attention.self.query.weight`.

pub(crate) mod activation;
mod classifier;
mod description;
pub(crate) mod families;
mod packed;
#[cfg(test)]
pub(super) mod parity_tests;
mod sentence;
#[cfg(test)]
mod sentence_tests;
#[cfg(test)]
mod tests;

use candle_core::{Device, Tensor, Var};

pub use activation::Activation;
pub use classifier::{ClassifierHead, EncoderClassifier, Pooling};
pub use description::{EncoderConfig, Family, Part, Positions};
pub use packed::PackedTokens;
pub use sentence::{Dense, Prompt, SentenceEmbedding, SentencePooling, SentenceStep};

use crate::ml::kernels::layer_norm::layer_norm;
use crate::ml::kernels::linear::linear;
use crate::ml::kernels::span_attention::{DistanceBuckets, SpanAttention};
use crate::ml::kernels::sums::add_bias;
use crate::ml::parameters::{ParameterError, Parameters, Weights};
use crate::ml::tokenizer::TokenizerError;

/// An encoder could not be built or applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EncoderError {
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

    /// A row has no token after its prompt.
    #[error("row {row} has no token after the {skipped} of the prompt, which are not pooled")]
    NothingToPool {
        /// Index of the row.
        row: usize,
        /// Tokens of the prompt.
        skipped: usize,
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

/// An encoder.
#[derive(Debug, Clone)]
pub struct Encoder {
    config: EncoderConfig,
    parameters: Parameters,
}

/// What all blocks of a forward pass have in common.
struct Attending<'a> {
    attention: SpanAttention,
    /// Table of biases by distance, and which number of it is whose.
    biases: Option<(&'a Tensor, DistanceBuckets)>,
}

impl Encoder {
    /// Builds an encoder; `trainable` says which weights become variables.
    ///
    /// Frozen weights build no graph. Weights that are not the encoder's are left alone.
    pub fn new(
        config: &EncoderConfig,
        weights: &Weights,
        trainable: impl Fn(&str) -> bool,
    ) -> Result<Self, EncoderError> {
        config.check()?;
        let mut own = Weights::new();
        for (name, shape) in config.tensors() {
            let weight = weights.get(&name);
            let weight = weight.ok_or_else(|| ParameterError::Missing { name: name.clone() })?;
            if weight.dims() != shape {
                return Err(EncoderError::Parameter(ParameterError::Shape {
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
    pub fn config(&self) -> &EncoderConfig {
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

    /// Returns the last hidden states, (tokens, hidden size).
    pub fn forward(&self, batch: &PackedTokens) -> Result<Tensor, EncoderError> {
        let config = &self.config;
        batch.check(config)?;
        let longest = batch.spans().iter().map(ExactSizeIterator::len).max();
        let biases = match self.weight(Part::Distances, 0)? {
            Some(table) => {
                let buckets = DistanceBuckets::new(longest.unwrap_or(1), EncoderConfig::bucket);
                Some((table, buckets))
            }
            None => None,
        };
        let attending = Attending {
            attention: SpanAttention {
                heads: config.num_heads,
                head_size: config.hidden_size / config.num_heads,
                spans: batch.spans().into(),
            },
            biases,
        };
        let mut hidden = self.embed_tokens(batch)?;
        for layer in 0..config.num_layers {
            hidden = self.block(&hidden, layer, &attending)?;
        }
        Ok(hidden)
    }

    /// Returns the normalised sums of embeddings, (tokens, hidden size).
    pub(super) fn embed_tokens(&self, batch: &PackedTokens) -> Result<Tensor, EncoderError> {
        let config = &self.config;
        let words = self.need(Part::Words, 0)?;
        let positions = self.need(Part::Positions, 0)?;
        let device = words.device();
        let padding = batch.padding(config);
        let words = words.index_select(&batch.ids(device)?, 0)?;
        let words = untrained(&words, &padding)?;
        let mut places = positions.index_select(&batch.positions(config.positions, device)?, 0)?;
        if config.positions != Positions::FromZero {
            places = untrained(&places, &padding)?;
        }
        let mut sum = words.add(&places)?;
        if let Some(types) = self.weight(Part::TokenTypes, 0)? {
            // Every token is of type 0.
            sum = add_bias(&sum, &types.get(0)?)?;
        }
        self.norm(&sum, Part::EmbeddingNorm, 0)
    }

    /// One transformer block, each half `norm(x + f(x))`.
    fn block(
        &self,
        x: &Tensor,
        layer: usize,
        attending: &Attending<'_>,
    ) -> Result<Tensor, EncoderError> {
        let queries = self.linear(x, Part::Query, layer)?;
        let keys = self.linear(x, Part::Key, layer)?;
        let values = self.linear(x, Part::Value, layer)?;
        let attention = &attending.attention;
        let attended = match &attending.biases {
            Some((table, buckets)) => {
                attention.apply_biased(&queries, &keys, &values, table, buckets)?
            }
            None => attention.apply(&queries, &keys, &values)?,
        };
        let attended = self.linear(&attended, Part::Attended, layer)?;
        let x = self.norm(&x.add(&attended)?, Part::AttentionNorm, layer)?;
        let inside = self.linear(&x, Part::Inner, layer)?;
        let inside = self.config.activation.apply(&inside)?;
        let outside = self.linear(&inside, Part::Outer, layer)?;
        self.norm(&x.add(&outside)?, Part::OutputNorm, layer)
    }

    /// Returns the weight of a part, if encoders of this kind have it.
    fn weight(&self, part: Part, layer: usize) -> Result<Option<&Tensor>, EncoderError> {
        let Some(module) = self.config.module(part, layer) else {
            return Ok(None);
        };
        let name = format!("{}.weight", module.name);
        Ok(Some(self.parameters.get(&name, &module.weight)?))
    }

    fn need(&self, part: Part, layer: usize) -> Result<&Tensor, EncoderError> {
        let weight = self.weight(part, layer)?;
        weight.ok_or_else(|| EncoderError::Config(format!("it has no {part:?}")))
    }

    /// Returns the weight and the bias of a part.
    fn pair(&self, part: Part, layer: usize) -> Result<[&Tensor; 2], EncoderError> {
        let weight = self.need(part, layer)?;
        // Biases are as long as there are outputs.
        let module = self.config.module(part, layer);
        let name = module.map(|module| format!("{}.bias", module.name));
        let name = name.unwrap_or_default();
        Ok([weight, self.parameters.get(&name, &weight.dims()[..1])?])
    }

    fn linear(&self, x: &Tensor, part: Part, layer: usize) -> Result<Tensor, EncoderError> {
        let [weight, bias] = self.pair(part, layer)?;
        Ok(add_bias(&linear(x, weight)?, bias)?)
    }

    fn norm(&self, x: &Tensor, part: Part, layer: usize) -> Result<Tensor, EncoderError> {
        let [weight, bias] = self.pair(part, layer)?;
        Ok(layer_norm(x, weight, bias, self.config.layer_norm_eps)?)
    }
}

/// Returns the rows of `x` (tokens, width), those of padding without a graph.
fn untrained(x: &Tensor, padding: &[bool]) -> candle_core::Result<Tensor> {
    if !x.track_op() || !padding.contains(&true) {
        return Ok(x.clone());
    }
    let width = x.dim(1)?;
    let marks = padding.iter().flat_map(|is| vec![u8::from(*is); width]);
    let marks = Tensor::from_vec(marks.collect::<Vec<u8>>(), x.shape(), &Device::Cpu)?;
    marks.to_device(x.device())?.where_cond(&x.detach(), x)
}
