//! Artifact types, one file each: how they are laid out as files, without any device.
//!
//! | kind | files | holds |
//! | --- | --- | --- |
//! | `dataset` | `table.parquet`, `table.json` | questions with prompts and preferred / rejected completions |
//! | `tokenizer` | `tokenizer.json`, `tokenizer_config.json` | a tokenizer |
//! | `language_model` | the Hugging Face layout, an adapter in PEFT's | a policy with its tokenizer |
//! | `reward_model` | the same as a classifier with one class, and `reward.json` | a reward model with its calibration |
//! | `reward_rule` | `rule.json` | a rule that rewards texts, with the right answers that it needs |
//! | `completions` | `table.parquet`, `table.json` | what a policy wrote for each prompt |
//! | `scores` | `table.parquet`, `table.json` | completions with rewards |
//! | `judgements` | `table.parquet`, `table.json` | which of two completions is better |
//! | `replies` | `replies.jsonl` | raw replies of a judge by the digest of the request |
//! | `embeddings` | `embeddings.safetensors` | one vector for each text |
//! | `text_encoder`, `text_classifier` | the Hugging Face layout, `metrics.json` | a text encoder, without and with a head |
//! | `labelled_texts` | `table.parquet`, `table.json` | texts with a class each |
//! | `curve` | `table.parquet`, `table.json` | metrics of a training, step by step, and how it ended |
//! | `table`, `figure`, `metrics`, `file` | | results for people |

pub mod compare;
pub mod completions;
pub mod curve;
pub mod dataset;
pub mod embeddings;
pub mod figure;
pub mod judgements;
pub mod labelled_texts;
pub mod language_model;
pub mod reward;
pub mod reward_model;
pub mod reward_program;
pub mod reward_rule;
pub mod table;
pub mod text_encoder;
