//! How far a stage is, and every way from one state to another.

use crate::engine::event::Outcome;

/// How far a stage is in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// The run does not need it.
    Unwanted,
    /// Needs stages that are not settled, or waits to be decided about.
    Waiting,
    /// It would run, and is looked for in the shared store first.
    Asked,
    /// Waits for resources, or for the time of its next try.
    Queued,
    /// Its worker runs.
    Running,
    /// It ended.
    Settled(Outcome),
}

/// What happens to a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Something that it needs has no result.
    Skip,
    /// A stored result is used.
    Reuse,
    /// It has to run unless the shared store has its result.
    Ask,
    /// It has to run.
    Queue,
    /// Its worker starts.
    Start,
    /// What it was decided about is not so any more: a source or its result was fetched, or an input is made again.
    Reconsider,
    /// It failed, and is tried again.
    Retry,
    /// Its worker is done.
    Finish,
    /// It cannot run, or its worker failed.
    Fail,
    /// Its worker was asked to stop and did.
    Interrupt,
    /// Its result turned out to be damaged.
    Remake,
}

impl State {
    /// Returns the state after a step; `None` if the step cannot happen in this state.
    #[expect(
        clippy::match_same_arms,
        reason = "each step has a line of its own, in the order of a stage's life"
    )]
    pub(super) fn after(self, step: Step) -> Option<Self> {
        use Outcome::{Cached, Done, Failed, Interrupted, Skipped};
        use State::{Asked, Queued, Running, Settled, Unwanted, Waiting};
        Some(match (self, step) {
            (Waiting, Step::Skip) => Settled(Skipped),
            (Waiting, Step::Reuse) => Settled(Cached),
            (Waiting, Step::Ask) => Asked,
            // What is computed anew is queued whether or not anything needs it.
            (Waiting | Asked | Unwanted, Step::Queue) => Queued,
            (Queued, Step::Start) => Running,
            (Asked | Queued | Running, Step::Reconsider) => Waiting,
            (Running, Step::Retry) => Queued,
            (Running, Step::Finish) => Settled(Done),
            (Waiting | Queued | Running, Step::Fail) => Settled(Failed),
            (Running, Step::Interrupt) => Settled(Interrupted),
            (Settled(Cached | Done), Step::Remake) => Queued,
            // Another consumer has found the damage before.
            (Queued | Running, Step::Remake) => self,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [State; 10] = [
        State::Unwanted,
        State::Waiting,
        State::Asked,
        State::Queued,
        State::Running,
        State::Settled(Outcome::Cached),
        State::Settled(Outcome::Done),
        State::Settled(Outcome::Failed),
        State::Settled(Outcome::Skipped),
        State::Settled(Outcome::Interrupted),
    ];

    /// One letter for each of `STATES`.
    const LETTERS: &str = "uwaqrCDFSI";

    #[test]
    fn every_step_from_every_state_is_taken_or_refused() {
        // Behind each step, for each of `STATES`, the state that it leads to.
        for (step, expected) in [
            (Step::Skip, "-S--------"),
            (Step::Reuse, "-C--------"),
            (Step::Ask, "-a--------"),
            (Step::Queue, "qqq-------"),
            (Step::Start, "---r------"),
            (Step::Reconsider, "--www-----"),
            (Step::Retry, "----q-----"),
            (Step::Finish, "----D-----"),
            (Step::Fail, "-F-FF-----"),
            (Step::Interrupt, "----I-----"),
            (Step::Remake, "---qrqq---"),
        ] {
            let found = STATES.map(|state| {
                let next = state.after(step);
                let at = next.and_then(|next| STATES.iter().position(|state| *state == next));
                at.map_or("-", |at| &LETTERS[at..=at])
            });
            assert_eq!(found.concat(), expected, "{step:?}");
        }
    }

    #[test]
    fn what_was_skipped_failed_or_interrupted_stays_so() {
        for end in [Outcome::Failed, Outcome::Skipped, Outcome::Interrupted] {
            for step in [Step::Queue, Step::Start, Step::Retry, Step::Remake] {
                assert_eq!(State::Settled(end).after(step), None);
            }
        }
    }
}
