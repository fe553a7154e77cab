//! Kinds that sample policies, and score, embed or judge what they wrote.

pub mod embed_hidden;
pub mod embed_sentences;
pub mod enumerate_answers;
pub mod judge;
pub mod sample;
pub mod score;
pub mod score_classifier;
pub mod score_policy;
pub mod score_world;
