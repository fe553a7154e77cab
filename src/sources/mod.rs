//! Where bytes from outside come from.

pub mod embedded;
