//! Model files: reading other people's checkpoints, reading and writing our own.
//!
//! | module | files |
//! | --- | --- |
//! | [`hugging_face`] | a folder with `config.json`, `model.safetensors` (or shards) and `tokenizer.json` or `tokenizer.model`; PEFT adapters; classifiers |
//! | [`gguf`] | one `.gguf` file with weights (quantised or not) and tokenizer |
//! | [`llama2c`] | llama2.c's legacy `.bin` and its tokenizer |
//! | [`safetensors`] | named tensors alone |
//!
//! Whatever the file, weights come out as `f32` on the CPU, named and shaped as in Hugging Face
//! checkpoints. Files are untrusted: a truncated or forged one is an error that names the file, never a
//! panic, and no allocation is larger than what the file really holds.

mod bytes;
mod checkpoint;
mod error;
pub mod gguf;
pub mod hugging_face;
pub mod llama2c;
mod rope;
pub mod safetensors;
mod shapes;
mod tensors;

#[cfg(test)]
mod damage;
#[cfg(test)]
mod fixture;

pub use checkpoint::Checkpoint;
pub use error::FormatError;
pub use rope::to_half_split;
pub use shapes::llama_tensors;
