//! The loop over rows: reading prompts, stepping, and letting finished rows go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;

use rayon::prelude::*;

use super::contrastive::{self, Candidate};
use super::decoder::{Decoder, HostDecoder};
use super::device_decoder::DeviceDecoder;
use super::distribution::{Choice, draw, largest, log_sum_exp, penalise};
use super::options::{
    Completion, Contrastive, GenerateError, GenerateOptions, Progress, Result, Strategy, check,
};
use crate::ml::models::causal::CausalLm;
use crate::random::{Draws, Stream};

/// Continues each prompt.
///
/// `row_keys` holds one number a prompt: a completion depends on its prompt, its key, the stream and the options,
/// and on nothing else, not on the other prompts or `batch_size`: to the last bit in the fused form, but for rounding in the
/// composed one. `progress` is called after each step and may stop the generation. The model's adapter acts, its dropout
/// does not.
pub fn generate(
    model: &CausalLm,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    strategy: &Strategy,
    stream: &Stream,
    row_keys: &[u64],
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<Completion>> {
    check(options, strategy)?;
    if row_keys.len() != prompts.len() {
        return Err(GenerateError::Option {
            reason: format!(
                "there are {} row keys for {} prompts",
                row_keys.len(),
                prompts.len()
            ),
        });
    }
    check_prompts(model, prompts, options, strategy)?;
    let model = model.settled()?;
    let job = Job {
        prompts,
        options,
        strategy,
        stream,
        row_keys,
    };
    if model.uses_fused_form() {
        job.run(&HostDecoder::new(&model), progress)
    } else {
        job.run(&DeviceDecoder::new(&model), progress)
    }
}

fn check_prompts(
    model: &CausalLm,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    strategy: &Strategy,
) -> Result<()> {
    let config = model.config();
    for (index, prompt) in prompts.iter().enumerate() {
        // The last new token is not read again, but contrastive search has read it when it chooses it.
        let unread = usize::from(!matches!(strategy, Strategy::Contrastive(_)));
        let positions = prompt.len() + options.max_new_tokens - unread;
        let unknown = prompt.iter().find(|id| **id as usize >= config.vocab_size);
        let reason = if prompt.is_empty() {
            "it is empty, expected at least a beginning-of-sequence token".to_owned()
        } else if let Some(id) = unknown {
            format!(
                "token {id} is outside the vocabulary of {}",
                config.vocab_size
            )
        } else if positions > config.max_position_embeddings {
            format!(
                "{} tokens and {} new ones exceed the model's {} positions",
                prompt.len(),
                options.max_new_tokens,
                config.max_position_embeddings
            )
        } else {
            continue;
        };
        return Err(GenerateError::Prompt { index, reason });
    }
    Ok(())
}

struct Job<'a> {
    prompts: &'a [Vec<u32>],
    options: &'a GenerateOptions,
    strategy: &'a Strategy,
    stream: &'a Stream,
    row_keys: &'a [u64],
}

/// A sequence that is being continued.
struct Row<M> {
    /// Place of the prompt in the list.
    index: usize,
    memory: M,
    /// Hidden state of the last token.
    hidden: Vec<f32>,
    /// Hidden states of the context at unit length, for contrastive search.
    context: Vec<f32>,
    /// Different tokens of prompt and completion, for the repetition penalty.
    seen: BTreeSet<u32>,
    draws: Draws,
    completion: Completion,
}

impl Job<'_> {
    fn run<D: Decoder>(
        &self,
        decoder: &D,
        progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Vec<Completion>> {
        let mut completions = vec![Completion::default(); self.prompts.len()];
        let mut waiting: VecDeque<usize> = (0..self.prompts.len()).collect();
        let mut rows: Vec<Row<D::Memory>> = Vec::new();
        let mut state = Progress {
            finished: 0,
            total: self.prompts.len(),
            tokens: 0,
        };
        while !(waiting.is_empty() && rows.is_empty()) {
            // Prompts are read several at a time: reading few is slow.
            if rows.len() <= self.options.batch_size / 2 {
                let free = (self.options.batch_size - rows.len()).min(waiting.len());
                let read = self.read(decoder, waiting.drain(..free), &mut || progress(state))?;
                rows.extend(read);
            }
            state.tokens += rows.len();
            let finished = self.advance(decoder, &mut rows)?;
            state.finished += finished.len();
            for row in finished {
                completions[row.index] = row.completion;
            }
            if progress(state).is_break() {
                return Err(GenerateError::Cancelled);
            }
        }
        Ok(completions)
    }

    /// Reads prompts, equal ones once; between two parts of them it asks whether to go on.
    fn read<D: Decoder>(
        &self,
        decoder: &D,
        indices: impl Iterator<Item = usize>,
        go_on: &mut dyn FnMut() -> ControlFlow<()>,
    ) -> Result<Vec<Row<D::Memory>>> {
        /// Tokens of a part: seconds for a model of some hundred million parameters.
        const TOKENS: usize = 4096;
        let indices: Vec<usize> = indices.collect();
        let mut places: BTreeMap<&[u32], usize> = BTreeMap::new();
        for index in &indices {
            let next = places.len();
            places.entry(&self.prompts[*index]).or_insert(next);
        }
        let mut distinct: Vec<&[u32]> = vec![&[]; places.len()];
        for (prompt, place) in &places {
            distinct[*place] = prompt;
        }
        let longest = distinct.iter().map(|prompt| prompt.len()).max();
        let part = (TOKENS / longest.unwrap_or(1).max(1)).max(1);
        let mut read = Vec::with_capacity(distinct.len());
        for prompts in distinct.chunks(part) {
            if !read.is_empty() && go_on().is_break() {
                return Err(GenerateError::Cancelled);
            }
            read.extend(decoder.read(prompts)?);
        }
        Ok(indices
            .into_iter()
            .map(|index| {
                let prompt = &self.prompts[index];
                let (memory, states) = &read[places[prompt.as_slice()]];
                let width = states.len() / prompt.len();
                Row {
                    index,
                    memory: memory.clone(),
                    hidden: states[states.len() - width..].to_vec(),
                    context: match self.strategy {
                        Strategy::Contrastive(_) => contrastive::unit_length(states, width),
                        Strategy::Greedy | Strategy::Sampling(_) => Vec::new(),
                    },
                    seen: prompt.iter().copied().collect(),
                    draws: self.stream.at(self.row_keys[index]),
                    completion: Completion::default(),
                }
            })
            .collect())
    }

    /// Gives every row its next token; takes out and returns the rows that end with it.
    fn advance<D: Decoder>(
        &self,
        decoder: &D,
        rows: &mut Vec<Row<D::Memory>>,
    ) -> Result<Vec<Row<D::Memory>>> {
        let hidden: Vec<f32> = rows
            .iter()
            .flat_map(|row| row.hidden.iter().copied())
            .collect();
        let logits = decoder.logits(&hidden)?;
        match self.strategy {
            Strategy::Contrastive(search) => self.search(decoder, rows, logits, search),
            Strategy::Greedy | Strategy::Sampling(_) => self.extend(decoder, rows, logits),
        }
    }

    /// Chooses tokens by their logits, then reads those of the rows that go on.
    fn extend<D: Decoder>(
        &self,
        decoder: &D,
        rows: &mut Vec<Row<D::Memory>>,
        mut logits: Vec<f32>,
    ) -> Result<Vec<Row<D::Memory>>> {
        let vocabulary = logits.len() / rows.len();
        let choices: Vec<Choice> = rows
            .par_iter_mut()
            .zip(logits.par_chunks_exact_mut(vocabulary))
            .map(|(row, logits)| self.choose(row, logits))
            .collect::<Result<_>>()?;
        for (row, choice) in rows.iter_mut().zip(&choices) {
            row.accept(choice);
        }
        let finished = self.remove_finished(rows);
        let tokens: Vec<(&D::Memory, u32)> = rows
            .iter()
            .filter_map(|row| Some((&row.memory, *row.completion.tokens.last()?)))
            .collect();
        if !tokens.is_empty() {
            let step = decoder.step(&tokens)?;
            let mut taken = Vec::with_capacity(rows.len());
            for (index, row) in rows.iter_mut().enumerate() {
                row.hidden = decoder.hidden(&step, index);
                taken.push((&mut row.memory, index));
            }
            decoder.take(taken, &step)?;
        }
        Ok(finished)
    }

    /// Tries each row's candidates, then chooses by the hidden states that they lead to.
    fn search<D: Decoder>(
        &self,
        decoder: &D,
        rows: &mut Vec<Row<D::Memory>>,
        mut logits: Vec<f32>,
        search: &Contrastive,
    ) -> Result<Vec<Row<D::Memory>>> {
        let vocabulary = logits.len() / rows.len();
        let candidates: Vec<Vec<Candidate>> = rows
            .par_iter()
            .zip(logits.par_chunks_exact_mut(vocabulary))
            .map(|(row, logits)| {
                let normaliser = row.normaliser(logits)?;
                let raw = logits.to_vec();
                self.penalise(row, logits);
                Ok(contrastive::candidates(logits, &raw, normaliser, search))
            })
            .collect::<Result<_>>()?;
        let tried: Vec<(&D::Memory, u32)> = rows
            .iter()
            .zip(&candidates)
            .flat_map(|(row, candidates)| candidates.iter().map(|c| (&row.memory, c.token)))
            .collect();
        let step = decoder.step(&tried)?;
        let mut first = 0;
        let mut taken = Vec::with_capacity(rows.len());
        for (row, candidates) in rows.iter_mut().zip(&candidates) {
            let states: Vec<Vec<f32>> = (first..first + candidates.len())
                .map(|index| decoder.hidden(&step, index))
                .collect();
            let best = contrastive::choose(candidates, &states, &row.context, search.alpha);
            row.accept(&Choice {
                token: candidates[best].token,
                log_prob: candidates[best].log_prob,
                sampling_log_prob: 0.0,
            });
            let width = states[best].len();
            let state = contrastive::unit_length(&states[best], width);
            row.context.extend(state);
            row.hidden.clone_from(&states[best]);
            taken.push((&mut row.memory, first + best));
            first += candidates.len();
        }
        decoder.take(taken, &step)?;
        Ok(self.remove_finished(rows))
    }

    /// Chooses by the highest logit or by a draw.
    fn choose<M>(&self, row: &mut Row<M>, logits: &mut [f32]) -> Result<Choice> {
        let normaliser = row.normaliser(logits)?;
        let raw = logits.to_vec();
        self.penalise(row, logits);
        let (token, sampling_log_prob) = match self.strategy {
            Strategy::Sampling(sampling) => draw(logits, sampling, row.draws.uniform()),
            Strategy::Greedy | Strategy::Contrastive(_) => (largest(logits), 0.0),
        };
        Ok(Choice {
            token,
            log_prob: raw[token as usize] - normaliser,
            sampling_log_prob,
        })
    }

    fn penalise<M>(&self, row: &Row<M>, logits: &mut [f32]) {
        if self.options.repetition_penalty != 1.0 {
            let penalty = self.options.repetition_penalty;
            penalise(logits, row.seen.iter().copied(), penalty);
        }
    }

    fn remove_finished<M>(&self, rows: &mut Vec<Row<M>>) -> Vec<Row<M>> {
        let mut finished = Vec::new();
        let mut left = Vec::with_capacity(rows.len());
        for mut row in rows.drain(..) {
            let tokens = &row.completion.tokens;
            let stopped = tokens
                .last()
                .is_some_and(|token| self.options.eos.contains(token));
            if stopped || tokens.len() >= self.options.max_new_tokens {
                row.completion.truncated = !stopped;
                finished.push(row);
            } else {
                left.push(row);
            }
        }
        *rows = left;
        finished
    }
}

impl<M> Row<M> {
    /// Returns `log sum exp` of the next token's logits.
    fn normaliser(&self, logits: &[f32]) -> Result<f32> {
        let normaliser = log_sum_exp(logits);
        if normaliser.is_finite() {
            return Ok(normaliser);
        }
        Err(GenerateError::NonFinite {
            index: self.index,
            tokens: self.completion.tokens.len(),
        })
    }

    fn accept(&mut self, choice: &Choice) {
        self.seen.insert(choice.token);
        self.completion.tokens.push(choice.token);
        self.completion.log_probs.push(choice.log_prob);
        self.completion
            .sampling_log_probs
            .push(choice.sampling_log_prob);
    }
}
