//! Encoders of the BERT family in Hugging Face folders.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::FormatError;
use super::super::safetensors::{SafetensorsFiles, save_safetensors};
use super::super::tensors::{TensorSource, load_exactly};
use super::config::{Object, read_object};
use super::model::write_json;
use super::sentence::{read_sentence_files, write_sentence_files};
use crate::ml::bert::{BertConfig, ClassifierHead, Pooling, SentenceEmbedding};
use crate::ml::parameters::Weights;
use crate::ml::tokenizer::Tokenizer;

const WORDS: &str = "embeddings.word_embeddings.weight";
/// Our own key of `config.json`: a linear head on the mean, which no class of `transformers` has.
const MEAN_HEAD: &str = "classifier_pooling";

/// An encoder, or a classifier if it has a head, as it comes out of a folder.
#[derive(Debug, Clone)]
pub struct EncoderCheckpoint {
    /// Shape of the encoder.
    pub config: BertConfig,
    /// Shape of the head, if one was asked for.
    pub head: Option<ClassifierHead>,
    /// Names of the classes; empty if the file has none.
    pub labels: Vec<String>,
    /// Weights of encoder (no prefix) and head (`classifier.*`), in `f32` on the CPU.
    pub weights: Weights,
    /// The tokenizer, where the folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// How texts are embedded, where the folder says so.
    pub sentence: Option<SentenceEmbedding>,
}

/// Loads a BERT, RoBERTa or MiniLM encoder; heads in the folder are left out.
///
/// In a folder of sentence-transformers, pooling, normalisation, the greatest length and lower case are as it says.
pub fn load_encoder(folder: &Path) -> Result<EncoderCheckpoint, FormatError> {
    let Some(files) = read_sentence_files(folder)? else {
        return load(folder, false);
    };
    let mut checkpoint = load(&files.encoder, false)?;
    checkpoint.sentence = Some(files.embedding);
    if let Some(mut tokenizer) = checkpoint.tokenizer.take() {
        let path = files.encoder.join("tokenizer.json");
        if files.lower_case {
            tokenizer = tokenizer.lowered().map_err(FormatError::tokenizer(&path))?;
        }
        if let Some(length) = files.max_tokens {
            tokenizer = tokenizer.with_max_length(length);
        }
        checkpoint.tokenizer = Some(tokenizer);
    }
    Ok(checkpoint)
}

/// Loads a classifier: `BertForSequenceClassification`, `RobertaForSequenceClassification` or our own.
///
/// Without its head the file is refused.
pub fn load_encoder_classifier(folder: &Path) -> Result<EncoderCheckpoint, FormatError> {
    load(folder, true)
}

fn load(folder: &Path, with_head: bool) -> Result<EncoderCheckpoint, FormatError> {
    let config_path = folder.join("config.json");
    let map = read_object(&config_path)?;
    let (config, is_bert) = read_config(&config_path, &map)?;
    let object = Object::new(&config_path, &map);
    let labels = object.labels()?;

    let source = Source::new(SafetensorsFiles::open_model(folder)?, is_bert);
    let head = if with_head {
        let classes = source
            .shape(&source.stored_name("classifier.out_proj.weight"))
            .and_then(|shape| shape.first().copied());
        let classes = classes.unwrap_or(labels.len().max(1));
        Some(if map.contains_key(MEAN_HEAD) {
            ClassifierHead::mean(classes)
        } else {
            ClassifierHead::first_token(classes)
        })
    } else {
        None
    };
    if let Some(head) = &head
        && !labels.is_empty()
        && labels.len() != head.classes
    {
        return Err(FormatError::malformed(
            &config_path,
            format!(
                "`id2label` names {} classes, the head has {}",
                labels.len(),
                head.classes
            ),
        ));
    }
    let heads = head
        .iter()
        .flat_map(|head| head.tensors(config.hidden_size));
    let expected = config.tensors().chain(heads);
    let weights = load_exactly(&source, expected, |name| {
        let name = name.strip_prefix(source.prefix).unwrap_or(name);
        ["pooler.", "cls.", "lm_head.", "classifier."]
            .iter()
            .any(|head| name.starts_with(head))
            || ["embeddings.position_ids", "embeddings.token_type_ids"].contains(&name)
    })?;

    let tokenizer_path = folder.join("tokenizer.json");
    let tokenizer = if tokenizer_path.exists() {
        Some(Tokenizer::load(folder).map_err(FormatError::tokenizer(&tokenizer_path))?)
    } else {
        None
    };
    let ids = tokenizer.as_ref().map_or(0, Tokenizer::vocab_size);
    if ids > config.vocab_size {
        return Err(FormatError::malformed(
            &tokenizer_path,
            format!(
                "it has {ids} ids, but the encoder's `vocab_size` is {}",
                config.vocab_size
            ),
        ));
    }
    Ok(EncoderCheckpoint {
        config,
        head,
        labels,
        weights,
        tokenizer,
        sentence: None,
    })
}

/// Reads the shape, and whether the names are BERT's rather than RoBERTa's.
fn read_config(path: &Path, map: &Map<String, Value>) -> Result<(BertConfig, bool), FormatError> {
    let object = Object::new(path, map);
    let is_bert = match map.get("model_type").and_then(Value::as_str) {
        Some("bert") => true,
        Some("roberta" | "xlm-roberta") => false,
        other => {
            return Err(FormatError::unsupported(
                path,
                format!("`model_type` {}", other.unwrap_or("(missing)")),
                "bert, roberta and xlm-roberta are",
            ));
        }
    };
    object.only("hidden_act", &json!("gelu"))?;
    object.only("position_embedding_type", &json!("absolute"))?;
    object.only("is_decoder", &json!(false))?;
    object.only("quantization_config", &Value::Null)?;
    object.only(MEAN_HEAD, &json!("mean"))?;
    let padding = object.size("pad_token_id", Some(usize::from(!is_bert)))?;
    let config = BertConfig {
        vocab_size: object.size("vocab_size", None)?,
        hidden_size: object.size("hidden_size", None)?,
        intermediate_size: object.size("intermediate_size", None)?,
        num_layers: object.size("num_hidden_layers", None)?,
        num_heads: object.size("num_attention_heads", None)?,
        max_position_embeddings: object.size("max_position_embeddings", Some(512))?,
        first_position: if is_bert {
            0
        } else {
            padding.saturating_add(1)
        },
        type_vocab_size: object.size("type_vocab_size", Some(2))?,
        layer_norm_eps: object.number("layer_norm_eps", 1e-12)?,
    };
    let check = config.check();
    check.map_err(|error| FormatError::malformed(path, error.to_string()))?;
    Ok((config, is_bert))
}

/// Safetensors files under the names of one of the architectures.
struct Source {
    files: SafetensorsFiles,
    prefix: &'static str,
    /// Heads are BERT's: `pooler.dense` and `classifier`.
    bert_head: bool,
    /// Norms are called gamma and beta, as in files converted from TensorFlow.
    old_norms: bool,
}

impl Source {
    fn new(files: SafetensorsFiles, is_bert: bool) -> Self {
        let has = |name: &str| files.shape(name).is_some();
        let prefixes = ["", "bert.", "roberta."];
        let prefix = prefixes
            .into_iter()
            .find(|prefix| has(&format!("{prefix}{WORDS}")))
            .unwrap_or_default();
        let old_norms = has(&format!("{prefix}embeddings.LayerNorm.gamma"));
        let bert_head = is_bert && !has("classifier.out_proj.weight");
        Self {
            files,
            prefix,
            bert_head,
            old_norms,
        }
    }
}

impl TensorSource for Source {
    fn path(&self) -> &Path {
        self.files.path()
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.files.names()
    }

    fn shape(&self, name: &str) -> Option<&[usize]> {
        self.files.shape(name)
    }

    fn read(&self, name: &str) -> Result<Vec<f32>, FormatError> {
        self.files.read(name)
    }

    fn stored_name(&self, name: &str) -> String {
        if let Some(part) = name.strip_prefix("classifier.") {
            return match part.strip_prefix("dense.") {
                Some(part) if self.bert_head => format!("{}pooler.dense.{part}", self.prefix),
                None if self.bert_head => part.replace("out_proj.", "classifier."),
                _ => name.to_owned(),
            };
        }
        let mut stored = format!("{}{name}", self.prefix);
        if self.old_norms {
            stored = stored
                .replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta");
        }
        stored
    }
}

/// Writes an encoder or classifier so that [`load_encoder`] and [`load_encoder_classifier`] can read it.
///
/// `transformers` can open the encoder, and a classifier with RoBERTa's head.
pub fn save_encoder(folder: &Path, encoder: &EncoderCheckpoint) -> Result<(), FormatError> {
    let config = &encoder.config;
    let is_bert = config.first_position == 0;
    let mut document = json!({
        "architectures": [if is_bert { "BertModel" } else { "RobertaModel" }],
        "hidden_act": "gelu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "layer_norm_eps": config.layer_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": if is_bert { "bert" } else { "roberta" },
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "pad_token_id": config.first_position.saturating_sub(1),
        "position_embedding_type": "absolute",
        "type_vocab_size": config.type_vocab_size,
        "vocab_size": config.vocab_size,
    });
    if let Some(head) = &encoder.head {
        if head.pooling == Pooling::Mean {
            document[MEAN_HEAD] = json!("mean");
        }
        if !encoder.labels.is_empty() {
            let labels = encoder.labels.iter().enumerate();
            let labels: Map<_, _> = labels
                .map(|(index, label)| (index.to_string(), json!(label)))
                .collect();
            document["id2label"] = labels.into();
        }
    }
    fs_err::create_dir_all(folder)?;
    save_safetensors(&folder.join("model.safetensors"), &encoder.weights)?;
    write_json(&folder.join("config.json"), &document)?;
    if let Some(tokenizer) = &encoder.tokenizer {
        tokenizer
            .save(folder)
            .map_err(FormatError::tokenizer(folder))?;
    }
    if let Some(sentence) = encoder.sentence {
        write_sentence_files(folder, sentence, config.hidden_size)?;
    }
    Ok(())
}
