//! DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT's blocks without token types and pooler.

use serde_json::{Value, json};

use super::super::activation::Activation;
use super::super::description::{EncoderConfig, Part};
use super::{Family, HeadNames, SizeKeys, bert, padding_id};
use crate::ml::formats::FormatError;
use crate::ml::models::keys::Keys;

pub(super) const DISTILBERT: Family = Family {
    model_type: "distilbert",
    class: "DistilBertModel",
    prefix: "distilbert.",
    blocks: "transformer.layer",
    name,
    keys: SizeKeys {
        hidden_size: ["dim", "hidden_size"],
        intermediate_size: "hidden_dim",
        num_layers: ["n_layers", "num_hidden_layers"],
        num_heads: ["n_heads", "num_attention_heads"],
        activation: "activation",
    },
    head: HeadNames {
        dense: "pre_classifier",
        activation: Activation::Relu,
        out: "classifier",
        stored: None,
    },
    beside: &[
        "vocab_transform.",
        "vocab_layer_norm.",
        "vocab_projector.",
        "pre_classifier.",
        "classifier.",
        "qa_outputs.",
    ],
    read,
    write,
};

fn name(part: Part) -> &'static str {
    match part {
        Part::Query => "attention.q_lin",
        Part::Key => "attention.k_lin",
        Part::Value => "attention.v_lin",
        Part::Attended => "attention.out_lin",
        Part::AttentionNorm => "sa_layer_norm",
        Part::Inner => "ffn.lin1",
        Part::Outer => "ffn.lin2",
        Part::OutputNorm => "output_layer_norm",
        other => bert::name(other),
    }
}

fn read(family: &'static Family, keys: &Keys<'_>) -> Result<EncoderConfig, FormatError> {
    // The table of positions is in the file, whatever it began as.
    keys.ignore(&["sinusoidal_pos_embds", "tie_weights_"]);
    Ok(EncoderConfig {
        padding_id: Some(padding_id(keys, 0)?),
        // There is no key for it.
        layer_norm_eps: 1e-12,
        ..family.sizes(keys)?
    })
}

fn write(config: &EncoderConfig) -> Value {
    json!({ "pad_token_id": config.padding_id })
}
