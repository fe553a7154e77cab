//! Architectures of models, each described once: what a family of checkpoints adds is a file of names and keys.
//!
//! Families of causal models: Llama (1 to 3.3: biases, own head sizes, rope scaling linear, dynamic, llama3, yarn),
//! Mistral, Qwen 2 and 3, GPT-2, GPT-NeoX (Pythia), OPT, Gemma (the first), Phi 3, OLMo 2, SmolLM 3, StableLM and
//! StarCoder 2; GGUF files of Llama, Qwen 2, Qwen 3 and GPT-2 as llama.cpp's converter writes them, and llama2.c's. All are
//! trained, adapted, sampled and scored by the same code, and what is sampled has the log-probabilities that training
//! computes, to the last bit. `pipelines/models.md` holds each against transformers and PEFT: outputs, gradients of all
//! tensors, adapters, merged or not, and decoding token for token.
//!
//! A key of `config.json` that a family is not known to read is an error; nothing is initialised at random in silence.
//! Rows longer than a model's `max_position_embeddings` are refused, so that `dynamic` scaling never sets in; `longrope` is
//! refused. Reward models of OLMo 2 open nowhere else: transformers 4.57 has no class for them.

pub mod causal;
pub mod encoder;
pub(crate) mod keys;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod parity_page;
