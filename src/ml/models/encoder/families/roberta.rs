//! RoBERTa (Liu et al. 2019, arXiv 1907.11692): BERT's blocks, positions after that of padding, another head.

use serde_json::json;

use super::super::description::{EncoderConfig, Positions};
use super::bert::{name, write};
use super::{BERT_KEYS, Family, ROBERTA_HEAD, padding_id};
use crate::ml::formats::FormatError;
use crate::ml::models::keys::Keys;

pub(super) const ROBERTA: Family = Family {
    model_type: "roberta",
    class: "RobertaModel",
    prefix: "roberta.",
    blocks: "encoder.layer",
    name,
    keys: BERT_KEYS,
    head: ROBERTA_HEAD,
    beside: &["pooler.", "lm_head.", "classifier.", "qa_outputs."],
    read: |family, keys| read(family, keys),
    write,
};

/// Reads the configuration of RoBERTa or of one that is RoBERTa but for its `model_type`.
pub(super) fn read(family: &'static Family, keys: &Keys<'_>) -> Result<EncoderConfig, FormatError> {
    keys.only("position_embedding_type", &json!("absolute"))?;
    let padding = padding_id(keys, 1)?;
    Ok(EncoderConfig {
        positions: Positions::AfterPadding(padding),
        token_types: Some(keys.size_or("type_vocab_size", 2)?),
        padding_id: Some(padding),
        layer_norm_eps: keys.number("layer_norm_eps", 1e-12)?,
        ..family.sizes(keys)?
    })
}
