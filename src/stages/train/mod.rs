//! Kinds that train, and what their stages share: the loop over steps, checkpoints, curves.

pub mod train_classifier;
pub mod train_gflownet;
pub mod train_gflownet_dpo;
pub mod train_policy_gradient;
pub mod train_ppo;
pub mod train_preference;
pub mod train_reward;
pub mod train_sft;
pub mod train_tokenizer;

#[cfg(test)]
mod interruptions;
mod micro_batch;
mod objective;
mod pairs;
mod policy;
mod rewards;
mod training;
