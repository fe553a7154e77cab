//! The stage kinds: one line each.
//!
//! Help, JSON schema, completions and did-you-mean derive from this table.

use crate::engine::stage::{Registry, StageKind};
use crate::stages;

/// Every stage kind that ships with flowgraph.
pub const REGISTRY: &Registry = &[
    StageKind::of::<stages::command::Command>(),
    StageKind::of::<stages::metric_table::MetricTable>(),
    StageKind::of::<stages::t_test::TTest>(),
    StageKind::of::<stages::plot_histograms::PlotHistograms>(),
    StageKind::of::<stages::plot_curves::PlotCurves>(),
];
