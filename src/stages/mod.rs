//! Stage kinds, one file each: a struct of params, typed ports and outputs, and the glue that runs it.

pub mod command;
pub mod train_ppo;
mod training;
