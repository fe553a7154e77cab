//! What policies answered to the same prompts.
//!
//! Completions are scored again and again by one stage after the other: `sample`, `score_world`, `score`. What was sampled
//! once is shown once, with the columns of all that scored it.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use super::super::Failure;
use super::super::results::{Found, Results};
use super::super::show::{check_objects, read_table};
use super::embed::{in_script, readable};
use crate::artifacts::completions::{COLUMNS, COMPLETIONS, SCORES};
use crate::artifacts::table::{Column, Table, TableError, Values};
use crate::engine::spec::Pipeline;
use crate::engine::stage::StageError;
use crate::engine::store::Store;
use crate::excerpt::excerpt;

/// Bytes of one text.
const LONGEST: usize = 1_200;

/// Which prompt a completion answers: id, sample, text.
type Key = (u64, u64, String);

/// What a stage sampled, with its scores.
struct Samples {
    /// Position of the stage that sampled it.
    stage: usize,
    table: Table,
    /// Numbers beside the completions.
    scores: Vec<Column>,
    /// Names that stand for other numbers in another table of them.
    unclear: Vec<String>,
}

/// One completion on the page.
#[derive(Debug)]
struct Answer {
    /// Position of the stage that sampled it.
    stage: usize,
    text: String,
    truncated: bool,
    /// By column of the page; `None` where it has no such column.
    scores: Vec<Option<f64>>,
}

/// As a list: there are tens of thousands, and names of fields would be half of the file.
impl Serialize for Answer {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.stage, &self.text, self.truncated, &self.scores).serialize(serializer)
    }
}

/// A prompt with what was answered.
#[derive(Debug, Serialize)]
struct Prompt {
    text: String,
    sample: u64,
    answers: Vec<Answer>,
}

/// Reads the completions of the results, as JSON: as many prompts as there is room for, in bytes.
///
/// Prompts that several stages answered come first, in the order of their number within what was sampled, so that those
/// that are left out are left out of every stage alike.
pub(super) fn read(
    pipeline: &Pipeline,
    store: &Store,
    results: &Results,
    mut room: usize,
) -> Result<Json, Failure> {
    let samples = sampled(pipeline, store, results)?;
    let mut columns: Vec<&str> = Vec::new();
    for column in samples.iter().flat_map(|samples| &samples.scores) {
        if !columns.contains(&column.name.as_str()) {
            columns.push(&column.name);
        }
    }
    let mut prompts: IndexMap<Key, (usize, Prompt)> = IndexMap::new();
    for one in &samples {
        one.add_to(&mut prompts, &columns)
            .map_err(StageError::from)?;
    }
    let mut prompts: Vec<(usize, Prompt)> = prompts.into_values().collect();
    // Stable: those of one number stay in the order of the stages.
    prompts.sort_by_key(|(number, prompt)| (prompt.answers.len() == 1, *number));
    let all = prompts.len();
    let mut shown = Vec::new();
    let mut cut = 0;
    for (_, mut prompt) in prompts {
        let long = prompt.shorten();
        let told = readable(&prompt).map_err(StageError::from)?;
        let length = in_script(&told).len() + 1;
        if length > room {
            break;
        }
        room -= length;
        cut += long;
        shown.push(told);
    }
    let told = json!({ "columns": columns, "prompts": shown, "all": all, "cut": cut });
    Ok(readable(&told).map_err(StageError::from)?)
}

/// Finds what was sampled, each with all scores of it, in the order of the file.
fn sampled(pipeline: &Pipeline, store: &Store, results: &Results) -> Result<Vec<Samples>, Failure> {
    let is_sampled = |found: &&Found| [COMPLETIONS, SCORES].contains(&found.artifact.kind.as_str());
    let found: Vec<&Found> = results.found.iter().filter(is_sampled).collect();
    let at: BTreeMap<(usize, &str), usize> = found
        .iter()
        .enumerate()
        .map(|(at, found)| ((found.stage, found.output.as_str()), at))
        .collect();
    // What each was made of: other completions, if it scores those and no others.
    let scored = |found: &Found| {
        let items = pipeline.stages[found.stage]
            .inputs
            .iter()
            .flat_map(|input| &input.items);
        let mut scored = items.filter_map(|item| at.get(&(item.producer, item.output.as_str())));
        scored.next().copied().filter(|_| scored.next().is_none())
    };
    let made_of: Vec<Option<usize>> = found.iter().map(|found| scored(found)).collect();
    let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for at in 0..found.len() {
        let mut first = at;
        while let Some(before) = made_of[first] {
            first = before;
        }
        let members = groups.entry(first).or_insert_with(|| vec![first]);
        members.extend((at != first).then_some(at));
    }
    let mut all = Vec::new();
    for members in groups.into_values() {
        let mut own: Vec<Samples> = Vec::new();
        for at in members {
            check_objects(store, &found[at].artifact)?;
            let table = read_table(store, &found[at].artifact)?;
            if let Some(same) = own.iter_mut().find(|own| own.has_rows_of(&table)) {
                same.add_scores(&table);
            } else {
                // What was sampled; or some of it was chosen, or changed: that is another answer.
                own.push(Samples::of(found[at].stage, table));
            }
        }
        all.append(&mut own);
    }
    for samples in &mut all {
        let unclear = &samples.unclear;
        samples
            .scores
            .retain(|column| !unclear.contains(&column.name));
    }
    Ok(all)
}

impl Samples {
    fn of(stage: usize, table: Table) -> Self {
        let mut samples = Self {
            stage,
            scores: Vec::new(),
            unclear: Vec::new(),
            table: table.clone(),
        };
        samples.add_scores(&table);
        samples
    }

    /// Whether a table is about the same completions.
    fn has_rows_of(&self, other: &Table) -> bool {
        let is_same = |column: &str| self.table.numbers(column).ok() == other.numbers(column).ok();
        ["question_id", "sample"].into_iter().all(is_same)
            && self.table.texts("completion").ok() == other.texts("completion").ok()
    }

    /// Adds the scores of the same rows.
    fn add_scores(&mut self, scored: &Table) {
        for column in &scored.columns {
            if !column.is_number() || COLUMNS.contains(&column.name.as_str()) {
                continue;
            }
            match self.scores.iter().find(|other| other.name == column.name) {
                Some(other) if other.values != column.values => {
                    self.unclear.push(column.name.clone());
                }
                Some(_) => {}
                None => self.scores.push(column.clone()),
            }
        }
    }

    /// Puts each completion to its prompt, with the scores by `columns`.
    fn add_to(
        &self,
        prompts: &mut IndexMap<Key, (usize, Prompt)>,
        columns: &[&str],
    ) -> Result<(), TableError> {
        let (ids, samples) = (
            self.table.numbers("question_id")?,
            self.table.numbers("sample")?,
        );
        let questions = self.table.texts("question")?;
        let texts = self.table.texts("completion")?;
        let truncated = self.table.numbers("truncated")?;
        let scores: Vec<Option<&Column>> = columns
            .iter()
            .map(|name| self.scores.iter().find(|column| column.name == *name))
            .collect();
        for row in 0..self.table.height() {
            let number = |numbers: &[Option<f64>]| numbers[row].unwrap_or_default() as u64;
            let text = questions[row].clone().unwrap_or_default();
            let sample = number(samples);
            let answer = Answer {
                stage: self.stage,
                text: texts[row].clone().unwrap_or_default(),
                truncated: truncated[row] == Some(1.0),
                scores: scores
                    .iter()
                    .map(|column| rounded((*column)?, row))
                    .collect(),
            };
            let empty = || {
                let text = text.clone();
                (
                    row,
                    Prompt {
                        text,
                        sample,
                        answers: Vec::new(),
                    },
                )
            };
            let prompt = prompts
                .entry((number(ids), sample, text.clone()))
                .or_insert_with(empty);
            prompt.1.answers.push(answer);
        }
        Ok(())
    }
}

impl Prompt {
    /// Shortens what is too long, and says how many texts that were.
    fn shorten(&mut self) -> usize {
        let answers = self.answers.iter_mut().map(|answer| &mut answer.text);
        let texts = answers.chain([&mut self.text]);
        let long = texts.filter(|text| text.len() > LONGEST);
        long.map(|text| *text = excerpt(text, LONGEST).into_owned())
            .count()
    }
}

/// A number as people see it.
fn rounded(column: &Column, row: usize) -> Option<f64> {
    match &column.values {
        Values::Numbers(values) => values[row]?,
        _ => return None,
    };
    column.cell(row)?.parse().ok()
}
