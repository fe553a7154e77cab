//! Trajectory balance and what differs from it in where log Z comes from and what the target is.

use std::ops::RangeInclusive;

use candle_core::{DType, Tensor, Var};

use super::super::found::{Found, Metric};
use super::super::objective::{Objective, ObjectiveKind, Setup};
use super::super::requirements::Requirements;
use super::super::view::View;
use super::{GflownetSettings, LogZSource};
use crate::ml::head::{HeadGradient, HeadInit, NetworkDropout, ScalarHead, ScalarNetwork};
use crate::ml::objectives::Normaliser;
use crate::ml::objectives::advantage::pad;
use crate::ml::objectives::groups::standardised;
use crate::ml::objectives::importance::{importance_weights, summed_log_probs};
use crate::ml::objectives::trajectory_balance::{
    LogZ, TrajectoryBalanceOptions, initial_log_z, weighted_trajectory_balance,
};
use crate::ml::optimizer::ParameterGroup;
use crate::ml::trainer::{TokenizedCompletion, TrainError};
use crate::random::Stream;

type Kind = ObjectiveKind<GflownetSettings>;

pub(super) const TRAJECTORY_BALANCE: Kind = Kind {
    name: "trajectory_balance",
    aliases: &["tb"],
    about: "TB (Malkin et al. 2022).",
    takes: &["log_z", "log_z_lr", "log_z_start", "length_normalised"],
    make: |settings| Box::new(TrajectoryBalance::new(settings, LogZSource::Scalar)),
};

pub(super) const VARGRAD: Kind = Kind {
    name: "vargrad",
    aliases: &[],
    about: "TB whose log Z is the mean over the completions of a prompt (Richter et al. 2020; Zhang et al. 2023).",
    takes: &["length_normalised"],
    make: |settings| Box::new(TrajectoryBalance::new(settings, LogZSource::Batch)),
};

pub(super) const RELATIVE_TRAJECTORY_BALANCE: Kind = Kind {
    name: "relative_trajectory_balance",
    aliases: &["rtb"],
    about: "RTB (Venkatraman et al. 2024): TB whose target is the starting model's distribution times R.",
    takes: &["log_z", "log_z_lr", "log_z_start", "length_normalised"],
    make: |settings| {
        let balance = TrajectoryBalance::new(settings, LogZSource::PerPrompt);
        Box::new(balance.relative_to_the_start())
    },
};

pub(super) const TBA: Kind = Kind {
    name: "tba",
    aliases: &[],
    about: "TBA (Bartoldson et al. 2025): RTB whose log Z is the mean over the completions of a prompt.",
    takes: &["length_normalised"],
    make: |settings| {
        let balance = TrajectoryBalance::new(settings, LogZSource::Batch);
        Box::new(balance.relative_to_the_start())
    },
};

pub(super) const FLOWRL: Kind = Kind {
    name: "flowrl",
    aliases: &[],
    about: "FlowRL (Zhu et al. 2025): RTB of log-probabilities divided by length and rewards standardised among the \
            completions of a prompt. Log Z is a linear head on the prompt's last state unless `log_z: network` asks for \
            the authors' network of three layers. With `updates_per_batch` above 1 completions have importance weights.",
    takes: &["log_z", "log_z_lr", "log_z_start", "length_normalised"],
    make: |settings| {
        let balance = TrajectoryBalance::new(settings, LogZSource::PerPrompt);
        let balance = balance.relative_to_the_start();
        Box::new(balance.of_flowrl(settings, 0.8..=1.28))
    },
};

pub(super) const FLOWRL_RELEASED: Kind = Kind {
    name: "flowrl_released",
    aliases: &[],
    about: "FlowRL as its authors released it: log Z is a network of three layers, `reward_scale` is 15 unless told \
            otherwise, and weights are ratios of whole completions, cut at 10 alone.",
    takes: &["log_z", "log_z_lr", "log_z_start", "length_normalised"],
    make: |settings| {
        let balance = TrajectoryBalance::new(settings, LogZSource::Network);
        Box::new(TrajectoryBalance {
            reward_scale: Some(15.0),
            ..balance
                .relative_to_the_start()
                .of_flowrl(settings, 0.0..=10.0)
        })
    },
};

/// Trajectory balance, in any of its forms.
#[derive(Debug)]
pub struct TrajectoryBalance {
    log_z: LogZSource,
    log_z_lr: f64,
    log_z_start: Option<f64>,
    length_normalised: bool,
    /// Whether the starting model's distribution is part of the target.
    relative: bool,
    /// Whether rewards are standardised among the completions of a prompt, which are all fresh or weighted by how
    /// likely they are by now.
    standardises: bool,
    /// What these weights are clipped to.
    weights: RangeInclusive<f64>,
    /// The factor from reward to log R, if the objective has one of its own.
    reward_scale: Option<f64>,
    parameters: LogZParameters,
}

/// What is trained for log Z.
#[derive(Debug)]
enum LogZParameters {
    None,
    Scalar(Var),
    PerPrompt(ScalarHead),
    Network {
        network: ScalarNetwork,
        dropout: Stream,
    },
}

impl TrajectoryBalance {
    /// Makes one whose log Z comes from `log_z` unless the settings say otherwise.
    pub fn new(settings: &GflownetSettings, log_z: LogZSource) -> Self {
        Self {
            log_z: settings.log_z.unwrap_or(log_z),
            log_z_lr: settings.log_z_lr,
            log_z_start: settings.log_z_start,
            length_normalised: settings.length_normalised.unwrap_or(false),
            relative: false,
            standardises: false,
            weights: 1.0..=1.0,
            reward_scale: None,
            parameters: LogZParameters::None,
        }
    }

    fn relative_to_the_start(self) -> Self {
        Self {
            relative: true,
            ..self
        }
    }

    fn of_flowrl(self, settings: &GflownetSettings, weights: RangeInclusive<f64>) -> Self {
        Self {
            length_normalised: settings.length_normalised.unwrap_or(true),
            standardises: true,
            weights,
            ..self
        }
    }

    /// Returns the bias that log Z starts from, if anything is trained for it.
    fn bias(&self) -> Option<Var> {
        let named = |vars: Vec<(String, Var)>, end: &str| {
            let mut vars = vars.into_iter();
            vars.find(|(name, _)| name.ends_with(end))
                .map(|(_, var)| var)
        };
        match &self.parameters {
            LogZParameters::None => None,
            LogZParameters::Scalar(var) => Some(var.clone()),
            LogZParameters::PerPrompt(head) => named(head.trainable(""), "bias"),
            LogZParameters::Network { network, .. } => {
                named(network.trainable(""), &ScalarNetwork::last_bias())
            }
        }
    }

    fn options(&self, view: &View<'_>) -> TrajectoryBalanceOptions {
        TrajectoryBalanceOptions {
            reference: view.shared.options.reference,
            length_normalised: self.length_normalised,
        }
    }

    /// `log R` of completions with these rewards: (rows).
    fn log_r(&self, view: &View<'_>, rewards: &[f64]) -> Result<Tensor, TrainError> {
        if self.standardises {
            return view.log_r_of(&standardised(rewards, &view.prompt_of, 1e-6));
        }
        view.log_r_of(rewards)
    }
}

impl Objective for TrajectoryBalance {
    fn requirements(&self) -> Requirements {
        let is_mean = self.log_z == LogZSource::Batch;
        let completions = if is_mean || self.standardises { 2 } else { 1 };
        Requirements {
            prior_in_target: self.relative,
            completions,
            fresh: self.standardises,
            drawn: self.standardises,
            reward_scale: self.reward_scale,
            trains_log_z: self.log_z != LogZSource::Batch,
            watches_log_z: true,
            ..Requirements::default()
        }
    }

    fn attach(&mut self, setup: &Setup<'_>) -> Result<Vec<ParameterGroup>, TrainError> {
        let stream = setup.stream.child("head");
        let (parameters, trained) = match self.log_z {
            LogZSource::Batch => (LogZParameters::None, Vec::new()),
            LogZSource::Scalar => {
                let var = Var::zeros(1, DType::F32, setup.device)?;
                let trained = vec![("log_z".to_owned(), var.clone())];
                (LogZParameters::Scalar(var), trained)
            }
            LogZSource::PerPrompt => {
                let head = ScalarHead::init(
                    setup.hidden_size,
                    true,
                    HeadInit::Zero,
                    &stream,
                    setup.device,
                )?;
                let trained = head.trainable("log_z.");
                (LogZParameters::PerPrompt(head), trained)
            }
            LogZSource::Network => {
                let network = ScalarNetwork::init(setup.hidden_size, &stream, setup.device)?;
                let trained = network.trainable("log_z.");
                let dropout = setup.stream.child("log_z_dropout");
                (LogZParameters::Network { network, dropout }, trained)
            }
        };
        self.parameters = parameters;
        Ok(vec![setup.group(trained, self.log_z_lr)])
    }

    fn wants_first(&self) -> bool {
        self.log_z_start.is_none() && self.bias().is_some()
    }

    /// Sets `log Z` to where the mean residual of a first batch is 0: from 0, updates would move nothing else for long.
    fn start(&self, first: Option<&View<'_>>) -> Result<(), TrainError> {
        let Some(bias) = self.bias() else {
            return Ok(());
        };
        let start = match (self.log_z_start, first) {
            (Some(start), _) => start,
            (None, None) => return Ok(()),
            (None, Some(view)) => {
                let log_probs = view.log_probs()?;
                let log_r = self.log_r(view, &view.rewards()?)?;
                let options = self.options(view);
                initial_log_z(&log_probs.trajectories(&view.actions), &log_r, options)?
            }
        };
        bias.set(&Tensor::new(&[start as f32], bias.device())?)?;
        Ok(())
    }

    fn units(&self, rows: &[&TokenizedCompletion], _eos: &[u32]) -> f64 {
        rows.len() as f64
    }

    fn loss(&self, view: &View<'_>, normaliser: Normaliser) -> Result<Found, TrainError> {
        let per_prompt;
        let log_z = match &self.parameters {
            LogZParameters::None => LogZ::Batch(&view.prompt_of),
            LogZParameters::Scalar(var) => LogZ::Scalar(var.as_tensor()),
            LogZParameters::PerPrompt(head) => {
                let first = view.states().narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
                per_prompt = head.apply(&first, HeadGradient::Detached)?;
                LogZ::PerPrompt(&per_prompt)
            }
            LogZParameters::Network { network, dropout } => {
                let dropout = NetworkDropout {
                    stream: dropout.child(&view.step.to_string()),
                    first_row: view.part.first_row as u64,
                };
                let means = view.actions.prompt_means(view.hidden())?;
                per_prompt = network.apply(&means, Some(&dropout))?;
                LogZ::PerPrompt(&per_prompt)
            }
        };
        let log_probs = view.log_probs()?;
        let rewards = view.rewards()?;
        let log_r = self.log_r(view, &rewards)?;
        let lengths = &view.actions.lengths;
        let weights = view.part.drawn.map(|drawn| {
            let now = summed_log_probs(log_probs.policy(), lengths)?;
            let policy = log_probs.policy();
            let drawn = pad(drawn, policy.dim(1)?, policy.dtype(), policy.device())?;
            importance_weights(
                &now,
                &summed_log_probs(&drawn, lengths)?,
                self.weights.clone(),
            )
        });
        let weights = weights.transpose()?;
        let found = weighted_trajectory_balance(
            &log_probs.trajectories(&view.actions),
            &log_r,
            log_z,
            self.options(view),
            weights.as_deref(),
            normaliser,
        )?;
        let mut metrics =
            Metric::of_flows(found.log_pf, found.log_z, &found.residual, found.log_ratio);
        metrics.extend(weights.map(|weights| {
            let mean = weights.iter().sum::<f64>() / weights.len() as f64;
            Metric::mean("importance", mean)
        }));
        Ok(Found {
            loss: found.loss,
            log_r: if self.standardises {
                view.mean_log_r_of(&rewards)
            } else {
                found.log_r
            },
            metrics,
        })
    }
}
