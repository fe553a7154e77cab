//! What a causal language model is made of: the one description that building, shapes, initial weights, counts of
//! operations and file formats follow.

use serde_json::{Map, Value};

use super::rotary::Rotary;
use crate::ml::parameters::Weights;

/// Most layers of a model.
const MAX_LAYERS: usize = 1 << 12;
/// Longest sequence that a model may claim to take.
const MAX_POSITIONS: usize = 1 << 24;

/// A causal language model's shape, constants and tensor names.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// What its `config.json` holds, `model_type` among it: how it is written again.
    pub document: Map<String, Value>,
    /// Begin of the names of its classes in `transformers`: `Llama` of `LlamaForCausalLM`.
    pub class: &'static str,
    /// End of the name of the one with an output head.
    pub task: &'static str,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of token embeddings and of the states that the output head reads.
    pub embedding_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of transformer blocks.
    pub num_layers: usize,
    /// Number of query heads.
    pub num_heads: usize,
    /// Number of key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head.
    pub head_size: usize,
    /// Longest sequence, prompt and completion together.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// Token embeddings are multiplied by it.
    pub embedding_scale: f64,
    /// How positions are told.
    pub positions: Positions,
    /// What normalises.
    pub norm: Norm,
    /// Where norms and residual connections lie.
    pub arrangement: Arrangement,
    /// What bends the feed-forward layer.
    pub activation: Activation,
    /// What differs from layer to layer.
    pub layers: Vec<LayerOptions>,
    /// Names of its tensors.
    pub names: Names,
}

/// How a model tells positions.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Queries and keys are rotated.
    Rotary(Rotary),
    /// An embedding of each position is added, that of the first in row `offset`.
    Learned {
        /// Name of the module.
        name: &'static str,
        /// Rows that belong to no position.
        offset: usize,
    },
}

/// A normalisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// What is normalised to.
    pub kind: NormKind,
    /// Added before the root is taken.
    pub eps: f64,
}

/// What a norm does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square 1, times the weight.
    Rms,
    /// Root mean square 1, times 1 plus the weight.
    RmsPlusOne,
    /// Mean 0 and variance 1, times the weight, plus a bias.
    Layer,
}

/// Where norms and residual connections of a block lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrangement {
    /// `x += attention(norm x)`, then `x += feed_forward(norm x)`.
    Before,
    /// `x = norm(x + attention x)`, then `x = norm(x + feed_forward x)`.
    After,
    /// `x += norm(attention x)`, then `x += norm(feed_forward x)`.
    OfBranches,
    /// `x += attention(norm x) + feed_forward(other norm x)`.
    Parallel,
}

/// A function of the feed-forward layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x sigmoid(x)`.
    Silu,
    /// `x Phi(x)`.
    Gelu,
    /// Its form with a hyperbolic tangent.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

impl Activation {
    /// Returns the function that `transformers` has under a name.
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_accurate" | "gelu_pytorch_tanh" | "gelu_python_tanh" => {
                Self::GeluTanh
            }
            "relu" => Self::Relu,
            _ => return None,
        })
    }
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerOptions {
    /// How many keys a query sees, its own among them; all before it if absent.
    pub window: Option<usize>,
    /// Whether queries and keys are rotated, in a model with rotary positions.
    pub is_rotated: bool,
    /// Scores of attention are multiplied by it.
    pub scale: f32,
}

/// A linear layer in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Linear {
    /// Name of the module within the block.
    pub name: &'static str,
    /// Whether it has a bias.
    pub has_bias: bool,
}

/// Makes a linear layer's name.
pub(super) const fn linear(name: &'static str, has_bias: bool) -> Linear {
    Linear { name, has_bias }
}

/// How queries, keys and values are projected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKeyValue {
    /// By a layer each.
    Separate([Linear; 3]),
    /// By one layer: all queries, all keys, all values.
    Joined(Linear),
    /// By one layer: query, key and value of one head after the other.
    JoinedByHead(Linear),
}

/// How a feed-forward layer widens its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Widen {
    /// `activation(up x)`.
    Plain(Linear),
    /// `activation(gate x) * up x`.
    Gated {
        /// The gate.
        gate: Linear,
        /// What it is multiplied with.
        up: Linear,
    },
    /// The same with one layer: the gate, then the other.
    GatedJoined(Linear),
}

/// Norms of queries and keys before their rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueryKeyNorm {
    /// Name of the queries' and of the keys'.
    pub names: [&'static str; 2],
    /// Whether each head is normalised by itself.
    pub is_by_head: bool,
}

/// Names of a model's tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Names {
    /// What comes before all names but the head's, and is left out in files of a model without a head.
    pub trunk: &'static str,
    /// Token embeddings.
    pub embedding: &'static str,
    /// From embeddings to the residual stream, and back, where their widths differ.
    pub projections: [&'static str; 2],
    /// What comes before a layer's number.
    pub block: &'static str,
    /// The norm that belongs to attention.
    pub attention_norm: &'static str,
    /// Queries, keys and values.
    pub query_key_value: QueryKeyValue,
    /// Their norms.
    pub query_key_norm: Option<QueryKeyNorm>,
    /// What attention writes.
    pub output: Linear,
    /// The norm that belongs to the feed-forward layer.
    pub feed_forward_norm: &'static str,
    /// What widens.
    pub widen: Widen,
    /// What the feed-forward layer writes.
    pub down: Linear,
    /// The norm after all blocks.
    pub norm: Option<&'static str>,
    /// The output head.
    pub head: &'static str,
    /// Whether files hold the weights of blocks as (inputs, outputs).
    pub is_transposed: bool,
}

/// What a tensor of a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Token embeddings or the output head.
    Tokens,
    /// Embeddings of positions, or what leads from and to embeddings.
    Other,
    /// Weight of a norm.
    Norm,
    /// Bias of a norm or layer.
    Bias,
    /// Weight of a linear layer of a block.
    Linear {
        /// Whether it writes to the residual stream.
        writes: bool,
    },
}

/// A tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Its shape; weights of linear layers are (outputs, inputs).
    pub shape: Vec<usize>,
    /// What it is.
    pub role: Role,
}

impl Architecture {
    /// Returns the rotation of queries and keys, if they are rotated.
    pub fn rotary(&self) -> Option<&Rotary> {
        match &self.positions {
            Positions::Rotary(rotary) => Some(rotary),
            Positions::Learned { .. } => None,
        }
    }

    /// Has all layers see through a window of so many keys, or all before them.
    pub(super) fn see(&mut self, window: Option<usize>) {
        for layer in &mut self.layers {
            layer.window = window;
        }
    }

    /// Rotates a share of each head alone.
    pub(super) fn rotate_share(&mut self, share: f64) {
        if let Positions::Rotary(rotary) = &mut self.positions {
            rotary.dimensions = (self.head_size as f64 * share) as usize;
        }
    }

    /// Returns the name of the output head's weight, which a model with tied embeddings has not.
    pub fn head_name(&self) -> String {
        format!("{}.weight", self.names.head)
    }

    /// Returns the name of the embedding's weight.
    pub fn embedding_name(&self) -> String {
        format!("{}.weight", self.names.embedding)
    }

    /// Gives a tied model an output head of its own, which is the embedding's at first.
    pub fn untie(&mut self, weights: &mut Weights) {
        if !self.tie_word_embeddings {
            return;
        }
        self.tie_word_embeddings = false;
        self.document
            .insert("tie_word_embeddings".to_owned(), false.into());
        if let Some(embedding) = weights.get(&self.embedding_name()) {
            weights.insert(self.head_name(), embedding.clone());
        }
    }

    /// Returns the width of keys and of values.
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_size
    }

    /// Returns the rows of the joined projection of queries, keys and values.
    fn joined_width(&self) -> usize {
        self.num_heads * self.head_size + 2 * self.kv_width()
    }

    /// Returns every tensor, the output head only if it is not the embedding matrix, in the order of the computation.
    ///
    /// It is lazy, so that a forged number of layers costs nothing until the first missing tensor stops it.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        let names = &self.names;
        let one = |name: String, shape: Vec<usize>, role| Slot { name, shape, role };
        let weight = |module: &str, shape, role| one(format!("{module}.weight"), shape, role);
        let tokens = || vec![self.vocab_size, self.embedding_size];
        let mut first = vec![weight(names.embedding, tokens(), Role::Tokens)];
        if let Positions::Learned { name, offset } = self.positions {
            let rows = self.max_position_embeddings + offset;
            first.push(weight(name, vec![rows, self.hidden_size], Role::Other));
        }
        let mut last = Vec::new();
        if let Some(norm) = names.norm {
            self.push_norm(&mut last, norm, self.hidden_size);
        }
        if self.embedding_size != self.hidden_size {
            let [into, out] = names.projections;
            let shape = vec![self.hidden_size, self.embedding_size];
            first.push(weight(into, shape, Role::Other));
            let shape = vec![self.embedding_size, self.hidden_size];
            last.push(weight(out, shape, Role::Other));
        }
        if !self.tie_word_embeddings {
            last.push(weight(names.head, tokens(), Role::Tokens));
        }
        let layers = (0..self.num_layers).flat_map(|layer| self.layer_slots(layer));
        first.into_iter().chain(layers).chain(last)
    }

    fn push_norm(&self, slots: &mut Vec<Slot>, module: &str, width: usize) {
        let slot = |part: &str, role| Slot {
            name: format!("{module}.{part}"),
            shape: vec![width],
            role,
        };
        slots.push(slot("weight", Role::Norm));
        if self.norm.kind == NormKind::Layer {
            slots.push(slot("bias", Role::Bias));
        }
    }

    fn layer_slots(&self, layer: usize) -> Vec<Slot> {
        let names = &self.names;
        let mut slots = Vec::new();
        let module = |name: &str| format!("{}.{layer}.{name}", names.block);
        let push = |slots: &mut Vec<Slot>, linear: Linear, outputs, inputs, writes| {
            let module = module(linear.name);
            slots.push(Slot {
                name: format!("{module}.weight"),
                shape: vec![outputs, inputs],
                role: Role::Linear { writes },
            });
            if linear.has_bias {
                slots.push(Slot {
                    name: format!("{module}.bias"),
                    shape: vec![outputs],
                    role: Role::Bias,
                });
            }
        };
        let (hidden, wide) = (self.hidden_size, self.intermediate_size);
        let (query_width, kv_width) = (self.num_heads * self.head_size, self.kv_width());
        self.push_norm(&mut slots, &module(names.attention_norm), hidden);
        match names.query_key_value {
            QueryKeyValue::Separate([query, key, value]) => {
                push(&mut slots, query, query_width, hidden, false);
                push(&mut slots, key, kv_width, hidden, false);
                push(&mut slots, value, kv_width, hidden, false);
            }
            QueryKeyValue::Joined(linear) | QueryKeyValue::JoinedByHead(linear) => {
                push(&mut slots, linear, self.joined_width(), hidden, false);
            }
        }
        if let Some(QueryKeyNorm { names, is_by_head }) = names.query_key_norm {
            for (name, width) in names.into_iter().zip([query_width, kv_width]) {
                let width = if is_by_head { self.head_size } else { width };
                self.push_norm(&mut slots, &module(name), width);
            }
        }
        push(&mut slots, names.output, hidden, query_width, true);
        self.push_norm(&mut slots, &module(names.feed_forward_norm), hidden);
        match names.widen {
            Widen::Plain(up) => push(&mut slots, up, wide, hidden, false),
            Widen::Gated { gate, up } => {
                push(&mut slots, gate, wide, hidden, false);
                push(&mut slots, up, wide, hidden, false);
            }
            Widen::GatedJoined(both) => push(&mut slots, both, 2 * wide, hidden, false),
        }
        push(&mut slots, names.down, hidden, wide, true);
        slots
    }

    /// Tells whether files hold such tensors as (inputs, outputs).
    pub(in crate::ml) fn is_turned(&self, role: Role) -> bool {
        self.names.is_transposed && matches!(role, Role::Linear { .. })
    }

    /// Checks that the numbers describe a model; else says which do not.
    pub fn check(&self) -> Result<(), String> {
        for (name, value) in [
            ("vocabulary size", self.vocab_size),
            ("hidden size", self.hidden_size),
            ("embedding size", self.embedding_size),
            ("intermediate size", self.intermediate_size),
            ("number of layers", self.num_layers),
            ("number of heads", self.num_heads),
            ("number of key/value heads", self.num_kv_heads),
            ("head size", self.head_size),
        ] {
            // The upper bound keeps every product of two sizes within 64 bits.
            if value == 0 || value > i32::MAX as usize {
                return Err(format!("{name} is {value}, expected 1 to {}", i32::MAX));
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return Err(format!(
                "{} query heads do not share {} key/value heads evenly",
                self.num_heads, self.num_kv_heads
            ));
        }
        if !(1..=MAX_POSITIONS).contains(&self.max_position_embeddings) {
            return Err(format!(
                "longest sequence is {}, expected 1 to {MAX_POSITIONS}",
                self.max_position_embeddings
            ));
        }
        if self.num_layers > MAX_LAYERS || self.layers.len() != self.num_layers {
            return Err(format!(
                "number of layers is {}, expected 1 to {MAX_LAYERS}",
                self.num_layers
            ));
        }
        if self.layers.iter().any(|layer| layer.window == Some(0)) {
            return Err("a window of 0 keys, expected 1 or more".to_owned());
        }
        if !(self.norm.eps.is_finite() && self.norm.eps >= 0.0) {
            return Err(format!(
                "the norms' epsilon is {}, expected a number not below 0",
                self.norm.eps
            ));
        }
        match self.rotary() {
            Some(rotary) => rotary.check(self.head_size),
            None => Ok(()),
        }
    }
}

/// Makes `count` layers that see all, with rotated heads where there are such and scores over `sqrt(head_size)`: at most
/// as many as a model may have, the check says the rest.
pub(super) fn plain_layers(count: usize, head_size: usize) -> Vec<LayerOptions> {
    let options = LayerOptions {
        window: None,
        is_rotated: true,
        scale: 1.0 / (head_size.max(1) as f32).sqrt(),
    };
    vec![options; count.min(MAX_LAYERS)]
}
