//! Policy gradients on groups of completions, without a value head.

use candle_core::DType;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::found::{Found, Metric};
use super::super::objective::{Objective, ObjectiveKind};
use super::super::requirements::{Requirements, Weighed};
use super::super::scored::{Scored, Weights};
use super::super::view::View;
use crate::ml::kernels::pointwise::{exp, log_softmax};
use crate::ml::kernels::sums::row_sums;
use crate::ml::objectives::advantage::{pad, whitened};
use crate::ml::objectives::groups::{centred, leave_one_out, standardised, standardised_over_all};
use crate::ml::objectives::policy_gradient::{
    Correction, KlEstimator, KlTerm, MeanOver, PolicyGradientBatch, PolicyGradientOptions,
    RatioLevel, overlong_penalty, policy_gradient, returns, sampler_weights,
};
use crate::ml::objectives::{Normaliser, ObjectiveError};
use crate::ml::trainer::{TokenizedCompletion, TrainError};

type Kind = ObjectiveKind<PolicyGradientSettings>;

/// Settings that all policy gradients take.
const SETTINGS: &[&str] = &[
    "advantage",
    "ratio",
    "clip_low",
    "clip_high",
    "clip_ceiling",
    "mean",
    "kl",
    "entropy_bonus",
    "overlong_buffer",
    "mask_truncated",
    "importance",
    "dynamic_sampling",
];

/// Every policy gradient.
pub const POLICY_GRADIENTS: &[Kind] = &[
    Kind {
        name: "rloo",
        aliases: &[],
        about: "RLOO (Ahmadian et al. 2024): of each reward the mean of the prompt's others is taken off; one ratio for a \
                completion, clipped at 0.2; KL (k1, 0.05) in the reward.",
        takes: SETTINGS,
        make: |settings| {
            Box::new(PolicyGradient::new(
                settings,
                Method {
                    advantage: Advantage::LeaveOneOut,
                    ratio: RatioLevel::Completion,
                    clip: (0.2, 0.2),
                    mean: MeanOver::Completions,
                    kl: KlSettings::in_reward(0.05),
                },
            ))
        },
    },
    Kind {
        name: "grpo",
        aliases: &[],
        about: "GRPO (Shao et al. 2024): rewards standardised among a prompt's completions; ratios of tokens clipped at 0.2; \
                the mean over completions of means over tokens; KL (k3, 0.04) in the loss.",
        takes: SETTINGS,
        make: |settings| {
            Box::new(PolicyGradient::new(
                settings,
                Method {
                    advantage: Advantage::Standardised,
                    ratio: RatioLevel::Token,
                    clip: (0.2, 0.2),
                    mean: MeanOver::Completions,
                    kl: KlSettings::in_loss(0.04),
                },
            ))
        },
    },
    Kind {
        name: "dr_grpo",
        aliases: &[],
        about: "Dr. GRPO (Liu et al. 2025): GRPO without the two biases: rewards are centred, not divided by their deviation, \
                and sums over tokens are divided by the horizon; no KL.",
        takes: SETTINGS,
        make: |settings| {
            Box::new(PolicyGradient::new(
                settings,
                Method {
                    advantage: Advantage::Centred,
                    ratio: RatioLevel::Token,
                    clip: (0.2, 0.2),
                    mean: MeanOver::Horizon,
                    kl: KlSettings::in_loss(0.0),
                },
            ))
        },
    },
    Kind {
        name: "dapo",
        aliases: &[],
        about: "DAPO (Yu et al. 2025): GRPO with a higher upper clip (0.28), the mean over all tokens alike, and no KL. Its \
                other two parts are `dynamic_sampling` and `overlong_buffer`, which it sets to 10 and a fifth of the horizon \
                unless told otherwise.",
        takes: SETTINGS,
        make: |settings| {
            let mut dapo = PolicyGradient::new(
                settings,
                Method {
                    advantage: Advantage::Standardised,
                    ratio: RatioLevel::Token,
                    clip: (0.2, 0.28),
                    mean: MeanOver::Tokens,
                    kl: KlSettings::in_loss(0.0),
                },
            );
            dapo.overlong_buffer = settings.overlong_buffer.unwrap_or(settings.horizon / 5);
            dapo.dynamic_sampling = settings.dynamic_sampling.unwrap_or(10);
            Box::new(dapo)
        },
    },
    Kind {
        name: "gspo",
        aliases: &[],
        about: "GSPO (Zheng et al. 2025): GRPO with one ratio for a completion, the geometric mean over its tokens, clipped at \
                3e-4 and 4e-4; no KL.",
        takes: SETTINGS,
        make: |settings| {
            Box::new(PolicyGradient::new(
                settings,
                Method {
                    advantage: Advantage::Standardised,
                    ratio: RatioLevel::Sequence,
                    clip: (3e-4, 4e-4),
                    mean: MeanOver::Completions,
                    kl: KlSettings::in_loss(0.0),
                },
            ))
        },
    },
    Kind {
        name: "reinforce_plus_plus",
        aliases: &["reinforce++"],
        about: "REINFORCE++ (Hu 2025): no groups; KL (k1, 0.01) comes off the reward token by token, and the returns are \
                whitened over all tokens of a step; ratios of tokens clipped at 0.2.",
        takes: SETTINGS,
        make: |settings| {
            Box::new(PolicyGradient::new(
                settings,
                Method {
                    advantage: Advantage::WhitenedReturns,
                    ratio: RatioLevel::Token,
                    clip: (0.2, 0.2),
                    mean: MeanOver::Tokens,
                    kl: KlSettings::in_reward(0.01),
                },
            ))
        },
    },
];

/// What a completion's reward is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Advantage {
    /// The mean of the other completions of its prompt.
    LeaveOneOut,
    /// The mean of its prompt's completions, in units of their standard deviation.
    Standardised,
    /// The mean of its prompt's completions.
    Centred,
    /// The mean of its prompt's completions, in units of the standard deviation of all rewards of the step.
    StandardisedOverAll,
    /// Nothing: what is still to come at each token is whitened over all tokens of the step.
    WhitenedReturns,
}

/// Where a KL penalty is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlPlace {
    /// It is taken off the reward, before advantages.
    Reward,
    /// It is a term of the loss.
    Loss,
}

/// The penalty on the divergence from the starting model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KlSettings {
    /// Its coefficient; 0 leaves it out.
    pub coefficient: f64,
    /// What estimates it at a token, with `l` the log-ratio of policy to starting model: k1 = `l`, k2 = `l^2 / 2`,
    /// k3 = `exp(-l) - 1 + l`.
    pub estimator: KlEstimator,
    /// Where it is.
    #[serde(rename = "in")]
    pub place: KlPlace,
    /// Whether a term of the loss is multiplied by the ratio to the policy that drew the tokens: its gradient is then that
    /// of the divergence whatever drew them (with k3).
    #[serde(default)]
    pub corrected: bool,
}

impl KlSettings {
    fn in_reward(coefficient: f64) -> Self {
        Self {
            coefficient,
            estimator: KlEstimator::K1,
            place: KlPlace::Reward,
            corrected: false,
        }
    }

    fn in_loss(coefficient: f64) -> Self {
        Self {
            coefficient,
            estimator: KlEstimator::K3,
            place: KlPlace::Loss,
            corrected: false,
        }
    }
}

/// How completions are weighted for their having been sampled from another distribution than the policy's: at another
/// temperature.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Importance {
    /// Whether a weight is of a whole completion, and not of each token.
    #[serde(default)]
    pub of_completions: bool,
    /// What becomes of ratios beyond the bounds.
    #[serde(default = "Importance::truncate")]
    pub beyond: Correction,
    /// The lower bound.
    #[serde(default)]
    pub least: f64,
    /// The upper bound.
    pub greatest: f64,
}

impl Importance {
    fn truncate() -> Correction {
        Correction::Truncate
    }
}

/// Settings of policy gradients; what is absent is as the method has it.
#[derive(Debug, Clone, Copy, Default)]
pub struct PolicyGradientSettings {
    /// What rewards are compared with.
    pub advantage: Option<Advantage>,
    /// Of what the ratio to the policy that drew completions is taken.
    pub ratio: Option<RatioLevel>,
    /// How far below 1 a ratio counts.
    pub clip_low: Option<f64>,
    /// How far above 1 a ratio counts.
    pub clip_high: Option<f64>,
    /// The greatest ratio that counts, whatever the advantage.
    pub clip_ceiling: Option<f64>,
    /// Over what the loss is a mean.
    pub mean: Option<MeanOver>,
    /// The penalty on the divergence from the starting model.
    pub kl: Option<KlSettings>,
    /// Weight of the policy's entropy.
    pub entropy_bonus: f64,
    /// Tokens before the horizon over which a penalty grows from 0 to 1.
    pub overlong_buffer: Option<usize>,
    /// Whether completions that the horizon ended have no part in the loss.
    pub mask_truncated: bool,
    /// Weights for the sampler's having been another distribution.
    pub importance: Option<Importance>,
    /// Batches of prompts that a step may sample.
    pub dynamic_sampling: Option<u64>,
    /// The horizon.
    pub horizon: usize,
}

/// What a method is by itself.
struct Method {
    advantage: Advantage,
    ratio: RatioLevel,
    clip: (f64, f64),
    mean: MeanOver,
    kl: KlSettings,
}

/// A policy gradient.
#[derive(Debug)]
pub struct PolicyGradient {
    advantage: Advantage,
    loss: PolicyGradientOptions,
    /// A penalty in the reward, if there is one.
    kl_in_reward: Option<KlSettings>,
    overlong_buffer: usize,
    mask_truncated: bool,
    importance: Option<Importance>,
    dynamic_sampling: u64,
}

impl PolicyGradient {
    fn new(settings: &PolicyGradientSettings, method: Method) -> Self {
        let kl = settings.kl.unwrap_or(method.kl);
        let kl = Some(kl).filter(|kl| kl.coefficient > 0.0);
        let in_loss = kl.filter(|kl| kl.place == KlPlace::Loss);
        Self {
            advantage: settings.advantage.unwrap_or(method.advantage),
            loss: PolicyGradientOptions {
                ratio: settings.ratio.unwrap_or(method.ratio),
                clip_low: settings.clip_low.unwrap_or(method.clip.0),
                clip_high: settings.clip_high.unwrap_or(method.clip.1),
                clip_ceiling: settings.clip_ceiling,
                kl: in_loss.map(|kl| KlTerm {
                    coefficient: kl.coefficient,
                    estimator: kl.estimator,
                    corrected: kl.corrected,
                }),
                entropy_bonus: settings.entropy_bonus,
                mean: settings.mean.unwrap_or(method.mean),
                horizon: settings.horizon,
            },
            kl_in_reward: kl.filter(|kl| kl.place == KlPlace::Reward),
            overlong_buffer: settings.overlong_buffer.unwrap_or(0),
            mask_truncated: settings.mask_truncated,
            importance: settings.importance,
            dynamic_sampling: settings.dynamic_sampling.unwrap_or(0),
        }
    }

    /// Returns the tokens of each completion that have a part in the loss.
    fn counted(&self, rows: &[&TokenizedCompletion], eos: &[u32]) -> Vec<usize> {
        let length = |row: &&TokenizedCompletion| {
            let is_masked = self.mask_truncated && row.is_truncated(eos);
            if is_masked {
                0
            } else {
                row.completion_length()
            }
        };
        rows.iter().map(length).collect()
    }

    /// Returns the advantage of each token.
    fn advantages(&self, scored: &Scored) -> Result<Vec<Vec<f64>>, ObjectiveError> {
        let count = scored.rewards.len();
        let rewards: Vec<f64> = (0..count)
            .map(|row| {
                let penalty = match self.overlong_buffer {
                    0 => 0.0,
                    buffer => overlong_penalty(scored.lengths[row], self.loss.horizon, buffer),
                };
                scored.rewards[row] + penalty
            })
            .collect();
        let log_ratios = |row: usize| -> Vec<f64> {
            let pairs = scored.log_probs[row].iter().zip(&scored.reference[row]);
            pairs
                .map(|(policy, reference)| policy - reference)
                .collect()
        };
        let whitened_returns = || {
            let to_come = |row: usize| match self.kl_in_reward {
                Some(kl) => returns(rewards[row], &log_ratios(row), kl.coefficient, kl.estimator),
                None => vec![rewards[row]; scored.lengths[row]],
            };
            whitened((0..count).map(to_come).collect())
        };
        let penalised = || -> Vec<f64> {
            let penalised = |row: usize| match self.kl_in_reward {
                Some(kl) => {
                    let estimates = log_ratios(row).into_iter().map(|l| kl.estimator.of(l));
                    rewards[row] - kl.coefficient * estimates.sum::<f64>()
                }
                None => rewards[row],
            };
            (0..count).map(penalised).collect()
        };
        // As in TRL; a deviation of 0 leaves advantages of 0.
        const EPSILON: f64 = 1e-4;
        let of = &scored.prompt_of;
        let advantages = match self.advantage {
            Advantage::WhitenedReturns => return whitened_returns(),
            Advantage::LeaveOneOut => leave_one_out(&penalised(), of),
            Advantage::Standardised => standardised(&penalised(), of, EPSILON),
            Advantage::Centred => centred(&penalised(), of),
            Advantage::StandardisedOverAll => standardised_over_all(&penalised(), of, EPSILON),
        };
        let rows = advantages.into_iter().zip(&scored.lengths);
        Ok(rows
            .map(|(advantage, length)| vec![advantage; *length])
            .collect())
    }
}

impl Objective for PolicyGradient {
    fn requirements(&self) -> Requirements {
        let is_grouped = self.advantage != Advantage::WhitenedReturns;
        Requirements {
            reference: self.loss.kl.is_some(),
            takes_kl: false,
            completions: if is_grouped { 2 } else { 1 },
            fresh: true,
            drawn: true,
            weighed: Some(Weighed {
                reference: self.kl_in_reward.is_some(),
                sampler: self.importance.is_some(),
            }),
            dynamic_sampling: self.dynamic_sampling,
            ..Requirements::default()
        }
    }

    fn units(&self, rows: &[&TokenizedCompletion], eos: &[u32]) -> f64 {
        self.loss.units(&self.counted(rows, eos))
    }

    fn weigh(&self, scored: &Scored) -> Result<Vec<Weights>, TrainError> {
        let advantages = self.advantages(scored)?.into_iter().enumerate();
        let weights = advantages.map(|(row, advantages)| Weights {
            reward: scored.rewards[row],
            advantages,
            importance: match self.importance {
                Some(importance) => sampler_weights(
                    &scored.log_probs[row],
                    &scored.sampler[row],
                    importance.of_completions,
                    importance.beyond,
                    importance.least,
                    importance.greatest,
                ),
                None => Vec::new(),
            },
        });
        Ok(weights.collect())
    }

    fn loss(&self, view: &View<'_>, normaliser: Normaliser) -> Result<Found, TrainError> {
        let (shared, actions) = (view.shared, &view.actions);
        let model = &shared.model.llama;
        let states = view.states_before()?;
        let log_probs = actions.log_probs(model, &states)?;
        let (columns, device) = (actions.columns(), log_probs.device());
        let padded = |rows: &[Vec<f64>]| pad(rows, columns, DType::F32, device);
        let of_weights = |part: fn(&Weights) -> &Vec<f64>| {
            let rows: Vec<Vec<f64>> = view
                .part
                .weights
                .iter()
                .map(|row| part(row).clone())
                .collect();
            padded(&rows)
        };
        let old = view.part.drawn.map(padded).transpose()?;
        let reference = self
            .loss
            .kl
            .map(|_| actions.frozen_log_probs(&shared.reference));
        let importance = self
            .importance
            .map(|_| of_weights(|weights| &weights.importance));
        let lengths = self.counted(&view.rows, &shared.options.eos);
        let entropies = if self.loss.entropy_bonus == 0.0 {
            None
        } else {
            // H = -sum_v p_v log p_v, through which gradients go.
            let logits = model.logits(&states)?.to_dtype(DType::F32)?;
            let (rows, columns, words) = logits.dims3()?;
            let log_p = log_softmax(&logits.reshape((rows * columns, words))?)?;
            let entropies = row_sums(&(exp(&log_p)? * &log_p)?)?.neg()?;
            Some(entropies.reshape((rows, columns))?)
        };
        let found = policy_gradient(
            &PolicyGradientBatch {
                log_probs: &log_probs,
                old_log_probs: old.as_ref(),
                reference: reference.transpose()?.as_ref(),
                advantages: &of_weights(|weights| &weights.advantages)?,
                importance: importance.transpose()?.as_ref(),
                entropies: entropies.as_ref(),
                lengths: &lengths,
            },
            &self.loss,
            normaliser,
        )?;
        let means = actions.mean_entropies(model, &states.detach())?;
        let entropy: f64 = means
            .iter()
            .zip(&actions.lengths)
            .map(|(mean, length)| mean * *length as f64)
            .sum();
        let of_all = actions.count() as f64;
        let mut metrics = vec![
            Metric::over_tokens("entropy", entropy / of_all, of_all),
            Metric::over_tokens("ratio", found.ratio, found.tokens),
            Metric::over_tokens("clip_fraction", found.clip_fraction, found.tokens),
            Metric::over_tokens("approx_kl", found.approximate_kl, found.tokens),
        ];
        metrics.extend(
            found
                .kl
                .map(|kl| Metric::over_tokens("kl_term", kl, found.tokens)),
        );
        if self.importance.is_some() {
            let weights = view.part.weights.iter().flat_map(|row| &row.importance);
            let mean = weights.sum::<f64>() / of_all;
            metrics.push(Metric::over_tokens("importance", mean, of_all));
        }
        let rewards = view.part.weights.iter().map(|weights| weights.reward);
        Ok(Found {
            loss: found.loss,
            log_r: rewards.sum::<f64>() / view.rows.len() as f64,
            metrics,
        })
    }
}
