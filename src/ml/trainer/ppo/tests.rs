//! PPO on tiny models with rules for rewards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::fixture::{Counted, bits, config, difference, lora, models, wide_config};
use super::*;
use crate::ml::adapter::LoraConfig;
use crate::ml::generate::Sampling;
use crate::ml::head::HeadGradient;
use crate::ml::models::causal::LlamaConfig;
use crate::ml::models::causal::TokenBatch;
use crate::ml::objectives::divergence::DivergenceLimits;
use crate::ml::objectives::kl_control::{AdaptiveKl, FixedKl};
use crate::ml::objectives::ppo::PpoOptions;
use crate::ml::parameters::{from_safetensors, to_safetensors};
use crate::ml::trainer::rewards::Answer;
use crate::ml::trainer::update::OptimizerOptions;
use crate::ml::trainer::{self, TokenizedCompletion, TrainerState};
use rollout::Rollout;

const EOS: u32 = 1;
/// The token that the rule rewards.
const GOOD: u32 = 7;

fn options() -> PpoTrainerOptions {
    PpoTrainerOptions {
        batch_size: 8,
        mini_batch: 4,
        micro_batch: 3,
        ppo_epochs: 2,
        whitening: Whitening::MiniBatch,
        optimizer: OptimizerOptions {
            weight_decay: 0.01,
            ..OptimizerOptions::constant(3e-3)
        },
        max_new_tokens: 6,
        min_new_tokens: None,
        ignore_eos: false,
        sampling: Sampling::default(),
        kl: KlController::Adaptive(AdaptiveKl::new(0.1, 0.5, 80.0).unwrap()),
        controlled_kl: ControlledKl::Mean,
        kl_trim: 0.2,
        gamma: 1.0,
        lambda: 0.95,
        loss: PpoOptions::default(),
        target_kl: None,
        reward_baseline: 0.25,
        divergence: DivergenceLimits {
            loss_growth: Some(1e6),
            window: 2,
            ..DivergenceLimits::default()
        },
    }
}

/// Four prompts of two to four tokens.
fn prompts() -> Vec<Vec<u32>> {
    vec![vec![0, 2], vec![0, 3, 4], vec![0, 5, 6, 2], vec![0, 9, 8]]
}

fn start_of(
    config: &LlamaConfig,
    lora: Option<&LoraConfig>,
    rewards: Box<dyn Rewards>,
) -> PpoStart {
    let (model, reference) = models(config, lora);
    PpoStart {
        model,
        reference,
        rewards,
        prompts: prompts(),
        eos: vec![EOS],
    }
}

fn trainer_of(options: PpoTrainerOptions, lora: Option<&LoraConfig>) -> PpoTrainer {
    let start = start_of(&config(), lora, Counted::boxed(GOOD));
    PpoTrainer::new(start, options, &Stream::new(5, "ppo")).unwrap()
}

fn run(trainer: &mut PpoTrainer, steps: std::ops::Range<u64>) -> Vec<StepReport> {
    let report = |step| {
        let report = trainer.step(step).unwrap();
        assert_eq!(report.diverged, None);
        report
    };
    steps.map(report).collect()
}

fn rollouts(trainer: &mut PpoTrainer, step: u64) -> Vec<Rollout> {
    let mut rollouts = trainer.sample(step).unwrap();
    trainer.evaluate(&mut rollouts).unwrap();
    let beta = trainer.beta();
    advantages::assign(&mut rollouts, beta, &trainer.options).unwrap();
    rollouts
}

#[test]
fn the_rewarded_token_becomes_frequent() {
    let options = PpoTrainerOptions {
        batch_size: 32,
        mini_batch: 16,
        micro_batch: 16,
        ppo_epochs: 4,
        kl: KlController::Fixed(FixedKl { beta: 0.05 }),
        ..options()
    };
    let mut trainer = trainer_of(options, None);
    let reports = run(&mut trainer, 0..20);
    let reward = |reports: &[StepReport]| {
        reports
            .iter()
            .map(|report| report.metrics["reward"])
            .sum::<f64>()
            / reports.len() as f64
    };
    let (before, after) = (reward(&reports[..3]), reward(&reports[17..]));
    assert!(before < 1.0, "{before}");
    assert!(after > before + 2.0, "{before} -> {after}");
    assert!(reports[19].metrics["kl"] > 1.0);
    // The value head has learnt as well: returns are scores here, nearly, and they have grown.
    let found = rollouts(&mut trainer, 20);
    let value = found.iter().map(|rollout| rollout.values[0]).sum::<f64>() / found.len() as f64;
    assert!(value > 0.5, "{value}");
}

#[test]
fn a_resumed_training_ends_with_the_same_bits() {
    for lora in [None, Some(lora())] {
        let mut straight = trainer_of(options(), lora.as_ref());
        let straight_reports = run(&mut straight, 0..5);

        let mut first = trainer_of(options(), lora.as_ref());
        run(&mut first, 0..2);
        let state = trainer::state(&mut first).unwrap();
        // As a stage stores it.
        let tensors = to_safetensors(&state.tensors).unwrap();
        let state = TrainerState {
            tensors: from_safetensors(&tensors, &candle_core::Device::Cpu).unwrap(),
            values: serde_json::from_str(&state.values.to_string()).unwrap(),
        };
        let mut resumed = trainer_of(options(), lora.as_ref());
        assert_ne!(resumed.beta(), first.beta(), "the controller did not move");
        trainer::restore(&mut resumed, &state).unwrap();
        assert_eq!(resumed.beta(), first.beta());
        let resumed_reports = run(&mut resumed, 2..5);

        for (a, b) in straight_reports[2..].iter().zip(&resumed_reports) {
            assert_eq!(a.metrics, b.metrics);
        }
        let (straight, resumed) = (
            trainer::state(&mut straight).unwrap(),
            trainer::state(&mut resumed).unwrap(),
        );
        assert_eq!(straight.values, resumed.values);
        assert!(bits(&straight.tensors) == bits(&resumed.tensors));
    }
}

#[test]
fn a_state_of_something_else_is_refused() {
    let mut trainer = trainer_of(options(), None);
    let mut state = trainer::state(&mut trainer).unwrap();
    state.values = serde_json::json!({ "controller": { "fixed": { "beta": 0.1 } } });
    let error = trainer::restore(&mut trainer, &state).unwrap_err();
    assert!(matches!(error, TrainError::State(_)), "{error}");
}

#[test]
fn one_thread_and_two_end_with_the_same_bits() {
    let options = PpoTrainerOptions {
        batch_size: 32,
        mini_batch: 32,
        micro_batch: 32,
        ..options()
    };
    let end = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let start = start_of(&wide_config(), None, Counted::boxed(GOOD));
            let mut trainer =
                PpoTrainer::new(start, options.clone(), &Stream::new(5, "ppo")).unwrap();
            let reports = run(&mut trainer, 0..2);
            let state = trainer::state(&mut trainer).unwrap();
            let metrics: Vec<_> = reports.into_iter().map(|report| report.metrics).collect();
            (bits(&state.tensors), state.values, metrics)
        })
    };
    assert!(end(1) == end(2), "two threads differ from one");
}

#[test]
fn rollouts_hold_what_the_models_say_of_each_token() {
    for lora in [None, Some(lora())] {
        let mut trainer = trainer_of(options(), lora.as_ref());
        let untouched = start_of(&config(), lora.as_ref(), Counted::boxed(GOOD)).reference;
        let before = rollouts(&mut trainer, 0);
        for rollout in &before {
            for (policy, reference) in rollout.log_probs.iter().zip(&rollout.reference) {
                assert!((policy - reference).abs() < 1e-5, "{policy} {reference}");
            }
        }
        run(&mut trainer, 0..2);
        let policy = trainer.start.model.llama.detached();
        let mut moved = 0.0;
        for rollout in rollouts(&mut trainer, 2) {
            let TokenizedCompletion {
                tokens,
                prompt_length,
            } = &rollout.row;
            let batch = TokenBatch::right_padded(std::slice::from_ref(tokens));
            let log_probs = |model: &CausalLm| -> Vec<f32> {
                let hidden = model.forward(&batch).unwrap();
                let found = model.next_token_log_probs(&hidden, &batch).unwrap();
                found.to_vec2().unwrap().swap_remove(0)
            };
            let hidden = policy.forward(&batch).unwrap();
            let values = trainer
                .value_head
                .apply(&hidden, HeadGradient::Detached)
                .unwrap();
            let values: Vec<f32> = values.to_vec2().unwrap().swap_remove(0);
            let places = *prompt_length - 1..tokens.len() - 1;
            assert_eq!(rollout.log_probs.len(), places.len());
            for (found, expected) in [
                (&rollout.log_probs, &log_probs(&policy)),
                (&rollout.reference, &log_probs(&untouched)),
                (&rollout.values, &values),
            ] {
                for (found, expected) in found.iter().zip(&expected[places.clone()]) {
                    assert!(
                        (found - f64::from(*expected)).abs() < 1e-5,
                        "{found} {expected}"
                    );
                }
            }
            let log_ratio = |(policy, reference): (&f64, &f64)| policy - reference;
            let kl: f64 = rollout
                .log_probs
                .iter()
                .zip(&rollout.reference)
                .map(log_ratio)
                .sum();
            moved += kl.abs();
            let counted = tokens.iter().filter(|token| **token == GOOD).count();
            assert_eq!(rollout.score, counted as f64);
        }
        assert!(moved > 0.1, "the policy did not move");
    }
}

#[test]
fn returns_are_penalised_scores() {
    // Without discount and decay, a return is the sum of the rewards from there on, whatever the values.
    let options = PpoTrainerOptions {
        lambda: 1.0,
        ..options()
    };
    let mut trainer = trainer_of(options, None);
    run(&mut trainer, 0..2);
    let beta = trainer.beta();
    for rollout in rollouts(&mut trainer, 2) {
        for place in 0..rollout.length() {
            let policy: f64 = rollout.log_probs[place..].iter().sum();
            let reference: f64 = rollout.reference[place..].iter().sum();
            let expected = rollout.score - 0.25 - beta * (policy - reference);
            let found = rollout.returns[place];
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
            let advantage = found - rollout.values[place];
            assert!((rollout.advantages[place] - advantage).abs() < 1e-9);
        }
    }
}

#[test]
fn micro_batches_add_up_to_the_mini_batch() {
    let gradients = |micro_batch: usize| {
        let options = PpoTrainerOptions {
            micro_batch,
            ..options()
        };
        let mut trainer = trainer_of(options, None);
        let rollouts = rollouts(&mut trainer, 0);
        let rows: Vec<&Rollout> = rollouts.iter().collect();
        let (gradients, found) = trainer
            .gradients(&rows, &mut 0, &mut update::Seen::default())
            .unwrap();
        (gradients, found, trainer.updater.parameters())
    };
    let (whole, expected, parameters) = gradients(8);
    for micro_batch in [1, 3] {
        let (parts, found, _) = gradients(micro_batch);
        for (name, _) in &parameters {
            let apart = difference(&whole, &parts, name);
            assert!(
                apart < 1e-4,
                "`{name}` with micro-batches of {micro_batch}: {apart}"
            );
        }
        for (found, expected) in [
            (found.loss, expected.loss),
            (found.value_loss, expected.value_loss),
            (found.ratio, 1.0),
            (found.policy_kl, 0.0),
            (found.clip_fraction, 0.0),
        ] {
            assert!((found - expected).abs() < 1e-5, "{found} {expected}");
        }
    }
}

#[test]
fn whitening_by_micro_batch_averages_the_means_of_passes() {
    let options = PpoTrainerOptions {
        whitening: Whitening::MicroBatch,
        micro_batch: 4,
        ..options()
    };
    let mut trainer = trainer_of(options, None);
    let rollouts = rollouts(&mut trainer, 0);
    let rows: Vec<&Rollout> = rollouts.iter().collect();
    let gradients = |rows: &[&Rollout]| {
        let mut seen = update::Seen::default();
        trainer.gradients(rows, &mut 0, &mut seen).unwrap()
    };
    let (together, _) = gradients(&rows);
    let mean = |name: &str| {
        let parts = rows
            .chunks(4)
            .map(|rows| gradients(rows).0.get(name).unwrap().clone());
        let sum = parts.reduce(|a, b| (a + b).unwrap()).unwrap();
        (sum * 0.5).unwrap()
    };
    for (name, _) in trainer.updater.parameters() {
        let apart = (together.get(&name).unwrap() - mean(&name)).unwrap();
        let apart = apart
            .abs()
            .unwrap()
            .max_all()
            .unwrap()
            .to_scalar::<f32>()
            .unwrap();
        assert!(apart < 1e-6, "`{name}`: {apart}");
    }
    // It is another gradient than that of a mini-batch whitened together.
    trainer.options.whitening = Whitening::MiniBatch;
    let mut seen = update::Seen::default();
    let (other, _) = trainer.gradients(&rows, &mut 0, &mut seen).unwrap();
    assert!(difference(&together, &other, "model.norm.weight") > 1e-3);
}

#[test]
fn the_value_loss_trains_the_model_beneath_the_head() {
    let gradients = |value_coefficient: f64| {
        let mut options = options();
        options.loss.value_coefficient = value_coefficient;
        let mut trainer = trainer_of(options, None);
        let rollouts = rollouts(&mut trainer, 0);
        let rows: Vec<&Rollout> = rollouts.iter().collect();
        trainer
            .gradients(&rows, &mut 0, &mut update::Seen::default())
            .unwrap()
            .0
    };
    let name = "model.layers.0.mlp.up_proj.weight";
    assert!(difference(&gradients(0.01), &gradients(1.0), name) > 0.01);
}

#[test]
fn a_ratio_beyond_the_threshold_makes_no_update() {
    let mut options = options();
    options.loss.ratio_threshold = 0.5;
    let mut trainer = trainer_of(options, None);
    let before = trainer::parameters(&mut trainer).unwrap();
    let report = run(&mut trainer, 0..1).remove(0);
    assert_eq!(report.metrics["skipped"], 4.0);
    assert_eq!(report.metrics["updates"], 0.0);
    assert_eq!(report.metrics["loss"], 0.0);
    assert!(bits(&before) == bits(&trainer::parameters(&mut trainer).unwrap()));
}

#[test]
fn early_stopping_leaves_out_the_remaining_updates() {
    let updates = |target_kl: Option<f64>| {
        let options = PpoTrainerOptions {
            target_kl,
            ..options()
        };
        run(&mut trainer_of(options, None), 0..1)[0].metrics["updates"]
    };
    assert_eq!(updates(None), 4.0);
    assert_eq!(updates(Some(1e3)), 4.0);
    // The first mini-batch's divergence is about 0, which is beyond this; the update on it is made.
    assert_eq!(updates(Some(-1.0)), 1.0);
}

#[test]
fn the_coefficient_follows_the_estimate_it_is_told_to() {
    let with = |kl: KlController, controlled_kl, seed| {
        let options = PpoTrainerOptions {
            kl,
            controlled_kl,
            ..options()
        };
        let start = start_of(&config(), None, Counted::boxed(GOOD));
        PpoTrainer::new(start, options, &Stream::new(seed, "ppo")).unwrap()
    };
    // An estimate can be negative; a target cannot.
    let (seed, seen) = (0..100)
        .map(|seed| {
            let fixed = KlController::Fixed(FixedKl { beta: 0.1 });
            let reports = run(&mut with(fixed, ControlledKl::Mean, seed), 0..2);
            (seed, reports[1].metrics.clone())
        })
        .find(|(_, metrics)| metrics["kl_mean"] > 0.0 && metrics["kl"] > 0.0)
        .unwrap();
    for (controlled_kl, metric) in [
        (ControlledKl::Mean, "kl_mean"),
        (ControlledKl::Trimmed, "kl"),
    ] {
        // Step 0 has no divergence, so the error is clipped; that of step 1 is -1 + 1 / 1.1.
        let target = 1.1 * seen[metric];
        let adaptive = KlController::Adaptive(AdaptiveKl::new(0.1, target, 80.0).unwrap());
        let mut trainer = with(adaptive, controlled_kl, seed);
        let reports = run(&mut trainer, 0..2);
        let first = 0.1 * (1.0 - 0.2 * 8.0 / 80.0);
        let second = first * (1.0 - 0.1 / 1.1 * 8.0 / 80.0);
        assert_eq!(reports[0].metrics["beta"], 0.1);
        assert!((reports[1].metrics["beta"] - first).abs() < 1e-12);
        assert!(
            (trainer.beta() - second).abs() < 1e-12,
            "{} {second}",
            trainer.beta()
        );
    }
}

#[test]
fn completions_end_at_eos_or_at_their_horizon() {
    let mut trainer = trainer_of(options(), None);
    let found: Vec<Rollout> = (0..4)
        .flat_map(|step| trainer.sample(step).unwrap())
        .collect();
    assert!(found.iter().any(|rollout| rollout.truncated));
    assert!(found.iter().any(|rollout| !rollout.truncated));
    for rollout in &found {
        let ended = rollout.row.tokens.last() == Some(&EOS);
        assert_eq!(rollout.truncated, !ended);
        assert!(ended || rollout.length() == 6);
    }
    // The same prompt at another step is completed in another way.
    trainer.start.prompts.truncate(1);
    trainer.epochs = Epochs::new(1, 8, Stream::new(0, "one prompt"));
    let rows = |rollouts: Vec<Rollout>| -> Vec<Vec<u32>> {
        rollouts
            .into_iter()
            .map(|rollout| rollout.row.tokens)
            .collect()
    };
    assert_ne!(
        rows(trainer.sample(0).unwrap()),
        rows(trainer.sample(1).unwrap())
    );
}

#[test]
fn horizons_are_drawn_and_eos_can_be_ignored() {
    let drawn = PpoTrainerOptions {
        min_new_tokens: Some(2),
        ignore_eos: true,
        ..options()
    };
    let sample = |options: PpoTrainerOptions| -> Vec<Rollout> {
        let mut trainer = trainer_of(options, None);
        (0..4)
            .flat_map(|step| trainer.sample(step).unwrap())
            .collect()
    };
    let ending = sample(PpoTrainerOptions {
        ignore_eos: false,
        ..drawn.clone()
    });
    for rollout in &ending {
        assert_eq!(rollout.truncated, rollout.row.tokens.last() != Some(&EOS));
    }
    let full = sample(PpoTrainerOptions {
        min_new_tokens: None,
        ..drawn.clone()
    });
    let drawn = sample(drawn);
    let mut lengths = std::collections::BTreeSet::new();
    for (drawn, full) in drawn.iter().zip(&full) {
        assert_eq!(full.length(), 6);
        assert!(drawn.truncated);
        assert!(full.row.tokens.starts_with(&drawn.row.tokens));
        lengths.insert(drawn.length());
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
    let goes_on =
        |rollout: &Rollout| rollout.row.tokens[..rollout.row.tokens.len() - 1].contains(&EOS);
    assert!(full.iter().any(goes_on));
}

#[test]
fn a_completion_of_one_token_can_be_a_mini_batch() {
    let options = PpoTrainerOptions {
        max_new_tokens: 1,
        mini_batch: 1,
        ..options()
    };
    let reports = run(&mut trainer_of(options, None), 0..2);
    assert_eq!(reports[0].metrics["policy_loss"], 0.0);
    assert!(reports[0].metrics["value_loss"] > 0.0);
}

#[test]
fn tokens_and_operations_are_counted() {
    let options = PpoTrainerOptions {
        ignore_eos: true,
        ..options()
    };
    let mut trainer = trainer_of(options, None);
    trainer.start.rewards = Box::new(Counted {
        token: GOOD,
        size: Some(trainer.size),
        ..Counted::default()
    });
    let report = run(&mut trainer, 0..1).remove(0);
    assert_eq!(report.generated_tokens, 8 * 6);
    // Two rounds over all prompts, and two epochs: 12 tokens of prompts and 24 of completions, 4 times.
    assert_eq!(report.trained_tokens, 4 * (12 + 24));
    let batch = 2.0 * forward_flops(&trainer.size, [8, 9, 10, 9]);
    // Sampling, policy, reference and reward; then forward and twice as much backward in two epochs.
    assert!(
        (report.flops / batch - 10.0).abs() < 1e-9,
        "{}",
        report.flops / batch
    );
}

#[test]
fn a_step_can_be_cancelled() {
    let flag = Arc::new(AtomicBool::new(false));
    let mut trainer = trainer_of(options(), None);
    trainer.cancelled_by(Cancel::new(Arc::clone(&flag)));
    run(&mut trainer, 0..1);
    let rollouts = rollouts(&mut trainer, 1);
    flag.store(true, Ordering::Relaxed);
    let cancelled = |found| matches!(found, Err(TrainError::Cancelled));
    assert!(cancelled(trainer.step(1).map(|_| ())));
    assert!(cancelled(trainer.update(1, &rollouts).map(|_| ())));
}

#[test]
fn scores_that_mean_nothing_are_errors() {
    /// As many of a number as a function of the number of completions says.
    struct Wrong(f64, fn(usize) -> usize);

    impl Rewards for Wrong {
        fn of_completions(&self, answers: &[Answer<'_>]) -> Result<Vec<f64>, TrainError> {
            Ok(vec![self.0; self.1(answers.len())])
        }

        fn of_prefixes(
            &self,
            _: &[Answer<'_>],
            _: &TokenBatch,
        ) -> Result<candle_core::Tensor, TrainError> {
            unreachable!("nothing asks for the rewards of prefixes")
        }

        fn size(&self) -> Option<ModelSize> {
            None
        }
    }
    for wrong in [Wrong(f64::NAN, |rows| rows), Wrong(0.0, |rows| rows + 1)] {
        let start = start_of(&config(), None, Box::new(wrong));
        let mut trainer = PpoTrainer::new(start, options(), &Stream::new(5, "ppo")).unwrap();
        assert!(matches!(trainer.step(0), Err(TrainError::Data(_))));
    }
}

#[test]
fn a_divergence_is_reported() {
    // Beyond its limit twice in a row.
    let mut options = options();
    options.divergence = DivergenceLimits {
        kl: Some(-1.0),
        patience: 2,
        ..DivergenceLimits::default()
    };
    let mut trainer = trainer_of(options, None);
    run(&mut trainer, 0..1);
    let reason = trainer.step(1).unwrap().diverged.unwrap();
    assert!(reason.starts_with("KL to the reference"), "{reason}");

    // Parameters beyond all numbers.
    let options = PpoTrainerOptions {
        optimizer: OptimizerOptions::constant(1e30),
        ..self::options()
    };
    let mut trainer = trainer_of(options, None);
    let reason = (0..2).find_map(|step| trainer.step(step).unwrap().diverged);
    assert!(reason.unwrap().contains("not finite"));
}
