//! What can be wrong with the numbers.

use thiserror::Error;

use crate::hint::Hint;

/// Why a statistic cannot be computed.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum StatsError {
    /// Fewer values than the statistic needs.
    #[error("{what} needs at least {needed} values, but there are {found}")]
    TooFew {
        /// The statistic.
        what: &'static str,
        /// The least number of values.
        needed: usize,
        /// The number of values given.
        found: usize,
    },
    /// A value that is infinite or not a number.
    #[error("value {index} of {what} is {value}, expected a finite number")]
    NotFinite {
        /// The values concerned.
        what: &'static str,
        /// Position of the first such value.
        index: usize,
        /// The value.
        value: f64,
    },
    /// Two inputs that must have the same length have not.
    #[error("{what} have {left} and {right} values, expected equal lengths")]
    Lengths {
        /// The inputs concerned.
        what: &'static str,
        /// Length of the first.
        left: usize,
        /// Length of the second.
        right: usize,
    },
    /// An argument outside its range.
    #[error("{what} is {value}, expected {expected}")]
    OutOfRange {
        /// The argument.
        what: &'static str,
        /// Its value.
        value: f64,
        /// The range.
        expected: &'static str,
    },
    /// All values are equal, so that a statistic divided by their spread is undefined.
    #[error("{what} is undefined: all values are equal")]
    NoVariance {
        /// The statistic.
        what: &'static str,
    },
    /// The best of more completions was asked for than there are.
    #[error("{what}@{k} needs {k} completions of each question, there are {n}")]
    MoreThanSampled {
        /// The statistic.
        what: &'static str,
        /// The number asked for.
        k: usize,
        /// The number of completions.
        n: usize,
        /// What to do.
        #[source]
        hint: Hint,
    },
    /// More items were asked for than there are.
    #[error("top {k} of {n} values")]
    TooManyAskedFor {
        /// The number asked for.
        k: usize,
        /// The number of values.
        n: usize,
        /// What to do.
        #[source]
        hint: Hint,
    },
}

impl StatsError {
    /// A statistic of `k` of `n` completions was asked for.
    pub(crate) const fn more_than_sampled(what: &'static str, k: usize, n: usize) -> Self {
        let hint = Hint::new("lower `k`, or raise `samples_per_prompt` of `sample`");
        Self::MoreThanSampled { what, k, n, hint }
    }

    /// The top `k` of `n` values were asked for.
    pub(crate) const fn too_many_asked_for(k: usize, n: usize) -> Self {
        let hint = Hint::new("lower k or draw more samples");
        Self::TooManyAskedFor { k, n, hint }
    }
}

/// Checks that there are `needed` values and that all are finite.
pub(super) fn check(what: &'static str, values: &[f64], needed: usize) -> Result<(), StatsError> {
    if values.len() < needed {
        return Err(StatsError::TooFew {
            what,
            needed,
            found: values.len(),
        });
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(StatsError::NotFinite {
            what,
            index,
            value: values[index],
        }),
        None => Ok(()),
    }
}

/// Checks that two inputs have the same length.
pub(super) fn check_lengths(
    what: &'static str,
    left: usize,
    right: usize,
) -> Result<(), StatsError> {
    if left == right {
        Ok(())
    } else {
        Err(StatsError::Lengths { what, left, right })
    }
}

/// Checks that `level`, the coverage of an interval, lies strictly between 0 and 1.
pub(super) fn check_level(level: f64) -> Result<(), StatsError> {
    if level > 0.0 && level < 1.0 {
        Ok(())
    } else {
        Err(StatsError::OutOfRange {
            what: "interval level",
            value: level,
            expected: "a number between 0 and 1, such as 0.95",
        })
    }
}
