//! Why a stage failed, in words for people.

use super::diagnostic::shortened;
use super::problem::Problem;
use crate::hint::told;

/// Why a stage failed.
///
/// It converts from every error type, with its chain of causes, so that `?` works in stages.
#[derive(Debug, Clone)]
pub enum StageError {
    /// The stage could not do its work.
    Failed {
        /// What went wrong.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
    /// The stage was asked to stop and did, with a checkpoint if it keeps any.
    Interrupted,
}

impl StageError {
    /// Makes a failure; of a long message it keeps the beginning and the end.
    pub fn new(message: impl Into<String>) -> Self {
        Self::Failed {
            message: shortened(without_backtrace(message.into())),
            hint: None,
        }
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(self, text: impl Into<String>) -> Self {
        match self {
            Self::Failed { message, .. } => Self::Failed {
                message,
                hint: Some(shortened(text.into())),
            },
            Self::Interrupted => Self::Interrupted,
        }
    }
}

/// Takes a backtrace out of a message: where RUST_BACKTRACE is set, some libraries put one behind what they say.
fn without_backtrace(message: String) -> String {
    let is_frame = |line: &&str| {
        let text = line.trim_start();
        let after_number = text.trim_start_matches(|digit: char| digit.is_ascii_digit());
        let is_numbered = after_number.len() < text.len() && after_number.starts_with(": ");
        text.len() < line.len() && (is_numbered || text.starts_with("at "))
    };
    let mut lines = message.lines();
    if !lines.any(|line| is_frame(&line) && line.trim_start().starts_with("0: ")) {
        return message;
    }
    let said: Vec<&str> = message.lines().filter(|line| !is_frame(line)).collect();
    said.join("\n").trim_end().to_owned()
}

impl<E: std::error::Error> From<E> for StageError {
    fn from(error: E) -> Self {
        match told(&error) {
            (message, Some(hint)) => Self::new(message).hint(hint),
            (message, None) => Self::new(message),
        }
    }
}

/// What only shows while a stage runs.
impl From<Problem> for StageError {
    fn from(problem: Problem) -> Self {
        Self::Failed {
            message: problem.message,
            hint: problem.hint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::Source;

    #[test]
    fn messages_carry_no_backtrace() {
        let trace = std::backtrace::Backtrace::force_capture();
        let text = format!("step 3: shapes differ\n{trace}");
        assert!(text.lines().count() > 4, "{text}");
        let StageError::Failed { message, .. } = StageError::new(text) else {
            panic!("not failed");
        };
        assert_eq!(message, "step 3: shapes differ");
        let listed = "two faults:\n  1: one\n  2: other";
        let kept = StageError::new(listed);
        assert!(matches!(kept, StageError::Failed { message, .. } if message == listed));
    }

    #[test]
    fn what_helps_is_kept_apart_from_what_went_wrong() {
        let parsed: Result<Source, _> = "s3://bucket/key".parse();
        let StageError::Failed { message, hint } = parsed.unwrap_err().into() else {
            panic!("not failed");
        };
        assert_eq!(message, "`s3:` is no source: unknown kind of source");
        let forms = "embedded:world, file:PATH, https://..., pypi:... or hf:...";
        assert_eq!(hint.as_deref(), Some(forms));
        let texts_of_others = std::io::Error::other("they say; hint: pay me");
        let StageError::Failed { message, hint } = texts_of_others.into() else {
            panic!("not failed");
        };
        assert_eq!((message.as_str(), hint), ("they say; hint: pay me", None));
    }
}
