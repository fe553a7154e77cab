//! `load_preferences`: preference pairs from files in public layouts.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::training::at_least_one;
use crate::artifacts::dataset::{DATASET, Dataset, Example};
use crate::engine::context::RunContext;
use crate::engine::stage::{Kind, Output, Port, Problem, SourceParam, StageError};
use crate::random::Stream;
use crate::sources::{Sha256, Source};

mod layout;
mod question;

use layout::Pair;
use question::{Template, cut_end};

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

/// Loads preference pairs from parquet, CSV or JSON-lines files in a public layout.
///
/// Texts are taken as they are, markup and entities included. Pairs with an empty or the same answer on both sides
/// teach nothing and are left out; the log says how many.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoadPreferences {
    /// A file, or a local folder of part files.
    source: Source,
    /// The SHA-256 of the file.
    #[serde(default)]
    sha256: Option<Sha256>,
    /// How rows are laid out.
    layout: Layout,
    /// What a model is given: a text with `{question}`, or `stack_llama`, `chatml`, `smollm2` or `plain`.
    #[serde(default = "plain")]
    template: String,
    /// At most so many pairs.
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
}

fn plain() -> String {
    "plain".to_owned()
}

impl Kind for LoadPreferences {
    const NAME: &'static str = "load_preferences";
    const VERSION: u32 = 1;
    const EXAMPLE: &'static str = "{ source: data/rl, layout: stack_exchange_paired, template: stack_llama, max_pairs_per_question: 4 }";

    fn ports(&self) -> Vec<Port> {
        Vec::new()
    }

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("pairs", DATASET)]
    }

    fn sources(&self) -> Vec<SourceParam> {
        vec![SourceParam {
            key: "source".to_owned(),
            source: self.source.clone(),
            sha256: self.sha256,
        }]
    }

    fn validate(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (key, value) in [
            ("max_rows", self.max_rows),
            ("max_questions", self.max_questions),
            ("max_pairs_per_question", self.max_pairs_per_question),
            ("max_question_chars", self.max_question_chars),
            ("max_answer_chars", self.max_answer_chars),
        ] {
            at_least_one(key, value.unwrap_or(1) as u64, &mut problems);
        }
        if let Err(reason) = Template::parse(&self.template) {
            problems.push(Problem::new("template", reason));
        }
        problems
    }

    fn run(&self, ctx: &mut RunContext) -> Result<(), StageError> {
        let path = ctx.source("source")?;
        if path.is_dir() && self.sha256.is_some() {
            return Err(
                StageError::new(format!("{}: a folder has no SHA-256", path.display()))
                    .hint("give a file, or leave `sha256` out"),
            );
        }
        let pairs = self.layout.read(path, &self.source.to_string())?;
        let found = pairs.len();
        let (pairs, dropped) = self.usable(pairs);
        let examples = self.select(pairs)?;
        if dropped > 0 {
            ctx.note(&format!(
                "{dropped} of {found} pairs were left out: an empty answer, twice the same answer, or a question that \
                 is too long"
            ));
        }
        if examples.is_empty() {
            return Err(
                StageError::new(format!("{}: no pair is left of {found}", self.source))
                    .hint("raise `max_question_chars`, or set `long_questions: cut`"),
            );
        }
        let title = format!("Preference pairs of {}", self.source);
        Ok(Dataset { title, examples }.write(&ctx.output("pairs")?)?)
    }
}

impl LoadPreferences {
    /// Leaves out what cannot be used, and counts it.
    fn usable(&self, pairs: Vec<Pair>) -> (Vec<Pair>, usize) {
        let found = pairs.len();
        let mut kept = Vec::with_capacity(found);
        for mut pair in pairs {
            if let Some(limit) = self.max_answer_chars {
                pair.chosen = cut_end(&pair.chosen, limit).to_owned();
                pair.rejected = cut_end(&pair.rejected, limit).to_owned();
            }
            let is_empty = |text: &str| text.trim().is_empty();
            let fits = self.max_question_chars.is_none_or(|limit| {
                pair.question.length() <= limit
                    || (self.long_questions == LongQuestions::Cut && pair.question.cut(limit))
            });
            if fits
                && !is_empty(&pair.chosen)
                && !is_empty(&pair.rejected)
                && pair.chosen != pair.rejected
            {
                kept.push(pair);
            }
        }
        let dropped = found - kept.len();
        (kept, dropped)
    }

    /// Takes questions in order, with their pairs, up to the limits.
    fn select(&self, pairs: Vec<Pair>) -> Result<Vec<Example>, StageError> {
        let template = Template::parse(&self.template).map_err(StageError::new)?;
        let mut questions: IndexMap<u64, Vec<Pair>> = IndexMap::new();
        for pair in pairs {
            questions.entry(pair.id).or_default().push(pair);
        }
        let mut questions: Vec<Vec<Pair>> = questions.into_values().collect();
        if let Some(seed) = self.seed {
            Stream::new(seed, "load_preferences")
                .at(0)
                .shuffle(&mut questions);
        }
        questions.truncate(self.max_questions.unwrap_or(usize::MAX));
        let most = self.max_pairs_per_question.unwrap_or(usize::MAX);
        let pairs = questions
            .into_iter()
            .flat_map(|pairs| pairs.into_iter().take(most));
        Ok(pairs
            .take(self.max_rows.unwrap_or(usize::MAX))
            .map(|pair| Example {
                question_id: pair.id,
                prompt: template.prompt(&pair.question),
                question: pair.question.shown(),
                chosen: Some(pair.chosen),
                rejected: Some(pair.rejected),
            })
            .collect())
    }
}

#[cfg(test)]
mod tests;
