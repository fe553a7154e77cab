//! Checkpoints: the states from which trainings continue.

use std::path::{Path, PathBuf};

use flowgraph::engine::artifact::Digest;

use crate::space::Space;
use crate::watch::Reader;

const PIPELINE: &str = r"
name: lengthening
params: { steps: 3 }
stages:
  world:
    kind: generate_world
    params: { seed: 1, pretraining_documents: 100, finetune_pairs: 60, reward_pairs: 60, rl_questions: 20 }
  tokenizer:
    kind: train_tokenizer
    inputs: { data: [world.pretrain, world.evaluation] }
    params: { algorithm: word_level, vocab_size: 256 }
  model:
    kind: init_model
    inputs: { tokenizer: tokenizer }
    params: { hidden_size: 8, num_layers: 1, num_heads: 1, intermediate_size: 8, max_position_embeddings: 64, seed: 1 }
  reward:
    kind: train_reward
    inputs: { model: model, data: world.reward, evaluation: world.validation }
    params: { steps: 2, batch_size: 4, optimizer: { lr: 3e-3 }, calibration: standard, seed: 1 }
  ppo:
    kind: train_ppo
    inputs: { policy: model, reward: reward, data: world.rl }
    params: { steps: '${steps}', batch_size: 4, minibatch_size: 4, ppo_epochs: 1, optimizer: { lr: 1e-3 }, max_new_tokens: 4, init_kl: 0.2, kl: { adaptive: { target: 2, horizon: 100 } }, seed: 1 }
  gflownet:
    kind: train_gflownet
    inputs: { policy: model, reward: reward, data: world.rl }
    params: { objective: trajectory_balance, log_z: per_prompt, on_policy: 0.5, replay: 0.25, steps: '${steps}', prompts_per_step: 2, completions_per_prompt: 4, optimizer: { lr: 1e-3 }, reward_scale: 2, max_new_tokens: 8, checkpoints: { early: 1 }, seed: 1 }
";

const FILES: [&str; 3] = ["values.json", "tensors.safetensors", "digests.json"];

/// What one training left after three steps.
struct Left {
    stage: &'static str,
    /// Its continuation's folder of states.
    key: PathBuf,
    checkpoint: PathBuf,
    files: [Vec<u8>; 3],
    /// The digests that four steps give.
    expected: String,
}

fn left(space: &Space, stage: &'static str) -> Left {
    let longer = space.run(&["--only", stage, "--set", "steps=4"]);
    assert_eq!(longer.code, 0, "{}", longer.stderr);
    // Now there is one state of four steps: this stage's.
    let states = space.files(".flowgraph/states");
    let state = states.iter().find_map(|file| {
        let folder = file.ancestors().find(|folder| folder.ends_with("4"))?;
        Some(folder.to_owned())
    });
    let state = state.unwrap();
    let key = state.parent().unwrap().to_owned();
    std::fs::remove_dir_all(state).unwrap();
    forget_longer(space, stage);
    let checkpoint = key.join("3/checkpoint-000000000003");
    Left {
        stage,
        files: FILES.map(|name| std::fs::read(checkpoint.join(name)).unwrap()),
        checkpoint,
        key,
        expected: longer.stages[stage].1.clone(),
    }
}

/// Removes the record of four steps, so that they are made again.
fn forget_longer(space: &Space, stage: &str) {
    let store = space.store();
    for record in store.read_records().0 {
        if record.provenance.stage == stage && record.manifest.params["steps"] == 4 {
            std::fs::remove_file(store.record_path(&record.fingerprint)).unwrap();
        }
    }
}

/// Writes a file anew: those of a state may be linked to from elsewhere.
fn write(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
}

pub(crate) fn training_state() -> Reader {
    let space = Space::new(PIPELINE);
    let report = space.run(&[]);
    assert_eq!(report.code, 0, "{}", report.stderr);
    let left = ["ppo", "gflownet"].map(|stage| left(&space, stage));
    // The first byte says which training and which of its files it is.
    let corpus = (0..6).map(|tag| {
        let file = &left[tag / 3].files[tag % 3];
        [[b'0' + tag as u8].as_slice(), file].concat()
    });
    Reader {
        name: "training_state",
        corpus: corpus.collect(),
        words: &[
            "null",
            "{}",
            "[]",
            "NaN",
            ",",
            ":",
            "-",
            "e9",
            "\"tokens\":",
            "\"record\":",
            "\"step\":",
        ],
        short: 8,
        read: Box::new(move |bytes| {
            let (first, rest) = bytes.split_first().unwrap_or((&b'2', bytes));
            let tag = usize::from(first.wrapping_sub(b'0')) % 6;
            let (left, damaged) = (&left[tag / 3], tag % 3);
            for (index, name) in FILES.iter().enumerate() {
                let bytes = if index == damaged {
                    rest
                } else {
                    &left.files[index]
                };
                write(&left.checkpoint.join(name), bytes);
            }
            // Values and tensors that are what their digests say are believed so far.
            if damaged < 2 {
                let good: serde_json::Value = serde_json::from_slice(&left.files[2]).unwrap();
                let mut digests = good;
                digests[FILES[damaged]] = Digest::of(rest).to_string().into();
                write(
                    &left.checkpoint.join(FILES[2]),
                    digests.to_string().as_bytes(),
                );
            }
            let report = space.run(&["--only", left.stage, "--set", "steps=4"]);
            forget_longer(&space, left.stage);
            let _ = std::fs::remove_dir_all(left.key.join("4"));
            let _ = std::fs::remove_dir_all(space.path(".flowgraph/scratch"));
            let _ = std::fs::remove_dir_all(space.path(".flowgraph/runs"));
            let failed = report
                .events
                .iter()
                .find(|event| event["event"] == "stage_failed");
            let message = failed
                .map(|event| event["message"].to_string())
                .unwrap_or_default();
            if message.contains("panicked") || message.contains("ended early") {
                return Err(message);
            }
            let peak = report
                .events
                .iter()
                .filter_map(|event| event["record"]["provenance"]["peak_memory_bytes"].as_u64());
            if let Some(peak) = peak.max().filter(|peak| *peak > 1 << 30) {
                return Err(format!("needed {} MiB", peak >> 20));
            }
            if damaged == 2 && (report.code != 0 || report.stages[left.stage].1 != left.expected) {
                return Err(format!(
                    "a damaged list of digests changed the result: {message} {}",
                    report.stderr
                ));
            }
            Ok(report.code == 0)
        }),
    }
}
