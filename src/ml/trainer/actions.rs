//! The actions of a batch: completion tokens, aligned so that column t is the t-th action of each row.
//!
//! A prompt of p tokens is state s_0; after t actions the state is the hidden state at place p - 1 + t. Only
//! these places enter losses, so only they go through the output head.

use candle_core::Tensor;

use super::batches::TokenizedCompletion;
use crate::ml::kernels::token_log_probs::IGNORED;
use crate::ml::llama::{Llama, LlamaError, TokenBatch};

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
    pub fn log_probs(&self, model: &Llama, states: &Tensor) -> Result<Tensor, LlamaError> {
        Ok(model
            .log_probs(states, &self.targets, 1.0)?
            .log_probs
            .squeeze(2)?)
    }

    /// Returns the log-probability of each action under a frozen model, by a forward pass of its own.
    pub fn frozen_log_probs(&self, model: &Llama) -> Result<Tensor, LlamaError> {
        let hidden = model.forward(&self.batch)?;
        Ok(self
            .log_probs(model, &self.states(&hidden, false)?)?
            .detach())
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
        model: &Llama,
        states: &Tensor,
        stop: u32,
        temperature: f64,
    ) -> Result<(Tensor, Tensor), LlamaError> {
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
        model: &Llama,
        states: &Tensor,
        action: impl Fn(usize, usize) -> u32,
        stop: u32,
        temperature: f64,
    ) -> Result<(Tensor, Tensor), LlamaError> {
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
        let sums = Tensor::cat(&[&start, &taken.cumsum(1)?], 1)?;
        let mut free = vec![1f32; rows * (self.columns + 1)];
        for (row, length) in self.lengths.iter().enumerate() {
            if forced[row] {
                free[row * (self.columns + 1) + length] = 0.0;
            }
        }
        let free = Tensor::from_vec(free, (rows, self.columns + 1), device)?;
        sums + (log_stop * free.to_dtype(log_stop.dtype())?)?
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
