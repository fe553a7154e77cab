//! BERT (Devlin et al. 2019, arXiv 1810.04805), such as MiniLM.

use serde_json::{Value, json};

use super::super::activation::Activation;
use super::super::description::{EncoderConfig, Part};
use super::{BERT_KEYS, Family, HeadNames, padding_id};
use crate::ml::formats::FormatError;
use crate::ml::models::keys::Keys;

pub(super) const BERT: Family = Family {
    model_type: "bert",
    class: "BertModel",
    prefix: "bert.",
    blocks: "encoder.layer",
    name,
    keys: BERT_KEYS,
    head: HeadNames {
        dense: "classifier.dense",
        activation: Activation::Tanh,
        out: "classifier.out_proj",
        stored: Some(["pooler.dense", "classifier"]),
    },
    beside: &["pooler.", "cls.", "classifier.", "qa_outputs."],
    read,
    write,
};

pub(super) fn name(part: Part) -> &'static str {
    match part {
        Part::Words => "embeddings.word_embeddings",
        Part::Positions => "embeddings.position_embeddings",
        Part::TokenTypes => "embeddings.token_type_embeddings",
        Part::EmbeddingNorm => "embeddings.LayerNorm",
        Part::Distances => "encoder.relative_attention_bias",
        Part::Query => "attention.self.query",
        Part::Key => "attention.self.key",
        Part::Value => "attention.self.value",
        Part::Attended => "attention.output.dense",
        Part::AttentionNorm => "attention.output.LayerNorm",
        Part::Inner => "intermediate.dense",
        Part::Outer => "output.dense",
        Part::OutputNorm => "output.LayerNorm",
    }
}

fn read(family: &'static Family, keys: &Keys<'_>) -> Result<EncoderConfig, FormatError> {
    keys.only("position_embedding_type", &json!("absolute"))?;
    // Of versions that were trained elsewhere; nothing ever read them.
    keys.ignore(&[
        "directionality",
        "embedding_size",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    ]);
    Ok(EncoderConfig {
        token_types: Some(keys.size_or("type_vocab_size", 2)?),
        padding_id: Some(padding_id(keys, 0)?),
        layer_norm_eps: keys.number("layer_norm_eps", 1e-12)?,
        ..family.sizes(keys)?
    })
}

pub(super) fn write(config: &EncoderConfig) -> Value {
    json!({
        "layer_norm_eps": config.layer_norm_eps,
        "pad_token_id": config.padding_id,
        "position_embedding_type": "absolute",
        "type_vocab_size": config.token_types,
    })
}
