//! Log-probabilities of chosen tokens under a linear head, without keeping the logits.
//!
//! For a vocabulary of 49,152 the logits of 4,096 tokens take 800 MB, and their softmax and gradient as much
//! again. Here rows are handled in chunks, in place. Under a frozen head the forward pass keeps `p W`, one row of `width`
//! numbers for each row of logits, from which the gradient of the hidden states follows without another product;
//! under a trained head the backward pass computes the logits once more.

mod composed;

use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};

use super::exponential::exp_shifted;
use super::host::{elements, fused, maximum, slice};
use super::matmul::{Matrix, Term, Threads, multiply, product_sum};
use super::threads;

/// A target that asks for nothing: its log-probability is 0 and it gives no gradient.
pub const IGNORED: u32 = u32::MAX;

/// Rows whose logits exist at the same time in the forward pass, for each of which the head is read once: as many as
/// [`LOGITS`] allows, within these bounds.
const FORWARD_ROWS: RangeInclusive<usize> = 128..=512;

/// Numbers of logits that should exist at the same time: a quarter of a gibibyte.
const LOGITS: usize = 1 << 26;

/// Rows whose logits exist at the same time in the backward pass, where the gradient of a trained head is a sum over them.
const BACKWARD_ROWS: usize = 128;

/// Log-probabilities of targets and the normalisers of their distributions.
#[derive(Debug, Clone)]
pub struct TokenLogProbs {
    /// `log softmax(z)[target]`: (rows, targets per row); 0 where the target is [`IGNORED`].
    pub log_probs: Tensor,
    /// `log sum exp z`: (rows); 0 where all targets of the row are [`IGNORED`].
    pub log_sum_exp: Tensor,
}

/// Computes log-probabilities under `softmax(hidden weight^T / temperature)`.
///
/// `hidden` is (rows, width), `weight` (vocabulary, width), and `targets` holds the same number of token
/// ids for each row, row by row. Both outputs have gradients to both inputs.
pub fn token_log_probs(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<TokenLogProbs> {
    let mut operation = Head::new(hidden.shape(), weight.shape(), targets, temperature)?;
    let per_row = operation.per_row;
    operation.keeps_expected = hidden.track_op() && !weight.track_op();
    if !fused(&[hidden, weight]) {
        return composed::apply(&operation, hidden, weight);
    }
    let both = hidden
        .contiguous()?
        .apply_op2(&weight.contiguous()?, operation)?;
    Ok(TokenLogProbs {
        log_probs: both.narrow(1, 0, per_row)?,
        log_sum_exp: both.narrow(1, per_row, 1)?.squeeze(1)?,
    })
}

/// The composed form of [`token_log_probs`].
pub fn composed_token_log_probs(
    hidden: &Tensor,
    weight: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<TokenLogProbs> {
    let head = Head::new(hidden.shape(), weight.shape(), targets, temperature)?;
    composed::apply(&head, hidden, weight)
}

struct Head {
    targets: Arc<[u32]>,
    per_row: usize,
    /// Rows with a target that is not ignored.
    active: Arc<[usize]>,
    inverse_temperature: f64,
    /// Whether the forward pass keeps [`Head::expected`].
    keeps_expected: bool,
    /// `p W` for each active row: (active rows, width).
    expected: OnceLock<Vec<f32>>,
}

impl Head {
    fn new(hidden: &Shape, weight: &Shape, targets: &[u32], temperature: f64) -> Result<Self> {
        let ((rows, width), (vocabulary, inputs)) = (hidden.dims2()?, weight.dims2()?);
        if width != inputs {
            bail!("token_log_probs: hidden {hidden:?} does not fit head {weight:?}");
        }
        if rows == 0 || targets.is_empty() || !targets.len().is_multiple_of(rows) {
            bail!("token_log_probs: {} targets for {rows} rows", targets.len());
        }
        if let Some(id) = targets
            .iter()
            .find(|id| **id != IGNORED && **id as usize >= vocabulary)
        {
            bail!("token_log_probs: target {id} is outside the vocabulary of {vocabulary}");
        }
        if !(temperature > 0.0 && temperature.is_finite()) {
            bail!("token_log_probs: temperature {temperature} is not positive");
        }
        let per_row = targets.len() / rows;
        let active = targets
            .chunks_exact(per_row)
            .enumerate()
            .filter(|(_, row)| row.iter().any(|id| *id != IGNORED))
            .map(|(row, _)| row)
            .collect();
        Ok(Self {
            targets: targets.into(),
            per_row,
            active,
            inverse_temperature: 1.0 / temperature,
            keeps_expected: false,
            expected: OnceLock::new(),
        })
    }

    fn targets_of(&self, row: usize) -> impl Iterator<Item = (usize, usize)> {
        self.targets[row * self.per_row..(row + 1) * self.per_row]
            .iter()
            .enumerate()
            .filter(|(_, id)| **id != IGNORED)
            .map(|(place, id)| (place, *id as usize))
    }

    /// Writes the gradient of one hidden state under a frozen head:
    /// `sum_k g_k W[t_k] + (g_normaliser - sum_k g_k) p W`, over the temperature.
    fn hidden_gradient(
        &self,
        gradient: &[f32],
        row: usize,
        expected: &[f32],
        head: &[f32],
        out: &mut [f32],
    ) {
        let width = out.len();
        let scale = self.inverse_temperature as f32;
        let mut common = gradient[self.per_row];
        for (place, id) in self.targets_of(row) {
            common -= gradient[place];
            let factor = gradient[place] * scale;
            for (out, weight) in out.iter_mut().zip(&head[id * width..]) {
                *out += factor * weight;
            }
        }
        let factor = common * scale;
        for (out, expected) in out.iter_mut().zip(expected) {
            *out += factor * expected;
        }
    }

    /// Returns the logits of the rows in `chunk`, and gathers their hidden states into `inputs`.
    fn logits(
        &self,
        hidden: &[f32],
        weight: &[f32],
        (vocabulary, width): (usize, usize),
        chunk: &[usize],
        inputs: &mut Vec<f32>,
    ) -> Result<Vec<f32>> {
        inputs.clear();
        for row in chunk {
            inputs.extend_from_slice(&hidden[row * width..(row + 1) * width]);
        }
        let logits = Term {
            a: Matrix::new(inputs, chunk.len(), width, width),
            b: Matrix::new(weight, vocabulary, width, width).t(),
            scale: self.inverse_temperature as f32,
        };
        product_sum(&[logits], Threads::All)
    }
}

impl CustomOp2 for Head {
    fn name(&self) -> &'static str {
        "token_log_probs"
    }

    /// Returns (rows, targets per row + 1): the log-probabilities, then the normaliser.
    fn cpu_fwd(
        &self,
        hidden: &CpuStorage,
        hidden_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (vocabulary, width) = weight_layout.shape().dims2()?;
        let (rows, _) = hidden_layout.shape().dims2()?;
        let hidden = slice(hidden, hidden_layout)?;
        let weight = slice(weight, weight_layout)?;
        let columns = self.per_row + 1;
        let mut out = vec![0f32; rows * columns];
        let mut inputs = Vec::new();
        let mut expected = Vec::new();
        let most = (LOGITS / vocabulary.max(1)).clamp(*FORWARD_ROWS.start(), *FORWARD_ROWS.end());
        // Even chunks take less memory.
        let chunks = self.active.len().div_ceil(most).max(1);
        for chunk in self
            .active
            .chunks(self.active.len().div_ceil(chunks).max(1))
        {
            let shape = (vocabulary, width);
            let mut logits = self.logits(hidden, weight, shape, chunk, &mut inputs)?;
            for (row, logits) in chunk.iter().zip(logits.chunks_exact(vocabulary)) {
                for (place, id) in self.targets_of(*row) {
                    out[row * columns + place] = logits[id];
                }
            }
            // The logits become e^(z - max), whose sums normalise them.
            let sums = threads::map(logits.chunks_exact_mut(vocabulary), |logits| {
                let most = maximum(logits);
                (most, exp_shifted(logits, most))
            });
            for (row, (most, total)) in chunk.iter().zip(&sums) {
                let normaliser = most + libm::logf(*total);
                let out = &mut out[row * columns..(row + 1) * columns];
                for (place, _) in self.targets_of(*row) {
                    out[place] -= normaliser;
                }
                out[self.per_row] = normaliser;
            }
            if self.keeps_expected {
                let first = expected.len();
                expected.resize(first + chunk.len() * width, 0.0);
                multiply(
                    &mut expected[first..],
                    width,
                    Matrix::new(&logits, chunk.len(), vocabulary, vocabulary),
                    Matrix::new(weight, vocabulary, width, width),
                    1.0,
                    false,
                    Threads::All,
                )?;
                for (expected, (_, total)) in expected[first..].chunks_exact_mut(width).zip(&sums) {
                    for value in expected {
                        *value /= total;
                    }
                }
            }
        }
        if self.keeps_expected {
            // An operation runs forward once; a second run would find the same numbers.
            let _ = self.expected.set(expected);
        }
        Ok((CpuStorage::F32(out), Shape::from((rows, columns))))
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((_, width), (vocabulary, _)) = (hidden.dims2()?, weight.dims2()?);
        let gradient = gradient.contiguous()?;
        let (gradient_storage, layout) = gradient.storage_and_layout();
        let gradient = elements(&gradient_storage, layout)?;
        let (hidden_storage, layout) = hidden.storage_and_layout();
        let states = elements(&hidden_storage, layout)?;
        let (weight_storage, layout) = weight.storage_and_layout();
        let head = elements(&weight_storage, layout)?;
        let columns = self.per_row + 1;
        let scale = self.inverse_temperature as f32;
        if let (Some(expected), false) = (self.expected.get(), weight.track_op()) {
            let mut to_hidden = vec![0f32; states.len()];
            for (row, expected) in self.active.iter().zip(expected.chunks_exact(width)) {
                let gradient = &gradient[row * columns..(row + 1) * columns];
                self.hidden_gradient(
                    gradient,
                    *row,
                    expected,
                    head,
                    &mut to_hidden[row * width..(row + 1) * width],
                );
            }
            let to_hidden = Tensor::from_vec(to_hidden, hidden.shape(), hidden.device())?;
            return Ok((Some(to_hidden), None));
        }
        let mut to_hidden = hidden.track_op().then(|| vec![0f32; states.len()]);
        let mut to_weight = weight.track_op().then(|| vec![0f32; vocabulary * width]);
        let mut inputs = Vec::new();
        let mut part = vec![0f32; BACKWARD_ROWS * width];
        for chunk in self.active.chunks(BACKWARD_ROWS) {
            let shape = (vocabulary, width);
            let mut logits = self.logits(states, head, shape, chunk, &mut inputs)?;
            // d log softmax(z)[t] / dz = onehot(t) - p, and d logsumexp / dz = p.
            let rows = logits.chunks_exact_mut(vocabulary).zip(chunk);
            threads::each(rows, |(logits, row)| {
                let gradient = &gradient[row * columns..(row + 1) * columns];
                let total = exp_shifted(logits, maximum(logits));
                let mut common = gradient[self.per_row];
                for (place, _) in self.targets_of(*row) {
                    common -= gradient[place];
                }
                let factor = common / total;
                for value in logits.iter_mut() {
                    *value *= factor;
                }
                for (place, id) in self.targets_of(*row) {
                    logits[id] += gradient[place];
                }
            });
            let to_logits = Matrix::new(&logits, chunk.len(), vocabulary, vocabulary);
            if let Some(to_hidden) = &mut to_hidden {
                multiply(
                    &mut part,
                    width,
                    to_logits,
                    Matrix::new(head, vocabulary, width, width),
                    scale,
                    false,
                    Threads::All,
                )?;
                for (row, part) in chunk.iter().zip(part.chunks_exact(width)) {
                    to_hidden[row * width..(row + 1) * width].copy_from_slice(part);
                }
            }
            if let Some(to_weight) = &mut to_weight {
                multiply(
                    to_weight,
                    width,
                    to_logits.t(),
                    Matrix::new(&inputs, chunk.len(), width, width),
                    scale,
                    true,
                    Threads::All,
                )?;
            }
        }
        let tensor = |values: Option<Vec<f32>>, like: &Tensor| {
            values
                .map(|values| Tensor::from_vec(values, like.shape(), like.device()))
                .transpose()
        };
        Ok((tensor(to_hidden, hidden)?, tensor(to_weight, weight)?))
    }
}
