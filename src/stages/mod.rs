//! Stage kinds, one file each: a struct of params, typed ports and outputs, and the glue that runs it.
//!
//! What the kinds of one folder share lies beside them; what several folders share lies here.

pub mod command;
pub mod data;
pub mod evaluate;
pub mod report;
pub mod train;

mod defaults;
mod expected_size;
mod passes;
mod placement;
mod ranges;
mod rewards;
mod tokenized;
#[cfg(test)]
mod tryout;
