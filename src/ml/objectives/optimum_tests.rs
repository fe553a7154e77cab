//! Every objective, trained to its optimum on an enumerable tree, samples its own target.

use candle_core::{DType, Device, Tensor, Var};

use super::advantage::{KlPenalty, generalised_advantages, pad, penalised_rewards, whiten};
use super::forward_looking::{ForwardLookingOptions, StateFlows, forward_looking};
use super::gflownet_dpo::{PreferenceReward, ReferenceReward, gflownet_dpo};
use super::ppo::{PpoBatch, PpoOptions, ppo};
use super::residual::{Steps, transition_residuals};
use super::terminable::modified_sub_trajectory_balance;
use super::trajectory_balance::{LogZ, initial_log_z, trajectory_balance};
use super::tree::{Batch, Tree, minimise, total_variation};
use super::{Normaliser, ObjectiveError, ReferenceTerms, Windows, prefix_mask, scalar};
use crate::random::Stream;

const TIME: usize = Tree::HORIZON;
/// Total variation that counts as "samples its target".
const NEAR: f64 = 0.02;
/// Total variation that counts as "samples something else".
const FAR: f64 = 0.1;
/// Loss that counts as zero, in nats squared.
const ZERO: f64 = 1e-4;

const PLAIN: ReferenceTerms = ReferenceTerms {
    kl_beta: 0.0,
    in_target: false,
};
const POSTERIOR: ReferenceTerms = ReferenceTerms {
    kl_beta: 0.0,
    in_target: true,
};
const PENALISED: ReferenceTerms = ReferenceTerms {
    kl_beta: 0.5,
    in_target: false,
};

/// The target of an objective with these terms.
fn target(tree: &Tree, terms: ReferenceTerms) -> Vec<Vec<f64>> {
    let power = 1.0 + terms.kl_beta;
    let reference = terms.kl_beta + f64::from(u8::from(terms.in_target));
    tree.target(1.0 / power, reference / power)
}

#[derive(Clone, Copy)]
enum Z {
    Scalar,
    PerPrompt,
    Batch,
}

fn tb_loss(batch: &Batch, policy: &Tensor, z: Z, table: &Tensor, terms: ReferenceTerms) -> Tensor {
    let log_pf = batch.log_pf(policy);
    let of_rows = batch.of_prompts(table);
    let first = table.narrow(0, 0, 1).unwrap();
    let log_z = match z {
        Z::Scalar => LogZ::Scalar(&first),
        Z::PerPrompt => LogZ::PerPrompt(&of_rows),
        Z::Batch => LogZ::Batch(&batch.prompt_of),
    };
    let trajectories = batch.trajectories(&log_pf);
    trajectory_balance(&trajectories, &batch.log_r, log_z, terms, Normaliser::Own)
        .unwrap()
        .loss
}

/// Trains on all completions of all prompts; returns the policy's distribution and the last loss.
fn train_tb(tree: &Tree, z: Z, terms: ReferenceTerms, dtype: DType) -> (Vec<Vec<f64>>, f64) {
    let batch = tree.batch(tree.everything(), TIME, dtype);
    let policy = tree.policy(2, dtype);
    let table = Var::zeros(Tree::PROMPTS, dtype, &Device::Cpu).unwrap();
    let vars: &[&Var] = match z {
        Z::Batch => &[&policy],
        _ => &[&policy, &table],
    };
    let loss = minimise(vars, 600, 0.1, |_| {
        tb_loss(&batch, &policy, z, &table, terms)
    });
    (tree.distribution(&policy), loss)
}

#[test]
fn trajectory_balance_samples_its_target() {
    let tree = Tree::new(1);
    for terms in [PLAIN, POSTERIOR, PENALISED] {
        for z in [Z::PerPrompt, Z::Batch] {
            let (found, loss) = train_tb(&tree, z, terms, DType::F64);
            let distance = total_variation(&found, &target(&tree, terms));
            assert!(distance <= NEAR, "{terms:?}: {distance}");
            assert!(loss <= ZERO, "{terms:?}: loss {loss}");
        }
    }
    // The targets are far from each other, so none of the above passes by chance.
    let plain = target(&tree, PLAIN);
    assert!(total_variation(&plain, &target(&tree, POSTERIOR)) > FAR);
    assert!(total_variation(&plain, &target(&tree, PENALISED)) > FAR);
    assert!(total_variation(&target(&tree, POSTERIOR), &target(&tree, PENALISED)) > FAR);
}

#[test]
fn trajectory_balance_samples_its_target_in_f32() {
    let tree = Tree::new(1);
    let (found, _) = train_tb(&tree, Z::PerPrompt, PLAIN, DType::F32);
    let distance = total_variation(&found, &target(&tree, PLAIN));
    assert!(distance <= NEAR, "{distance}");
}

#[test]
fn one_log_z_for_prompts_of_different_z_does_not_sample_the_target() {
    let tree = Tree::new(1);
    let log_z = tree.log_z(0.0);
    assert!(
        log_z[1] - log_z[0] > 1.0 && log_z[0] - log_z[2] > 1.0,
        "{log_z:?}"
    );
    let (found, loss) = train_tb(&tree, Z::Scalar, PLAIN, DType::F64);
    let distance = total_variation(&found, &target(&tree, PLAIN));
    assert!(distance > FAR, "{distance}");
    assert!(loss > 0.5, "loss {loss}");
}

#[test]
fn trajectory_balance_samples_its_target_on_policy() {
    let tree = Tree::new(1);
    let stream = Stream::new(5, "on-policy");
    for (z, terms) in [
        (Z::PerPrompt, PLAIN),
        (Z::PerPrompt, POSTERIOR),
        (Z::Batch, PLAIN),
        (Z::Batch, POSTERIOR),
    ] {
        let policy = tree.policy(2, DType::F64);
        let table = Var::zeros(Tree::PROMPTS, DType::F64, &Device::Cpu).unwrap();
        let vars: &[&Var] = match z {
            Z::Batch => &[&policy],
            _ => &[&policy, &table],
        };
        minimise(vars, 800, 0.1, |step| {
            let rows = tree.sample(&policy, 16, &mut stream.at(step as u64));
            let batch = tree.batch(rows, TIME, DType::F64);
            tb_loss(&batch, &policy, z, &table, terms)
        });
        let distance = total_variation(&tree.distribution(&policy), &target(&tree, terms));
        assert!(distance <= NEAR, "{terms:?}: {distance}");
    }
}

#[test]
fn trained_log_z_is_the_partition_function() {
    let tree = Tree::new(1);
    let batch = tree.batch(tree.everything(), TIME, DType::F64);
    let policy = tree.policy(2, DType::F64);
    let table = Var::zeros(Tree::PROMPTS, DType::F64, &Device::Cpu).unwrap();
    minimise(&[&policy, &table], 600, 0.1, |_| {
        tb_loss(&batch, &policy, Z::PerPrompt, &table, POSTERIOR)
    });
    let found = table.to_vec1::<f64>().unwrap();
    for (found, exact) in found.iter().zip(tree.log_z(1.0)) {
        assert!((found - exact).abs() < 0.02, "{found} for {exact}");
    }
    // At the optimum every row agrees on the data-driven start.
    let log_pf = batch.log_pf(&policy);
    let mean: f64 = tree.log_z(1.0).iter().sum::<f64>() / Tree::PROMPTS as f64;
    let start = initial_log_z(&batch.trajectories(&log_pf), &batch.log_r, POSTERIOR).unwrap();
    assert!((start - mean).abs() < 0.02, "{start} for {mean}");
}

fn fl_loss(batch: &Batch, policy: &Tensor, flows: &Tensor, terms: ReferenceTerms) -> Tensor {
    let options = ForwardLookingOptions {
        reference: terms,
        least_completions: 1,
        ..ForwardLookingOptions::default()
    };
    flow_loss(batch, policy, flows, options)
}

fn flow_loss(
    batch: &Batch,
    policy: &Tensor,
    flows: &Tensor,
    options: ForwardLookingOptions,
) -> Tensor {
    let log_pf = batch.log_pf(policy);
    let log_flow = batch.of_states(flows);
    let states = StateFlows {
        log_flow: &log_flow,
        log_r: &batch.prefix_log_r,
    };
    let trajectories = batch.trajectories(&log_pf);
    forward_looking(
        &trajectories,
        states,
        options,
        batch.branching(),
        Normaliser::Own,
    )
    .unwrap()
    .loss
}

#[test]
fn forward_looking_samples_its_target() {
    let tree = Tree::new(1);
    for terms in [PLAIN, POSTERIOR, PENALISED] {
        let batch = tree.batch(tree.everything(), TIME, DType::F64);
        let (policy, flows) = (tree.policy(2, DType::F64), tree.state_table(DType::F64));
        let loss = minimise(&[&policy, &flows], 1000, 0.1, |_| {
            fl_loss(&batch, &policy, &flows, terms)
        });
        let distance = total_variation(&tree.distribution(&policy), &target(&tree, terms));
        assert!(distance <= NEAR, "{terms:?}: {distance}");
        assert!(loss <= ZERO, "{terms:?}: loss {loss}");
    }
}

#[test]
fn forward_looking_samples_its_target_on_policy() {
    let tree = Tree::new(1);
    let stream = Stream::new(5, "on-policy");
    let (policy, flows) = (tree.policy(2, DType::F64), tree.state_table(DType::F64));
    minimise(&[&policy, &flows], 1000, 0.1, |step| {
        let rows = tree.sample(&policy, 16, &mut stream.at(step as u64));
        let batch = tree.batch(rows, TIME, DType::F64);
        fl_loss(&batch, &policy, &flows, POSTERIOR)
    });
    let distance = total_variation(&tree.distribution(&policy), &target(&tree, POSTERIOR));
    assert!(distance <= NEAR, "{distance}");
}

#[test]
fn forward_looking_estimates_log_z_at_the_prompt() {
    let tree = Tree::new(1);
    let batch = tree.batch(tree.everything(), TIME, DType::F64);
    let (policy, flows) = (tree.policy(2, DType::F64), tree.state_table(DType::F64));
    minimise(&[&policy, &flows], 1000, 0.1, |_| {
        fl_loss(&batch, &policy, &flows, PLAIN)
    });
    let log_pf = batch.log_pf(&policy);
    let log_flow = batch.of_states(&flows);
    let states = StateFlows {
        log_flow: &log_flow,
        log_r: &batch.prefix_log_r,
    };
    let result = forward_looking(
        &batch.trajectories(&log_pf),
        states,
        ForwardLookingOptions::default(),
        batch.branching(),
        Normaliser::Own,
    )
    .unwrap();
    let mean: f64 = tree.log_z(0.0).iter().sum::<f64>() / Tree::PROMPTS as f64;
    assert!(
        (result.log_z - mean).abs() < 0.02,
        "{} for {mean}",
        result.log_z
    );
}

/// The forward-looking loss with a trained flow at the terminals: what must not be done.
fn unpinned_loss(batch: &Batch, policy: &Tensor, flows: &Tensor) -> Tensor {
    let log_pf = batch.log_pf(policy);
    let steps = Steps::new(&batch.trajectories(&log_pf), PLAIN).unwrap();
    let log_state_flow = (batch.of_states(flows) + &batch.prefix_log_r).unwrap();
    let residuals = transition_residuals(&steps, &log_state_flow).unwrap();
    (residuals.sqr().unwrap().sum_all().unwrap() / batch.rows.len() as f64).unwrap()
}

const ALL_WINDOWS: [Windows; 3] = [
    Windows::Transitions,
    Windows::WithinTrajectory { lambda: 0.9 },
    Windows::AcrossBatch { lambda: 1.0 },
];

#[test]
fn detailed_and_sub_trajectory_balance_sample_their_target() {
    let tree = Tree::new(1);
    let batch = tree.batch(tree.everything(), TIME, DType::F64);
    for (windows, energies, terms) in [
        (ALL_WINDOWS[0], false, PLAIN),
        (ALL_WINDOWS[1], false, POSTERIOR),
        (ALL_WINDOWS[2], false, PLAIN),
        (ALL_WINDOWS[1], true, PLAIN),
    ] {
        let options = ForwardLookingOptions {
            reference: terms,
            energies,
            windows,
            least_completions: 1,
        };
        let (policy, flows) = (tree.policy(2, DType::F64), tree.state_table(DType::F64));
        minimise(&[&policy, &flows], 1500, 0.1, |_| {
            flow_loss(&batch, &policy, &flows, options)
        });
        let distance = total_variation(&tree.distribution(&policy), &target(&tree, terms));
        assert!(distance <= NEAR, "{windows:?}, {energies}: {distance}");
    }
}

#[test]
fn modified_sub_trajectory_balance_samples_its_target() {
    let tree = Tree::new(1);
    let batch = tree.batch(tree.everything(), TIME, DType::F64);
    for windows in ALL_WINDOWS {
        let policy = tree.policy(2, DType::F64);
        minimise(&[&policy], 1500, 0.1, |_| {
            let (log_pf, log_stop) = (batch.log_pf(&policy), batch.log_stop(&policy));
            let trajectories = batch.terminable(&log_pf, &log_stop);
            let log_r = &batch.stop_log_r;
            modified_sub_trajectory_balance(&trajectories, log_r, windows, Normaliser::Own)
                .unwrap()
                .loss
        });
        let distance = total_variation(&tree.distribution(&policy), &target(&tree, PLAIN));
        assert!(distance <= NEAR, "{windows:?}: {distance}");
    }
}

/// `GFlowNet`-DPO samples the reference, tilted by the preferences, where these are consistent: only completions
/// that the horizon ended are rejected, since no other completion goes through their last states.
#[test]
fn gflownet_dpo_samples_the_reference_tilted_by_preferences() {
    let tree = Tree::new(1);
    let batch = tree.batch(tree.everything(), TIME, DType::F64);
    let preferred: Vec<bool> = (batch.forced.iter().enumerate())
        .map(|(row, forced)| !forced || row % 2 == 0)
        .collect();
    let preference = PreferenceReward {
        alpha: 0.2,
        rejected: -8.0,
    };
    let policy = tree.policy(2, DType::F64);
    minimise(&[&policy], 1500, 0.1, |_| {
        let (log_pf, log_stop) = (batch.log_pf(&policy), batch.log_stop(&policy));
        gflownet_dpo(
            &batch.terminable(&log_pf, &log_stop),
            ReferenceReward {
                log_pf: &batch.reference,
                log_stop: &batch.reference_stop,
            },
            &preferred,
            preference,
            Windows::Transitions,
            Normaliser::Own,
        )
        .unwrap()
        .loss
    });
    let mut tilted = tree.target(0.0, 1.0);
    for (row, (prompt, completion)) in batch.rows.iter().enumerate() {
        if !preferred[row] {
            tilted[*prompt][*completion] *= (preference.alpha * preference.rejected).exp();
        }
    }
    for row in &mut tilted {
        let sum: f64 = row.iter().sum();
        row.iter_mut().for_each(|value| *value /= sum);
    }
    let found = tree.distribution(&policy);
    let distance = total_variation(&found, &tilted);
    assert!(distance <= NEAR, "{distance}");
    assert!(total_variation(&tilted, &tree.target(0.0, 1.0)) > 2.0 * NEAR);
}

/// The smallest loss that the flows can reach for a fixed, wrong policy.
fn flows_alone(rows: Vec<(usize, usize)>, loss: fn(&Batch, &Tensor, &Tensor) -> Tensor) -> f64 {
    let tree = Tree::new(1);
    let policy = tree.policy(2, DType::F64);
    let distance = total_variation(&tree.distribution(&policy), &target(&tree, PLAIN));
    assert!(distance > 0.3, "the policy is not wrong: {distance}");
    let batch = tree.batch(rows, TIME, DType::F64);
    let (policy, flows) = (policy.as_tensor(), tree.state_table(DType::F64));
    minimise(&[&flows], 1500, 0.3, |_| loss(&batch, policy, &flows))
}

fn pinned_loss(batch: &Batch, policy: &Tensor, flows: &Tensor) -> Tensor {
    fl_loss(batch, policy, flows, PLAIN)
}

#[test]
fn a_wrong_policy_cannot_reach_zero_with_pinned_terminals_and_full_support() {
    let loss = flows_alone(Tree::new(1).everything(), pinned_loss);
    assert!(loss > 0.5, "{loss}");
}

#[test]
fn a_wrong_policy_reaches_zero_with_free_terminals() {
    let loss = flows_alone(Tree::new(1).everything(), unpinned_loss);
    assert!(loss < ZERO, "{loss}");
}

#[test]
fn a_wrong_policy_reaches_zero_with_one_completion_of_a_prompt_even_when_pinned() {
    let tree = Tree::new(1);
    let one = flows_alone(tree.longest(1), pinned_loss);
    assert!(one < ZERO, "{one}");
    // K completions leave K - 1 constraints: a second one is felt.
    let two = flows_alone(tree.longest(2), pinned_loss);
    assert!(two > 0.01, "{two}");
}

#[test]
fn forward_looking_refuses_prompts_with_one_completion_unless_told() {
    let tree = Tree::new(1);
    let batch = tree.batch(tree.longest(1), TIME, DType::F64);
    let log_pf = batch.log_pf(&tree.policy(2, DType::F64));
    let log_flow = batch.of_states(&tree.state_table(DType::F64));
    let states = StateFlows {
        log_flow: &log_flow,
        log_r: &batch.prefix_log_r,
    };
    let with = |least_completions| {
        let options = ForwardLookingOptions {
            least_completions,
            ..ForwardLookingOptions::default()
        };
        let trajectories = batch.trajectories(&log_pf);
        forward_looking(
            &trajectories,
            states,
            options,
            batch.branching(),
            Normaliser::Own,
        )
    };
    let error = with(2).unwrap_err().to_string();
    assert!(error.starts_with("a prompt has 1 completion(s)"), "{error}");
    assert!(scalar(&with(1).unwrap().loss).unwrap() > 0.0);
}

#[test]
fn a_batch_estimate_of_log_z_refuses_single_completions() {
    let tree = Tree::new(1);
    let batch = tree.batch(vec![(0, 1), (0, 2), (1, 1)], TIME, DType::F64);
    let log_pf = batch.log_pf(&tree.policy(2, DType::F64));
    let error = trajectory_balance(
        &batch.trajectories(&log_pf),
        &batch.log_r,
        LogZ::Batch(&batch.prompt_of),
        PLAIN,
        Normaliser::Own,
    )
    .unwrap_err();
    assert!(matches!(error, ObjectiveError::Branching { .. }), "{error}");
}

#[test]
fn ppo_raises_the_mean_reward() {
    let tree = Tree::new(1);
    let (policy, values) = (tree.policy(2, DType::F64), tree.state_table(DType::F64));
    let before = tree.expected_log_r(&policy);
    let stream = Stream::new(6, "ppo");
    for iteration in 0..40 {
        let rows = tree.sample(&policy, 16, &mut stream.at(iteration));
        let batch = tree.batch(rows, TIME, DType::F64);
        let old_log_probs = batch.log_pf(&policy).detach();
        let old_values = batch
            .of_states(&values)
            .narrow(1, 0, TIME)
            .unwrap()
            .detach();
        let (advantages, returns) = ppo_targets(&batch, &old_log_probs, &old_values);
        let mask = prefix_mask(&batch.lengths, TIME, &Device::Cpu).unwrap();
        minimise(&[&policy, &values], 4, 0.05, |_| {
            let log_probs = batch.log_pf(&policy);
            let values = batch.of_states(&values).narrow(1, 0, TIME).unwrap();
            let inputs = PpoBatch {
                log_probs: &log_probs,
                old_log_probs: &old_log_probs,
                values: &values,
                old_values: &old_values,
                advantages: &advantages,
                returns: &returns,
                mask: &mask,
            };
            let result = ppo(&inputs, PpoOptions::default(), Normaliser::Own).unwrap();
            assert!(!result.skipped);
            result.loss
        });
    }
    let after = tree.expected_log_r(&policy);
    let best = tree.best_log_r();
    assert!(
        after - before > 0.5 * (best - before),
        "{before} -> {after}, best {best}"
    );
}

/// Whitened advantages and returns of a batch, with a KL penalty of 0.05.
fn ppo_targets(batch: &Batch, log_probs: &Tensor, values: &Tensor) -> (Tensor, Tensor) {
    let log_probs = log_probs.to_vec2::<f64>().unwrap();
    let values = values.to_vec2::<f64>().unwrap();
    let reference = batch.reference.to_vec2::<f64>().unwrap();
    let scores = batch.log_r.to_vec1::<f64>().unwrap();
    let (mut advantages, mut returns) = (Vec::new(), Vec::new());
    for (row, length) in batch.lengths.iter().enumerate() {
        let (log_probs, reference) = (&log_probs[row][..*length], &reference[row][..*length]);
        let penalty = KlPenalty::Kl;
        let rewards = penalised_rewards(log_probs, reference, scores[row], 0.05, penalty).unwrap();
        let found = generalised_advantages(&rewards, &values[row][..*length], 1.0, 0.95).unwrap();
        advantages.push(found.advantages);
        returns.push(found.returns);
    }
    whiten(&mut advantages).unwrap();
    let tensor = |rows: &[Vec<f64>]| pad(rows, TIME, DType::F64, &Device::Cpu).unwrap();
    (tensor(&advantages), tensor(&returns))
}
