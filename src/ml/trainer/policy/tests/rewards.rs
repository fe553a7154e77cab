//! Whose rewards completions get, and how curves tell of them.

use super::*;

/// Rewards that depend on the prompt alone, times a factor.
struct ByPrompt(f64);

impl Rewards for ByPrompt {
    fn of_completions(&self, answers: &[Answer<'_>]) -> Result<Vec<f64>, TrainError> {
        let rewards = answers.iter().map(|answer| self.0 * answer.prompt as f64);
        Ok(rewards.collect())
    }

    fn of_prefixes(
        &self,
        answers: &[Answer<'_>],
        batch: &TokenBatch,
    ) -> Result<Tensor, TrainError> {
        let rewards = self.of_completions(answers)?;
        let rewards = Tensor::new(rewards, &Device::Cpu)?.to_dtype(DType::F32)?;
        let shape = (batch.rows(), batch.time());
        Ok(rewards.unsqueeze(1)?.broadcast_as(shape)?.contiguous()?)
    }

    fn size(&self) -> Option<crate::ml::trainer::ModelSize> {
        None
    }
}

/// Rewards for which there is no memory after some answers.
pub(super) struct Failing {
    pub(super) rewards: Box<Counted>,
    pub(super) left: AtomicUsize,
}

impl Failing {
    fn take(&self) -> Result<(), TrainError> {
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
        match taken {
            Ok(_) => Ok(()),
            Err(_) => Err(candle_core::Error::msg("out of memory").into()),
        }
    }
}

impl Rewards for Failing {
    fn of_completions(&self, answers: &[Answer<'_>]) -> Result<Vec<f64>, TrainError> {
        self.take()?;
        self.rewards.of_completions(answers)
    }

    fn of_prefixes(
        &self,
        answers: &[Answer<'_>],
        batch: &TokenBatch,
    ) -> Result<Tensor, TrainError> {
        self.take()?;
        self.rewards.of_prefixes(answers, batch)
    }

    fn size(&self) -> Option<crate::ml::trainer::ModelSize> {
        None
    }
}

fn twins() -> Vec<PromptCompletions> {
    let twin = PromptCompletions {
        prompt: vec![0, 2],
        completions: vec![row(&[0, 2], &[7, EOS]), row(&[0, 2], &[8, EOS])],
    };
    vec![twin; 4]
}

#[test]
fn prompts_of_the_same_tokens_keep_their_own_rewards() {
    let asynchronous = Asynchronous {
        sync_every: 2,
        prompts: None,
        samples: 2,
        recent: 1.0,
        reward_temperature: None,
        capacity: 8,
    };
    for name in GFLOWNET_OBJECTIVES.iter().map(|kind| kind.name) {
        for asynchronous in [None, Some(asynchronous)] {
            let asks = objective(name).requirements();
            if asks.fresh && asynchronous.is_some() {
                continue;
            }
            let options = PolicyOptions {
                asynchronous,
                prompts_per_step: 4,
                completions_per_prompt: 2,
                updates_per_batch: 1,
                on_policy: if asynchronous.is_some() { 0.0 } else { 1.0 },
                ..options()
            };
            let trainer = trainer_from(
                objective(name),
                options,
                None,
                twins(),
                Box::new(ByPrompt(1.0)),
            );
            let report = run(&mut trainer.unwrap(), 0..1).remove(0);
            // The mean over all four is 1.5; sampling behind learning draws prompts with replacement.
            if asynchronous.is_none() {
                let reward = report.metrics["reward"];
                assert!((reward - 1.5).abs() < 1e-5, "{name}: {reward}");
            } else {
                assert!(report.metrics["reward"] > 0.0, "{name}");
            }
        }
    }
}

#[test]
fn samples_that_are_watched_tell_their_reward_if_asked() {
    for (monitor_reward, expected) in [(true, Some(1.5)), (false, None)] {
        let options = PolicyOptions {
            prompts_per_step: 2,
            reward_scale: 3.0,
            monitor_every: 2,
            monitor_completions: 4,
            monitor_reward,
            ..options()
        };
        let rewards = Box::new(ByPrompt(1.0));
        let objective = objective("trajectory_balance");
        let trainer = trainer_from(objective, options, None, twins(), rewards);
        let reports = run(&mut trainer.unwrap(), 0..2);
        assert_eq!(reports[0].metrics.get("sampled_reward"), None);
        assert_eq!(reports[1].metrics.get("sampled_reward").copied(), expected);
    }
}

#[test]
fn the_curve_has_rewards_as_they_are_given() {
    for name in GFLOWNET_OBJECTIVES.iter().map(|kind| kind.name) {
        let options = PolicyOptions {
            reward_scale: 3.0,
            reward_temperature: Ramp::Line {
                start: 4.0,
                end: 0.5,
                steps: 4,
            },
            ..options()
        };
        let mut trainer = trainer_on(name, options, None, &[]);
        for step in 0..4 {
            let report = run(&mut trainer, step..step + 1).remove(0);
            let held = trainer.held.clone().unwrap();
            let rows = group::rows(&held.groups);
            let good = |row: &&TokenizedCompletion| {
                row.tokens.iter().filter(|token| **token == GOOD).count() as f64
            };
            let mean = rows.iter().map(good).sum::<f64>() / rows.len() as f64;
            let told = report.metrics["reward"];
            assert!(
                (told - mean).abs() < 1e-5 * (1.0 + mean),
                "{name}: {told} for {mean}"
            );
        }
    }
}

#[test]
fn rewards_without_room_in_single_precision_are_errors_wherever_they_are_kept() {
    let replay = PolicyOptions {
        on_policy: 0.5,
        replay: 0.5,
        updates_per_batch: 1,
        ..options()
    };
    let behind = PolicyOptions {
        on_policy: 0.0,
        asynchronous: Some(Asynchronous {
            sync_every: 2,
            prompts: None,
            samples: 4,
            recent: 0.0,
            reward_temperature: Some(1.0),
            capacity: 8,
        }),
        ..options()
    };
    for options in [replay, behind] {
        for factor in [1e38, f64::INFINITY] {
            let rewards = Box::new(ByPrompt(factor));
            let trainer = trainer_from(objective("tba"), options.clone(), None, twins(), rewards);
            let found = trainer.and_then(|mut trainer| {
                trainer.step(0)?;
                trainer.step(1)
            });
            assert!(matches!(found, Err(TrainError::Data(_))), "{factor}");
        }
    }
}
