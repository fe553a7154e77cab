//! The LLaMA architecture (Touvron et al. 2023): pre-norm blocks of causal attention and SwiGLU.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use super::adapter::{Adapter, AdapterError};
use super::config::LlamaConfig;
use super::kernels::attention::Attention;
use super::kernels::linear::{DropoutMask, linear, lora_linear};
use super::kernels::rms_norm::rms_norm;
use super::kernels::rope::Rope;
use super::kernels::swiglu::swiglu;
use super::kernels::token_log_probs::{IGNORED, TokenLogProbs, token_log_probs};
use super::parameters::{ParameterError, Parameters, Weights};
use crate::random::Stream;

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

/// Rows of tokens of different length on one time axis.
#[derive(Debug, Clone)]
pub struct TokenBatch {
    tokens: Vec<u32>,
    time: usize,
    spans: Arc<[Range<usize>]>,
}

impl TokenBatch {
    /// Starts all rows at time 0 and fills their ends with token 0, which nothing sees.
    pub fn right_padded<R: AsRef<[u32]>>(rows: &[R]) -> Self {
        Self::padded(rows, |_, _| 0)
    }

    /// Ends all rows at the same time and fills their starts with token 0, which nothing sees.
    pub fn left_padded<R: AsRef<[u32]>>(rows: &[R]) -> Self {
        Self::padded(rows, |time, length| time - length)
    }

    fn padded<R: AsRef<[u32]>>(rows: &[R], start: impl Fn(usize, usize) -> usize) -> Self {
        let time = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
        let mut tokens = vec![0; rows.len() * time];
        let spans = rows
            .iter()
            .enumerate()
            .map(|(index, row)| {
                let row = row.as_ref();
                let start = start(time, row.len());
                tokens[index * time + start..][..row.len()].copy_from_slice(row);
                start..start + row.len()
            })
            .collect();
        Self {
            tokens,
            time,
            spans,
        }
    }

    /// Returns the number of rows.
    pub fn rows(&self) -> usize {
        self.spans.len()
    }

    /// Returns the length of the time axis.
    pub fn time(&self) -> usize {
        self.time
    }

    /// Returns where each row's tokens lie.
    pub fn spans(&self) -> &[Range<usize>] {
        &self.spans
    }

    /// Returns the tokens, row by row, with padding: rows x time.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Returns, at each place, the token that follows it in its row, or [`IGNORED`]: rows x time.
    pub fn next_tokens(&self) -> Vec<u32> {
        let mut next = vec![IGNORED; self.tokens.len()];
        for (row, span) in self.spans.iter().enumerate() {
            for time in span.start..span.end.saturating_sub(1) {
                next[row * self.time + time] = self.tokens[row * self.time + time + 1];
            }
        }
        next
    }
}

/// Which dropout masks a forward pass in training uses.
#[derive(Debug, Clone)]
pub struct DropoutKey {
    /// The training's stream for dropout.
    pub stream: Stream,
    /// A number of its own for each forward pass (the step, or step and micro-batch).
    pub counter: u64,
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
pub(super) struct Block {
    pub(super) attention_norm: Tensor,
    pub(super) query: Projection,
    pub(super) key: Projection,
    pub(super) value: Projection,
    pub(super) output: Projection,
    pub(super) feed_forward_norm: Tensor,
    pub(super) gate: Projection,
    pub(super) up: Projection,
    pub(super) down: Projection,
}

/// A model's tensors.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a> {
    pub(super) embedding: &'a Tensor,
    pub(super) blocks: &'a [Block],
    pub(super) norm: &'a Tensor,
    pub(super) head: &'a Tensor,
    pub(super) rope: &'a Rope,
}

/// A linear layer without bias, with or without a low-rank update.
#[derive(Debug, Clone)]
pub(super) struct Projection {
    pub(super) weight: Tensor,
    pub(super) update: Option<Update>,
}

#[derive(Debug, Clone)]
pub(super) struct Update {
    module: String,
    pub(super) a: Tensor,
    pub(super) b: Tensor,
    pub(super) scale: f64,
    dropout: f64,
}

impl Projection {
    fn forward(&self, x: &Tensor, dropout: Option<&DropoutKey>) -> Result<Tensor> {
        let Some(update) = &self.update else {
            return Ok(linear(x, &self.weight)?);
        };
        let mask = dropout
            .filter(|_| update.dropout > 0.0)
            .map(|key| dropout_mask(update, key, x.elem_count()));
        Ok(lora_linear(
            x,
            &self.weight,
            &update.a,
            &update.b,
            update.scale,
            mask,
        )?)
    }

    fn detached(&self) -> Self {
        Self {
            weight: self.weight.detach(),
            update: self.update.as_ref().map(|update| Update {
                a: update.a.detach(),
                b: update.b.detach(),
                ..update.clone()
            }),
        }
    }
}

/// Draws which of `elements` inputs are kept: 16 random bits for each, in blocks with their own counters.
fn dropout_mask(update: &Update, key: &DropoutKey, elements: usize) -> DropoutMask {
    use rayon::prelude::*;
    const WORDS: usize = 512;
    let stream = key
        .stream
        .child(&update.module)
        .child(&key.counter.to_string());
    let dropped = (update.dropout * 65536.0).round() as u64;
    let mut kept = vec![0u64; elements.div_ceil(64)];
    kept.par_chunks_mut(WORDS)
        .enumerate()
        .for_each(|(block, words)| {
            let mut draws = stream.at(block as u64);
            // One uniform draw has 53 random bits: three numbers of 16.
            let mut left = 0;
            let mut bits = 0u64;
            for word in words {
                for bit in 0..64 {
                    if left == 0 {
                        bits = (draws.uniform() * (1u64 << 53) as f64) as u64;
                        left = 3;
                    }
                    *word |= u64::from(bits & 0xffff >= dropped) << bit;
                    bits >>= 16;
                    left -= 1;
                }
            }
        });
    DropoutMask {
        kept,
        scale: (1.0 / (1.0 - dropped as f64 / 65536.0)) as f32,
    }
}

impl LlamaConfig {
    /// Checks that the numbers describe a model.
    pub fn check(&self) -> Result<()> {
        let positive = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_layers", self.num_layers),
            ("num_heads", self.num_heads),
            ("num_kv_heads", self.num_kv_heads),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        let reason = if let Some((name, _)) = positive.iter().find(|(_, value)| *value == 0) {
            format!("`{name}` is 0")
        } else if !self.hidden_size.is_multiple_of(self.num_heads) || self.head_size() % 2 != 0 {
            format!(
                "`hidden_size` {} over `num_heads` {} is not an even head size",
                self.hidden_size, self.num_heads
            )
        } else if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            format!(
                "`num_kv_heads` {} does not divide `num_heads` {}",
                self.num_kv_heads, self.num_heads
            )
        } else if !(self.rope_theta > 0.0 && self.rope_theta.is_finite()) {
            format!("`rope_theta` is {}", self.rope_theta)
        } else if !(self.rms_norm_eps >= 0.0 && self.rms_norm_eps.is_finite()) {
            format!("`rms_norm_eps` is {}", self.rms_norm_eps)
        } else {
            return Ok(());
        };
        Err(LlamaError::Config { reason })
    }

    /// Returns the names and shapes of all weights, in name order.
    pub fn shapes(&self) -> std::collections::BTreeMap<String, Vec<usize>> {
        let hidden = self.hidden_size;
        let kv = self.num_kv_heads * self.head_size();
        let wide = self.intermediate_size;
        let mut shapes = std::collections::BTreeMap::from([
            (EMBEDDING.to_owned(), vec![self.vocab_size, hidden]),
            (NORM.to_owned(), vec![hidden]),
        ]);
        if !self.tie_word_embeddings {
            shapes.insert(HEAD.to_owned(), vec![self.vocab_size, hidden]);
        }
        for layer in 0..self.num_layers {
            let parts: [(&str, Vec<usize>); 9] = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![hidden, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![wide, hidden]),
                ("mlp.up_proj", vec![wide, hidden]),
                ("mlp.down_proj", vec![hidden, wide]),
            ];
            for (part, shape) in parts {
                shapes.insert(format!("model.layers.{layer}.{part}.weight"), shape);
            }
        }
        shapes
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

/// Draws initial weights.
///
/// Norms are one; the embedding (and an untied head) is `N(0, 0.05)`; projections are `N(0, s)` with
/// `s = 0.04 sqrt(128 / hidden_size)`, those that write to the residual stream divided by
/// `sqrt(2 num_layers)` (Radford et al. 2019, section 2.3).
pub fn init(config: &LlamaConfig, stream: &Stream, device: &Device) -> Result<Weights> {
    config.check()?;
    let projection = 0.04 * (128.0 / config.hidden_size as f64).sqrt();
    let residual = projection / (2.0 * config.num_layers as f64).sqrt();
    config
        .shapes()
        .into_iter()
        .map(|(name, shape)| {
            let elements = shape.iter().product();
            let values = if shape.len() == 1 {
                vec![1f32; elements]
            } else {
                let std = match name.as_str() {
                    EMBEDDING | HEAD => 0.05,
                    _ if name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight") => {
                        residual
                    }
                    _ => projection,
                };
                let mut draws = stream.child(&name).at(0);
                (0..elements)
                    .map(|_| (std * draws.normal()) as f32)
                    .collect()
            };
            Ok((name, Tensor::from_vec(values, shape, device)?))
        })
        .collect()
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

    /// Returns the tensors that a decoder reads.
    pub(super) fn parts(&self) -> Parts<'_> {
        Parts {
            embedding: &self.embedding,
            blocks: &self.blocks,
            norm: &self.norm,
            head: &self.head,
            rope: &self.rope,
        }
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
        let states = self.residual_stream(batch, self.blocks.len(), dropout, |_, _| Ok(()))?;
        Ok(rms_norm(&states, &self.norm, self.config.rms_norm_eps)?)
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
        self.residual_stream(batch, layer, None, |_, _| Ok(()))
    }

    fn residual_stream(
        &self,
        batch: &TokenBatch,
        layers: usize,
        dropout: Option<&DropoutKey>,
        mut seen: impl FnMut(Tensor, Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        self.check_tokens(batch)?;
        let (rows, time) = (batch.rows(), batch.time());
        let ids = Tensor::from_slice(batch.tokens(), rows * time, self.device())?;
        let mut x =
            self.embedding
                .index_select(&ids, 0)?
                .reshape((rows, time, self.config.hidden_size))?;
        let attention = Attention {
            heads: self.config.num_heads,
            kv_heads: self.config.num_kv_heads,
            head_size: self.config.head_size(),
            rope: Arc::clone(&self.rope),
            spans: Arc::clone(&batch.spans),
        };
        for block in &self.blocks[..layers] {
            let (keys, values);
            (x, keys, values) = block.forward(&x, &attention, self.config.rms_norm_eps, dropout)?;
            seen(keys, values)?;
        }
        Ok(x)
    }

    /// Returns the hidden states after the final norm, and hands on each layer's keys (before their rotation) and
    /// values, (rows, time, kv heads x head size).
    pub(super) fn prefill(
        &self,
        batch: &TokenBatch,
        seen: impl FnMut(Tensor, Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let states = self.residual_stream(batch, self.blocks.len(), None, seen)?;
        Ok(rms_norm(&states, &self.norm, self.config.rms_norm_eps)?)
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
                    .tokens
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
    /// [`IGNORED`] where none is asked for. The log-probabilities are (rows, time, k), their normalisers
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
    /// Returns the residual stream after the block, and the block's keys and values.
    fn forward(
        &self,
        x: &Tensor,
        attention: &Attention,
        eps: f64,
        dropout: Option<&DropoutKey>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let normed = rms_norm(x, &self.attention_norm, eps)?;
        let queries = self.query.forward(&normed, dropout)?;
        let keys = self.key.forward(&normed, dropout)?;
        let values = self.value.forward(&normed, dropout)?;
        let attended = attention.apply(&queries, &keys, &values)?;
        let x = (x + self.output.forward(&attended, dropout)?)?;
        let normed = rms_norm(&x, &self.feed_forward_norm, eps)?;
        let gated = swiglu(
            &self.gate.forward(&normed, dropout)?,
            &self.up.forward(&normed, dropout)?,
        )?;
        let x = (&x + self.down.forward(&gated, dropout)?)?;
        Ok((x, keys, values))
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

#[cfg(test)]
mod tests;
