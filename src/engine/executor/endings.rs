//! What follows when a worker has ended: its result is settled, or it failed, is tried again, or its input is healed.

use std::time::{Duration, Instant};

use super::{Execution, StageFailure, State};
use crate::engine::artifact::Digest;
use crate::engine::event::{Outcome, RunEvent, WorkerEvent};
use crate::engine::plan::Cause;
use crate::engine::stage::StageError;

impl Execution<'_> {
    pub(super) fn worker_ended(&mut self, stage: usize, name: String) {
        let Some(mut worker) = self.workers.remove(&stage) else {
            return;
        };
        let status = worker.wait();
        self.pool.give_back(&worker.grant);
        match worker.last.take() {
            Some(WorkerEvent::Done {
                record,
                elsewhere,
                other,
            }) => {
                if other {
                    self.emit(RunEvent::StageNote {
                        stage: name.clone(),
                        text: "gave other bytes than its earlier result, which was kept: it is not reproducible here".to_owned(),
                    });
                }
                let declared = self.pipeline.stages[stage].resources.memory;
                let peak = record.provenance.peak_memory_bytes;
                if declared > 0 && peak > declared && !elsewhere {
                    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
                    self.emit(RunEvent::StageNote {
                        stage: name.clone(),
                        text: format!(
                            "warning: used {} MB, and declares {} MB: set `resources.memory` to {}MB or more",
                            megabytes(peak),
                            megabytes(declared),
                            megabytes(peak)
                        ),
                    });
                }
                self.emit(RunEvent::StageDone {
                    stage: name,
                    seconds: record.provenance.seconds,
                    peak_memory_bytes: record.provenance.peak_memory_bytes,
                    elsewhere,
                });
                if let Some(recomputed) = &mut self.recomputed {
                    // Whoever reads it reads what is recorded.
                    recomputed.records.insert(stage, *record);
                } else {
                    if let Some(plan) = &mut self.plans[stage] {
                        plan.beside = record.class_beside().map(str::to_owned);
                    }
                    self.known[stage] = Some(record.outputs);
                }
                self.settle(stage, Outcome::Done);
            }
            Some(WorkerEvent::Fetched) => {
                self.states[stage] = State::Waiting;
                self.planner.note_fetched(stage);
                self.decide_if_ready(stage);
            }
            Some(WorkerEvent::Interrupted) if self.stopping => self.interrupted(stage, name),
            Some(WorkerEvent::Interrupted) => {
                let error = StageError::new("its worker was asked to stop by somebody else");
                self.failed_or_retried(stage, name, error);
            }
            Some(WorkerEvent::Damaged { artifact, message }) => {
                self.heal(stage, &artifact, &message);
            }
            Some(WorkerEvent::Failed { message, hint }) => {
                self.failed_or_retried(stage, name, StageError::Failed { message, hint });
            }
            // It was asked to stop before it could listen, or ended at the second request.
            _ if self.stopping && worker.timed_out.is_none() => self.interrupted(stage, name),
            _ => {
                let mut error = StageError::new(match &worker.timed_out {
                    Some(seconds) => format!("ended after its timeout of {seconds} s"),
                    None => format!("its worker ended early: {status}"),
                });
                if status.contains("signal: 9") && worker.timed_out.is_none() {
                    error = error.hint("it was killed; if memory ran out, give it fewer neighbours with `--jobs` or `resources.memory`");
                }
                if status.contains("signal: 6") {
                    error = error.hint("it gave up, as for memory that no machine has: its log says why, and a damaged input file may be the cause");
                }
                self.failed_or_retried(stage, name, error);
            }
        }
    }

    fn interrupted(&mut self, stage: usize, name: String) {
        self.emit(RunEvent::StageInterrupted { stage: name });
        self.settle(stage, Outcome::Interrupted);
    }

    fn failed_or_retried(&mut self, stage: usize, name: String, error: StageError) {
        self.tries[stage] += 1;
        let tries = self.tries[stage];
        if tries <= self.pipeline.stages[stage].retries && !self.stopping {
            let message = match error {
                StageError::Failed { message, .. } => message,
                StageError::Interrupted => "interrupted".to_owned(),
            };
            self.emit(RunEvent::StageRetried {
                stage: name,
                next_try: tries + 1,
                message,
            });
            let pause = Duration::from_secs(1 << (tries - 1).min(5));
            self.not_before.insert(stage, Instant::now() + pause);
            self.states[stage] = State::Queued;
            self.queue.push_back(stage);
        } else {
            self.fail(stage, &error);
        }
    }

    pub(super) fn fail(&mut self, stage: usize, error: &StageError) {
        self.note_failure(stage, error);
        self.settle(stage, Outcome::Failed);
    }

    pub(super) fn note_failure(&mut self, stage: usize, error: &StageError) {
        let (message, hint) = match error {
            StageError::Failed { message, hint } => (message.clone(), hint.clone()),
            StageError::Interrupted => ("interrupted".to_owned(), None),
        };
        let failure = StageFailure {
            stage: self.pipeline.stages[stage].name.clone(),
            message,
            hint,
            log: self.log_path(stage),
        };
        self.emit(RunEvent::StageFailed {
            stage: failure.stage.clone(),
            message: failure.message.clone(),
            hint: failure.hint.clone(),
            log: failure.log.display().to_string(),
        });
        self.failures.push(failure);
        if self.options.fail_fast && !self.stopping {
            self.stopping = true;
            for worker in self.workers.values() {
                worker.ask_to_stop();
            }
        }
        self.states[stage] = State::Settled(Outcome::Failed);
    }

    /// An input turned out to be damaged: its producer runs again, and then the stage that needs it.
    fn heal(&mut self, stage: usize, artifact: &Digest, message: &str) {
        let producers: Vec<usize> = self
            .pipeline
            .graph
            .needs(stage)
            .into_iter()
            .filter(|need| {
                let outputs = self.known[*need].as_ref();
                outputs.is_some_and(|outputs| {
                    outputs.values().any(|output| output.digest == *artifact)
                })
            })
            .collect();
        if self.recomputed.is_some() {
            let error = format!("an input is not what is recorded: {message}");
            self.fail(stage, &StageError::new(error));
            return;
        }
        self.tries[stage] += 1;
        if producers.is_empty() || self.tries[stage] > 3 {
            self.fail(stage, &StageError::new(message));
            return;
        }
        self.states[stage] = State::Waiting;
        for producer in producers {
            self.emit(RunEvent::StageDamaged {
                stage: self.pipeline.stages[producer].name.clone(),
                message: message.to_owned(),
            });
            // Only the planner that re-hashes sees the damage that file times did not show.
            self.known[producer] = None;
            if let Some(plan) = &mut self.plans[producer] {
                // It was cached, and is asked to run with what it was planned with.
                let manifest = || self.planner.manifest(producer, &self.known).0;
                plan.manifest.get_or_insert_with(manifest);
                plan.causes = vec![Cause {
                    stage: self.pipeline.stages[producer].name.clone(),
                    key: message.to_owned(),
                    old: None,
                    new: None,
                }];
            }
            // Who waits for resources with the old outputs in mind has to be decided about again.
            for consumer in self.pipeline.graph.needed_by(producer) {
                if self.states[consumer] == State::Queued {
                    self.states[consumer] = State::Waiting;
                    self.queue.retain(|queued| *queued != consumer);
                }
            }
            if !matches!(self.states[producer], State::Queued | State::Running) {
                self.states[producer] = State::Queued;
                self.queue.push_back(producer);
            }
        }
    }
}
