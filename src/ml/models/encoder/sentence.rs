//! From the hidden states of a text to its embedding.

use candle_core::Tensor;

use super::{Encoder, EncoderError, PackedTokens};
use crate::ml::kernels::sums::{column_means, row_sums, spread};
use crate::ml::tokenizer::Tokenizer;

/// What of a text's last hidden states is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SentencePooling {
    /// Their mean.
    #[default]
    Mean,
    /// That of the first token.
    FirstToken,
    /// The greatest value of each dimension.
    Max,
}

/// How a text becomes one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentenceEmbedding {
    /// What of the last hidden states is taken.
    pub pooling: SentencePooling,
    /// Whether the vector is brought to unit length.
    pub unit_length: bool,
}

impl Default for SentenceEmbedding {
    fn default() -> Self {
        Self {
            pooling: SentencePooling::Mean,
            unit_length: true,
        }
    }
}

impl Encoder {
    /// Returns one vector of each row's last hidden states, (rows, hidden size).
    pub fn pooled(
        &self,
        batch: &PackedTokens,
        pooling: SentencePooling,
    ) -> Result<Tensor, EncoderError> {
        let hidden = self.forward(batch)?;
        let pooled = batch
            .spans()
            .iter()
            .map(|span| match pooling {
                SentencePooling::Mean => column_means(&hidden.narrow(0, span.start, span.len())?),
                SentencePooling::FirstToken => hidden.narrow(0, span.start, 1)?.squeeze(0),
                SentencePooling::Max => hidden.narrow(0, span.start, span.len())?.max(0),
            })
            .collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Tensor::stack(&pooled, 0)?)
    }

    /// Returns sentence embeddings, (rows, hidden size).
    pub fn embed(
        &self,
        batch: &PackedTokens,
        sentence: SentenceEmbedding,
    ) -> Result<Tensor, EncoderError> {
        let pooled = self.pooled(batch, sentence.pooling)?;
        if !sentence.unit_length {
            return Ok(pooled);
        }
        let lengths = row_sums(&pooled.sqr()?)?.sqrt()?;
        // As in torch.nn.functional.normalize, so that a zero row stays zero.
        let lengths = lengths.clamp(1e-12, f64::INFINITY)?.unsqueeze(1)?;
        Ok(pooled.div(&spread(&lengths, pooled.shape().clone())?)?)
    }

    /// Embeds texts, cut to the tokenizer's and the encoder's length, `batch_tokens` tokens at a time.
    ///
    /// The batch size changes speed and memory only.
    pub fn embed_texts<T: AsRef<str>>(
        &self,
        tokenizer: &Tokenizer,
        sentence: SentenceEmbedding,
        texts: &[T],
        batch_tokens: usize,
    ) -> Result<Vec<Vec<f32>>, EncoderError> {
        let rows = self.encode_texts(tokenizer, texts)?;
        let mut embeddings = Vec::with_capacity(rows.len());
        for batch in PackedTokens::batches(&rows, batch_tokens) {
            embeddings.extend(self.embed(&batch, sentence)?.to_vec2::<f32>()?);
        }
        Ok(embeddings)
    }

    /// Encodes texts with the tokenizer's special tokens, cut to what the encoder and its folder say they take.
    pub fn encode_texts<T: AsRef<str>>(
        &self,
        tokenizer: &Tokenizer,
        texts: &[T],
    ) -> Result<Vec<Vec<u32>>, EncoderError> {
        let most = self.config().max_tokens();
        let most = tokenizer
            .max_length()
            .map_or(most, |length| length.min(most));
        let tokenizer = tokenizer.clone().truncated_to(most)?;
        let rows = texts
            .iter()
            .map(|text| tokenizer.encode_with_special_tokens(text.as_ref()));
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
