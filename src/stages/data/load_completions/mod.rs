//! `load_completions`: somebody's own completions.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod prompts;
mod row;
mod tokens;

use self::prompts::Prompts;
use self::row::{Columns, NAMES};
use self::tokens::Tokens;
use super::left_out::{Fault, LeftOut};
use super::origin::{
    LOOKED_AT, check_columns, check_sha256, row_files, source_name, source_or_port, source_params,
    source_path,
};
use super::special::{self, Spelt};
use crate::artifacts::completions::{COMPLETIONS, CompletionRow, to_table};
use crate::artifacts::dataset::DATASET;
use crate::artifacts::language_model::LANGUAGE_MODEL;
use crate::engine::artifact::Digest;
use crate::engine::context::{Progress, RunContext};
use crate::engine::facts::Known;
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::excerpt::{excerpt, listed};
use crate::sources::rows::{Field, Row, RowFiles};
use crate::sources::{Sha256, Source};
use crate::stages::ranges::at_least_one;

/// Loads completions that somebody else sampled, from parquet, Arrow, CSV or JSON files (an object a line, or an array),
/// for `score`, `score_policy`, `judge` and tables.
///
/// A row has a `prompt` or its `prompt_ids`, and a `completion` or its `token_ids`, or a list of several; it may have
/// `question_id`, `sample`, `question`, `truncated` or `finish_reason`, `tokens` and `log_prob`, the log-probability at
/// temperature 1. So what `export` makes of completions is read as it is; vLLM's `prompt_token_ids` and
/// `completion_token_ids` are known, other names are told by `columns`. Without `question_id` questions are told by their
/// prompt, without `sample` the completions of a question are counted.
///
/// A `finish_reason` is one of the words of public servers: `length`, `max_tokens` and the like are truncated, `stop`,
/// `eos_token` and the like are not, and what was broken off by a filter or an error is left out.
///
/// The port `prompts` has the data set that was sampled from. Questions and prompts are its own then: a row names its
/// `question_id`, or else its `prompt` is a prompt or question there; one that is not is left out. The port `model` has
/// the tokenizer that token ids are of. It spells prompts and completions of which there are only ids, checks that ids
/// spell the texts beside them (white space at the ends apart), and counts tokens, which a column `tokens` must agree
/// with. An ended completion gets its end token if it lacks it, and loses the padding behind it; where nothing else says
/// so, one without an end token was truncated, and a text was not.
///
/// Rows that cannot be read are left out, as are those with nulls; the log says how many, and what is wrong with the
/// first. An empty completion is one. What is no JSON at all is an error, as are a question of two prompts, a
/// `finish_reason` that nobody knows, and numbers that cannot be: these are faults of a file, not of a row.
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
    /// What becomes of a row with a completion whose text, without token ids, spells one of the special tokens of the port
    /// `model`, such as its end token.
    #[serde(default, skip_serializing_if = "Spelt::is_warn")]
    special_tokens: Spelt,
    /// At most so many rows of the file, which is read no further.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    max_rows: Option<usize>,
    /// MiB of text that the rows may hold; if absent 48 and 8 times the file. Changes no result.
    #[serde(default, skip_serializing)]
    max_text_mb: Option<u64>,
}

impl Kind for LoadCompletions {
    const NAME: &'static str = "load_completions";
    const VERSION: u32 = 2;
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
        let known = NAMES.map(|(name, _)| name);
        check_columns(&self.columns, &known, "completions have", &mut problems);
        problems
    }

    fn facts(&self, known: &mut Known<'_>) {
        if !self.special_tokens.is_warn() && !known.is_connected("model") {
            known.refuse(
                Problem::new(
                    "special_tokens",
                    "without the port `model` nobody says which tokens are special",
                )
                .hint("give the port `model`: the model, or its tokenizer, whose tokens they are"),
            );
        }
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
        let mut numbers = Numbers {
            // A data set may have several for a question.
            one_prompt_each: reading.prompts.is_none(),
            ..Numbers::default()
        };
        let (mut taken_for_ended, mut special) = (0, 0);
        let columns = reading.columns.in_file();
        let mut ended = Ok(());
        files.read_fields(&columns, |row| {
            left_out.rows += 1;
            match row {
                Err(fault) => left_out.add(&fault),
                Ok(row) => {
                    let found = reading.row(&row.values, self.special_tokens);
                    let found = found.and_then(|found| {
                        let (unsure, spelt) = (found.taken_for_ended, found.spells_special);
                        Ok((unsure, spelt, numbers.number(found, &row)?))
                    });
                    match found {
                        Ok((unsure, spelt, found)) => {
                            let bytes = row.values.iter().map(Field::bytes).sum();
                            allowance.keep(&row.file, bytes)?;
                            taken_for_ended += unsure;
                            special += usize::from(spelt);
                            rows.extend(found);
                        }
                        Err(fault) => match fault.of_row(|| row.place()) {
                            Ok(fault) => left_out.add(&fault),
                            Err(error) => ended = Err(error),
                        },
                    }
                }
            }
            if left_out.rows.is_multiple_of(TOLD) {
                if ctx.is_cancelled() {
                    ended = Err(StageError::Interrupted);
                }
                ctx.progress(Progress {
                    step: left_out.rows as u64,
                    total: self.max_rows.unwrap_or(0) as u64,
                    unit: "rows".to_owned(),
                    ..Progress::default()
                });
            }
            Ok(if ended.is_err() || self.max_rows == Some(left_out.rows) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            })
        })?;
        ended?;
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
        if let Some(warning) = special::warning(special) {
            ctx.warn(&warning);
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
    /// Whether a text of them spells a special token.
    spells_special: bool,
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
    fn row(&self, values: &[Field], special: Spelt) -> Result<Found, Fault> {
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
                    return Err("`question_id` is empty".into());
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
            spells_special: false,
        };
        for written in record.written {
            let sample = written.sample;
            let completed = self.tokens.completion(written)?;
            if let Some(token) = &completed.special {
                special.check(token)?;
                found.spells_special = true;
            }
            found.taken_for_ended += usize::from(!completed.is_sure);
            let row = CompletionRow {
                question: prompt.question.clone(),
                prompt: prompt.prompt.clone(),
                prompt_ids: prompt.prompt_ids.clone(),
                ..completed.row
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
    /// Whether each question that rows number has one prompt.
    one_prompt_each: bool,
    /// That prompt, and the first row that has it.
    prompts: BTreeMap<u64, (Digest, Arc<str>, usize)>,
}

impl Numbers {
    /// Numbers what a row does not number itself.
    fn number(&mut self, found: Found, place: &Row<Field>) -> Result<Vec<CompletionRow>, Fault> {
        let mut rows = Vec::with_capacity(found.rows.len());
        for (sample, mut row) in found.rows {
            row.question_id = match found.question_id {
                Some(id) => {
                    self.check(id, &row.prompt, place)?;
                    id
                }
                None => {
                    let next = self.questions.len() as u64;
                    *self.questions.entry(row.prompt.clone()).or_insert(next)
                }
            };
            let next = self.next.entry(row.question_id).or_default();
            row.sample = sample.unwrap_or(*next);
            let is_new = self.samples.insert((row.question_id, row.sample));
            if !is_new {
                return Err(format!(
                    "sample {} of question {} is there already",
                    row.sample, row.question_id
                )
                .into());
            }
            *next = (*next).max(row.sample + 1);
            rows.push(row);
        }
        Ok(rows)
    }

    /// Checks that a question has one prompt.
    fn check(&mut self, id: u64, prompt: &str, place: &Row<Field>) -> Result<(), Fault> {
        const SHOWN: usize = 60;
        if !self.one_prompt_each {
            return Ok(());
        }
        let digest = Digest::of(prompt.as_bytes());
        let here = || (digest, Arc::clone(&place.file), place.number);
        let (first, file, number) = self.prompts.entry(id).or_insert_with(here);
        if *first == digest {
            return Ok(());
        }
        let prompt = excerpt(prompt, SHOWN);
        Err(Fault::File(
            format!(
                "question {id} has the prompt {prompt:?}, another one than in {file}, row {number}"
            ),
            "mend the column `question_id`, or leave it out: questions are told by their prompts",
        ))
    }
}

#[cfg(test)]
mod tests;
