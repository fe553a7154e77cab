//! The actions of a batch: completion tokens, aligned so that column t is the t-th action of each row.
//!
//! A prompt of p tokens is state s_0; after t actions the state is the hidden state at place p - 1 + t. Only
//! these places enter losses, so only they go through the output head.

use candle_core::{D, DType, Tensor};

use super::batches::TokenizedCompletion;
use crate::ml::kernels::sums::{column_means, cumulative};
use crate::ml::kernels::token_log_probs::IGNORED;
use crate::ml::models::causal::{CausalLm, CausalLmError, TokenBatch};

/// A right-padded batch and where its actions are.
#[derive(Debug, Clone)]
pub struct Actions {
    /// The tokens.
    pub batch: TokenBatch,
    /// Actions of each row.
    pub lengths: Vec<usize>,
    starts: Vec<usize>,
    /// Columns: actions of the longest row.
    columns: usize,
    targets: Vec<u32>,
}

impl Actions {
    /// Aligns rows; each has at least one token of prompt and one action.
    pub fn new(rows: &[&TokenizedCompletion]) -> Self {
        let tokens: Vec<&[u32]> = rows.iter().map(|row| row.tokens.as_slice()).collect();
        let lengths: Vec<usize> = rows.iter().map(|row| row.completion_length()).collect();
        let columns = lengths.iter().copied().max().unwrap_or(0);
        let mut targets = vec![IGNORED; rows.len() * columns];
        for (index, row) in rows.iter().enumerate() {
            let actions = &row.tokens[row.prompt_length..];
            targets[index * columns..][..actions.len()].copy_from_slice(actions);
        }
        Self {
            batch: TokenBatch::right_padded(&tokens),
            starts: rows.iter().map(|row| row.prompt_length - 1).collect(),
            lengths,
            columns,
            targets,
        }
    }

    /// Returns the hidden states before each action, and after the last if `with_terminal`:
    /// (rows, time, hidden) to (rows, columns [+ 1], hidden). Columns past a row's end repeat its last state.
    pub fn states(&self, hidden: &Tensor, with_terminal: bool) -> candle_core::Result<Tensor> {
        let width = hidden.dim(2)?;
        let columns = self.columns + usize::from(with_terminal);
        let flat = hidden.reshape(((), width))?;
        flat.index_select(&self.places(columns, hidden.device())?, 0)?
            .reshape((self.lengths.len(), columns, width))
    }

    /// Returns the mean of each prompt's hidden states without that of its last token, or of that alone if there is no
    /// other: (rows, time, hidden) to (rows, hidden), in `f32`.
    pub fn prompt_means(&self, hidden: &Tensor) -> candle_core::Result<Tensor> {
        let hidden = hidden.to_dtype(DType::F32)?;
        let means =
            self.starts.iter().enumerate().map(|(row, start)| {
                column_means(&hidden.get(row)?.narrow(0, 0, (*start).max(1))?)
            });
        Tensor::stack(&means.collect::<candle_core::Result<Vec<_>>>()?, 0)
    }

    /// Returns per-place numbers of every state, the terminal among them: (rows, time) to (rows, columns + 1).
    pub fn per_state(&self, values: &Tensor) -> candle_core::Result<Tensor> {
        let columns = self.columns + 1;
        let flat = values.flatten_all()?;
        flat.index_select(&self.places(columns, values.device())?, 0)?
            .reshape((self.lengths.len(), columns))
    }

    fn places(&self, columns: usize, device: &candle_core::Device) -> candle_core::Result<Tensor> {
        let time = self.batch.time();
        let places: Vec<u32> = (0..self.lengths.len())
            .flat_map(|row| {
                let last = self.starts[row] + self.lengths[row];
                (0..columns)
                    .map(move |column| (row * time + (self.starts[row] + column).min(last)) as u32)
            })
            .collect();
        let count = places.len();
        Tensor::from_vec(places, count, device)
    }

    /// Returns the log-probability of each action under the model: (rows, columns), 0 past a row's end.
    ///
    /// `states` are those of [`Self::states`] without the terminal.
    pub fn log_probs(&self, model: &CausalLm, states: &Tensor) -> Result<Tensor, CausalLmError> {
        Ok(model
            .log_probs(states, &self.targets, 1.0)?
            .log_probs
            .squeeze(2)?)
    }

    /// Returns the log-probability of each action under a frozen model, by a forward pass of its own.
    pub fn frozen_log_probs(&self, model: &CausalLm) -> Result<Tensor, CausalLmError> {
        self.frozen_log_probs_at(model, 1.0)
    }

    /// The same, the logits being divided by a temperature.
    pub fn frozen_log_probs_at(
        &self,
        model: &CausalLm,
        temperature: f64,
    ) -> Result<Tensor, CausalLmError> {
        let hidden = model.forward(&self.batch)?;
        let states = self.states(&hidden, false)?;
        let found = model.log_probs(&states, &self.targets, temperature)?;
        Ok(found.log_probs.squeeze(2)?.detach())
    }

    /// Returns the number of columns: actions of the longest row.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Returns the log-probabilities of the action taken and of `stop` in each state: (rows, columns + 1) twice, 0 past
    /// a row's end.
    ///
    /// `states` are those of [`Self::states`] with the terminal, in which no action is taken. A temperature divides the
    /// logits.
    pub fn log_probs_and_stops(
        &self,
        model: &CausalLm,
        states: &Tensor,
        stop: u32,
        temperature: f64,
    ) -> Result<(Tensor, Tensor), CausalLmError> {
        self.log_probs_of(
            model,
            states,
            |row, column| self.action(row, column),
            stop,
            temperature,
        )
    }

    /// The same, the actions scored being those that `action(row, column)` says.
    pub fn log_probs_of(
        &self,
        model: &CausalLm,
        states: &Tensor,
        action: impl Fn(usize, usize) -> u32,
        stop: u32,
        temperature: f64,
    ) -> Result<(Tensor, Tensor), CausalLmError> {
        let mut targets = Vec::with_capacity(self.lengths.len() * (self.columns + 1) * 2);
        for (row, length) in self.lengths.iter().enumerate() {
            for column in 0..=self.columns {
                let targets_here = if column <= *length {
                    [action(row, column), stop]
                } else {
                    [IGNORED; 2]
                };
                targets.extend(targets_here);
            }
        }
        let found = model.log_probs(states, &targets, temperature)?.log_probs;
        let of = |which: usize| found.narrow(2, which, 1)?.squeeze(2);
        Ok((of(0)?, of(1)?))
    }

    /// The action that a row takes in a column, if it takes one there.
    pub fn action(&self, row: usize, column: usize) -> u32 {
        if column < self.lengths[row] {
            self.targets[row * self.columns + column]
        } else {
            IGNORED
        }
    }

    /// Returns `sum_{i <= t} log p(y_i) + log p(stop | s_t)` in each state t, from (rows, columns + 1) twice.
    ///
    /// In the last state of a row that the horizon ended (`forced`) the stop is certain.
    pub fn prefix_sums(
        &self,
        log_probs: &Tensor,
        log_stop: &Tensor,
        forced: &[bool],
    ) -> candle_core::Result<Tensor> {
        let (rows, device) = (self.lengths.len(), log_probs.device());
        let start = Tensor::zeros((rows, 1), log_probs.dtype(), device)?;
        let taken = log_probs.narrow(1, 0, self.columns)?;
        let sums = Tensor::cat(&[&start, &cumulative(&taken)?], 1)?;
        let mut free = vec![1f32; rows * (self.columns + 1)];
        for (row, length) in self.lengths.iter().enumerate() {
            if forced[row] {
                free[row * (self.columns + 1) + length] = 0.0;
            }
        }
        let free = Tensor::from_vec(free, (rows, self.columns + 1), device)?;
        sums + (log_stop * free.to_dtype(log_stop.dtype())?)?
    }

    /// Returns, for each row, the mean over its actions of the entropy, in nats, of the distribution that the action
    /// was chosen from, at temperature 1: H = log sum_v exp z_v - sum_v p_v z_v with logits z.
    ///
    /// `states` are those of [`Self::states`] without the terminal. One row at a time goes through the output head:
    /// the logits of a whole batch would not fit, and no row depends on its neighbours.
    pub fn mean_entropies(
        &self,
        model: &CausalLm,
        states: &Tensor,
    ) -> Result<Vec<f64>, CausalLmError> {
        if !model.uses_fused_form() {
            return self.composed_mean_entropies(model, states);
        }
        let mut means = Vec::with_capacity(self.lengths.len());
        for (row, length) in self.lengths.iter().enumerate() {
            // (actions, hidden) to (actions, vocab)
            let states = states.get(row)?.narrow(0, 0, *length)?.contiguous()?;
            let logits = model.logits(&states)?.to_vec2::<f32>()?;
            let sum: f64 = logits.iter().map(|logits| entropy(logits)).sum();
            means.push(sum / *length as f64);
        }
        Ok(means)
    }

    /// The composed form of [`Self::mean_entropies`], which brings back one number a row.
    #[expect(clippy::disallowed_methods, reason = "the composed form")]
    fn composed_mean_entropies(
        &self,
        model: &CausalLm,
        states: &Tensor,
    ) -> Result<Vec<f64>, CausalLmError> {
        let mut means = Vec::with_capacity(self.lengths.len());
        for (row, length) in self.lengths.iter().enumerate() {
            let states = states.get(row)?.narrow(0, 0, *length)?.contiguous()?;
            // A forbidden token: 0 times infinity is 0 here.
            let logits = model
                .logits(&states)?
                .to_dtype(DType::F32)?
                .maximum(-1e30f32)?;
            let weights = candle_nn::ops::softmax(&logits, D::Minus1)?;
            let expected = (weights * &logits)?.sum(D::Minus1)?;
            means.push((logits.log_sum_exp(D::Minus1)? - expected)?.mean(0)?);
        }
        let means: Vec<f32> = Tensor::stack(&means, 0)?.to_vec1()?;
        Ok(means.into_iter().map(f64::from).collect())
    }

    /// Takes the numbers of each row's actions: (rows, columns) to one list a row.
    pub fn by_row(&self, values: &Tensor) -> candle_core::Result<Vec<Vec<f64>>> {
        let rows = values.detach().to_dtype(DType::F64)?.to_vec2::<f64>()?;
        let rows = rows.into_iter().zip(&self.lengths);
        Ok(rows
            .map(|(mut row, length)| {
                row.truncate(*length);
                row
            })
            .collect())
    }

    /// Returns the lengths of the rows in tokens, for counting operations.
    pub fn row_lengths(&self) -> impl Iterator<Item = usize> + '_ {
        self.batch.spans().iter().map(ExactSizeIterator::len)
    }

    /// Returns the number of actions in all rows.
    pub fn count(&self) -> usize {
        self.lengths.iter().sum()
    }
}

/// The entropy of `softmax(logits)` in nats.
fn entropy(logits: &[f32]) -> f64 {
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // With logits shifted by the greatest: H = ln Z - sum_v e^{z_v} z_v / Z.
    let (mut normaliser, mut weighted) = (0.0, 0.0);
    for logit in logits {
        let shifted = f64::from(logit - greatest);
        let weight = libm::exp(shifted);
        // A forbidden token: 0 times infinity is 0 here.
        if weight > 0.0 {
            normaliser += weight;
            weighted += weight * shifted;
        }
    }
    libm::log(normaliser) - weighted / normaliser
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ml::kernels::form::bits_are_promised;
    use crate::ml::kernels::rope::RopeLayout;
    use crate::ml::models::causal::LlamaConfig;
    use crate::ml::models::causal::{Training, init};
    use crate::random::Stream;

    fn small_model() -> CausalLm {
        let config = LlamaConfig {
            vocab_size: 12,
            hidden_size: 16,
            intermediate_size: 24,
            num_layers: 2,
            num_heads: 2,
            num_kv_heads: 1,
            rope_theta: 1e4,
            rope_layout: RopeLayout::HalfSplit,
            rms_norm_eps: 1e-5,
            tie_word_embeddings: false,
            max_position_embeddings: 32,
        };
        let mut weights = init(&config, &Stream::new(5, "entropy"), &Device::Cpu).unwrap();
        // Initial weights are so small that all tokens are about equally probable.
        for weight in weights.values_mut().filter(|weight| weight.rank() == 2) {
            *weight = weight.affine(10.0, 0.0).unwrap();
        }
        CausalLm::new(&config, &weights, Training::Frozen).unwrap()
    }

    #[test]
    fn a_rows_entropy_is_that_of_its_own_distributions_whatever_is_beside_it() {
        let model = small_model();
        let rows = [
            (vec![1, 4, 5, 6, 7, 2], 2),
            (vec![1, 8, 2], 2),
            (vec![3, 3, 9, 10, 11, 5, 4, 2], 3),
        ]
        .map(|(tokens, prompt_length)| TokenizedCompletion {
            tokens,
            prompt_length,
        });
        let entropies = |rows: &[&TokenizedCompletion]| {
            let actions = Actions::new(rows);
            let hidden = model.forward(&actions.batch).unwrap();
            let states = actions.states(&hidden, false).unwrap();
            actions.mean_entropies(&model, &states).unwrap()
        };
        let together = entropies(&rows.iter().collect::<Vec<_>>());
        for (row, found) in rows.iter().zip(&together) {
            let alone = entropies(&[row]);
            assert!((alone[0] - found).abs() < 1e-6);
            assert!(!bits_are_promised() || alone[0] == *found);
            // By the definition, token by token over the whole vocabulary.
            let batch = TokenBatch::right_padded(std::slice::from_ref(&row.tokens));
            let logits = model.logits(&model.forward(&batch).unwrap()).unwrap();
            let logits = logits.get(0).unwrap().to_vec2::<f32>().unwrap();
            let places = row.prompt_length - 1..row.tokens.len() - 1;
            let each = logits[places].iter().map(|logits| {
                let weights: Vec<f64> = logits.iter().map(|z| f64::from(*z).exp()).collect();
                let total: f64 = weights.iter().sum();
                let terms = weights.iter().map(|w| -w / total * (w / total).ln());
                terms.sum::<f64>()
            });
            let expected = each.sum::<f64>() / row.completion_length() as f64;
            assert!((found - expected).abs() < 1e-5, "{found}, not {expected}");
        }
        assert!((together[0] - together[1]).abs() > 1e-3, "{together:?}");
    }

    #[test]
    fn entropies_are_those_of_known_distributions() {
        assert!((entropy(&[3.0; 8]) - 8f64.ln()).abs() < 1e-15);
        assert!(entropy(&[0.0, 200.0, f32::NEG_INFINITY]).abs() < 1e-15);
        // Probabilities 1/2, 1/4, 1/4 and 0.
        let halves = [0.0, 0.5f32.ln(), 0.5f32.ln(), f32::NEG_INFINITY].map(|z| z + 100.0);
        let found = entropy(&halves);
        assert!((found - 1.5 * 2f64.ln()).abs() < 1e-5, "{found}");
    }
}
