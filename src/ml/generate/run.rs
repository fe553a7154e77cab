//! The loop over rows: reading prompts, stepping, and letting finished rows go.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;

use super::decoder::{Asking, Choosing, Decoder, Read};
use super::device_decoder::DeviceDecoder;
use super::distribution::Choice;
use super::host_decoder::HostDecoder;
use super::options::{
    Completion, GenerateError, GenerateOptions, Progress, Result, Strategy, check,
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
    let rows = prompts.len().min(options.batch_size).max(1);
    let steps = options
        .max_new_tokens
        .saturating_mul(prompts.len().div_ceil(rows));
    let tried = match strategy {
        Strategy::Contrastive(search) => search.top_k,
        Strategy::Greedy | Strategy::Sampling(_) => 1,
    };
    let model = model.for_generation(steps, rows.saturating_mul(tried))?;
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
struct Row<D: Decoder> {
    /// Place of the prompt in the list.
    index: usize,
    memory: D::Memory,
    /// Hidden state of the last token.
    state: D::State,
    /// Hidden states of the context, for contrastive search.
    context: Option<D::Context>,
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
        let mut rows: Vec<Row<D>> = Vec::new();
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
    ) -> Result<Vec<Row<D>>> {
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
        let looks_back = matches!(self.strategy, Strategy::Contrastive(_));
        let mut read = Vec::with_capacity(distinct.len());
        for prompts in distinct.chunks(part) {
            if !read.is_empty() && go_on().is_break() {
                return Err(GenerateError::Cancelled);
            }
            read.extend(decoder.read(prompts, looks_back)?);
        }
        Ok(indices
            .into_iter()
            .map(|index| {
                let prompt = &self.prompts[index];
                let Read {
                    memory,
                    state,
                    context,
                } = read[places[prompt.as_slice()]].clone();
                Row {
                    index,
                    memory,
                    state,
                    context,
                    seen: prompt.iter().copied().collect(),
                    draws: self.stream.at(self.row_keys[index]),
                    completion: Completion::default(),
                }
            })
            .collect())
    }

    /// Gives every row its next token; takes out and returns the rows that end with it.
    fn advance<D: Decoder>(&self, decoder: &D, rows: &mut Vec<Row<D>>) -> Result<Vec<Row<D>>> {
        let uniforms: Vec<f64> = rows
            .iter_mut()
            .map(|row| match self.strategy {
                Strategy::Sampling(_) => row.draws.uniform(),
                Strategy::Greedy | Strategy::Contrastive(_) => 0.0,
            })
            .collect();
        let asking: Vec<Asking<'_, D>> = rows
            .iter()
            .zip(uniforms)
            .map(|(row, uniform)| Asking {
                memory: &row.memory,
                state: &row.state,
                context: row.context.as_ref(),
                seen: &row.seen,
                uniform,
            })
            .collect();
        let how = Choosing {
            strategy: self.strategy,
            repetition_penalty: self.options.repetition_penalty,
        };
        match self.strategy {
            Strategy::Contrastive(search) => {
                let (chosen, step) = decoder.search(&asking, search, &how)?;
                self.follow(decoder, rows, chosen, &step)
            }
            Strategy::Greedy | Strategy::Sampling(_) => {
                let chosen = decoder.choose(&asking, &how)?;
                self.extend(decoder, rows, chosen)
            }
        }
    }

    /// Takes the tokens that were chosen, then reads those of the rows that go on.
    fn extend<D: Decoder>(
        &self,
        decoder: &D,
        rows: &mut Vec<Row<D>>,
        chosen: Vec<Choice>,
    ) -> Result<Vec<Row<D>>> {
        for (row, choice) in rows.iter_mut().zip(chosen) {
            row.accept(choice)?;
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
                row.state = decoder.state(&step, index)?;
                taken.push((&mut row.memory, index));
            }
            decoder.take(taken, &step)?;
        }
        Ok(finished)
    }

    /// Takes the tokens that were chosen among those of a step.
    fn follow<D: Decoder>(
        &self,
        decoder: &D,
        rows: &mut Vec<Row<D>>,
        chosen: Vec<(Choice, usize)>,
        step: &D::Step,
    ) -> Result<Vec<Row<D>>> {
        let mut taken = Vec::with_capacity(rows.len());
        for (row, (choice, index)) in rows.iter_mut().zip(chosen) {
            row.accept(choice)?;
            row.state = decoder.state(step, index)?;
            if let Some(context) = &mut row.context {
                decoder.look_back(context, &row.state)?;
            }
            taken.push((&mut row.memory, index));
        }
        decoder.take(taken, step)?;
        Ok(self.remove_finished(rows))
    }

    fn remove_finished<D: Decoder>(&self, rows: &mut Vec<Row<D>>) -> Vec<Row<D>> {
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

impl<D: Decoder> Row<D> {
    fn accept(&mut self, choice: Choice) -> Result<()> {
        if !choice.normaliser.is_finite() {
            return Err(GenerateError::NonFinite {
                index: self.index,
                tokens: self.completion.tokens.len(),
            });
        }
        self.seen.insert(choice.token);
        self.completion.tokens.push(choice.token);
        self.completion.log_probs.push(choice.log_prob);
        self.completion
            .sampling_log_probs
            .push(choice.sampling_log_prob);
        Ok(())
    }
}
