//! Trainings on pairs, with tiny models.

use candle_core::Device;

use super::super::fixture::{assert_slopes, bits, config, difference, lora, models, wide_config};
use super::*;
use crate::ml::adapter::LoraConfig;
use crate::ml::models::causal::LlamaConfig;
use crate::ml::objectives::preference::Likelihood;
use crate::ml::parameters::{from_safetensors, to_safetensors};
use crate::ml::trainer::{self, TrainerState};

const EOS: u32 = 1;

fn row(prompt: &[u32], completion: &[u32]) -> TokenizedCompletion {
    TokenizedCompletion {
        tokens: [prompt, completion].concat(),
        prompt_length: prompt.len(),
    }
}

/// Two pairs of one prompt; a completion that the limit cut; completions of one token, EOS or not.
fn pairs() -> Vec<TokenizedPair> {
    let pair = |prompt: &[u32], chosen: &[u32], rejected: &[u32]| TokenizedPair {
        chosen: row(prompt, chosen),
        rejected: row(prompt, rejected),
    };
    vec![
        pair(&[0, 2, 5], &[7, 8, EOS], &[9, EOS]),
        pair(&[0, 2, 5], &[7, 8, EOS], &[10, 11, 12, EOS]),
        pair(&[0, 3], &[4, 6, 8, 10, 12, 14], &[5, EOS]),
        pair(&[0, 9, 9, 4], &[EOS], &[13, 2, EOS]),
        pair(&[0, 6, 4], &[3, 15, EOS], &[14]),
    ]
}

fn preference(loss: PreferenceLoss) -> PairObjective {
    PairObjective::Preference(loss)
}

fn gdpo(released: bool, windows: Windows) -> PairObjective {
    PairObjective::GflownetDpo(GflownetDpo {
        preference: PreferenceReward {
            alpha: 0.5,
            rejected: -8.0,
        },
        gamma: 0.7,
        windows,
        released,
    })
}

fn objectives() -> Vec<PairObjective> {
    let dpo = |label_smoothing, reference_free| PreferenceLoss::Dpo {
        beta: 0.3,
        label_smoothing,
        reference_free,
    };
    let kto = |reference_point| PreferenceLoss::Kto {
        beta: 0.3,
        desirable_weight: 1.0,
        undesirable_weight: 1.2,
        reference_point,
    };
    vec![
        preference(dpo(0.0, false)),
        preference(dpo(0.1, true)),
        preference(PreferenceLoss::Ipo { beta: 0.3 }),
        preference(PreferenceLoss::Cpo {
            beta: 0.3,
            sft_weight: 1.0,
            likelihood: Likelihood::Tokens,
        }),
        preference(PreferenceLoss::Cpo {
            beta: 0.3,
            sft_weight: 1.0,
            likelihood: Likelihood::Pairs,
        }),
        preference(PreferenceLoss::Orpo { weight: 0.5 }),
        preference(PreferenceLoss::Simpo {
            beta: 1.0,
            margin: 0.5,
        }),
        preference(kto(ReferencePoint::All)),
        preference(kto(ReferencePoint::Chosen)),
        gdpo(false, Windows::Transitions),
        gdpo(false, Windows::WithinTrajectory { lambda: 0.9 }),
        gdpo(false, Windows::AcrossBatch { lambda: 0.8 }),
        gdpo(true, Windows::Transitions),
    ]
}

fn options(objective: PairObjective) -> PairOptions {
    PairOptions {
        objective,
        batch_size: 5,
        micro_batch: 5,
        optimizer: OptimizerOptions {
            weight_decay: 0.01,
            ..OptimizerOptions::constant(3e-3)
        },
        eos: vec![EOS],
    }
}

fn trainer_of(
    config: &LlamaConfig,
    options: PairOptions,
    lora: Option<&LoraConfig>,
) -> PairTrainer {
    let (model, reference) = models(config, lora);
    let stream = Stream::new(5, "pairs");
    PairTrainer::new(model, reference, pairs(), options, &stream).unwrap()
}

/// A trainer after two steps, so that policy and reference differ.
fn moved(options: PairOptions, lora: Option<&LoraConfig>) -> PairTrainer {
    let mut trainer = trainer_of(&config(), options, lora);
    run(&mut trainer, 0..2);
    trainer
}

fn run(trainer: &mut PairTrainer, steps: std::ops::Range<u64>) -> Vec<StepReport> {
    let report = |step| {
        let report = trainer.step(step).unwrap();
        assert_eq!(report.diverged, None);
        report
    };
    steps.map(report).collect()
}

#[test]
fn every_parameter_learns_by_its_slope() {
    for lora in [None, Some(lora())] {
        for objective in objectives() {
            let trainer = moved(options(objective), lora.as_ref());
            let items = [0, 1, 2, 3, 4];
            // KTO's baseline is a number to its gradient.
            let step = trainer.whole_step(&items).unwrap();
            let loss = || trainer.gradients(7, &items, step).unwrap();
            let (gradients, report) = loss();
            assert_slopes(&trainer.updater.parameters(), &gradients, || {
                loss().1.metrics["loss"]
            });
            assert!(report.metrics["loss"].is_finite());
        }
    }
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    // Dropout would draw other masks.
    let lora = LoraConfig {
        dropout: 0.0,
        ..lora()
    };
    for lora in [None, Some(lora)] {
        for objective in objectives() {
            let mut trainer = moved(options(objective), lora.as_ref());
            let items = [4, 2, 0, 1, 3];
            let step = trainer.whole_step(&items).unwrap();
            let (whole, report) = trainer.gradients(3, &items, step).unwrap();
            for micro_batch in [1, 2, 3] {
                trainer.options.micro_batch = micro_batch;
                let (kl, again) = (step.kl, trainer.whole_step(&items).unwrap().kl);
                assert!((again - kl).abs() < 1e-5, "{again} for {kl}");
                let (parts, of_parts) = trainer.gradients(3, &items, step).unwrap();
                for (name, _) in trainer.updater.parameters() {
                    let apart = difference(&whole, &parts, &name);
                    assert!(apart < 1e-4, "{objective:?}, `{name}`: {apart}");
                }
                // `residual` is a root of a mean: the mean of those of micro-batches is another number.
                let metrics = report.metrics.iter();
                for (name, value) in metrics.filter(|(name, _)| **name != "residual") {
                    let apart = (value - of_parts.metrics[name]).abs();
                    assert!(apart < 1e-4 * (1.0 + value.abs()), "{objective:?}, {name}");
                }
                assert_eq!(report.trained_tokens, of_parts.trained_tokens);
            }
        }
    }
}

#[test]
fn a_pair_has_the_same_loss_beside_others_of_its_prompt() {
    for objective in objectives() {
        // The released code pads with what a longer neighbour leaves, and across a batch a long row weighs more.
        let is_tied = matches!(
            objective,
            PairObjective::GflownetDpo(
                GflownetDpo { released: true, .. }
                    | GflownetDpo {
                        windows: Windows::AcrossBatch { .. },
                        ..
                    }
            )
        );
        let trainer = moved(options(objective), None);
        // The same number of tokens per pair, so that a likelihood of tokens is the mean of those of the pairs.
        let loss = |items: &[usize]| {
            let step = WholeStep {
                kl: 0.1,
                chosen_tokens: 3.0 * items.len() as f64,
                ..trainer.whole_step(items).unwrap()
            };
            trainer.gradients(3, items, step).unwrap().1.metrics["loss"]
        };
        let together = loss(&[0, 1]);
        let apart = f64::midpoint(loss(&[0]), loss(&[1]));
        let same = (together - apart).abs() < 1e-5 * (1.0 + apart.abs());
        assert!(same || is_tied, "{objective:?}: {together}, {apart}");
    }
}

#[test]
fn completions_of_one_token_and_cut_ones_are_whole_rows() {
    for objective in objectives() {
        let trainer = moved(options(objective), None);
        // Pairs with a cut side, with EOS alone, and with one token that is not EOS.
        for item in [2, 3, 4] {
            let found = trainer.gradients(3, &[item], trainer.whole_step(&[item]).unwrap());
            let (gradients, report) = found.unwrap();
            for (name, value) in &report.metrics {
                assert!(
                    value.is_finite(),
                    "{objective:?}, pair {item}: {name} is {value}"
                );
            }
            let norm = gradients.get("model.norm.weight").unwrap().sqr().unwrap();
            let norm = norm.sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(norm > 0.0 && norm.is_finite(), "{objective:?}, pair {item}");
        }
    }
    // One token that ends at once has no transition, so that GFlowNet-DPO asks nothing of it.
    let mut trainer = moved(options(gdpo(false, Windows::Transitions)), None);
    let end = row(&[0, 9, 9, 4], &[EOS]);
    trainer.pairs.push(TokenizedPair {
        chosen: end.clone(),
        rejected: end,
    });
    let (gradients, report) = trainer
        .gradients(3, &[5], trainer.whole_step(&[5]).unwrap())
        .unwrap();
    assert_eq!(report.metrics["loss"], 0.0);
    let gradient = gradients.get("model.norm.weight").unwrap().abs().unwrap();
    let largest = gradient.max_all().unwrap().to_scalar::<f32>().unwrap();
    assert_eq!(largest, 0.0);
    // The released loss reads the token before the prompt's last.
    let (chosen, rejected) = (row(&[0], &[7, EOS]), row(&[0], &[8, EOS]));
    let pairs = vec![TokenizedPair { chosen, rejected }];
    let (model, reference) = models(&config(), None);
    let stream = Stream::new(5, "pairs");
    let trainer = PairTrainer::new(
        model,
        reference,
        pairs,
        options(gdpo(true, Windows::Transitions)),
        &stream,
    );
    let error = trainer.err().unwrap().to_string();
    assert!(error.contains("a prompt has one token"), "{error}");
}

#[test]
fn a_resumed_training_ends_with_the_same_bits() {
    for lora in [None, Some(lora())] {
        for objective in [
            objectives()[0],
            objectives()[6],
            gdpo(false, Windows::Transitions),
            gdpo(true, Windows::Transitions),
        ] {
            let options = PairOptions {
                batch_size: 3,
                micro_batch: 2,
                ..options(objective)
            };
            let new = || trainer_of(&config(), options.clone(), lora.as_ref());
            let mut straight = new();
            let straight_reports = run(&mut straight, 0..5);
            let mut first = new();
            run(&mut first, 0..2);
            let state = trainer::state(&mut first).unwrap();
            // As a stage stores it.
            let tensors = to_safetensors(&state.tensors).unwrap();
            let state = TrainerState {
                tensors: from_safetensors(&tensors, &Device::Cpu).unwrap(),
                values: serde_json::from_str(&state.values.to_string()).unwrap(),
            };
            let mut resumed = new();
            trainer::restore(&mut resumed, &state).unwrap();
            let resumed_reports = run(&mut resumed, 2..5);
            for (a, b) in straight_reports[2..].iter().zip(&resumed_reports) {
                assert_eq!(a.metrics, b.metrics);
            }
            let straight = trainer::state(&mut straight).unwrap();
            let resumed = trainer::state(&mut resumed).unwrap();
            assert!(bits(&straight.tensors) == bits(&resumed.tensors));
        }
    }
}

#[test]
fn one_thread_and_two_end_with_the_same_bits() {
    for objective in [
        objectives()[0],
        objectives()[6],
        gdpo(false, Windows::Transitions),
        gdpo(true, Windows::Transitions),
    ] {
        let end = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let mut trainer = trainer_of(&wide_config(), options(objective), None);
                let reports = run(&mut trainer, 0..2);
                let state = trainer::state(&mut trainer).unwrap();
                let metrics: Vec<_> = reports.into_iter().map(|report| report.metrics).collect();
                (bits(&state.tensors), metrics)
            })
        };
        assert!(
            end(1) == end(2),
            "{objective:?}: two threads differ from one"
        );
    }
}
