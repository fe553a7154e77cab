//! Text encoders in Hugging Face folders.

use std::path::Path;

use candle_core::Device;
use serde_json::{Map, Value, json};

use super::super::FormatError;
use super::super::safetensors::{SafetensorsFiles, save_safetensors};
use super::super::tensors::{TensorSource, load_exactly};
use super::json::{read_object, write_json};
use super::sentence::{read_sentence_files, write_sentence_files};
use crate::ml::models::encoder::{
    ClassifierHead, EncoderConfig, Family, Part, Pooling, SentenceEmbedding, SentenceStep,
};
use crate::ml::models::keys;
use crate::ml::parameters::Weights;
use crate::ml::placement::Placement;
use crate::ml::tokenizer::Tokenizer;

/// Our own key of `config.json`: a linear head on the mean, which no class of `transformers` has.
const MEAN_HEAD: &str = "classifier_pooling";
/// Buffers that older versions stored.
const BUFFERS: [&str; 2] = ["embeddings.position_ids", "embeddings.token_type_ids"];

/// An encoder, or a classifier if it has a head, as it comes out of a folder.
#[derive(Debug, Clone)]
pub struct EncoderCheckpoint {
    /// Shape of the encoder.
    pub config: EncoderConfig,
    /// Shape of the head, if one was asked for.
    pub head: Option<ClassifierHead>,
    /// Names of the classes; empty if the file has none.
    pub labels: Vec<String>,
    /// Weights of encoder (no prefix) and head, in `f32`, on the CPU when they are read.
    pub weights: Weights,
    /// The tokenizer, where the folder has one.
    pub tokenizer: Option<Tokenizer>,
    /// How texts are embedded, where the folder says so.
    pub sentence: Option<SentenceEmbedding>,
}

impl EncoderCheckpoint {
    /// Moves all tensors to a device.
    pub fn move_to(&mut self, device: &Device) -> candle_core::Result<()> {
        let steps = self
            .sentence
            .iter_mut()
            .flat_map(|sentence| &mut sentence.steps);
        let dense = steps.filter_map(|step| match step {
            SentenceStep::Dense(dense) => Some(dense),
            SentenceStep::Normalize => None,
        });
        let own = dense.flat_map(|dense| std::iter::once(&mut dense.weight).chain(&mut dense.bias));
        for tensor in self.weights.values_mut().chain(own) {
            *tensor = tensor.to_device(device)?;
        }
        Ok(())
    }
}

/// What is not as a folder says.
#[derive(Debug, Clone, Default)]
pub struct EncoderOptions {
    /// Keys of `config.json` that are not looked at; every other one that is not known is an error.
    pub ignored: Vec<String>,
    /// The prompt of a folder of sentence-transformers that is put before texts, instead of its default.
    pub prompt: Option<String>,
}

/// Loads an encoder of one of the families; heads in the folder are left out.
///
/// In a folder of sentence-transformers, prompt, pooling, layers, normalisation, the greatest length and lower case are
/// as it says.
pub fn load_encoder(
    folder: &Path,
    options: &EncoderOptions,
) -> Result<EncoderCheckpoint, FormatError> {
    let prompt = options.prompt.as_deref();
    let Some(files) = read_sentence_files(folder, prompt)? else {
        return load(folder, false, &options.ignored);
    };
    let mut checkpoint = load(&files.encoder, false, &options.ignored)?;
    let dimension = files.embedding.dimension(checkpoint.config.hidden_size);
    dimension.map_err(|error| FormatError::malformed(folder, error.to_string()))?;
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

/// Loads a classifier: `BertForSequenceClassification` and its like of the other families, or our own.
///
/// Without its head the file is refused. Keys of `config.json` that are `ignored` are not looked at.
pub fn load_encoder_classifier(
    folder: &Path,
    ignored: &[String],
) -> Result<EncoderCheckpoint, FormatError> {
    load(folder, true, ignored)
}

fn load(
    folder: &Path,
    with_head: bool,
    ignored: &[String],
) -> Result<EncoderCheckpoint, FormatError> {
    let config_path = folder.join("config.json");
    let adapter = folder.join("adapter_config.json");
    if adapter.exists() {
        return Err(FormatError::unsupported(
            &adapter,
            "an adapter of an encoder".to_owned(),
            "merge it with `merge_and_unload` of PEFT, and load the whole encoder",
        ));
    }
    let map = read_object(&config_path)?;
    let Configuration {
        family,
        config,
        labels,
        has_mean_head,
    } = parse_config(&config_path, map, ignored)?;

    let source = Source::new(SafetensorsFiles::open_model(folder)?, family);
    let head = if with_head {
        let classes = source
            .shape(&source.stored_name(&format!("{}.weight", family.head.out)))
            .and_then(|shape| shape.first().copied());
        let classes = classes.unwrap_or(labels.len().max(1));
        Some(if has_mean_head {
            ClassifierHead::mean(classes)
        } else {
            ClassifierHead::of(family, classes)
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
    let heads = head.iter().flat_map(|head| head.tensors(&config));
    let expected = config.tensors().chain(heads);
    let weights = load_exactly(&source, expected, &Placement::HOST, |name| {
        let name = name.strip_prefix(source.prefix).unwrap_or(name);
        let is_beside = |start: &&str| name.starts_with(start);
        family.beside.iter().any(is_beside) || BUFFERS.contains(&name)
    })?;

    let tokenizer_path = Tokenizer::file(folder);
    let tokenizer = tokenizer_path
        .as_ref()
        .map(|path| Tokenizer::load(folder).map_err(FormatError::tokenizer(path)));
    let tokenizer = tokenizer.transpose()?;
    if let (Some(path), Some(tokenizer)) = (&tokenizer_path, &tokenizer)
        && tokenizer.vocab_size() > config.vocab_size
    {
        return Err(FormatError::malformed(
            path,
            format!(
                "it has {} ids, but the encoder's `vocab_size` (`config.json`) is {}: its embedding is made longer with the \
                 library that trained it",
                tokenizer.vocab_size(),
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

/// What `config.json` says.
struct Configuration {
    /// The family of the file, whose names its tensors have.
    family: &'static Family,
    config: EncoderConfig,
    labels: Vec<String>,
    /// Whether the head is our own.
    has_mean_head: bool,
}

fn parse_config(
    path: &Path,
    mut map: Map<String, Value>,
    ignored: &[String],
) -> Result<Configuration, FormatError> {
    keys::ignore(path, &mut map, ignored)?;
    let model_type = map.get("model_type").and_then(Value::as_str);
    let family = model_type.and_then(Family::of).ok_or_else(|| {
        FormatError::unsupported(
            path,
            format!("`model_type` {}", model_type.unwrap_or("(missing)")),
            &format!("{} are", Family::listed()),
        )
    })?;
    let keys = keys::Keys::new(path, &map);
    let labels = keys.labels()?;
    let config = family.config(keys)?;
    let check = config.check();
    check.map_err(|error| FormatError::malformed(path, error.to_string()))?;
    Ok(Configuration {
        family,
        config,
        labels,
        has_mean_head: map.contains_key(MEAN_HEAD),
    })
}

/// Safetensors files under the names of a family.
struct Source {
    files: SafetensorsFiles,
    family: &'static Family,
    /// The family's, or nothing in files of an encoder alone.
    prefix: &'static str,
    /// Norms are called gamma and beta, as in files converted from TensorFlow.
    old_norms: bool,
}

impl Source {
    fn new(files: SafetensorsFiles, family: &'static Family) -> Self {
        let has = |name: &str| files.shape(name).is_some();
        let words = (family.name)(Part::Words);
        let prefixes = ["", family.prefix];
        let prefix = prefixes
            .into_iter()
            .find(|prefix| has(&format!("{prefix}{words}.weight")))
            .unwrap_or_default();
        let old_norms = has(&format!("{prefix}embeddings.LayerNorm.gamma"));
        Self {
            files,
            family,
            prefix,
            old_norms,
        }
    }

    /// Returns what the files have for a tensor of the head, if it is one.
    fn stored_in_head(&self, name: &str) -> Option<String> {
        let head = &self.family.head;
        let (module, part) = name.rsplit_once('.')?;
        let at = [head.dense, head.out]
            .iter()
            .position(|one| *one == module)?;
        let has = |module: &str| self.shape(&format!("{module}.weight")).is_some();
        let module = match head.stored {
            Some(stored) if !has(head.out) => stored[at],
            _ => module,
        };
        // BERT's dense layer is its pooler, which belongs to the encoder.
        let within = format!("{}{module}", self.prefix);
        let module = if has(&within) { &within } else { module };
        Some(format!("{module}.{part}"))
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
        if let Some(stored) = self.stored_in_head(name) {
            return stored;
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
/// `transformers` can open the encoder, and a classifier with the family's head; none of its classes has our own head.
pub fn save_encoder(folder: &Path, encoder: &EncoderCheckpoint) -> Result<(), FormatError> {
    let config = &encoder.config;
    let family = config.family;
    let mut document = family.document(config);
    let mut weights = encoder.weights.clone();
    if let Some(head) = &encoder.head {
        if head.dense.is_some() {
            let named = |(name, tensor)| (name_in_classifier(family, name), tensor);
            weights = weights.into_iter().map(named).collect();
            let class = family.class.replace("Model", "ForSequenceClassification");
            document["architectures"] = json!([class]);
        }
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
    save_safetensors(&folder.join("model.safetensors"), &weights)?;
    write_json(&folder.join("config.json"), &document)?;
    if let Some(tokenizer) = &encoder.tokenizer {
        tokenizer
            .save(folder)
            .map_err(FormatError::tokenizer(folder))?;
    }
    if let Some(sentence) = &encoder.sentence {
        write_sentence_files(folder, sentence, config.hidden_size)?;
    }
    Ok(())
}

/// Returns what `transformers` calls a tensor of a classifier.
fn name_in_classifier(family: &Family, name: String) -> String {
    let head = &family.head;
    let mut stored = name;
    if let (Some(names), Some((module, part))) = (head.stored, stored.rsplit_once('.'))
        && let Some(at) = [head.dense, head.out].iter().position(|own| *own == module)
    {
        stored = format!("{}.{part}", names[at]);
    }
    if ClassifierHead::is_part(&stored) {
        stored
    } else {
        format!("{}{stored}", family.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::damage::survives;
    use super::super::json::parse_object;
    use super::*;
    use crate::ml::models::fixture::recorded;

    #[test]
    fn damaged_configurations_are_errors() {
        for name in ["bert", "roberta", "xlm_roberta", "mpnet", "distilbert"] {
            let document = recorded(name).0["classifier_config"].to_string();
            survives(document.as_bytes(), 1000, |path, bytes| {
                let map = parse_object(path, bytes)?;
                let found = parse_config(path, map, &[])?;
                // Names of tensors are made one by one, however many blocks there are said to be.
                assert!(found.config.tensors().take(100).count() > 5);
                Ok(())
            });
        }
    }
}
