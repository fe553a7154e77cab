//! Modified sub-trajectory balance: flows from the probability of stopping, without a head.

use candle_core::{DType, Tensor};

use super::super::found::{Found, Metric};
use super::super::objective::{Objective, ObjectiveKind};
use super::super::requirements::Requirements;
use super::super::view::View;
use super::{GflownetSettings, Weighting};
use crate::ml::objectives::terminable::{
    TerminableTrajectories, mean_at_end, modified_sub_trajectory_balance,
};
use crate::ml::objectives::{Normaliser, Windows};
use crate::ml::trainer::batches::tokens_before_end;
use crate::ml::trainer::{TokenizedCompletion, TrainError};

pub(super) const MODIFIED_SUB_TRAJECTORY_BALANCE: ObjectiveKind<GflownetSettings> = ObjectiveKind {
    name: "modified_sub_trajectory_balance",
    aliases: &["modified_subtb"],
    about: "SubTB on prefixes that may all end (Hu et al. 2024): flows from the probability of stopping, no head.",
    takes: &["lambda", "weighting"],
    make: |settings| {
        Box::new(Terminable {
            windows: settings.windows(1.0, Weighting::Batch),
        })
    },
};

/// Sub-trajectory balance of prefixes that may all end.
#[derive(Debug)]
pub struct Terminable {
    /// Which sums of residuals are squared.
    pub windows: Windows,
}

impl Objective for Terminable {
    fn requirements(&self) -> Requirements {
        Requirements {
            takes_kl: false,
            ..Requirements::default()
        }
    }

    fn units(&self, rows: &[&TokenizedCompletion], eos: &[u32]) -> f64 {
        self.windows.units(&tokens_before_end(rows, eos).0)
    }

    fn loss(&self, view: &View<'_>, normaliser: Normaliser) -> Result<Found, TrainError> {
        let (shared, actions) = (view.shared, &view.actions);
        let (tokens, forced) = view.tokens_before_end();
        let stop = shared.options.eos[0];
        let (log_pf, log_stop) =
            actions.log_probs_and_stops(&shared.model.llama, view.states(), stop, 1.0)?;
        let of_rewards = view.stop_log_r(&tokens)?;
        let mut log_r = of_rewards.clone();
        let mut log_ratio = None;
        if shared.options.reference.in_target {
            let hidden = shared.reference.forward(&actions.batch)?;
            let of_reference = actions.states(&hidden, true)?;
            let (reference, reference_stop) =
                actions.log_probs_and_stops(&shared.reference, &of_reference, stop, 1.0)?;
            log_ratio = Some(mean_log_ratio(&log_pf, &reference, &actions.lengths)?);
            log_r = (log_r + actions.prefix_sums(&reference, &reference_stop, &forced)?)?;
        }
        let trajectories = TerminableTrajectories {
            log_pf: &log_pf.narrow(1, 0, actions.columns())?,
            log_stop: &log_stop,
            tokens: &tokens,
            forced: &forced,
        };
        let found =
            modified_sub_trajectory_balance(&trajectories, &log_r, self.windows, normaliser)?;
        let metrics = Metric::of_flows(found.log_pf, found.log_z, &found.residual, log_ratio);
        Ok(Found {
            loss: found.loss,
            log_r: mean_at_end(&of_rewards.to_dtype(DType::F64)?.to_vec2()?, &tokens),
            metrics,
        })
    }
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
