//! The stage kinds: one line each.
//!
//! Help, JSON schema, completions and did-you-mean derive from this table.

use crate::engine::stage::{Registry, StageKind};
use crate::stages;

/// Every stage kind that ships with flowgraph.
pub const REGISTRY: &Registry = &[
    // Data and models.
    StageKind::of::<stages::generate_world::GenerateWorld>(),
    StageKind::of::<stages::generate_tree::GenerateTree>(),
    StageKind::of::<stages::load_preferences::LoadPreferences>(),
    StageKind::of::<stages::load_labelled_texts::LoadLabelledTexts>(),
    StageKind::of::<stages::load_model::LoadModel>(),
    StageKind::of::<stages::load_reward::LoadReward>(),
    StageKind::of::<stages::load_encoder::LoadEncoder>(),
    StageKind::of::<stages::train_tokenizer::TrainTokenizer>(),
    StageKind::of::<stages::init_model::InitModel>(),
    // Training.
    StageKind::of::<stages::train_sft::TrainSft>(),
    StageKind::of::<stages::train_reward::TrainReward>(),
    StageKind::of::<stages::train_ppo::TrainPpo>(),
    StageKind::of::<stages::train_classifier::TrainClassifier>(),
    StageKind::of::<stages::train_gflownet::TrainGflownet>(),
    StageKind::of::<stages::train_preference::TrainPreference>(),
    StageKind::of::<stages::train_gflownet_dpo::TrainGflownetDpo>(),
    // Completions and what is said of them.
    StageKind::of::<stages::sample::Sample>(),
    StageKind::of::<stages::enumerate_answers::EnumerateAnswers>(),
    StageKind::of::<stages::score::Score>(),
    StageKind::of::<stages::score_policy::ScorePolicy>(),
    StageKind::of::<stages::score_classifier::ScoreClassifier>(),
    StageKind::of::<stages::score_world::ScoreWorld>(),
    StageKind::of::<stages::embed_hidden::EmbedHidden>(),
    StageKind::of::<stages::embed_sentences::EmbedSentences>(),
    StageKind::of::<stages::judge::Judge>(),
    // Results.
    StageKind::of::<stages::metric_table::MetricTable>(),
    StageKind::of::<stages::semantic_diversity::SemanticDiversity>(),
    StageKind::of::<stages::win_rate::WinRate>(),
    StageKind::of::<stages::target_distance::TargetDistance>(),
    StageKind::of::<stages::objective_table::ObjectiveTable>(),
    StageKind::of::<stages::t_test::TTest>(),
    StageKind::of::<stages::normality::Normality>(),
    StageKind::of::<stages::compare_completions::CompareCompletions>(),
    StageKind::of::<stages::efficiency::Efficiency>(),
    StageKind::of::<stages::claims::Claims>(),
    StageKind::of::<stages::plot_histograms::PlotHistograms>(),
    StageKind::of::<stages::plot_curves::PlotCurves>(),
    StageKind::of::<stages::plot_frontier::PlotFrontier>(),
    // Anything else.
    StageKind::of::<stages::command::Command>(),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::engine::reference::is_name;

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
