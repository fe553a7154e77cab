//! `load_completions`: somebody's own completions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod prompts;
mod row;
mod tokens;

use self::prompts::Prompts;
use self::row::{Columns, NAMES};
use self::tokens::Tokens;
use super::left_out::LeftOut;
use super::origin::{
    LOOKED_AT, check_sha256, row_files, source_name, source_or_port, source_params, source_path,
};
use crate::artifacts::completions::{COMPLETIONS, CompletionRow, to_table};
use crate::artifacts::dataset::DATASET;
use crate::artifacts::language_model::LANGUAGE_MODEL;
use crate::engine::context::{Progress, RunContext};
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::excerpt::listed;
use crate::sources::rows::{Field, RowFiles};
use crate::sources::{Sha256, Source};
use crate::stages::ranges::at_least_one;

/// Loads completions that somebody else sampled, from parquet, Arrow, CSV or JSON files (an object a line, or an array),
/// for `score`, `score_policy`, `judge` and tables.
///
/// A row has a `prompt` or its `prompt_ids`, and a `completion` or its `token_ids`, or a list of several; it may have
/// `question_id`, `sample`, `question`, `truncated` or `finish_reason` (`length` is truncated), `tokens` and `log_prob`,
/// the log-probability at temperature 1. So what `export` makes of completions is read as it is; vLLM's
/// `prompt_token_ids` and `completion_token_ids` are known, other names are told by `columns`. Without `question_id`
/// questions are told by their prompt, without `sample` the completions of a question are counted.
///
/// The port `prompts` has the data set that was sampled from. Questions and prompts are its own then: a row names its
/// `question_id`, or else its `prompt` is a prompt or question there; one that is not is left out. The port `model` has
/// the tokenizer that token ids are of. It spells prompts and completions of which there are only ids, checks that ids
/// spell the texts beside them (white space at the ends apart) and counts tokens. An ended completion gets its end token
/// if it lacks it, and loses the padding behind it; where nothing else says so, one without an end token was truncated,
/// and a text was not.
///
/// Rows that cannot be read are left out, as are those with nulls; the log says how many, and what is wrong with the
/// first. An empty completion is one.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadCompletions {
    /// A file, packed with gzip or not, or a folder of part files; left out where the port `data` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    /// Which files of a folder: those of this split by their names, as in `train-00000-of-00002.parquet`, or as
    /// `save_to_disk` wrote them down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    split: Option<String>,
    /// The SHA-256 of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<Sha256>,
    /// Names of columns, where the file has other ones: `{ completion: response }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    columns: BTreeMap<String, String>,
    /// At most so many rows of the file, which is read no further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_rows: Option<usize>,
    /// MiB of text that the rows may hold; if absent 48 and 8 times the file. Changes no result.
    #[serde(default, skip_serializing)]
    max_text_mb: Option<u64>,
}

impl Kind for LoadCompletions {
    const NAME: &'static str = "load_completions";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = "{ source: samples.jsonl, columns: { completion: response } }";

    fn ports(&self) -> Vec<Port> {
        let mut ports = source_or_port(self.source.as_ref());
        ports.push(Port::optional(
            "prompts",
            &[DATASET],
            "the data set whose prompts were completed",
        ));
        ports.push(Port::optional(
            "model",
            &[LANGUAGE_MODEL, "tokenizer"],
            "whose tokenizer the token ids are of",
        ));
        ports
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("completions", COMPLETIONS)]
    }

    fn sources(&self) -> Vec<SourceParam> {
        source_params(self.source.as_ref(), self.sha256)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        at_least_one("max_rows", self.max_rows.unwrap_or(1) as u64, &mut problems);
        at_least_one("max_text_mb", self.max_text_mb.unwrap_or(1), &mut problems);
        check_sha256(self.source.as_ref(), self.sha256, &mut problems);
        let known = || NAMES.iter().map(|(name, _)| *name);
        for name in self.columns.keys() {
            if !known().any(|known| known == name) {
                let names: Vec<&str> = known().collect();
                problems.push(
                    Problem::new(
                        &format!("columns.{name}"),
                        format!("completions have no column `{name}`"),
                    )
                    .hint(format!("their columns are `{}`", names.join("`, `"))),
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
        let reading = Reading {
            tokens: Tokens::of(ctx.optional_input("model"))?,
            prompts: Prompts::of(ctx.optional_input("prompts"))?,
            columns: Columns::of(&self.columns, &found),
        };
        reading.check(&name, &found)?;
        let rows = self.read(&files, &reading, &name, ctx)?;
        // As `sample` calls them: the same completions are the same artifact.
        Ok(to_table("completions", &rows).write_data(&ctx.output("completions")?)?)
    }
}

impl LoadCompletions {
    fn read(
        &self,
        files: &RowFiles,
        reading: &Reading,
        name: &str,
        ctx: &mut RunContext,
    ) -> Result<Vec<CompletionRow>, StageError> {
        const TOLD: usize = 1000;
        let mut allowance = files.allowance();
        let (mut rows, mut left_out) = (Vec::new(), LeftOut::default());
        let (mut numbers, mut taken_for_ended) = (Numbers::default(), 0);
        let columns = reading.columns.in_file();
        let mut stopped = false;
        files.read_fields(&columns, |row| {
            left_out.rows += 1;
            let found = row.and_then(|row| {
                let bytes = row.values.iter().map(Field::bytes).sum();
                let found = reading.row(&row.values);
                let unsure = found.as_ref().map_or(0, |found| found.taken_for_ended);
                let numbered = found.and_then(|found| numbers.number(found));
                let numbered = numbered.map_err(|fault| row.error(fault))?;
                Ok((row.file, bytes, unsure, numbered))
            });
            match found {
                Ok((file, bytes, unsure, found)) => {
                    allowance.keep(&file, bytes)?;
                    taken_for_ended += unsure;
                    rows.extend(found);
                }
                Err(fault) => left_out.add(&fault),
            }
            if left_out.rows.is_multiple_of(TOLD) {
                stopped = ctx.is_cancelled();
                ctx.progress(Progress {
                    step: left_out.rows as u64,
                    total: self.max_rows.unwrap_or(0) as u64,
                    unit: "rows".to_owned(),
                    ..Progress::default()
                });
            }
            Ok(if stopped || self.max_rows == Some(left_out.rows) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        if stopped {
            return Err(StageError::Interrupted);
        }
        if rows.is_empty() {
            return Err(left_out.nothing_left(name));
        }
        if let Some(note) = left_out.note() {
            ctx.note(&note);
        }
        if taken_for_ended > 0 {
            ctx.note(&format!(
                "{taken_for_ended} of {} completions do not say whether they were cut off, and were taken for ended: a column \
                 `truncated` or `finish_reason` would say it",
                rows.len()
            ));
        }
        Ok(rows)
    }
}

/// How rows of a file are read.
struct Reading {
    tokens: Tokens,
    prompts: Option<Prompts>,
    columns: Columns,
}

/// The completions of a row, before they are numbered.
struct Found {
    question_id: Option<u64>,
    /// Each with the number of its sample, if the row says it.
    rows: Vec<(Option<u64>, CompletionRow)>,
    /// How many do not say whether they were cut off.
    taken_for_ended: usize,
}

impl Reading {
    /// Checks that there are the columns without which there is no completion.
    fn check(&self, name: &str, found: &BTreeSet<String>) -> Result<(), StageError> {
        let lacks = |what: &str| {
            let found = listed(found.iter().map(String::as_str));
            StageError::new(format!("{name}: {what}; found: {found}"))
        };
        if let Some(column) = self
            .columns
            .in_file()
            .into_iter()
            .find(|name| !found.contains(*name))
        {
            return Err(lacks(&format!("no column `{column}`")));
        }
        let has = |name: &str| self.columns.has(name);
        let hint =
            "`columns: { completion: response }` says that the file's `response` is the completion";
        if !has("completion") && !has("token_ids") {
            return Err(lacks("no column `completion` or `token_ids`").hint(hint));
        }
        let knows_prompts = self.prompts.is_some() && (has("question_id") || has("question"));
        if !has("prompt") && !has("prompt_ids") && !knows_prompts {
            return Err(lacks("no column `prompt` or `prompt_ids`").hint(format!(
                "{hint}; with the port `prompts`, `question_id` is enough"
            )));
        }
        let only_ids = [("prompt", "prompt_ids"), ("completion", "token_ids")];
        let mut only_ids = only_ids.iter().filter(|(text, ids)| !has(text) && has(ids));
        if let Some((_, ids)) = only_ids.next()
            && !self.tokens.are_known()
            && !(*ids == "prompt_ids" && knows_prompts)
        {
            return Err(
                StageError::new(format!("{name}: of `{ids}` nobody says what they spell")).hint(
                    "give the port `model`: the model, or its tokenizer, that they are tokens of",
                ),
            );
        }
        Ok(())
    }

    /// Takes the completions of a row, or says what is wrong with it.
    fn row(&self, values: &[Field]) -> Result<Found, String> {
        let record = self.columns.record(values)?;
        let given = self.tokens.prompt(record.prompt, record.prompt_ids)?;
        let mut prompt = CompletionRow::default();
        let mut question_id = record.question_id;
        match &self.prompts {
            Some(prompts) => {
                let text = given.as_ref().map(|(text, _)| text.as_str());
                let is_cut = matches!(given, Some((_, Some(_))));
                let asked = prompts.find(question_id, text, is_cut, record.question.as_deref())?;
                question_id = Some(asked.question_id);
                prompt.question.clone_from(&asked.question);
                prompt.prompt.clone_from(&asked.prompt);
                // One that was cut is what the policy read.
                if let Some((text, Some(ids))) = given {
                    prompt.prompt = text;
                    prompt.prompt_ids = Some(ids);
                }
            }
            None => {
                let (text, ids) = given.ok_or("`prompt` is empty")?;
                if self.columns.has("question_id") && question_id.is_none() {
                    return Err("`question_id` is empty".to_owned());
                }
                prompt.question = record.question.unwrap_or_else(|| text.clone());
                prompt.prompt = text;
                prompt.prompt_ids = ids;
            }
        }
        let mut found = Found {
            question_id,
            rows: Vec::new(),
            taken_for_ended: 0,
        };
        for written in record.written {
            let sample = written.sample;
            let (completion, is_sure) = self.tokens.completion(written)?;
            found.taken_for_ended += usize::from(!is_sure);
            let row = CompletionRow {
                question: prompt.question.clone(),
                prompt: prompt.prompt.clone(),
                prompt_ids: prompt.prompt_ids.clone(),
                ..completion
            };
            found.rows.push((sample, row));
        }
        Ok(found)
    }
}

/// The numbers of questions and of their samples.
#[derive(Default)]
struct Numbers {
    /// Numbers of questions that are told by their prompt.
    questions: BTreeMap<String, u64>,
    /// The next sample of each question.
    next: BTreeMap<u64, u64>,
    samples: BTreeSet<(u64, u64)>,
}

impl Numbers {
    /// Numbers what a row does not number itself.
    fn number(&mut self, found: Found) -> Result<Vec<CompletionRow>, String> {
        let mut rows = Vec::with_capacity(found.rows.len());
        for (sample, mut row) in found.rows {
            row.question_id = found.question_id.unwrap_or_else(|| {
                let next = self.questions.len() as u64;
                *self.questions.entry(row.prompt.clone()).or_insert(next)
            });
            let next = self.next.entry(row.question_id).or_default();
            row.sample = sample.unwrap_or(*next);
            let is_new = self.samples.insert((row.question_id, row.sample));
            if !is_new {
                return Err(format!(
                    "sample {} of question {} is there already",
                    row.sample, row.question_id
                ));
            }
            *next = (*next).max(row.sample + 1);
            rows.push(row);
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests;
