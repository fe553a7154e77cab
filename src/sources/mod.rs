//! Where bytes from outside come from.
