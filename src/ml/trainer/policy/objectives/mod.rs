//! The objectives by name: one line each in [`GFLOWNET_OBJECTIVES`] and [`POLICY_GRADIENTS`].

mod policy_gradient;
mod settings;
mod state_flows;
mod terminable;
mod trajectory_balance;

pub use policy_gradient::{
    Advantage, Importance, KlPlace, KlSettings, POLICY_GRADIENTS, PolicyGradient,
    PolicyGradientSettings,
};
pub use settings::{GflownetSettings, LogZSource, Weighting};
pub use state_flows::StateFlows;
pub use terminable::Terminable;
pub use trajectory_balance::TrajectoryBalance;

use super::objective::ObjectiveKind;

/// Every objective of `GFlowNet`s.
pub const GFLOWNET_OBJECTIVES: &[ObjectiveKind<GflownetSettings>] = &[
    trajectory_balance::TRAJECTORY_BALANCE,
    trajectory_balance::VARGRAD,
    state_flows::DETAILED_BALANCE,
    state_flows::SUB_TRAJECTORY_BALANCE,
    state_flows::FORWARD_LOOKING,
    terminable::MODIFIED_SUB_TRAJECTORY_BALANCE,
    trajectory_balance::RELATIVE_TRAJECTORY_BALANCE,
    trajectory_balance::TBA,
    trajectory_balance::FLOWRL,
    trajectory_balance::FLOWRL_RELEASED,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_objective_is_found_by_each_of_its_names_and_by_no_other() {
        let mut names = BTreeSet::new();
        for kind in GFLOWNET_OBJECTIVES {
            for name in std::iter::once(&kind.name).chain(kind.aliases) {
                assert!(names.insert(*name), "{name}");
                let found = ObjectiveKind::find(GFLOWNET_OBJECTIVES, name).unwrap();
                assert_eq!(found.name, kind.name);
            }
            assert!(kind.about.ends_with('.') && !kind.about.is_empty());
        }
        assert!(ObjectiveKind::find(GFLOWNET_OBJECTIVES, "ppo").is_none());
    }
}
