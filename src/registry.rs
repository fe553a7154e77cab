//! The stage kinds: one line each.
//!
//! Help, JSON schema, completions and did-you-mean derive from this table; `first_of` names the group that begins with a
//! line.

use crate::engine::stage::{Registry, StageKind};
use crate::stages;

/// Every stage kind that ships with flowgraph.
pub const REGISTRY: &Registry = &[
    StageKind::of::<stages::data::generate_world::GenerateWorld>().first_of("Data and models"),
    StageKind::of::<stages::data::generate_tree::GenerateTree>(),
    StageKind::of::<stages::data::load_preferences::LoadPreferences>(),
    StageKind::of::<stages::data::load_labelled_texts::LoadLabelledTexts>(),
    StageKind::of::<stages::data::load_texts::LoadTexts>(),
    StageKind::of::<stages::data::load_completions::LoadCompletions>(),
    StageKind::of::<stages::data::load_model::LoadModel>(),
    StageKind::of::<stages::data::load_reward::LoadReward>(),
    StageKind::of::<stages::data::reward_command::RewardCommand>(),
    StageKind::of::<stages::data::reward_rule::RewardRule>(),
    StageKind::of::<stages::data::load_dataset::LoadDataset>(),
    StageKind::of::<stages::data::load_encoder::LoadEncoder>(),
    StageKind::of::<stages::train::train_tokenizer::TrainTokenizer>(),
    StageKind::of::<stages::data::init_model::InitModel>(),
    StageKind::of::<stages::train::train_sft::TrainSft>().first_of("Training"),
    StageKind::of::<stages::train::train_reward::TrainReward>(),
    StageKind::of::<stages::train::train_ppo::TrainPpo>(),
    StageKind::of::<stages::train::train_classifier::TrainClassifier>(),
    StageKind::of::<stages::train::train_gflownet::TrainGflownet>(),
    StageKind::of::<stages::train::train_policy_gradient::TrainPolicyGradient>(),
    StageKind::of::<stages::train::train_preference::TrainPreference>(),
    StageKind::of::<stages::train::train_gflownet_dpo::TrainGflownetDpo>(),
    StageKind::of::<stages::evaluate::sample::Sample>()
        .first_of("Completions and what is said of them"),
    StageKind::of::<stages::evaluate::enumerate_answers::EnumerateAnswers>(),
    StageKind::of::<stages::evaluate::score::Score>(),
    StageKind::of::<stages::evaluate::score_policy::ScorePolicy>(),
    StageKind::of::<stages::evaluate::score_classifier::ScoreClassifier>(),
    StageKind::of::<stages::evaluate::score_world::ScoreWorld>(),
    StageKind::of::<stages::evaluate::embed_hidden::EmbedHidden>(),
    StageKind::of::<stages::evaluate::embed_sentences::EmbedSentences>(),
    StageKind::of::<stages::evaluate::judge::Judge>(),
    StageKind::of::<stages::report::metric_table::MetricTable>().first_of("Results"),
    StageKind::of::<stages::report::semantic_diversity::SemanticDiversity>(),
    StageKind::of::<stages::report::win_rate::WinRate>(),
    StageKind::of::<stages::report::target_distance::TargetDistance>(),
    StageKind::of::<stages::report::objective_table::ObjectiveTable>(),
    StageKind::of::<stages::report::t_test::TTest>(),
    StageKind::of::<stages::report::normality::Normality>(),
    StageKind::of::<stages::report::compare_completions::CompareCompletions>(),
    StageKind::of::<stages::report::efficiency::Efficiency>(),
    StageKind::of::<stages::report::choose::Choose>(),
    StageKind::of::<stages::report::claims::Claims>(),
    StageKind::of::<stages::report::ranking::Ranking>(),
    StageKind::of::<stages::report::frontier::Frontier>(),
    StageKind::of::<stages::report::plot_histograms::PlotHistograms>(),
    StageKind::of::<stages::report::plot_curves::PlotCurves>(),
    StageKind::of::<stages::report::plot_frontier::PlotFrontier>(),
    StageKind::of::<stages::report::plot_metric::PlotMetric>(),
    StageKind::of::<stages::report::plot_profiles::PlotProfiles>(),
    StageKind::of::<stages::command::Command>().first_of("Anything else"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::engine::reference::is_name;

    #[test]
    fn results_are_classed_by_the_variable_that_chooses_the_form_of_operations() {
        // The engine knows no operations, these no engine.
        use crate::engine::machine::{COMPOSED, KERNELS};
        use crate::ml::kernels::form;
        assert_eq!((KERNELS, COMPOSED), (form::VARIABLE, form::COMPOSED));
    }

    #[test]
    fn every_kind_has_a_name_of_its_own_a_description_and_an_example_that_parses() {
        let mut names = BTreeSet::new();
        for kind in REGISTRY {
            let name = kind.name;
            assert!(is_name(name) && names.insert(name), "{name}");
            assert!(!kind.about().is_empty(), "{name}");
            let example = serde_yaml::from_str(kind.example).unwrap();
            let stage =
                (kind.parse)(&example).unwrap_or_else(|problems| panic!("{name}: {problems:?}"));
            let mut outputs = BTreeSet::new();
            assert!(
                stage
                    .outputs()
                    .iter()
                    .all(|output| outputs.insert(output.name.clone())),
                "{name}"
            );
            let mut ports = BTreeSet::new();
            assert!(
                stage
                    .ports()
                    .iter()
                    .all(|port| ports.insert(port.name.clone())),
                "{name}"
            );
        }
    }
}
