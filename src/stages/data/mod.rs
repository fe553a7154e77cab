//! Kinds that bring or make data, models and encoders.

pub mod chat_templates;
pub mod generate_tree;
pub mod generate_world;
pub mod init_model;
pub mod load_completions;
pub mod load_dataset;
pub mod load_encoder;
pub mod load_labelled_texts;
pub mod load_model;
pub mod load_preferences;
pub mod load_reward;
pub mod load_texts;
pub mod reward_command;
pub mod reward_rule;

mod left_out;
mod model_files;
mod origin;
mod question;
mod special;
