//! A longer training continues from where a shorter one ended, with the bytes of one go.

use std::path::PathBuf;

use crate::space::{Report, Space};
use crate::tiny;

/// Every kind of training, with rates that do not depend on the length.
const STAGES: &str = r"
  sft:
    kind: train_sft
    inputs: { model: random_model, data: world.finetune }
    params: { steps: '${steps}', batch_size: 8, optimizer: { lr: 1e-2, warmup_steps: 3 }, adapter: { rank: 2, alpha: 4, dropout: 0.1, target_modules: [q_proj, v_proj] }, seed: 1 }
  reward:
    kind: train_reward
    inputs: { model: base, data: world.reward, evaluation: world.validation }
    params: { steps: '${steps}', batch_size: 8, optimizer: { lr: 3e-3 }, prefix_weight: 0.5, calibration: standard, seed: 1 }
  ppo:
    kind: train_ppo
    inputs: { policy: base, reward: scorer, data: world.rl }
    params: { steps: '${steps}', batch_size: 8, minibatch_size: 4, ppo_epochs: 2, optimizer: { lr: 1e-3 }, max_new_tokens: 8, init_kl: 0.2, kl: { adaptive: { target: 2, horizon: 100 } }, checkpoints: { early: 3 }, seed: 1 }
  dpo:
    kind: train_preference
    inputs: { policy: base, data: world.reward }
    params: { objective: { loss: dpo, beta: 0.1 }, steps: '${steps}', batch_size: 8, micro_batch: 3, optimizer: { lr: 1e-3, warmup_steps: 2 }, adapter: { rank: 2, alpha: 4, dropout: 0.1, target_modules: [q_proj, v_proj] }, seed: 1 }
  kto:
    kind: train_preference
    inputs: { policy: base, data: world.reward }
    params: { objective: { loss: kto, beta: 0.1 }, steps: '${steps}', batch_size: 8, optimizer: { lr: 1e-3 }, seed: 1 }
  gdpo:
    kind: train_gflownet_dpo
    inputs: { policy: base, data: world.reward }
    params: { alpha: 0.5, gamma: 1, steps: '${steps}', batch_size: 8, optimizer: { lr: 1e-3 }, seed: 1 }
  gflownet:
    kind: train_gflownet
    inputs: { policy: base, reward: scorer, data: world.rl }
    params:
      objective: trajectory_balance
      log_z: per_prompt
      on_policy: 0.5
      replay: 0.25
      replay_min_distance: 0.25
      steps: '${steps}'
      prompts_per_step: 2
      completions_per_prompt: 4
      optimizer: { lr: 1e-3 }
      reward_scale: 2
      max_new_tokens: 24
      monitor_every: 4
      monitor_completions: 2
      checkpoints: { early: 3 }
      seed: 1
  # The shorter training ends between two updates on the same completions.
  flowrl:
    kind: train_gflownet
    inputs: { policy: base, reward: scorer, data: world.rl }
    params:
      objective: flowrl
      log_z: network
      log_z_lr: 1e-3
      on_policy: 1
      updates_per_batch: 4
      steps: '${steps}'
      prompts_per_step: 2
      completions_per_prompt: 4
      optimizer: { lr: 1e-3 }
      reward_scale: 15
      max_new_tokens: 12
      monitor_every: 4
      monitor_completions: 2
      seed: 1
  samples:
    kind: sample
    inputs: { policy: gflownet.early, prompts: world.evaluation }
    params: { strategy: sampling, n: 3, max_new_tokens: 8, seed: 1 }
";

fn pipeline() -> String {
    tiny::pipeline("params: { steps: 6 }", STAGES)
}

const TRAININGS: [&str; 8] = [
    "dpo", "flowrl", "gdpo", "gflownet", "kto", "ppo", "reward", "sft",
];

fn continued(report: &Report) -> Vec<&str> {
    let notes = report.events.iter().filter(|event| {
        let text = event["text"].as_str().unwrap_or_default();
        event["event"] == "stage_note" && text.starts_with("continues from step 6 of 10")
    });
    let mut stages: Vec<&str> = notes.filter_map(|note| note["stage"].as_str()).collect();
    stages.sort_unstable();
    stages
}

#[test]
fn a_longer_training_has_the_bytes_of_one_go() {
    let longer = ["--set", "steps=10"];
    let one_go = Space::new(&pipeline());
    let expected = one_go.run(&longer);
    assert_eq!(expected.code, 0, "{}", expected.stderr);

    let space = Space::new(&pipeline());
    assert_eq!(space.run(&[]).code, 0);
    let plan = space.flowgraph(&["plan", "p.yaml", "--set", "steps=10"]);
    assert_eq!(
        plan.stdout.matches("continues from step 6").count(),
        TRAININGS.len(),
        "{}",
        plan.stdout
    );
    let lengthened = space.run(&longer);
    assert_eq!(continued(&lengthened), TRAININGS);
    for stage in TRAININGS {
        assert_eq!(
            lengthened.stages[stage].1, expected.stages[stage].1,
            "{stage}"
        );
    }
    // The checkpoint of step 3 is the same, so what reads it is cached.
    assert_eq!(lengthened.stages["samples"].0, "cached");
}

#[test]
fn a_damaged_state_costs_time_and_never_a_result() {
    let longer = ["--set", "steps=10", "--only", "gflownet"];
    let one_go = Space::new(&pipeline());
    let expected = one_go.run(&longer);
    let space = Space::new(&pipeline());
    space.run(&["--only", "gflownet"]);
    let before = space.files(".flowgraph/records");
    // The stages before it left states too, after 4 steps.
    let mut states: Vec<PathBuf> = space.files(".flowgraph/states");
    states.retain(|file| file.components().any(|part| part.as_os_str() == "6"));
    assert!(states.len() >= 4, "{states:?}");
    let mut began_anew = 0;
    for file in states {
        let good = std::fs::read(&file).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 0x01;
        std::fs::write(&file, &bad).unwrap();
        let report = space.run(&longer);
        let digests = &report.stages["gflownet"].1;
        assert_eq!(
            *digests,
            expected.stages["gflownet"].1,
            "{}",
            file.display()
        );
        began_anew += usize::from(continued(&report).is_empty());
        // As if it had not been lengthened yet.
        std::fs::write(&file, &good).unwrap();
        let longer_state = file.ancestors().find_map(|folder| {
            let longer = folder.parent()?.join("10");
            longer.exists().then_some(longer)
        });
        std::fs::remove_dir_all(longer_state.unwrap()).unwrap();
        for record in space.files(".flowgraph/records") {
            if !before.contains(&record) {
                std::fs::remove_file(record).unwrap();
            }
        }
    }
    assert!(began_anew >= 4, "{began_anew} of the damages were seen");
}
