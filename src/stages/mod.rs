//! Stage kinds, one file each: a struct of params, typed ports and outputs, and the glue that runs it.

pub mod claims;
pub mod command;
pub mod compare_completions;
pub mod efficiency;
pub mod embed_hidden;
pub mod embed_sentences;
pub mod enumerate_answers;
pub mod generate_tree;
pub mod generate_world;
pub mod init_model;
pub mod judge;
pub mod load_encoder;
pub mod load_labelled_texts;
pub mod load_model;
pub mod load_preferences;
pub mod load_reward;
pub mod metric_table;
pub mod normality;
pub mod objective_table;
pub mod plot_curves;
pub mod plot_frontier;
pub mod plot_histograms;
pub mod sample;
pub mod score;
pub mod score_classifier;
pub mod score_policy;
pub mod score_world;
pub mod semantic_diversity;
pub mod t_test;
pub mod target_distance;
pub mod train_classifier;
pub mod train_gflownet;
pub mod train_gflownet_dpo;
pub mod train_ppo;
pub mod train_preference;
pub mod train_reward;
pub mod train_sft;
pub mod train_tokenizer;
pub mod win_rate;

mod axes;
mod defaults;
mod expected_size;
#[cfg(test)]
mod fixture;
mod groups;
#[cfg(test)]
mod interruptions;
mod measure;
mod model_files;
mod pairs;
mod passes;
mod ranges;
mod resample;
mod scored;
mod tokenized;
mod training;
mod trainings;
#[cfg(test)]
mod tryout;
