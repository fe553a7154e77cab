//! How what was taken of a row becomes an example, and is written.

use std::collections::BTreeMap;

use super::rendering::Rendering;
use super::{LoadDataset, Taken};
use crate::artifacts::dataset::{DatasetWriter, Example};
use crate::engine::artifact::Digest;
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::excerpt::{NAME, excerpt};
use crate::stages::data::left_out::Fault;
use crate::stages::data::special::{self, Spelt};

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
    /// Rows whose messages hold something that the template does not write, by its name.
    not_written: BTreeMap<String, usize>,
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
            not_written: BTreeMap::new(),
        })
    }

    /// Makes an example and writes it.
    pub(super) fn make(&mut self, taken: &Taken) -> Result<(), Fault> {
        let question = taken.question.shown();
        if let Some(token) = self.special_in(taken, &question) {
            self.spelt.check(&token)?;
            self.special += 1;
        }
        let rendered = self.rendering.render(taken)?;
        for name in self.rendering.not_written(taken, &rendered) {
            *self.not_written.entry(name).or_default() += 1;
        }
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
        let further = taken.messages().flat_map(|message| &message.more);
        let texts = answers.map(|answer| answer.text.as_str()).chain([question]);
        let mut texts = texts.chain(further.map(|(_, json)| json.as_str()));
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
        for (name, rows) in &self.not_written {
            ctx.warn(&format!(
                "warning: messages of {rows} rows hold {:?}, which the template does not write: it is lost",
                excerpt(name, NAME)
            ));
        }
        if let Some(warning) = special::warning(self.special) {
            ctx.warn(&warning);
        }
    }
}
