//! The loss of some completions, by objective.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use super::{GflownetTrainer, LogZSource, Objective, TokenizedCompletion, TrainError};
use crate::ml::head::{HeadGradient, NetworkDropout};
use crate::ml::models::causal::TokenBatch;
use crate::ml::objectives::branching::Branching;
use crate::ml::objectives::forward_looking::{ForwardLookingOptions, StateFlows, forward_looking};
use crate::ml::objectives::importance::{importance_weights, summed_log_probs};
use crate::ml::objectives::terminable::{TerminableTrajectories, modified_sub_trajectory_balance};
use crate::ml::objectives::trajectory_balance::{
    LogZ, TrajectoryBalanceOptions, weighted_trajectory_balance,
};
use crate::ml::objectives::{Normaliser, Trajectories};
use crate::ml::trainer::actions::Actions;
use crate::ml::trainer::batches::tokens_before_end;
use crate::ml::trainer::flops::{backward_flops, forward_flops};

/// What a micro-batch gives.
pub(super) struct Found {
    pub(super) loss: Tensor,
    pub(super) rows: usize,
    pub(super) log_z: f64,
    pub(super) log_r: f64,
    pub(super) log_pf: f64,
    pub(super) log_ratio: Option<f64>,
    /// Mean importance weight.
    pub(super) weight: Option<f64>,
    /// Root of the mean squared residual.
    pub(super) residual: f64,
    pub(super) flops: f64,
}

/// Some prompts of a step.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    /// For each prompt, its completions.
    pub(super) groups: &'a [Vec<TokenizedCompletion>],
    /// The place of the first completion among those of the step.
    pub(super) first_row: usize,
    /// Summed log-probabilities of the completions when they were drawn.
    pub(super) drawn: Option<&'a [f64]>,
}

/// Where log Z comes from, with its values where they are at hand.
#[derive(Clone, Copy)]
enum PromptLogZ<'a> {
    Network(&'a Tensor),
    Other(LogZSource),
}

/// Names the prompt of each row.
pub(super) fn prompt_of(groups: &[Vec<TokenizedCompletion>]) -> Vec<usize> {
    let groups = groups.iter().enumerate();
    groups
        .flat_map(|(prompt, group)| std::iter::repeat_n(prompt, group.len()))
        .collect()
}

impl GflownetTrainer {
    /// Returns the units of the loss's mean that the completions of a step bring.
    pub(super) fn units(&self, rows: &[&TokenizedCompletion]) -> f64 {
        let actions = || {
            rows.iter()
                .map(|row| row.completion_length())
                .collect::<Vec<_>>()
        };
        match self.options.objective {
            Objective::TrajectoryBalance { .. } => rows.len() as f64,
            Objective::StateFlows { windows, .. } => windows.units(&actions()),
            Objective::Terminable { windows } => {
                let (tokens, _) = tokens_before_end(rows, &self.options.eos);
                windows.units(&tokens)
            }
        }
    }

    /// Computes the loss of some prompts of the step.
    pub(super) fn loss(
        &self,
        step: u64,
        part: Part<'_>,
        normaliser: Normaliser,
    ) -> Result<Found, TrainError> {
        let rows: Vec<&TokenizedCompletion> = part.groups.iter().flatten().collect();
        let prompt_of = prompt_of(part.groups);
        let actions = Actions::new(&rows);
        let llama = &self.model.llama;
        let hidden = llama.forward_training(&actions.batch, self.model.dropout(step).as_ref())?;
        let states = actions.states(&hidden, true)?;
        let forward = forward_flops(&self.size, actions.row_lengths());
        let mut flops = forward + backward_flops(&self.size, forward);
        flops += forward_flops(&self.reward_size, actions.row_lengths());
        if self.needs_reference() {
            flops += forward;
        }
        let mut found = match self.options.objective {
            Objective::TrajectoryBalance { log_z, .. } => {
                let network = self.network_log_z(step, part, &actions, &hidden)?;
                let log_z = match (log_z, &network) {
                    (_, Some(network)) => PromptLogZ::Network(network),
                    (log_z, None) => PromptLogZ::Other(log_z),
                };
                self.trajectory_balance(step, part, &actions, &states, log_z, normaliser)?
            }
            Objective::StateFlows { .. } => {
                self.state_flows(step, &rows, &actions, &states, &prompt_of, normaliser)?
            }
            Objective::Terminable { .. } => {
                self.terminable(step, &rows, &actions, &states, normaliser)?
            }
        };
        found.flops = flops;
        Ok(found)
    }

    /// Returns log-probabilities of the actions under policy and, where it is needed, reference.
    fn log_probs(
        &self,
        actions: &Actions,
        states: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>), TrainError> {
        let columns = states.dim(1)? - 1;
        let before = states.narrow(1, 0, columns)?.contiguous()?;
        let log_pf = actions.log_probs(&self.model.llama, &before)?;
        let reference = self
            .needs_reference()
            .then(|| actions.frozen_log_probs(&self.reference))
            .transpose()?;
        Ok((log_pf, reference))
    }

    pub(super) fn balance_options(&self) -> TrajectoryBalanceOptions {
        TrajectoryBalanceOptions {
            reference: self.options.reference,
            length_normalised: matches!(
                self.options.objective,
                Objective::TrajectoryBalance {
                    length_normalised: true,
                    ..
                }
            ),
        }
    }

    /// Applies the network for log Z, if there is one, to the prompt of each row.
    fn network_log_z(
        &self,
        step: u64,
        part: Part<'_>,
        actions: &Actions,
        hidden: &Tensor,
    ) -> Result<Option<Tensor>, TrainError> {
        let Some(network) = &self.log_z_network else {
            return Ok(None);
        };
        let dropout = NetworkDropout {
            stream: self.log_z_dropout.child(&step.to_string()),
            first_row: part.first_row as u64,
        };
        let means = actions.prompt_means(hidden)?;
        Ok(Some(network.apply(&means, Some(&dropout))?))
    }

    fn trajectory_balance(
        &self,
        step: u64,
        part: Part<'_>,
        actions: &Actions,
        states: &Tensor,
        log_z: PromptLogZ<'_>,
        normaliser: Normaliser,
    ) -> Result<Found, TrainError> {
        let prompt_of = &prompt_of(part.groups);
        let (log_pf, reference) = self.log_probs(actions, states)?;
        let trajectories = Trajectories {
            log_pf: &log_pf,
            lengths: &actions.lengths,
            reference: reference.as_ref(),
        };
        let log_r = self.terminal_log_r(step, actions, prompt_of)?;
        let per_prompt;
        let log_z = match (log_z, &self.log_z, &self.head) {
            (PromptLogZ::Network(values), _, _) => LogZ::PerPrompt(values),
            (PromptLogZ::Other(LogZSource::Scalar), Some(var), _) => LogZ::Scalar(var.as_tensor()),
            (PromptLogZ::Other(LogZSource::PerPrompt), _, Some(head)) => {
                let first = states.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
                per_prompt = head.apply(&first, HeadGradient::Detached)?;
                LogZ::PerPrompt(&per_prompt)
            }
            _ => LogZ::Batch(prompt_of),
        };
        let options = self.balance_options();
        let weights = part
            .drawn
            .map(|drawn| {
                let now = summed_log_probs(&log_pf, &actions.lengths)?;
                importance_weights(&now, drawn)
            })
            .transpose()?;
        let found = weighted_trajectory_balance(
            &trajectories,
            &log_r,
            log_z,
            options,
            weights.as_deref(),
            normaliser,
        )?;
        let rows = prompt_of.len();
        Ok(Found {
            loss: found.loss,
            rows,
            log_z: found.log_z,
            log_r: found.log_r,
            log_pf: found.log_pf,
            log_ratio: found.log_ratio,
            weight: weights.map(|weights| weights.iter().sum::<f64>() / rows as f64),
            residual: found.residual.root_mean_square,
            flops: 0.0,
        })
    }

    fn state_flows(
        &self,
        step: u64,
        rows: &[&TokenizedCompletion],
        actions: &Actions,
        states: &Tensor,
        prompt_of: &[usize],
        normaliser: Normaliser,
    ) -> Result<Found, TrainError> {
        let (
            Objective::StateFlows {
                energies,
                windows,
                flow_gradient,
                least_completions,
                ..
            },
            Some(head),
        ) = (self.options.objective, &self.head)
        else {
            unreachable!("state flows have a head")
        };
        let (log_pf, reference) = self.log_probs(actions, states)?;
        let trajectories = Trajectories {
            log_pf: &log_pf,
            lengths: &actions.lengths,
            reference: reference.as_ref(),
        };
        let branching = Branching::of_distinct(
            prompt_of
                .iter()
                .copied()
                .zip(rows.iter().map(|row| &row.tokens[row.prompt_length..])),
        );
        let flows = StateFlows {
            log_flow: &head.apply(states, flow_gradient)?,
            log_r: &self.state_log_r(step, actions)?,
        };
        let options = ForwardLookingOptions {
            reference: self.options.reference,
            energies,
            windows,
            // Of what the policy samples any number is evidence, however many coincide.
            least_completions: if self.options.on_policy > 0.0 {
                1
            } else {
                least_completions
            },
        };
        let found = forward_looking(&trajectories, flows, options, branching, normaliser)?;
        Ok(Found {
            loss: found.loss,
            rows: prompt_of.len(),
            log_z: found.log_z,
            log_r: found.log_r,
            log_pf: found.log_pf,
            log_ratio: found.log_ratio,
            weight: None,
            residual: found.residual.root_mean_square,
            flops: 0.0,
        })
    }

    fn terminable(
        &self,
        step: u64,
        rows: &[&TokenizedCompletion],
        actions: &Actions,
        states: &Tensor,
        normaliser: Normaliser,
    ) -> Result<Found, TrainError> {
        let Objective::Terminable { windows } = self.options.objective else {
            unreachable!("the objective is another")
        };
        let (tokens, forced) = tokens_before_end(rows, &self.options.eos);
        let stop = self.options.eos[0];
        let (log_pf, log_stop) =
            actions.log_probs_and_stops(&self.model.llama, states, stop, 1.0)?;
        let mut log_r = self.stop_log_r(step, rows, &tokens, actions.columns())?;
        let mut log_ratio = None;
        if self.options.reference.in_target {
            let hidden = self.reference.forward(&actions.batch)?;
            let of_reference = actions.states(&hidden, true)?;
            let (reference, reference_stop) =
                actions.log_probs_and_stops(&self.reference, &of_reference, stop, 1.0)?;
            log_ratio = Some(mean_log_ratio(&log_pf, &reference, &actions.lengths)?);
            log_r = (log_r + actions.prefix_sums(&reference, &reference_stop, &forced)?)?;
        }
        let trajectories = TerminableTrajectories {
            log_pf: &log_pf.narrow(1, 0, actions.columns())?,
            log_stop: &log_stop,
            tokens: &tokens,
            forced: &forced,
        };
        let found = modified_sub_trajectory_balance(&trajectories, &log_r, windows, normaliser)?;
        Ok(Found {
            loss: found.loss,
            rows: rows.len(),
            log_z: found.log_z,
            log_r: found.log_r,
            log_pf: found.log_pf,
            log_ratio,
            weight: None,
            residual: found.residual.root_mean_square,
            flops: 0.0,
        })
    }

    /// The factor from reward to `log R` at a step.
    fn reward_factor(&self, step: u64) -> f64 {
        self.options.reward_scale / self.options.reward_temperature.at(step)
    }

    /// `log R` of every state: (rows, columns + 1).
    pub(super) fn state_log_r(&self, step: u64, actions: &Actions) -> Result<Tensor, TrainError> {
        let rewards = (self.rewards)(&actions.batch)?;
        Ok((actions.per_state(&rewards)? * self.reward_factor(step))?)
    }

    /// `reward_scale x reward` of the terminals.
    pub(super) fn untempered_log_r(&self, actions: &Actions) -> Result<Vec<f64>, TrainError> {
        let rewards = self.terminal_rewards(actions)?;
        let log_r = (rewards * self.options.reward_scale)?;
        Ok(log_r.to_dtype(DType::F64)?.to_vec1()?)
    }

    fn terminal_rewards(&self, actions: &Actions) -> Result<Tensor, TrainError> {
        let states = actions.per_state(&(self.rewards)(&actions.batch)?)?;
        let columns = states.dim(1)?;
        let places: Vec<u32> = actions
            .lengths
            .iter()
            .enumerate()
            .map(|(row, length)| (row * columns + length) as u32)
            .collect();
        let count = places.len();
        let places = Tensor::from_vec(places, count, states.device())?;
        Ok(states.flatten_all()?.index_select(&places, 0)?)
    }

    /// `log R` of the terminals: (rows).
    pub(super) fn terminal_log_r(
        &self,
        step: u64,
        actions: &Actions,
        prompt_of: &[usize],
    ) -> Result<Tensor, TrainError> {
        let mut rewards = self.terminal_rewards(actions)?;
        if matches!(
            self.options.objective,
            Objective::TrajectoryBalance {
                group_rewards: true,
                ..
            }
        ) {
            let raw = rewards.to_dtype(DType::F64)?.to_vec1()?;
            let standard = standardised(&raw, prompt_of);
            rewards = Tensor::new(standard, rewards.device())?.to_dtype(rewards.dtype())?;
        }
        Ok((rewards * self.reward_factor(step))?)
    }

    /// `log R` of the completion that ends in each state, (rows, columns + 1): every prefix is scored with its EOS.
    fn stop_log_r(
        &self,
        step: u64,
        rows: &[&TokenizedCompletion],
        tokens: &[usize],
        columns: usize,
    ) -> Result<Tensor, TrainError> {
        /// Texts in a forward pass of the reward model.
        const BATCH: usize = 256;
        let mut ended: Vec<Vec<u32>> = Vec::new();
        let mut known: BTreeMap<Vec<u32>, usize> = BTreeMap::new();
        let mut places = Vec::with_capacity(rows.len() * (columns + 1));
        for (row, tokens) in rows.iter().zip(tokens) {
            for length in 0..=columns {
                let whole = row.prompt_length + length.min(*tokens);
                let mut text = row.tokens[..whole].to_vec();
                // A row that the horizon ended has no EOS in its last state.
                if whole < row.tokens.len() {
                    text.push(self.options.eos[0]);
                }
                let next = ended.len();
                places.push(*known.entry(text.clone()).or_insert_with(|| {
                    ended.push(text);
                    next
                }) as u32);
            }
        }
        let mut rewards: Vec<f32> = Vec::with_capacity(ended.len());
        for chunk in ended.chunks(BATCH) {
            let batch = TokenBatch::right_padded(chunk);
            let scored = (self.rewards)(&batch)?.to_vec2::<f32>()?;
            let last = chunk.iter().map(|text| text.len() - 1);
            rewards.extend(scored.iter().zip(last).map(|(row, last)| row[last]));
        }
        let device = self.model.llama.device();
        let rewards = Tensor::new(rewards, device)?;
        let places = Tensor::new(places, device)?;
        let log_r = (rewards.index_select(&places, 0)? * self.reward_factor(step))?;
        Ok(log_r.reshape((rows.len(), columns + 1))?)
    }
}

/// Standardises values among those of the same prompt: mean 0 and, unless all are equal, standard deviation 1 with
/// divisor `n - 1`, as `torch.std` has it.
fn standardised(values: &[f64], prompt_of: &[usize]) -> Vec<f64> {
    let mut groups: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for (value, prompt) in values.iter().zip(prompt_of) {
        groups.entry(*prompt).or_default().push(*value);
    }
    let moments: BTreeMap<usize, (f64, f64)> = groups
        .into_iter()
        .map(|(prompt, values)| {
            let n = values.len() as f64;
            let mean = values.iter().sum::<f64>() / n;
            let variance = values
                .iter()
                .map(|value| (value - mean).powi(2))
                .sum::<f64>()
                / (n - 1.0).max(1.0);
            (prompt, (mean, variance.sqrt()))
        })
        .collect();
    values
        .iter()
        .zip(prompt_of)
        .map(|(value, prompt)| {
            let (mean, deviation) = moments[prompt];
            (value - mean) / (deviation + 1e-6)
        })
        .collect()
}

/// Returns the mean over rows of the summed `log pi - log pi_ref`.
fn mean_log_ratio(
    log_pf: &Tensor,
    reference: &Tensor,
    lengths: &[usize],
) -> Result<f64, TrainError> {
    let ratio = (log_pf.detach() - reference)?.to_dtype(DType::F64)?;
    let sums: f64 = ratio
        .to_vec2::<f64>()?
        .iter()
        .zip(lengths)
        .map(|(row, length)| row[..*length].iter().sum::<f64>())
        .sum();
    Ok(sums / lengths.len() as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rewards_are_standardised_among_the_completions_of_a_prompt() {
        let found = standardised(&[1.0, 5.0, 3.0, 7.0, 7.0], &[0, 1, 0, 2, 2]);
        let half = 0.5f64.sqrt();
        for (found, expected) in found.iter().zip([-half, 0.0, half, 0.0, 0.0]) {
            assert!((found - expected).abs() < 1e-5, "{found} for {expected}");
        }
    }
}
