//! What a command says that it writes.

use std::fmt;

use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::paths::normal;
use crate::artifacts::completions::SCORES;
use crate::artifacts::embeddings::EMBEDDINGS;
use crate::artifacts::format;
use crate::artifacts::judgements::JUDGEMENTS;
use crate::engine::diagnostic::did_you_mean;
use crate::engine::stage::{Output, Problem};
use crate::excerpt::{NAME, excerpt, listed};

/// The kind of outputs that nobody looks into.
const FILE: &str = "file";

/// The artifact kinds that are about rows of an input.
const OF_INPUT: [&str; 3] = [SCORES, EMBEDDINGS, JUDGEMENTS];

/// A file or folder that the command writes.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum DeclaredOutput {
    /// Its path; an artifact of kind `file`.
    Path(String),
    /// Its path and what it is.
    Typed(TypedOutput),
}

/// A file or folder that is an artifact of some kind.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TypedOutput {
    /// The file or folder.
    pub(super) path: String,
    /// The artifact kind, such as `scores`.
    pub(super) kind: String,
    /// Whether scores and embeddings have the rows of the command's input, where it has one of completions or scores
    /// alone: as many, about the same completions in the same order; judgements are about some of them.
    #[serde(default = "yes", skip_serializing_if = "is_yes")]
    pub(super) same_rows: bool,
}

fn yes() -> bool {
    true
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_yes(value: &bool) -> bool {
    *value
}

impl TypedOutput {
    /// Whether its rows are those of what the command reads.
    pub(super) fn has_rows_of_input(&self) -> bool {
        self.same_rows && OF_INPUT.contains(&&*self.kind)
    }
}

impl<'de> Deserialize<'de> for DeclaredOutput {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = DeclaredOutput;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or `{ path: ..., kind: ... }`")
            }

            fn visit_str<E: serde::de::Error>(self, path: &str) -> Result<DeclaredOutput, E> {
                Ok(DeclaredOutput::Path(normal(path.to_owned())))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<DeclaredOutput, A::Error> {
                let typed = TypedOutput::deserialize(MapAccessDeserializer::new(map))?;
                let path = normal(typed.path);
                Ok(if typed.kind == FILE {
                    DeclaredOutput::Path(path)
                } else {
                    DeclaredOutput::Typed(TypedOutput { path, ..typed })
                })
            }
        }
        deserializer.deserialize_any(Either)
    }
}

impl DeclaredOutput {
    pub(super) fn path(&self) -> &str {
        match self {
            Self::Path(path) => path,
            Self::Typed(typed) => &typed.path,
        }
    }

    /// Returns the output if it is one that must be checked.
    pub(super) fn typed(&self) -> Option<&TypedOutput> {
        match self {
            Self::Path(_) => None,
            Self::Typed(typed) => Some(typed),
        }
    }

    pub(super) fn declared(&self, name: &str) -> Output {
        // One that is not known is a problem of its own.
        match self.typed().and_then(|typed| format::find(&typed.kind)) {
            None => Output::new(name, FILE).foreign(),
            Some(format) => Output::new(name, format.kind),
        }
    }

    /// Checks that the kind is one that a program can write.
    pub(super) fn check(&self, name: &str, problems: &mut Vec<Problem>) {
        let Some(typed) = self.typed() else {
            return;
        };
        let kind = &typed.kind;
        if format::find(kind).is_some_and(|format| format.is_writable) {
            if !typed.same_rows && !OF_INPUT.contains(&kind.as_str()) {
                let path = format!("outputs.{name}.same_rows");
                let message = format!("`{kind}` never has to have the rows of an input");
                problems.push(Problem::new(&path, message).hint("leave `same_rows` out"));
            }
            return;
        }
        let message = match format::find(kind) {
            Some(_) => format!("no command can write a `{kind}`"),
            None => format!("unknown artifact kind `{}`", excerpt(kind, NAME)),
        };
        let known = format!("one of {}", listed(format::writable()));
        let hint = did_you_mean(kind, format::writable()).unwrap_or(known);
        problems.push(Problem::new(&format!("outputs.{name}.kind"), message).hint(hint));
    }
}
