//! GGUF: one file with metadata, tokenizer and (quantised) tensors, as used by llama.cpp.
//!
//! Versions 2 and 3, little-endian; layout after `docs/gguf.md` of github.com/ggml-org/ggml.

mod configuration;
mod container;
mod model;
mod names;
mod quantisation;
mod vocabulary;

pub use model::{is_gguf, load_gguf};
#[cfg(test)]
pub(super) use names::stored_name;

#[cfg(test)]
pub(super) mod writer;
