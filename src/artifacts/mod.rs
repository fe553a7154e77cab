//! Artifact types, one file each: how they are laid out as files, without any device.

pub mod table;
