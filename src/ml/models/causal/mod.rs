//! Causal language models: blocks of attention and a feed-forward layer, as an [`Architecture`] describes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor, Var};

use crate::ml::adapter::{Adapter, AdapterError};
use crate::ml::kernels::attention::Attention;
use crate::ml::kernels::form::{is_composed, wide};
use crate::ml::kernels::linear::linear;
use crate::ml::kernels::packed_weight::PackedWeight;
use crate::ml::kernels::rope::Rope;
use crate::ml::kernels::token_log_probs::{TokenLogProbs, token_log_probs};
use crate::ml::parameters::{ParameterError, Parameters, Weights};
use crate::ml::recompute::recomputed;

pub mod architecture;
mod batch;
mod block;
pub mod families;
mod init;
mod llama_config;
#[cfg(test)]
pub(super) mod parity_tests;
mod projection;
pub mod rotary;
#[cfg(test)]
mod tests;

pub use architecture::Architecture;
use architecture::{LayerOptions, Linear, Positions, QueryKeyNorm, QueryKeyValue, Widen};
pub use batch::TokenBatch;
use block::{Block, FeedForward, NormWeights, QueryKeyValues};
pub use init::init;
pub use llama_config::LlamaConfig;
pub use projection::DropoutKey;
use projection::{Projection, Updating};

/// Why a model could not be built or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CausalLmError {
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

type Result<T> = std::result::Result<T, CausalLmError>;

/// What of a model is trained.
#[derive(Debug, Clone, Copy)]
pub enum Training<'a> {
    /// Nothing: forward passes build no graph.
    Frozen,
    /// Every weight.
    Full,
    /// What an adapter trains; all other weights are frozen and shared with their source.
    Adapter(&'a Adapter),
}

/// A causal language model. Clones share weights.
#[derive(Debug, Clone)]
pub struct CausalLm {
    architecture: Arc<Architecture>,
    embedding: Tensor,
    positions: Option<Tensor>,
    /// From embeddings to the residual stream, and back, where their widths differ.
    projections: Option<[Tensor; 2]>,
    blocks: Vec<Block>,
    norm: Option<NormWeights>,
    head: Projection,
    rope: Option<Arc<Rope>>,
    trainable: Vec<(String, Var)>,
    /// Whether our own loops run on all weights.
    uses_fused_form: bool,
    /// Whether a training computes the inside of blocks again for the gradient.
    recomputes: bool,
}

/// Takes a model's tensors by their names and shapes.
struct Builder<'a> {
    architecture: &'a Architecture,
    shapes: BTreeMap<String, Vec<usize>>,
    parameters: &'a Parameters,
    adapter: Option<&'a Adapter>,
}

impl Builder<'_> {
    fn get(&self, name: &str) -> Result<Tensor> {
        let shape = self.shapes.get(name).map(Vec::as_slice).unwrap_or_default();
        let own = self.adapter.map(|adapter| adapter.in_place_of(name, shape));
        match own.transpose()?.flatten() {
            Some(own) => Ok(own),
            None => Ok(self.parameters.get(name, shape)?.clone()),
        }
    }

    fn norm(&self, module: &str) -> Result<NormWeights> {
        let weight = self.get(&format!("{module}.weight"))?;
        let bias = format!("{module}.bias");
        let bias = self.shapes.contains_key(&bias).then(|| self.get(&bias));
        Ok(NormWeights {
            norm: self.architecture.norm,
            weight,
            bias: bias.transpose()?,
        })
    }

    fn linear(&self, module: String, linear: Linear) -> Result<Projection> {
        let weight = self.get(&format!("{module}.weight"))?;
        let bias = linear.has_bias.then(|| self.get(&format!("{module}.bias")));
        let update = match self.adapter {
            Some(adapter) => adapter.update(&module, weight.dims2()?)?,
            None => None,
        };
        let update = update.zip(self.adapter).map(|(update, adapter)| Updating {
            module,
            update,
            dropout: adapter.config().dropout,
            factors: None,
        });
        Ok(Projection {
            weight,
            bias: bias.transpose()?,
            update,
            packed: None,
        })
    }

    fn block(&self, layer: usize) -> Result<Block> {
        let names = &self.architecture.names;
        let module = |name: &str| format!("{}.{layer}.{name}", names.block);
        let linear = |linear: Linear| self.linear(module(linear.name), linear);
        Ok(Block {
            attention_norm: self.norm(&module(names.attention_norm))?,
            query_key_value: match names.query_key_value {
                QueryKeyValue::Separate([query, key, value]) => {
                    QueryKeyValues::Separate([linear(query)?, linear(key)?, linear(value)?])
                }
                QueryKeyValue::Joined(joined) => QueryKeyValues::Joined(linear(joined)?),
                QueryKeyValue::JoinedByHead(joined) => {
                    QueryKeyValues::JoinedByHead(linear(joined)?)
                }
            },
            query_key_norm: match names.query_key_norm {
                Some(QueryKeyNorm {
                    names: [query, key],
                    ..
                }) => Some([self.norm(&module(query))?, self.norm(&module(key))?]),
                None => None,
            },
            output: linear(names.output)?,
            feed_forward_norm: self.norm(&module(names.feed_forward_norm))?,
            feed_forward: match names.widen {
                Widen::Plain(up) => FeedForward::Plain(linear(up)?),
                Widen::Gated { gate, up } => FeedForward::Gated([linear(gate)?, linear(up)?]),
                Widen::GatedJoined(both) => FeedForward::GatedJoined(linear(both)?),
            },
            down: linear(names.down)?,
        })
    }
}

impl CausalLm {
    /// Builds a model of weights named as its architecture says, (outputs, inputs) in linear layers.
    ///
    /// Frozen weights are shared with `weights`, trained ones are copied. Further names in `weights` (heads,
    /// an output head beside tied embeddings) are not read.
    pub fn new(
        architecture: impl Into<Architecture>,
        weights: &Weights,
        training: Training<'_>,
    ) -> Result<Self> {
        let architecture = architecture.into();
        let checked = architecture.check();
        checked.map_err(|reason| CausalLmError::Config { reason })?;
        let slots = architecture.slots();
        let shapes: BTreeMap<_, _> = slots.map(|slot| (slot.name, slot.shape)).collect();
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
        let builder = Builder {
            architecture: &architecture,
            shapes,
            parameters: &parameters,
            adapter,
        };
        let names = &architecture.names;
        let weight = |module: &str| builder.get(&format!("{module}.weight"));
        let embedding = weight(names.embedding)?;
        let (positions, rope) = match &architecture.positions {
            Positions::Learned { name, .. } => (Some(weight(name)?), None),
            Positions::Rotary(rotary) => {
                let rope = rotary.rope(architecture.max_position_embeddings);
                (None, Some(Arc::new(rope)))
            }
        };
        let blocks = (0..architecture.num_layers).map(|layer| builder.block(layer));
        let blocks = blocks.collect::<Result<_>>()?;
        Ok(Self {
            head: Projection::plain(if architecture.tie_word_embeddings {
                // Not that of an adapter, which stands in place of the embedding alone.
                parameters
                    .get(&architecture.embedding_name(), embedding.dims())?
                    .clone()
            } else {
                weight(names.head)?
            }),
            embedding,
            positions,
            projections: if architecture.embedding_size == architecture.hidden_size {
                None
            } else {
                let [into, out] = names.projections;
                Some([weight(into)?, weight(out)?])
            },
            blocks,
            norm: names.norm.map(|norm| builder.norm(norm)).transpose()?,
            rope,
            uses_fused_form: own
                .values()
                .all(|weight| !is_composed(weight) && weight.dtype() == DType::F32),
            recomputes: false,
            trainable: adapter.map_or_else(
                || parameters.trainable(),
                |adapter| adapter.parameters().trainable(),
            ),
            architecture: Arc::new(architecture),
        })
    }

    /// Returns what the model is made of.
    pub fn config(&self) -> &Architecture {
        &self.architecture
    }

    /// Returns the device of the weights.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// Returns the dtype of the weights.
    pub fn dtype(&self) -> DType {
        self.embedding.dtype()
    }

    /// Tells whether our own loops run on all weights: `f32` ones on the CPU, unless another form was asked for.
    pub(in crate::ml) fn uses_fused_form(&self) -> bool {
        self.uses_fused_form
    }

    /// Returns the same model, which keeps of each block no more than its input for the gradient, and computes the rest
    /// again. It changes no number.
    #[must_use]
    pub fn with_gradient_checkpointing(self) -> Self {
        Self {
            recomputes: true,
            ..self
        }
    }

    /// Returns what is trained, in name order: the model's weights, or an adapter's.
    pub fn trainable(&self) -> &[(String, Var)] {
        &self.trainable
    }

    /// Returns the same model without gradients. It shares the weights and sees their later updates.
    #[must_use]
    pub fn detached(&self) -> Self {
        let both = |[into, out]: &[Tensor; 2]| [into.detach(), out.detach()];
        Self {
            embedding: self.embedding.detach(),
            positions: self.positions.as_ref().map(Tensor::detach),
            projections: self.projections.as_ref().map(both),
            blocks: self.blocks.iter().map(Block::detached).collect(),
            norm: self.norm.as_ref().map(NormWeights::detached),
            head: self.head.detached(),
            trainable: Vec::new(),
            ..self.clone()
        }
    }

    /// Returns the same model for as long as its weights do not change, without gradients: what follows from them alone
    /// is worked out once.
    pub fn settled(&self) -> Result<Self> {
        let mut model = self.detached();
        for block in &mut model.blocks {
            for projection in block.projections_mut() {
                projection.settle()?;
            }
        }
        Ok(model)
    }

    /// Returns the same model for a generation of up to `steps` steps, each of `rows` tokens: [settled](Self::settled), and
    /// its weights once more where steps are faster with them.
    pub(in crate::ml) fn for_generation(&self, steps: usize, rows: usize) -> Result<Self> {
        /// Steps that win what it costs to pack the weights.
        const STEPS: usize = 16;
        let mut model = self.settled()?;
        if model.uses_fused_form && steps >= STEPS && rows <= PackedWeight::MOST_ROWS {
            for block in &mut model.blocks {
                for projection in block.projections_mut() {
                    projection.pack()?;
                }
            }
            model.head.pack()?;
        }
        Ok(model)
    }

    /// Returns the rotation of a layer's queries and keys, if it has one.
    pub(in crate::ml) fn rope(&self, layer: usize) -> Option<&Arc<Rope>> {
        let is_rotated = self.options(layer).is_rotated;
        self.rope.as_ref().filter(|_| is_rotated)
    }

    /// Returns what is a layer's own.
    pub(in crate::ml) fn options(&self, layer: usize) -> LayerOptions {
        self.architecture.layers[layer]
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
        let states = if self.recomputes && !self.trainable.is_empty() {
            self.recomputed(batch, dropout)?
        } else {
            let attention = self.attention(batch);
            self.residual_stream(batch, self.blocks.len(), dropout, attention)?
        };
        self.finish(&states)
    }

    /// Returns the residual stream after all blocks, of each of which no more than the input is kept.
    fn recomputed(&self, batch: &TokenBatch, dropout: Option<&DropoutKey>) -> Result<Tensor> {
        let mut x = self.residual_stream(batch, 0, None, self.attention(batch))?;
        let variables: Vec<Var> = self.trainable.iter().map(|(_, var)| var.clone()).collect();
        for (layer, block) in self.blocks.iter().enumerate() {
            let attention = self.attention_of(layer, batch);
            let architecture = Arc::clone(&self.architecture);
            let dropout = dropout.cloned();
            let through = move |block: &Block, x: &Tensor| {
                let attend = |[q, k, v]: [&Tensor; 3]| Ok(attention.apply(q, k, v)?);
                let out = block.forward(&architecture, x, attend, dropout.as_ref());
                out.map_err(candle_core::Error::wrap)
            };
            let (without, frozen) = (through.clone(), block.detached());
            let block = block.clone();
            x = recomputed(
                &x,
                move |x| without(&frozen, x),
                move |x| through(&block, x),
                variables.clone(),
            )?;
        }
        Ok(x)
    }

    /// Returns the hidden states after `layer` blocks: (rows, time, hidden size).
    ///
    /// As in Hugging Face's `hidden_states`, 0 is the embedding and `num_layers` has the final norm applied.
    pub fn layer_hidden_states(&self, batch: &TokenBatch, layer: usize) -> Result<Tensor> {
        if layer > self.blocks.len() {
            return Err(CausalLmError::Config {
                reason: format!("layer {layer} of a model of {} layers", self.blocks.len()),
            });
        }
        if layer == self.blocks.len() {
            return self.forward(batch);
        }
        let states = self.residual_stream(batch, layer, None, self.attention(batch))?;
        Ok(states.to_dtype(wide(states.dtype()))?)
    }

    /// Returns the attention of each layer over the rows of a batch.
    fn attention(&self, batch: &TokenBatch) -> impl Fn(usize, [&Tensor; 3]) -> Result<Tensor> {
        move |layer, [queries, keys, values]| {
            let attention = self.attention_of(layer, batch);
            Ok(attention.apply(queries, keys, values)?)
        }
    }

    /// Returns the attention of a layer over the rows of a batch.
    fn attention_of(&self, layer: usize, batch: &TokenBatch) -> Attention {
        let Architecture {
            num_heads,
            num_kv_heads,
            head_size,
            ..
        } = *self.architecture;
        let LayerOptions { window, scale, .. } = self.options(layer);
        Attention {
            heads: num_heads,
            kv_heads: num_kv_heads,
            head_size,
            rope: self.rope(layer).cloned(),
            scale,
            window,
            spans: Arc::clone(&batch.spans),
            masks: Arc::clone(&batch.masks),
        }
    }

    /// Returns what the output head reads: the last norm of the residual stream, projected to its width. However narrow
    /// the numbers of the model are, heads and losses take wide ones.
    fn finish(&self, states: &Tensor) -> Result<Tensor> {
        let normed = match &self.norm {
            Some(norm) => norm.apply(states)?,
            None => states.clone(),
        };
        let states = match &self.projections {
            Some([_, out]) => linear(&normed, out)?,
            None => normed,
        };
        Ok(states.to_dtype(wide(states.dtype()))?)
    }

    /// Runs the first `layers` blocks on a batch; `attend` is called with each layer's number, queries, keys and values.
    fn residual_stream(
        &self,
        batch: &TokenBatch,
        layers: usize,
        dropout: Option<&DropoutKey>,
        attend: impl FnMut(usize, [&Tensor; 3]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        self.check_tokens(batch)?;
        let shape = (batch.rows(), batch.time());
        let ids = Tensor::from_slice(batch.tokens(), batch.tokens().len(), self.device())?;
        self.run((&ids, &batch.positions()), shape, layers, dropout, attend)
    }

    /// Runs the first `layers` blocks on tokens and their positions (rows x time).
    fn run(
        &self,
        (ids, positions): (&Tensor, &[u32]),
        (rows, time): (usize, usize),
        layers: usize,
        dropout: Option<&DropoutKey>,
        mut attend: impl FnMut(usize, [&Tensor; 3]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let architecture = &*self.architecture;
        let mut x = self.embedding.index_select(ids, 0)?;
        if architecture.embedding_scale != 1.0 {
            x = x.affine(architecture.embedding_scale, 0.0)?;
        }
        if let Some([into, _]) = &self.projections {
            x = linear(&x, into)?;
        }
        if let (Some(table), Positions::Learned { offset, .. }) =
            (&self.positions, &architecture.positions)
        {
            let places: Vec<u32> = positions.iter().map(|at| at + *offset as u32).collect();
            let places = Tensor::from_vec(places, rows * time, self.device())?;
            let places = table.index_select(&places, 0)?.to_dtype(x.dtype())?;
            x = (x + places)?;
        }
        let mut x = x.reshape((rows, time, architecture.hidden_size))?;
        for (layer, block) in self.blocks[..layers].iter().enumerate() {
            x = block.forward(architecture, &x, |qkv| attend(layer, qkv), dropout)?;
        }
        Ok(x)
    }

    /// Returns the hidden states that the output head reads, and hands on each layer's keys (before their rotation) and
    /// values, (rows, time, kv heads x head size).
    pub(in crate::ml) fn prefill(
        &self,
        batch: &TokenBatch,
        mut seen: impl FnMut(usize, &Tensor, &Tensor) -> Result<()>,
    ) -> Result<Tensor> {
        let attention = self.attention(batch);
        let attend = |layer, qkv: [&Tensor; 3]| {
            seen(layer, qkv[1], qkv[2])?;
            attention(layer, qkv)
        };
        let states = self.residual_stream(batch, self.blocks.len(), None, attend)?;
        self.finish(&states)
    }

    /// Returns the hidden states of one token each of several sequences, as the output head reads them: (tokens, width).
    /// `ids` (tokens) lie on the model's device.
    ///
    /// `attend` attends, layer by layer, from queries to whatever the sequences remember and to the tokens' own keys
    /// and values; all are (1, tokens, width) and before any rotation.
    pub(in crate::ml) fn step(
        &self,
        ids: &Tensor,
        positions: &[u32],
        attend: impl FnMut(usize, [&Tensor; 3]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let shape = (1, positions.len());
        let states = self.run((ids, positions), shape, self.blocks.len(), None, attend)?;
        Ok(self.finish(&states)?.squeeze(0)?)
    }

    fn check_tokens(&self, batch: &TokenBatch) -> Result<()> {
        let longest = batch.spans.iter().map(ExactSizeIterator::len).max();
        let reason = match longest {
            None | Some(0) => "there are no tokens".to_owned(),
            Some(longest) if longest > self.architecture.max_position_embeddings => format!(
                "a row has {longest} tokens, the model takes {}",
                self.architecture.max_position_embeddings
            ),
            Some(_) => {
                let unknown = batch
                    .tokens()
                    .iter()
                    .find(|id| **id as usize >= self.architecture.vocab_size);
                match unknown {
                    Some(id) => format!(
                        "token {id} is outside the vocabulary of {}",
                        self.architecture.vocab_size
                    ),
                    None => return Ok(()),
                }
            }
        };
        Err(CausalLmError::Tokens { reason })
    }

    /// Returns the logits of hidden states (.., hidden size): (.., vocabulary).
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden, None)
    }

    /// Returns log-probabilities of `targets` at each hidden state, under `softmax(logits / temperature)`.
    ///
    /// `hidden` is (rows, time, hidden size); `targets` holds k token ids for each place, place by place,
    /// [`IGNORED`](crate::ml::kernels::token_log_probs::IGNORED) where none is asked for. The log-probabilities are (rows, time, k), their normalisers
    /// (rows, time); both are 0 where nothing is asked for.
    pub fn log_probs(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        temperature: f64,
    ) -> Result<TokenLogProbs> {
        let (rows, time, width) = hidden.dims3()?;
        let flat = hidden.reshape((rows * time, width))?;
        let found = token_log_probs(&flat, &self.head.weight, targets, temperature)?;
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
