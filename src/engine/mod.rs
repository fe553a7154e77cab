//! The graph engine: spec -> plan -> execute. It knows nothing of machine learning.
//!
//! - [`spec`] turns a pipeline file into a checked graph of stage instances: [`document`] is the file's text,
//!   `import` brings stages of other files, [`overrides`] applies profiles and `--set`, `interpolate` replaces `${}`, `matrix` multiplies stages,
//!   `wiring` resolves each [`reference`];
//! - [`plan`] decides for each stage whether a stored result can be used ([`fingerprint`], [`store`]);
//! - [`executor`] runs the rest, each stage in its own process ([`worker`], [`event`]), and [`runs`] remembers it;
//! - [`audit`] computes stored results again.

pub mod artifact;
pub mod audit;
pub(crate) mod code;
pub mod context;
pub mod diagnostic;
pub mod document;
pub mod event;
pub mod executor;
pub mod facts;
pub mod fingerprint;
pub mod graph;
mod history;
mod import;
pub mod instance;
mod interpolate;
pub mod launch;
pub mod limits;
pub mod machine;
pub mod mask;
mod matrix;
pub mod outline;
pub mod overrides;
pub mod plan;
mod problem;
mod processes;
mod profiles;
pub mod provenance;
pub mod reference;
pub mod runs;
pub mod spec;
pub mod stage;
mod stage_error;
pub mod store;
mod value;
mod wiring;
pub mod worker;
