//! Whether the shared store answers: one that does not is left alone for a while.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::store::RemoteError;

/// Why something did not come from the shared store, or did not go there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It was not asked, since it did not answer before or takes nothing.
    NotAsked,
    /// It does not answer, and is left alone from now on.
    Away(String),
    /// It takes nothing, and is sent nothing any more.
    TakesNothing(String),
    /// The run is to stop.
    Stopped,
    /// This one thing.
    This(String),
}

/// What is known of it.
#[derive(Default)]
pub(super) struct Reach(Mutex<State>);

#[derive(Default)]
struct State {
    has_answered: bool,
    /// Failures in a row, and when the last of them began.
    failures: u32,
    failed: Option<Instant>,
    away_since: Option<Instant>,
    takes_nothing: bool,
}

/// After so many failures in a row it is left alone; before the first answer, after one.
const MOST_FAILURES: u32 = 3;
/// For so long; then it is asked once more.
const PAUSE: Duration = Duration::from_mins(5);

impl Reach {
    fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether it is left alone now.
    pub(super) fn is_away(&self) -> bool {
        self.is_away_at(Instant::now())
    }

    fn is_away_at(&self, now: Instant) -> bool {
        self.with(|state| {
            let since = state.away_since;
            if since.is_some_and(|since| now.duration_since(since) >= PAUSE) {
                // One more failure, and it is left alone again.
                state.away_since = None;
                state.failures = MOST_FAILURES - 1;
            }
            state.away_since.is_some()
        })
    }

    /// Whether something may be sent there now.
    pub(super) fn may_send(&self) -> bool {
        !self.is_away() && !self.with(|state| state.takes_nothing)
    }

    /// Notes how something went that began at a time, and says what it means.
    pub(super) fn noted<T>(
        &self,
        began: Instant,
        is_sent: bool,
        answer: Result<T, RemoteError>,
        said: impl Fn(&RemoteError) -> String,
    ) -> Result<T, Trouble> {
        let error = match answer {
            Ok(answer) => {
                self.with(|state| (state.has_answered, state.failures) = (true, 0));
                return Ok(answer);
            }
            Err(error) => error,
        };
        let text = said(&error);
        if error.is_of_this_machine() {
            return Err(Trouble::This(text));
        }
        if error.is_refusal() && is_sent {
            // It may be read all the same.
            let before = self.with(|state| std::mem::replace(&mut state.takes_nothing, true));
            let refused = Trouble::TakesNothing(text);
            return Err(if before { Trouble::NotAsked } else { refused });
        }
        if !error.is_about_reach() && !error.is_refusal() {
            self.with(|state| (state.has_answered, state.failures) = (true, 0));
            return Err(Trouble::This(text));
        }
        Err(self.with(|state| {
            if state.away_since.is_some() {
                return Trouble::NotAsked;
            }
            // Of many that were under way at once, all fail at once.
            if state.failed.is_none_or(|failed| began >= failed) {
                state.failures += 1;
                state.failed = Some(Instant::now());
            }
            let most = if state.has_answered { MOST_FAILURES } else { 1 };
            if state.failures >= most {
                state.away_since = Some(Instant::now());
                Trouble::Away(text)
            } else {
                Trouble::This(text)
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::store::BucketError;

    fn failed(reach: &Reach, began: Instant) -> Trouble {
        let error = RemoteError::Bucket(BucketError::Failed("no answer".to_owned()));
        reach
            .noted::<()>(began, false, Err(error), ToString::to_string)
            .unwrap_err()
    }

    #[test]
    fn one_that_never_answered_is_left_alone_at_once_and_asked_again_later() {
        let reach = Reach::default();
        let begun = Instant::now();
        assert!(!reach.is_away());
        assert_eq!(failed(&reach, begun), Trouble::Away("no answer".to_owned()));
        assert_eq!(failed(&reach, begun), Trouble::NotAsked);
        assert!(reach.is_away() && !reach.may_send());
        assert!(!reach.is_away_at(begun + PAUSE + Duration::from_secs(1)));
        assert!(matches!(failed(&reach, Instant::now()), Trouble::Away(_)));
    }

    #[test]
    fn one_that_answers_is_left_alone_after_failures_that_follow_each_other() {
        let reach = Reach::default();
        let ok = |reach: &Reach| {
            let answer = reach.noted(Instant::now(), false, Ok(()), ToString::to_string);
            assert_eq!(answer, Ok(()));
        };
        ok(&reach);
        let begun = Instant::now();
        // Sixteen that were under way when it failed count once.
        for _ in 0..16 {
            assert!(matches!(failed(&reach, begun), Trouble::This(_)));
        }
        assert!(matches!(failed(&reach, Instant::now()), Trouble::This(_)));
        ok(&reach);
        for _ in 0..2 {
            assert!(matches!(failed(&reach, Instant::now()), Trouble::This(_)));
        }
        assert!(matches!(failed(&reach, Instant::now()), Trouble::Away(_)));
    }

    #[test]
    fn one_that_takes_nothing_is_still_asked() {
        let reach = Reach::default();
        let refused = |is_sent| {
            let error = RemoteError::Bucket(BucketError::Denied("403".to_owned()));
            reach
                .noted::<()>(Instant::now(), is_sent, Err(error), ToString::to_string)
                .unwrap_err()
        };
        assert_eq!(
            refused(true),
            Trouble::TakesNothing("it refuses: 403".to_owned())
        );
        assert_eq!(refused(true), Trouble::NotAsked);
        assert!(!reach.is_away() && !reach.may_send());
        // Of a result that is damaged there all is told still.
        let damaged = RemoteError::Damaged("x is damaged".to_owned());
        let told = reach.noted::<()>(Instant::now(), true, Err(damaged), ToString::to_string);
        assert_eq!(told, Err(Trouble::This("x is damaged".to_owned())));
        assert_eq!(refused(false), Trouble::This("it refuses: 403".to_owned()));
    }
}
