//! Trainings: interrupted or killed, the next run continues and ends with the same bytes.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;

use crate::space::Space;

/// A tiny world, model and reward model; then a GFlowNet training of a second or two.
const PIPELINE: &str = r"
name: training
stages:
  world:
    kind: generate_world
    params: { seed: 1, pretraining_documents: 400, finetune_pairs: 200, reward_pairs: 200, rl_questions: 50 }
  tokenizer:
    kind: train_tokenizer
    inputs: { data: [world.pretrain, world.evaluation] }
    params: { algorithm: word_level, vocab_size: 256 }
  random_model:
    kind: init_model
    inputs: { tokenizer: tokenizer }
    params: { hidden_size: 16, num_layers: 2, num_heads: 2, intermediate_size: 32, max_position_embeddings: 64, seed: 1 }
  sft:
    kind: train_sft
    inputs: { model: random_model, data: world.finetune }
    params: { steps: 5, batch_size: 8, optimizer: { lr: 1e-2 }, adapter: { rank: 2, alpha: 4, dropout: 0.1, target_modules: [q_proj, v_proj] }, seed: 1 }
  reward_model:
    kind: train_reward
    inputs: { model: sft, data: world.reward, evaluation: world.validation }
    params: { steps: 5, batch_size: 8, optimizer: { lr: 3e-3 }, prefix_weight: 0.5, calibration: standard, seed: 1 }
  policy:
    kind: train_gflownet
    inputs: { policy: sft, reward: reward_model, data: world.rl }
    params:
      objective: trajectory_balance
      log_z: per_prompt
      on_policy: 0.5
      replay: 0.25
      steps: 120
      prompts_per_step: 2
      completions_per_prompt: 4
      optimizer: { lr: 1e-3, schedule: cosine }
      adapter: { rank: 2, alpha: 4, dropout: 0.1, target_modules: [q_proj, v_proj] }
      reward_scale: 2
      max_new_tokens: 24
      monitor_every: 10
      monitor_completions: 4
      checkpoints: { early: 3, late: 110 }
      seed: 1
";

/// Starts a run and waits until the policy has made a few steps.
#[expect(
    clippy::zombie_processes,
    reason = "whoever asked waits for it, in `end`"
)]
fn start(space: &Space) -> (Child, BufReader<ChildStdout>) {
    let mut child = space
        .program(&["run", "p.yaml", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    loop {
        line.clear();
        assert!(
            lines.read_line(&mut line).unwrap() > 0,
            "the run ended before it could be interrupted"
        );
        let event: Json = serde_json::from_str(&line).unwrap();
        if event["event"] == "stage_progress"
            && event["stage"] == "policy"
            && event["progress"]["step"].as_u64() >= Some(5)
        {
            return (child, lines);
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(
        Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap(),
        signal,
    )
    .unwrap();
}

/// Reads a run to its end and returns its exit code.
fn end(mut child: Child, lines: BufReader<ChildStdout>) -> i32 {
    lines.lines().for_each(drop);
    child.wait().unwrap().code().unwrap_or(-1)
}

#[test]
fn an_interrupted_training_continues_from_its_checkpoint_with_the_same_bytes() {
    let undisturbed = Space::new(PIPELINE);
    let expected = undisturbed.run(&[]);
    assert_eq!(expected.code, 0, "{}", expected.stderr);

    let space = Space::new(PIPELINE);
    let (child, lines) = start(&space);
    signal(&child, Signal::INT);
    assert_eq!(end(child, lines), 130);
    let resumed = space.run(&[]);
    let notes: Vec<&str> = resumed
        .events
        .iter()
        .filter(|event| event["event"] == "stage_note" && event["stage"] == "policy")
        .filter_map(|event| event["text"].as_str())
        .filter(|text| text.starts_with("continues from step"))
        .collect();
    assert_eq!(
        notes.len(),
        1,
        "the training began anew: {:?}",
        resumed.events
    );
    assert_eq!(resumed.stages["policy"].1, expected.stages["policy"].1);

    // Killed outright there may be no checkpoint yet; the bytes are the same all the same.
    let space = Space::new(PIPELINE);
    let (child, lines) = start(&space);
    signal(&child, Signal::KILL);
    end(child, lines);
    assert_eq!(
        space.run(&[]).stages["policy"].1,
        expected.stages["policy"].1
    );
}

#[test]
fn thread_count_changes_no_byte_of_a_training() {
    let one = Space::new(PIPELINE);
    let two = Space::new(PIPELINE);
    let args = |cpus: &str| {
        [
            "--set".to_owned(),
            format!("stages.policy.resources={{cpus: {cpus}}}"),
        ]
    };
    let run = |space: &Space, args: [String; 2]| space.run(&[args[0].as_str(), args[1].as_str()]);
    assert_eq!(
        run(&one, args("1")).stages["policy"].1,
        run(&two, args("2")).stages["policy"].1
    );
}
