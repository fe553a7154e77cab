//! Fused operations with their gradients for `f32` on the CPU.
//!
//! Each operation also has a *composed* form of plain candle operations. It runs on other devices and dtypes, and on the
//! CPU where [`form`] says so: results are then of a numerics class of their own. The tests hold the fused form against
//! it.
//!
//! # Arithmetic
//!
//! The same inputs give the same bits on any number of threads, on any x86-64 processor and with any C library:
//!
//! - A matrix product computes each element as one chain `sum = fma(a[k], b[k], sum)` in IEEE 754 `f32`, `k`
//!   ascending from 0 and `sum` at first 0; then it is multiplied by the scale, and added where products accumulate.
//!   Tiles, packing and threads divide the elements, never a chain (`tiles`). A row among many has the bits that it
//!   has alone.
//! - Other sums within an operation run in 16 lanes, element `i` in lane `i % 16`, which are then added as a binary
//!   tree: lane `i` and lane `i + 8`, then 4, 2 and 1 apart (`host::fold`). Where rows are summed, they are in order.
//! - [`sums`] adds in `f64`, in order, and rounds once.
//! - `exp` is a polynomial of ours (`exponential`, within 2e-7), the sigmoid and [`pointwise::gelu`] are made of it;
//!   all others are those of the `libm` crate.
//! - Products are fused only where the code says `mul_add`.
//!
//! Which thread computes what, and how many there are (`threads`), changes no bit, nor does [`simd`], which says what
//! instructions the loops are compiled for. A weight that generation reads in 16 bits (`packed_weight`) is the same
//! number. NaN has no payload that is kept: which NaN comes out of two is the processor's choice.

pub(super) mod attend;
pub mod attention;
pub mod dora;
pub mod form;
pub mod layer_norm;
pub mod linear;
pub mod pointwise;
pub mod process;
pub(super) mod product;
pub mod rms_norm;
pub mod rope;
pub mod span_attention;
pub mod sums;
pub mod swiglu;
pub mod token_log_probs;

pub(super) mod exponential;
pub(super) mod given;
pub(super) mod host;
mod matmul;
mod one_row;
pub(super) mod packed_weight;
mod packing;
pub mod simd;
pub(in crate::ml) mod threads;
mod tiles;
mod vector;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod paths_tests;
#[cfg(test)]
mod tests;
