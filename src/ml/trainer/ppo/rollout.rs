//! Sampling completions and finding out what the updates need to know of them.

use super::PpoTrainer;
use crate::ml::generate::{Completion, GenerateOptions, Strategy, generate};
use crate::ml::head::HeadGradient;
use crate::ml::trainer::actions::Actions;
use crate::ml::trainer::rewards::Answer;
use crate::ml::trainer::{TokenizedCompletion, TrainError};

/// Completions that are scored between two looks at whether the training is to stop.
const SCORED: usize = 16;

/// A completion of a step.
#[derive(Debug, Clone)]
pub(super) struct Rollout {
    /// The prompt's place among those of the training.
    pub(super) prompt: usize,
    pub(super) row: TokenizedCompletion,
    /// Whether the horizon ended it.
    pub(super) truncated: bool,
    pub(super) score: f64,
    /// `log pi` of each token before the step's updates.
    pub(super) log_probs: Vec<f64>,
    /// The same under the reference model.
    pub(super) reference: Vec<f64>,
    /// Value of the state before each token, before the step's updates.
    pub(super) values: Vec<f64>,
    /// Not whitened.
    pub(super) advantages: Vec<f64>,
    pub(super) returns: Vec<f64>,
}

impl Rollout {
    fn new((prompt, tokens): (usize, &[u32]), mut completion: Completion, horizon: usize) -> Self {
        // A token depends on those before it alone, so a shorter horizon is a prefix.
        let cut = completion.tokens.len() > horizon;
        completion.tokens.truncate(horizon);
        Self {
            prompt,
            row: TokenizedCompletion::new(tokens, &completion.tokens),
            truncated: completion.truncated || cut,
            score: f64::NAN,
            log_probs: Vec::new(),
            reference: Vec::new(),
            values: Vec::new(),
            advantages: Vec::new(),
            returns: Vec::new(),
        }
    }

    pub(super) fn length(&self) -> usize {
        self.row.completion_length()
    }
}

impl PpoTrainer {
    /// Samples the completions of a step.
    pub(super) fn sample(&mut self, step: u64) -> Result<Vec<Rollout>, TrainError> {
        let items = self.epochs.at(step);
        let prompts: Vec<Vec<u32>> = items
            .iter()
            .map(|item| self.start.prompts[*item].clone())
            .collect();
        let first = step * self.options.batch_size as u64;
        let keys: Vec<u64> = (first..).take(prompts.len()).collect();
        let most = self.options.max_new_tokens;
        let eos = if self.options.ignore_eos {
            &[]
        } else {
            self.start.eos.as_slice()
        };
        let completions = generate(
            &self.start.model.llama,
            &prompts,
            &GenerateOptions::new(most, eos),
            &Strategy::Sampling(self.options.sampling),
            &self.streams.completions,
            &keys,
            &mut |_| self.cancel.flow(),
        )
        .map_err(TrainError::generating)?;
        let mut draws = self.streams.horizons.at(step);
        let horizons = prompts.iter().map(|_| match self.options.min_new_tokens {
            Some(least) => least + draws.below(most.saturating_sub(least) + 1),
            None => most,
        });
        let prompts = items.iter().copied();
        Ok(prompts
            .map(|item| (item, self.start.prompts[item].as_slice()))
            .zip(completions)
            .zip(horizons)
            .map(|((prompt, completion), horizon)| Rollout::new(prompt, completion, horizon))
            .collect())
    }

    /// Finds scores, values, and log-probabilities under policy and reference.
    pub(super) fn evaluate(&self, rollouts: &mut [Rollout]) -> Result<(), TrainError> {
        // Whoever gives rewards may work while the models do.
        self.start.rewards.ahead(&answers(rollouts))?;
        let policy = self.start.model.llama.detached();
        for chunk in rollouts.chunks_mut(self.options.micro_batch) {
            self.cancel.check()?;
            let rows: Vec<&TokenizedCompletion> =
                chunk.iter().map(|rollout| &rollout.row).collect();
            let actions = Actions::new(&rows);
            let states = actions.states(&policy.forward(&actions.batch)?, false)?;
            let values = self.value_head.apply(&states, HeadGradient::Detached)?;
            let log_probs = actions.by_row(&actions.log_probs(&policy, &states)?)?;
            let values = actions.by_row(&values)?;
            let reference = actions.frozen_log_probs(&self.start.reference)?;
            let reference = actions.by_row(&reference)?;
            let found = log_probs.into_iter().zip(reference).zip(values);
            for (rollout, ((log_probs, reference), values)) in chunk.iter_mut().zip(found) {
                rollout.log_probs = log_probs;
                rollout.reference = reference;
                rollout.values = values;
            }
        }
        let mut scores = Vec::with_capacity(rollouts.len());
        for answers in answers(rollouts).chunks(SCORED) {
            self.cancel.check()?;
            scores.extend(self.start.rewards.of_completions(answers)?);
        }
        if scores.len() != rollouts.len() {
            return Err(TrainError::Data(format!(
                "the reward model gave {} scores for {} completions",
                scores.len(),
                rollouts.len()
            )));
        }
        for (index, (rollout, score)) in rollouts.iter_mut().zip(scores).enumerate() {
            if !score.is_finite() {
                return Err(TrainError::Data(format!(
                    "the reward model gave completion {index} the score {score}"
                )));
            }
            rollout.score = score;
        }
        Ok(())
    }
}

fn answers(rollouts: &[Rollout]) -> Vec<Answer<'_>> {
    let answers = rollouts.iter().map(|rollout| Answer {
        prompt: rollout.prompt,
        completion: &rollout.row,
    });
    answers.collect()
}
