//! What a GGUF file says of a model, in the words of `config.json`.
//!
//! Keys are those of llama.cpp's `convert_hf_to_gguf.py` and `gguf-py/gguf/constants.py`.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::super::FormatError;
use super::super::tensors::TensorSource;
use super::container::{GgufFile, Value};
use super::names::{EMBEDDING, FREQUENCY_DIVISORS, OUTPUT};
use crate::ml::kernels::rope::RopeLayout;
use crate::ml::models::causal::rotary::{Rotary, Scaling};
use crate::ml::models::causal::{Architecture, families};

/// Keys of an architecture that change nothing, given what is checked or read besides.
const WITHOUT_EFFECT: [&str; 6] = [
    "expert_used_count",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
    "vocab_size",
];

/// Reads the description of a model.
pub(super) fn read_architecture(path: &Path, file: &GgufFile) -> Result<Architecture, FormatError> {
    let name = file.text("general.architecture")?.unwrap_or("(missing)");
    let keys = ArchitectureKeys { path, file, name };
    let is_gpt2 = match name {
        "gpt2" => true,
        "llama" | "qwen2" | "qwen3" => false,
        other => {
            return Err(FormatError::unsupported(
                path,
                format!("`general.architecture` {other}"),
                "only gpt2, llama, qwen2 and qwen3 are; use the model's Hugging Face folder",
            ));
        }
    };
    let document = if is_gpt2 {
        keys.gpt2()?
    } else {
        keys.llama_form()?
    };
    let architecture = families::read(path, &document, &[])?;
    if name != "llama" {
        return Ok(architecture);
    }
    // The converter has permuted the rows of queries and keys of this architecture alone.
    let mut architecture = architecture.with_layout(RopeLayout::Interleaved);
    if let Some(scaling) = keys.divided_frequencies(&architecture)? {
        let mut document = architecture.document.clone();
        document.insert("rope_scaling".to_owned(), scaling);
        architecture = families::read(path, &document, &[])?.with_layout(RopeLayout::Interleaved);
    }
    Ok(architecture)
}

/// The metadata whose keys begin with the name of the architecture.
struct ArchitectureKeys<'a> {
    path: &'a Path,
    file: &'a GgufFile<'a>,
    name: &'a str,
}

impl ArchitectureKeys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn size(&self, key: &str) -> Result<usize, FormatError> {
        self.file.size(&self.key(key))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize, FormatError> {
        match self.file.get(&self.key(key)) {
            Some(_) => self.size(key),
            None => Ok(default),
        }
    }

    fn float_or(&self, key: &str, default: f64) -> Result<f64, FormatError> {
        Ok(self.file.float(&self.key(key))?.unwrap_or(default))
    }

    fn unsupported(&self, key: &str, hint: &str) -> FormatError {
        let key = self.key(key);
        let value = self.file.get(&key).map(Value::describe);
        let value = value.unwrap_or_default();
        FormatError::unsupported(self.path, format!("`{key}` {value}"), hint)
    }

    /// Accepts a number only if it is absent or as expected.
    fn only(&self, key: &str, expected: usize) -> Result<(), FormatError> {
        if self.size_or(key, expected)? == expected {
            return Ok(());
        }
        Err(self.unsupported(key, &format!("only {expected} is")))
    }

    /// Fails if there is a key that is not among the `read` ones and may change a number.
    fn all_known(&self, read: &[&str]) -> Result<(), FormatError> {
        let prefix = self.key("");
        let mut keys = self
            .file
            .keys()
            .filter_map(|key| key.strip_prefix(&*prefix));
        let unknown = keys.find(|key| !read.contains(key) && !WITHOUT_EFFECT.contains(key));
        unknown.map_or(Ok(()), |key| {
            let hint = "it is no key that this architecture is known to read; use the model's Hugging Face folder";
            Err(self.unsupported(key, hint))
        })
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.file.shape(name).is_some()
    }

    fn vocab_size(&self) -> usize {
        self.file.shape(EMBEDDING).map_or(0, |shape| shape[0])
    }

    fn gpt2(&self) -> Result<Map<String, Json>, FormatError> {
        self.all_known(&[
            "attention.head_count",
            "attention.layer_norm_epsilon",
            "block_count",
            "context_length",
            "embedding_length",
            "feed_forward_length",
        ])?;
        // Older converters wrote tied embeddings twice.
        let bits = |name| -> Result<Vec<u32>, FormatError> {
            let values = self.file.read(name)?;
            Ok(values.into_iter().map(f32::to_bits).collect())
        };
        let is_tied = !self.has_tensor(OUTPUT) || bits(OUTPUT)? == bits(EMBEDDING)?;
        Ok(object(json!({
            "model_type": "gpt2",
            "layer_norm_epsilon": self.float_or("attention.layer_norm_epsilon", 1e-5)?,
            "n_embd": self.size("embedding_length")?,
            "n_head": self.size("attention.head_count")?,
            "n_inner": self.size("feed_forward_length")?,
            "n_layer": self.size("block_count")?,
            "n_positions": self.size("context_length")?,
            "tie_word_embeddings": is_tied,
            "vocab_size": self.vocab_size(),
        })))
    }

    /// Reads what has the form of a Llama model.
    fn llama_form(&self) -> Result<Map<String, Json>, FormatError> {
        self.all_known(&[
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.layer_norm_rms_epsilon",
            "attention.sliding_window",
            "attention.value_length",
            "block_count",
            "context_length",
            "embedding_length",
            "expert_count",
            "feed_forward_length",
            "rope.dimension_count",
            "rope.freq_base",
            "rope.scale_linear",
            "rope.scaling.type",
        ])?;
        self.only("expert_count", 0)?;
        self.only("attention.sliding_window", 0)?;
        let (hidden_size, heads) = (
            self.size("embedding_length")?,
            self.size("attention.head_count")?,
        );
        let share = hidden_size.checked_div(heads).unwrap_or_default();
        let head_size = self.size_or("attention.key_length", share)?;
        self.only("attention.value_length", head_size)?;
        self.only("rope.dimension_count", head_size)?;
        let mut document = object(json!({
            "model_type": self.name,
            "hidden_size": hidden_size,
            "intermediate_size": self.size("feed_forward_length")?,
            "max_position_embeddings": self.size("context_length")?,
            "num_attention_heads": heads,
            "num_hidden_layers": self.size("block_count")?,
            "num_key_value_heads": self.size_or("attention.head_count_kv", heads)?,
            "rms_norm_eps": self.float_or("attention.layer_norm_rms_epsilon", 1e-5)?,
            "rope_scaling": self.scaling()?,
            "rope_theta": self.float_or("rope.freq_base", 10_000.0)?,
            "tie_word_embeddings": !self.has_tensor(OUTPUT),
            "vocab_size": self.vocab_size(),
        }));
        let is_shared = share.checked_mul(heads) == Some(hidden_size) && share == head_size;
        if self.name == "qwen3" || !is_shared {
            document.insert("head_dim".to_owned(), head_size.into());
        }
        if self.name != "qwen2" {
            let has_bias = self.has_tensor("blk.0.attn_q.bias");
            document.insert("attention_bias".to_owned(), has_bias.into());
        }
        if self.name == "llama" {
            let has_bias = self.has_tensor("blk.0.ffn_up.bias");
            document.insert("mlp_bias".to_owned(), has_bias.into());
        }
        Ok(document)
    }

    /// Reads how frequencies are scaled, as `rope_scaling` says it.
    fn scaling(&self) -> Result<Json, FormatError> {
        let old = self.float_or("rope.scale_linear", 1.0)?;
        let factor = self.float_or("rope.scaling.factor", old)?;
        match self.file.text(&self.key("rope.scaling.type"))? {
            None if factor == 1.0 => Ok(Json::Null),
            Some("none") => Ok(Json::Null),
            None | Some("linear") => Ok(json!({ "rope_type": "linear", "factor": factor })),
            Some("yarn") => {
                let original = self.size("rope.scaling.original_context_length")?;
                Ok(json!({
                    "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original,
                }))
            }
            Some(_) => Err(self.unsupported("rope.scaling.type", "none, linear and yarn are")),
        }
    }

    /// Finds the scaling of Llama 3.1 that gives the divisors of the frequencies that the file has.
    fn divided_frequencies(&self, model: &Architecture) -> Result<Option<Json>, FormatError> {
        let (true, Some(rotary)) = (self.has_tensor(FREQUENCY_DIVISORS), model.rotary()) else {
            return Ok(None);
        };
        let divisors = self.file.read(FREQUENCY_DIVISORS)?;
        let factor = divisors.iter().copied().fold(0.0, f32::max);
        if divisors.iter().all(|divisor| *divisor == 1.0) {
            return Ok(None);
        }
        // All released models have these; they are not in the file.
        let (low, high, original) = (1.0, 4.0, 8192.0);
        let scaled = Rotary {
            scaling: Scaling::Llama3 {
                factor: f64::from(factor),
                low,
                high,
                original,
            },
            ..rotary.clone()
        };
        let (plain, scaled) = (rotary.frequencies(), scaled.frequencies());
        let is_plain = rotary.scaling == Scaling::None && divisors.len() == plain.len();
        let mut all = divisors.iter().zip(plain.iter().zip(&scaled));
        if !is_plain
            || !all
                .all(|(divisor, (plain, scaled))| (divisor * scaled - plain).abs() <= 1e-5 * plain)
        {
            return Err(FormatError::unsupported(
                self.path,
                format!("the tensor `{FREQUENCY_DIVISORS}`"),
                &format!(
                    "only divisors of Llama 3.1's formula with low_freq_factor {low}, high_freq_factor {high} and \
                     {original} original positions are; use the model's Hugging Face folder"
                ),
            ));
        }
        Ok(Some(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        })))
    }
}

fn object(value: Json) -> Map<String, Json> {
    match value {
        Json::Object(map) => map,
        _ => Map::new(),
    }
}
