//! Decoding that keeps nothing but tokens and computes each sequence anew: what the decoders are held against.

use candle_core::DType;

use super::super::decoder::{Asking, Choosing, Decoder, Read};
use super::super::distribution::Choice;
use super::super::host_choice;
use super::super::host_decoder::read;
use super::super::options::{Contrastive, Result};
use crate::ml::models::causal::{CausalLm, TokenBatch};

pub(super) struct Recompute<'a> {
    model: &'a CausalLm,
}

/// Hidden states after a step (tokens x hidden size) and the tokens themselves.
pub(super) struct Step {
    hidden: Vec<Vec<f32>>,
    tokens: Vec<u32>,
}

impl<'a> Recompute<'a> {
    pub(super) fn new(model: &'a CausalLm) -> Self {
        Self { model }
    }

    fn states(&self, rows: &[Vec<u32>]) -> Result<Vec<Vec<Vec<f32>>>> {
        let batch = TokenBatch::right_padded(rows);
        let states = self.model.forward(&batch)?.to_dtype(DType::F32)?;
        let mut states: Vec<Vec<Vec<f32>>> = states.to_vec3()?;
        for (states, row) in states.iter_mut().zip(rows) {
            states.truncate(row.len());
        }
        Ok(states)
    }
}

impl Decoder for Recompute<'_> {
    type Memory = Vec<u32>;
    type Step = Step;
    type State = Vec<f32>;
    type Context = Vec<f32>;

    fn read(&self, prompts: &[&[u32]], looks_back: bool) -> Result<Vec<Read<Self>>> {
        let rows: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.to_vec()).collect();
        let states = self.states(&rows)?;
        Ok(rows
            .into_iter()
            .zip(states)
            .map(|(row, states)| read(row, &states.concat(), states[0].len(), looks_back))
            .collect())
    }

    fn step(&self, tokens: &[(&Vec<u32>, u32)]) -> Result<Step> {
        let rows: Vec<Vec<u32>> = tokens
            .iter()
            .map(|(row, token)| row.iter().chain([token]).copied().collect())
            .collect();
        let states = self.states(&rows)?;
        Ok(Step {
            hidden: states.into_iter().filter_map(|mut s| s.pop()).collect(),
            tokens: tokens.iter().map(|(_, token)| *token).collect(),
        })
    }

    fn state(&self, step: &Step, index: usize) -> Result<Vec<f32>> {
        Ok(step.hidden[index].clone())
    }

    fn take(&self, taken: Vec<(&mut Vec<u32>, usize)>, step: &Step) -> Result<()> {
        for (memory, index) in taken {
            memory.push(step.tokens[index]);
        }
        Ok(())
    }

    fn choose(&self, rows: &[Asking<'_, Self>], how: &Choosing<'_>) -> Result<Vec<Choice>> {
        host_choice::choose(self.model, rows, how)
    }

    fn search(
        &self,
        rows: &[Asking<'_, Self>],
        search: &Contrastive,
        how: &Choosing<'_>,
    ) -> Result<(Vec<(Choice, usize)>, Step)> {
        host_choice::search(self, self.model, rows, search, how)
    }

    fn look_back(&self, context: &mut Vec<f32>, state: &Vec<f32>) -> Result<()> {
        host_choice::look_back(context, state);
        Ok(())
    }
}
