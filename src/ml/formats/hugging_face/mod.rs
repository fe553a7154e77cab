//! Folders in the layout of the Hugging Face hub.

mod classifier;
mod config;
mod encoder;
#[cfg(test)]
mod fixture;
mod json;
mod language_model;
mod peft;
mod sentence;
mod trunk;
mod vocabulary;

pub use classifier::{
    SequenceClassifier, load_sequence_classifier, save_classifier_config, save_sequence_classifier,
};
pub use config::{generation_wishes, padding_id};
pub use encoder::{
    EncoderCheckpoint, EncoderOptions, load_encoder, load_encoder_classifier, save_encoder,
};
pub use language_model::{load_hugging_face, load_hugging_face_at, save_hugging_face};
pub use peft::{PeftAdapter, load_peft_adapter, save_peft_adapter};
