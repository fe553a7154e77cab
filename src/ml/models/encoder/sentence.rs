//! From the hidden states of a text to its embedding, as sentence-transformers has it.

use candle_core::{Device, Tensor};

use super::{Activation, Encoder, EncoderError, PackedTokens};
use crate::ml::kernels::linear::linear;
use crate::ml::kernels::sums::{add_bias, column_means, row_sums, spread};
use crate::ml::tokenizer::Tokenizer;

/// What of a text's last hidden states is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SentencePooling {
    /// That of the first token.
    FirstToken,
    /// The greatest value of each dimension.
    Max,
    /// Their mean.
    #[default]
    Mean,
    /// Their sum over the root of their number.
    MeanSqrtLength,
    /// Their mean with weights 1, 2, 3 ... in their order.
    WeightedMean,
    /// That of the last token.
    LastToken,
}

impl SentencePooling {
    /// All of them by the names that sentence-transformers has, in the order in which it concatenates old flags.
    pub(crate) const NAMES: [(&'static str, Self); 6] = [
        ("cls", Self::FirstToken),
        ("max", Self::Max),
        ("mean", Self::Mean),
        ("mean_sqrt_len_tokens", Self::MeanSqrtLength),
        ("weightedmean", Self::WeightedMean),
        ("lasttoken", Self::LastToken),
    ];

    /// Finds the one of a name.
    pub(crate) fn by_name(name: &str) -> Option<Self> {
        let found = Self::NAMES.iter().find(|(own, _)| *own == name);
        found.map(|(_, pooling)| *pooling)
    }

    /// Returns its name.
    pub(crate) fn name(self) -> &'static str {
        let found = Self::NAMES.iter().find(|(_, pooling)| *pooling == self);
        found.map_or("mean", |(name, _)| name)
    }

    /// Makes one vector (width) of the hidden states of a row (tokens, width), without the first `skipped` tokens.
    fn apply(self, row: &Tensor, skipped: usize) -> candle_core::Result<Tensor> {
        let tokens = row.dim(0)? - skipped;
        let states = row.narrow(0, skipped, tokens)?;
        match self {
            Self::FirstToken => states.get(0),
            Self::Max => states.max(0),
            Self::Mean => column_means(&states),
            Self::MeanSqrtLength => column_means(&states)?.affine((tokens as f64).sqrt(), 0.0),
            Self::WeightedMean => {
                // Tokens that are skipped count as places.
                let places = skipped + 1..=skipped + tokens;
                let mean = places.clone().sum::<usize>() as f64 / tokens as f64;
                let weights: Vec<f32> = places.map(|place| (place as f64 / mean) as f32).collect();
                let weights = Tensor::from_vec(weights, (tokens, 1), &Device::Cpu)?;
                let weights = spread(&weights.to_device(states.device())?, states.shape().clone())?;
                column_means(&states.mul(&weights)?)
            }
            Self::LastToken => states.get(tokens - 1),
        }
    }
}

/// A layer on pooled vectors.
#[derive(Debug, Clone)]
pub struct Dense {
    /// (outputs, inputs)
    pub weight: Tensor,
    /// (outputs)
    pub bias: Option<Tensor>,
    /// What follows.
    pub activation: Activation,
}

/// What happens to a pooled vector.
#[derive(Debug, Clone)]
pub enum SentenceStep {
    /// It goes through a layer.
    Dense(Dense),
    /// It is brought to unit length.
    Normalize,
}

impl SentenceStep {
    /// Applies the step to each row: (rows, inputs) to (rows, outputs).
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Dense(Dense {
                weight,
                bias,
                activation,
            }) => {
                let x = linear(x, weight)?;
                let x = match bias {
                    Some(bias) => add_bias(&x, bias)?,
                    None => x,
                };
                activation.apply(&x)
            }
            Self::Normalize => {
                let lengths = row_sums(&x.sqr()?)?.sqrt()?;
                // As in torch.nn.functional.normalize, so that a zero row stays zero.
                let lengths = lengths.clamp(1e-12, f64::INFINITY)?.unsqueeze(1)?;
                x.div(&spread(&lengths, x.shape().clone())?)
            }
        }
    }
}

/// A text that is put before every text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// What it is called.
    pub name: String,
    /// The text itself, with the space that is to follow it.
    pub text: String,
}

/// How a text becomes one vector.
#[derive(Debug, Clone)]
pub struct SentenceEmbedding {
    /// What comes before every text.
    pub prompt: Option<Prompt>,
    /// What of the last hidden states is taken; of several, one after the other.
    pub pooling: Vec<SentencePooling>,
    /// Whether the tokens of the prompt are among those that are pooled.
    pub pools_prompt: bool,
    /// What then happens to the vector.
    pub steps: Vec<SentenceStep>,
    /// Only so many of its first numbers are kept; they are not brought to unit length again.
    pub truncate_dim: Option<usize>,
}

impl Default for SentenceEmbedding {
    fn default() -> Self {
        Self {
            prompt: None,
            pooling: vec![SentencePooling::Mean],
            pools_prompt: true,
            steps: vec![SentenceStep::Normalize],
            truncate_dim: None,
        }
    }
}

impl SentenceEmbedding {
    /// Returns how many numbers an embedding has, given the width of the hidden states.
    pub fn dimension(&self, hidden_size: usize) -> Result<usize, EncoderError> {
        let mut width = hidden_size * self.pooling.len();
        for step in &self.steps {
            if let SentenceStep::Dense(dense) = step {
                let (outputs, inputs) = dense.weight.dims2()?;
                if inputs != width {
                    return Err(EncoderError::Config(format!(
                        "a dense layer takes vectors of {inputs} numbers, those before it have {width}"
                    )));
                }
                width = outputs;
            }
        }
        Ok(self.truncate_dim.map_or(width, |most| most.min(width)))
    }
}

impl Encoder {
    /// Returns one vector of each row's last hidden states, (rows, poolings x hidden size), without those of each row's
    /// first `skipped` tokens.
    pub fn pooled(
        &self,
        batch: &PackedTokens,
        pooling: &[SentencePooling],
        skipped: usize,
    ) -> Result<Tensor, EncoderError> {
        if let Some(row) = batch.spans().iter().position(|span| span.len() <= skipped) {
            return Err(EncoderError::NothingToPool { row, skipped });
        }
        let hidden = self.forward(batch)?;
        let rows = batch.spans().iter().map(|span| {
            let row = hidden.narrow(0, span.start, span.len())?;
            let parts = pooling.iter().map(|pooling| pooling.apply(&row, skipped));
            let parts = parts.collect::<candle_core::Result<Vec<_>>>()?;
            match parts.as_slice() {
                [only] => Ok(only.clone()),
                parts => Tensor::cat(parts, 0),
            }
        });
        let rows = rows.collect::<candle_core::Result<Vec<_>>>()?;
        Ok(Tensor::stack(&rows, 0)?)
    }

    /// Returns sentence embeddings, (rows, dimension); the first `skipped` tokens of each row are not pooled.
    pub fn embed(
        &self,
        batch: &PackedTokens,
        sentence: &SentenceEmbedding,
        skipped: usize,
    ) -> Result<Tensor, EncoderError> {
        let mut embeddings = self.pooled(batch, &sentence.pooling, skipped)?;
        for step in &sentence.steps {
            embeddings = step.apply(&embeddings)?;
        }
        match sentence.truncate_dim {
            Some(most) if most < embeddings.dim(1)? => Ok(embeddings.narrow(1, 0, most)?),
            _ => Ok(embeddings),
        }
    }

    /// Embeds texts, cut to the tokenizer's and the encoder's length, `batch_tokens` tokens at a time.
    ///
    /// The batch size changes speed and memory only.
    pub fn embed_texts<T: AsRef<str>>(
        &self,
        tokenizer: &Tokenizer,
        sentence: &SentenceEmbedding,
        texts: &[T],
        batch_tokens: usize,
    ) -> Result<Vec<Vec<f32>>, EncoderError> {
        let prompt = sentence
            .prompt
            .as_ref()
            .filter(|prompt| !prompt.text.is_empty());
        let (rows, skipped) = match prompt {
            Some(Prompt { text: prompt, .. }) => {
                let texts: Vec<String> = texts
                    .iter()
                    .map(|text| format!("{prompt}{}", text.as_ref()))
                    .collect();
                let skipped = if sentence.pools_prompt {
                    0
                } else {
                    self.tokens_of_prompt(tokenizer, prompt)?
                };
                (self.encode_texts(tokenizer, &texts)?, skipped)
            }
            None => (self.encode_texts(tokenizer, texts)?, 0),
        };
        let mut embeddings = Vec::with_capacity(rows.len());
        for batch in PackedTokens::batches(&rows, batch_tokens) {
            let vectors = self.embed(&batch, sentence, skipped)?;
            embeddings.extend(vectors.to_vec2::<f32>()?);
        }
        Ok(embeddings)
    }

    /// Counts the tokens of a prompt: with what the tokenizer puts before it, without what it puts behind.
    fn tokens_of_prompt(&self, tokenizer: &Tokenizer, prompt: &str) -> Result<usize, EncoderError> {
        let row = self.encode_texts(tokenizer, &[prompt])?.concat();
        // One special token at its end is left out, as there.
        let ends_special = match row.last() {
            Some(last) => {
                tokenizer.decode(&[*last])?.is_empty()
                    && !tokenizer.decode_with_special_tokens(&[*last])?.is_empty()
            }
            None => false,
        };
        Ok(row.len() - usize::from(ends_special))
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
