//! Declarative, cached experiment graphs for GFlowNet and RLHF training of language models.
//!
//! Layers, dependencies pointing down only:
//!
//! ```text
//! main.rs -> cli/        one file per command, the only code that prints
//!              |
//! engine/                spec -> plan -> execute; knows nothing of machine learning
//! registry.rs            one line per stage kind
//! stages/                one file per stage kind, in data/ train/ evaluate/ report/: typed params, typed ports, glue
//! artifacts/             one file per artifact type; none chooses a device
//! ml/                    models, adapters, objectives, generation, optimiser, kernels
//! stats/                 numbers on slices
//! world/                 questions, answers and their exact reward, generated
//! sources/               where bytes from outside come from
//! excerpt.rs             what a message holds of a long text
//! files.rs, quiet.rs     files and panics of others, with care
//! hint.rs                what to do about an error
//! random.rs              seeded counter streams, used by every layer above
//! ```

// Tests hold our operations against those of the C library and of candle.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod artifacts;
pub mod cli;
pub mod engine;
pub mod excerpt;
pub mod files;
pub mod hint;
pub mod ml;
mod quiet;
pub mod random;
pub mod registry;
pub mod sources;
pub mod stages;
pub mod stats;
pub mod world;
