//! MPNet (Song et al. 2020, arXiv 2004.09297): RoBERTa's positions, no token types, and biases by distance.

use serde_json::{Value, json};

use super::super::description::{EncoderConfig, Part, Positions};
use super::{BERT_KEYS, Family, ROBERTA_HEAD, bert};
use crate::ml::formats::FormatError;
use crate::ml::models::keys::Keys;

/// Its code has this id whatever `config.json` says.
const PADDING: u32 = 1;

pub(super) const MPNET: Family = Family {
    model_type: "mpnet",
    class: "MPNetModel",
    prefix: "mpnet.",
    blocks: "encoder.layer",
    name,
    keys: BERT_KEYS,
    head: ROBERTA_HEAD,
    beside: &["pooler.", "lm_head.", "classifier.", "qa_outputs."],
    read,
    write,
};

fn name(part: Part) -> &'static str {
    match part {
        Part::Query => "attention.attn.q",
        Part::Key => "attention.attn.k",
        Part::Value => "attention.attn.v",
        Part::Attended => "attention.attn.o",
        Part::AttentionNorm => "attention.LayerNorm",
        other => bert::name(other),
    }
}

fn read(family: &'static Family, keys: &Keys<'_>) -> Result<EncoderConfig, FormatError> {
    // Its buckets are those of 32, however many rows the table has.
    let buckets = json!(EncoderConfig::BUCKETS);
    keys.only("relative_attention_num_buckets", &buckets)?;
    keys.ignore(&["pad_token_id", "position_embedding_type", "type_vocab_size"]);
    Ok(EncoderConfig {
        positions: Positions::AfterPadding(PADDING),
        padding_id: Some(PADDING),
        distances: true,
        layer_norm_eps: keys.number("layer_norm_eps", 1e-12)?,
        ..family.sizes(keys)?
    })
}

fn write(config: &EncoderConfig) -> Value {
    json!({
        "layer_norm_eps": config.layer_norm_eps,
        "pad_token_id": config.padding_id,
        "relative_attention_num_buckets": EncoderConfig::BUCKETS,
    })
}
