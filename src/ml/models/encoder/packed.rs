//! Rows of tokens, one after the other.

use std::ops::Range;

use candle_core::{Device, Tensor};

use super::{EncoderConfig, EncoderError, Positions};

/// A batch of rows without padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedTokens {
    ids: Vec<u32>,
    spans: Vec<Range<usize>>,
}

impl PackedTokens {
    /// Packs rows of token ids.
    pub fn new<R: AsRef<[u32]>>(rows: &[R]) -> Self {
        let mut ids = Vec::new();
        let spans = rows
            .iter()
            .map(|row| {
                let start = ids.len();
                ids.extend_from_slice(row.as_ref());
                start..ids.len()
            })
            .collect();
        Self { ids, spans }
    }

    /// Packs rows, in order, into batches of at most `tokens` tokens, or a single row that is longer.
    pub fn batches<R: AsRef<[u32]>>(rows: &[R], tokens: usize) -> Vec<Self> {
        let mut batches = Vec::new();
        let (mut start, mut count) = (0, 0);
        for (index, row) in rows.iter().enumerate() {
            let length = row.as_ref().len();
            if index > start && count + length > tokens {
                batches.push(Self::new(&rows[start..index]));
                (start, count) = (index, 0);
            }
            count += length;
        }
        if start < rows.len() {
            batches.push(Self::new(&rows[start..]));
        }
        batches
    }

    /// Returns where each row lies.
    pub fn spans(&self) -> &[Range<usize>] {
        &self.spans
    }

    pub(super) fn check(&self, config: &EncoderConfig) -> Result<(), EncoderError> {
        let limit = config.max_tokens();
        for (row, span) in self.spans.iter().enumerate() {
            let tokens = span.len();
            if tokens == 0 {
                return Err(EncoderError::EmptyRow { row });
            }
            if tokens > limit {
                return Err(EncoderError::TooLong { row, tokens, limit });
            }
            let vocab_size = config.vocab_size;
            if let Some(&id) = self.ids[span.clone()]
                .iter()
                .find(|id| **id as usize >= vocab_size)
            {
                return Err(EncoderError::UnknownToken {
                    row,
                    id,
                    vocab_size,
                });
            }
        }
        if self.spans.is_empty() {
            return Err(EncoderError::EmptyRow { row: 0 });
        }
        Ok(())
    }

    pub(super) fn ids(&self, device: &Device) -> candle_core::Result<Tensor> {
        Tensor::new(self.ids.as_slice(), device)
    }

    /// Tells which tokens are padding elsewhere; empty if there are none.
    pub(super) fn padding(&self, config: &EncoderConfig) -> Vec<bool> {
        let id = config.padding_id.filter(|id| self.ids.contains(id));
        id.map_or_else(Vec::new, |id| self.ids.iter().map(|at| *at == id).collect())
    }

    /// Returns each token's row in the table of positions.
    pub(super) fn positions(
        &self,
        positions: Positions,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let mut rows = Vec::with_capacity(self.ids.len());
        for span in &self.spans {
            match positions {
                Positions::FromZero => rows.extend(0..span.len() as u32),
                Positions::AfterPadding(padding) => {
                    let mut last = padding;
                    rows.extend(self.ids[span.clone()].iter().map(|id| {
                        if *id == padding {
                            return padding;
                        }
                        last += 1;
                        last
                    }));
                }
            }
        }
        Tensor::new(rows, device)
    }

    /// Returns the index of each row's first token.
    pub(super) fn starts(&self, device: &Device) -> candle_core::Result<Tensor> {
        let starts: Vec<u32> = self.spans.iter().map(|span| span.start as u32).collect();
        Tensor::new(starts, device)
    }
}
