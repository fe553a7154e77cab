//! The stage kinds: one line each.
//!
//! Help, JSON schema, completions and did-you-mean derive from this table.

use crate::engine::stage::{Registry, StageKind};
use crate::stages;

/// Every stage kind that ships with flowgraph.
pub const REGISTRY: &Registry = &[
    StageKind::of::<stages::command::Command>(),
    StageKind::of::<stages::train_ppo::TrainPpo>(),
];
