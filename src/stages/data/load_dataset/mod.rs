//! `load_dataset`: somebody's own data, in the layouts that people have.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::origin::{
    LOOKED_AT, check_folder, check_sha256, named, source_name, source_or_port, source_params,
    source_path,
};
use super::question::{Answer, Question, Template};
use crate::artifacts::dataset::{COLUMNS, DATASET, Dataset, Example};
use crate::artifacts::language_model::LANGUAGE_MODEL;
use crate::engine::artifact::Digest;
use crate::engine::context::{Progress, RunContext};
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::excerpt::{NAME, excerpt, listed};
use crate::sources::rows::{Field, RowFiles, RowsError};
use crate::sources::{Sha256, Source};
use crate::stages::ranges::at_least_one;

mod layout;
mod rendering;

use layout::Found;
pub use layout::Layout;
use rendering::{OF_MODEL, Rendering};

/// Loads a data set from parquet, CSV or JSON files (an object a line, or an array), in one of the usual layouts.
///
/// Without `layout` the columns decide: that of which the file has all columns, and the most of them. `columns` says which
/// column is which where they have other names. Texts stand as they are, a completion right behind its prompt; messages are
/// put together by `template`. A row that cannot be used is left out; the log says how many, and what is wrong with the
/// first.
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
    const VERSION: u32 = 1;
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
        if let Some(layout) = self.layout {
            let known: Vec<&str> = [layout.needs(), layout.may_have()].concat();
            for name in self.columns.keys() {
                if !known.contains(&name.as_str()) {
                    problems.push(
                        Problem::new(
                            &format!("columns.{name}"),
                            format!("`{}` has no column `{name}`", layout.name()),
                        )
                        .hint(format!("its columns are `{}`", known.join("`, `"))),
                    );
                }
            }
        }
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
        check_folder(&path, self.sha256)?;
        let most_text = self.max_text_mb.map(|most| most.saturating_mul(1 << 20));
        let files = RowFiles::find(&path, &name, self.split.as_deref(), most_text)?;
        let found: BTreeSet<String> = files.columns_of_first(LOOKED_AT)?.into_iter().collect();
        let layout = self.layout_of(&found, &name, ctx)?;
        let mut reading = Reading::new(self, layout, &found);
        reading.read(&files, ctx)?;
        let examples = reading.examples(&name, ctx)?;
        let title = format!("Data of {name}");
        Ok(Dataset { title, examples }.write(&ctx.output("data")?)?)
    }
}

impl LoadDataset {
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
        let fits = |layout: &Layout| missing(*layout).is_empty();
        let layouts = Layout::ALL.into_iter().filter(fits);
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
                let nearest = Layout::ALL.into_iter().min_by_key(|layout| {
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
                .hint(hint.unwrap_or_default()))
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

/// A row of the data set, before rows of one question are put together.
struct Taken {
    question: Question,
    chosen: Option<Answer>,
    rejected: Option<Answer>,
    kept: BTreeMap<String, String>,
}

/// Completions of one prompt that are to be compared with each other.
#[derive(Default)]
struct Compared {
    scored: Vec<(f64, Answer)>,
    good: Vec<Answer>,
    bad: Vec<Answer>,
    kept: BTreeMap<String, String>,
}

/// What is read, row by row.
struct Reading<'a> {
    kind: &'a LoadDataset,
    layout: Layout,
    /// Names in the layout, in the order of the columns that are read.
    names: Vec<&'static str>,
    taken: Vec<Taken>,
    compared: IndexMap<Question, Compared>,
    rows: usize,
    left_out: usize,
    /// What is wrong with the first row that is left out.
    first_fault: Option<String>,
}

impl<'a> Reading<'a> {
    fn new(kind: &'a LoadDataset, layout: Layout, found: &BTreeSet<String>) -> Self {
        let may_have = layout.may_have().iter().copied();
        let may_have = may_have.filter(|name| found.contains(kind.column(name)));
        Self {
            kind,
            layout,
            names: layout.needs().iter().copied().chain(may_have).collect(),
            taken: Vec::new(),
            compared: IndexMap::new(),
            rows: 0,
            left_out: 0,
            first_fault: None,
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
        let mut stopped = false;
        files.read_fields(&columns, |row| {
            if self.rows == most {
                return Ok(ControlFlow::Break(()));
            }
            self.rows += 1;
            let bytes = row.values.iter().map(Field::bytes).sum();
            allowance.keep(&row.file, bytes)?;
            if let Err(fault) = self.take(&row.values) {
                self.left_out += 1;
                self.first_fault
                    .get_or_insert_with(|| row.error(fault).to_string());
            }
            if self.rows.is_multiple_of(TOLD) {
                if ctx.is_cancelled() {
                    stopped = true;
                    return Ok(ControlFlow::Break(()));
                }
                ctx.progress(Progress {
                    step: self.rows as u64,
                    total: self.kind.max_rows.unwrap_or(0) as u64,
                    unit: "rows".to_owned(),
                    ..Progress::default()
                });
            }
            Ok::<_, RowsError>(ControlFlow::Continue(()))
        })?;
        if stopped {
            return Err(StageError::Interrupted);
        }
        Ok(())
    }

    /// Takes a row, or says what is wrong with it.
    fn take(&mut self, values: &[Field]) -> Result<(), String> {
        let (values, further) = values.split_at(self.names.len());
        let row = self.names.iter().copied().zip(values.iter().map(json));
        let found = self.layout.found(&row.collect())?;
        let further = self.kind.keep.iter().zip(further);
        let kept = further.filter_map(|(name, value)| Some((name.clone(), value.to_text()?)));
        let kept: BTreeMap<String, String> = kept.collect();
        let is_empty = |answer: &Answer| answer.text.trim().is_empty();
        match found {
            Found::Answers(question, chosen, rejected) => {
                if chosen.iter().chain(&rejected).any(is_empty) {
                    return Err("a completion is empty".to_owned());
                }
                if chosen.is_some() && chosen == rejected {
                    return Err("both completions are the same".to_owned());
                }
                self.taken.push(Taken {
                    question,
                    chosen,
                    rejected,
                    kept,
                });
            }
            Found::Scored(_, answer, _) | Found::Labelled(_, answer, _) if is_empty(&answer) => {
                return Err("the completion is empty".to_owned());
            }
            Found::Scored(question, answer, score) => {
                let compared = self.compared.entry(question).or_default();
                compared.scored.push((score, answer));
                compared.kept.extend(kept);
            }
            Found::Labelled(question, answer, label) => {
                let compared = self.compared.entry(question).or_default();
                let side = if label {
                    &mut compared.good
                } else {
                    &mut compared.bad
                };
                side.push(answer);
                compared.kept.extend(kept);
            }
        }
        Ok(())
    }

    /// Returns the examples, and says what was left out.
    fn examples(mut self, name: &str, ctx: &mut RunContext) -> Result<Vec<Example>, StageError> {
        let alone = self.pair();
        let examples = self.rendered(ctx)?;
        if let Some(fault) = &self.first_fault {
            let note = format!(
                "{} of {} rows were left out: {fault}",
                self.left_out, self.rows
            );
            let note = if self.left_out > 1 {
                note + ", and others"
            } else {
                note
            };
            if examples.is_empty() {
                return Err(
                    StageError::new(format!("{name}: no row can be used; {note}")).hint(format!(
                        "they were read as `layout: {}`",
                        self.layout.name()
                    )),
                );
            }
            ctx.note(&note);
        }
        if alone > 0 {
            ctx.note(&format!(
                "{alone} completions were left out: their prompt has none to compare them with"
            ));
        }
        if examples.is_empty() {
            return Err(StageError::new(format!(
                "{name}: there is no row, or no two completions of a prompt"
            ))
            .hint(format!("it was read as `layout: {}`", self.layout.name())));
        }
        Ok(examples)
    }

    /// Makes examples of what was taken.
    fn rendered(&mut self, ctx: &mut RunContext) -> Result<Vec<Example>, StageError> {
        let rendering = Rendering::of(self.kind, ctx)?;
        let mut ids: BTreeMap<Digest, u64> = BTreeMap::new();
        let (mut examples, mut cut, mut special) = (Vec::new(), 0, 0);
        for taken in std::mem::take(&mut self.taken) {
            let rendered = match rendering.render(&taken) {
                Ok(rendered) => rendered,
                Err(fault) => {
                    self.left_out += 1;
                    let question = excerpt(&taken.question.shown(), NAME).into_owned();
                    self.first_fault
                        .get_or_insert_with(|| format!("{question:?}: {fault}"));
                    continue;
                }
            };
            cut += usize::from(rendered.cut_bos);
            let question = taken.question.shown();
            let answers = taken.chosen.iter().chain(&taken.rejected);
            let is_special = rendering.is_special(&question)
                || answers
                    .into_iter()
                    .any(|answer| rendering.is_special(&answer.text));
            special += usize::from(is_special);
            let next = ids.len() as u64;
            examples.push(Example {
                question_id: *ids
                    .entry(Digest::of(rendered.prompt.as_bytes()))
                    .or_insert(next),
                question,
                chosen: rendered.chosen,
                rejected: rendered.rejected,
                kept: taken.kept,
                prompt: rendered.prompt,
            });
        }
        if cut > 0 {
            ctx.note(&format!(
                "the chat template begins {cut} prompts with the begin token, which the tokenizer puts there anyway: it was left out"
            ));
        }
        if special > 0 {
            ctx.warn(&format!(
                "warning: {special} rows spell a token that begins or ends a text, which the model takes for that"
            ));
        }
        Ok(examples)
    }

    /// Pairs completions that are to be compared; returns how many are left over.
    fn pair(&mut self) -> usize {
        let mut alone = 0;
        for (question, mut compared) in std::mem::take(&mut self.compared) {
            let mut add = |chosen: Answer, rejected: Answer| {
                self.taken.push(Taken {
                    question: question.clone(),
                    chosen: Some(chosen),
                    rejected: Some(rejected),
                    kept: compared.kept.clone(),
                });
            };
            let pairs = compared.good.len().min(compared.bad.len());
            alone += compared.good.len() + compared.bad.len() - 2 * pairs;
            for (good, bad) in compared.good.drain(..).zip(compared.bad.drain(..)) {
                add(good, bad);
            }
            // The first of equals counts.
            compared.scored.sort_by(|(a, _), (b, _)| b.total_cmp(a));
            match &compared.scored[..] {
                [] => {}
                [(best, chosen), .., (worst, rejected)] if best > worst => {
                    add(chosen.clone(), rejected.clone());
                }
                others => alone += others.len(),
            }
        }
        alone
    }
}

fn json(field: &Field) -> Json {
    match field {
        Field::Empty => Json::Null,
        Field::Typed(value) => value.parse().unwrap_or(Json::Null),
        Field::Written(text) if text.is_empty() => Json::Null,
        Field::Written(text) => Json::from(text.as_str()),
    }
}

#[cfg(test)]
mod tests;
