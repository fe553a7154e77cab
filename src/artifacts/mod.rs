//! Artifact types, one file each: how they are laid out as files, without any device.
//!
//! [`format`] says what each kind is made of.

pub mod compare;
pub mod completions;
pub mod curve;
pub mod dataset;
pub mod embeddings;
pub mod figure;
pub mod format;
pub mod judgements;
pub mod labelled_texts;
pub mod language_model;
pub mod reward;
pub mod reward_model;
pub mod reward_program;
pub mod reward_rule;
pub mod table;
pub mod text_encoder;
