//! Every family against `transformers`: hidden states, logits and all gradients.
//!
//! `tests/fixtures/models/encoders.py` says what was recorded and how.

use candle_core::Tensor;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::ml::formats::hugging_face::{
    EncoderCheckpoint, EncoderOptions, load_encoder, load_encoder_classifier, save_encoder,
};
use crate::ml::formats::safetensors::{load_safetensors, save_safetensors};
use crate::ml::kernels::sums;
use crate::ml::models::fixture::{difference, largest, parameters, recorded};

const RECORDED: [&str; 5] = ["bert", "roberta", "xlm_roberta", "mpnet", "distilbert"];

/// Of the largest number in the tensor.
const TOLERANCE: f32 = 1e-5;
const GRADIENT_TOLERANCE: f32 = 1e-4;
/// Of the largest number in all gradients: what is nothing but rounding, such as the gradients of biases of keys.
const FLOOR: f32 = 1e-6;

/// A folder with weights of the formula.
pub(super) fn folder(config: &Value, tensors: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs_err::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let weights = parameters(tensors);
    save_safetensors(&folder.path().join("model.safetensors"), &weights).unwrap();
    folder
}

pub(super) fn rows(recorded: &Value) -> Vec<Vec<u32>> {
    let rows = recorded["rows"].as_array().unwrap().iter();
    rows.map(|row| {
        let ids = row.as_array().unwrap().iter();
        ids.map(|id| id.as_u64().unwrap() as u32).collect()
    })
    .collect()
}

fn encoder(recorded: &Value) -> Encoder {
    let folder = folder(&recorded["config"], &recorded["tensors"]);
    let read = load_encoder(folder.path(), &EncoderOptions::default()).unwrap();
    Encoder::new(&read.config, &read.weights, |_| false).unwrap()
}

fn classifier(read: &EncoderCheckpoint) -> EncoderClassifier {
    let head = read.head.as_ref().unwrap();
    EncoderClassifier::new(&read.config, head, &read.weights, |_| true).unwrap()
}

/// Takes the padding out of recorded hidden states (rows, longest, size).
fn packed(recorded: &Tensor, rows: &[Vec<u32>]) -> Tensor {
    let rows = rows.iter().enumerate().map(|(row, ids)| {
        let states = recorded.get(row).unwrap();
        states.narrow(0, 0, ids.len()).unwrap()
    });
    Tensor::cat(&rows.collect::<Vec<_>>(), 0).unwrap()
}

fn assert_close(found: &Tensor, expected: &Tensor, what: &str) -> f32 {
    let relative = difference(found, expected) / largest(expected);
    assert!(relative < TOLERANCE, "{what} is off by {relative:e}");
    relative
}

/// Returns how far a family's hidden states are from those recorded, as a share of the largest.
fn hidden_states_off(name: &str) -> f32 {
    let (about, expected) = recorded(name);
    let (encoder, rows) = (encoder(&about), rows(&about));
    let hidden = encoder.forward(&PackedTokens::new(&rows)).unwrap();
    assert_close(&hidden, &packed(&expected["hidden"], &rows), name)
}

#[test]
fn hidden_states_are_those_of_transformers() {
    for name in RECORDED {
        hidden_states_off(name);
        let (about, expected) = recorded(name);
        let (encoder, rows) = (encoder(&about), rows(&about));
        // The first block's output is that of the same encoder without the others.
        let config = EncoderConfig {
            num_layers: 1,
            ..encoder.config().clone()
        };
        let weights = encoder.parameters().weights().unwrap();
        let first = Encoder::new(&config, &weights, |_| false).unwrap();
        let first = first.forward(&PackedTokens::new(&rows)).unwrap();
        assert_close(&first, &packed(&expected["layer1"], &rows), name);
    }
}

/// Returns how far a family's logits and gradients are from those recorded, as shares of the largest.
fn logits_and_gradients_off(name: &str) -> (f32, f32) {
    let (about, expected) = recorded(name);
    let folder = folder(&about["classifier_config"], &about["classifier_tensors"]);
    let read = load_encoder_classifier(folder.path(), &[]).unwrap();
    assert_eq!(read.labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
    let classifier = classifier(&read);
    let logits = classifier.logits(&PackedTokens::new(&rows(&about)));
    let logits = logits.unwrap();
    let far = assert_close(&logits, &expected["logits"], name);

    let loss = sums::total(&(logits * &expected["coefficients"]).unwrap()).unwrap();
    assert_close(&loss.reshape(1).unwrap(), &expected["loss"], name);
    let found = loss.backward().unwrap();
    let gradients = || {
        let names = expected.iter();
        names.filter_map(|(name, of)| Some((name.strip_prefix("gradient.")?, of)))
    };
    let most = gradients().map(|(_, of)| largest(of)).fold(0.0, f32::max);
    let variables = classifier.trainable();
    assert_eq!(variables.len(), gradients().count());
    let mut farthest = 0f32;
    for (stored, expected) in gradients() {
        let own = stored.strip_prefix(read_prefix(name)).unwrap_or(stored);
        // The names of BERT's head are those of its pooler and of the one layer after it.
        let own = own.replace("pooler.dense.", "classifier.dense.");
        let own = match (name, own.as_str()) {
            ("bert", "classifier.weight") => "classifier.out_proj.weight".to_owned(),
            ("bert", "classifier.bias") => "classifier.out_proj.bias".to_owned(),
            _ => own,
        };
        let variable = variables.iter().find(|(name, _)| *name == own);
        let (_, variable) = variable.unwrap_or_else(|| panic!("{name} has no {own}"));
        let gradient = found.get(variable);
        let gradient = gradient.unwrap_or_else(|| panic!("{name}'s {own} has no gradient"));
        let far = difference(gradient, expected);
        let allowed = (GRADIENT_TOLERANCE * largest(expected)).max(FLOOR * most);
        assert!(
            far <= allowed,
            "{name}'s gradient of {own} is off by {far:e}"
        );
        if largest(expected) > 1e-4 * most {
            farthest = farthest.max(far / largest(expected));
        }
    }
    (far, farthest)
}

#[test]
fn logits_and_every_gradient_are_those_of_transformers() {
    for name in RECORDED {
        logits_and_gradients_off(name);
    }
}

/// The rows of `pipelines/models.md`.
pub(in crate::ml::models) fn table() -> String {
    let rows = RECORDED.map(|name| {
        let hidden = hidden_states_off(name);
        let (logits, gradients) = logits_and_gradients_off(name);
        format!("| {name} | {hidden:.1e} | {logits:.1e} | {gradients:.1e} |\n")
    });
    rows.concat()
}

/// What stands before names in the files of a recorded family with a head.
fn read_prefix(recorded: &str) -> &'static str {
    match recorded {
        "xlm_roberta" => "roberta.",
        other => Family::of(other).unwrap().prefix,
    }
}

#[test]
fn a_row_is_the_same_alone_and_among_others_to_the_last_bit() {
    if !crate::ml::kernels::form::bits_are_promised() {
        return;
    }
    for name in RECORDED {
        let (about, _) = recorded(name);
        let (encoder, rows) = (encoder(&about), rows(&about));
        let states = |rows: &[Vec<u32>]| {
            let states = encoder.forward(&PackedTokens::new(rows)).unwrap();
            states.to_vec2::<f32>().unwrap()
        };
        let alone: Vec<Vec<f32>> = rows
            .iter()
            .flat_map(|row| states(std::slice::from_ref(row)))
            .collect();
        assert_eq!(states(&rows), alone, "{name}");
    }
}

#[test]
fn an_adapter_beside_an_encoder_is_refused() {
    let (about, _) = recorded("bert");
    let folder = folder(&about["config"], &about["tensors"]);
    fs_err::write(folder.path().join("adapter_config.json"), "{}").unwrap();
    let error = load_encoder(folder.path(), &EncoderOptions::default()).unwrap_err();
    let error = error.to_string();
    assert!(
        error.contains("adapter_config.json: an adapter of an encoder is not supported"),
        "{error}"
    );
}

#[test]
fn saved_encoders_and_classifiers_are_read_back() {
    for name in RECORDED {
        let (about, _) = recorded(name);
        let batch = PackedTokens::new(&rows(&about));
        for (config, tensors) in [
            ("config", "tensors"),
            ("classifier_config", "classifier_tensors"),
        ] {
            let folder = folder(&about[config], &about[tensors]);
            let read = |folder: &TempDir| match config {
                "config" => load_encoder(folder.path(), &EncoderOptions::default()).unwrap(),
                _ => load_encoder_classifier(folder.path(), &[]).unwrap(),
            };
            let first = read(&folder);
            let copy = tempfile::tempdir().unwrap();
            save_encoder(copy.path(), &first).unwrap();
            let second = read(&copy);
            // Under the names that it came with, but for poolers that nothing is read from.
            let path = copy.path().join("model.safetensors");
            let names: Vec<String> = load_safetensors(&path).unwrap().into_keys().collect();
            let stored = about[tensors].as_object().unwrap().keys();
            let stored = stored.filter(|name| !name.starts_with("pooler."));
            assert!(names.iter().eq(stored), "{name}: {names:?}");
            let text = fs_err::read_to_string(copy.path().join("config.json")).unwrap();
            let written: Value = serde_json::from_str(&text).unwrap();
            if name != "xlm_roberta" {
                assert_eq!(written["architectures"], about[config]["architectures"]);
            }
            assert_eq!(second.config, first.config, "{name}");
            assert_eq!(second.head, first.head, "{name}");
            assert_eq!(second.labels, first.labels, "{name}");
            if first.head.is_some() {
                let logits = |read| {
                    let logits = classifier(read).logits(&batch).unwrap();
                    logits.to_vec2::<f32>().unwrap()
                };
                assert_eq!(logits(&first), logits(&second), "{name}");
            }
        }
    }
}

#[test]
fn a_key_that_is_not_known_or_asks_for_something_else_is_an_error() {
    let error = |name: &str, changes: Value| {
        let (about, _) = recorded(name);
        let mut config = about["config"].clone();
        for (key, value) in changes.as_object().unwrap() {
            config[key] = value.clone();
        }
        let folder = folder(&config, &about["tensors"]);
        let error = load_encoder(folder.path(), &EncoderOptions::default())
            .unwrap_err()
            .to_string();
        error.replace(&*folder.path().to_string_lossy(), "DIR")
    };
    for name in RECORDED {
        assert_eq!(
            error(name, json!({ "use_alibi": true })),
            "DIR/config.json: `use_alibi`: true is not supported; it is no key that this model family is known to \
             read; if it changes no number, name it in `ignore_config`"
        );
        for (key, value) in [
            ("is_decoder", json!(true)),
            ("add_cross_attention", json!(true)),
            ("pruned_heads", json!({ "0": [1] })),
            ("quantization_config", json!({ "bits": 4 })),
            ("auto_map", json!({ "AutoModel": "modeling.Model" })),
        ] {
            let found = error(name, json!({ key: value }));
            let expected = format!("DIR/config.json: `{key}`: {value} is not supported");
            assert!(found.starts_with(&expected), "{found}");
        }
    }
    assert_eq!(
        error("bert", json!({ "position_embedding_type": "relative_key" })),
        "DIR/config.json: `position_embedding_type`: \"relative_key\" is not supported; only \"absolute\" is"
    );
    assert_eq!(
        error("mpnet", json!({ "relative_attention_num_buckets": 64 })),
        "DIR/config.json: `relative_attention_num_buckets`: 64 is not supported; only 32 is"
    );
    assert!(
        error("roberta", json!({ "hidden_act": "quick_gelu" }))
            .starts_with("DIR/config.json: `hidden_act`: \"quick_gelu\" is not supported; gelu, "),
    );
    assert_eq!(
        error("distilbert", json!({ "hidden_size": 32 })),
        "DIR/config.json: keys `dim` and `hidden_size` are one, but are 16 and 32"
    );
    assert_eq!(
        error("bert", json!({ "model_type": "electra" })),
        "DIR/config.json: `model_type` electra is not supported; bert, distilbert, mpnet, roberta, xlm-roberta are"
    );
    // A key of another family is as unknown as any.
    assert!(error("bert", json!({ "sinusoidal_pos_embds": false })).contains("`ignore_config`"));
}

#[test]
fn keys_that_are_to_be_ignored_are_not_looked_at() {
    let (about, _) = recorded("bert");
    let mut config = about["config"].clone();
    config["use_alibi"] = json!(true);
    config["layer_norm_eps"] = json!("none");
    let folder = folder(&config, &about["tensors"]);
    let read = |ignored: &[&str]| {
        let options = EncoderOptions {
            ignored: ignored.iter().map(|key| (*key).to_owned()).collect(),
            prompt: None,
        };
        load_encoder(folder.path(), &options)
    };
    // As if they were not there.
    let config = read(&["use_alibi", "layer_norm_eps"]).unwrap().config;
    assert_eq!(config.layer_norm_eps, 1e-12);
    assert!(read(&["use_alibi"]).is_err());
}

#[test]
fn tensors_must_be_there_have_their_shapes_and_be_all() {
    for name in RECORDED {
        let (about, _) = recorded(name);
        let folder = folder(&about["config"], &about["tensors"]);
        let path = folder.path().join("model.safetensors");
        let whole = parameters(&about["tensors"]);
        let error = |weights: &Weights| {
            save_safetensors(&path, weights).unwrap();
            load_encoder(folder.path(), &EncoderOptions::default())
                .unwrap_err()
                .to_string()
        };
        for tensor in whole.keys().filter(|name| !name.starts_with("pooler.")) {
            let mut weights = whole.clone();
            let taken = weights.remove(tensor).unwrap();
            let found = error(&weights);
            let is_named = found.contains(&format!("tensor `{tensor}`"));
            assert!(is_named && found.contains("is missing"), "{found}");
            weights.insert(
                tensor.clone(),
                taken.narrow(0, 1, taken.dim(0).unwrap() - 1).unwrap(),
            );
            let found = error(&weights);
            let is_named = found.contains(&format!("tensor `{tensor}` has shape"));
            assert!(is_named, "{found}");
        }
        let mut weights = whole.clone();
        let other = "encoder.layer.2.attention.self.query.weight";
        weights.insert(other.to_owned(), whole.values().next().unwrap().clone());
        let found = error(&weights);
        assert!(
            found.contains(&format!("unexpected tensor `{other}`")),
            "{found}"
        );
    }
}

#[test]
fn padding_within_a_row_has_its_own_position_and_no_gradient() {
    let positions = |padding| Positions::AfterPadding(padding);
    let batch = PackedTokens::new(&[vec![0, 7, 1, 1, 9], vec![1, 4]]);
    let found = batch.positions(positions(1), &Device::Cpu).unwrap();
    assert_eq!(found.to_vec1::<u32>().unwrap(), [2, 3, 1, 1, 4, 1, 2]);
    let found = batch.positions(Positions::FromZero, &Device::Cpu).unwrap();
    assert_eq!(found.to_vec1::<u32>().unwrap(), [0, 1, 2, 3, 4, 0, 1]);

    for (name, of_positions) in [("bert", false), ("roberta", true), ("mpnet", true)] {
        let (about, _) = recorded(name);
        let folder = folder(&about["config"], &about["tensors"]);
        let read = load_encoder(folder.path(), &EncoderOptions::default()).unwrap();
        let padding = read.config.padding_id.unwrap();
        let encoder = Encoder::new(&read.config, &read.weights, |_| true).unwrap();
        let frozen = Encoder::new(&read.config, &read.weights, |_| false).unwrap();
        let batch = PackedTokens::new(&[[2, 7, padding, 9]]);
        let hidden = encoder.forward(&batch).unwrap();
        // What is not trained is computed with all the same.
        assert_eq!(
            hidden.to_vec2::<f32>().unwrap(),
            frozen.forward(&batch).unwrap().to_vec2::<f32>().unwrap()
        );
        let weighted = (&hidden * parameters(&json!({ "w": [4, 16] }))["w"].clone()).unwrap();
        let gradients = sums::total(&weighted).unwrap().backward().unwrap();
        let of = |table: &str, row: usize| {
            let name = format!("embeddings.{table}.weight");
            let variables = encoder.trainable();
            let (_, table) = variables.iter().find(|(one, _)| *one == name).unwrap();
            largest(&gradients.get(table).unwrap().get(row).unwrap())
        };
        assert_eq!(of("word_embeddings", padding as usize), 0.0, "{name}");
        assert!(of("word_embeddings", 7) > 0.0, "{name}");
        let row = if of_positions { padding as usize } else { 2 };
        assert_eq!(
            of("position_embeddings", row) == 0.0,
            of_positions,
            "{name}"
        );
    }
}

#[test]
fn distances_are_in_the_buckets_of_mpnet() {
    // Of transformers 4.57: MPNetEncoder.relative_position_bucket(torch.tensor([..])).
    for (distance, bucket) in [
        (0, 0),
        (-1, 1),
        (1, 17),
        (-7, 7),
        (-8, 8),
        (-11, 8),
        (-12, 9),
        (15, 25),
        (16, 26),
        (22, 26),
        (23, 27),
        (-45, 12),
        (-46, 13),
        (63, 29),
        (64, 30),
        (-90, 14),
        (-91, 15),
        (511, 31),
    ] {
        assert_eq!(EncoderConfig::bucket(distance), bucket, "{distance}");
    }
}
