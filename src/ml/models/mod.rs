//! Architectures of models, each described once: what a family of checkpoints adds is a file of names and keys.

pub mod encoder;

#[cfg(test)]
pub(crate) mod fixture;
