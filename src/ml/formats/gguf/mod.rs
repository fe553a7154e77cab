//! GGUF: one file with metadata, tokenizer and (quantised) tensors, as used by llama.cpp.
//!
//! Versions 2 and 3, little-endian; layout after `docs/gguf.md` of github.com/ggml-org/ggml.

mod container;
mod llama;
mod quantisation;
mod vocabulary;

#[cfg(test)]
pub(super) use llama::stored_name;
pub use llama::{is_gguf, load_gguf};

#[cfg(test)]
pub(super) mod writer;
