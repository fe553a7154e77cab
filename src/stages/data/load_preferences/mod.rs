//! `load_preferences`: preference pairs from files in public layouts.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::artifacts::dataset::{DATASET, Dataset, Example};
use crate::engine::artifact::Digest;
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::random::Stream;
use crate::sources::rows::{Allowance, RowsError};
use crate::sources::{Sha256, Source};
use crate::stages::ranges::at_least_one;

mod layout;

use super::left_out::LeftOut;
use super::origin::{
    check_sha256, row_files, source_name, source_or_port, source_params, source_path,
};
use super::question::{Template, cut_end};
use layout::{Found, Pair, Reason, Unusable};

pub use layout::Layout;

/// What becomes of a question that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LongQuestions {
    /// Its pairs are left out.
    #[default]
    LeaveOut,
    /// It is cut at a white space: the end of a question, the oldest turns of a dialogue.
    Cut,
}

/// Loads preference pairs from parquet, Arrow, CSV or JSON files (an object a line, or an array) in a public layout.
///
/// Texts are taken as they are, markup and entities included. With `template: plain` the space between `Assistant:` or
/// `TL;DR:` and an answer belongs to the answer. Pairs with an empty or the same answer on both sides teach nothing and
/// are left out, as are rows with an empty cell or one that cannot be read, and pairs whose answers hold a further turn; the
/// log says how many, and what is wrong with the first. What is no JSON at all is an error.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadPreferences {
    /// A file, packed with gzip or not, or a local folder of part files; left out where the port `data` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    /// Which files of a folder: those of this split by their names, as in `train-00000-of-00002.parquet`, or as
    /// `save_to_disk` wrote them down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    split: Option<String>,
    /// The SHA-256 of the file.
    #[serde(default)]
    sha256: Option<Sha256>,
    /// How rows are laid out.
    layout: Layout,
    /// What a model is given: a text with `{question}`, or `stack_llama`, `chatml`, `smollm2` or `plain`.
    #[serde(default = "plain")]
    template: String,
    /// At most so many pairs: the first ones of the file, which is read no further, or of the order that `seed` makes.
    #[serde(default)]
    max_rows: Option<usize>,
    /// At most so many questions.
    #[serde(default)]
    max_questions: Option<usize>,
    /// At most so many pairs of each question, the first ones.
    #[serde(default)]
    max_pairs_per_question: Option<usize>,
    /// Longer questions are left out or cut.
    #[serde(default)]
    max_question_chars: Option<usize>,
    /// What becomes of longer questions.
    #[serde(default)]
    long_questions: LongQuestions,
    /// Longer answers are cut at a white space.
    #[serde(default)]
    max_answer_chars: Option<usize>,
    /// Puts questions into a random order before they are counted; the file's order if absent.
    #[serde(default)]
    seed: Option<u64>,
    /// MiB of text that the pairs may hold; if absent 48 and 8 times the file. Changes no result.
    #[serde(default, skip_serializing)]
    max_text_mb: Option<u64>,
}

fn plain() -> String {
    "plain".to_owned()
}

impl Kind for LoadPreferences {
    const NAME: &'static str = "load_preferences";
    const VERSION: u32 = 3;
    const EXAMPLE: &'static str = "{ source: data/rl, layout: stack_exchange_paired, template: stack_llama, max_pairs_per_question: 4 }";

    fn ports(&self) -> Vec<Port> {
        source_or_port(self.source.as_ref())
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("pairs", DATASET)]
    }

    fn sources(&self) -> Vec<SourceParam> {
        source_params(self.source.as_ref(), self.sha256)
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (key, value) in [
            ("max_rows", self.max_rows),
            ("max_questions", self.max_questions),
            ("max_pairs_per_question", self.max_pairs_per_question),
            ("max_question_chars", self.max_question_chars),
            ("max_answer_chars", self.max_answer_chars),
            ("max_text_mb", self.max_text_mb.map(|most| most as usize)),
        ] {
            at_least_one(key, value.unwrap_or(1) as u64, &mut problems);
        }
        check_sha256(self.source.as_ref(), self.sha256, &mut problems);
        if let Err(reason) = Template::parse(&self.template) {
            problems.push(Problem::new("template", reason));
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let path = source_path(self.source.as_ref(), ctx)?;
        let name = source_name(self.source.as_ref());
        let (examples, left_out) = self.load(&path, &name)?;
        if examples.is_empty() {
            return Err(left_out.nothing_left(&name));
        }
        if let Some(note) = left_out.note() {
            ctx.note(&note);
        }
        let title = format!("Preference pairs of {name}");
        Ok(Dataset { title, examples }.write(&ctx.output("pairs")?)?)
    }
}

impl LoadPreferences {
    /// Reads the pairs of a file or folder, which messages call `name`, up to the limits.
    fn load(&self, path: &Path, name: &str) -> Result<(Vec<Example>, PairsLeftOut), StageError> {
        let template = Template::parse(&self.template).map_err(StageError::new)?;
        let split = self.split.as_deref();
        let files = row_files(path, name, split, self.sha256, self.max_text_mb)?;
        let mut selection = Selection {
            kind: self,
            allowance: files.allowance(),
            ids: BTreeMap::new(),
            questions: IndexMap::new(),
            kept: 0,
            left_out: PairsLeftOut::default(),
        };
        self.layout.read(&files, |found| selection.take(found))?;
        let left_out = std::mem::take(&mut selection.left_out);
        Ok((selection.examples(&template), left_out))
    }
}

/// What is chosen of a file while it is read.
struct Selection<'a> {
    kind: &'a LoadPreferences,
    allowance: Allowance,
    /// Numbers of questions, in the order of the file.
    ids: BTreeMap<Digest, u64>,
    questions: IndexMap<u64, Vec<Pair>>,
    kept: usize,
    left_out: PairsLeftOut,
}

impl Selection<'_> {
    /// Takes a pair, if it can be used; breaks off when no further one is wanted.
    fn take(&mut self, found: Found) -> Result<ControlFlow<()>, RowsError> {
        let Found { file, number, pair } = found;
        self.left_out.rows.rows += 1;
        let mut leave_out = |unusable: Unusable| {
            *self.left_out.reasons.entry(unusable.reason).or_default() += 1;
            self.left_out.rows.add(&RowsError::Row {
                file: Arc::clone(&file),
                row: number,
                reason: unusable.fault,
            });
            Ok(ControlFlow::Continue(()))
        };
        let (key, mut pair) = match pair {
            Ok(pair) => pair,
            Err(unusable) => return leave_out(unusable),
        };
        let next = self.ids.len() as u64;
        let id = match self.ids.get(&key) {
            Some(id) => *id,
            None => {
                self.allowance.keep(&file, 0)?;
                self.ids.insert(key, next);
                next
            }
        };
        if let Some(reason) = self.kind.unusable(&mut pair) {
            return leave_out(reason.into());
        }
        // A shuffle needs all questions.
        let is_full = self.kind.seed.is_none()
            && self.kind.max_questions == Some(self.questions.len())
            && !self.questions.contains_key(&id);
        if is_full {
            return Ok(ControlFlow::Continue(()));
        }
        let pairs = self.questions.entry(id).or_default();
        if self.kind.max_pairs_per_question == Some(pairs.len()) {
            return Ok(ControlFlow::Continue(()));
        }
        let bytes = pair.question.bytes() + pair.chosen.text.len() + pair.rejected.text.len();
        self.allowance.keep(&file, bytes)?;
        pairs.push(pair);
        self.kept += 1;
        Ok(
            if self.kind.seed.is_none() && self.kind.max_rows == Some(self.kept) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            },
        )
    }

    /// Returns the pairs question by question, in the order of the file or of the seed, up to the limits.
    fn examples(self, template: &Template) -> Vec<Example> {
        let mut questions: Vec<(u64, Vec<Pair>)> = self.questions.into_iter().collect();
        if let Some(seed) = self.kind.seed {
            Stream::new(seed, "load_preferences")
                .at(0)
                .shuffle(&mut questions);
        }
        questions.truncate(self.kind.max_questions.unwrap_or(usize::MAX));
        let pairs = questions
            .into_iter()
            .flat_map(|(id, pairs)| pairs.into_iter().map(move |pair| (id, pair)));
        pairs
            .take(self.kind.max_rows.unwrap_or(usize::MAX))
            .map(|(question_id, pair)| {
                let prompt = template.prompt(&pair.question);
                Example {
                    question_id,
                    question: pair.question.shown(),
                    chosen: Some(pair.chosen.behind(&prompt, template)),
                    rejected: Some(pair.rejected.behind(&prompt, template)),
                    prompt,
                    kept: BTreeMap::new(),
                }
            })
            .collect()
    }
}

impl LoadPreferences {
    /// Cuts a pair to the limits; says why it cannot be used, if so.
    fn unusable(&self, pair: &mut Pair) -> Option<Reason> {
        for answer in [&mut pair.chosen, &mut pair.rejected] {
            if let Some(limit) = self.max_answer_chars {
                answer.text = cut_end(&answer.text, limit).to_owned();
            }
            if answer.text.trim().is_empty() {
                return Some(Reason::Empty);
            }
        }
        if pair.chosen.text == pair.rejected.text {
            return Some(Reason::Same);
        }
        let fits = self.max_question_chars.is_none_or(|limit| {
            pair.question.length() <= limit
                || (self.long_questions == LongQuestions::Cut && pair.question.cut(limit))
        });
        (!fits).then_some(Reason::TooLong)
    }
}

/// What was left out of the rows that were read, and why.
#[derive(Debug, Default)]
struct PairsLeftOut {
    rows: LeftOut,
    reasons: BTreeMap<Reason, usize>,
}

impl PairsLeftOut {
    /// Says how many rows were left out and why, if any were.
    fn note(&self) -> Option<String> {
        let fault = self.rows.first.as_ref()?;
        let reasons = self.reasons.iter();
        let reasons: Vec<String> = reasons
            .map(|(reason, count)| format!("{count} {}", reason.in_words()))
            .collect();
        Some(format!(
            "{} of {} pairs were left out: {}; the first: {fault}",
            self.rows.count,
            self.rows.rows,
            reasons.join(", ")
        ))
    }

    /// The error about a file without a usable pair.
    fn nothing_left(&self, name: &str) -> StageError {
        let Some(note) = self.note() else {
            return StageError::new(format!("{name}: it has no row"))
                .hint("expected a file with at least one pair");
        };
        let most = self.reasons.iter().max_by_key(|(_, count)| **count);
        StageError::new(format!("{name}: no pair is left; {note}")).hint(
            match most.map(|(reason, _)| reason) {
                Some(Reason::TooLong) => "raise `max_question_chars`, or set `long_questions: cut`",
                Some(Reason::NothingShared | Reason::FurtherTurn | Reason::OfUser) => {
                    "are these dialogues in the layout of HH? see `layout`"
                }
                Some(Reason::Faulty) => "are the rows laid out as `layout` says?",
                _ => "look at the file: a pair has two different answers",
            },
        )
    }
}

#[cfg(test)]
mod tests;
