//! How what was taken of a row becomes an example, and is written.

use std::collections::BTreeMap;

use super::rendering::Rendering;
use super::{LoadDataset, Spelt, Taken};
use crate::artifacts::dataset::{DatasetWriter, Example};
use crate::engine::artifact::Digest;
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;

/// Why a row does not become an example.
pub(super) enum Fault {
    /// It is left out.
    Row(String),
    /// It spells a special token, and the stage ends.
    Special(String),
    /// The stage ends.
    Stage(StageError),
}

impl Fault {
    /// What becomes of a row that `place` names: a reason to leave it out, or to end.
    pub(super) fn of_row(self, place: impl FnOnce() -> String) -> Result<String, StageError> {
        match self {
            Self::Row(fault) => Ok(format!("{}: {fault}", place())),
            Self::Special(token) => {
                let what = format!("{}: it spells the special token {token:?}", place());
                Err(StageError::new(what)
                    .hint("mend the file, or go on without such rows: `special_tokens: leave_out`"))
            }
            Self::Stage(error) => Err(error),
        }
    }
}

impl From<String> for Fault {
    fn from(fault: String) -> Self {
        Self::Row(fault)
    }
}

/// Renders rows and writes them.
pub(super) struct Making {
    rendering: Rendering,
    spelt: Spelt,
    pub(super) writer: DatasetWriter,
    /// Numbers of prompts, which may be too many to hold.
    ids: BTreeMap<Digest, u64>,
    /// Prompts without the begin token that their template gives them.
    cut: usize,
    /// Rows that spell special tokens.
    special: usize,
}

impl Making {
    pub(super) fn new(
        kind: &LoadDataset,
        name: &str,
        ctx: &RunContext,
    ) -> Result<Self, StageError> {
        let rendering = Rendering::of(kind, ctx)?;
        let kept = kind.keep.iter().cloned().collect();
        let notes = rendering.note().into_iter().collect();
        let title = format!("Data of {name}");
        Ok(Self {
            rendering,
            spelt: kind.special_tokens,
            writer: DatasetWriter::create(&ctx.output("data")?, title, kept, notes)?,
            ids: BTreeMap::new(),
            cut: 0,
            special: 0,
        })
    }

    /// Makes an example and writes it.
    pub(super) fn make(&mut self, taken: &Taken) -> Result<(), Fault> {
        let question = taken.question.shown();
        if let Some(token) = self.special_in(taken, &question) {
            match self.spelt {
                Spelt::Warn => {}
                Spelt::LeaveOut => return Err(Fault::Row(format!("it spells {token:?}"))),
                Spelt::Refuse => return Err(Fault::Special(token)),
            }
            self.special += 1;
        }
        let rendered = self.rendering.render(taken)?;
        self.cut += usize::from(rendered.cut_bos);
        let next = self.ids.len() as u64;
        let prompt = Digest::of(rendered.prompt.as_bytes());
        let example = Example {
            question_id: *self.ids.entry(prompt).or_insert(next),
            question,
            chosen: rendered.chosen,
            rejected: rendered.rejected,
            kept: taken.kept.clone(),
            prompt: rendered.prompt,
        };
        let written = self.writer.write(example);
        written.map_err(|error| Fault::Stage(error.into()))
    }

    /// Returns a special token that a text of the row spells.
    fn special_in(&self, taken: &Taken, question: &str) -> Option<String> {
        let answers = taken.chosen.iter().chain(&taken.rejected);
        let mut texts = answers.map(|answer| answer.text.as_str()).chain([question]);
        let found = texts.find_map(|text| self.rendering.special_in(text));
        found.map(ToOwned::to_owned)
    }

    /// Says what the template and the texts did.
    pub(super) fn notes(&self, ctx: &mut RunContext) {
        if let Some(note) = self.rendering.note() {
            ctx.note(&note);
        }
        if self.cut > 0 {
            ctx.note(&format!(
                "the chat template begins {} prompts with the begin token, which the tokenizer puts there anyway: it was left \
                 out",
                self.cut
            ));
        }
        if self.special > 0 {
            ctx.warn(&format!(
                "warning: {} rows spell a special token, which the model takes for that; `special_tokens: leave_out` leaves \
                 them out",
                self.special
            ));
        }
    }
}
