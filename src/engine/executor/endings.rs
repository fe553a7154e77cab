//! What follows when a worker has ended: its result is settled, or it failed, is tried again, or its input is healed.

use std::time::{Duration, Instant};

use super::running::Ended;
use super::state::{State, Step};
use super::{Execution, Retry, StageFailure};
use crate::engine::artifact::Digest;
use crate::engine::context::Importance;
use crate::engine::event::{RunEvent, WorkerEvent};
use crate::engine::limits::explain_signal;
use crate::engine::plan::Cause;
use crate::engine::stage::StageError;

impl Execution<'_> {
    pub(super) fn worker_ended(&mut self, stage: usize, name: String) {
        let Some(mut worker) = self.workers.remove(&stage) else {
            return;
        };
        let ending = worker.wait();
        self.pool.give_back(&worker.grant);
        // The signal that ended it may have been meant for the whole run.
        self.heed_interrupts();
        match (worker.last.take(), worker.ended()) {
            (
                Some(WorkerEvent::Done {
                    record,
                    elsewhere,
                    other,
                    seconds,
                    peak_memory_bytes: peak,
                }),
                _,
            ) => {
                if other {
                    self.emit(RunEvent::StageNote {
                        stage: name.clone(),
                        importance: Importance::Warning,
                        text: "gave other bytes than its earlier result, which was kept: it is not reproducible here".to_owned(),
                    });
                }
                let declared = self.pipeline.stages[stage].resources.memory;
                if declared > 0 && peak > declared && !elsewhere {
                    let megabytes = |bytes: u64| bytes.div_ceil(1_000_000);
                    self.emit(RunEvent::StageNote {
                        stage: name.clone(),
                        importance: Importance::Warning,
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
                    seconds,
                    peak_memory_bytes: peak,
                    elsewhere,
                });
                if let Some(recomputed) = &mut self.recomputed {
                    // Whoever reads it reads what is recorded.
                    recomputed.records.insert(stage, *record);
                } else {
                    if !elsewhere {
                        self.send_result(stage, &record);
                    }
                    if let Some(plan) = &mut self.plans[stage] {
                        plan.beside = record.class_beside().map(str::to_owned);
                    }
                    self.known[stage] = Some(record.outputs);
                }
                self.settle(stage, Step::Finish);
            }
            // Whatever it said when it was ended from here is the effect of that.
            (_, Some(Ended::TimedOut(seconds))) => {
                let error = StageError::new(format!("ended after its timeout of {seconds} s"));
                self.failed_or_retried(stage, name, error);
            }
            (_, Some(Ended::AtOnce)) => self.interrupted(stage, name),
            (Some(WorkerEvent::Fetched), _) => {
                self.step(stage, Step::Reconsider);
                self.planner.note_fetched(stage);
                self.decide_if_ready(stage);
            }
            (Some(WorkerEvent::Interrupted), _) if self.stopping => self.interrupted(stage, name),
            (Some(WorkerEvent::Interrupted), _) => {
                let error = StageError::new("its worker was asked to stop by somebody else");
                self.failed_or_retried(stage, name, error);
            }
            (Some(WorkerEvent::Damaged { artifact, message }), _) => {
                self.heal(stage, &artifact, &message);
            }
            (Some(WorkerEvent::Failed { message, hint }), _) => {
                self.failed_or_retried(stage, name, StageError::Failed { message, hint });
            }
            // It was asked to stop before it could listen.
            _ if self.stopping => self.interrupted(stage, name),
            _ => {
                let mut error = StageError::new(format!("its worker ended early: {}", ending.said));
                if let Some(hint) = ending.signal.and_then(explain_signal) {
                    error = error.hint(hint);
                }
                if ending.signal == Some(libc::SIGABRT) {
                    error = error.hint("it gave up, as for memory that no machine has: its log says why, and a damaged input file may be the cause");
                }
                self.failed_or_retried(stage, name, error);
            }
        }
    }

    fn interrupted(&mut self, stage: usize, name: String) {
        self.emit(RunEvent::StageInterrupted { stage: name });
        self.step(stage, Step::Interrupt);
    }

    fn failed_or_retried(&mut self, stage: usize, name: String, error: StageError) {
        self.tries[stage] += 1;
        let tries = self.tries[stage];
        if tries <= self.pipeline.stages[stage].retries && !self.stopping {
            let message = match &error {
                StageError::Failed { message, .. } => message.clone(),
                StageError::Interrupted => "interrupted".to_owned(),
            };
            self.emit(RunEvent::StageRetried {
                stage: name,
                next_try: tries + 1,
                message,
            });
            let pause = Duration::from_secs(1 << (tries - 1).min(5));
            let at = Instant::now() + pause;
            self.retries.insert(stage, Retry { at, error });
            self.step(stage, Step::Retry);
        } else {
            self.fail(stage, &error);
        }
    }

    pub(super) fn fail(&mut self, stage: usize, error: &StageError) {
        self.note_failure(stage, error);
        self.settle(stage, Step::Fail);
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
            self.ask_all_to_stop();
        }
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
        self.step(stage, Step::Reconsider);
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
            // Who waits with the old outputs in mind, for resources or for the shared store, has to be decided about again.
            for consumer in self.pipeline.graph.needed_by(producer) {
                if matches!(self.states[consumer], State::Queued | State::Asked) {
                    self.step(consumer, Step::Reconsider);
                    self.queue.retain(|queued| *queued != consumer);
                }
            }
            self.step(producer, Step::Remake);
        }
    }
}
