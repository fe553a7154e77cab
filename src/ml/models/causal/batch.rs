//! Token rows of different length.

use std::ops::Range;
use std::sync::Arc;

use crate::ml::kernels::attention::Masks;
use crate::ml::kernels::token_log_probs::IGNORED;

/// Rows of tokens of different length on one time axis.
#[derive(Debug, Clone)]
pub struct TokenBatch {
    tokens: Vec<u32>,
    time: usize,
    pub(super) spans: Arc<[Range<usize>]>,
    pub(super) masks: Arc<Masks>,
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
            masks: Arc::default(),
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

    /// Returns the position of each place within its row, 0 outside rows: rows x time.
    pub(super) fn positions(&self) -> Vec<u32> {
        let mut positions = vec![0; self.tokens.len()];
        for (row, span) in self.spans.iter().enumerate() {
            let places = &mut positions[row * self.time..][span.clone()];
            places
                .iter_mut()
                .zip(0..)
                .for_each(|(place, at)| *place = at);
        }
        positions
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
