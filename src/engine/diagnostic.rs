//! What is wrong with a pipeline, where, and what to do about it.

use std::fmt;
use std::sync::Arc;

use crate::excerpt::{MESSAGE, NAME, excerpt, listed};

/// Diagnostics that people are shown; nobody reads more, so that no more need a hint that takes a search.
pub const SHOWN: usize = 100;

/// One step into the pipeline document.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Segment {
    /// A key of a map; shared, because every stage that is read makes many paths and needs few.
    Key(Arc<str>),
    /// A position in a list.
    Index(usize),
}

/// A place in the pipeline document, such as `stages.sft.params.lr`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Path(pub Vec<Segment>);

impl Path {
    /// Makes a path of keys.
    pub fn of<'a>(keys: impl IntoIterator<Item = &'a str>) -> Self {
        Self(
            keys.into_iter()
                .map(|key| Segment::Key(key.into()))
                .collect(),
        )
    }

    /// Returns the path of a key below this one.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        self.continued(Segment::Key(key.into()))
    }

    /// Returns the path of a list item below this one.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.continued(Segment::Index(index))
    }

    fn continued(&self, segment: Segment) -> Self {
        let mut segments = Vec::with_capacity(self.0.len() + 1);
        segments.extend_from_slice(&self.0);
        segments.push(segment);
        Self(segments)
    }

    /// Returns this path continued by `rest`.
    #[must_use]
    pub fn join(&self, rest: &Path) -> Self {
        Self(self.0.iter().chain(&rest.0).cloned().collect())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if position == 0 => write!(f, "{key}")?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// How grave a diagnostic is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The pipeline cannot run.
    Error,
    /// The pipeline can run; something in it has no effect.
    Warning,
}

/// Whether a diagnostic points at a key or at its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The key itself (an unknown key, say).
    Key,
    /// The value.
    Value,
}

/// One thing that is wrong with a pipeline.
#[derive(Debug, Clone, PartialEq)]
pub struct Diagnostic {
    /// How grave it is.
    pub severity: Severity,
    /// Where it is.
    pub path: Path,
    /// What of that place is meant.
    pub target: Target,
    /// What is wrong: what was found, what was expected.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Whether the message says which profile it is about.
    pub names_profile: bool,
}

impl Diagnostic {
    /// Makes an error about the value at `path`.
    pub fn error(path: Path, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            path,
            target: Target::Value,
            message: shortened(message.into()),
            hint: None,
            names_profile: false,
        }
    }

    /// Makes a warning about the key at `path`.
    pub fn warning(path: Path, message: impl Into<String>) -> Self {
        Self {
            severity: Severity::Warning,
            target: Target::Key,
            ..Self::error(path, message)
        }
    }

    /// Points at the key instead of its value.
    #[must_use]
    pub fn at_key(mut self) -> Self {
        self.target = Target::Key;
        self
    }

    /// Notes that the message says which profile it is about.
    #[must_use]
    pub(super) fn naming_profile(mut self) -> Self {
        self.names_profile = true;
        self
    }

    /// Adds a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(shortened(hint.into()));
        self
    }

    /// Adds a hint, if there is one.
    #[must_use]
    pub fn maybe_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint.map(shortened).or(self.hint);
        self
    }
}

/// Keeps the beginning and the end of a message that is too long to be read.
pub(super) fn shortened(message: String) -> String {
    if message.len() <= MESSAGE {
        return message;
    }
    excerpt(&message, MESSAGE).into_owned()
}

/// Says which of `candidates` was probably meant, or lists them when they are few.
pub fn did_you_mean<'a>(
    found: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    // Nobody mistypes a name of thousands of letters, whose comparison takes their square in time.
    let is_short = |name: &str| name.len() <= NAME;
    let nearest = candidates
        .iter()
        .filter(|candidate| is_short(found) && is_short(candidate))
        .map(|candidate| (strsim::jaro_winkler(found, candidate), *candidate))
        .filter(|(similarity, _)| *similarity > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)));
    match nearest {
        Some((_, candidate)) => Some(format!("did you mean `{}`?", excerpt(candidate, NAME))),
        None if candidates.is_empty() => None,
        None if candidates.len() <= 12 => Some(format!("expected one of: {}", listed(candidates))),
        None => None,
    }
}
