//! Losses, advantages and estimators against those of TRL and verl, recorded in `float64` by their own code (versions and
//! origin of each case are in the file).

use candle_core::{DType, Device, Var};
use serde_json::Value as Json;

use super::super::advantage::{pad, whiten};
use super::super::gradient_check::{assert_gradients, close};
use super::super::groups::{centred, leave_one_out, standardised, standardised_over_all};
use super::super::importance::{importance_weights, summed_log_probs};
use super::super::trajectory_balance::{
    LogZ, TrajectoryBalanceOptions, weighted_trajectory_balance,
};
use super::super::{ReferenceTerms, Trajectories};
use super::*;

const RECORDED: &str = include_str!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/objectives/policy_gradient.json"
));

struct Recorded(Json);

impl Recorded {
    fn read() -> Self {
        Self(serde_json::from_str(RECORDED).unwrap())
    }

    fn cases(&self, part: &str) -> Vec<&Json> {
        self.0[part].as_array().unwrap().iter().collect()
    }

    fn input(&self, name: &str) -> Tensor {
        tensor(&self.0["inputs"][name])
    }

    fn list(&self, name: &str) -> Vec<f64> {
        numbers(&self.0["inputs"][name])
    }

    fn whole(&self, name: &str) -> Vec<usize> {
        self.list(name)
            .iter()
            .map(|value| *value as usize)
            .collect()
    }

    fn advantages(&self, name: &str) -> Vec<Vec<f64>> {
        let cases = self.cases("advantages");
        let case = cases.iter().find(|case| case["name"] == name).unwrap();
        self.per_token(&case["advantages"])
    }

    /// Advantages of completions, or of their tokens, as those of tokens.
    fn per_token(&self, values: &Json) -> Vec<Vec<f64>> {
        let lengths = self.whole("lengths");
        let rows = values.as_array().unwrap().iter().zip(lengths);
        rows.map(|(row, length)| match row {
            Json::Array(_) => numbers(row)[..length].to_vec(),
            value => vec![value.as_f64().unwrap(); length],
        })
        .collect()
    }
}

fn numbers(values: &Json) -> Vec<f64> {
    let values = values.as_array().unwrap().iter();
    values.map(|value| value.as_f64().unwrap()).collect()
}

fn tensor(rows: &Json) -> Tensor {
    let rows: Vec<Vec<f64>> = rows.as_array().unwrap().iter().map(numbers).collect();
    Tensor::new(rows, &Device::Cpu).unwrap()
}

fn matrix(rows: &[Vec<f64>]) -> Tensor {
    pad(rows, 5, DType::F64, &Device::Cpu).unwrap()
}

/// How far numbers may be apart: verl divides by lengths + 1e-8.
fn tolerance(name: &str) -> f64 {
    if name.contains("seq-mean-token-mean") {
        1e-8
    } else {
        1e-12
    }
}

fn assert_close(found: &Tensor, expected: &Json, name: &str) {
    let found = found.to_vec2::<f64>().unwrap();
    for (row, expected) in found.iter().zip(expected.as_array().unwrap()) {
        for (found, expected) in row.iter().zip(numbers(expected)) {
            assert!(
                (found - expected).abs() < tolerance(name),
                "{name}: {found} for {expected}"
            );
        }
    }
}

fn options(settings: &Json) -> PolicyGradientOptions {
    let number = |key: &str| settings[key].as_f64();
    let low = number("epsilon_low").or(number("clip_ratio_low")).unwrap();
    let high = number("epsilon_high")
        .or(number("clip_ratio_high"))
        .unwrap();
    let is_rloo = settings["loss_type"] == "rloo";
    let beta = number("beta").unwrap_or(0.0);
    PolicyGradientOptions {
        ratio: match settings["importance_sampling_level"].as_str() {
            Some("sequence") => RatioLevel::Sequence,
            _ if is_rloo => RatioLevel::Completion,
            _ => RatioLevel::Token,
        },
        clip_low: low,
        clip_high: high,
        clip_ceiling: number("delta"),
        kl: (beta > 0.0).then_some(KlTerm {
            coefficient: beta,
            estimator: KlEstimator::K3,
            corrected: settings["bias_correction_kl"] != false,
        }),
        entropy_bonus: 0.0,
        mean: match settings["loss_type"]
            .as_str()
            .or(settings["loss_agg_mode"].as_str())
        {
            Some("grpo" | "rloo" | "seq-mean-token-mean") => MeanOver::Completions,
            Some("bnpo" | "dapo" | "token-mean") => MeanOver::Tokens,
            Some("dr_grpo") => MeanOver::Horizon,
            other => panic!("{other:?}"),
        },
        horizon: 8,
    }
}

#[test]
fn losses_and_gradients_are_those_of_trl_and_verl() {
    let recorded = Recorded::read();
    let mut compared = 0;
    for case in recorded.cases("losses") {
        let (name, settings) = (case["name"].as_str().unwrap(), &case["settings"]);
        let is_other = ["cispo", "seq-mean-token-sum", "dualclip"];
        if is_other.iter().any(|part| name.contains(part)) {
            continue;
        }
        let log_probs = Var::from_tensor(&recorded.input("log_probs")).unwrap();
        let old = settings["old"].as_str().map(|old| recorded.input(old));
        let reference = recorded.input("reference_log_probs");
        let advantages = recorded.advantages(settings["advantages"].as_str().unwrap());
        let mut lengths = recorded.whole("lengths");
        let importance = settings["vllm"].as_str().map(|mode| {
            let of = |name: &str| recorded.input(name).to_vec2::<f64>().unwrap();
            let (policy, sampler) = (of("old_log_probs"), of("sampler_log_probs"));
            let correction = if mode.ends_with("mask") {
                Correction::Mask
            } else {
                Correction::Truncate
            };
            let weights = |row: usize| {
                sampler_weights(
                    &policy[row][..lengths[row]],
                    &sampler[row][..lengths[row]],
                    mode.starts_with("sequence"),
                    correction,
                    settings["clip_min"].as_f64().unwrap_or(0.0),
                    settings["clip_max"].as_f64().unwrap(),
                )
            };
            matrix(&(0..6).map(weights).collect::<Vec<_>>())
        });
        if settings["mask_truncated"] == true {
            for (length, truncated) in lengths.iter_mut().zip(recorded.list("truncated")) {
                if truncated == 1.0 {
                    *length = 0;
                }
            }
        }
        let batch = PolicyGradientBatch {
            log_probs: log_probs.as_tensor(),
            old_log_probs: old.as_ref(),
            reference: Some(&reference),
            advantages: &matrix(&advantages),
            importance: importance.as_ref(),
            entropies: None,
            lengths: &lengths,
        };
        let found = policy_gradient(&batch, &options(settings), Normaliser::Own).unwrap();
        let loss = found.loss.to_scalar::<f64>().unwrap();
        let expected = case["loss"].as_f64().unwrap();
        assert!(
            (loss - expected).abs() < tolerance(name),
            "{name}: {loss} for {expected}"
        );
        let gradients = found.loss.backward().unwrap();
        let gradient = gradients.get(&log_probs).unwrap();
        assert_close(gradient, &case["grad_log_probs"], name);
        compared += 1;
    }
    assert!(compared > 45, "{compared} cases");
}

#[test]
fn advantages_are_those_of_trl_and_verl() {
    let recorded = Recorded::read();
    let groups = recorded.whole("groups");
    let lengths = recorded.whole("lengths");
    let rewards = recorded.list("rewards");
    let equal = recorded.list("rewards_equal_group");
    let of = |name: &str| recorded.input(name).to_vec2::<f64>().unwrap();
    let (old, reference) = (of("old_log_probs"), of("reference_log_probs"));
    let penalised: Vec<f64> = (0..6)
        .map(|row| {
            let ratios = old[row]
                .iter()
                .zip(&reference[row])
                .map(|(old, of)| old - of);
            rewards[row] - 0.05 * ratios.sum::<f64>()
        })
        .collect();
    for (name, found) in [
        ("grpo", standardised(&rewards, &groups, 1e-4)),
        ("grpo_equal", standardised(&equal, &groups, 1e-4)),
        ("verl_grpo", standardised(&rewards, &groups, 1e-6)),
        ("dr_grpo", centred(&rewards, &groups)),
        ("dr_grpo_equal", centred(&equal, &groups)),
        ("rloo", leave_one_out(&rewards, &groups)),
        ("rloo_equal", leave_one_out(&equal, &groups)),
        ("rloo_kl_in_reward", leave_one_out(&penalised, &groups)),
        ("batch_std", standardised_over_all(&rewards, &groups, 1e-4)),
        (
            "batch_std_equal",
            standardised_over_all(&equal, &groups, 1e-4),
        ),
    ] {
        let expected = recorded.advantages(name);
        for (row, (found, expected)) in found.iter().zip(expected).enumerate() {
            assert!((found - expected[0]).abs() < 1e-12, "{name} {row}: {found}");
        }
    }
    for (name, beta) in [
        ("reinforce_pp_kl0.0_gamma1.0", 0.0),
        ("reinforce_pp_kl0.05_gamma1.0", 0.05),
    ] {
        let mut found: Vec<Vec<f64>> = (0..6)
            .map(|row| {
                let length = lengths[row];
                let (old, of) = (&old[row][..length], &reference[row][..length]);
                let log_ratios: Vec<f64> = old.iter().zip(of).map(|(old, of)| old - of).collect();
                returns(rewards[row], &log_ratios, beta, KlEstimator::K1)
            })
            .collect();
        whiten(&mut found).unwrap();
        let expected = recorded.advantages(name);
        for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
            // verl whitens in single precision in one place.
            assert!(
                (found - expected).abs() < 1e-6,
                "{name}: {found} for {expected}"
            );
        }
    }
}

#[test]
fn estimators_have_the_values_and_gradients_of_verl() {
    let recorded = Recorded::read();
    let lengths = recorded.whole("lengths");
    let mask = prefix_mask(&lengths, 5, &Device::Cpu).unwrap();
    let (reference, old) = (
        recorded.input("reference_log_probs"),
        recorded.input("old_log_probs"),
    );
    for (name, estimator) in [
        ("k1", KlEstimator::K1),
        ("k2", KlEstimator::K2),
        ("k3", KlEstimator::K3),
    ] {
        for (suffix, corrected) in [("", false), ("_ratio", true)] {
            let cases = recorded.cases("kl_estimators");
            let name = format!("{name}{suffix}");
            let case = cases.iter().find(|case| case["name"] == *name).unwrap();
            let log_probs = Var::from_tensor(&recorded.input("log_probs")).unwrap();
            let log_ratio = (log_probs.as_tensor() - &reference).unwrap();
            let mut value = estimator.of_tensor(&log_ratio).unwrap();
            if corrected {
                let ratio = exp(&(log_probs.as_tensor() - &old).unwrap()).unwrap();
                value = (value * ratio).unwrap();
            } else {
                let rows = log_ratio.to_vec2::<f64>().unwrap();
                let of_numbers = rows
                    .iter()
                    .map(|row| row.iter().map(|l| estimator.of(*l)).collect());
                let of_numbers = Tensor::new(of_numbers.collect::<Vec<Vec<f64>>>(), &Device::Cpu);
                assert_close(
                    &keep(&of_numbers.unwrap(), &mask).unwrap(),
                    &case["value"],
                    &name,
                );
            }
            let value = keep(&value, &mask).unwrap();
            assert_close(&value, &case["value"], &name);
            let gradients = total(&value).unwrap().backward().unwrap();
            assert_close(gradients.get(&log_probs).unwrap(), &case["grad"], &name);
        }
    }
}

#[test]
fn an_entropy_bonus_is_that_of_verl_and_has_a_gradient() {
    let recorded = Recorded::read();
    let log_probs = recorded.input("log_probs");
    for (name, mean) in [
        ("entropy_token-mean", MeanOver::Tokens),
        ("entropy_seq-mean-token-mean", MeanOver::Completions),
    ] {
        let cases = recorded.cases("entropy_bonus");
        let case = cases.iter().find(|case| case["name"] == name).unwrap();
        let entropies = Var::from_tensor(&recorded.input("entropies")).unwrap();
        let options = PolicyGradientOptions {
            entropy_bonus: case["entropy_coeff"].as_f64().unwrap(),
            mean,
            ..options(
                &serde_json::json!({ "loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.2 }),
            )
        };
        let batch = PolicyGradientBatch {
            log_probs: &log_probs,
            old_log_probs: None,
            reference: None,
            advantages: &log_probs.zeros_like().unwrap(),
            importance: None,
            entropies: Some(entropies.as_tensor()),
            lengths: &recorded.whole("lengths"),
        };
        let found = policy_gradient(&batch, &options, Normaliser::Own).unwrap();
        close(
            found.loss.to_scalar().unwrap(),
            case["loss"].as_f64().unwrap(),
            tolerance(name),
        );
        let gradients = found.loss.backward().unwrap();
        assert_close(
            gradients.get(&entropies).unwrap(),
            &case["grad_entropies"],
            name,
        );
    }
}

#[test]
fn completions_are_punished_near_the_horizon_as_by_trl() {
    let mut compared = 0;
    for case in Recorded::read().cases("overlong") {
        let whole = |key: &str| case[key].as_u64().unwrap() as usize;
        let (horizon, buffer) = (whole("max_completion_len"), whole("soft_punish_cache"));
        let expected = numbers(&case["rewards"]);
        for (length, expected) in numbers(&case["lengths"]).into_iter().zip(expected) {
            close(
                overlong_penalty(length as usize, horizon, buffer),
                expected,
                1e-15,
            );
            compared += 1;
        }
    }
    assert!(compared > 20);
}

#[test]
fn flowrl_and_tba_are_those_of_their_authors() {
    let recorded = Recorded::read();
    let lengths = recorded.whole("lengths");
    let groups = recorded.whole("groups");
    let reference = recorded.input("reference_log_probs");
    let rewards = recorded.list("rewards");
    let relative = ReferenceTerms {
        kl_beta: 0.0,
        in_target: true,
    };
    for case in recorded.cases("flowrl") {
        let (name, settings) = (case["name"].as_str().unwrap(), &case["settings"]);
        let clip = match settings["weight"].as_str().unwrap() {
            "max10" => (0.0, 10.0),
            "clip_0.8_1.28" => (0.8, 1.28),
            "one" => (1.0, 1.0),
            _ => continue,
        };
        let log_probs = Var::from_tensor(&recorded.input("log_probs")).unwrap();
        let log_z = Var::new(recorded.list("log_z"), &Device::Cpu).unwrap();
        let epsilon = if settings["advantages"] == "grpo" {
            1e-4
        } else {
            1e-6
        };
        let log_r = standardised(&rewards, &groups, epsilon);
        let log_r: Vec<f64> = log_r.iter().map(|reward| 15.0 * reward).collect();
        let weights = match settings["old"].as_str() {
            Some(old) => {
                let now = summed_log_probs(log_probs.as_tensor(), &lengths).unwrap();
                let old = summed_log_probs(&recorded.input(old), &lengths).unwrap();
                importance_weights(&now, &old, clip.0..=clip.1).unwrap()
            }
            None => vec![1.0; 6],
        };
        let found = weighted_trajectory_balance(
            &Trajectories {
                log_pf: log_probs.as_tensor(),
                lengths: &lengths,
                reference: Some(&reference),
            },
            &Tensor::new(log_r, &Device::Cpu).unwrap(),
            LogZ::PerPrompt(log_z.as_tensor()),
            TrajectoryBalanceOptions {
                reference: relative,
                length_normalised: true,
            },
            Some(&weights),
            Normaliser::Own,
        )
        .unwrap();
        let (loss, expected) = (
            found.loss.to_scalar::<f64>().unwrap(),
            case["loss"].as_f64().unwrap(),
        );
        // The authors divide by lengths + 1e-8.
        assert!(
            (loss / expected - 1.0).abs() < 1e-7,
            "{name}: {loss} for {expected}"
        );
        let gradients = found.loss.backward().unwrap();
        for (var, key) in [(&log_probs, "grad_log_probs"), (&log_z, "grad_log_z")] {
            let found = gradients.get(var).unwrap().flatten_all().unwrap();
            let expected = match case[key][0] {
                Json::Array(_) => tensor(&case[key]).flatten_all().unwrap(),
                _ => Tensor::new(numbers(&case[key]), &Device::Cpu).unwrap(),
            };
            let pairs = found
                .to_vec1::<f64>()
                .unwrap()
                .into_iter()
                .zip(expected.to_vec1::<f64>().unwrap());
            for (found, expected) in pairs {
                assert!(
                    (found - expected).abs() < 1e-6 * expected.abs().max(1.0),
                    "{name} {key}: {found} for {expected}"
                );
            }
        }
    }
    for case in recorded.cases("tba") {
        let name = case["name"].as_str().unwrap();
        if name.starts_with("tba_prime") {
            continue;
        }
        let log_probs = Var::from_tensor(&recorded.input("log_probs")).unwrap();
        let beta = case["settings"]["beta"].as_f64().unwrap();
        let log_r: Vec<f64> = rewards.iter().map(|reward| reward / beta).collect();
        let trajectories = Trajectories {
            log_pf: log_probs.as_tensor(),
            lengths: &lengths,
            reference: Some(&reference),
        };
        let log_r = Tensor::new(log_r, &Device::Cpu).unwrap();
        let found = weighted_trajectory_balance(
            &trajectories,
            &log_r,
            LogZ::Batch(&groups),
            relative,
            None,
            Normaliser::Own,
        )
        .unwrap();
        let (loss, expected) = (
            found.loss.to_scalar::<f64>().unwrap(),
            case["loss"].as_f64().unwrap(),
        );
        assert!(
            (loss / expected - 1.0).abs() < 1e-12,
            "{name}: {loss} for {expected}"
        );
        let gradients = found.loss.backward().unwrap();
        let gradient = gradients.get(&log_probs).unwrap().to_vec2::<f64>().unwrap();
        for (row, expected) in gradient
            .iter()
            .zip(case["grad_log_probs"].as_array().unwrap())
        {
            for (found, expected) in row.iter().zip(numbers(expected)) {
                assert!(
                    (found - expected).abs() < 1e-10 * expected.abs().max(1.0),
                    "{name}: {found} for {expected}"
                );
            }
        }
    }
}

#[test]
fn gradients_of_every_form_are_central_differences() {
    let recorded = Recorded::read();
    let log_probs = recorded.input("log_probs");
    let old = recorded.input("old_log_probs");
    let reference = recorded.input("reference_log_probs");
    let entropies = recorded.input("entropies");
    let lengths = [5; 6];
    let advantages = matrix(&vec![vec![0.7; 5]; 6]);
    for ratio in [
        RatioLevel::Token,
        RatioLevel::Sequence,
        RatioLevel::Completion,
    ] {
        for mean in [MeanOver::Tokens, MeanOver::Completions, MeanOver::Horizon] {
            for estimator in [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3] {
                let options = PolicyGradientOptions {
                    ratio,
                    clip_low: 0.9,
                    clip_high: 9.0,
                    clip_ceiling: None,
                    kl: Some(KlTerm {
                        coefficient: 0.3,
                        estimator,
                        corrected: mean == MeanOver::Tokens,
                    }),
                    entropy_bonus: 0.1,
                    mean,
                    horizon: 7,
                };
                let inputs = [log_probs.clone(), entropies.clone()];
                assert_gradients(&inputs, 1.0, |inputs| {
                    let batch = PolicyGradientBatch {
                        log_probs: &inputs[0],
                        old_log_probs: Some(&old),
                        reference: Some(&reference),
                        advantages: &advantages,
                        importance: None,
                        entropies: Some(&inputs[1]),
                        lengths: &lengths,
                    };
                    policy_gradient(&batch, &options, Normaliser::Own)
                        .unwrap()
                        .loss
                });
            }
        }
    }
}

#[test]
fn what_stands_in_padding_and_behind_a_mask_changes_nothing() {
    let recorded = Recorded::read();
    let settings = serde_json::json!({ "loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28, "beta": 0.04 });
    let lengths = recorded.whole("lengths");
    let poisoned = |name: &str| {
        let mut rows = recorded.input(name).to_vec2::<f64>().unwrap();
        for (row, length) in rows.iter_mut().zip(&lengths) {
            row[*length..].fill(f64::NAN);
        }
        Tensor::new(rows, &Device::Cpu).unwrap()
    };
    let advantages = recorded.advantages("grpo");
    let loss = |input: &dyn Fn(&str) -> Tensor| {
        let batch = PolicyGradientBatch {
            log_probs: &input("log_probs"),
            old_log_probs: Some(&input("old_log_probs")),
            reference: Some(&input("reference_log_probs")),
            advantages: &matrix(&advantages),
            importance: None,
            entropies: None,
            lengths: &lengths,
        };
        policy_gradient(&batch, &options(&settings), Normaliser::Own).unwrap()
    };
    let (clean, dirty) = (loss(&|name| recorded.input(name)), loss(&poisoned));
    let of = |found: &PolicyGradient| found.loss.to_scalar::<f64>().unwrap();
    assert_eq!(of(&clean), of(&dirty));
    assert_eq!(
        (clean.ratio, clean.clip_fraction, clean.kl),
        (dirty.ratio, dirty.clip_fraction, dirty.kl)
    );
}

#[test]
fn a_ratio_at_its_bounds_has_the_whole_gradient() {
    for (clip_low, clip_high, clip_ceiling) in [
        (0.2, 0.2, None),
        (0.0, 0.0, None),
        (0.0, 0.3, None),
        (0.3, 0.0, Some(1.0)),
        (0.2, 0.2, Some(1.0)),
    ] {
        let options = PolicyGradientOptions {
            ratio: RatioLevel::Token,
            clip_low,
            clip_high,
            clip_ceiling,
            kl: None,
            entropy_bonus: 0.0,
            mean: MeanOver::Tokens,
            horizon: 2,
        };
        // Just drawn, every ratio is 1.
        let log_probs = Tensor::new(&[[-1.0f32, -2.0]], &Device::Cpu).unwrap();
        let log_probs = Var::from_tensor(&log_probs).unwrap();
        let advantages = Tensor::new(&[[3.0f32, -5.0]], &Device::Cpu).unwrap();
        let batch = PolicyGradientBatch {
            log_probs: log_probs.as_tensor(),
            old_log_probs: None,
            reference: None,
            advantages: &advantages,
            importance: None,
            entropies: None,
            lengths: &[2],
        };
        let found = policy_gradient(&batch, &options, Normaliser::Total(1.0)).unwrap();
        let gradients = found.loss.backward().unwrap();
        let slopes = gradients.get(log_probs.as_tensor()).unwrap();
        assert_eq!(slopes.to_vec2::<f32>().unwrap(), [[-3.0, 5.0]]);
        assert_eq!(found.clip_fraction, 0.0);
    }
}
