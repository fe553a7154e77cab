//! A param that cannot be.

use super::diagnostic::{Path, shortened};

/// A param that has the right type but not a possible value.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Where in the params.
    pub path: Path,
    /// Whether the key itself is meant.
    pub at_key: bool,
    /// What was found and what was expected.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Problem {
    /// Makes a problem with the value of a top-level param.
    pub fn new(key: &str, message: impl Into<String>) -> Self {
        Self::at(Path::of(key.split('.')), message)
    }

    /// Makes a problem with the value at a path.
    pub fn at(path: Path, message: impl Into<String>) -> Self {
        Self {
            path,
            at_key: false,
            message: shortened(message.into()),
            hint: None,
        }
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(shortened(hint.into()));
        self
    }
}
