//! Architectures of models, each described once: what a family of checkpoints adds is a file of names and keys.

pub mod causal;
pub mod encoder;
pub(crate) mod keys;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod parity_page;
