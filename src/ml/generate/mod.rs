//! Completions of prompts, batched and with stored keys and values.
//!
//! A row's completion depends on its own prompt and key only: sequences are not padded, the products of a step
//! run over each row alone, and every row has its own random draws.

mod contrastive;
mod decoder;
mod device_choice;
mod device_decoder;
mod distribution;
mod host_choice;
mod host_decoder;
mod options;
mod run;

#[cfg(test)]
mod tests;

pub use options::{
    Completion, Contrastive, DIVISORS, GenerateError, GenerateOptions, Progress, Sampling, Strategy,
};
pub use run::generate;
