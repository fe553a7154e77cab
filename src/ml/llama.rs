//! The LLaMA architecture (Touvron et al. 2023): pre-norm blocks of causal attention and SwiGLU.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::adapter::{Adapter, AdapterError};
use super::config::LlamaConfig;
use super::kernels::attention::Attention;
use super::kernels::linear::linear;
use super::kernels::rms_norm::rms_norm;
use super::kernels::rope::Rope;
use super::kernels::swiglu::swiglu;
use super::kernels::token_log_probs::{TokenLogProbs, token_log_probs};
use super::parameters::{ParameterError, Parameters, Weights};

mod batch;
mod init;
mod projection;
#[cfg(test)]
mod tests;

pub use batch::TokenBatch;
use init::{EMBEDDING, NORM};
pub use init::{HEAD, init};
pub use projection::DropoutKey;
use projection::{Projection, Update};

/// Why a model could not be built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LlamaError {
    /// The configuration describes no model.
    #[error("model configuration: {reason}")]
    Config {
        /// Which value, and what is allowed.
        reason: String,
    },
    /// Tokens that the model cannot take.
    #[error("token batch: {reason}")]
    Tokens {
        /// What is wrong with them.
        reason: String,
    },
    /// The weights do not fit the configuration.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// The adapter does not fit the model.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

type Result<T> = std::result::Result<T, LlamaError>;

/// What of a model is trained.
#[derive(Debug, Clone, Copy)]
pub enum Training<'a> {
    /// Nothing: forward passes build no graph.
    Frozen,
    /// Every weight.
    Full,
    /// The factors of an adapter; the weights are frozen and shared with their source.
    Adapter(&'a Adapter),
}

/// A LLaMA model. Clones share weights.
#[derive(Debug, Clone)]
pub struct Llama {
    config: LlamaConfig,
    embedding: Tensor,
    blocks: Vec<Block>,
    norm: Tensor,
    head: Tensor,
    rope: Arc<Rope>,
    trainable: Vec<(String, Var)>,
}

#[derive(Debug, Clone)]
struct Block {
    attention_norm: Tensor,
    query: Projection,
    key: Projection,
    value: Projection,
    output: Projection,
    feed_forward_norm: Tensor,
    gate: Projection,
    up: Projection,
    down: Projection,
}

impl Llama {
    /// Builds a model of weights named as in Hugging Face checkpoints.
    ///
    /// Frozen weights are shared with `weights`, trained ones are copied. Further names in `weights` (heads,
    /// an output head beside tied embeddings) are not read.
    pub fn new(config: &LlamaConfig, weights: &Weights, training: Training<'_>) -> Result<Self> {
        config.check()?;
        let shapes = config.shapes();
        let own: Weights = weights
            .iter()
            .filter(|(name, _)| shapes.contains_key(*name))
            .map(|(name, tensor)| (name.clone(), tensor.clone()))
            .collect();
        let full = matches!(training, Training::Full);
        let parameters = Parameters::new(&own, |_| full)?;
        let adapter = match training {
            Training::Adapter(adapter) => Some(adapter),
            Training::Full | Training::Frozen => None,
        };
        let get = |name: &str| -> Result<Tensor> {
            let shape = shapes.get(name).map(Vec::as_slice).unwrap_or_default();
            Ok(parameters.get(name, shape)?.clone())
        };
        let blocks = (0..config.num_layers)
            .map(|layer| {
                let prefix = format!("model.layers.{layer}");
                let norm = |part: &str| get(&format!("{prefix}.{part}.weight"));
                let projection = |part: &str| -> Result<Projection> {
                    let module = format!("{prefix}.{part}");
                    let weight = get(&format!("{module}.weight"))?;
                    let update = match adapter {
                        Some(adapter) => {
                            adapter
                                .factors(&module, weight.dims2()?)?
                                .map(|(a, b)| Update {
                                    module,
                                    a,
                                    b,
                                    scale: adapter.config().scale(),
                                    dropout: adapter.config().dropout,
                                })
                        }
                        None => None,
                    };
                    Ok(Projection { weight, update })
                };
                Ok(Block {
                    attention_norm: norm("input_layernorm")?,
                    query: projection("self_attn.q_proj")?,
                    key: projection("self_attn.k_proj")?,
                    value: projection("self_attn.v_proj")?,
                    output: projection("self_attn.o_proj")?,
                    feed_forward_norm: norm("post_attention_layernorm")?,
                    gate: projection("mlp.gate_proj")?,
                    up: projection("mlp.up_proj")?,
                    down: projection("mlp.down_proj")?,
                })
            })
            .collect::<Result<_>>()?;
        let embedding = get(EMBEDDING)?;
        Ok(Self {
            head: if config.tie_word_embeddings {
                embedding.clone()
            } else {
                get(HEAD)?
            },
            embedding,
            blocks,
            norm: get(NORM)?,
            rope: Arc::new(Rope::new(
                config.rope_layout,
                config.head_size(),
                config.max_position_embeddings,
                config.rope_theta,
            )),
            trainable: adapter.map_or_else(
                || parameters.trainable(),
                |adapter| adapter.parameters().trainable(),
            ),
            config: config.clone(),
        })
    }

    /// Returns the shape of the model.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Returns the device of the weights.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// Returns the dtype of the weights.
    pub fn dtype(&self) -> DType {
        self.embedding.dtype()
    }

    /// Tells whether all weights are `f32` on the CPU.
    pub(super) fn is_host_f32(&self) -> bool {
        let mut weights = self.blocks.iter().flat_map(|block| {
            block
                .projections()
                .map(|projection| &projection.weight)
                .into_iter()
                .chain([&block.attention_norm, &block.feed_forward_norm])
        });
        [&self.embedding, &self.norm, &self.head]
            .into_iter()
            .chain(&mut weights)
            .all(|weight| weight.device().is_cpu() && weight.dtype() == DType::F32)
    }

    /// Returns what is trained, in name order: weights, or an adapter's factors.
    pub fn trainable(&self) -> &[(String, Var)] {
        &self.trainable
    }

    /// Returns the same model without gradients. It shares the weights and sees their later updates.
    #[must_use]
    pub fn detached(&self) -> Self {
        Self {
            embedding: self.embedding.detach(),
            blocks: self.blocks.iter().map(Block::detached).collect(),
            norm: self.norm.detach(),
            head: self.head.detach(),
            trainable: Vec::new(),
            ..self.clone()
        }
    }

    /// Returns the model beneath the adapter, without gradients: the reference model of an adapter's training.
    #[must_use]
    pub fn without_adapter(&self) -> Self {
        let mut base = self.detached();
        for block in &mut base.blocks {
            for projection in block.projections_mut() {
                projection.update = None;
            }
        }
        base
    }

    /// Returns the rotation of queries and keys.
    pub(super) fn rope(&self) -> &Rope {
        &self.rope
    }

    /// Returns the hidden states after the final norm: (rows, time, hidden size).
    ///
    /// Outside the rows' spans they are finite but mean nothing; they depend on no other place.
    pub fn forward(&self, batch: &TokenBatch) -> Result<Tensor> {
        self.forward_training(batch, None)
    }

    /// As [`forward`](Self::forward), with the adapter's dropout.
    pub fn forward_training(
        &self,
        batch: &TokenBatch,
        dropout: Option<&DropoutKey>,
    ) -> Result<Tensor> {
        let attention = self.attention(batch);
        let states = self.residual_stream(batch, self.blocks.len(), dropout, |[q, k, v]| {
            Ok(attention.apply(q, k, v)?)
        })?;
        self.final_norm(&states)
    }

    /// Returns the hidden states after `layer` blocks: (rows, time, hidden size).
    ///
    /// As in Hugging Face's `hidden_states`, 0 is the embedding and `num_layers` has the final norm applied.
    pub fn layer_hidden_states(&self, batch: &TokenBatch, layer: usize) -> Result<Tensor> {
        if layer > self.blocks.len() {
            return Err(LlamaError::Config {
                reason: format!("layer {layer} of a model of {} layers", self.blocks.len()),
            });
        }
        if layer == self.blocks.len() {
            return self.forward(batch);
        }
        let attention = self.attention(batch);
        self.residual_stream(
            batch,
            layer,
            None,
            |[q, k, v]| Ok(attention.apply(q, k, v)?),
        )
    }

    fn attention(&self, batch: &TokenBatch) -> Attention {
        Attention {
            heads: self.config.num_heads,
            kv_heads: self.config.num_kv_heads,
            head_size: self.config.head_size(),
            rope: Arc::clone(&self.rope),
            spans: Arc::clone(&batch.spans),
        }
    }

    fn final_norm(&self, states: &Tensor) -> Result<Tensor> {
        Ok(rms_norm(states, &self.norm, self.config.rms_norm_eps)?)
    }

    /// Runs the first `layers` blocks on a batch; `attend` is called by each with its queries, keys and values.
    fn residual_stream(
        &self,
        batch: &TokenBatch,
        layers: usize,
        dropout: Option<&DropoutKey>,
        attend: impl FnMut([&Tensor; 3]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.check_tokens(batch)?;
        let shape = (batch.rows(), batch.time());
        self.run(batch.tokens(), shape, layers, dropout, attend)
    }

    /// Runs the first `layers` blocks on tokens (rows x time).
    fn run(
        &self,
        tokens: &[u32],
        (rows, time): (usize, usize),
        layers: usize,
        dropout: Option<&DropoutKey>,
        mut attend: impl FnMut([&Tensor; 3]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let ids = Tensor::from_slice(tokens, rows * time, self.device())?;
        let states = self.embedding.index_select(&ids, 0)?;
        let mut x = states.reshape((rows, time, self.config.hidden_size))?;
        for block in &self.blocks[..layers] {
            x = block.forward(&x, &mut attend, self.config.rms_norm_eps, dropout)?;
        }
        Ok(x)
    }

    /// Returns the hidden states after the final norm, and hands on each layer's keys (before their rotation) and
    /// values, (rows, time, kv heads x head size).
    pub(super) fn prefill(
        &self,
        batch: &TokenBatch,
        mut seen: impl FnMut(&Tensor, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let attention = self.attention(batch);
        let states = self.residual_stream(batch, self.blocks.len(), None, |[q, k, v]| {
            seen(k, v)?;
            Ok(attention.apply(q, k, v)?)
        })?;
        self.final_norm(&states)
    }

    /// Returns the hidden states of one token each of several sequences after the final norm: (tokens, hidden size).
    ///
    /// `attend` attends, layer by layer, from queries to whatever the sequences remember and to the tokens' own keys
    /// and values; all are (1, tokens, width) and before any rotation.
    pub(super) fn step(
        &self,
        tokens: &[u32],
        attend: impl FnMut([&Tensor; 3]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let states = self.run(tokens, (1, tokens.len()), self.blocks.len(), None, attend)?;
        Ok(self.final_norm(&states)?.squeeze(0)?)
    }

    fn check_tokens(&self, batch: &TokenBatch) -> Result<()> {
        let longest = batch.spans.iter().map(ExactSizeIterator::len).max();
        let reason = match longest {
            None | Some(0) => "there are no tokens".to_owned(),
            Some(longest) if longest > self.config.max_position_embeddings => format!(
                "a row has {longest} tokens, the model takes {}",
                self.config.max_position_embeddings
            ),
            Some(_) => {
                let unknown = batch
                    .tokens()
                    .iter()
                    .find(|id| **id as usize >= self.config.vocab_size);
                match unknown {
                    Some(id) => format!(
                        "token {id} is outside the vocabulary of {}",
                        self.config.vocab_size
                    ),
                    None => return Ok(()),
                }
            }
        };
        Err(LlamaError::Tokens { reason })
    }

    /// Returns the logits of hidden states (.., hidden size): (.., vocabulary).
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(linear(hidden, &self.head)?)
    }

    /// Returns log-probabilities of `targets` at each hidden state, under `softmax(logits / temperature)`.
    ///
    /// `hidden` is (rows, time, hidden size); `targets` holds k token ids for each place, place by place,
    /// [`IGNORED`](super::kernels::token_log_probs::IGNORED) where none is asked for. The log-probabilities are (rows, time, k), their normalisers
    /// (rows, time); both are 0 where nothing is asked for.
    pub fn log_probs(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        temperature: f64,
    ) -> Result<TokenLogProbs> {
        let (rows, time, width) = hidden.dims3()?;
        let flat = hidden.reshape((rows * time, width))?;
        let found = token_log_probs(&flat, &self.head, targets, temperature)?;
        Ok(TokenLogProbs {
            log_probs: found.log_probs.reshape((rows, time, ()))?,
            log_sum_exp: found.log_sum_exp.reshape((rows, time))?,
        })
    }

    /// Returns, at each place, the log-probability of the token that follows it in its row: (rows, time).
    ///
    /// The last place of a row and padding have 0.
    pub fn next_token_log_probs(&self, hidden: &Tensor, batch: &TokenBatch) -> Result<Tensor> {
        let found = self.log_probs(hidden, &batch.next_tokens(), 1.0)?;
        Ok(found.log_probs.squeeze(2)?)
    }
}

impl Block {
    /// Returns the residual stream after the block.
    fn forward(
        &self,
        x: &Tensor,
        attend: &mut impl FnMut([&Tensor; 3]) -> Result<Tensor>,
        eps: f64,
        dropout: Option<&DropoutKey>,
    ) -> Result<Tensor> {
        let normed = rms_norm(x, &self.attention_norm, eps)?;
        let queries = self.query.forward(&normed, dropout)?;
        let keys = self.key.forward(&normed, dropout)?;
        let values = self.value.forward(&normed, dropout)?;
        let attended = attend([&queries, &keys, &values])?;
        let x = (x + self.output.forward(&attended, dropout)?)?;
        let normed = rms_norm(&x, &self.feed_forward_norm, eps)?;
        let gated = swiglu(
            &self.gate.forward(&normed, dropout)?,
            &self.up.forward(&normed, dropout)?,
        )?;
        Ok((&x + self.down.forward(&gated, dropout)?)?)
    }

    fn detached(&self) -> Self {
        let mut block = self.clone();
        block.attention_norm = self.attention_norm.detach();
        block.feed_forward_norm = self.feed_forward_norm.detach();
        for projection in block.projections_mut() {
            *projection = projection.detached();
        }
        block
    }

    fn projections(&self) -> [&Projection; 7] {
        [
            &self.query,
            &self.key,
            &self.value,
            &self.output,
            &self.gate,
            &self.up,
            &self.down,
        ]
    }

    fn projections_mut(&mut self) -> [&mut Projection; 7] {
        [
            &mut self.query,
            &mut self.key,
            &mut self.value,
            &mut self.output,
            &mut self.gate,
            &mut self.up,
            &mut self.down,
        ]
    }
}
