//! Folders in the layout of the Hugging Face hub.

mod config;
mod encoder;
mod model;
mod peft;
mod sentence;
mod vocabulary;

pub use config::{generation_wishes, padding_id};
pub use encoder::{
    EncoderCheckpoint, EncoderOptions, load_encoder, load_encoder_classifier, save_encoder,
};
pub use model::{
    SequenceClassifier, load_hugging_face, load_hugging_face_without, load_sequence_classifier,
    save_classifier_config, save_hugging_face, save_sequence_classifier,
};
pub use peft::{PeftAdapter, load_peft_adapter, save_peft_adapter};
