//! The stage kinds: one line each.
//!
//! Help, JSON schema, completions and did-you-mean derive from this table.

use crate::engine::stage::{Registry, StageKind};
use crate::stages;

/// Every stage kind that ships with flowgraph.
pub const REGISTRY: &Registry = &[
    // Data and models.
    StageKind::of::<stages::generate_world::GenerateWorld>(),
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
    // Completions and what is said of them.
    StageKind::of::<stages::sample::Sample>(),
    StageKind::of::<stages::score::Score>(),
    StageKind::of::<stages::score_classifier::ScoreClassifier>(),
    StageKind::of::<stages::score_world::ScoreWorld>(),
    StageKind::of::<stages::embed_hidden::EmbedHidden>(),
    StageKind::of::<stages::embed_sentences::EmbedSentences>(),
    // Results.
    StageKind::of::<stages::metric_table::MetricTable>(),
    StageKind::of::<stages::t_test::TTest>(),
    StageKind::of::<stages::plot_histograms::PlotHistograms>(),
    StageKind::of::<stages::plot_curves::PlotCurves>(),
    // Anything else.
    StageKind::of::<stages::command::Command>(),
];
