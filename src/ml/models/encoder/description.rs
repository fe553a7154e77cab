//! What an encoder is made of: sizes, and a name and a shape for every tensor.
//!
//! Building, loading and saving all go by this one description; a [`Family`] says what its parts are called.

use serde_json::Value;

use super::EncoderError;
use super::activation::Activation;
use crate::ml::formats::FormatError;
use crate::ml::models::keys::Keys;

/// A part of an encoder that has tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Embeddings of token ids.
    Words,
    /// Embeddings of positions.
    Positions,
    /// Embeddings of token types.
    TokenTypes,
    /// The normalisation of the sum of embeddings.
    EmbeddingNorm,
    /// Biases of attention by distance, (buckets, heads), the same in all blocks.
    Distances,
    /// In each block: the projection to queries.
    Query,
    /// The projection to keys.
    Key,
    /// The projection to values.
    Value,
    /// The projection of what attention found.
    Attended,
    /// The normalisation after attention.
    AttentionNorm,
    /// The first layer of the feed-forward network.
    Inner,
    /// Its second layer.
    Outer,
    /// The normalisation after it.
    OutputNorm,
}

impl Part {
    /// Parts outside of the blocks.
    const COMMON: [Self; 5] = [
        Self::Words,
        Self::Positions,
        Self::TokenTypes,
        Self::EmbeddingNorm,
        Self::Distances,
    ];
    /// Parts of each block.
    const OF_A_BLOCK: [Self; 8] = [
        Self::Query,
        Self::Key,
        Self::Value,
        Self::Attended,
        Self::AttentionNorm,
        Self::Inner,
        Self::Outer,
        Self::OutputNorm,
    ];
}

/// Which row of the table of positions a token has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// That of its place in the row, from 0 on.
    FromZero,
    /// Those after the row of this padding id: the id itself is at its own row wherever it occurs, and the others are
    /// counted past it.
    AfterPadding(u32),
}

/// The tensors of a part.
pub(super) struct Module {
    /// What stands before `.weight` and `.bias`.
    pub(super) name: String,
    /// Shape of `.weight`.
    pub(super) weight: Vec<usize>,
    /// Length of `.bias`, where there is one.
    pub(super) bias: Option<usize>,
}

/// Shape and constants of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    /// Whose names its tensors have.
    pub family: &'static Family,
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
    /// Which of these rows a token has.
    pub positions: Positions,
    /// Rows of the table of token types, where there is one; all tokens are of type 0.
    pub token_types: Option<usize>,
    /// The id that fills up rows elsewhere: its embedding is not trained.
    pub padding_id: Option<u32>,
    /// Whether attention is biased by the distance between tokens.
    pub distances: bool,
    /// What is between the layers of the feed-forward network.
    pub activation: Activation,
    /// Added to the variance before its root is taken.
    pub layer_norm_eps: f64,
}

impl EncoderConfig {
    /// Buckets of distances between tokens.
    pub const BUCKETS: usize = 32;

    /// Returns the bucket of the distance of a key from a query (Raffel et al. 2020, arXiv 1910.10683, section 2.1).
    ///
    /// Half of the buckets are for keys that come later. Distances below 8 have one each, longer ones share them by
    /// their logarithm, from 91 on all the last.
    pub(super) fn bucket(distance: isize) -> u32 {
        /// The shortest distances of the buckets from 8 on.
        const FIRST: [usize; 8] = [8, 12, 16, 23, 32, 46, 64, 91];
        let later = if distance > 0 { 16 } else { 0 };
        let far = distance.unsigned_abs();
        let place = if far < 8 {
            far
        } else {
            7 + FIRST.iter().filter(|first| **first <= far).count()
        };
        later + place as u32
    }

    /// Returns the greatest number of tokens in a row.
    pub fn max_tokens(&self) -> usize {
        let unused = match self.positions {
            Positions::FromZero => 0,
            Positions::AfterPadding(id) => id as usize + 1,
        };
        self.max_position_embeddings.saturating_sub(unused)
    }

    /// Checks that sizes are positive and fit together.
    pub fn check(&self) -> Result<(), EncoderError> {
        // The upper bound keeps every product of two sizes within 64 bits.
        for (what, size) in [
            ("vocabulary", self.vocab_size),
            ("hidden size", self.hidden_size),
            ("feed-forward size", self.intermediate_size),
            ("number of blocks", self.num_layers),
            ("number of heads", self.num_heads),
            ("table of positions", self.max_position_embeddings),
            ("greatest number of tokens", self.max_tokens()),
            ("table of token types", self.token_types.unwrap_or(1)),
        ] {
            if size == 0 || size > i32::MAX as usize {
                let most = i32::MAX;
                return Err(EncoderError::Config(format!(
                    "its {what} is {size}, expected 1 to {most}"
                )));
            }
        }
        if !self.hidden_size.is_multiple_of(self.num_heads) {
            return Err(EncoderError::Config(format!(
                "hidden size {} does not split into {} heads",
                self.hidden_size, self.num_heads
            )));
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps >= 0.0) {
            return Err(EncoderError::Config(format!(
                "layer norm epsilon is {}, expected a number not below 0",
                self.layer_norm_eps
            )));
        }
        Ok(())
    }

    /// Returns the tensors of a part, of the block `layer` if it is one of a block, or nothing if there are none.
    pub(super) fn module(&self, part: Part, layer: usize) -> Option<Module> {
        let (hidden, inner) = (self.hidden_size, self.intermediate_size);
        let name = (self.family.name)(part);
        let name = if Part::OF_A_BLOCK.contains(&part) {
            format!("{}.{layer}.{name}", self.family.blocks)
        } else {
            name.to_owned()
        };
        let table = |rows: usize, width: usize| (vec![rows, width], None);
        let linear = |outputs: usize, inputs: usize| (vec![outputs, inputs], Some(outputs));
        let (weight, bias) = match part {
            Part::Words => table(self.vocab_size, hidden),
            Part::Positions => table(self.max_position_embeddings, hidden),
            Part::TokenTypes => table(self.token_types?, hidden),
            Part::Distances if self.distances => table(Self::BUCKETS, self.num_heads),
            Part::Distances => return None,
            Part::Query | Part::Key | Part::Value | Part::Attended => linear(hidden, hidden),
            Part::Inner => linear(inner, hidden),
            Part::Outer => linear(hidden, inner),
            Part::EmbeddingNorm | Part::AttentionNorm | Part::OutputNorm => {
                (vec![hidden], Some(hidden))
            }
        };
        Some(Module { name, weight, bias })
    }

    /// Returns the name and shape of every weight; lazy, so that a forged number of layers costs nothing.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> + use<> {
        let config = self.clone();
        let common = Part::COMMON.into_iter().map(|part| (part, 0));
        let blocks = (0..self.num_layers)
            .flat_map(|layer| Part::OF_A_BLOCK.into_iter().map(move |part| (part, layer)));
        let modules = common.chain(blocks);
        let modules = modules.filter_map(move |(part, layer)| config.module(part, layer));
        modules.flat_map(|Module { name, weight, bias }| {
            let bias = bias.map(|length| (format!("{name}.bias"), vec![length]));
            std::iter::once((format!("{name}.weight"), weight)).chain(bias)
        })
    }
}

/// The names of a family.
pub struct Family {
    /// What `model_type` says.
    pub(crate) model_type: &'static str,
    /// The class of `transformers` without a head.
    pub(crate) class: &'static str,
    /// What stands before names of tensors in files with a head.
    pub(crate) prefix: &'static str,
    /// What stands before the number of a block.
    pub(crate) blocks: &'static str,
    /// The name of a part, within its block if it is one of a block.
    pub(crate) name: fn(Part) -> &'static str,
    /// Keys of sizes.
    pub(crate) keys: SizeKeys,
    /// Its classification head.
    pub(crate) head: HeadNames,
    /// What names of tensors begin with that are no part of the encoder, such as those of heads.
    pub(crate) beside: &'static [&'static str],
    /// Reads a configuration; a key that neither it nor [`Keys::common`] asks for is an error.
    pub(crate) read: fn(&'static Family, &Keys<'_>) -> Result<EncoderConfig, FormatError>,
    /// Returns the keys of a configuration beside the sizes.
    pub(crate) write: fn(&EncoderConfig) -> Value,
}

/// Keys of what all families have; the second of a pair is as good as the first.
pub(crate) struct SizeKeys {
    pub(crate) hidden_size: [&'static str; 2],
    pub(crate) intermediate_size: &'static str,
    pub(crate) num_layers: [&'static str; 2],
    pub(crate) num_heads: [&'static str; 2],
    pub(crate) activation: &'static str,
}

/// The classification head of a family, on the last hidden state of the first token.
pub(crate) struct HeadNames {
    /// The dense layer.
    pub(crate) dense: &'static str,
    /// What follows it.
    pub(crate) activation: Activation,
    /// The layer of the logits.
    pub(crate) out: &'static str,
    /// The names of the two in files of `transformers`, where they are others.
    pub(crate) stored: Option<[&'static str; 2]>,
}

impl std::fmt::Debug for Family {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.model_type)
    }
}

impl PartialEq for Family {
    fn eq(&self, other: &Self) -> bool {
        self.model_type == other.model_type
    }
}
