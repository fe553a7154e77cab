//! Fused operations with their gradients for `f32` on the CPU.
//!
//! Each operation also has a *naive* path of plain candle operations. It runs on other devices and
//! dtypes, and the tests hold the fused path against it. Reductions run in an order that does not
//! depend on the number of threads, so the same inputs give the same bytes on any number of cores.

pub(super) mod attend;
pub mod attention;
pub mod layer_norm;
pub mod linear;
pub mod memory;
pub mod rms_norm;
pub mod rope;
pub mod span_attention;
pub mod swiglu;
pub mod token_log_probs;

pub(super) mod exponential;
pub(super) mod host;
mod matmul;
pub(super) mod panels;
mod vectorised;

#[cfg(test)]
mod tests;
