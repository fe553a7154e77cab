//! `load_dataset`: somebody's own data, in the layouts that people have.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::left_out::{Fault, LeftOut};
use super::origin::{
    LOOKED_AT, check_columns, check_found, check_sha256, named, row_files, source_name,
    source_or_port, source_params, source_path,
};
use super::question::{Answer, Question, Template};
use super::special::Spelt;
use crate::artifacts::dataset::{COLUMNS, DATASET};
use crate::artifacts::language_model::LANGUAGE_MODEL;
use crate::engine::context::{Progress, RunContext};
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::excerpt::{NAME, excerpt, listed};
use crate::ml::tokenizer::chat::Message;
use crate::sources::rows::{Field, RowFiles, RowsError};
use crate::sources::{Sha256, Source};
use crate::stages::ranges::at_least_one;

mod layout;
mod making;
mod rendering;

use layout::Found;
pub use layout::Layout;
use making::Making;
use rendering::OF_MODEL;

/// Loads a data set from parquet, Arrow, CSV or JSON files (an object a line, or an array), in one of the usual layouts.
///
/// Without `layout` the columns decide: that of which the file has all columns, and the most of them. `columns` says which
/// column is which where they have other names. Texts stand as they are, a completion right behind its prompt; messages are
/// put together by `template`. What they hold beside `role` and `content`, such as `tool_calls` or `reasoning_content`, a
/// model's own template is given, too; the log warns of what a template does not write. Numbers of classes become their
/// names, where `datasets` of Hugging Face says them.
///
/// A row that cannot be used is left out, such as one with nulls, or one that is no object; the log says how many, and what
/// is wrong with the first. What is no JSON at all is an error that names its line: the file is damaged.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadDataset {
    /// A file, packed with gzip or not, or a folder of part files; left out where the port `data` has it.
    #[serde(default)]
    source: Option<Source>,
    /// Which files of a folder: those of this split by their names, as in `train-00000-of-00002.parquet`.
    #[serde(default)]
    split: Option<String>,
    /// The SHA-256 of the file.
    #[serde(default)]
    sha256: Option<Sha256>,
    /// How rows are laid out; as the columns say if absent.
    #[serde(default)]
    layout: Option<Layout>,
    /// Names of columns, where the file has other ones than the layout: `{ prompt: question }`.
    #[serde(default)]
    columns: BTreeMap<String, String>,
    /// Further columns that stay with their rows, such as an answer key for `reward_command`.
    #[serde(default)]
    keep: Vec<String>,
    /// What a model is given: a text with `{question}`, or `stack_llama`, `chatml`, `smollm2`, `plain`, which puts messages
    /// behind `Human:` and `Assistant:`, or `model`: the chat template of the port `model`, as `transformers` renders it.
    #[serde(default = "plain")]
    template: String,
    /// What becomes of a row whose texts spell a token that means something to the model, such as its end token: one of
    /// the port `model`'s special tokens, or `<|im_start|>` and `<|im_end|>` where the template is one of ChatML.
    #[serde(default)]
    special_tokens: Spelt,
    /// At most so many rows of the file, which is read no further.
    #[serde(default)]
    max_rows: Option<usize>,
    /// MiB of text that the rows may hold; if absent 48 and 8 times the file. Changes no result.
    #[serde(default, skip_serializing)]
    max_text_mb: Option<u64>,
}

fn plain() -> String {
    "plain".to_owned()
}

impl Kind for LoadDataset {
    const NAME: &'static str = "load_dataset";
    const VERSION: u32 = 4;
    const EXAMPLE: &'static str = "{ source: conversations.jsonl, layout: prompt_chosen_rejected, template: chatml, keep: [answer] }";

    fn ports(&self) -> Vec<Port> {
        let mut ports = source_or_port(self.source.as_ref());
        if self.template == OF_MODEL {
            ports.push(Port::one(
                OF_MODEL,
                &[LANGUAGE_MODEL, "tokenizer"],
                "whose chat template puts messages together",
            ));
        }
        ports
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("data", DATASET)]
    }

    fn sources(&self) -> Vec<SourceParam> {
        source_params(self.source.as_ref(), self.sha256)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one("max_rows", self.max_rows.unwrap_or(1) as u64, &mut problems);
        at_least_one("max_text_mb", self.max_text_mb.unwrap_or(1), &mut problems);
        if self.template != OF_MODEL
            && let Err(reason) = Template::parse(&self.template)
        {
            problems.push(Problem::new("template", reason));
        }
        check_sha256(self.source.as_ref(), self.sha256, &mut problems);
        let has_special = ["chatml", "smollm2", OF_MODEL].contains(&self.template.as_str());
        if self.special_tokens != Spelt::Warn && !has_special {
            problems.push(
                Problem::new(
                    "special_tokens",
                    format!("`template: {}` names no special tokens", self.template),
                )
                .hint("they are known of `model`, `chatml` and `smollm2`"),
            );
        }
        let (known, owner) = match self.layout {
            Some(layout) => (
                layout.columns().collect(),
                format!("`{}` has", layout.name()),
            ),
            None => {
                let all: BTreeSet<&str> =
                    Layout::ALL.into_iter().flat_map(Layout::columns).collect();
                (Vec::from_iter(all), "layouts have".to_owned())
            }
        };
        check_columns(&self.columns, &known, &owner, &mut problems);
        for name in &self.keep {
            if COLUMNS.contains(&name.as_str()) {
                problems.push(
                    Problem::new(
                        "keep",
                        format!("every data set has a column `{name}` of its own"),
                    )
                    .hint("rename it in the file, or leave it out of `keep`"),
                );
            }
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let path = source_path(self.source.as_ref(), ctx)?;
        let name = source_name(self.source.as_ref());
        let split = self.split.as_deref();
        let files = row_files(&path, &name, split, self.sha256, self.max_text_mb)?;
        let found: BTreeSet<String> = files.columns_of_first(LOOKED_AT)?.into_iter().collect();
        let layout = self.layout_of(&found, &name, ctx)?;
        self.note_unused(&found, ctx);
        let making = Making::new(self, &name, ctx)?;
        let mut reading = Reading::new(self, layout, &found, making);
        reading.read(&files, ctx)?;
        reading.end(&name, ctx)
    }
}

impl LoadDataset {
    /// Notes columns that `trl` would give to a chat template.
    fn note_unused(&self, found: &BTreeSet<String>, ctx: &mut RunContext) {
        for name in ["tools", "documents", "chat_template_kwargs"] {
            if self.template == OF_MODEL && found.contains(name) {
                ctx.note(&format!(
                    "the chat template is not given the column `{name}`"
                ));
            }
        }
    }

    /// The column of the file that is `name` in the layout.
    fn column<'a>(&'a self, name: &'a str) -> &'a str {
        named(&self.columns, name)
    }

    /// Chooses the layout, and checks that its columns are among those that were found.
    fn layout_of(
        &self,
        found: &BTreeSet<String>,
        name: &str,
        ctx: &mut RunContext,
    ) -> Result<Layout, StageError> {
        let missing = |layout: Layout| -> Vec<&str> {
            let needs = layout.needs().iter().map(|name| self.column(name));
            needs.filter(|name| !found.contains(*name)).collect()
        };
        let has = || listed(found.iter().map(String::as_str));
        for name_kept in &self.keep {
            if !found.contains(name_kept) {
                return Err(StageError::new(format!(
                    "{name}: `keep` names the column `{name_kept}`, which it has not; found: {}",
                    has()
                )));
            }
        }
        check_found(&self.columns, found, name)?;
        if let Some(layout) = self.layout {
            let missing = missing(layout);
            if missing.is_empty() {
                return Ok(layout);
            }
            return Err(StageError::new(format!(
                "{name}: `{}` needs the column{} `{}`; found: {}",
                layout.name(),
                if missing.len() == 1 { "" } else { "s" },
                missing.join("`, `"),
                has()
            ))
            .hint(
                "`columns: { prompt: question }` says that the file's `question` is the prompt",
            ));
        }
        let has_named = |layout: &Layout| {
            let mut named = self.columns.keys();
            named.all(|name| layout.columns().any(|column| column == name))
        };
        let possible = Layout::ALL.into_iter().filter(has_named);
        let fits = |layout: &Layout| missing(*layout).is_empty();
        let layouts = possible.clone().filter(fits);
        let most = layouts.clone().map(|layout| layout.needs().len()).max();
        let best: Vec<Layout> = layouts
            .filter(|layout| Some(layout.needs().len()) == most)
            .collect();
        match best[..] {
            [layout] => {
                ctx.note(&format!(
                    "the columns are those of `layout: {}`",
                    layout.name()
                ));
                Ok(layout)
            }
            [] => {
                // The nearest is the one that lacks the least, of those that have something.
                let nearest = possible.min_by_key(|layout| {
                    let lacks = missing(*layout).len();
                    (lacks == layout.needs().len(), lacks)
                });
                let hint = nearest.map(|layout| {
                    format!(
                        "the nearest is `layout: {}`, for which it lacks `{}`; `columns: {{ prompt: question }}` says which \
                         column is which",
                        layout.name(),
                        missing(layout).join("`, `")
                    )
                });
                Err(StageError::new(format!(
                    "{name}: its columns are those of no layout; found: {}",
                    has()
                ))
                .hint(hint.unwrap_or_else(|| {
                    "no layout has all of the columns that `columns` names".to_owned()
                })))
            }
            _ => {
                let names: Vec<String> = best.iter().map(|layout| layout.name()).collect();
                Err(StageError::new(format!(
                    "{name}: its columns are those of several layouts: `{}`",
                    names.join("`, `")
                ))
                .hint("say which with `layout`"))
            }
        }
    }
}

/// A row of the data set before it is rendered.
struct Taken {
    question: Question,
    chosen: Option<Answer>,
    rejected: Option<Answer>,
    kept: BTreeMap<String, String>,
}

impl Taken {
    /// The messages that its texts are in the file.
    fn messages(&self) -> impl Iterator<Item = &Message> {
        let asked = match &self.question {
            Question::Turns(messages) => messages.as_slice(),
            _ => &[],
        };
        let answers = self.chosen.iter().chain(&self.rejected);
        asked
            .iter()
            .chain(answers.filter_map(|answer| answer.message.as_ref()))
    }

    /// What these hold beside `role` and `content`, and is not empty.
    fn further_names(&self) -> BTreeSet<String> {
        let held = self.messages().flat_map(|message| &message.more);
        let held = held.filter(|(_, json)| !["\"\"", "[]", "{}"].contains(&json.as_str()));
        held.map(|(name, _)| name.clone()).collect()
    }

    /// The same without what its messages hold by a name.
    fn without(&self, name: &str) -> Self {
        let strip = |message: &mut Message| message.more.retain(|(held, _)| held != name);
        let mut question = self.question.clone();
        if let Question::Turns(messages) = &mut question {
            messages.iter_mut().for_each(strip);
        }
        let strip = |answer: &Option<Answer>| {
            let mut answer = answer.clone();
            answer
                .iter_mut()
                .flat_map(|answer| &mut answer.message)
                .for_each(strip);
            answer
        };
        Self {
            question,
            chosen: strip(&self.chosen),
            rejected: strip(&self.rejected),
            kept: BTreeMap::new(),
        }
    }
}

/// Completions of one prompt that are to be compared with each other.
#[derive(Default)]
struct Compared {
    scored: Vec<(f64, Answer)>,
    good: Vec<Answer>,
    bad: Vec<Answer>,
    kept: BTreeMap<String, String>,
}

impl Compared {
    /// Keeps what a further row keeps, and notes the names of what other rows keep otherwise.
    fn keep(&mut self, kept: BTreeMap<String, String>, mixed: &mut BTreeSet<String>) {
        for (name, value) in kept {
            let before = self.kept.insert(name.clone(), value);
            if before.is_some_and(|before| before != self.kept[&name]) {
                mixed.insert(name);
            }
        }
    }
}

/// What is read, row by row.
struct Reading<'a> {
    kind: &'a LoadDataset,
    layout: Layout,
    /// Names in the layout, in the order of the columns that are read.
    names: Vec<&'static str>,
    /// What waits for further rows of its question; all else is written at once.
    compared: IndexMap<Question, Compared>,
    /// Columns that are kept and differ between rows of a prompt.
    mixed: BTreeSet<String>,
    making: Making,
    left_out: LeftOut,
}

impl<'a> Reading<'a> {
    fn new(
        kind: &'a LoadDataset,
        layout: Layout,
        found: &BTreeSet<String>,
        making: Making,
    ) -> Self {
        let may_have = layout.may_have().iter().copied();
        let may_have = may_have.filter(|name| found.contains(kind.column(name)));
        Self {
            kind,
            layout,
            names: layout.needs().iter().copied().chain(may_have).collect(),
            compared: IndexMap::new(),
            mixed: BTreeSet::new(),
            making,
            left_out: LeftOut::default(),
        }
    }

    fn read(&mut self, files: &RowFiles, ctx: &mut RunContext) -> Result<(), StageError> {
        const TOLD: usize = 1000;
        let named = self.names.iter().map(|name| self.kind.column(name));
        let columns: Vec<&str> = named
            .chain(self.kind.keep.iter().map(String::as_str))
            .collect();
        let most = self.kind.max_rows.unwrap_or(usize::MAX);
        let mut allowance = files.allowance();
        let mut ended = Ok(());
        files.read_fields(&columns, |row| {
            if self.left_out.rows == most {
                return Ok(ControlFlow::Break(()));
            }
            self.left_out.rows += 1;
            match row {
                Err(fault) => self.left_out.add(&fault),
                Ok(row) => {
                    let bytes = row.values.iter().map(Field::bytes).sum();
                    allowance.keep(&row.file, bytes)?;
                    if let Err(fault) = self.take(&row.values) {
                        ended = self.leave_out(fault, || row.place());
                        if ended.is_err() {
                            return Ok(ControlFlow::Break(()));
                        }
                    }
                }
            }
            if self.left_out.rows.is_multiple_of(TOLD) {
                if ctx.is_cancelled() {
                    ended = Err(StageError::Interrupted);
                    return Ok(ControlFlow::Break(()));
                }
                let (step, total, unit) = match self.kind.max_rows {
                    Some(most) => (self.left_out.rows as u64, most as u64, "rows"),
                    None => (
                        files.bytes_passed().min(files.bytes()),
                        files.bytes(),
                        "bytes",
                    ),
                };
                ctx.progress(Progress {
                    step,
                    total,
                    unit: unit.to_owned(),
                    ..Progress::default()
                });
            }
            Ok::<_, RowsError>(ControlFlow::Continue(()))
        })?;
        ended
    }

    /// Counts a row that is left out, or returns why that must not be.
    fn leave_out(
        &mut self,
        fault: Fault,
        place: impl FnOnce() -> String,
    ) -> Result<(), StageError> {
        self.left_out.add(&fault.of_row(place)?);
        Ok(())
    }

    /// Takes a row, or says what is wrong with it.
    fn take(&mut self, values: &[Field]) -> Result<(), Fault> {
        let (values, further) = values.split_at(self.names.len());
        let row = self.names.iter().copied().zip(values);
        let found = self.layout.found(&row.collect())?;
        let further = self.kind.keep.iter().zip(further);
        let kept = further.filter_map(|(name, value)| Some((name.clone(), value.to_text()?)));
        let kept: BTreeMap<String, String> = kept.collect();
        match found {
            Found::Answers(question, chosen, rejected) => {
                if chosen.iter().chain(&rejected).any(Answer::is_blank) {
                    return Err(Fault::Row("a completion is empty".to_owned()));
                }
                if chosen.is_some() && chosen == rejected {
                    return Err(Fault::Row("both completions are the same".to_owned()));
                }
                self.making.make(&Taken {
                    question,
                    chosen,
                    rejected,
                    kept,
                })?;
            }
            Found::Scored(_, answer, _) | Found::Labelled(_, answer, _) if answer.is_blank() => {
                return Err(Fault::Row("the completion is empty".to_owned()));
            }
            Found::Scored(question, answer, score) => {
                let compared = self.compared.entry(question).or_default();
                compared.scored.push((score, answer));
                compared.keep(kept, &mut self.mixed);
            }
            Found::Labelled(question, answer, label) => {
                let compared = self.compared.entry(question).or_default();
                let side = if label {
                    &mut compared.good
                } else {
                    &mut compared.bad
                };
                side.push(answer);
                compared.keep(kept, &mut self.mixed);
            }
        }
        Ok(())
    }

    /// Writes what waited, and says what was left out.
    fn end(mut self, name: &str, ctx: &mut RunContext) -> Result<(), StageError> {
        let alone = self.pair()?;
        self.making.notes(ctx);
        let read_as = format!("read as `layout: {}`", self.layout.name());
        if let Some(note) = self.left_out.note() {
            if self.making.writer.is_empty() {
                return Err(self
                    .left_out
                    .nothing_left(name)
                    .hint(format!("they were {read_as}")));
            }
            ctx.note(&note);
        }
        if !self.mixed.is_empty() {
            ctx.note(&format!(
                "rows of a prompt differ in what `keep` names; its pair has that of the last of them: {}",
                listed(self.mixed.iter().map(String::as_str))
            ));
        }
        if alone > 0 {
            ctx.note(&format!(
                "{alone} completions were left out: their prompt has none to compare them with"
            ));
        }
        if self.making.writer.is_empty() {
            return Err(StageError::new(format!(
                "{name}: there is no row, or no two completions of a prompt"
            ))
            .hint(format!("it was {read_as}")));
        }
        Ok(self.making.writer.finish()?)
    }

    /// Pairs completions that are to be compared; returns how many are left over.
    fn pair(&mut self) -> Result<usize, StageError> {
        let mut alone = 0;
        for (question, mut compared) in std::mem::take(&mut self.compared) {
            let pairs = compared.good.len().min(compared.bad.len());
            alone += compared.good.len() + compared.bad.len() - 2 * pairs;
            let (good, bad) = (compared.good.drain(..), compared.bad.drain(..));
            let mut found: Vec<(Answer, Answer)> = good.zip(bad).collect();
            // The first of equals counts.
            compared.scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
            match &compared.scored[..] {
                [] => {}
                [(best, chosen), .., (worst, rejected)] if best > worst => {
                    found.push((chosen.clone(), rejected.clone()));
                }
                others => alone += others.len(),
            }
            for (chosen, rejected) in found {
                let taken = Taken {
                    question: question.clone(),
                    chosen: Some(chosen),
                    rejected: Some(rejected),
                    kept: compared.kept.clone(),
                };
                if let Err(fault) = self.making.make(&taken) {
                    let question = taken.question.shown();
                    self.leave_out(fault, || format!("{:?}", excerpt(&question, NAME)))?;
                }
            }
        }
        Ok(alone)
    }
}

#[cfg(test)]
mod template_tests;
#[cfg(test)]
mod tests;
