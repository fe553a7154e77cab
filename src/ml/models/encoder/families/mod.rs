//! Families of encoders: what `config.json` and the tensors of a checkpoint are called.
//!
//! A family is one file and one line in [`FAMILIES`].

mod bert;
mod distilbert;
mod mpnet;
mod roberta;
mod xlm_roberta;

use serde_json::{Map, Value, json};

use super::activation::Activation;
use super::description::{EncoderConfig, Family, HeadNames, Positions, SizeKeys};
use crate::ml::formats::FormatError;
use crate::ml::models::keys::Keys;

/// All families.
pub(crate) const FAMILIES: &[&Family] = &[
    &bert::BERT,
    &distilbert::DISTILBERT,
    &mpnet::MPNET,
    &roberta::ROBERTA,
    &xlm_roberta::XLM_ROBERTA,
];

impl Family {
    /// Finds a family by its `model_type`.
    pub(crate) fn of(model_type: &str) -> Option<&'static Self> {
        let found = FAMILIES.iter().find(|one| one.model_type == model_type);
        found.copied()
    }

    /// Lists the families.
    pub(crate) fn listed() -> String {
        let names: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
        names.join(", ")
    }

    /// Reads a configuration.
    pub(crate) fn config(&'static self, keys: Keys<'_>) -> Result<EncoderConfig, FormatError> {
        let config = (self.read)(self, &keys)?;
        // Code of its own; `transformers` may run it instead of the family's.
        keys.only("auto_map", &Value::Null)?;
        keys.only("classifier_pooling", &json!("mean"))?;
        keys.ignore(&[
            // Of the head that predicts masked tokens, which is not loaded.
            "tie_word_embeddings",
            // Training drops nothing out.
            "attention_probs_dropout_prob",
            "dropout",
            "hidden_dropout_prob",
            "qa_dropout",
            "seq_classif_dropout",
            "layerdrop",
        ]);
        keys.finish_model()?;
        Ok(config)
    }

    /// Reads what all families have; all else is as if the family had none of it.
    fn sizes(&'static self, keys: &Keys<'_>) -> Result<EncoderConfig, FormatError> {
        Ok(EncoderConfig {
            family: self,
            vocab_size: keys.size("vocab_size")?,
            hidden_size: keys.size_of(self.keys.hidden_size)?,
            intermediate_size: keys.size(self.keys.intermediate_size)?,
            num_layers: keys.size_of(self.keys.num_layers)?,
            num_heads: keys.size_of(self.keys.num_heads)?,
            max_position_embeddings: keys.size_or("max_position_embeddings", 512)?,
            positions: Positions::FromZero,
            token_types: None,
            padding_id: None,
            distances: false,
            activation: activation(keys, self.keys.activation)?,
            layer_norm_eps: 1e-12,
        })
    }

    /// Returns a configuration as [`Family::config`] reads it.
    pub(crate) fn document(&self, config: &EncoderConfig) -> Value {
        let keys = &self.keys;
        let mut document = json!({
            "architectures": [self.class],
            keys.activation: config.activation.name(),
            keys.hidden_size[0]: config.hidden_size,
            keys.intermediate_size: config.intermediate_size,
            "max_position_embeddings": config.max_position_embeddings,
            "model_type": self.model_type,
            keys.num_heads[0]: config.num_heads,
            keys.num_layers[0]: config.num_layers,
            "vocab_size": config.vocab_size,
        });
        let others: Map<String, Value> = match (self.write)(config) {
            Value::Object(others) => others,
            _ => Map::new(),
        };
        for (key, value) in others {
            document[key] = value;
        }
        document
    }
}

/// Keys of the sizes of BERT and its nearest kin.
const BERT_KEYS: SizeKeys = SizeKeys {
    hidden_size: ["hidden_size"; 2],
    intermediate_size: "intermediate_size",
    num_layers: ["num_hidden_layers"; 2],
    num_heads: ["num_attention_heads"; 2],
    activation: "hidden_act",
};

/// RoBERTa's head, which others have as well.
const ROBERTA_HEAD: HeadNames = HeadNames {
    dense: "classifier.dense",
    activation: Activation::Tanh,
    out: "classifier.out_proj",
    stored: None,
};

/// Reads an activation, the exact GELU if none is named.
fn activation(keys: &Keys<'_>, key: &'static str) -> Result<Activation, FormatError> {
    let Some(name) = keys.text(key)? else {
        return Ok(Activation::default());
    };
    let hint = format!("{} are", Activation::names());
    Activation::by_name(name).ok_or_else(|| keys.unsupported(key, &json!(name), &hint))
}

/// Reads the id of padding, which a table has a row for.
fn padding_id(keys: &Keys<'_>, default: u32) -> Result<u32, FormatError> {
    let id = keys.size_or("pad_token_id", default as usize)?;
    Ok(u32::try_from(id).unwrap_or(u32::MAX))
}
