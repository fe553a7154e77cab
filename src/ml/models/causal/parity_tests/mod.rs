//! Every family against `transformers` and PEFT, recorded by `tests/fixtures/models/models.py`.

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::*;
use crate::ml::adapter::LoraConfig;
use crate::ml::formats::hugging_face::{
    load_hugging_face, load_sequence_classifier, save_hugging_face,
};
use crate::ml::formats::safetensors::save_safetensors;
use crate::ml::formats::{Checkpoint, FormatError};
use crate::ml::generate::{Contrastive, GenerateOptions, Strategy, generate};
use crate::ml::kernels::form::are_same;
use crate::ml::models::fixture::{difference, factor, largest, parameters, recorded};
use crate::ml::optimizer::Gradients;
use crate::ml::placement::Placement;
use crate::random::Stream;

pub(in crate::ml::models) mod adapters;

/// Largest difference of an output, as a share of the tensor's largest value.
const OUTPUT: f32 = 2e-5;
/// Largest difference of a gradient, as a share of the tensor's largest value.
const GRADIENT: f32 = 1e-4;
/// The same as a share of the model's largest gradient: that of a key's bias is zero up to rounding.
const GRADIENT_FLOOR: f32 = 1e-6;

const VARIANTS: &[&str] = &[
    "gemma",
    "gpt2",
    "gpt2_unscaled",
    "gpt2_variants",
    "gpt_neox",
    "gpt_neox_sequential",
    "llama",
    "llama_biases",
    "llama_head_dim",
    "llama_rope_dynamic",
    "llama_rope_linear",
    "llama_rope_llama3",
    "llama_rope_yarn",
    "llama_rope_yarn_mscale",
    "mistral",
    "olmo2",
    "opt",
    "opt_post",
    "phi3",
    "qwen2",
    "qwen2_window",
    "qwen3",
    "smollm3",
    "smollm3_window",
    "stablelm",
    "starcoder2",
];

/// Runs a test for each variant, and names all that fail.
fn for_each(test: impl Fn(&Recorded) + Copy + std::panic::RefUnwindSafe) {
    for_each_of(VARIANTS, |name| test(&Recorded::of(name)));
}

fn for_each_of(names: &[&'static str], test: impl Fn(&'static str) + std::panic::RefUnwindSafe) {
    let failed: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| std::panic::catch_unwind(|| test(name)).is_err())
        .collect();
    assert!(failed.is_empty(), "{failed:?}");
}

/// A recorded model, written as the folder that `transformers` had.
struct Recorded {
    name: &'static str,
    description: Value,
    numbers: Weights,
    folder: tempfile::TempDir,
}

impl Recorded {
    fn of(name: &'static str) -> Self {
        let (description, numbers) = recorded(name);
        let folder = tempfile::tempdir().unwrap();
        let mut config = description["config"].clone();
        // That of the released vocabulary, in a file for a small one.
        config["eos_token_id"] = Value::Null;
        fs_err::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let weights = parameters(&description["tensors"]);
        save_safetensors(&folder.path().join("model.safetensors"), &weights).unwrap();
        Self {
            name,
            description,
            numbers,
            folder,
        }
    }

    fn load(&self) -> Checkpoint {
        let loaded: std::result::Result<_, FormatError> = load_hugging_face(self.folder.path());
        loaded.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn rows(&self, name: &str) -> Vec<Vec<u32>> {
        serde_json::from_value(self.description[name].clone()).unwrap()
    }

    /// Rows that a model here takes: frequencies that follow the longest row of a batch are not.
    fn prompts(&self, limit: usize) -> Vec<Vec<u32>> {
        let rows = self.rows("rows");
        rows.into_iter().filter(|row| row.len() <= limit).collect()
    }

    fn number(&self, name: &str) -> &Tensor {
        let found = self.numbers.get(name);
        found.unwrap_or_else(|| panic!("{}: no {name}", self.name))
    }

    /// The adapter that PEFT had.
    fn adapter(&self, checkpoint: &Checkpoint) -> Adapter {
        let config = LoraConfig {
            rank: 3,
            alpha: 6.0,
            dropout: 0.0,
            target_modules: serde_json::from_value(self.description["lora_targets"].clone())
                .unwrap(),
            ..LoraConfig::default()
        };
        let tensors = self.description["lora_tensors"].as_object().unwrap();
        let stored: Weights = tensors
            .iter()
            .map(|(name, shape)| {
                let shape: Vec<usize> = serde_json::from_value(shape.clone()).unwrap();
                (name.clone(), factor(name, &shape))
            })
            .collect();
        let adapter = Adapter::from_weights(&config, &checkpoint.weights, &stored, &Device::Cpu);
        adapter.unwrap_or_else(|error| panic!("{}: {error}", self.name))
    }

    fn assert(&self, name: &str, found: &Tensor) {
        let expected = self.number(name);
        let off = difference(found, expected);
        let allowed = OUTPUT * largest(expected).max(1.0);
        assert!(off <= allowed, "{} {name}: off by {off}", self.name);
    }
}

/// Zeroes what lies outside the rows.
fn within(batch: &TokenBatch, x: &Tensor) -> Tensor {
    let inside = batch
        .spans()
        .iter()
        .flat_map(|span| (0..batch.time()).map(|time| f32::from(u8::from(span.contains(&time)))));
    let mask: Vec<f32> = inside.collect();
    let mask = Tensor::from_vec(mask, (batch.rows(), batch.time(), 1), &Device::Cpu).unwrap();
    x.broadcast_mul(&mask).unwrap()
}

fn log_probs(model: &CausalLm, batch: &TokenBatch) -> Tensor {
    let hidden = model.forward(batch).unwrap();
    let log_probs = model.next_token_log_probs(&hidden, batch).unwrap();
    log_probs.narrow(1, 0, batch.time() - 1).unwrap()
}

/// Returns the loss of the recording and the gradients of all that is trained.
fn gradients(recorded: &Recorded, model: &CausalLm, batch: &TokenBatch) -> (Tensor, Gradients) {
    let weighted = (log_probs(model, batch) * recorded.number("coefficients")).unwrap();
    let loss = weighted.sum_all().unwrap();
    let mut sums = Gradients::default();
    sums.add(&loss.backward().unwrap(), model.trainable())
        .expect("every trainable tensor has a gradient");
    (loss.reshape(1).unwrap(), sums)
}

/// A gradient beside the recorded one.
struct Slope {
    name: String,
    /// The largest difference.
    off: f32,
    /// The largest value recorded.
    largest: f32,
}

/// Holds the gradients of all that is trained against the recorded ones, whose names begin with `prefix`.
fn slopes(recorded: &Recorded, prefix: &str, model: &CausalLm, found: &Gradients) -> Vec<Slope> {
    let start = format!("{prefix}gradient.");
    let recordings = recorded.numbers.keys();
    assert_eq!(
        model.trainable().len(),
        recordings.filter(|name| name.starts_with(&start)).count()
    );
    let turned: Vec<String> = model
        .config()
        .slots()
        .filter(|slot| model.config().is_turned(slot.role))
        .map(|slot| slot.name)
        .collect();
    let slope = |(name, _): &(String, Var)| {
        let expected = recorded.number(&format!("{start}{name}"));
        let mut gradient = found.get(name).unwrap().clone();
        if turned.contains(name) {
            gradient = gradient.t().unwrap().contiguous().unwrap();
        }
        Slope {
            name: name.clone(),
            off: difference(&gradient, expected),
            largest: largest(expected),
        }
    };
    model.trainable().iter().map(slope).collect()
}

fn largest_of(slopes: &[Slope]) -> f32 {
    slopes.iter().map(|slope| slope.largest).fold(0.0, f32::max)
}

fn assert_gradients(recorded: &Recorded, prefix: &str, model: &CausalLm, found: &Gradients) {
    let slopes = slopes(recorded, prefix, model, found);
    let most = largest_of(&slopes);
    for Slope { name, off, largest } in slopes {
        let allowed = (GRADIENT * largest).max(GRADIENT_FLOOR * most);
        assert!(
            off <= allowed,
            "{} {prefix}{name}: off by {off}, allowed {allowed}",
            recorded.name
        );
    }
}

#[test]
fn outputs_losses_and_gradients_are_those_of_transformers() {
    for_each(|recorded| {
        let name = recorded.name;
        let checkpoint = recorded.load();
        let limit = checkpoint.config.max_position_embeddings;
        let prompts = recorded.prompts(limit);
        if prompts.len() < recorded.rows("rows").len() {
            // Frequencies that follow the longest row: each row alone, as far as it is taken.
            assert_eq!(name, "llama_rope_dynamic");
            let model = CausalLm::new(&checkpoint.config, &checkpoint.weights, Training::Frozen);
            let model = model.unwrap();
            let found = log_probs(&model, &TokenBatch::right_padded(&prompts));
            let expected = recorded.number("alone.log_probs");
            let expected = expected.narrow(0, 0, prompts.len()).unwrap();
            let expected = expected.narrow(1, 0, found.dim(1).unwrap()).unwrap();
            assert!(difference(&found, &expected) < 1e-4, "{name}");
            return;
        }
        let batch = TokenBatch::right_padded(&prompts);
        let model = CausalLm::new(&checkpoint.config, &checkpoint.weights, Training::Full).unwrap();
        let hidden = model.forward(&batch).unwrap();
        recorded.assert("hidden", &within(&batch, &hidden));
        let layer = model.layer_hidden_states(&batch, 1).unwrap();
        recorded.assert("layer1", &within(&batch, &layer));
        recorded.assert("log_probs", &log_probs(&model, &batch));
        let left = TokenBatch::left_padded(&prompts);
        let frozen = model.detached();
        let (left, right) = (log_probs(&frozen, &left), log_probs(&frozen, &batch));
        for (row, prompt) in prompts.iter().enumerate() {
            let (left, right) = (left.get(row).unwrap(), right.get(row).unwrap());
            let left = left
                .narrow(0, batch.time() - prompt.len(), prompt.len() - 1)
                .unwrap();
            let right = right.narrow(0, 0, prompt.len() - 1).unwrap();
            assert_eq!(
                left.to_vec1::<f32>().unwrap(),
                right.to_vec1::<f32>().unwrap(),
                "{name}"
            );
        }
        let (loss, found) = gradients(recorded, &model, &batch);
        recorded.assert("loss", &loss);
        assert_gradients(recorded, "", &model, &found);
    });
}

#[test]
fn adapters_are_those_of_peft() {
    for_each(|recorded| {
        let checkpoint = recorded.load();
        let prompts = recorded.rows("rows");
        if prompts
            .iter()
            .any(|row| row.len() > checkpoint.config.max_position_embeddings)
        {
            return;
        }
        let adapter = recorded.adapter(&checkpoint);
        let training = Training::Adapter(&adapter);
        let model = CausalLm::new(&checkpoint.config, &checkpoint.weights, training).unwrap();
        let batch = TokenBatch::right_padded(&prompts);
        recorded.assert("lora.log_probs", &log_probs(&model, &batch));
        let (loss, found) = gradients(recorded, &model, &batch);
        recorded.assert("lora.loss", &loss);
        assert_gradients(recorded, "lora.", &model, &found);
        let merged = adapter.merge(&checkpoint.weights).unwrap();
        let merged = CausalLm::new(&checkpoint.config, &merged, Training::Frozen).unwrap();
        recorded.assert("merged.log_probs", &log_probs(&merged, &batch));
    });
}

#[test]
fn decoding_is_that_of_transformers_token_for_token() {
    for_each(|recorded| {
        let name = recorded.name;
        let checkpoint = recorded.load();
        let model = CausalLm::new(&checkpoint.config, &checkpoint.weights, Training::Frozen);
        let model = model.unwrap();
        let limit = checkpoint.config.max_position_embeddings;
        let prompts = recorded.prompts(limit.saturating_sub(12));
        let keys: Vec<u64> = (0..prompts.len() as u64).collect();
        let contrastive = Strategy::Contrastive(Contrastive {
            alpha: 0.6,
            top_k: 4,
            temperature: None,
        });
        let decode = |strategy| {
            let options = GenerateOptions::new(12, &[]);
            let stream = Stream::new(1, "decoding");
            let go_on = &mut |_| ControlFlow::Continue(());
            generate(&model, &prompts, &options, &strategy, &stream, &keys, go_on).unwrap()
        };
        let greedy = decode(Strategy::Greedy);
        let searched = decode(contrastive);
        for (kind, found) in [("greedy", &greedy), ("contrastive", &searched)] {
            let found: Vec<_> = found.iter().map(|row| row.tokens.clone()).collect();
            let expected: Vec<_> = recorded
                .rows("rows")
                .iter()
                .zip(recorded.rows(kind))
                .filter(|(row, _)| prompts.contains(row))
                .map(|(_, tokens)| tokens)
                .collect();
            assert_eq!(found, expected, "{name} {kind}");
        }
        // What was decoded with memory has the bits of a whole pass.
        for (prompt, completion) in prompts.iter().zip(greedy) {
            let row = [prompt.as_slice(), &completion.tokens].concat();
            let whole = log_probs(&model, &TokenBatch::right_padded(&[row]));
            let whole = whole.get(0).unwrap().to_vec1::<f32>().unwrap();
            assert!(
                are_same(&completion.log_probs, &whole[prompt.len() - 1..]),
                "{name}"
            );
        }
    });
}

#[test]
fn scores_are_those_of_transformers() {
    const PADDING: u32 = 1;
    for_each(|recorded| {
        let name = recorded.name;
        let Some(rows) = recorded.description["score_rows"].as_array() else {
            return;
        };
        let path = recorded.folder.path().join("model.safetensors");
        let checkpoint = recorded.load();
        let head = checkpoint.config.head_name();
        let mut weights = parameters(&recorded.description["tensors"]);
        weights.remove(&head);
        let width = checkpoint.config.embedding_size;
        let score = crate::ml::models::fixture::parameter("score.weight", &[1, width]);
        weights.insert("score.weight".to_owned(), score);
        save_safetensors(&path, &weights).unwrap();
        let classifier =
            load_sequence_classifier(recorded.folder.path(), &[], &Placement::HOST).unwrap();
        let trunk = classifier.trunk;
        let model = CausalLm::new(&trunk.config, &trunk.weights, Training::Frozen).unwrap();
        for (index, row) in rows.iter().enumerate() {
            let tokens: Vec<u32> = serde_json::from_value(row["tokens"].clone()).unwrap();
            let last = tokens.iter().rposition(|token| *token != PADDING).unwrap();
            let batch = TokenBatch::right_padded(&[&tokens[..=last]]);
            let hidden = model
                .forward(&batch)
                .unwrap()
                .get(0)
                .unwrap()
                .get(last)
                .unwrap();
            let found = linear(&hidden.unsqueeze(0).unwrap(), &classifier.score).unwrap();
            let expected = recorded.number("score.logits").narrow(0, index, 1).unwrap();
            assert!(difference(&found, &expected) < 2e-5, "{name} row {index}");
        }
    });
}

#[test]
fn what_was_read_is_written_as_it_was() {
    for_each(|recorded| {
        let name = recorded.name;
        let checkpoint = recorded.load();
        let copy = tempfile::tempdir().unwrap();
        save_hugging_face(copy.path(), &checkpoint.config, &checkpoint.weights, None).unwrap();
        let again = load_hugging_face(copy.path()).unwrap();
        assert_eq!(again.config, checkpoint.config, "{name}");
        let bytes =
            |folder: &std::path::Path| fs_err::read(folder.join("model.safetensors")).unwrap();
        assert!(
            bytes(copy.path()) == bytes(recorded.folder.path()),
            "{name}"
        );
    });
}

/// Writes a tokenizer of whole words with so many ids beside a model.
fn write_words(recorded: &Recorded, ids: usize) {
    let vocabulary: serde_json::Map<_, _> =
        (0..ids).map(|id| (format!("w{id}"), id.into())).collect();
    let document = serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": null, "post_processor": null,
        "decoder": null, "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "w0" },
    });
    let settings = r#"{ "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w1" }"#;
    let folder = recorded.folder.path();
    fs_err::write(folder.join("tokenizer.json"), document.to_string()).unwrap();
    fs_err::write(folder.join("tokenizer_config.json"), settings).unwrap();
}

#[test]
fn tokens_that_a_model_has_no_row_for_get_the_mean_of_its_rows() {
    for_each(|recorded| {
        let before = recorded.load();
        let rows = before.config.vocab_size;
        write_words(recorded, rows + 3);
        let after = recorded.load();
        assert_eq!((after.added_rows, after.config.vocab_size), (3, rows + 3));
        assert_eq!(after.config.document["vocab_size"], rows + 3);
        let longer = [after.config.embedding_name(), after.config.head_name()];
        for (name, old) in &before.weights {
            let new = &after.weights[name];
            if !longer.contains(name) {
                assert_eq!(difference(new, old), 0.0, "{} {name}", recorded.name);
                continue;
            }
            let kept = new.narrow(0, 0, rows).unwrap();
            assert_eq!(difference(&kept, old), 0.0, "{} {name}", recorded.name);
            let mean = old.mean_keepdim(0).unwrap();
            for row in rows..rows + 3 {
                let off = difference(&new.narrow(0, row, 1).unwrap(), &mean);
                assert!(off < 1e-6, "{} {name}: off by {off}", recorded.name);
            }
        }
        // What is written is opened as it is, and predicts for the old tokens what it did.
        let copy = tempfile::tempdir().unwrap();
        let tokenizer = after.tokenizer.as_ref();
        save_hugging_face(copy.path(), &after.config, &after.weights, tokenizer).unwrap();
        let again = load_hugging_face(copy.path()).unwrap();
        assert_eq!((again.added_rows, again.config.vocab_size), (0, rows + 3));
        let logits = |checkpoint: &Checkpoint| {
            let model =
                CausalLm::new(&checkpoint.config, &checkpoint.weights, Training::Frozen).unwrap();
            let limit = checkpoint.config.max_position_embeddings;
            let batch = TokenBatch::right_padded(&recorded.prompts(limit));
            let hidden = model.forward(&batch).unwrap();
            model.logits(&hidden).unwrap()
        };
        let (old, new) = (logits(&before), logits(&again));
        let kept = new.narrow(new.rank() - 1, 0, rows).unwrap();
        assert!(difference(&kept, &old) < 1e-5, "{}", recorded.name);
    });
}

#[test]
fn rows_without_a_token_are_kept() {
    let recorded = Recorded::of("qwen2");
    let rows = recorded.load().config.vocab_size;
    write_words(&recorded, rows - 5);
    let loaded = recorded.load();
    assert_eq!((loaded.added_rows, loaded.config.vocab_size), (0, rows));
    // `transformers` leaves an id that is no token out of the text.
    let tokenizer = loaded.tokenizer.unwrap();
    let ids = [2, rows as u32 - 1, 3];
    assert_eq!(tokenizer.decode(&ids).unwrap(), "w2 w3");
}

#[test]
fn null_is_not_as_good_as_absent_where_transformers_makes_a_difference() {
    let recorded = Recorded::of("qwen2_window");
    let read = |changes: &[(&str, serde_json::Value)]| {
        let mut description = recorded.description["config"].clone();
        let map = description.as_object_mut().unwrap();
        for (key, value) in changes {
            map.insert((*key).to_owned(), value.clone());
        }
        map.remove("layer_types");
        families::read(std::path::Path::new("config.json"), map, &[])
    };
    let windows = |changes: &[(&str, serde_json::Value)]| {
        let layers = read(changes).unwrap().layers;
        layers.iter().map(|layer| layer.window).collect::<Vec<_>>()
    };
    assert_eq!(windows(&[]), [None, Some(4)]);
    assert_eq!(
        windows(&[("sliding_window", serde_json::Value::Null)]),
        [None, None]
    );
    let heads = read(&[("num_key_value_heads", serde_json::Value::Null)]);
    let heads = heads.unwrap();
    assert_eq!(heads.num_kv_heads, heads.num_heads);
}

#[test]
fn keys_that_nobody_reads_are_refused() {
    let recorded = Recorded::of("llama");
    let mut description = recorded.description["config"].clone();
    description["residual_multiplier"] = 0.22.into();
    let map = description.as_object().unwrap();
    let path = std::path::Path::new("config.json");
    let error = families::read(path, map, &[]).unwrap_err().to_string();
    assert_eq!(
        error,
        "config.json: `residual_multiplier`: 0.22 is not supported; it is no key that this model family is known to \
         read; if it changes no number, name it in `ignore_config`"
    );
    let named = ["residual_multiplier".to_owned()];
    assert!(families::read(path, map, &named).is_ok());
    let other = ["logit_scale".to_owned()];
    let error = families::read(path, map, &other).unwrap_err().to_string();
    assert!(error.contains("no key `logit_scale`"), "{error}");
}

/// The rows of `pipelines/models.md`.
pub(in crate::ml::models) fn table() -> String {
    let mut table = String::new();
    for name in VARIANTS {
        let recorded = Recorded::of(name);
        let checkpoint = recorded.load();
        let rows = recorded.rows("rows");
        if rows
            .iter()
            .any(|row| row.len() > checkpoint.config.max_position_embeddings)
        {
            table.push_str(&format!(
                "| {name} | rows up to `max_position_embeddings` alone | | | |\n"
            ));
            continue;
        }
        let batch = TokenBatch::right_padded(&rows);
        let build = |training: Training<'_>, weights: &Weights| {
            CausalLm::new(&checkpoint.config, weights, training).unwrap()
        };
        let worst = |prefix: &str, model: &CausalLm| {
            let (_, found) = gradients(&recorded, model, &batch);
            let slopes = slopes(&recorded, prefix, model, &found);
            let most = largest_of(&slopes);
            slopes
                .iter()
                .map(|slope| slope.off / most)
                .fold(0.0, f32::max)
        };
        let model = build(Training::Full, &checkpoint.weights);
        let adapter = recorded.adapter(&checkpoint);
        let adapted = build(Training::Adapter(&adapter), &checkpoint.weights);
        let merged = adapter.merge(&checkpoint.weights).unwrap();
        let merged = build(Training::Frozen, &merged);
        table.push_str(&format!(
            "| {name} | {:.1e} | {:.1e} | {:.1e} | {:.1e} |\n",
            difference(&log_probs(&model, &batch), recorded.number("log_probs")),
            worst("", &model),
            worst("lora.", &adapted),
            difference(
                &log_probs(&merged, &batch),
                recorded.number("merged.log_probs")
            ),
        ));
    }
    table
}
