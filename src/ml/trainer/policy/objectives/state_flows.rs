//! Objectives with a flow head: detailed and sub-trajectory balance, forward-looking.

use candle_core::Tensor;

use super::super::found::{Found, Metric};
use super::super::objective::{Objective, ObjectiveKind, Setup};
use super::super::requirements::Requirements;
use super::super::view::View;
use super::{GflownetSettings, Weighting};
use crate::ml::head::{HeadGradient, HeadInit, ScalarHead};
use crate::ml::objectives::branching::Branching;
use crate::ml::objectives::forward_looking::{
    ForwardLookingOptions, StateFlows as Flows, forward_looking,
};
use crate::ml::objectives::{Normaliser, Windows};
use crate::ml::optimizer::ParameterGroup;
use crate::ml::trainer::{TokenizedCompletion, TrainError};

type Kind = ObjectiveKind<GflownetSettings>;

pub(super) const DETAILED_BALANCE: Kind = Kind {
    name: "detailed_balance",
    aliases: &["db"],
    about: "DB (Bengio et al. 2023), with a flow head.",
    takes: &["flow_lr", "flow_gradient", "least_completions"],
    make: |settings| Box::new(StateFlows::new(settings, Windows::Transitions, false)),
};

pub(super) const SUB_TRAJECTORY_BALANCE: Kind = Kind {
    name: "sub_trajectory_balance",
    aliases: &["subtb"],
    about: "SubTB(lambda) (Madan et al. 2023), with a flow head.",
    takes: &[
        "flow_lr",
        "flow_gradient",
        "least_completions",
        "lambda",
        "weighting",
    ],
    make: |settings| {
        let windows = settings.windows(0.9, Weighting::Trajectory);
        Box::new(StateFlows::new(settings, windows, false))
    },
};

pub(super) const FORWARD_LOOKING: Kind = Kind {
    name: "forward_looking",
    aliases: &[],
    about: "FL (Pan et al. 2023), the terminals' log-flow pinned to 0.",
    takes: &["flow_lr", "flow_gradient", "least_completions"],
    make: |settings| Box::new(StateFlows::new(settings, Windows::Transitions, true)),
};

/// A balance of flows that a head on the policy's states gives.
#[derive(Debug)]
pub struct StateFlows {
    /// Whether the rewards of prefixes shape the flows (forward-looking).
    energies: bool,
    /// Which sums of residuals are squared.
    windows: Windows,
    flow_lr: f64,
    flow_gradient: HeadGradient,
    least_completions: usize,
    head: Option<ScalarHead>,
}

impl StateFlows {
    /// Makes one that squares the residuals of `windows`, prefixes being rewarded with `energies`.
    pub fn new(settings: &GflownetSettings, windows: Windows, energies: bool) -> Self {
        Self {
            energies,
            windows,
            flow_lr: settings.flow_lr,
            flow_gradient: settings.flow_gradient,
            least_completions: settings.least_completions,
            head: None,
        }
    }
}

impl Objective for StateFlows {
    fn requirements(&self) -> Requirements {
        Requirements {
            prefix_rewards: self.energies,
            offline_completions: self.least_completions,
            ..Requirements::default()
        }
    }

    fn attach(&mut self, setup: &Setup<'_>) -> Result<Vec<ParameterGroup>, TrainError> {
        let stream = setup.stream.child("head");
        let head = ScalarHead::init(
            setup.hidden_size,
            true,
            HeadInit::Zero,
            &stream,
            setup.device,
        )?;
        let trained = head.trainable("flow.");
        self.head = Some(head);
        Ok(vec![setup.group(trained, self.flow_lr)])
    }

    fn units(&self, rows: &[&TokenizedCompletion], _eos: &[u32]) -> f64 {
        let lengths: Vec<usize> = rows.iter().map(|row| row.completion_length()).collect();
        self.windows.units(&lengths)
    }

    fn loss(&self, view: &View<'_>, normaliser: Normaliser) -> Result<Found, TrainError> {
        let head = self
            .head
            .as_ref()
            .expect("BUG: the objective is not attached");
        let log_probs = view.log_probs()?;
        let completions = view.rows.iter().map(|row| &row.tokens[row.prompt_length..]);
        let branching = Branching::of_distinct(view.prompt_of.iter().copied().zip(completions));
        let log_r = if self.energies {
            view.state_log_r()?
        } else {
            // Nothing but the rewards of whole completions is read then.
            let log_r = view.log_r_of(&view.rewards()?)?.unsqueeze(1)?;
            let columns = view.actions.columns() + 1;
            Tensor::cat(&vec![log_r; columns], 1)?
        };
        let flows = Flows {
            log_flow: &head.apply(view.states(), self.flow_gradient)?,
            log_r: &log_r,
        };
        let options = ForwardLookingOptions {
            reference: view.shared.options.reference,
            energies: self.energies,
            windows: self.windows,
            // Of what the policy samples any number is evidence, however many coincide.
            least_completions: if view.shared.options.samples() {
                1
            } else {
                self.least_completions
            },
        };
        let trajectories = log_probs.trajectories(&view.actions);
        let found = forward_looking(&trajectories, flows, options, branching, normaliser)?;
        let metrics = Metric::of_flows(found.log_pf, found.log_z, &found.residual, found.log_ratio);
        Ok(Found {
            loss: found.loss,
            log_r: found.log_r,
            metrics,
        })
    }
}
