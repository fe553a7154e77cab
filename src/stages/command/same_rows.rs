//! Whether what a command wrote is about the rows that it read.

use std::collections::BTreeSet;

use crate::artifacts::completions::{COMPLETIONS, SCORES};
use crate::artifacts::format::Rows;
use crate::artifacts::judgements::JUDGEMENTS;
use crate::artifacts::table::{Table, TableError};
use crate::engine::context::RunContext;
use crate::engine::stage::StageError;
use crate::excerpt::excerpt;

/// By these a completion is told.
const NUMBERS: [&str; 2] = ["question_id", "sample"];
const TEXTS: [&str; 2] = ["prompt", "completion"];
/// What a message shows of a text.
const SHOWN: usize = 60;

/// Checks rows against those of the only input of completions or scores, if there is one: scores and embeddings have a
/// row for each, judgements are about some of them.
pub(super) fn check(
    kind: &str,
    rows: &Rows,
    shown: &str,
    ctx: &RunContext,
) -> Result<(), StageError> {
    let inputs = ctx.all_inputs().iter();
    let inputs = inputs.flat_map(|(port, inputs)| inputs.iter().map(move |input| (port, input)));
    let mut inputs = inputs.filter(|(_, input)| [COMPLETIONS, SCORES].contains(&&*input.kind));
    let (Some((port, input)), None) = (inputs.next(), inputs.next()) else {
        return Ok(());
    };
    let theirs = Table::read(&input.path)?;
    let hint = "where other rows are meant, say `same_rows: false` beside `kind`";
    if let (JUDGEMENTS, Rows::Table(ours)) = (kind, rows) {
        let known: BTreeSet<(String, String)> = named(&theirs)?.into_iter().collect();
        let ours = named(ours)?;
        let Some(at) = ours.iter().position(|judged| !known.contains(judged)) else {
            return Ok(());
        };
        return Err(StageError::new(format!(
            "{shown}, row {}: `question_id` {} and `sample` {} are no row of input `{port}`",
            at + 1,
            ours[at].0,
            ours[at].1
        ))
        .hint(hint));
    }
    if rows.count() != theirs.height() {
        return Err(StageError::new(format!(
            "{shown}: it has {} rows, expected the {} of input `{port}`, one for each",
            rows.count(),
            theirs.height()
        ))
        .hint(hint));
    }
    let Rows::Table(ours) = rows else {
        return Ok(());
    };
    for column in NUMBERS.iter().chain(&TEXTS) {
        let (ours, theirs) = (cells(ours, column)?, cells(&theirs, column)?);
        let mut pairs = ours.iter().zip(&theirs);
        if let Some(at) = pairs.position(|(ours, theirs)| ours != theirs) {
            return Err(StageError::new(format!(
                "{shown}, row {}: `{column}` is {}, expected {} as in row {0} of input `{port}`",
                at + 1,
                excerpt(&ours[at], SHOWN),
                excerpt(&theirs[at], SHOWN)
            ))
            .hint(hint));
        }
    }
    Ok(())
}

/// Returns what each row is told by.
fn named(table: &Table) -> Result<Vec<(String, String)>, TableError> {
    let [questions, samples] = NUMBERS.map(|column| cells(table, column));
    Ok(questions?.into_iter().zip(samples?).collect())
}

/// Returns the cells of a column as they are compared and shown.
fn cells(table: &Table, column: &str) -> Result<Vec<String>, TableError> {
    if NUMBERS.contains(&column) {
        let numbers = table.all_numbers(column)?.into_iter();
        return Ok(numbers.map(|number| number.to_string()).collect());
    }
    let texts = table.all_texts(column)?.into_iter();
    Ok(texts
        .map(|text| serde_json::Value::from(text).to_string())
        .collect())
}
