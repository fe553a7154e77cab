//! Arithmetic: a target is to be made of some numbers, step by step.
//!
//! A problem is `numbers 2 3 6 target 18`. An answer is a derivation: steps such as `2 * 3 = 6 ; 6 * 3 = 18`, with
//! ` ; ` between them. Each step adds, subtracts or multiplies two numbers that are there, given or made before; they
//! are gone then, and their result is there. Results are exact, and whole numbers from 1 to the greatest number of the
//! problem. A derivation is right if all of its steps are and the last result is the target; the way there is free, so
//! that problems have several right answers.
//!
//! [`Problems`] are those of the generated world: three numbers from 1 to 12, a target that is none of them, and 2 to 60
//! right derivations.
//!
//! Two derivations are the same if their canonical texts are: words with single spaces between them, the greater number
//! of a sum or product first. The order of the steps counts.

mod derivation;
mod problem;
mod problems;
mod search;

#[cfg(test)]
mod tests;

pub use derivation::{Derivation, Fault, Operation, Reading, Step};
pub use problem::{GREATEST, MOST_NUMBERS, Problem};
pub(crate) use problems::log_priors;
pub use problems::{DerivationPair, FEWEST_ANSWERS, FLAWED_SHARE, MOST_ANSWERS, Posed, Problems};
