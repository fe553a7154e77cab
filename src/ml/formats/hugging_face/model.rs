//! Language models and classifiers in Hugging Face folders.

use std::path::Path;

use candle_core::Tensor;
use serde_json::Value;

use super::super::safetensors::{SafetensorsFiles, save_safetensors};
use super::super::tensors::{TensorSource, load_exactly, load_model, turn};
use super::super::{Checkpoint, FormatError, to_half_split};
use super::config::{config_document, read_config, read_end_ids, read_object};
use super::vocabulary::make_room;
use crate::ml::models::causal::Architecture;
use crate::ml::parameters::Weights;
use crate::ml::tokenizer::Tokenizer;

const SCORE: &str = "score.weight";

/// A model with a linear head on its last hidden states: `LlamaForSequenceClassification` and the like.
///
/// With one class it is a reward model.
#[derive(Debug, Clone)]
pub struct SequenceClassifier {
    /// Trunk and tokenizer.
    pub trunk: Checkpoint,
    /// Weight of the linear head, (classes, hidden size); it has no bias.
    pub score: Tensor,
    /// Names of the classes; empty if the file has none.
    pub labels: Vec<String>,
}

/// Loads a language model of any of the [families](crate::ml::models::causal::families) from a folder.
///
/// The folder holds `config.json`, `model.safetensors` or the shards of `model.safetensors.index.json`, and
/// optionally `tokenizer.json` (or SentencePiece's `tokenizer.model`) with `tokenizer_config.json`. An adapter beside them is not looked at.
pub fn load_hugging_face(folder: &Path) -> Result<Checkpoint, FormatError> {
    load_hugging_face_without(folder, &[])
}

/// As [`load_hugging_face`], without looking at some keys of `config.json`.
pub fn load_hugging_face_without(
    folder: &Path,
    ignored: &[String],
) -> Result<Checkpoint, FormatError> {
    let config_path = folder.join("config.json");
    refuse_lone_adapter(folder, &config_path)?;
    let config = read_config(&config_path, ignored)?;
    let files = TrunkFiles::open(folder, &config.architecture)?;
    // That of a classifier's adapter, beside it, stands among the base's weights too.
    let is_adapted = folder.join("adapter_config.json").exists();
    if files.shape(SCORE).is_some() && !is_adapted {
        return Err(FormatError::unsupported(
            files.path(),
            format!("the head `{SCORE}` of a classifier in place of a language model's"),
            "a reward model is read by `load_reward`",
        ));
    }
    let architecture = config.architecture;
    let Architecture { class, task, .. } = architecture;
    let tied = architecture.tie_word_embeddings;
    let head = architecture.head_name();
    if !tied && files.is_bare && files.shape(&head).is_none() {
        return Err(FormatError::MissingTensor {
            path: files.path().to_owned(),
            name: head,
            expected: vec![architecture.vocab_size, architecture.embedding_size],
            hint: format!(
                "; the folder holds a bare `{class}Model`, which has no output head: save the \
                 `{class}{task}` that it is part of"
            ),
        });
    }
    let weights = load_model(&files, &architecture, |name| {
        is_buffer(name) || (tied && name == head) || (is_adapted && name == SCORE)
    })?;
    if tied && files.shape(&head).is_some() {
        check_tied(&files, &architecture)?;
    }
    checkpoint(folder, architecture, config.end_ids, weights)
}

/// Loads a classifier or reward model from a folder; an output head in it is left out.
///
/// The head must really be there: a reward model that was merged without it scores noise, and nothing
/// else would show it (huggingface/trl#398).
///
/// Keys of `config.json` that are `ignored` are not looked at.
pub fn load_sequence_classifier(
    folder: &Path,
    ignored: &[String],
) -> Result<SequenceClassifier, FormatError> {
    let config_path = folder.join("config.json");
    refuse_lone_adapter(folder, &config_path)?;
    let mut config = read_config(&config_path, ignored)?;
    let files = TrunkFiles::open(folder, &config.architecture)?;
    let width = config.architecture.embedding_size;
    let declared_classes = config.labels.len();
    let classes = match files.shape(SCORE) {
        Some(&[classes, _]) if declared_classes == 0 => classes,
        Some(_) if declared_classes == 0 => 1,
        Some(_) => declared_classes,
        None => {
            return Err(FormatError::MissingTensor {
                path: files.path().to_owned(),
                name: SCORE.to_owned(),
                expected: vec![declared_classes.max(1), width],
                hint: "; the classification head was not saved with the model, and without it \
                       every score would be noise"
                    .to_owned(),
            });
        }
    };
    // Nothing asks a classifier for logits over tokens.
    config.architecture.tie_word_embeddings = true;
    let architecture = config.architecture;
    let head = architecture.head_name();
    let weights = load_model(&files, &architecture, |name| {
        is_buffer(name) || name == head || name == SCORE
    })?;
    let expected = [(SCORE.to_owned(), vec![classes, width])];
    let mut scored = load_exactly(&files, expected.into_iter(), |_| true)?;
    let score = scored.remove(SCORE).ok_or_else(|| {
        FormatError::malformed(files.path(), format!("tensor `{SCORE}` is missing"))
    })?;
    Ok(SequenceClassifier {
        trunk: checkpoint(folder, architecture, config.end_ids, weights)?,
        score,
        labels: config.labels,
    })
}

/// Safetensors files of a model, with or without what a language model puts before the names of its trunk.
struct TrunkFiles {
    files: SafetensorsFiles,
    trunk: &'static str,
    is_bare: bool,
}

impl TrunkFiles {
    fn open(folder: &Path, architecture: &Architecture) -> Result<Self, FormatError> {
        let files = SafetensorsFiles::open_model(folder)?;
        let has = |name: &str| files.shape(name).is_some();
        let (embedding, trunk) = (architecture.embedding_name(), architecture.names.trunk);
        let is_bare = !has(&embedding) && embedding.strip_prefix(trunk).is_some_and(has);
        Ok(Self {
            files,
            trunk,
            is_bare,
        })
    }
}

impl TensorSource for TrunkFiles {
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
        let bare = name.strip_prefix(self.trunk).filter(|_| self.is_bare);
        bare.unwrap_or(name).to_owned()
    }
}

/// Says so if a folder holds an adapter and not the model that it belongs to.
fn refuse_lone_adapter(folder: &Path, config_path: &Path) -> Result<(), FormatError> {
    let adapter_path = folder.join("adapter_config.json");
    if config_path.exists() || !adapter_path.exists() {
        return Ok(());
    }
    let adapter = read_object(&adapter_path)?;
    let base = adapter
        .get("base_model_name_or_path")
        .and_then(Value::as_str);
    let base = base.map_or_else(
        || "the model it was trained on".to_owned(),
        |name| format!("`{name}`"),
    );
    Err(FormatError::malformed(
        folder,
        format!(
            "it holds an adapter and no model; load {base} first and give it at the port `base`"
        ),
    ))
}

/// Old checkpoints carry rotary frequencies and causal masks, which follow from the configuration.
fn is_buffer(name: &str) -> bool {
    [
        ".rotary_emb.inv_freq",
        ".attn.bias",
        ".attn.masked_bias",
        ".attention.bias",
        ".attention.masked_bias",
    ]
    .iter()
    .any(|end| name.ends_with(end))
}

/// A tied model may store its head again, but only the same one.
fn check_tied(files: &TrunkFiles, architecture: &Architecture) -> Result<(), FormatError> {
    let (head, embedding) = (architecture.head_name(), architecture.embedding_name());
    let bits = |values: Vec<f32>| -> Vec<u32> { values.into_iter().map(f32::to_bits).collect() };
    if bits(files.read(&head)?) == bits(files.read(&files.stored_name(&embedding))?) {
        return Ok(());
    }
    Err(FormatError::malformed(
        files.path(),
        format!("`{head}` differs from `{embedding}` although `tie_word_embeddings` is true"),
    ))
}

/// Adds the tokenizer, with rows for all of its tokens, and all ids that end a text: the tokenizer's own, and those that `transformers` stops at, which
/// are `generation_config.json`'s if it names any and `config.json`'s otherwise.
fn checkpoint(
    folder: &Path,
    mut config: Architecture,
    mut end_ids: Vec<u32>,
    mut weights: Weights,
) -> Result<Checkpoint, FormatError> {
    let mut ends_path = folder.join("config.json");
    let generation_path = folder.join("generation_config.json");
    if generation_path.exists() {
        let stated = read_end_ids(&generation_path)?;
        if !stated.is_empty() {
            (end_ids, ends_path) = (stated, generation_path);
        }
    }
    let mut added_rows = 0;
    let mut tokenizer = None;
    if let Some(path) = Tokenizer::file(folder) {
        let loaded = Tokenizer::load(folder).map_err(FormatError::tokenizer(&path))?;
        if let (_, [id, ..]) = loaded.surroundings() {
            let token = loaded.id_to_token(*id).unwrap_or_default();
            return Err(FormatError::unsupported(
                &path,
                format!("`{token}` after every text, prompts too,"),
                "set `add_eos_token` to false, or take it out of the `post_processor`",
            ));
        }
        added_rows = make_room(&path, &mut config, &mut weights, loaded.vocab_size())?;
        tokenizer = Some(loaded.with_end_ids(&end_ids));
    }
    let vocab_size = config.vocab_size;
    if let Some(id) = end_ids.iter().find(|id| **id as usize >= vocab_size) {
        return Err(FormatError::malformed(
            &ends_path,
            format!(
                "key `eos_token_id` names {id}, expected ids below the model's `vocab_size` of {vocab_size}"
            ),
        ));
    }
    if let Some(tokenizer) = &tokenizer {
        end_ids = tokenizer.end_ids().to_vec();
    }
    Ok(Checkpoint {
        config,
        weights,
        tokenizer,
        eos_ids: end_ids,
        added_rows,
    })
}

/// Writes a language model as `config.json`, `model.safetensors` and, if given, the tokenizer's two files.
///
/// The folder can be opened by `transformers`: interleaved rotary pairs are reordered. Equal models give
/// equal bytes.
pub fn save_hugging_face(
    folder: &Path,
    config: impl Into<Architecture>,
    weights: &Weights,
    tokenizer: Option<&Tokenizer>,
) -> Result<(), FormatError> {
    save(folder, &config.into(), weights, tokenizer, None)
}

/// Writes a classifier or reward model in the layout of [`save_hugging_face`].
pub fn save_sequence_classifier(
    folder: &Path,
    classifier: &SequenceClassifier,
) -> Result<(), FormatError> {
    let mut labels = classifier.labels.clone();
    if labels.is_empty() {
        let classes = classifier.score.dim(0);
        labels = default_labels(classes.map_err(FormatError::tensor(folder))?);
    }
    save(
        folder,
        &classifier.trunk.config,
        &classifier.trunk.weights,
        classifier.trunk.tokenizer.as_ref(),
        Some((&classifier.score, &labels)),
    )
}

/// Writes the `config.json` of a model whose adapter makes it a classifier with one score.
pub fn save_classifier_config(
    folder: &Path,
    config: &Architecture,
    tokenizer: &Tokenizer,
) -> Result<(), FormatError> {
    let document = config_document(config, Some(tokenizer), Some(&default_labels(1)));
    write_json(&folder.join("config.json"), &document)
}

fn default_labels(classes: usize) -> Vec<String> {
    (0..classes).map(|class| format!("LABEL_{class}")).collect()
}

fn save(
    folder: &Path,
    config: &Architecture,
    weights: &Weights,
    tokenizer: Option<&Tokenizer>,
    head: Option<(&Tensor, &[String])>,
) -> Result<(), FormatError> {
    let (config, mut weights) = to_half_split(config, weights)?;
    turn(&mut weights, &config).map_err(FormatError::tensor(folder))?;
    if let Some((score, _)) = head {
        weights.insert(SCORE.to_owned(), score.clone());
    }
    fs_err::create_dir_all(folder)?;
    save_safetensors(&folder.join("model.safetensors"), &weights)?;
    let document = config_document(&config, tokenizer, head.map(|(_, labels)| labels));
    write_json(&folder.join("config.json"), &document)?;
    if let Some(tokenizer) = tokenizer {
        tokenizer
            .save(folder)
            .map_err(FormatError::tokenizer(folder))?;
    }
    Ok(())
}

/// Writes a JSON document for people to read too.
pub(super) fn write_json(path: &Path, document: &Value) -> Result<(), FormatError> {
    let mut text = format!("{document:#}");
    text.push('\n');
    fs_err::write(path, text)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::fixture;
    use super::super::super::safetensors::load_safetensors;
    use super::*;
    use crate::ml::kernels::rope::RopeLayout;
    use crate::ml::models::causal::LlamaConfig;
    use crate::ml::tokenizer::{TokenizerAlgorithm, train_tokenizer};
    use serde_json::json;
    use tempfile::TempDir;

    fn tokenizer() -> Tokenizer {
        let text = "how do i sort a list ?";
        train_tokenizer(TokenizerAlgorithm::WordLevel, [text], 24, &[]).unwrap()
    }

    fn saved(config: &LlamaConfig) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let weights = fixture::weights(config);
        save_hugging_face(folder.path(), config, &weights, Some(&tokenizer())).unwrap();
        folder
    }

    /// Changes keys of a saved `config.json`.
    fn edit(folder: &TempDir, changes: Value) {
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        fs_err::write(&path, config.to_string()).unwrap();
    }

    fn error(folder: &TempDir) -> String {
        let error = load_hugging_face(folder.path()).unwrap_err().to_string();
        error.replace(&*folder.path().to_string_lossy(), "DIR")
    }

    #[test]
    fn a_saved_model_is_read_back_bit_for_bit() {
        for tied in [true, false] {
            let config = LlamaConfig {
                tie_word_embeddings: tied,
                ..fixture::config()
            };
            let checkpoint = load_hugging_face(saved(&config).path()).unwrap();
            assert_eq!(checkpoint.config, (&config).into());
            fixture::assert_equal(&checkpoint.weights, &fixture::weights(&config));
            assert_eq!(checkpoint.eos_ids, [2]);
            let read = checkpoint.tokenizer.unwrap();
            assert_eq!(read.to_json().unwrap(), tokenizer().to_json().unwrap());
            assert_eq!(read.special_tokens(), tokenizer().special_tokens());
            assert_eq!(read.surroundings().0, [1]);
        }
    }

    #[test]
    fn interleaved_pairs_are_reordered_for_transformers() {
        let config = LlamaConfig {
            rope_layout: RopeLayout::Interleaved,
            ..fixture::config()
        };
        let checkpoint = load_hugging_face(saved(&config).path()).unwrap();
        let rotary = checkpoint.config.rotary().unwrap();
        assert_eq!(rotary.layout, RopeLayout::HalfSplit);
        let name = "model.layers.1.self_attn.k_proj.weight";
        let rows = |weights: &Weights| weights[name].to_vec2::<f32>().unwrap();
        let before = rows(&fixture::weights(&config));
        let expected: Vec<_> = [0, 2, 1, 3].map(|row| before[row].clone()).to_vec();
        assert_eq!(rows(&checkpoint.weights), expected);
    }

    #[test]
    fn what_is_not_implemented_is_refused() {
        for (changes, message) in [
            (
                json!({ "rope_scaling": { "rope_type": "longrope", "factor": 8.0 } }),
                "`rope_scaling.type`: \"longrope\" is not supported; default, linear, dynamic, llama3 and yarn are",
            ),
            (
                json!({ "rope_scaling": { "rope_type": "linear" } }),
                "`rope_scaling` of type \"linear\" has no `factor`",
            ),
            (
                json!({ "model_type": "bloom" }),
                "`model_type`: \"bloom\" is not supported; only gemma, gpt2, gpt_neox, llama, mistral, olmo2, opt, \
                 phi3, qwen2, qwen3, smollm3, stablelm, starcoder2 are",
            ),
            (
                json!({ "hidden_act": "mish" }),
                "`hidden_act`: \"mish\" is not supported; silu, gelu, gelu_new, gelu_pytorch_tanh and relu are",
            ),
            (
                json!({ "sliding_window": 4 }),
                "`sliding_window`: 4 is not supported; only null is",
            ),
            (
                json!({ "quantization_config": { "bits": 4 } }),
                "`quantization_config`: {\"bits\":4} is not supported; only null is",
            ),
            (
                json!({ "hidden_size": null }),
                "key `hidden_size` is missing",
            ),
            (
                json!({ "vocab_size": -3 }),
                "key `vocab_size` is -3, expected a whole number",
            ),
            (
                json!({ "num_key_value_heads": 0 }),
                "number of key/value heads is 0, expected 1 to 2147483647",
            ),
        ] {
            let folder = saved(&fixture::config());
            edit(&folder, changes);
            assert_eq!(error(&folder), format!("DIR/config.json: {message}"));
        }
    }

    #[test]
    fn every_id_that_ends_a_text_is_read_and_written() {
        let folder = saved(&fixture::config());
        let ids = |folder: &TempDir| load_hugging_face(folder.path()).unwrap().eos_ids;
        assert_eq!(ids(&folder), [2]);
        edit(&folder, json!({ "eos_token_id": [3, 2, 5] }));
        assert_eq!(ids(&folder), [2, 3, 5]);
        let copy = tempfile::tempdir().unwrap();
        let read = load_hugging_face(folder.path()).unwrap();
        let tokenizer = read.tokenizer.as_ref();
        save_hugging_face(copy.path(), &read.config, &read.weights, tokenizer).unwrap();
        assert_eq!(ids(&copy), [2, 3, 5]);
        // What `transformers` generates with takes precedence over the model.
        let generation = folder.path().join("generation_config.json");
        fs_err::write(&generation, r#"{ "eos_token_id": 4 }"#).unwrap();
        assert_eq!(ids(&folder), [2, 4]);
        fs_err::write(&generation, r#"{ "temperature": 0.6 }"#).unwrap();
        assert_eq!(ids(&folder), [2, 3, 5]);
        edit(&folder, json!({ "eos_token_id": 24 }));
        assert_eq!(
            error(&folder),
            "DIR/config.json: key `eos_token_id` names 24, expected ids below the model's `vocab_size` of 24"
        );
        // A tokenizer that names none.
        edit(&folder, json!({ "eos_token_id": 3 }));
        let settings = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "" });
        fs_err::write(
            folder.path().join("tokenizer_config.json"),
            settings.to_string(),
        )
        .unwrap();
        assert_eq!(ids(&folder), [3]);
    }

    #[test]
    fn a_key_that_is_ignored_is_not_looked_at_at_all() {
        let folder = saved(&fixture::config());
        let path = folder.path().join("config.json");
        let mut config = read_object(&path).unwrap();
        config.insert("eos_token_id".to_owned(), json!("bogus"));
        config.insert("id2label".to_owned(), json!(3));
        fs_err::write(&path, serde_json::Value::Object(config).to_string()).unwrap();
        assert!(load_hugging_face(folder.path()).is_err());
        let ignored = ["eos_token_id", "id2label"].map(str::to_owned);
        let read = load_hugging_face_without(folder.path(), &ignored).unwrap();
        assert_eq!(read.config.num_layers, 2);
    }

    #[test]
    fn a_bare_trunk_is_a_model_if_its_embedding_is_its_head() {
        for tied in [true, false] {
            let config = LlamaConfig {
                tie_word_embeddings: tied,
                ..fixture::config()
            };
            let folder = saved(&config);
            let path = folder.path().join("model.safetensors");
            let weights = load_safetensors(&path).unwrap();
            let bare = weights
                .into_iter()
                .filter_map(|(name, tensor)| {
                    Some((name.strip_prefix("model.")?.to_owned(), tensor))
                })
                .collect();
            save_safetensors(&path, &bare).unwrap();
            if tied {
                let read = load_hugging_face(folder.path()).unwrap();
                fixture::assert_equal(&read.weights, &fixture::weights(&config));
            } else {
                assert_eq!(
                    error(&folder),
                    "DIR/model.safetensors: tensor `lm_head.weight` of shape [24, 8] is missing; \
                     the folder holds a bare `LlamaModel`, which has no output head: save the \
                     `LlamaForCausalLM` that it is part of"
                );
            }
        }
    }

    #[test]
    fn folders_of_another_kind_say_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let adapter = json!({ "base_model_name_or_path": "some/base" });
        fs_err::write(
            folder.path().join("adapter_config.json"),
            adapter.to_string(),
        )
        .unwrap();
        assert_eq!(
            error(&folder),
            "DIR: it holds an adapter and no model; load `some/base` first and give it at the port \
             `base`"
        );
        let folder = tempfile::tempdir().unwrap();
        save_sequence_classifier(folder.path(), &classifier()).unwrap();
        assert_eq!(
            error(&folder),
            "DIR/model.safetensors: the head `score.weight` of a classifier in place of a language \
             model's is not supported; a reward model is read by `load_reward`"
        );
    }

    #[test]
    fn a_tokenizer_that_ends_every_text_is_refused() {
        let folder = saved(&fixture::config());
        let settings = json!({
            "tokenizer_class": "LlamaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>", "add_eos_token": true,
        });
        fs_err::write(
            folder.path().join("tokenizer_config.json"),
            settings.to_string(),
        )
        .unwrap();
        assert_eq!(
            error(&folder),
            "DIR/tokenizer.json: `<eos>` after every text, prompts too, is not supported; set \
             `add_eos_token` to false, or take it out of the `post_processor`"
        );
    }

    #[test]
    fn new_spellings_of_the_rotary_base_are_read() {
        let folder = saved(&fixture::config());
        let parameters = json!({ "rope_type": "default", "rope_theta": 500.0 });
        edit(
            &folder,
            json!({ "rope_theta": null, "rope_parameters": parameters }),
        );
        let checkpoint = load_hugging_face(folder.path()).unwrap();
        assert_eq!(checkpoint.config.rotary().unwrap().theta, 500.0);
    }

    #[test]
    fn missing_extra_and_misshaped_tensors_are_named() {
        let with = |change: &dyn Fn(&mut Weights)| {
            let folder = saved(&fixture::config());
            let path = folder.path().join("model.safetensors");
            let mut weights = load_safetensors(&path).unwrap();
            change(&mut weights);
            save_safetensors(&path, &weights).unwrap();
            error(&folder)
        };
        let norm = |weights: &Weights| weights["model.norm.weight"].clone();
        assert_eq!(
            with(&|weights| {
                weights.remove("model.layers.1.mlp.up_proj.weight");
            }),
            "DIR/model.safetensors: tensor `model.layers.1.mlp.up_proj.weight` of shape [12, 8] is \
             missing"
        );
        assert_eq!(
            with(&|weights| {
                weights.insert("model.layers.0.self_attn.q_proj.bias".into(), norm(weights));
            }),
            "DIR/model.safetensors: unexpected tensor `model.layers.0.self_attn.q_proj.bias` of \
             shape [8]; the configuration has no place for it"
        );
        assert_eq!(
            with(&|weights| {
                weights.insert(
                    "model.layers.0.self_attn.q_proj.weight".into(),
                    norm(weights),
                );
            }),
            "DIR/model.safetensors: tensor `model.layers.0.self_attn.q_proj.weight` has shape [8], \
             expected [8, 8]"
        );
        assert_eq!(
            with(&|weights| {
                let mut values = vec![1f32; 8];
                values[3] = f32::NAN;
                let norm = Tensor::new(values, &candle_core::Device::Cpu).unwrap();
                weights.insert("model.norm.weight".into(), norm);
            }),
            "DIR/model.safetensors: tensor `model.norm.weight` holds NaN at place 3 of 8, expected finite numbers alone; \
             the training that wrote it may have diverged"
        );
        assert_eq!(
            with(&|weights| {
                let other = weights["model.embed_tokens.weight"]
                    .affine(1.0, 1.0)
                    .unwrap();
                weights.insert("lm_head.weight".into(), other);
            }),
            "DIR/model.safetensors: `lm_head.weight` differs from `model.embed_tokens.weight` \
             although `tie_word_embeddings` is true"
        );
    }

    #[test]
    fn a_tied_head_and_rotary_buffers_may_be_stored_again() {
        let folder = saved(&fixture::config());
        let path = folder.path().join("model.safetensors");
        let mut weights = load_safetensors(&path).unwrap();
        let copy = weights["model.embed_tokens.weight"].clone();
        weights.insert("lm_head.weight".to_owned(), copy);
        let buffer = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
        weights.insert(buffer, weights["model.norm.weight"].clone());
        save_safetensors(&path, &weights).unwrap();
        let checkpoint = load_hugging_face(folder.path()).unwrap();
        fixture::assert_equal(&checkpoint.weights, &fixture::weights(&fixture::config()));
    }

    /// Splits a saved model into two shards with an index.
    fn sharded() -> TempDir {
        let folder = saved(&fixture::config());
        let single = folder.path().join("model.safetensors");
        let weights = load_safetensors(&single).unwrap();
        fs_err::remove_file(&single).unwrap();
        let in_first = |name: &str| name.contains("layers.0");
        let (first, second): (Weights, Weights) =
            weights.into_iter().partition(|(name, _)| in_first(name));
        let mut map = json!({});
        for (shard, weights) in [("one.safetensors", first), ("two.safetensors", second)] {
            save_safetensors(&folder.path().join(shard), &weights).unwrap();
            for name in weights.keys() {
                map[name] = json!(shard);
            }
        }
        write_index(&folder, &map);
        folder
    }

    fn write_index(folder: &TempDir, map: &Value) {
        let index = json!({ "metadata": { "total_size": 1 }, "weight_map": map });
        let path = folder.path().join("model.safetensors.index.json");
        fs_err::write(path, index.to_string()).unwrap();
    }

    #[test]
    fn shards_are_one_model() {
        let folder = sharded();
        let checkpoint = load_hugging_face(folder.path()).unwrap();
        fixture::assert_equal(&checkpoint.weights, &fixture::weights(&fixture::config()));
    }

    #[test]
    fn an_index_may_not_lie_or_leave_its_folder() {
        let folder = sharded();
        write_index(&folder, &json!({ "model.norm.weight": "one.safetensors" }));
        assert_eq!(
            error(&folder),
            "DIR/model.safetensors.index.json: tensor `model.norm.weight` is not in \
             `one.safetensors`"
        );
        write_index(&folder, &json!({ "x": "../secret.safetensors" }));
        assert_eq!(
            error(&folder),
            "DIR/model.safetensors.index.json: shard `../secret.safetensors` is not a plain file \
             name"
        );
        fs_err::remove_file(folder.path().join("two.safetensors")).unwrap();
        write_index(&folder, &json!({ "x": "two.safetensors" }));
        assert!(
            error(&folder).contains("DIR/two.safetensors"),
            "{}",
            error(&folder)
        );
    }

    fn classifier() -> SequenceClassifier {
        let config = LlamaConfig {
            tie_word_embeddings: false,
            ..fixture::config()
        };
        let mut weights = fixture::weights(&config);
        weights.remove("lm_head.weight");
        let score = weights["model.layers.0.self_attn.q_proj.weight"].narrow(0, 0, 1);
        SequenceClassifier {
            trunk: Checkpoint {
                config: config.into(),
                weights,
                tokenizer: None,
                eos_ids: Vec::new(),
                added_rows: 0,
            },
            score: score.unwrap(),
            labels: Vec::new(),
        }
    }

    #[test]
    fn a_saved_reward_model_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        save_sequence_classifier(folder.path(), &classifier()).unwrap();
        let read = load_sequence_classifier(folder.path(), &[]).unwrap();
        assert_eq!(read.labels, ["LABEL_0"]);
        assert_eq!(
            fixture::values(&read.score),
            fixture::values(&classifier().score)
        );
        fixture::assert_equal(&read.trunk.weights, &classifier().trunk.weights);
    }

    #[test]
    fn a_reward_model_without_its_head_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        save_sequence_classifier(folder.path(), &classifier()).unwrap();
        let path = folder.path().join("model.safetensors");
        save_safetensors(&path, &classifier().trunk.weights).unwrap();
        let error = load_sequence_classifier(folder.path(), &[]).unwrap_err();
        assert_eq!(
            error
                .to_string()
                .replace(&*folder.path().to_string_lossy(), "DIR"),
            "DIR/model.safetensors: tensor `score.weight` of shape [1, 8] is missing; the \
             classification head was not saved with the model, and without it every score would be \
             noise"
        );
    }
}
