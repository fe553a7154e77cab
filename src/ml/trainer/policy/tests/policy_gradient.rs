//! Policy gradients with tiny models and a rule for rewards.

use super::super::scored::Scored;
use super::*;
use crate::ml::objectives::policy_gradient::{Correction, KlEstimator, RatioLevel};
use crate::ml::trainer::policy::objectives::{
    Advantage, Importance, KlPlace, KlSettings, POLICY_GRADIENTS, PolicyGradientSettings,
};

const METHODS: [&str; 6] = [
    "rloo",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "reinforce_plus_plus",
];

fn settings() -> PolicyGradientSettings {
    PolicyGradientSettings {
        horizon: 5,
        ..PolicyGradientSettings::default()
    }
}

fn method(name: &str, settings: &PolicyGradientSettings) -> Box<dyn Objective> {
    let kind = ObjectiveKind::find(POLICY_GRADIENTS, name).unwrap();
    (kind.make)(settings)
}

fn gradient_options() -> PolicyOptions {
    PolicyOptions {
        reward_scale: 1.0,
        reference: ReferenceTerms::default(),
        updates_per_batch: 1,
        ..options()
    }
}

fn trainer(
    objective: Box<dyn Objective>,
    options: PolicyOptions,
    lora: Option<&LoraConfig>,
) -> PolicyTrainer {
    trainer_with(objective, options, lora, &[], GOOD)
}

#[test]
fn every_method_finds_what_is_rewarded() {
    for name in METHODS {
        let options = PolicyOptions {
            completions_per_prompt: 8,
            dynamic_sampling: if name == "dapo" { 4 } else { 0 },
            ..gradient_options()
        };
        let mut trainer = trainer(method(name, &settings()), options, None);
        let reports = run(&mut trainer, 0..60);
        // A step that found no prompt to learn from has no reward and no ratio.
        let of = |reports: &[StepReport], name: &str| -> Vec<f64> {
            let found = reports.iter().filter_map(|report| report.metrics.get(name));
            found.copied().collect()
        };
        let mean = |reports: &[StepReport]| {
            let rewards = of(reports, "reward");
            rewards.iter().sum::<f64>() / rewards.len() as f64
        };
        let (first, last) = (mean(&reports[..5]), mean(&reports[40..]));
        assert!(last > first + 1.0, "{name}: {first}, then {last}");
        let finite = |report: &StepReport| report.metrics.values().all(|value| value.is_finite());
        assert!(reports.iter().all(finite), "{name}");
        // Of the policy that drew them, the completions' ratios are 1.
        let ratios = of(&reports, "ratio");
        assert!(
            ratios.iter().all(|ratio| (ratio - 1.0).abs() < 1e-4),
            "{name}"
        );
        let entropies = of(&reports, "entropy");
        assert!(
            entropies
                .iter()
                .all(|entropy| (0.0..=16f64.ln()).contains(entropy)),
            "{name}"
        );
    }
}

#[test]
fn every_parameter_learns_by_its_slope_in_every_form() {
    let kl = |estimator, place, corrected| KlSettings {
        coefficient: 0.3,
        estimator,
        place,
        corrected,
    };
    let mut cases: Vec<(&str, PolicyGradientSettings)> =
        METHODS.iter().map(|name| (*name, settings())).collect();
    for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
        for (place, corrected) in [
            (KlPlace::Reward, false),
            (KlPlace::Loss, false),
            (KlPlace::Loss, true),
        ] {
            let settings = PolicyGradientSettings {
                kl: Some(kl(estimator, place, corrected)),
                entropy_bonus: 0.1,
                ..settings()
            };
            cases.push(("grpo", settings));
        }
    }
    cases.push((
        "dr_grpo",
        PolicyGradientSettings {
            ratio: Some(RatioLevel::Sequence),
            advantage: Some(Advantage::StandardisedOverAll),
            mask_truncated: true,
            overlong_buffer: Some(2),
            importance: Some(Importance {
                of_completions: false,
                beyond: Correction::Truncate,
                least: 0.5,
                greatest: 2.0,
            }),
            ..settings()
        },
    ));
    for lora in [None, Some(lora())] {
        for (name, settings) in &cases {
            // Nothing is clipped, so that the slope is not that of a kink.
            let settings = PolicyGradientSettings {
                clip_low: Some(1.0),
                clip_high: Some(1e3),
                ..*settings
            };
            let options = PolicyOptions {
                updates_per_batch: 3,
                completions_per_prompt: 8,
                temperature: Ramp::Constant(0.8),
                ..gradient_options()
            };
            let mut trainer = trainer(method(name, &settings), options, lora.as_ref());
            run(&mut trainer, 0..2);
            let batch = trainer.held.clone().unwrap();
            let rows = group::rows(&batch.groups);
            let units = Normaliser::Total(trainer.objective.units(&rows, &[EOS]));
            let part = Part {
                groups: &batch.groups,
                first_row: 0,
                drawn: batch.drawn.as_deref(),
                weights: &batch.weights,
            };
            let loss = || loss_of(&trainer, 2, part, units);
            let mut gradients = Gradients::default();
            let parameters = trainer.updater.parameters();
            gradients
                .add(&loss().backward().unwrap(), &parameters)
                .unwrap();
            assert_slopes(&parameters, &gradients, || {
                f64::from(loss().to_scalar::<f32>().unwrap())
            });
        }
    }
}

#[test]
fn micro_batches_add_up_to_the_batch() {
    for name in METHODS {
        let of = |micro_batch| {
            let options = PolicyOptions {
                micro_batch,
                prompts_per_step: 3,
                updates_per_batch: 2,
                ..gradient_options()
            };
            run(&mut trainer(method(name, &settings()), options, None), 0..4)
        };
        for (whole, parts) in of(3).iter().zip(of(1)) {
            for (metric, value) in &whole.metrics {
                let other = parts.metrics[metric];
                assert!(
                    (value - other).abs() < 2e-3 * (1.0 + value.abs()),
                    "{name}, {metric}: {value} and {other}"
                );
            }
        }
    }
}

#[test]
fn completions_of_equal_rewards_teach_nothing_and_stop_nothing() {
    // No completion has a token beyond the vocabulary: all rewards are 0.
    let nothing = 99;
    for name in METHODS {
        let settings = PolicyGradientSettings {
            kl: Some(KlSettings {
                coefficient: 0.0,
                estimator: KlEstimator::K3,
                place: KlPlace::Loss,
                corrected: false,
            }),
            overlong_buffer: Some(0),
            ..settings()
        };
        let objective = method(name, &settings);
        let mut trainer = trainer_with(objective, gradient_options(), None, &[], nothing);
        let before = trainer::parameters(&mut trainer).unwrap();
        for report in run(&mut trainer, 0..2) {
            assert_eq!(report.metrics["varied"], 0.0);
            assert_eq!(report.metrics["grad_norm"], 0.0, "{name}");
            assert!(report.metrics.values().all(|value| value.is_finite()));
        }
        // Weight decay alone moves the parameters.
        assert_eq!(
            before.len(),
            trainer::parameters(&mut trainer).unwrap().len()
        );
        // Where such prompts are left out, there is nothing at all.
        let options = PolicyOptions {
            dynamic_sampling: 3,
            ..gradient_options()
        };
        let mut trainer = trainer_with(method(name, &settings), options, None, &[], nothing);
        let error = trainer.step(0).unwrap_err().to_string();
        assert!(error.contains("of 6 prompts none has"), "{error}");
    }
}

#[test]
fn a_step_that_finds_no_prompt_to_learn_from_makes_no_update() {
    let options = PolicyOptions {
        dynamic_sampling: 3,
        ..gradient_options()
    };
    let mut trainer = trainer(method("dapo", &settings()), options, None);
    run(&mut trainer, 0..1);
    let before = trainer::state(&mut trainer).unwrap();
    trainer.shared.rewards = Counted::boxed(99);
    let report = trainer.step(1).unwrap();
    assert_eq!(
        (report.metrics["prompts"], report.metrics["varied"]),
        (0.0, 0.0)
    );
    assert!(report.generated_tokens > 0 && !report.metrics.contains_key("grad_norm"));
    let after = trainer::state(&mut trainer).unwrap();
    assert!(bits(&before.tensors) == bits(&after.tensors));
}

#[test]
fn prompts_are_sampled_until_enough_have_different_rewards() {
    let options = PolicyOptions {
        dynamic_sampling: 20,
        completions_per_prompt: 2,
        ..gradient_options()
    };
    let mut trainer = trainer(method("grpo", &settings()), options, None);
    let mut most = 0.0f64;
    for report in run(&mut trainer, 0..6) {
        assert_eq!(report.metrics["prompts"], 2.0);
        most = most.max(report.metrics["rounds"]);
        let drawn = report.metrics["rounds"] * 2.0 * report.metrics["varied"];
        assert!(drawn >= 2.0 - 1e-9, "{drawn}");
    }
    assert!(most > 1.0, "no step had to sample twice");
}

#[test]
fn truncated_completions_can_be_left_out_and_late_ones_punished() {
    let rows = [row(&[0, 2], &[7, 7, 3, 3, 3]), row(&[0, 2], &[7, EOS])];
    let rows: Vec<&TokenizedCompletion> = rows.iter().collect();
    let masked = PolicyGradientSettings {
        mask_truncated: true,
        overlong_buffer: Some(2),
        ..settings()
    };
    assert_eq!(method("dapo", &masked).units(&rows, &[EOS]), 2.0);
    assert_eq!(method("dapo", &settings()).units(&rows, &[EOS]), 7.0);
    assert_eq!(method("grpo", &masked).units(&rows, &[EOS]), 2.0);
    assert_eq!(method("dr_grpo", &masked).units(&rows, &[EOS]), 10.0);
    let scored = Scored {
        prompt_of: vec![0, 0],
        rewards: vec![2.0, 1.0],
        lengths: vec![5, 2],
        ..Scored::default()
    };
    let advantage = |settings| {
        let weights = method("dr_grpo", settings).weigh(&scored).unwrap();
        weights[0].advantages[0]
    };
    // 2 - 1 at the horizon against 1; without the penalty 2 against 1.
    assert_eq!(advantage(&masked), 0.0);
    assert_eq!(advantage(&settings()), 0.5);
}

#[test]
fn weights_correct_for_the_temperature_of_sampling() {
    let settings = PolicyGradientSettings {
        importance: Some(Importance {
            of_completions: true,
            beyond: Correction::Mask,
            least: 0.0,
            greatest: 1e6,
        }),
        ..settings()
    };
    let mean = |temperature| {
        let options = PolicyOptions {
            temperature: Ramp::Constant(temperature),
            completions_per_prompt: 64,
            ..gradient_options()
        };
        let mut trainer = trainer(method("grpo", &settings), options, None);
        run(&mut trainer, 0..1)[0].metrics["importance"]
    };
    assert!((mean(1.0) - 1.0).abs() < 1e-5);
    // Weighted by tokens the mean is near 1, and no weight is exactly 1.
    let hot = mean(1.5);
    assert!((hot - 1.0).abs() < 0.5 && (hot - 1.0).abs() > 1e-4, "{hot}");
}

#[test]
fn a_training_resumed_ends_with_the_same_bits() {
    for name in ["dapo", "rloo"] {
        let options = PolicyOptions {
            updates_per_batch: 2,
            dynamic_sampling: if name == "dapo" { 5 } else { 0 },
            ..gradient_options()
        };
        assert_resumes(
            &|| trainer(method(name, &settings()), options.clone(), None),
            6,
        );
    }
}
