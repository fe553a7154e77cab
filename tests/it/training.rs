//! Trainings: interrupted or killed, the next run continues and ends with the same bytes.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value as Json;

use crate::space::Space;
use crate::tiny;

/// Trainings of a second or two.
const STAGES: &str = r"
  policy:
    kind: train_gflownet
    inputs: { policy: base, reward: scorer, data: world.rl }
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
  dpo:
    kind: train_preference
    inputs: { policy: base, data: world.reward }
    params: { objective: { loss: dpo, beta: 0.1 }, steps: 300, batch_size: 8, optimizer: { lr: 1e-3, schedule: cosine }, adapter: { rank: 2, alpha: 4, dropout: 0.1, target_modules: [q_proj, v_proj] }, seed: 1 }
  gdpo:
    kind: train_gflownet_dpo
    inputs: { policy: base, data: world.reward }
    params: { alpha: 0.5, gamma: 1, steps: 300, batch_size: 8, optimizer: { lr: 1e-3, schedule: cosine }, seed: 1 }
";

fn space() -> Space {
    Space::new(&tiny::pipeline("", STAGES))
}

/// Starts a run and waits until a training has made a few steps.
#[expect(
    clippy::zombie_processes,
    reason = "whoever asked waits for it, in `end`"
)]
fn start(space: &Space, stage: &str) -> (Child, BufReader<ChildStdout>) {
    let mut child = space
        .program(&["run", "p.yaml", "--json", "--only", stage])
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
            && event["stage"] == stage
            && event["progress"]["unit"] == "steps"
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

/// Interrupts a training, then kills another try of it, and goes on.
fn interrupt(stage: &str) {
    let undisturbed = space();
    let only = ["--only", stage];
    let expected = undisturbed.run(&only);
    assert_eq!(expected.code, 0, "{}", expected.stderr);

    let disturbed = space();
    let (child, lines) = start(&disturbed, stage);
    signal(&child, Signal::INT);
    assert_eq!(end(child, lines), 130);
    let resumed = disturbed.run(&only);
    let notes: Vec<&str> = resumed
        .events
        .iter()
        .filter(|event| event["event"] == "stage_note" && event["stage"] == stage)
        .filter_map(|event| event["text"].as_str())
        .filter(|text| text.starts_with("continues from step"))
        .collect();
    assert_eq!(
        notes.len(),
        1,
        "the training began anew: {:?}",
        resumed.events
    );
    assert_eq!(resumed.stages[stage].1, expected.stages[stage].1);

    // Killed outright there may be no checkpoint yet; the bytes are the same all the same.
    let killed = space();
    let (child, lines) = start(&killed, stage);
    signal(&child, Signal::KILL);
    end(child, lines);
    assert_eq!(killed.run(&only).stages[stage].1, expected.stages[stage].1);
}

#[test]
fn an_interrupted_training_continues_from_its_checkpoint_with_the_same_bytes() {
    interrupt("policy");
}

#[test]
fn interrupted_trainings_on_pairs_continue_with_the_same_bytes() {
    interrupt("dpo");
    interrupt("gdpo");
}

#[test]
fn thread_count_changes_no_byte_of_a_training() {
    let (one, two) = (space(), space());
    let trainings = ["policy", "dpo", "gdpo"];
    let run = |space: &Space, cpus: &str| {
        let settings = trainings.map(|stage| format!("stages.{stage}.resources={{cpus: {cpus}}}"));
        let args: Vec<&str> = settings
            .iter()
            .flat_map(|setting| ["--set", setting.as_str()])
            .collect();
        space.run(&args)
    };
    let (one, two) = (run(&one, "1"), run(&two, "2"));
    for stage in trainings {
        assert_eq!(one.stages[stage].1, two.stages[stage].1, "{stage}");
    }
}
