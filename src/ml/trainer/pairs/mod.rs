//! Offline training of a policy on preference pairs, without a reward model: DPO and its relatives, `GFlowNet`-DPO.

use candle_core::{DType, Tensor};

use super::actions::Actions;
use super::batches::{Epochs, TokenizedCompletion, tokens_before_end};
use super::flops::{ModelSize, backward_flops, forward_flops};
use super::reward::TokenizedPair;
use super::trained_model::TrainedModel;
use super::update::{OptimizerOptions, Updater};
use super::{Cancel, StepReport, TrainError, Trainer};
use crate::ml::kernels::sums::row_sums;
use crate::ml::models::causal::CausalLm;
use crate::ml::objectives::Normaliser;
use crate::ml::objectives::Windows;
use crate::ml::objectives::gflownet_dpo::{
    PreferenceReward, ReferenceReward, ReleasedPositions, gflownet_dpo, released_gdpo,
};
use crate::ml::objectives::preference::{
    PairLogProbs, PreferenceBatch, PreferenceLoss, ReferencePoint, kto_baseline, preference,
};
use crate::ml::objectives::terminable::TerminableTrajectories;
use crate::ml::optimizer::{AdamW, Gradients};
use crate::random::Stream;

/// The loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PairObjective {
    /// A loss of whole completions.
    Preference(PreferenceLoss),
    /// `GFlowNet`-DPO.
    GflownetDpo(GflownetDpo),
}

/// `GFlowNet`-DPO's numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GflownetDpo {
    /// The preference term.
    pub preference: PreferenceReward,
    /// Temperature of the reference model's log-probability of stopping.
    pub gamma: f64,
    /// Which sums of residuals are squared.
    pub windows: Windows,
    /// Whether the released code is followed, with all that is odd in it; then each transition is.
    pub released: bool,
}

/// How a policy is trained on pairs.
#[derive(Debug, Clone)]
pub struct PairOptions {
    /// The loss.
    pub objective: PairObjective,
    /// Pairs in a step.
    pub batch_size: usize,
    /// Pairs in a forward pass.
    pub micro_batch: usize,
    /// AdamW and its learning rate.
    pub optimizer: OptimizerOptions,
    /// Ids that end a completion, the first being the one that stops.
    pub eos: Vec<u32>,
}

/// Training of a policy on preference pairs.
pub struct PairTrainer {
    model: TrainedModel,
    reference: CausalLm,
    pairs: Vec<TokenizedPair>,
    options: PairOptions,
    updater: Updater,
    epochs: Epochs,
    size: ModelSize,
    cancel: Cancel,
}

/// What a micro-batch gives; numbers are means over its pairs.
struct Found {
    loss: Tensor,
    metrics: Vec<(&'static str, f64)>,
}

impl PairTrainer {
    /// Prepares a training of `model`; `reference` is the frozen model it starts from.
    pub fn new(
        model: TrainedModel,
        reference: CausalLm,
        pairs: Vec<TokenizedPair>,
        options: PairOptions,
        stream: &Stream,
    ) -> Result<Self, TrainError> {
        if pairs.is_empty() {
            return Err(TrainError::Data(
                "there are no preference pairs to train on: the split is empty".to_owned(),
            ));
        }
        if matches!(
            options.objective,
            PairObjective::GflownetDpo(GflownetDpo { released: true, .. })
        ) && pairs.iter().any(|pair| pair.chosen.prompt_length < 2)
        {
            return Err(TrainError::Data(
                "the released code's loss reads the last but one token of the prompt: a prompt has one token".to_owned(),
            ));
        }
        Ok(Self {
            cancel: Cancel::default(),
            updater: Updater::new(
                model.llama.trainable().to_vec(),
                Vec::new(),
                options.optimizer.clone(),
            )?,
            epochs: Epochs::new(pairs.len(), options.batch_size, stream.child("batches")),
            size: ModelSize::of(model.llama.config(), model.adapter.is_none()),
            model,
            reference,
            pairs,
            options,
        })
    }

    /// Preferred completions of some pairs, then the others.
    fn rows(&self, items: &[usize]) -> Vec<&TokenizedCompletion> {
        let chosen = items.iter().map(|item| &self.pairs[*item].chosen);
        let rejected = items.iter().map(|item| &self.pairs[*item].rejected);
        chosen.chain(rejected).collect()
    }

    /// KTO's `z`: each prompt with completions of the next pair of the step.
    fn mismatched_kl(
        &self,
        items: &[usize],
        reference_point: ReferencePoint,
    ) -> Result<f64, TrainError> {
        let mut ratios = Vec::with_capacity(items.len());
        let next = |place: usize| &self.pairs[items[(place + 1) % items.len()]];
        let mut others: Vec<_> = (0..items.len()).map(|place| &next(place).chosen).collect();
        if reference_point == ReferencePoint::All {
            others.extend((0..items.len()).map(|place| &next(place).rejected));
        }
        let rows: Vec<TokenizedCompletion> = others
            .iter()
            .enumerate()
            .map(|(place, other)| {
                let prompt = &self.pairs[items[place % items.len()]].chosen;
                TokenizedCompletion::new(
                    &prompt.tokens[..prompt.prompt_length],
                    &other.tokens[other.prompt_length..],
                )
            })
            .collect();
        let policy = self.model.llama.detached();
        for rows in rows.chunks(2 * self.options.micro_batch) {
            self.cancel.check()?;
            let actions = Actions::new(&rows.iter().collect::<Vec<_>>());
            let ratio = (actions.frozen_log_probs(&policy)?
                - actions.frozen_log_probs(&self.reference)?)?;
            ratios.extend(row_sums(&ratio)?.to_dtype(DType::F64)?.to_vec1::<f64>()?);
        }
        Ok(kto_baseline(&ratios))
    }

    fn preference(
        &self,
        loss: PreferenceLoss,
        actions: &Actions,
        hidden: &Tensor,
        whole: WholeStep,
        normaliser: Normaliser,
    ) -> Result<Found, TrainError> {
        let states = actions.states(hidden, false)?;
        let policy = row_sums(&actions.log_probs(&self.model.llama, &states)?)?;
        let reference = loss
            .needs_reference()
            .then(|| actions.frozen_log_probs(&self.reference))
            .transpose()?
            .map(|log_probs| row_sums(&log_probs))
            .transpose()?;
        let pairs = actions.lengths.len() / 2;
        let split = |tensor: &Tensor| -> candle_core::Result<[Tensor; 2]> {
            Ok([tensor.narrow(0, 0, pairs)?, tensor.narrow(0, pairs, pairs)?])
        };
        let policy = split(&policy)?;
        let reference = reference.as_ref().map(split).transpose()?;
        let of = |both: &'_ [Tensor; 2]| -> (Tensor, Tensor) { (both[0].clone(), both[1].clone()) };
        let (chosen, rejected) = of(&policy);
        let reference = reference.as_ref().map(of);
        let batch = PreferenceBatch {
            policy: PairLogProbs {
                chosen: &chosen,
                rejected: &rejected,
            },
            reference: reference
                .as_ref()
                .map(|(chosen, rejected)| PairLogProbs { chosen, rejected }),
            chosen_lengths: &actions.lengths[..pairs],
            rejected_lengths: &actions.lengths[pairs..],
            kl: whole.kl,
            chosen_tokens: whole.chosen_tokens,
        };
        let found = preference(&batch, loss, normaliser)?;
        let mut metrics = vec![("accuracy", found.accuracy), ("margin", found.margin)];
        metrics.extend(
            found
                .chosen_log_ratio
                .map(|ratio| ("chosen_log_ratio", ratio)),
        );
        metrics.extend(
            found
                .rejected_log_ratio
                .map(|ratio| ("rejected_log_ratio", ratio)),
        );
        Ok(Found {
            loss: found.loss,
            metrics,
        })
    }

    fn gflownet_dpo(
        &self,
        dpo: GflownetDpo,
        rows: &[&TokenizedCompletion],
        actions: &Actions,
        hidden: &Tensor,
        normaliser: Normaliser,
    ) -> Result<Found, TrainError> {
        let stop = self.options.eos[0];
        let (tokens, forced) = tokens_before_end(rows, &self.options.eos);
        let states = actions.states(hidden, true)?;
        let (log_pf, log_stop) =
            actions.log_probs_and_stops(&self.model.llama, &states, stop, 1.0)?;
        let of_reference = actions.states(&self.reference.forward(&actions.batch)?, true)?;
        let (reference, _) =
            actions.log_probs_and_stops(&self.reference, &of_reference, stop, 1.0)?;
        let (_, reference_stop) =
            actions.log_probs_and_stops(&self.reference, &of_reference, stop, dpo.gamma)?;
        let columns = actions.columns();
        let trajectories = TerminableTrajectories {
            log_pf: &log_pf.narrow(1, 0, columns)?,
            log_stop: &log_stop,
            tokens: &tokens,
            forced: &forced,
        };
        let rewards = ReferenceReward {
            log_pf: &reference.narrow(1, 0, columns)?,
            log_stop: &reference_stop,
        };
        let preferred = preferred(rows.len());
        let found = gflownet_dpo(
            &trajectories,
            rewards,
            &preferred,
            dpo.preference,
            dpo.windows,
            normaliser,
        )?;
        let mut metrics = margins(&log_pf, &reference)?;
        metrics.extend([
            ("log_z", found.log_z),
            ("log_r", found.log_r),
            ("residual", found.residual.root_mean_square),
        ]);
        Ok(Found {
            loss: found.loss,
            metrics,
        })
    }

    /// The released code's loss; `longest` is the greatest number of tokens of the step's rows.
    fn released(
        &self,
        dpo: GflownetDpo,
        rows: &[&TokenizedCompletion],
        longest: usize,
        dropout: u64,
        normaliser: Normaliser,
    ) -> Result<Found, TrainError> {
        // One place earlier, as the released mask is.
        let earlier: Vec<TokenizedCompletion> = rows
            .iter()
            .map(|row| TokenizedCompletion {
                tokens: row.tokens.clone(),
                prompt_length: row.prompt_length - 1,
            })
            .collect();
        let actions = Actions::new(&earlier.iter().collect::<Vec<_>>());
        // Labels outside the completion are token 0 in the released code.
        let action = |row: usize, column: usize| {
            if column == 0 || column == actions.lengths[row] {
                0
            } else {
                actions.action(row, column)
            }
        };
        let stop = self.options.eos[0];
        let llama = &self.model.llama;
        let hidden =
            llama.forward_training(&actions.batch, self.model.dropout(dropout).as_ref())?;
        let states = actions.states(&hidden, true)?;
        let (log_pf, log_stop) = actions.log_probs_of(llama, &states, action, stop, 1.0)?;
        let of_reference = actions.states(&self.reference.forward(&actions.batch)?, true)?;
        let frozen = |temperature: f64| {
            actions.log_probs_of(&self.reference, &of_reference, action, stop, temperature)
        };
        let reference = frozen(1.0)?.0;
        let columns: Vec<usize> = actions.lengths.iter().map(|length| length + 1).collect();
        let is_longest: Vec<bool> = rows.iter().map(|row| row.tokens.len() == longest).collect();
        let positions = ReleasedPositions {
            log_pf: &log_pf,
            log_stop: &log_stop,
            reference: &reference,
            reference_log_stop: &frozen(dpo.gamma)?.1,
            columns: &columns,
            longest: &is_longest,
            preferred: &preferred(rows.len()),
        };
        Ok(Found {
            loss: released_gdpo(&positions, dpo.preference, normaliser)?,
            metrics: margins(&log_pf, &reference)?,
        })
    }
}

/// The first half of the rows is preferred.
fn preferred(rows: usize) -> Vec<bool> {
    (0..rows).map(|row| row < rows / 2).collect()
}

/// Accuracy and margin of the summed `log pi - log pi_ref` of pairs, the first half of the rows being preferred.
fn margins(log_pf: &Tensor, reference: &Tensor) -> Result<Vec<(&'static str, f64)>, TrainError> {
    let ratios = row_sums(&(log_pf.detach() - reference)?)?;
    let ratios: Vec<f64> = ratios.to_dtype(DType::F64)?.to_vec1()?;
    let pairs = ratios.len() / 2;
    let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / pairs as f64;
    let both = || ratios[..pairs].iter().zip(&ratios[pairs..]);
    Ok(vec![
        (
            "accuracy",
            mean(&mut both().map(|(chosen, rejected)| f64::from(u8::from(chosen > rejected)))),
        ),
        (
            "margin",
            mean(&mut both().map(|(chosen, rejected)| chosen - rejected)),
        ),
        (
            "chosen_log_ratio",
            mean(&mut ratios[..pairs].iter().copied()),
        ),
        (
            "rejected_log_ratio",
            mean(&mut ratios[pairs..].iter().copied()),
        ),
    ])
}

/// Numbers of a whole step, which each of its micro-batches needs.
#[derive(Clone, Copy)]
struct WholeStep {
    /// What KTO's loss compares rewards to, 0 for the other losses.
    kl: f64,
    /// Tokens of the preferred completions.
    chosen_tokens: f64,
    /// Units of the mean of `GFlowNet`-DPO.
    units: f64,
}

impl PairTrainer {
    fn whole_step(&self, items: &[usize]) -> Result<WholeStep, TrainError> {
        let kl = match self.options.objective {
            PairObjective::Preference(PreferenceLoss::Kto {
                reference_point, ..
            }) => self.mismatched_kl(items, reference_point)?,
            _ => 0.0,
        };
        let units = match self.options.objective {
            PairObjective::GflownetDpo(GflownetDpo { windows, .. }) => {
                let (tokens, _) = tokens_before_end(&self.rows(items), &self.options.eos);
                // Of completions that all end at once there is nothing to average over: their loss is 0.
                Some(windows.units(&tokens)).filter(|units| *units > 0.0)
            }
            PairObjective::Preference(_) => None,
        };
        let chosen = items.iter().map(|item| &self.pairs[*item].chosen);
        let chosen_tokens = chosen.map(TokenizedCompletion::completion_length);
        Ok(WholeStep {
            kl,
            chosen_tokens: chosen_tokens.sum::<usize>() as f64,
            units: units.unwrap_or(1.0),
        })
    }

    /// Adds up the gradients of a step's micro-batches.
    fn gradients(
        &self,
        step: u64,
        items: &[usize],
        whole: WholeStep,
    ) -> Result<(Gradients, StepReport), TrainError> {
        let total = items.len() as f64;
        let longest = self
            .rows(items)
            .iter()
            .map(|row| row.tokens.len())
            .max()
            .unwrap_or(0);
        let mut gradients = Gradients::default();
        let mut report = StepReport::default();
        let mut loss = 0.0;
        for (index, chunk) in items.chunks(self.options.micro_batch).enumerate() {
            self.cancel.check()?;
            let rows = self.rows(chunk);
            let actions = Actions::new(&rows);
            let dropout = step * self.options.batch_size as u64 + index as u64;
            let found = match self.options.objective {
                PairObjective::GflownetDpo(dpo) if dpo.released => {
                    self.released(dpo, &rows, longest, dropout, Normaliser::Total(2.0 * total))?
                }
                objective => {
                    let key = self.model.dropout(dropout);
                    let llama = &self.model.llama;
                    let hidden = llama.forward_training(&actions.batch, key.as_ref())?;
                    match objective {
                        PairObjective::Preference(loss) => {
                            let normaliser = Normaliser::Total(total);
                            self.preference(loss, &actions, &hidden, whole, normaliser)?
                        }
                        PairObjective::GflownetDpo(dpo) => {
                            let normaliser = Normaliser::Total(whole.units);
                            self.gflownet_dpo(dpo, &rows, &actions, &hidden, normaliser)?
                        }
                    }
                }
            };
            loss += f64::from(found.loss.to_dtype(DType::F32)?.to_scalar::<f32>()?);
            for (name, value) in found.metrics {
                *report.metrics.entry(name).or_insert(0.0) += value * chunk.len() as f64 / total;
            }
            gradients.add_of(&found.loss, &self.updater.parameters())?;
            let forward = forward_flops(&self.size, actions.row_lengths());
            // Policy and reference forward, policy backward.
            report.flops += 2.0 * forward + backward_flops(&self.size, forward);
            report.trained_tokens += actions.row_lengths().sum::<usize>() as u64;
        }
        report.metrics.shift_insert(0, "loss", loss);
        Ok((gradients, report))
    }
}

impl Trainer for PairTrainer {
    fn step(&mut self, step: u64) -> Result<StepReport, TrainError> {
        let items = self.epochs.at(step);
        let baseline = self.whole_step(&items)?;
        let (gradients, mut report) = self.gradients(step, &items, baseline)?;
        self.updater.finish(step, &gradients, &mut report)?;
        Ok(report)
    }

    fn optimizer(&mut self) -> &mut AdamW {
        self.updater.optimizer()
    }

    fn halve_micro_batch(&mut self) -> Option<usize> {
        crate::ml::trainer::halve(&mut self.options.micro_batch)
    }

    fn cancelled_by(&mut self, cancel: Cancel) {
        self.cancel = cancel;
    }
}

#[cfg(test)]
mod tests;
