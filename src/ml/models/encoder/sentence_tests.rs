//! Folders of sentence-transformers against the library: every pooling, layer and prompt, and what is refused.
//!
//! `tests/fixtures/models/encoders.py` says what was recorded and how.

use std::path::Path;

use candle_core::Tensor;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::parity_tests::{folder, rows};
use super::*;
use crate::ml::formats::hugging_face::{EncoderOptions, load_encoder, save_encoder};
use crate::ml::formats::safetensors::save_safetensors;
use crate::ml::models::fixture::{difference, largest, parameter, parameters, recorded};

/// Of the largest number.
const TOLERANCE: f32 = 1e-5;

const MODES: [&str; 6] = [
    "cls",
    "max",
    "mean",
    "mean_sqrt_len_tokens",
    "weightedmean",
    "lasttoken",
];

fn dense(has_bias: bool, activation: Activation) -> SentenceStep {
    SentenceStep::Dense(Dense {
        weight: parameter("linear.weight", &[6, 16]),
        bias: has_bias.then(|| parameter("linear.bias", &[6])),
        activation,
    })
}

#[test]
fn every_pooling_and_what_follows_it_is_that_of_sentence_transformers() {
    let (about, _) = recorded("bert");
    let (_, expected) = recorded("sentence_transformers");
    let folder = folder(&about["config"], &about["tensors"]);
    let read = load_encoder(folder.path(), &EncoderOptions::default()).unwrap();
    let encoder = Encoder::new(&read.config, &read.weights, |_| false).unwrap();
    let batch = PackedTokens::new(&rows(&about));
    let tanh = dense(true, Activation::Tanh);
    let mut farthest = 0f32;
    let mut compare = |name: &str, modes: &[&str], steps: &[&SentenceStep], skipped: usize| {
        let pooling = modes.iter().map(|mode| SentencePooling::by_name(mode));
        let sentence = SentenceEmbedding {
            pooling: pooling.map(Option::unwrap).collect(),
            steps: steps.iter().map(|step| (*step).clone()).collect(),
            ..SentenceEmbedding::default()
        };
        let found = encoder.embed(&batch, &sentence, skipped).unwrap();
        let relative = difference(&found, &expected[name]) / largest(&expected[name]);
        assert!(relative < TOLERANCE, "{name} is off by {relative:e}");
        assert_eq!(
            found.dim(1).unwrap(),
            sentence.dimension(16).unwrap(),
            "{name}"
        );
        farthest = farthest.max(relative);
    };
    let normalize = SentenceStep::Normalize;
    let identity = dense(false, Activation::Identity);
    for mode in MODES {
        let named = |what: &str| format!("{mode}{what}");
        compare(mode, &[mode], &[], 0);
        compare(&named(".normalize"), &[mode], &[&normalize], 0);
        compare(&named(".dense"), &[mode], &[&tanh], 0);
        compare(&named(".dense.normalize"), &[mode], &[&tanh, &normalize], 0);
        compare(&named(".identity"), &[mode], &[&identity], 0);
        compare(&named(".without_prompt"), &[mode], &[], 3);
        // Padding on the left moves the weights of its batch there; here there is none.
        if mode != "weightedmean" {
            compare(&named(".left"), &[mode], &[], 0);
        }
    }
    compare("cls+mean", &["cls", "mean"], &[], 0);
    compare("mean+max", &["mean", "max"], &[], 0);
    println!("pooling, dense and normalize: {farthest:e}");

    let error = encoder.pooled(&batch, &[SentencePooling::Mean], 5);
    assert_eq!(
        error.unwrap_err().to_string(),
        "row 1 has no token after the 5 of the prompt, which are not pooled"
    );
}

fn write(folder: &Path, name: &str, value: &Value) {
    let path = folder.join(name);
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, value.to_string()).unwrap();
}

/// The recorded folder, with the files of new or old versions.
fn sentence_folder(files: &str) -> TempDir {
    let (bert, _) = recorded("bert");
    let (about, _) = recorded("sentence_transformers");
    let folder = folder(&bert["config"], &bert["tensors"]);
    for (name, content) in about[files].as_object().unwrap() {
        write(folder.path(), name, content);
    }
    let layer = parameters(&about["dense_tensors"]);
    save_safetensors(&folder.path().join("2_Dense/model.safetensors"), &layer).unwrap();
    let words: serde_json::Map<_, _> = about["vocabulary"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(id, word)| (word.as_str().unwrap().to_owned(), json!(id)))
        .collect();
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
    let added: Vec<Value> = special
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true })
        })
        .collect();
    write(
        folder.path(),
        "tokenizer.json",
        &json!({
            "version": "1.0", "added_tokens": added,
            "normalizer": { "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                            "strip_accents": null, "lowercase": true },
            "pre_tokenizer": { "type": "BertPreTokenizer" },
            "post_processor": { "type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2] },
            "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
            "model": { "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                       "max_input_chars_per_word": 100, "vocab": words },
        }),
    );
    let settings = json!({ "tokenizer_class": "BertTokenizer", "model_max_length": 20 });
    write(folder.path(), "tokenizer_config.json", &settings);
    folder
}

/// Embeds the recorded texts by a folder, and by a copy that was written from it.
fn embed(folder: &TempDir, prompt: Option<&str>) -> Tensor {
    let (about, _) = recorded("sentence_transformers");
    let texts: Vec<&str> = about["texts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap())
        .collect();
    let embed = |folder: &TempDir, options: &EncoderOptions| {
        let read = load_encoder(folder.path(), options).unwrap();
        let encoder = Encoder::new(&read.config, &read.weights, |_| false).unwrap();
        let (tokenizer, sentence) = (read.tokenizer.unwrap(), read.sentence.unwrap());
        let tokens = encoder.encode_texts(&tokenizer, &texts).unwrap();
        assert_eq!(json!(tokens), about["tokens"]);
        encoder
            .embed_texts(&tokenizer, &sentence, &texts, 10)
            .unwrap()
    };
    let options = EncoderOptions {
        prompt: prompt.map(str::to_owned),
        ..EncoderOptions::default()
    };
    let found = embed(folder, &options);
    let copy = tempfile::tempdir().unwrap();
    let read = load_encoder(folder.path(), &options).unwrap();
    save_encoder(copy.path(), &read).unwrap();
    // What was chosen is the copy's own.
    assert_eq!(embed(&copy, &EncoderOptions::default()), found);
    Tensor::new(found, &candle_core::Device::Cpu).unwrap()
}

#[test]
fn folders_of_new_and_old_versions_embed_texts_with_and_without_prompts() {
    let (_, expected) = recorded("sentence_transformers");
    let assert_close = |found: &Tensor, name: &str, what: &str| {
        let relative = difference(found, &expected[name]) / largest(&expected[name]);
        println!("{what}, {name}: {relative:e}");
        assert!(
            relative < TOLERANCE,
            "{what}: {name} is off by {relative:e}"
        );
    };
    for files in ["files", "old_files"] {
        let folder = sentence_folder(files);
        assert_close(&embed(&folder, None), "encode", files);
        assert_close(&embed(&folder, Some("document")), "encode", files);
        assert_close(&embed(&folder, Some("query")), "encode.prompt", files);

        let path = "1_Pooling/config.json";
        let text = fs_err::read_to_string(folder.path().join(path)).unwrap();
        let mut pooling: Value = serde_json::from_str(&text).unwrap();
        pooling["include_prompt"] = false.into();
        write(folder.path(), path, &pooling);
        assert_close(
            &embed(&folder, Some("query")),
            "encode.without_prompt",
            files,
        );
        // Without a prompt nothing is left out.
        assert_close(&embed(&folder, None), "encode", files);

        let path = "config_sentence_transformers.json";
        let prompts = json!({ "prompts": { "query": "ask : " }, "default_prompt_name": "query", "truncate_dim": 4 });
        write(folder.path(), path, &prompts);
        let found = embed(&folder, None);
        let cut = expected["encode.without_prompt"].narrow(1, 0, 4).unwrap();
        assert!(difference(&found, &cut) < TOLERANCE, "{files}");
    }
}

#[test]
fn the_folder_that_is_written_keeps_every_mode() {
    for modes in [
        &["weightedmean"][..],
        &["cls", "lasttoken"],
        &["max"],
        &["mean_sqrt_len_tokens"],
    ] {
        let folder = sentence_folder("files");
        write(
            folder.path(),
            "1_Pooling/config.json",
            &json!({ "pooling_mode": modes, "include_prompt": false }),
        );
        let only = |kind: &str, path: &str| json!({ "type": format!("sentence_transformers.models.{kind}"), "path": path });
        let modules = json!([
            only("Transformer", ""),
            only("Pooling", "1_Pooling"),
            only("Dropout", "2_Dropout")
        ]);
        write(folder.path(), "modules.json", &modules);
        let read = load_encoder(folder.path(), &EncoderOptions::default()).unwrap();
        let copy = tempfile::tempdir().unwrap();
        save_encoder(copy.path(), &read).unwrap();
        let again = load_encoder(copy.path(), &EncoderOptions::default()).unwrap();
        let sentence = again.sentence.unwrap();
        let names: Vec<&str> = sentence.pooling.iter().map(|mode| mode.name()).collect();
        assert_eq!((names.as_slice(), sentence.pools_prompt), (modes, false));
        assert!(sentence.steps.is_empty());
    }
}

#[test]
fn what_is_not_known_is_refused_by_its_name() {
    let with = |file: &str, content: &Value, prompt: Option<&str>| {
        let folder = sentence_folder("files");
        write(folder.path(), file, content);
        let options = EncoderOptions {
            prompt: prompt.map(str::to_owned),
            ..EncoderOptions::default()
        };
        let error = load_encoder(folder.path(), &options)
            .unwrap_err()
            .to_string();
        error.replace(&*folder.path().to_string_lossy(), "DIR")
    };
    let error = |file: &str, content: Value| with(file, &content, None);
    let module = |kind: &str, path: &str| json!({ "type": kind, "path": path });
    let known = |kind: &str| module(&format!("sentence_transformers.models.{kind}"), kind);
    assert_eq!(
        error(
            "modules.json",
            json!([known("Transformer"), known("Pooling"), known("CNN")])
        ),
        "DIR/modules.json: the module `sentence_transformers.models.CNN` is not supported; Transformer, Pooling, Dense, \
         Normalize, Dropout are; embed with sentence-transformers in a stage of kind `command`"
    );
    let found = error("modules.json", json!([module("modeling.Normalize", "")]));
    assert!(
        found.contains("the module `modeling.Normalize` is not supported"),
        "{found}"
    );
    assert_eq!(
        error(
            "modules.json",
            json!([known("Transformer"), known("Normalize")])
        ),
        "DIR/modules.json: the modules Transformer, Normalize is not supported; a Transformer, a Pooling and then any of \
         Dense, Normalize and Dropout are, in this order; embed with sentence-transformers in a stage of kind `command`"
    );
    assert_eq!(
        error(
            "modules.json",
            json!([module("sentence_transformers.models.Transformer", "../x")])
        ),
        "DIR/modules.json: module path `../x` leaves the folder"
    );
    assert_eq!(
        error(
            "1_Pooling/config.json",
            json!({ "pooling_mode": ["mean", "median"] })
        ),
        "DIR/1_Pooling/config.json: `pooling_mode`: \"median\" is not supported; cls, max, mean, mean_sqrt_len_tokens, \
         weightedmean, lasttoken are"
    );
    let found = error(
        "1_Pooling/config.json",
        json!({ "pooling_mode": "mean", "pooling_mode_median": false }),
    );
    assert!(
        found.starts_with("DIR/1_Pooling/config.json: `pooling_mode_median`: false is not supported; only the keys embedding_"),
        "{found}"
    );
    let layer = |changes: Value| {
        let mut layer = json!({ "in_features": 16, "out_features": 6 });
        for (key, value) in changes.as_object().unwrap() {
            layer[key] = value.clone();
        }
        layer
    };
    for (changes, expected) in [
        (
            json!({ "activation_function": "own.Tanh" }),
            "`activation_function`: \"own.Tanh\" is not supported; torch.nn.",
        ),
        (
            json!({ "module_input_name": "token_embeddings" }),
            "`module_input_name`: \"token_embeddings\" is not supported",
        ),
        (
            json!({ "scale": 2 }),
            "`scale`: 2 is not supported; only the keys activation_function, bias, in_features, ",
        ),
        (
            json!({ "in_features": "16" }),
            "key `in_features` is \"16\", expected a whole number",
        ),
    ] {
        let found = error("2_Dense/config.json", layer(changes));
        assert!(
            found.starts_with(&format!("DIR/2_Dense/config.json: {expected}")),
            "{found}"
        );
    }
    assert_eq!(
        error("2_Dense/config.json", layer(json!({ "in_features": 8 }))),
        "DIR/2_Dense/model.safetensors: tensor `linear.weight` has shape [6, 16], expected [6, 8]"
    );
    assert_eq!(
        error("2_Dense/config.json", layer(json!({ "bias": false }))),
        "DIR/2_Dense/model.safetensors: unexpected tensor `linear.bias` of shape [6]; the configuration has no place for it"
    );
    assert_eq!(
        error(
            "1_Pooling/config.json",
            json!({ "pooling_mode": ["mean", "max"] })
        ),
        "DIR: invalid encoder: a dense layer takes vectors of 16 numbers, those before it have 32"
    );
    for (key, value) in [
        ("transformer_task", json!("fill-mask")),
        ("module_output_name", json!("pooler_output")),
        ("processing_kwargs", json!({ "text": {} })),
        ("model_args", json!({ "add_pooling_layer": false })),
        ("unknown", Value::Null),
    ] {
        let found = error("sentence_bert_config.json", json!({ key: value }));
        let is_named = found.starts_with("DIR/sentence_bert_config.json: ")
            && found.contains(&format!("`{key}`"));
        assert!(is_named && found.contains("is not supported"), "{found}");
    }
    let prompts = |content: Value| error("config_sentence_transformers.json", content);
    assert_eq!(
        prompts(json!({ "prompts": { "query": "q: " }, "default_prompt_name": "title" })),
        "DIR/config_sentence_transformers.json: there is no prompt `title`: there are `query`"
    );
    assert_eq!(
        with("x.json", &json!({}), Some("title")),
        "DIR/config_sentence_transformers.json: there is no prompt `title`: there are `document`, `query`"
    );
    assert_eq!(
        prompts(json!({ "model_type": "SparseEncoder" })),
        "DIR/config_sentence_transformers.json: `model_type`: \"SparseEncoder\" is not supported; only \
         \"SentenceTransformer\" is"
    );
    assert_eq!(
        prompts(json!({ "truncate_dim": 0 })),
        "DIR/config_sentence_transformers.json: key `truncate_dim` is 0, expected 1 or more"
    );
    assert_eq!(
        prompts(json!({ "prompts": ["q"] })),
        "DIR/config_sentence_transformers.json: key `prompts` is [\"q\"], expected texts by their names"
    );
}

#[test]
fn a_prompt_of_a_folder_without_prompts_is_an_error() {
    let (about, _) = recorded("bert");
    let folder = folder(&about["config"], &about["tensors"]);
    let options = EncoderOptions {
        prompt: Some("query".to_owned()),
        ..EncoderOptions::default()
    };
    let error = load_encoder(folder.path(), &options)
        .unwrap_err()
        .to_string();
    assert!(
        error.ends_with("there is no prompt `query`: it is no folder of sentence-transformers"),
        "{error}"
    );
}
