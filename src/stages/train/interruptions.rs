//! Every pass of a stage says how far it is, stops when it is asked to, and a training before it is not lost.

use std::path::Path;

use serde_json::{Value as Json, json};

use crate::artifacts::completions::COMPLETIONS;
use crate::artifacts::dataset::{DATASET, Dataset};
use crate::artifacts::language_model::LANGUAGE_MODEL;
use crate::artifacts::reward_model::REWARD_MODEL;
use crate::engine::stage::Kind;
use crate::stages::data::generate_tree::GenerateTree;
use crate::stages::evaluate::embed_hidden::EmbedHidden;
use crate::stages::evaluate::judge::Judge;
use crate::stages::evaluate::sample::Sample;
use crate::stages::evaluate::score::Score;
use crate::stages::evaluate::score_policy::ScorePolicy;
use crate::stages::train::train_reward::TrainReward;
use crate::stages::train::train_sft::TrainSft;
use crate::stages::tryout::{Tried, attempt};

/// A tree of 468 completions: more than one part of any pass.
fn tree(folder: &Path) -> Tried {
    let params = json!({ "symbols": 2, "horizon": 3, "prompts": 3, "spread": 1.5, "seed": 1 });
    let tree = attempt::<GenerateTree>(folder, params, &[], None);
    tree.outcome.as_ref().unwrap();
    assert_eq!(tree.totals()["completions scored"], 468);
    // Any two completions of a prompt are a pair.
    let mut data = Dataset::read(&tree.output("data")).unwrap();
    let others = data.examples.clone();
    let words = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    for (example, other) in data.examples.iter_mut().zip(&others[1..]) {
        example.chosen = words(&example.chosen).or(Some("w0".to_owned()));
        example.rejected = words(&other.chosen).or(Some("w1".to_owned()));
    }
    data.examples.pop();
    fs_err::create_dir_all(tree.output("pairs")).unwrap();
    data.write(&tree.output("pairs")).unwrap();
    tree
}

fn adapter() -> Json {
    json!({ "rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"] })
}

fn pass<K: Kind>(params: &Json, inputs: &[(&str, &str, &Path)], unit: &'static str, total: u64) {
    let folder = tempfile::tempdir().unwrap();
    let whole = attempt::<K>(folder.path(), params.clone(), inputs, None);
    whole.outcome.as_ref().unwrap();
    assert_eq!(
        whole.totals().get(unit),
        Some(&total),
        "{:?}",
        whole.totals()
    );
    let stopped = attempt::<K>(folder.path(), params.clone(), inputs, Some(unit));
    assert!(stopped.is_interrupted(), "{unit}: {:?}", stopped.outcome);
    let last = stopped.told.progress.last().unwrap();
    assert_eq!(last.unit, unit);
    assert!(last.step < total, "{unit} went on to its end");
}

#[test]
fn passes_of_models_tell_how_far_they_are_and_stop_in_their_midst() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path());
    let [policy, reward, data, completions, pairs] =
        ["policy", "reward", "data", "completions", "pairs"].map(|name| tree.output(name));
    let policy = policy.as_path();
    let small = json!({ "batch_size": 7 });
    let given = ("completions", COMPLETIONS, completions.as_path());
    let reward = ("reward", REWARD_MODEL, reward.as_path());
    pass::<Score>(&small, &[given, reward], "completions scored", 468);
    let scored_by = ("policy", LANGUAGE_MODEL, policy);
    pass::<ScorePolicy>(&small, &[given, scored_by], "completions scored", 468);
    let judge = json!({ "judge": { "kind": "reward_model", "batch_size": 7 }, "seed": 1 });
    let opponent = ("opponent", COMPLETIONS, completions.as_path());
    pass::<Judge>(
        &judge,
        &[given, opponent, reward],
        "completions scored",
        936,
    );
    let texts = ("texts", COMPLETIONS, completions.as_path());
    let embedder = ("model", LANGUAGE_MODEL, policy);
    pass::<EmbedHidden>(&small, &[texts, embedder], "texts", 468);
    pass::<EmbedHidden>(&small, &[texts, embedder], "texts read", 468);
    let drawn = json!({
        "strategy": "sampling", "n": 90, "samples_per_prompt": 30, "max_new_tokens": 3, "batch_size": 8
    });
    let prompts = ("prompts", DATASET, data.as_path());
    pass::<Sample>(&drawn, &[scored_by, prompts], "completions", 90);
    let train = json!({
        "steps": 2, "batch_size": 4, "optimizer": { "lr": 1e-3 }, "adapter": adapter(), "seed": 1
    });
    let texts = ("data", DATASET, pairs.as_path());
    pass::<TrainSft>(&train, &[embedder, texts], "examples read", 467);
    pass::<TrainSft>(&train, &[embedder, texts], "steps", 2);
    let held_out = ("evaluation", DATASET, pairs.as_path());
    let inputs = [embedder, texts, held_out];
    pass::<TrainReward>(&train, &inputs, "pairs read", 467);
}

fn bytes(tried: &Tried, files: &[String]) -> Vec<Vec<u8>> {
    tried.outcome.as_ref().unwrap();
    let read = |file: &String| fs_err::read(tried.output(file)).unwrap();
    files.iter().map(read).collect()
}

#[test]
fn a_training_interrupted_in_its_evaluation_keeps_its_steps_and_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path());
    let [model, pairs] = ["policy", "pairs"].map(|name| tree.output(name));
    let inputs = [
        ("model", LANGUAGE_MODEL, model.as_path()),
        ("data", DATASET, pairs.as_path()),
        ("evaluation", DATASET, pairs.as_path()),
    ];
    let params = json!({
        "steps": 3, "batch_size": 4, "optimizer": { "lr": 1e-3, "schedule": "cosine" }, "adapter": adapter(),
        "calibration": "standard", "seed": 1
    });
    let straight = tempfile::tempdir().unwrap();
    let straight = attempt::<TrainReward>(straight.path(), params.clone(), &inputs, None);
    assert_eq!(straight.totals()["held-out pairs"], 467);
    let files = fs_err::read_dir(straight.output("model")).unwrap();
    let files = files.map(|file| format!("model/{}", file.unwrap().file_name().display()));
    let files: Vec<String> = files.collect();
    assert!(files.iter().any(|file| file.ends_with(".safetensors")));

    let disturbed = tempfile::tempdir().unwrap();
    for unit in ["completions scored", "held-out pairs"] {
        let stopped = attempt::<TrainReward>(disturbed.path(), params.clone(), &inputs, Some(unit));
        assert!(stopped.is_interrupted(), "{unit}: {:?}", stopped.outcome);
    }
    let resumed = attempt::<TrainReward>(disturbed.path(), params, &inputs, None);
    let notes = &resumed.told.notes;
    assert!(
        notes.contains(&"continues from step 3 of 3".to_owned()),
        "{notes:?}"
    );
    assert!(
        !resumed.totals().contains_key("steps"),
        "its steps were made again"
    );
    assert_eq!(bytes(&resumed, &files), bytes(&straight, &files));
}

#[test]
fn what_could_fail_in_or_after_a_training_fails_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path());
    let [model, pairs, single] = ["policy", "pairs", "data"].map(|name| tree.output(name));
    let model = ("model", LANGUAGE_MODEL, model.as_path());
    let data = ("data", DATASET, pairs.as_path());
    let params = |changes: Json| {
        let mut params = json!({
            "steps": 2, "batch_size": 4, "optimizer": { "lr": 1e-3 }, "adapter": adapter(), "seed": 1
        });
        let changes: serde_json::Map<String, Json> = serde_json::from_value(changes).unwrap();
        params.as_object_mut().unwrap().extend(changes);
        params
    };
    let fails = |tried: &Tried, expected: &str| {
        assert!(tried.message().contains(expected), "{}", tried.message());
        assert!(
            !tried.totals().contains_key("steps"),
            "{expected}: it trained"
        );
    };
    let own = tempfile::tempdir().unwrap();
    let packed = params(json!({ "packing": 4096, "learn_prompts": true }));
    let tried = attempt::<TrainSft>(own.path(), packed, &[model, data], None);
    fails(
        &tried,
        "`packing` makes rows of 4096 tokens, the model takes 7",
    );

    let own = tempfile::tempdir().unwrap();
    let held_out = ("evaluation", DATASET, single.as_path());
    let inputs = [model, data, held_out];
    let tried = attempt::<TrainReward>(own.path(), params(json!({})), &inputs, None);
    fails(&tried, "row 0 of the dataset is not a pair");

    let own = tempfile::tempdir().unwrap();
    let held_out = ("evaluation", DATASET, pairs.as_path());
    let inputs = [model, data, held_out];
    let world = params(json!({ "calibration": "world" }));
    let tried = attempt::<TrainReward>(own.path(), world, &inputs, None);
    fails(&tried, "needs prompts of the generated world");
}
