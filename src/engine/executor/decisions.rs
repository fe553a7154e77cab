//! What is decided about a stage once everything that it needs is settled.

use super::Execution;
use super::state::{State, Step};
use crate::engine::event::{Outcome, RunEvent};
use crate::engine::stage::StageError;

impl Execution<'_> {
    /// Decides about a stage, and then about those that this settles the needs of.
    ///
    /// A list and no recursion: chains of stages may be longer than the stack is deep.
    pub(super) fn decide_if_ready(&mut self, stage: usize) {
        let mut open = vec![stage];
        while let Some(stage) = open.pop() {
            if self.decide_one(stage) {
                open.extend(self.pipeline.graph.needed_by(stage).into_iter().rev());
            }
        }
    }

    /// Settles, queues or skips a stage whose needs are all settled; says whether it is settled now.
    pub(super) fn decide_one(&mut self, stage: usize) -> bool {
        if self.states[stage] != State::Waiting {
            return false;
        }
        let needs = self.pipeline.graph.needs(stage);
        let mut broken = None;
        for need in &needs {
            match self.states[*need] {
                State::Settled(Outcome::Cached | Outcome::Done) => {}
                State::Settled(_) => broken = broken.or(Some(*need)),
                _ => return false,
            }
        }
        let name = &self.pipeline.stages[stage].name;
        if let Some(need) = broken {
            let event = RunEvent::StageSkipped {
                stage: name.clone(),
                needs: self.pipeline.stages[need].name.clone(),
            };
            self.emit(event);
            self.step(stage, Step::Skip);
            return true;
        }
        let decided = self.planner.decide(stage, &self.known, &self.plans);
        if self.is_interrupted() {
            // What the plan read may have been read in part.
            return false;
        }
        match decided {
            Ok(mut plan) => {
                if let Some(outputs) = plan.outputs.take() {
                    plan.notes.extend(self.origin(stage));
                    self.known[stage] = Some(outputs);
                    self.folder.uses(plan.fingerprint);
                    let event = RunEvent::StageCached {
                        stage: name.clone(),
                        notes: std::mem::take(&mut plan.notes),
                    };
                    self.emit(event);
                    self.plans[stage] = Some(plan);
                    self.step(stage, Step::Reuse);
                    return true;
                }
                if let Some(error) = plan.obstacle.take() {
                    self.note_failure(stage, &error);
                    self.step(stage, Step::Fail);
                    return true;
                }
                if plan.fingerprint.is_none() && self.planner.was_fetched(stage) {
                    let error = StageError::new("BUG: a digest is open though everything is known");
                    self.note_failure(stage, &error);
                    self.step(stage, Step::Fail);
                    return true;
                }
                let step = if self.asks_for(stage, &plan) {
                    Step::Ask
                } else {
                    Step::Queue
                };
                self.plans[stage] = Some(plan);
                self.step(stage, step);
                false
            }
            Err((_, error)) => {
                self.note_failure(stage, &error);
                self.step(stage, Step::Fail);
                true
            }
        }
    }

    /// Takes the last step of a stage, and decides about those that need it.
    pub(super) fn settle(&mut self, stage: usize, step: Step) {
        self.step(stage, step);
        for next in self.pipeline.graph.needed_by(stage) {
            self.decide_if_ready(next);
        }
    }
}
