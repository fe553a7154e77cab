//! What a stage reads and what it makes.

use std::borrow::Cow;

/// How many artifacts a port takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arity {
    /// Exactly one.
    One,
    /// None or one.
    Optional,
    /// A list of at least one.
    Many,
    /// A list of at least one, or nothing.
    OptionalMany,
}

impl Arity {
    /// Whether the port may be left out.
    pub fn is_optional(self) -> bool {
        matches!(self, Self::Optional | Self::OptionalMany)
    }

    /// Whether the port takes a list.
    pub fn is_list(self) -> bool {
        matches!(self, Self::Many | Self::OptionalMany)
    }
}

/// A named, typed input of a kind.
#[derive(Debug, Clone)]
pub struct Port {
    /// The name in `inputs`.
    pub name: Cow<'static, str>,
    /// Artifact kinds that fit; empty means any.
    pub accepts: &'static [&'static str],
    /// How many artifacts it takes.
    pub arity: Arity,
    /// Whether axis values and stage names of the items are part of the result (a table prints them).
    pub labelled: bool,
    /// Whether time and memory of what made the items are shown beside the stage's table.
    pub with_costs: bool,
    /// One line for people.
    pub about: &'static str,
}

impl Port {
    /// A port that takes exactly one artifact.
    pub fn one(name: &'static str, accepts: &'static [&'static str], about: &'static str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            accepts,
            arity: Arity::One,
            labelled: false,
            with_costs: false,
            about,
        }
    }

    /// A port that may be left out.
    pub fn optional(
        name: &'static str,
        accepts: &'static [&'static str],
        about: &'static str,
    ) -> Self {
        Self {
            arity: Arity::Optional,
            ..Self::one(name, accepts, about)
        }
    }

    /// A port that takes a list.
    pub fn many(name: &'static str, accepts: &'static [&'static str], about: &'static str) -> Self {
        Self {
            arity: Arity::Many,
            ..Self::one(name, accepts, about)
        }
    }

    /// A port that takes a list and may be left out.
    pub fn optional_many(
        name: &'static str,
        accepts: &'static [&'static str],
        about: &'static str,
    ) -> Self {
        Self {
            arity: Arity::OptionalMany,
            ..Self::one(name, accepts, about)
        }
    }

    /// Makes labels part of what the stage depends on.
    #[must_use]
    pub fn labelled(mut self) -> Self {
        self.labelled = true;
        self
    }

    /// Shows time and memory of what made the items beside the stage's table; they are no part of the result.
    #[must_use]
    pub fn with_costs(mut self) -> Self {
        self.with_costs = true;
        self
    }
}

/// A named, typed output of a stage. The first output of a stage is its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The name after the dot of a reference.
    pub name: String,
    /// The artifact kind.
    pub kind: Cow<'static, str>,
    /// Whether it is what some program wrote: a tree that may be empty, and whose executable bits count.
    pub foreign: bool,
}

impl Output {
    /// Makes an output.
    pub fn new(name: impl Into<String>, kind: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: name.into(),
            kind: kind.into(),
            foreign: false,
        }
    }

    /// Says that some program writes it: see [`Self::foreign`].
    #[must_use]
    pub fn foreign(mut self) -> Self {
        self.foreign = true;
        self
    }
}
