//! Many random kills over a pipeline with trainings: nothing is lost, nothing half-written is believed.

use std::os::unix::process::CommandExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use flowgraph::random::{Draws, Stream};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::space::{Report, Space, processes_in, wait_until};

/// Two trainings, commands before and beside and after them. The tests fill in `<steps>`.
const PIPELINE: &str = r#"
name: killed
params: { steps: <steps> }
stages:
  notes: { kind: command, params: { run: "for i in 1 2 3; do echo $i; sleep 0.01; done > out; cp out d", outputs: { out: out, copy: d } } }
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
    params: { hidden_size: 16, num_layers: 1, num_heads: 2, intermediate_size: 32, max_position_embeddings: 64, seed: 1 }
  sft:
    kind: train_sft
    inputs: { model: model, data: world.finetune }
    params: { steps: '${steps}', batch_size: 8, optimizer: { lr: 1e-2 }, seed: 1 }
  reward:
    kind: train_reward
    inputs: { model: sft, data: world.reward, evaluation: world.validation }
    params: { steps: 4, batch_size: 8, optimizer: { lr: 3e-3 }, calibration: standard, seed: 1 }
  policy:
    kind: train_gflownet
    inputs: { policy: sft, reward: reward, data: world.rl }
    params: { objective: trajectory_balance, log_z: per_prompt, on_policy: 0.5, replay: 0.25, steps: '${steps}', prompts_per_step: 2, completions_per_prompt: 4, optimizer: { lr: 1e-3 }, reward_scale: 2, max_new_tokens: 8, checkpoints: { early: 2 }, seed: 1 }
  listing: { kind: command, inputs: { x: policy.early, y: notes.copy }, params: { run: "mkdir d; cat $y > d/notes; for file in $x/*; do wc -c < $file; sleep 0.01; done > d/sizes", outputs: { out: d } } }
"#;

/// A space with two tiny trainings and some commands.
pub(crate) fn trainings(steps: u64) -> Space {
    Space::new(&PIPELINE.replace("<steps>", &steps.to_string()))
}

/// Who is killed.
#[derive(Debug, Clone, Copy)]
enum Victim {
    Executor,
    Worker,
    Group,
    /// Asked to stop, and killed while it writes its checkpoint.
    Asked,
}

/// Starts a run in a process group of its own.
pub(crate) fn start_in_group(space: &Space, args: &[&str]) -> Child {
    space
        .program(&[&["run", "p.yaml", "--quiet"], args].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap()
}

fn kill(id: i32) {
    let _ = kill_process(Pid::from_raw(id).unwrap(), Signal::KILL);
}

/// Ids of the workers.
fn workers(space: &Space, executor: i32) -> Vec<i32> {
    let all = processes_in(&space.path("")).into_iter();
    let is_worker = |id: &i32| {
        let arguments = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
        *id != executor && arguments.ends_with(b"\0worker\0")
    };
    all.filter(is_worker).collect()
}

/// Kills a run with its workers, which have groups of their own.
pub(crate) fn kill_group(space: &Space, executor: &Child) {
    let id = executor.id() as i32;
    let workers = workers(space, id);
    let _ = kill_process_group(Pid::from_raw(id).unwrap(), Signal::KILL);
    workers.into_iter().for_each(kill);
}

fn strike(space: &Space, executor: &Child, victim: Victim, draws: &mut Draws) {
    let id = executor.id() as i32;
    match victim {
        Victim::Executor => kill(id),
        Victim::Worker => workers(space, id).into_iter().for_each(kill),
        Victim::Group => kill_group(space, executor),
        Victim::Asked => {
            let workers = workers(space, id);
            for worker in &workers {
                let _ = kill_process(Pid::from_raw(*worker).unwrap(), Signal::TERM);
            }
            std::thread::sleep(Duration::from_micros(draws.below(20_000) as u64));
            workers.into_iter().for_each(kill);
            kill(id);
        }
    }
}

fn assert_same(report: &Report, undisturbed: &Report, case: &str) {
    assert_eq!(report.code, 0, "{case}: {}", report.stderr);
    assert_eq!(report.digests(), undisturbed.digests(), "{case}");
}

/// Runs and kills `kills` times. Each time the pipeline is done, its results are compared and it begins anew.
#[expect(clippy::print_stderr, reason = "tells what a long test did")]
fn survives(kills: u64, steps: u64, seed: u64) {
    let calm = trainings(steps);
    let clock = Instant::now();
    let undisturbed = calm.run(&[]);
    assert_eq!(undisturbed.code, 0, "{}", undisturbed.stderr);
    let mut usual = clock.elapsed();
    let space = trainings(steps);
    let stream = Stream::new(seed, "kills");
    let (mut whole, mut struck) = (0, 0);
    for round in 0..kills {
        let mut draws = stream.at(round);
        let victims = [
            Victim::Executor,
            Victim::Worker,
            Victim::Group,
            Victim::Asked,
        ];
        let victim = victims[draws.below(4)];
        let moment = usual.mul_f64(draws.uniform() * 0.9);
        let case = format!("kill {round}, {victim:?} after {moment:?}");
        let mut executor = start_in_group(&space, &[]);
        std::thread::sleep(moment);
        if executor.try_wait().unwrap().is_none() {
            struck += 1;
        } else {
            // Too late: the machine was busier when the time was taken, or most was done.
            usual = usual.mul_f64(0.8);
        }
        strike(&space, &executor, victim, &mut draws);
        let ended = executor.wait().unwrap();
        // At once, while the dying still die: reading works.
        if draws.chance(0.5) {
            let plan = space.plan(&[]);
            assert_eq!(plan.len(), undisturbed.stages.len(), "{case}");
        } else {
            let verified = space.flowgraph(&["verify"]);
            assert_eq!(verified.code, 0, "{case}: {}", verified.stderr);
        }
        if ended.success() || draws.chance(0.2) {
            assert_same(&space.run(&[]), &undisturbed, &case);
            let verified = space.flowgraph(&["verify", "--json"]);
            assert_eq!(verified.code, 0, "{case}: {}", verified.stderr);
            // A worker that was still dying then, between its record and its end, leaves its scratch to the next run.
            wait_until("the killed are gone", || {
                processes_in(&space.path("")).is_empty().then_some(())
            });
            assert_same(&space.run(&[]), &undisturbed, &case);
            assert_eq!(
                space.files(".flowgraph/scratch"),
                [""; 0].map(std::path::PathBuf::from),
                "{case}"
            );
            whole += 1;
            // Anew, in a store that went through kills.
            std::fs::remove_dir_all(space.path(".flowgraph/records")).unwrap();
            let _ = std::fs::remove_dir_all(space.path(".flowgraph/runs"));
            let _ = std::fs::remove_dir_all(space.path(".flowgraph/states"));
        }
    }
    assert_same(&space.run(&[]), &undisturbed, "at the end");
    assert_eq!(space.flowgraph(&["verify"]).code, 0);
    wait_until("nothing is left of the killed", || {
        processes_in(&space.path("")).is_empty().then_some(())
    });
    eprintln!("{kills} kills, {struck} of them at a run under way, {whole} times done in between");
    assert!(struck * 4 > kills, "most kills came too late");
}

#[test]
fn a_few_random_kills_change_no_result() {
    survives(6, 6, 1);
}

#[test]
#[ignore = "takes some minutes"]
fn two_hundred_random_kills_change_no_result() {
    survives(200, 30, 2);
}
