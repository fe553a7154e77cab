//! Language models and their training: pure functions of tensors and configurations.
//!
//! Nothing here knows of stages, files of a store or the command line.

pub mod adapter;
pub(crate) mod documents;
pub mod formats;
pub mod generate;
pub mod head;
pub mod kernels;
pub mod models;
pub mod objectives;
pub mod optimizer;
pub mod parameters;
pub mod placement;
pub mod recompute;
pub mod replay_buffer;
pub mod schedule;
pub mod tokenizer;
pub mod trainer;
