//! `FlowRL` and completions that serve several updates, with tiny models and a rule for rewards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use candle_core::{Device, Tensor};

use super::super::fixture::{Counted, assert_slopes, bits, config, lora, models};
use super::objective::ObjectiveKind;
use super::objectives::{GFLOWNET_OBJECTIVES, GflownetSettings, LogZSource};
use super::*;
use crate::ml::adapter::LoraConfig;
use crate::ml::head::HeadGradient;
use crate::ml::models::causal::TokenBatch;
use crate::ml::parameters::{from_safetensors, to_safetensors};
use crate::ml::trainer::actions::Actions;
use crate::ml::trainer::rewards::{Answer, Rewards};
use crate::ml::trainer::{self, TrainerState};

mod policy_gradient;
mod rewards;

const EOS: u32 = 1;
/// The token that the rule rewards.
const GOOD: u32 = 7;

const SETTINGS: GflownetSettings = GflownetSettings {
    log_z: Some(LogZSource::Network),
    log_z_lr: 1e-2,
    log_z_start: None,
    length_normalised: None,
    lambda: None,
    weighting: None,
    flow_lr: 1e-2,
    flow_gradient: HeadGradient::Joint,
    least_completions: 2,
};

fn objective(name: &str) -> Box<dyn Objective> {
    let kind = ObjectiveKind::find(GFLOWNET_OBJECTIVES, name).unwrap();
    (kind.make)(&SETTINGS)
}

fn options() -> PolicyOptions {
    PolicyOptions {
        reward_scale: 2.0,
        reward_temperature: Ramp::default(),
        reference: ReferenceTerms {
            kl_beta: 0.0,
            in_target: true,
        },
        updates_per_batch: 3,
        prompts_per_step: 2,
        completions_per_prompt: 4,
        on_policy: 1.0,
        replay: 0.0,
        replay_capacity: 4,
        replay_min_distance: None,
        replay_temperature: None,
        max_new_tokens: 5,
        temperature: Ramp::default(),
        dynamic_sampling: 0,
        asynchronous: None,
        exploration: None,
        optimizer: OptimizerOptions {
            weight_decay: 0.01,
            ..OptimizerOptions::constant(1e-2)
        },
        micro_batch: 2,
        monitor_every: 0,
        monitor_completions: 0,
        monitor_reward: false,
        limits: DivergenceLimits::default(),
        eos: vec![EOS],
    }
}

fn trainer_of(options: PolicyOptions, lora: Option<&LoraConfig>) -> PolicyTrainer {
    trainer_on("flowrl", options, lora, &[])
}

/// A trainer whose data set has these completions of each prompt.
fn trainer_on(
    name: &str,
    options: PolicyOptions,
    lora: Option<&LoraConfig>,
    completions: &[&[u32]],
) -> PolicyTrainer {
    trainer_with(objective(name), options, lora, completions, GOOD)
}

/// A trainer that is rewarded for each `good` token.
fn trainer_with(
    objective: Box<dyn Objective>,
    options: PolicyOptions,
    lora: Option<&LoraConfig>,
    completions: &[&[u32]],
    good: u32,
) -> PolicyTrainer {
    let prompts = [vec![0, 2], vec![0, 3, 4], vec![0, 5, 6, 2], vec![0]];
    let prompts = prompts.map(|prompt| PromptCompletions {
        completions: completions.iter().map(|end| row(&prompt, end)).collect(),
        prompt,
    });
    trainer_from(
        objective,
        options,
        lora,
        prompts.to_vec(),
        Counted::boxed(good),
    )
    .unwrap()
}

fn trainer_from(
    objective: Box<dyn Objective>,
    options: PolicyOptions,
    lora: Option<&LoraConfig>,
    prompts: Vec<PromptCompletions>,
    rewards: Box<dyn Rewards>,
) -> Result<PolicyTrainer, TrainError> {
    let (model, reference) = models(&config(), lora);
    let start = PolicyStart {
        model,
        reference,
        rewards,
        prompts,
    };
    let stream = Stream::new(5, "gflownet");
    PolicyTrainer::new(start, objective, options, &stream, Cancel::default())
}

fn row(prompt: &[u32], completion: &[u32]) -> TokenizedCompletion {
    TokenizedCompletion {
        tokens: [prompt, completion].concat(),
        prompt_length: prompt.len(),
    }
}

fn loss_of(trainer: &PolicyTrainer, step: u64, part: Part<'_>, normaliser: Normaliser) -> Tensor {
    let view = View::training(&trainer.shared, step, part).unwrap();
    trainer.objective.loss(&view, normaliser).unwrap().loss
}

fn run(trainer: &mut PolicyTrainer, steps: std::ops::Range<u64>) -> Vec<StepReport> {
    let report = |step| {
        let report = trainer.step(step).unwrap();
        assert_eq!(report.diverged, None);
        report
    };
    steps.map(report).collect()
}

#[test]
fn completions_serve_several_updates_with_their_weights() {
    let mut trainer = trainer_of(options(), None);
    let mut batches = Vec::new();
    let mut weights = Vec::new();
    for step in 0..6 {
        let report = run(&mut trainer, step..step + 1).remove(0);
        batches.push(trainer.held.clone().unwrap());
        weights.push(report.metrics["importance"]);
        let samples = step % 3 == 0;
        assert_eq!(report.generated_tokens > 0, samples, "step {step}");
        assert_eq!(report.metrics.contains_key("truncated"), samples);
    }
    let groups = |step: usize| &batches[step].groups;
    assert!(groups(0) == groups(1) && groups(0) == groups(2) && groups(3) == groups(5));
    assert_ne!(groups(2), groups(3));
    // Just drawn, completions are as likely as they were; later no more.
    for (step, weight) in weights.iter().enumerate() {
        assert_eq!((weight - 1.0).abs() < 1e-5, step % 3 == 0, "{weights:?}");
        assert!((0.8..=1.28).contains(weight), "{weights:?}");
    }
    // What is weighted is the completion as it was drawn.
    let batch = &batches[0];
    let rows = group::rows(&batch.groups);
    let actions = Actions::new(&rows);
    let start = trainer_of(options(), None);
    let log_pf = actions.frozen_log_probs(&start.model().llama).unwrap();
    let sums = log_pf.sum(1).unwrap().to_vec1::<f32>().unwrap();
    for (drawn, sum) in batch.drawn.as_ref().unwrap().iter().zip(sums) {
        let drawn: f64 = drawn.iter().sum();
        assert!((drawn - f64::from(sum)).abs() < 1e-4, "{drawn} for {sum}");
    }

    let alone = PolicyOptions {
        updates_per_batch: 1,
        ..options()
    };
    let mut trainer = trainer_of(alone, None);
    let reports = run(&mut trainer, 0..2);
    assert!(trainer.held.is_none() && !reports[1].metrics.contains_key("importance"));
}

#[test]
fn every_parameter_of_policy_and_network_learns_by_its_slope() {
    for lora in [None, Some(lora())] {
        let mut trainer = trainer_of(options(), lora.as_ref());
        // From zero the network's last map lets nothing through.
        run(&mut trainer, 0..4);
        let batch = trainer.held.clone().unwrap();
        let rows: usize = batch.groups.iter().map(Group::count).sum();
        // Weights at their bounds do not move with the policy.
        let drawn: Vec<Vec<f64>> = group::rows(&batch.groups)
            .iter()
            .enumerate()
            .map(|(place, row)| vec![[-1e3, 1e3][place % 2]; row.completion_length()])
            .collect();
        let part = Part {
            groups: &batch.groups,
            first_row: 0,
            drawn: Some(&drawn),
            weights: &[],
        };
        let loss = || loss_of(&trainer, 4, part, Normaliser::Total(rows as f64));
        let mut gradients = Gradients::default();
        let parameters = trainer.updater.parameters();
        let names: Vec<&str> = parameters.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.contains(&"log_z.net.0.weight") && names.contains(&"log_z.net.8.bias"));
        gradients
            .add(&loss().backward().unwrap(), &parameters)
            .unwrap();
        assert_slopes(&parameters, &gradients, || {
            f64::from(loss().to_scalar::<f32>().unwrap())
        });

        // Micro-batches draw the masks of the whole batch.
        let mut sum = 0.0;
        let mut first_row = 0;
        for groups in batch.groups.chunks(1) {
            let count = groups[0].count();
            let part = Part {
                groups,
                first_row,
                drawn: Some(&drawn[first_row..][..count]),
                weights: &[],
            };
            first_row += count;
            let found = loss_of(&trainer, 4, part, Normaliser::Total(rows as f64));
            sum += f64::from(found.to_scalar::<f32>().unwrap());
        }
        if lora.is_none() {
            let whole = f64::from(loss().to_scalar::<f32>().unwrap());
            assert!(
                (sum - whole).abs() < 1e-5 * (1.0 + whole),
                "{sum} for {whole}"
            );
        }
    }
}

#[test]
fn the_network_reads_the_prompt_without_its_last_token() {
    let rows = [row(&[0, 3, 4], &[7, EOS]), row(&[0], &[7, 7, 7, EOS])];
    let actions = Actions::new(&rows.iter().collect::<Vec<_>>());
    let hidden: Vec<f32> = (0..20).map(|place| place as f32).collect();
    let hidden = Tensor::from_vec(hidden, (2, 5, 2), &Device::Cpu).unwrap();
    let means = actions.prompt_means(&hidden).unwrap();
    // The mean of [0, 1] and [2, 3]; a prompt of one token has only that.
    assert_eq!(means.to_vec2::<f32>().unwrap(), [[1.0, 2.0], [10.0, 11.0]]);
}

#[test]
fn a_training_resumed_between_updates_ends_with_the_same_bits() {
    let options = PolicyOptions {
        on_policy: 0.5,
        replay: 0.5,
        replay_min_distance: Some(0.25),
        monitor_every: 2,
        monitor_completions: 2,
        ..options()
    };
    for lora in [None, Some(lora())] {
        assert_resumes(&|| trainer_of(options.clone(), lora.as_ref()), 8);
    }
}

/// Asserts that a training which stops at any of its last steps and goes on ends with the same bits.
fn assert_resumes(new: &dyn Fn() -> PolicyTrainer, steps: u64) {
    let mut straight = new();
    let straight_reports = run(&mut straight, 0..steps);
    for stop in steps / 2..steps - 1 {
        let mut first = new();
        run(&mut first, 0..stop);
        let state = trainer::state(&mut first).unwrap();
        // As a stage stores it.
        let tensors = to_safetensors(&state.tensors).unwrap();
        let state = TrainerState {
            tensors: from_safetensors(&tensors, &Device::Cpu).unwrap(),
            values: serde_json::from_str(&state.values.to_string()).unwrap(),
        };
        let mut resumed = new();
        trainer::restore(&mut resumed, &state).unwrap();
        let resumed_reports = run(&mut resumed, stop..steps);
        for (a, b) in straight_reports[stop as usize..]
            .iter()
            .zip(&resumed_reports)
        {
            assert_eq!(a.metrics, b.metrics);
        }
        let (a, b) = (
            trainer::state(&mut straight).unwrap(),
            trainer::state(&mut resumed).unwrap(),
        );
        assert_eq!(a.values, b.values);
        assert!(bits(&a.tensors) == bits(&b.tensors));
    }
}

#[test]
fn sampling_behind_learning_goes_on_with_the_same_bits_and_tells_its_age() {
    let options = PolicyOptions {
        updates_per_batch: 1,
        on_policy: 0.0,
        asynchronous: Some(Asynchronous {
            sync_every: 3,
            prompts: Some(3),
            samples: 6,
            recent: 0.5,
            reward_temperature: Some(1.0),
            capacity: 8,
        }),
        ..options()
    };
    let new = || trainer_on("tba", options.clone(), None, &[]);
    assert_resumes(&new, 8);
    let reports = run(&mut new(), 0..8);
    for (step, report) in reports.iter().enumerate() {
        let staleness = report.metrics["staleness"];
        assert!(
            staleness >= (step % 3) as f64 && staleness <= step as f64,
            "{step}: {staleness}"
        );
        assert_eq!(report.generated_tokens > 0, step % 3 == 0);
    }
    let mut trainer = new();
    run(&mut trainer, 0..4);
    let before = trainer::state(&mut trainer).unwrap().values;
    for change in [
        (&|found: &mut Json| found["latest"] = serde_json::json!([99])) as &dyn Fn(&mut Json),
        &|found| found["step"] = 17.into(),
        &|found| found["latest"] = serde_json::json!([]),
        &|found| found["prompts"]["0"] = serde_json::json!([]),
    ] {
        let mut forged = before.clone();
        change(&mut forged["findings"]);
        assert!(matches!(
            trainer.restore_values(&forged),
            Err(TrainError::State(_))
        ));
    }
    trainer.restore_values(&before).unwrap();
    // Given up while it synchronises, a step has changed nothing.
    run(&mut trainer, 4..6);
    let before = trainer::state(&mut trainer).unwrap();
    let flag = Arc::new(AtomicBool::new(false));
    trainer.shared.rewards = Box::new(Counted {
        token: GOOD,
        asked: Arc::clone(&flag),
        ..Counted::default()
    });
    trainer.cancelled_by(Cancel::new(flag));
    assert!(matches!(trainer.step(6), Err(TrainError::Cancelled)));
    let after = trainer::state(&mut trainer).unwrap();
    assert_eq!(before.values, after.values);
}

#[test]
fn sampling_behind_learning_keeps_its_pace_where_steps_share_completions() {
    let options = PolicyOptions {
        updates_per_batch: 2,
        on_policy: 0.0,
        asynchronous: Some(Asynchronous {
            sync_every: 3,
            prompts: None,
            samples: 4,
            recent: 1.0,
            reward_temperature: None,
            capacity: 8,
        }),
        ..options()
    };
    let new = || trainer_on("tba", options.clone(), None, &[]);
    let reports = run(&mut new(), 0..8);
    // Due at 0, 3 and 6; new completions are taken at 0, 2, 4 and 6.
    let samples: Vec<bool> = reports
        .iter()
        .map(|report| report.generated_tokens > 0)
        .collect();
    assert_eq!(
        samples,
        [true, false, false, false, true, false, true, false]
    );
    let ages: Vec<f64> = reports
        .iter()
        .map(|report| report.metrics["staleness"])
        .collect();
    assert_eq!(ages, [0.0, 1.0, 2.0, 3.0, 0.0, 1.0, 0.0, 1.0]);
    assert_resumes(&new, 8);
}

#[test]
fn held_completions_that_are_not_whole_are_refused() {
    let mut trainer = trainer_of(options(), None);
    run(&mut trainer, 0..1);
    let state = trainer::state(&mut trainer).unwrap();
    let forge = |change: &dyn Fn(&mut Json)| {
        let mut forged = state.clone();
        change(&mut forged.values["held"]);
        let mut other = trainer_of(options(), None);
        trainer::restore(&mut other, &forged).map(|()| other)
    };
    assert!(forge(&|_| {}).is_ok());
    for change in [
        (&|held: &mut Json| held["groups"][0]["completions"][0]["prompt_length"] = 99.into())
            as &dyn Fn(&mut Json),
        &|held| held["groups"][0]["prompt"] = 99.into(),
        &|held| held["groups"][0]["completions"] = serde_json::json!([]),
        &|held| held["groups"] = serde_json::json!([]),
        &|held| held["groups"] = Json::Null,
        &|held| held["drawn"] = serde_json::json!([[0.5]]),
        &|held| held["drawn"] = Json::Null,
        &|held| held["weights"] = serde_json::json!([{ "reward": 1, "advantages": [1] }]),
    ] {
        assert!(matches!(forge(change).err(), Some(TrainError::State(_))));
    }
    // Completions of another step are as good as none.
    let mut other = forge(&|held| held["step"] = 3.into()).unwrap();
    let error = other.step(1).err().unwrap().to_string();
    assert!(
        error.contains("it lacks the completions of step 0"),
        "{error}"
    );
}

/// Every completion a sample of the policy, for one update.
fn balance() -> PolicyOptions {
    PolicyOptions {
        updates_per_batch: 1,
        ..options()
    }
}

#[test]
fn samples_that_coincide_are_trained_on_like_others() {
    let mut trainer = trainer_on("detailed_balance", balance(), None, &[]);
    run(&mut trainer, 0..2);
    let groups = [
        Group {
            prompt: 0,
            completions: vec![row(&[0, 2], &[7, EOS]), row(&[0, 2], &[7, EOS])],
        },
        Group {
            prompt: 1,
            completions: vec![row(&[0, 3, 4], &[7, 7, 3])],
        },
    ];
    let part = Part {
        groups: &groups,
        first_row: 0,
        drawn: None,
        weights: &[],
    };
    let loss = || loss_of(&trainer, 2, part, Normaliser::Total(3.0));
    let parameters = trainer.updater.parameters();
    let mut gradients = Gradients::default();
    gradients
        .add(&loss().backward().unwrap(), &parameters)
        .unwrap();
    assert!(parameters.iter().any(|(name, _)| name.starts_with("flow.")));
    assert_slopes(&parameters, &gradients, || {
        f64::from(loss().to_scalar::<f32>().unwrap())
    });

    // A data set's lone completion constrains nothing but the flows.
    let offline = PolicyOptions {
        on_policy: 0.0,
        ..balance()
    };
    let mut trainer = trainer_on("detailed_balance", offline, None, &[&[7, EOS]]);
    assert!(matches!(trainer.step(0), Err(TrainError::Objective(_))));
}

#[test]
fn shares_hold_over_the_prompts_of_all_steps() {
    let ends: [&[u32]; 4] = [&[7, EOS], &[8, EOS], &[9, EOS], &[10, EOS]];
    for (on_policy, replay) in [(0.1, 0.0), (0.9, 0.0), (0.1, 0.3), (0.6, 0.4), (0.5, 0.25)] {
        let options = PolicyOptions {
            on_policy,
            replay,
            replay_capacity: 64,
            ..balance()
        };
        let mut trainer = trainer_on("detailed_balance", options, None, &ends);
        let (mut sampled, mut offline) = (0.0, 0.0);
        for step in 0..40 {
            let items = trainer.epochs.at(step);
            let found = trainer.rows(step, 0, &items, &mut Undo::default()).unwrap();
            sampled += found.sampled as f64;
            let rows = group::rows(&found.groups);
            assert_eq!(rows.len(), 8);
            offline += rows
                .iter()
                .filter(|row| ends.contains(&&row.tokens[row.prompt_length..]))
                .count() as f64;
        }
        let all = 2.0 * 40.0 * 4.0;
        assert!(
            (sampled - on_policy * all).abs() <= 1.0,
            "{on_policy}: {sampled} of {all}"
        );
        // At first the buffer is empty, and what is sampled may be of the data set, too.
        let least = (1.0 - on_policy - replay) * all - 1.0;
        assert!(offline >= least, "{on_policy} {replay}: {offline} of {all}");
        if on_policy + replay == 1.0 {
            assert!(offline < 0.15 * all, "{offline} of {all}");
        }
    }
}

#[test]
fn completions_that_all_end_at_once_teach_nothing_and_stop_nothing() {
    let options = PolicyOptions {
        reference: ReferenceTerms::default(),
        on_policy: 0.0,
        updates_per_batch: 1,
        ..options()
    };
    let mut trainer = trainer_on("modified_subtb", options, None, &[&[EOS]]);
    let reports = run(&mut trainer, 0..2);
    assert_eq!(reports[0].metrics["loss"], 0.0);
    assert_eq!(reports[0].metrics["grad_norm"], 0.0);
}

#[test]
fn a_policy_that_gives_no_numbers_has_diverged() {
    let mut trainer = trainer_on("detailed_balance", balance(), None, &[]);
    for (_, var) in trainer.updater.parameters() {
        let nan = Tensor::new(f32::NAN, &Device::Cpu).unwrap();
        var.set(&nan.broadcast_as(var.shape()).unwrap()).unwrap();
    }
    let reason = trainer.step(0).unwrap().diverged.unwrap();
    assert!(reason.contains("are not finite"), "{reason}");
}

#[test]
fn a_step_given_up_before_its_update_has_changed_nothing() {
    let options = PolicyOptions {
        on_policy: 0.5,
        replay: 0.5,
        micro_batch: 1,
        updates_per_batch: 2,
        ..options()
    };
    let mut trainer = trainer_of(options.clone(), None);
    run(&mut trainer, 0..2);
    let before = trainer::state(&mut trainer).unwrap();
    // The rewards are asked for after completions have come into the buffer: stop then.
    let flag = Arc::new(AtomicBool::new(false));
    let stop = Arc::clone(&flag);
    trainer.shared.rewards = Box::new(Counted {
        token: GOOD,
        asked: stop,
        ..Counted::default()
    });
    trainer.cancelled_by(Cancel::new(flag));
    assert!(matches!(trainer.step(2), Err(TrainError::Cancelled)));
    let after = trainer::state(&mut trainer).unwrap();
    assert_eq!(before.values, after.values);
    assert!(bits(&before.tensors) == bits(&after.tensors));
    // So has one that failed, for want of memory say, wherever that was: it may be made again.
    trainer.cancelled_by(Cancel::new(Arc::default()));
    let mut failures = 0;
    loop {
        trainer.shared.rewards = Box::new(rewards::Failing {
            rewards: Counted::boxed(GOOD),
            left: AtomicUsize::new(failures),
        });
        match trainer.step(2) {
            Ok(_) => break,
            Err(TrainError::Tensor(_)) => failures += 1,
            Err(error) => panic!("{error}"),
        }
        let after = trainer::state(&mut trainer).unwrap();
        assert_eq!(before.values, after.values, "after {failures} answers");
    }
    assert!(failures > 2, "{failures}");
}
