//! Completions: what a policy wrote for each prompt; and scores: the same with rewards.

use std::path::Path;

use super::table::{Table, TableError};

/// The artifact kind of completions.
pub const COMPLETIONS: &str = "completions";

/// What a table of completions has a known number of.
pub const ROWS: &str = "completions";

/// What a table of completions has a known number of for each prompt.
pub const ROWS_PER_PROMPT: &str = "completions of a prompt";
/// The artifact kind of completions with rewards.
pub const SCORES: &str = "scores";

/// The columns of completions that nobody has scored.
pub const COLUMNS: [&str; 10] = [
    "question_id",
    "sample",
    "question",
    "prompt",
    "prompt_ids",
    "completion",
    "tokens",
    "token_ids",
    "truncated",
    "log_prob",
];

/// One completion.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct CompletionRow {
    /// Which question it answers.
    pub question_id: u64,
    /// Which sample of that question it is, from 0.
    pub sample: u64,
    /// The question as it was asked.
    pub question: String,
    /// What the policy was given: the end of a prompt that was cut.
    pub prompt: String,
    /// The tokens of a prompt that was cut: its text read again may be cut into others.
    pub prompt_ids: Option<Vec<u32>>,
    /// What it wrote, without special tokens.
    pub completion: String,
    /// Its length in tokens, the end-of-sequence token included, if anybody counted them.
    pub tokens: Option<u64>,
    /// The tokens themselves, where a policy chose them: the text read again may be cut into others.
    pub token_ids: Option<Vec<u32>>,
    /// Whether the horizon ended it.
    pub truncated: bool,
    /// Its log-probability under the policy, temperature 1, where that is known.
    pub log_prob: Option<f64>,
}

/// Writes completions as a table, to which columns of scores can be added.
pub fn to_table(title: &str, rows: &[CompletionRow]) -> Table {
    let mut table = Table::new(title);
    table.whole_column(
        "question_id",
        rows.iter().map(|row| Some(row.question_id as f64)),
    );
    table.whole_column("sample", rows.iter().map(|row| Some(row.sample as f64)));
    table.text_column(
        "question",
        rows.iter().map(|row| Some(row.question.clone())),
    );
    table.text_column("prompt", rows.iter().map(|row| Some(row.prompt.clone())));
    ids_column(&mut table, "prompt_ids", rows, |row| {
        row.prompt_ids.as_deref()
    });
    table.text_column(
        "completion",
        rows.iter().map(|row| Some(row.completion.clone())),
    );
    table.whole_column(
        "tokens",
        rows.iter()
            .map(|row| row.tokens.map(|tokens| tokens as f64)),
    );
    ids_column(&mut table, "token_ids", rows, |row| {
        row.token_ids.as_deref()
    });
    table.truth_column("truncated", rows.iter().map(|row| row.truncated));
    table.number_column("log_prob", 3, rows.iter().map(|row| row.log_prob));
    table
}

/// Adds a column of token ids, if a row has any.
fn ids_column(
    table: &mut Table,
    name: &str,
    rows: &[CompletionRow],
    ids: impl Fn(&CompletionRow) -> Option<&[u32]>,
) {
    if rows.iter().all(|row| ids(row).is_none()) {
        return;
    }
    table.ids_column(name, rows.iter().map(|row| ids(row).map(<[u32]>::to_vec)));
}

/// Reads the completions of an artifact of kind `completions` or `scores`.
pub fn read(folder: &Path) -> Result<Vec<CompletionRow>, TableError> {
    from_table(&Table::read(folder)?)
}

/// Reads completions out of a table.
pub fn from_table(table: &Table) -> Result<Vec<CompletionRow>, TableError> {
    let number = |name: &str| table.all_numbers(name);
    let (ids, samples, truncated) = (
        number("question_id")?,
        number("sample")?,
        number("truncated")?,
    );
    let known = |name: &str| -> Result<Vec<Option<f64>>, TableError> {
        if !table.has(name) {
            return Ok(vec![None; table.height()]);
        }
        Ok(table.numbers(name)?.to_vec())
    };
    let (tokens, log_probs) = (known("tokens")?, known("log_prob")?);
    let (questions, prompts) = (table.all_texts("question")?, table.all_texts("prompt")?);
    let completions = table.all_texts("completion")?;
    let ids_of = |name: &str| -> Result<Vec<Option<Vec<u32>>>, TableError> {
        if !table.has(name) {
            return Ok(vec![None; table.height()]);
        }
        Ok(table.ids(name)?.to_vec())
    };
    let (mut prompt_ids, mut token_ids) = (ids_of("prompt_ids")?, ids_of("token_ids")?);
    (0..table.height())
        .map(|row| {
            Ok(CompletionRow {
                question_id: ids[row] as u64,
                sample: samples[row] as u64,
                question: questions[row].clone(),
                prompt: prompts[row].clone(),
                prompt_ids: prompt_ids[row].take(),
                completion: completions[row].clone(),
                tokens: tokens[row].map(|tokens| tokens as u64),
                token_ids: token_ids[row].take(),
                truncated: truncated[row] != 0.0,
                log_prob: log_probs[row],
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_have_the_columns_that_are_told_before_they_are_made() {
        let row = CompletionRow {
            prompt_ids: Some(vec![1]),
            token_ids: Some(vec![2]),
            ..CompletionRow::default()
        };
        let table = to_table("completions", &[row]);
        let columns = table.columns.iter().map(|column| column.name.as_str());
        assert_eq!(columns.collect::<Vec<_>>(), COLUMNS);
    }
}
