//! Whole trainings on small trees, and params that mean nothing.

use std::path::Path;

use serde_json::{Value as Json, json};

use super::*;
use crate::artifacts::curve::{Curve, Status};
use crate::artifacts::reward_model::REWARD_MODEL;
use crate::stages::data::generate_tree::GenerateTree;
use crate::stages::tryout::{Tried, attempt};

fn tree(folder: &Path) -> Tried {
    let params = json!({
        "symbols": 2, "horizon": 2, "prompts": 2, "spread": 1.5, "hidden_size": 16, "num_layers": 1, "seed": 1
    });
    let tree = attempt::<GenerateTree>(folder, params, &[], None);
    tree.outcome.as_ref().unwrap();
    tree
}

fn train(tree: &Tried, data: &Path, params: &Json) -> (Tried, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let [policy, reward] = ["policy", "reward"].map(|name| tree.output(name));
    let inputs = [
        ("policy", LANGUAGE_MODEL, policy.as_path()),
        ("reward", REWARD_MODEL, reward.as_path()),
        ("data", DATASET, data),
    ];
    let tried = attempt::<TrainGflownet>(folder.path(), params.clone(), &inputs, None);
    (tried, folder)
}

fn params(objective: &str) -> Json {
    json!({
        "objective": objective, "on_policy": 1, "steps": 50, "prompts_per_step": 2, "completions_per_prompt": 2,
        "max_new_tokens": 2, "long_completions": "truncate", "optimizer": { "lr": 1e-3 }, "reward_scale": 1,
        "monitor_every": 0, "seed": 1
    })
}

fn with(mut params: Json, changes: Json) -> Json {
    let changes: serde_json::Map<String, Json> = serde_json::from_value(changes).unwrap();
    params.as_object_mut().unwrap().extend(changes);
    params
}

#[test]
fn trainings_on_samples_go_on_where_all_samples_of_a_prompt_coincide() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path());
    // Of 2 samples of a tree of 31 completions some coincide within 50 steps.
    for objective in [
        "db",
        "subtb",
        "forward_looking",
        "vargrad",
        "tba",
        "modified_subtb",
    ] {
        let (tried, _folder) = train(&tree, &tree.output("data"), &params(objective));
        tried.outcome.as_ref().unwrap();
        let curve = Curve::read(&tried.output("curve")).unwrap();
        assert_eq!(curve.summary.status, Status::Completed, "{objective}");
        assert_eq!(curve.steps.len(), 50);
    }
}

#[test]
fn data_without_two_completions_of_a_prompt_is_refused_before_the_training() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path());
    let mut data = Dataset::read(&tree.output("data")).unwrap();
    let mut last = None;
    data.examples
        .retain(|example| last.replace(example.question_id) != Some(example.question_id));
    assert_eq!(data.examples.len(), 2);
    let single = folder.path().join("single");
    fs_err::create_dir_all(&single).unwrap();
    data.write(&single).unwrap();
    for (objective, on_policy, steps) in [
        ("vargrad", 0.0, None),
        ("vargrad", 0.5, Some(2)),
        ("db", 0.0, None),
        ("tb", 0.0, Some(2)),
    ] {
        let changes = json!({ "on_policy": on_policy, "steps": 2 });
        let (tried, _folder) = train(&tree, &single, &with(params(objective), changes));
        assert_eq!(tried.totals().get("steps").copied(), steps, "{objective}");
        if steps.is_none() {
            let found = tried.message();
            assert!(found.starts_with("no prompt has 2 completions"), "{found}");
        }
    }
    let (tried, _folder) = train(
        &tree,
        &single,
        &with(
            params("tb"),
            json!({ "on_policy": 0.0, "steps": 1, "prompts_per_step": 3, "completions_per_prompt": 4 }),
        ),
    );
    let notes = &tried.told.notes;
    assert!(
        notes.iter().any(|note| note.contains("so many, not the 3")),
        "{notes:?}"
    );
    assert!(
        notes
            .iter()
            .any(|note| note.starts_with("2 of 2 prompts have fewer than 4")),
        "{notes:?}"
    );
}

#[test]
fn numbers_without_room_in_single_precision_are_refused() {
    for (changes, path) in [
        (json!({ "temperature": 1e-45 }), "temperature"),
        (
            json!({ "temperature": { "start": 1, "end": 1e-45, "steps": 3 } }),
            "temperature.end",
        ),
        (json!({ "reward_temperature": 1e-45 }), "reward_temperature"),
        (
            json!({ "exploration": { "probability": 0.5, "low": 1e-45, "high": 1 } }),
            "exploration.low",
        ),
        (json!({ "reward_scale": 1e-45 }), "reward_scale"),
        (json!({ "replay_temperature": 1e-45 }), "replay_temperature"),
        (json!({ "log_z_lr": 1e-45 }), "log_z_lr"),
        (json!({ "optimizer": { "lr": 1e-45 } }), "optimizer.lr"),
        (
            json!({ "optimizer": { "lr": 1e-3, "max_grad_norm": 1e-45 } }),
            "optimizer.max_grad_norm",
        ),
        (json!({ "objective": "subtb", "lambda": 1e-45 }), "lambda"),
        (
            json!({ "objective": "subtb", "lambda": 2, "max_new_tokens": 256 }),
            "lambda",
        ),
        (json!({ "replay_capacity": 0 }), "replay_capacity"),
        (
            json!({ "objective": "db", "on_policy": 0, "completions_per_prompt": 1 }),
            "completions_per_prompt",
        ),
    ] {
        let stage: TrainGflownet = serde_json::from_value(with(params("tb"), changes)).unwrap();
        let found: Vec<String> = stage
            .validate()
            .iter()
            .map(|p| p.path.to_string())
            .collect();
        assert_eq!(found, [path]);
    }
}

#[test]
fn params_that_would_be_ignored_are_refused() {
    let behind = |changes: Json| {
        let settings = json!({ "sync_every": 2, "samples": 2, "recent": 0.5 });
        json!({ "on_policy": 0, "asynchronous": with(settings, changes) })
    };
    for (objective, changes, path) in [
        (
            "vargrad",
            json!({ "length_normalised": true, "log_z_start": 1 }),
            "log_z_start",
        ),
        (
            "flowrl",
            json!({ "log_z": "batch", "log_z_start": 1 }),
            "log_z_start",
        ),
        ("subtb", json!({ "log_z_limit": 5 }), "log_z_limit"),
        ("tb", json!({ "log_z_limit": 0 }), "log_z_limit"),
        ("tb", json!({ "kl_limit": 5 }), "kl_limit"),
        ("tb", json!({ "monitor_reward": true }), "monitor_reward"),
        (
            "tb",
            json!({ "kl_limit": 0, "monitor_every": 1 }),
            "kl_limit",
        ),
        ("tb", json!({ "weighting": "batch" }), "weighting"),
        (
            "subtb",
            json!({ "length_normalised": true }),
            "length_normalised",
        ),
        ("flowrl", behind(json!({ "samples": 1 })), "asynchronous"),
        (
            "vargrad",
            behind(json!({ "samples": 1 })),
            "asynchronous.samples",
        ),
        (
            "tb",
            behind(
                json!({ "samples": 9_000_000_000_000_000_000_u64, "capacity": 9_000_000_000_000_000_000_u64 }),
            ),
            "asynchronous.samples",
        ),
        (
            "tb",
            json!({ "completions_per_prompt": 9_000_000_000_000_000_000_u64 }),
            "completions_per_prompt",
        ),
    ] {
        let stage = serde_json::from_value::<TrainGflownet>(with(params(objective), changes));
        let found: Vec<String> = stage
            .unwrap()
            .validate()
            .iter()
            .map(|p| p.path.to_string())
            .collect();
        assert_eq!(found, [path], "{objective}");
    }
    for (objective, changes) in [
        ("flowrl", json!({ "length_normalised": false })),
        ("tb", behind(json!({ "samples": 1 }))),
        (
            "tb",
            json!({ "kl_limit": 5, "monitor_every": 1, "log_z_limit": 5 }),
        ),
    ] {
        let stage = serde_json::from_value::<TrainGflownet>(with(params(objective), changes));
        assert_eq!(stage.unwrap().validate(), [], "{objective}");
    }
}

#[test]
fn trainings_on_samples_take_every_prompt_whatever_completions_the_data_has() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path());
    let mut data = Dataset::read(&tree.output("data")).unwrap();
    let distinct = data.distinct_prompts().len();
    let first = data.examples[0].prompt.clone();
    for example in &mut data.examples {
        if example.prompt == first {
            // Longer than the horizon, and one of them alone.
            let long = example
                .chosen
                .clone()
                .map(|text| [text.as_str(); 9].join(" "));
            example.chosen = long;
            example.rejected = None;
        }
    }
    let long = folder.path().join("long");
    fs_err::create_dir_all(&long).unwrap();
    data.write(&long).unwrap();
    let changes =
        json!({ "steps": 1, "prompts_per_step": distinct + 1, "long_completions": "leave_out" });
    let (tried, _folder) = train(&tree, &long, &with(params("vargrad"), changes));
    tried.outcome.as_ref().unwrap();
    let told = format!("the data set has {distinct} prompts: a step takes so many");
    let notes = &tried.told.notes;
    assert!(
        notes.iter().any(|note| note.starts_with(&told)),
        "{notes:?}"
    );
}

#[test]
fn settings_of_sampling_without_samples_are_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let tree = tree(folder.path());
    let changes = json!({ "on_policy": 0, "steps": 1, "temperature": 0.5 });
    let (tried, _folder) = train(&tree, &tree.output("data"), &with(params("tb"), changes));
    let notes = &tried.told.notes;
    assert!(
        notes.iter().any(|note| note.contains("change nothing")),
        "{notes:?}"
    );
}
